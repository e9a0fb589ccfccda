// merge and export --format peft on the adapters that peft wrote for the reference's model.

#include "train_gpt_v2/app/merge_command.h"

#include <ATen/core/grad_mode.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "support/test_files.h"
#include "train_gpt_v2/adapt/peft_files.h"
#include "train_gpt_v2/app/eval_command.h"
#include "train_gpt_v2/app/export_command.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/io/safetensors.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/tensor_bridge.h"
#include "train_gpt_v2/model/weights.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::json;
using testing::data_path;
using testing::TemporaryFolder;

class AdaptedModel : public ::testing::Test {
 protected:
  AdaptedModel() { reset_signal_flags(); }

  static ModelRequest with_adapter(const std::string& folder) {
    ModelRequest request;
    request.checkpoint = data_path("fixtures/model/gpt.pth");
    request.config = data_path("export/fixture.json");
    request.sets = {"init.peft_adapter=" + folder, "data.tokenizer=" + data_path("fixtures/tokenizer/extended.model"),
                    "data.val_manifests=[\"" + data_path("fixtures/data/val_pairs.jsonl") + "\"]"};
    return request;
  }
  static std::string peft(const std::string& name) { return data_path("fixtures/peft/" + name); }

  MergeRequest merge_of(const std::string& adapter, double scale = 1) const {
    MergeRequest request;
    request.model = with_adapter(peft(adapter));
    request.output = folder_.file("out/merged_final.pth");
    request.scale = scale;
    request.json = true;
    return request;
  }
  static Json merge(const MergeRequest& request) {
    std::ostringstream out;
    EXPECT_EQ(run_merge(request, out), ExitStatus::kOk);
    return Json::parse(out.str());
  }
  static Json evaluate(const ModelRequest& model) {
    EvalRequest request;
    request.model = model;
    request.json = true;
    std::ostringstream out;
    run_eval(request, out);
    return Json::parse(out.str());
  }
  static std::string code_of(const std::function<void()>& call) {
    try {
      call();
    } catch (const Error& error) {
      return error.code();
    }
    return "";
  }

  TemporaryFolder folder_;
};

TEST_F(AdaptedModel, MergedEqualsTheAdapterAndPeftsOwnMerge) {
  const Json result = merge(merge_of("dora"));
  EXPECT_EQ(result["method"], "dora");
  EXPECT_EQ(result["matrices"], 8);
  EXPECT_GT(result["max_logit_difference"].get<double>(), 0);  // the two forms are two computations
  EXPECT_LT(result["max_logit_difference"].get<double>(), 1e-4);
  EXPECT_LT(result["loss_difference"].get<double>(), 1e-5);

  const LoadedFile file = read_tensor_file(folder_.file("out/merged_final.pth"), true);
  ASSERT_EQ(file.root.entries().size(), 2u);
  EXPECT_TRUE(file.root.contains("model") && file.root.contains("config"));
  const LoadedFile base = read_tensor_file(data_path("fixtures/model/gpt.pth"), true);
  const auto merged = file.root.at("model").entries();
  ASSERT_EQ(merged.size(), base.root.size());
  const SafetensorsFile theirs = read_safetensors(peft("dora/merged.safetensors"));
  std::size_t changed = 0;
  for (std::size_t i = 0; i < merged.size(); ++i) {
    const std::string& name = merged[i].key.as_string();
    EXPECT_EQ(name, base.root.entries()[i].key.as_string());  // the reference's names in its order
    const auto other = std::find_if(theirs.tensors.begin(), theirs.tensors.end(),
                                    [&](const auto& entry) { return entry.first == name; });
    if (other == theirs.tensors.end()) {
      EXPECT_TRUE(identical(merged[i].value.as_tensor(), base.root.at(name).as_tensor())) << name;
      continue;
    }
    ++changed;
    const at::Tensor difference = tensor_to_torch(merged[i].value.as_tensor()) - tensor_to_torch(other->second);
    EXPECT_LT(difference.abs().max().item<double>(), 3e-6) << name;
  }
  EXPECT_EQ(changed, 8u);

  // No configuration is needed, and none of the adapter is left in it.
  ModelRequest alone;
  alone.checkpoint = folder_.file("out/merged_final.pth");
  const Json ours = evaluate(alone), adapter = evaluate(with_adapter(peft("dora")));
  for (const char* key : {"text_loss", "mel_loss"})
    EXPECT_NEAR(ours[key].get<double>(), adapter[key].get<double>(), 1e-6) << key;
  EXPECT_NEAR(result["mel_loss"].get<double>(), ours["mel_loss"].get<double>(), 1e-5);
  EXPECT_EQ(ours["mel_tokens"], adapter["mel_tokens"]);
  EXPECT_FALSE(load_model(alone).adapters);
  EXPECT_EQ(load_model(alone).options.init.peft_adapter, "");
  ExportRequest request{alone, folder_.file("gpt.safetensors"), "safetensors", ""};
  run_export(request);
  EXPECT_EQ(read_safetensors(request.output).tensors.size(), base.root.size());
}

