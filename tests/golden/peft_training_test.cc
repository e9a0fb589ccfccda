// The runs that peft 0.18.1 recorded on the reference model, repeated by the whole training path: configuration, peft
// folder, engine, adapters, AdamW, rank allocation, checkpoint. Limits: those of the fixtures' README and of
// adapt_fixtures_test.cc, which follows the same runs on tensors alone.

#include <algorithm>
#include <cmath>

#include "support/fixture_run.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/safetensors.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using nlohmann::json;
using testing::data_path;
using testing::fixture_json;
using testing::fixture_options;
using testing::metrics_of;
using testing::TemporaryFolder;

// The recorded step k trained on one batch, at a constant rate, without clipping.
Options recorded_run(const TemporaryFolder& folder, const json& steps, const char* engine,
                     std::vector<std::string> sets) {
  std::vector<std::string> all = {"train.grad_accumulation=1",     "train.grad_clip=0",
                                  "optimizer.schedule=constant",   "optimizer.warmup_steps=0",
                                  "optimizer.total_steps=null",    "validation.interval=0",
                                  concat("train.engine=", engine), concat("train.max_steps=", steps.size())};
  all.insert(all.end(), sets.begin(), sets.end());
  Options options = fixture_options(all);
  options.data.order_file = testing::write_order(folder, steps);
  return options;
}

// Differences between the adapter in a checkpoint and a file of peft's tensors.
struct Distance {
  double largest = 0, mean_square = 0;
};
Distance distance_to(const Value& adapter, const std::string& file) {
  Distance result;
  double squares = 0, count = 0;
  std::size_t tensors = 0;
  for (const auto& [key, tensor] : read_safetensors(file).tensors) {
    std::string name = key;
    if (ends_with(name, "lora_magnitude_vector.weight")) name.resize(name.size() - 7);
    const std::vector<float> a = to_float_vector(adapter.at(name).as_tensor()), b = to_float_vector(tensor);
    EXPECT_EQ(a.size(), b.size()) << name;
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      const double apart = std::abs(static_cast<double>(a[i]) - b[i]);
      result.largest = std::max(result.largest, apart);
      squares += apart * apart;
      ++count;
    }
    ++tensors;
  }
  EXPECT_EQ(adapter.entries().size(), tensors);
  result.mean_square = std::sqrt(squares / std::max(count, 1.0));
  return result;
}

struct Case {
  const char *kind, *engine;
};
class RecordedRun : public ::testing::TestWithParam<Case> {};

TEST_P(RecordedRun, EndsWithPeftsAdapter) {
  const auto [kind, engine] = GetParam();
  const TemporaryFolder folder;
  const json run = fixture_json(concat("peft/", kind, "/expected.json")).at("run");
  const Options options = recorded_run(
      folder, run.at("steps"), engine,
      {concat("peft.method=", kind), concat("init.peft_adapter=", data_path(concat("fixtures/peft/", kind))),
       concat("optimizer.learning_rate=", run.at("lr").dump()),
       concat("optimizer.weight_decay=", run.at("weight_decay").dump())});
  ASSERT_EQ(testing::train_here(options, folder.file("run")), ExitStatus::kOk);
  const auto lines = metrics_of(folder.file("run"), "train");
  ASSERT_EQ(lines.size(), run.at("steps").size());
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const json& step = run.at("steps")[i];
    EXPECT_NEAR(lines[i].at("loss").get<double>(), step.at("total").get<double>(), 2e-5) << i;
    const double norm = step.at("grad_norm");
    EXPECT_NEAR(lines[i].at("grad_norm").get<double>(), norm, 1e-4 * norm) << i;
  }
  const LoadedFile saved = read_tensor_file(folder.file("run/latest.pt"));
  EXPECT_FALSE(saved.root.contains("model"));
  const Distance distance =
      distance_to(saved.root.at("adapter"), data_path(concat("fixtures/peft/", kind, "/after_run.safetensors")));
  EXPECT_LT(distance.largest, 1e-3);
  EXPECT_LT(distance.mean_square, 2e-5);
  // The base is the file the run started from, bit by bit, although the executor's weights held W' all the time.
  const LoadedFile base = read_tensor_file(data_path("fixtures/model/gpt.pth"));
  for (const auto& [key, value] : saved.root.at("base_model").entries()) {
    EXPECT_TRUE(identical(value, base.root.at(key.as_string()))) << key.as_string();
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, RecordedRun,
                         ::testing::Values(Case{"lora", "modules"}, Case{"lora", "fused"}, Case{"dora", "modules"},
                                           Case{"dora", "fused"}),
                         [](const auto& test) { return std::string(test.param.kind) + "_" + test.param.engine; });

