// `inspect`: every kind of file of the fixtures, comparisons, and files that are none.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "support/test_files.h"
#include "train_gpt_v2/app/inspect_command.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using ::testing::AllOf;
using testing::data_path;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TemporaryFolder;
using Json = nlohmann::json;

Json inspect(const std::string& path, bool verify = true) {
  std::ostringstream out;
  run_inspect(path, verify, true, out);
  return Json::parse(out.str());
}

Json compare(const std::string& a, const std::string& b) {
  std::ostringstream out;
  const std::size_t count = run_inspect_compare(a, b, true, true, out);
  const Json document = Json::parse(out.str());
  EXPECT_EQ(document["differences"].size(), count);
  return document;
}

TEST(Inspect, WeightsBareUnderAKeyAndInSafetensors) {
  for (const char* name : {"gpt.pth", "gpt.safetensors"}) {
    const Json file = inspect(data_path(std::string("fixtures/model/") + name));
    EXPECT_EQ(file["kind"], "weights");
    EXPECT_EQ(file["model"], "UnifiedVoice, width 64, 2 layers, 361 text rows (360 tokens), 226 mel codes");
    EXPECT_EQ(file["tensors"].size(), 215u);
    EXPECT_EQ(file["resumable"], false);
    EXPECT_THAT(file["resume_problem"].get<std::string>(), HasSubstr("init.from"));
    EXPECT_EQ(file["verified"], std::string(name) == "gpt.pth");  // safetensors has no checksums
  }
  const Json keyed = inspect(data_path("fixtures/model/gpt_model_key.pth"));
  EXPECT_EQ(keyed["kind"], "weights");
  EXPECT_EQ(keyed["step"], 0);
  EXPECT_EQ(keyed["python_problem"], "it holds weights only (they can be a starting point)");
}

TEST(Inspect, CheckpointOfThePythonTrainer) {
  const Json file = inspect(data_path("fixtures/expected/trainer/latest.pth"));
  EXPECT_EQ(file["kind"], "python_checkpoint");
  EXPECT_EQ(file["step"], 6);
  EXPECT_EQ(file["epoch"], 1);
  EXPECT_EQ(file["values"]["batch_idx"], 4);
  EXPECT_EQ(file["resumable"], true);
  EXPECT_EQ(file["resumable_in_python"], true) << file["python_problem"];
  EXPECT_EQ(file["sections"][1]["name"], "optimizer");
  EXPECT_EQ(file["sections"][1]["tensors"], 3 * 37);
  EXPECT_THAT(file["ignored"].dump(), HasSubstr("numpy"));
  std::ostringstream text;
  run_inspect(data_path("fixtures/expected/trainer/latest.pth"), true, false, text);
  EXPECT_THAT(text.str(), AllOf(HasSubstr("checkpoint of the Python trainer"), HasSubstr("step: 6"),
                                HasSubstr("\n  resumable in Python\n"), HasSubstr("every byte read and checked"),
                                HasSubstr("ignored: rng_state.numpy[1]"), HasSubstr("model.gpt.ln_f.weight")));
}

TEST(Inspect, Adapters) {
  const Json file = inspect(data_path("fixtures/peft/dora/adapter_model.safetensors"));
  EXPECT_EQ(file["kind"], "adapters");
  EXPECT_THAT(file["python_problem"].get<std::string>(), HasSubstr("merge"));
  const Json& adapters = file["adapters"];
  EXPECT_EQ(adapters["method"], "dora");
  EXPECT_EQ(adapters["ranks"], 2 * (8 + 8 + 4 + 4));
  // Per block of width 64: r·(in + out) and out magnitudes.
  const int block = 8 * (64 + 192) + 192 + 8 * (64 + 64) + 64 + 4 * (64 + 256) + 256 + 4 * (256 + 64) + 64;
  EXPECT_EQ(adapters["parameters"], 2 * block);
  ASSERT_EQ(adapters["modules"].size(), 8u);
  for (const Json& module : adapters["modules"]) {
    EXPECT_EQ(module["rank"], module["module"].get<std::string>().find("attn") != std::string::npos ? 8 : 4) << module;
    EXPECT_EQ(module["base_elements"], 0) << module;
  }
  const Json sliced = inspect(data_path("fixtures/peft/adalora/adapter_model.safetensors"))["adapters"];
  EXPECT_EQ(sliced["method"], "adalora");
  EXPECT_EQ(sliced["ranks"], 24);
  EXPECT_FALSE(inspect(data_path("fixtures/model/gpt.pth")).contains("adapters"));
}