TEST_F(AdaptedModel, ScaleTakesTheChangeBackInPart) {
  const auto weight = [&](double scale) {
    merge(merge_of("lora", scale));
    const LoadedFile file = read_tensor_file(folder_.file("out/merged_final.pth"), true);
    return tensor_to_torch(file.root.at("model").at("gpt.h.1.mlp.c_fc.weight").as_tensor()).clone();
  };
  const LoadedFile base = read_tensor_file(data_path("fixtures/model/gpt.pth"), true);
  const at::Tensor none = tensor_to_torch(base.root.at("gpt.h.1.mlp.c_fc.weight").as_tensor());
  const at::Tensor all = weight(1);
  EXPECT_TRUE(weight(0).equal(none));
  EXPECT_GT((all - none).abs().max().item<double>(), 1e-3);
  EXPECT_LT((weight(0.25) - (none + 0.25 * (all - none))).abs().max().item<double>(), 1e-6);
  // The proof holds for the scaled model too: its two forms agree, and it is another model than the whole change.
  const Json quarter = merge(merge_of("dora", 0.25)), whole = merge(merge_of("dora"));
  EXPECT_LT(quarter["max_logit_difference"].get<double>(), 1e-4);
  EXPECT_GT(std::abs(quarter["mel_loss"].get<double>() - whole["mel_loss"].get<double>()), 1e-3);
}

TEST_F(AdaptedModel, SlicedAdaloraMergesWithEmptyRanks) {
  const Json result = merge(merge_of("adalora"));
  EXPECT_EQ(result["method"], "adalora");
  ModelRequest alone;
  alone.checkpoint = folder_.file("out/merged_final.pth");
  EXPECT_NEAR(evaluate(alone)["mel_loss"].get<double>(),
              evaluate(with_adapter(peft("adalora")))["mel_loss"].get<double>(), 1e-6);
}

TEST_F(AdaptedModel, WhatIsNotEqualIsNotWritten) {
  MergeRequest strict = merge_of("dora");
  strict.tolerance = 0;  // less than rounding
  EXPECT_EQ(code_of([&] { merge(strict); }), "PFT005");
  MergeRequest plain = merge_of("dora");
  plain.model.sets.erase(plain.model.sets.begin());
  EXPECT_EQ(code_of([&] { merge(plain); }), "PFT004");
  MergeRequest nowhere = merge_of("dora");
  nowhere.model.sets.pop_back();
  EXPECT_EQ(code_of([&] { merge(nowhere); }), "CFG021");
  MergeRequest missing = merge_of("nothing");
  EXPECT_EQ(code_of([&] { merge(missing); }), "IO001");
  request_stop(ExitStatus::kSigint);
  std::ostringstream out;
  EXPECT_EQ(run_merge(merge_of("dora"), out), ExitStatus::kSigint);
  reset_signal_flags();
  EXPECT_FALSE(file_exists(strict.output));
}

TEST_F(AdaptedModel, PeftFoldersRoundTrip) {
  for (const char* name : {"dora", "lora", "adalora"}) {
    SCOPED_TRACE(name);
    const ExportRequest request{with_adapter(peft(name)), folder_.file(name), "peft", ""};
    run_export(request);
    const PeftFolder before = read_peft_folder(peft(name)), after = read_peft_folder(request.output);
    EXPECT_EQ(after.kind, before.kind == AdapterKind::kAdalora ? AdapterKind::kLora : before.kind);
    ASSERT_EQ(after.modules.size(), before.modules.size());
    const Json old = evaluate(with_adapter(peft(name))), now = evaluate(with_adapter(request.output));
    for (const char* key : {"text_loss", "mel_loss"})
      EXPECT_NEAR(now[key].get<double>(), old[key].get<double>(), 2e-6) << key;
    if (before.kind == AdapterKind::kAdalora) continue;
    for (std::size_t i = 0; i < after.modules.size(); ++i) {
      EXPECT_EQ(after.modules[i].module, before.modules[i].module);
      EXPECT_EQ(after.modules[i].alpha, before.modules[i].alpha);
      EXPECT_TRUE(identical(after.modules[i].a, before.modules[i].a));
      EXPECT_TRUE(identical(after.modules[i].b, before.modules[i].b));
    }
  }
  ExportRequest refused{with_adapter(peft("dora")), folder_.file("x"), "peft", "bf16"};
  EXPECT_EQ(code_of([&] { run_export(refused); }), "ARG001");
  refused.dtype = "";
  refused.model.sets.erase(refused.model.sets.begin());
  EXPECT_EQ(code_of([&] { run_export(refused); }), "PFT004");
  refused.model = with_adapter(peft("dora"));
  refused.output = folder_.write("file", "x");
  EXPECT_EQ(code_of([&] { run_export(refused); }), "IO003");
}

TEST_F(AdaptedModel, StoredConfigurationsAreNotTrusted) {
  merge(merge_of("dora"));
  const std::string path = folder_.file("out/merged_final.pth");
  const LoadedFile file = read_tensor_file(path, true);
  const auto with_config = [&](Value config) {
    Value root = Value::dict();
    root.set("model", file.root.at("model")).set("config", std::move(config));
    write_torch_file(folder_.file("other.pth"), root);
    ModelRequest request;
    request.checkpoint = folder_.file("other.pth");
    return code_of([&] { load_model(request); });
  };
  EXPECT_EQ(with_config(file.root.at("config")), "");
  EXPECT_EQ(with_config("text"), "CFG020");
  EXPECT_EQ(with_config(Value::dict()), "CFG020");
  EXPECT_EQ(with_config(Value::dict().set("model", 3)), "CFG020");
  const auto in_model = [](Value key, Value value) {
    return Value::dict().set("model", Value::dict().set(std::move(key), std::move(value)));
  };
  EXPECT_EQ(with_config(in_model("layers", -4)), "CFG001");
  EXPECT_EQ(with_config(in_model("nonsense", 1)), "CFG001");
  EXPECT_EQ(with_config(in_model(7, 1)), "CKP003");
  EXPECT_EQ(with_config(in_model("dropout", std::numeric_limits<double>::quiet_NaN())), "CKP003");
  EXPECT_EQ(with_config(in_model("layers", Tensor::zeros(DType::kFloat32, {2}))), "CKP003");
}

}  // namespace
}  // namespace train_gpt_v2