// peft's start of the AdaLoRA run as a folder that init.peft_adapter reads.
std::string start_folder(const TemporaryFolder& folder) {
  json config = json::parse(read_file(data_path("fixtures/peft/adalora/adapter_config.json"), 1 << 20));
  config["rank_pattern"] = nullptr;
  folder.write("start/adapter_config.json", config.dump());
  folder.write("start/adapter_model.safetensors",
               read_file(data_path("fixtures/peft/adalora/start.safetensors"), 1 << 26));
  return folder.file("start");
}

class RecordedAdalora : public ::testing::TestWithParam<const char*> {};

TEST_P(RecordedAdalora, PrunesWhatPeftPruned) {
  const TemporaryFolder folder;
  const json expected = fixture_json("peft/adalora/expected.json");
  const json& config = expected.at("config");
  const Options options = recorded_run(
      folder, expected.at("steps"), GetParam(),
      {"peft.method=adalora", "peft.compaction=soft", "optimizer.learning_rate=2e-2", "optimizer.weight_decay=0",
       concat("init.peft_adapter=", start_folder(folder)), concat("peft.rank=", config.at("init_r").dump()),
       concat("peft.lora_alpha=", config.at("lora_alpha").dump()), concat("peft.tinit=", config.at("tinit").dump()),
       concat("peft.tfinal=", config.at("tfinal").dump()), concat("peft.delta_t=", config.at("deltaT").dump()),
       concat("peft.target_rank=", config.at("target_r").dump()),
       concat("peft.orthogonality_weight=", config.at("orth_reg_weight").dump())});
  ASSERT_EQ(testing::train_here(options, folder.file("run")), ExitStatus::kOk);
  const auto lines = metrics_of(folder.file("run"), "train");
  const auto events = metrics_of(folder.file("run"), "event");
  ASSERT_EQ(lines.size(), expected.at("steps").size());
  bool finished = false;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const json& step = expected.at("steps")[i];
    SCOPED_TRACE(step.at("step").get<int>());
    EXPECT_NEAR(lines[i].at("loss").get<double>(), step.at("task").get<double>(), 2e-5);
    const double norm = step.at("grad_norm");
    EXPECT_NEAR(lines[i].at("grad_norm").get<double>(), norm, 1e-3 * norm);
    const auto pruned = std::find_if(events.begin(), events.end(), [&](const json& event) {
      return event.at("event") == "prune" && event.at("step") == step.at("step");
    });
    const json& mask = step.at("mask_event");
    EXPECT_EQ(pruned != events.end(), !mask.is_null() && !finished);
    if (pruned == events.end()) continue;
    EXPECT_EQ(pruned->at("budget"), step.at("budget"));
    for (const auto& [key, pattern] : mask.at("rank_pattern").items()) {
      const auto kept = std::count(pattern.begin(), pattern.end(), json(true));
      EXPECT_EQ(pruned->at("ranks").at(key.substr(0, key.rfind('.'))).get<std::int64_t>(), kept) << key;
    }
    finished = step.at("step").get<int>() == config.at("total_step").get<int>() - config.at("tfinal").get<int>();
  }
  EXPECT_TRUE(finished);
  const LoadedFile saved = read_tensor_file(folder.file("run/latest.pt"));
  const Distance distance =
      distance_to(saved.root.at("adapter"), data_path("fixtures/peft/adalora/after_run_unsliced.safetensors"));
  EXPECT_LT(distance.largest, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Engines, RecordedAdalora, ::testing::Values("modules", "fused"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace train_gpt_v2