class InspectForged : public ::testing::Test {
 protected:
  // The Python trainer's checkpoint with some keys replaced; None removes one.
  Json with(const std::vector<std::pair<std::string, Value>>& changes) {
    const LoadedFile loaded = read_tensor_file(data_path("fixtures/expected/trainer/latest.pth"));
    Value root = Value::dict();
    for (const Value::Entry& entry : loaded.root.entries()) {
      if (entry.key.as_string() != "rng_state") root.set(entry.key, entry.value);
    }
    Value changed = Value::dict();
    for (const auto& [key, value] : changes) root.set(key, value);
    for (const Value::Entry& entry : root.entries()) {
      const bool removed = entry.value.is_string() && entry.value.as_string() == "remove";
      if (!removed) changed.set(entry.key, entry.value);
    }
    write_torch_file(folder_.file("x.pth"), changed);
    return inspect(folder_.file("x.pth"));
  }
  TemporaryFolder folder_;
};

TEST_F(InspectForged, OursAndWhyPythonCannotResume) {
  const Json ours = with({{"train_gpt_v2", Value::dict().set("format_version", 1)}});
  EXPECT_EQ(ours["kind"], "checkpoint");
  EXPECT_EQ(ours["resumable_in_python"], true);

  Value named = Value::dict();
  named.set("state", Value::dict().set("gpt.ln_f.weight", Value::dict()));
  named.set("param_groups", Value::list({Value::dict().set("params", Value::list())}));
  EXPECT_THAT(with({{"optimizer", named}})["python_problem"].get<std::string>(), HasSubstr("by name"));
  Value groups = Value::dict();
  groups.set("state", Value::dict()).set("param_groups", Value::list({Value::dict(), Value::dict()}));
  EXPECT_THAT(with({{"optimizer", groups}})["python_problem"].get<std::string>(), HasSubstr("2 parameter groups"));
  Value few = Value::dict();
  few.set("state", Value::dict());
  few.set("param_groups", Value::list({Value::dict().set("params", Value::list({0, 1}))}));
  EXPECT_THAT(with({{"optimizer", few}})["python_problem"].get<std::string>(), HasSubstr("counts 2 parameters"));
  EXPECT_EQ(with({{"scheduler", "remove"}, {"batch_idx", "remove"}})["python_problem"],
            "it lacks scheduler, batch_idx");
  EXPECT_EQ(with({{"step", "remove"}})["resume_problem"], "it lacks step");

  const Json best =
      with({{"optimizer", "remove"}, {"train_gpt_v2", Value::dict()}, {"val_mel_loss", 4.25}, {"weights", "ema"}});
  EXPECT_EQ(best["kind"], "best");
  EXPECT_EQ(best["values"]["val_mel_loss"], 4.25);
  EXPECT_EQ(best["values"]["weights"], "ema");
  const auto zeros = [](std::vector<std::int64_t> shape) { return Tensor::zeros(DType::kFloat32, std::move(shape)); };
  const Value base = Value::ordered_dict().set("gpt.h.0.mlp.c_fc.weight", zeros({8, 32}));
  const Value adapter = Value::dict()
                            .set("gpt.h.0.mlp.c_fc.lora_A", zeros({3, 8}))
                            .set("gpt.h.0.mlp.c_fc.lora_E", zeros({3, 1}))
                            .set("gpt.h.0.mlp.c_fc.lora_B", zeros({32, 3}))
                            .set("gpt.h.0.mlp.c_fc.lora_magnitude_vector", zeros({32}));
  const Json adapters = with({{"model", "remove"}, {"base_model", base}, {"adapter", adapter}});
  EXPECT_EQ(adapters["kind"], "adapter_checkpoint");
  EXPECT_EQ(adapters["resumable"], true);
  EXPECT_THAT(adapters["python_problem"].get<std::string>(), HasSubstr("adapters are kept apart"));
  const Json modules = Json::array(
      {{{"module", "gpt.h.0.mlp.c_fc"}, {"rank", 3}, {"parameters", 24 + 3 + 96 + 32}, {"base_elements", 256}}});
  EXPECT_EQ(adapters["adapters"]["method"], "dora_adalora");
  EXPECT_EQ(adapters["adapters"]["modules"], modules);
  std::ostringstream text;
  run_inspect(folder_.file("x.pth"), false, false, text);
  EXPECT_THAT(
      text.str(),
      AllOf(HasSubstr("gpt.h.*.mlp.c_fc"), HasSubstr("not resumable in Python: adapters"),
            HasSubstr("dora_adalora: 155 parameters, 3 ranks in 1 matrices, 155 per layer of 256 (1.7x fewer)")));
  // The best file of such a run: weights only.
  const Json best_adapters =
      with({{"model", "remove"}, {"optimizer", "remove"}, {"base_model", base}, {"adapter", adapter}});
  EXPECT_EQ(best_adapters["kind"], "adapter_checkpoint");
  EXPECT_EQ(best_adapters["resumable"], false);
}

TEST_F(InspectForged, AnotherNetworkIsNamed) {
  Value dict = Value::ordered_dict();
  dict.set("spk_emb_proj.weight", Tensor::zeros(DType::kFloat32, {2, 2}));
  write_torch_file(folder_.file("x.pth"), dict);
  EXPECT_THAT(inspect(folder_.file("x.pth"))["model"].get<std::string>(), HasSubstr("IndexTTS-2.5"));
}

TEST_F(InspectForged, NothingInIt) {
  write_torch_file(folder_.file("x.pth"), Value::dict().set("step", 5));
  try {
    inspect(folder_.file("x.pth"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "CKP004");
    EXPECT_EQ(error.status(), ExitStatus::kBadData);
  }
}

TEST_F(InspectForged, VerifyReadsEveryByte) {
  const std::string good = read_file(data_path("fixtures/model/gpt.pth"), 1 << 30);
  std::string bad = good;
  bad[good.size() / 2] ^= 1;  // inside a weight: the description does not see it
  const std::string path = folder_.write("bad.pth", bad);
  EXPECT_EQ(inspect(path, false)["verified"], false);
  EXPECT_THROW(inspect(path, true), Error);
}

TEST_F(InspectForged, HostileTextIsHarmless) {
  Value root = Value::dict();
  root.set("w", Tensor::zeros(DType::kFloat32, {1})).set("note", "\x1b[2Jgone\n");
  write_torch_file(folder_.file("x.pth"), root);
  std::ostringstream text;
  run_inspect(folder_.file("x.pth"), false, false, text);
  EXPECT_THAT(text.str(), AllOf(HasSubstr("note: ?[2Jgone?"), ::testing::Not(HasSubstr("\x1b"))));
  Value adapters = Value::ordered_dict();
  adapters.set("\x1b[2Jmodule.lora_A.weight", Tensor::zeros(DType::kFloat32, {2, 4}));
  write_torch_file(folder_.file("x.pth"), adapters);
  text.str("");
  run_inspect(folder_.file("x.pth"), false, false, text);
  EXPECT_THAT(text.str(), AllOf(HasSubstr("?[2Jmodule  "), ::testing::Not(HasSubstr("\x1b"))));
}

TEST(InspectCompare, TheSameWeightsInThreeShapes) {
  const std::string folder = data_path("fixtures/model/");
  EXPECT_EQ(compare(folder + "gpt.pth", folder + "gpt.pth")["equal"], 215);
  // safetensors adds its metadata, nothing else.
  const Json formats = compare(folder + "gpt.pth", folder + "gpt.safetensors");
  EXPECT_EQ(formats["equal"], 215);
  ASSERT_EQ(formats["differences"].size(), 1u);
  EXPECT_EQ(formats["differences"][0]["name"], "__metadata__.format");
}

TEST(InspectCompare, TwoStepsOfARun) {
  // The trainer changed 37 tensors and kept 178 (fixtures' README).
  const Json document = compare(data_path("fixtures/model/gpt.pth"), data_path("fixtures/expected/trainer/latest.pth"));
  std::size_t changed = 0;
  for (const Json& one : document["differences"]) {
    if (!one.contains("changed_elements")) continue;
    ++changed;
    EXPECT_GT(one["largest_difference"].get<double>(), 0);
    EXPECT_LT(one["largest_difference"].get<double>(), 0.01);
  }
  EXPECT_EQ(document["equal"], 178);
  EXPECT_EQ(changed, 37u);
  // A section that one file lacks is one line.
  EXPECT_THAT(document["differences"].dump(), HasSubstr(R"("name":"optimizer")"));
}

TEST(InspectCompare, ShapesTypesAndNumbers) {
  const TemporaryFolder folder;
  Value a = Value::dict(), b = Value::dict();
  const Tensor one = Tensor::zeros(DType::kFloat32, {2, 2});
  a.set("step", 1).set("w", one).set("t", one).set("n", one);
  b.set("step", 2).set("w", Tensor::zeros(DType::kFloat32, {4})).set("t", Tensor::zeros(DType::kFloat64, {2, 2}));
  Tensor odd = Tensor::zeros(DType::kFloat32, {2, 2});
  reinterpret_cast<float*>(const_cast<std::byte*>(odd.data))[3] = -2.5f;
  b.set("n", odd);
  write_torch_file(folder.file("a"), a);
  write_torch_file(folder.file("b"), b);
  const Json differences = compare(folder.file("a"), folder.file("b"))["differences"];
  ASSERT_EQ(differences.size(), 4u);
  EXPECT_EQ(differences[0], Json::parse(R"({"name":"step","a":"1","b":"2"})"));
  EXPECT_EQ(differences[1], Json::parse(R"({"name":"w","a":"float32 [2, 2]","b":"float32 [4]"})"));
  EXPECT_EQ(differences[2]["changed_elements"], 0);  // only the type differs
  EXPECT_EQ(differences[3]["largest_difference"], 2.5);
  EXPECT_EQ(differences[3]["changed_elements"], 1);
  std::ostringstream text;
  EXPECT_EQ(run_inspect_compare(folder.file("a"), folder.file("b"), false, false, text), 4u);
  EXPECT_THAT(text.str(), HasSubstr("4 differ"));
}

}  // namespace
}  // namespace train_gpt_v2
