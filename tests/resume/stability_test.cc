// The stability guard within a real run: a batch that derails training, at a known place of an order file.
#include <gmock/gmock.h>

#include "support/fixture_run.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/npy.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using ::testing::HasSubstr;
using testing::metrics_of;
using testing::TemporaryFolder;
using testing::train_here;

constexpr int kPoisoned = 32;  // the window with the bad batch; windows are one micro-batch here

// One pair of the fixtures again and again, so that the loss falls smoothly, and two more: "noise" with random codes,
// "burst" whose condition overflows in the first layer norm. Both pass every check of the loader.
class PoisonedRun {
 public:
  PoisonedRun() {
    std::istringstream in(read_file(data_path("fixtures/data/train_pairs.jsonl"), 16 << 20));
    std::string line;
    std::getline(in, line);
    auto pair = nlohmann::json::parse(line);
    for (auto& [key, value] : pair.items()) {
      if (key.ends_with("_path")) value = data_path("fixtures/data/" + value.get<std::string>());
    }
    std::string manifest;
    const auto add = [&](const std::string& id) {
      pair["id"] = id;
      manifest += pair.dump() + "\n";
    };
    add("good");
    const std::string condition = pair.at("prompt_condition_path");
    const std::vector<float> large(32 * 64, 3e38F);
    pair["prompt_condition_path"] = folder_.file("large.npy");
    write_npy(folder_.file("large.npy"), Tensor::copy_of(DType::kFloat32, {32, 64}, std::as_bytes(std::span(large))));
    add("burst");
    pair["prompt_condition_path"] = condition;
    RandomStream random(5, 5);
    std::vector<std::int32_t> codes(100);
    for (std::int32_t& code : codes) code = static_cast<std::int32_t>(random.below(224));
    write_npy(folder_.file("noise.npy"), Tensor::copy_of(DType::kInt32, {100}, std::as_bytes(std::span(codes))));
    pair["target_codes_path"] = folder_.file("noise.npy");
    pair["target_code_len"] = 100;
    add("noise");
    folder_.write("pairs.jsonl", manifest);
  }

  // 45 micro-batches; those numbered in `bad` are the poison, those in `left_out` are missing.
  Options options(const std::vector<std::string>& sets, const std::set<int>& bad, const std::string& poison = "noise",
                  const std::set<int>& left_out = {}) {
    std::string order;
    for (int i = 0; i < 45; ++i) {
      if (left_out.contains(i)) continue;
      order += concat("[\"", bad.contains(i) ? poison : "good", "\"]\n");
    }
    const std::string path = folder_.write(concat("order", ++orders_, ".jsonl"), order);
    std::vector<std::string> all = {"data.train_manifests=[\"" + folder_.file("pairs.jsonl") + "::am\"]",
                                    "data.order_file=\"" + path + "\"",
                                    "train.grad_accumulation=1",
                                    "train.layout=packed",
                                    "optimizer.schedule=constant",
                                    "optimizer.learning_rate=1e-3",
                                    "optimizer.warmup_steps=0",
                                    "validation.interval=0",
                                    "sampling.interval=0",
                                    "stability.window=10",
                                    "checkpoint.interval=5"};
    all.insert(all.end(), sets.begin(), sets.end());
    return testing::fixture_options(all);
  }

  std::string run(const std::string& name, const Options& options) {
    EXPECT_EQ(train_here(options, folder_.file(name)), ExitStatus::kOk);
    return folder_.file(name);
  }

  const TemporaryFolder& folder() const { return folder_; }

 private:
  TemporaryFolder folder_;
  int orders_ = 0;
};

std::vector<nlohmann::json> events_named(const std::string& directory, const std::string& name) {
  std::vector<nlohmann::json> events;
  for (const auto& event : metrics_of(directory, "event")) {
    if (event.at("event") == name) events.push_back(event);
  }
  return events;
}

void expect_same_weights(const std::string& a, const std::string& b) {
  const LoadedFile first = read_tensor_file(a + "/latest.pt"), second = read_tensor_file(b + "/latest.pt");
  EXPECT_TRUE(identical(first.root.at("model"), second.root.at("model")));
  EXPECT_TRUE(identical(first.root.at("optimizer"), second.root.at("optimizer")));
  EXPECT_EQ(first.root.at("step").as_int(), second.root.at("step").as_int());
}

void expect_one_line_per_step(const std::string& directory, std::int64_t steps) {
  std::vector<std::int64_t> seen, wanted;
  for (const auto& line : metrics_of(directory, "train")) seen.push_back(line.at("step"));
  for (std::int64_t step = 1; step <= steps; ++step) wanted.push_back(step);
  EXPECT_EQ(seen, wanted);
}

TEST(StabilityRun, WarnTrainsOnAndKeepsTheBatch) {
  PoisonedRun runs;
  const std::string run = runs.run("warn", runs.options({"stability.action=warn"}, {kPoisoned}));
  const auto spikes = events_named(run, "spike");
  ASSERT_FALSE(spikes.empty());
  EXPECT_EQ(spikes[0].at("step"), kPoisoned);
  EXPECT_EQ(spikes[0].at("ids"), nlohmann::json({"noise"}));
  expect_one_line_per_step(run, 45);
  const LoadedFile box = read_tensor_file(spikes[0].at("black_box").get<std::string>());
  EXPECT_EQ(box.root.at("micro_batches").items()[0].at("ids").items()[0].as_string(), "noise");
}

TEST(StabilityRun, SkipLeavesNothingOfTheWindow) {
  PoisonedRun runs;
  const std::string run = runs.run("skip", runs.options({"stability.action=skip"}, {kPoisoned}));
  const std::string clean = runs.run("clean", runs.options({"stability.action=skip"}, {}, "", {kPoisoned}));
  expect_same_weights(run, clean);
  EXPECT_EQ(events_named(run, "skip").size(), 1U);
  EXPECT_TRUE(events_named(clean, "skip").empty());
  expect_one_line_per_step(run, 44);
}

TEST(StabilityRun, RollbackGoesOnFromTheCheckpointBehindTheWindow) {
  PoisonedRun runs;
  const std::string run = runs.run("back", runs.options({"stability.action=rollback"}, {kPoisoned}));
  // Checkpoint at step 30; windows 30 and 31 were undone, 32 is the poison.
  const std::string clean = runs.run("clean", runs.options({}, {}, "", {30, 31, kPoisoned}));
  expect_same_weights(run, clean);
  const auto back = events_named(run, "rollback");
  ASSERT_EQ(back.size(), 1U);
  EXPECT_EQ(back[0].at("step"), 30);
  EXPECT_EQ(back[0].at("from_step"), kPoisoned);
  expect_one_line_per_step(run, 42);
}

TEST(StabilityRun, RollbackLeavesFurtherWindowsOut) {
  PoisonedRun runs;
  const std::string run =
      runs.run("back", runs.options({"stability.action=rollback", "stability.skip_steps=2"}, {kPoisoned}));
  expect_same_weights(run, runs.run("clean", runs.options({}, {}, "", {30, 31, kPoisoned, 33, 34})));
}

TEST(StabilityRun, WithoutACheckpointRollbackIsSkip) {
  PoisonedRun runs;
  const std::string run =
      runs.run("back", runs.options({"stability.action=rollback", "checkpoint.interval=0"}, {kPoisoned}));
  expect_same_weights(run, runs.run("clean", runs.options({}, {}, "", {kPoisoned})));
}

TEST(StabilityRun, ResumesBitExactlyAroundSkipsAndRollbacks) {
  for (const std::string action : {"skip", "rollback"}) {
    PoisonedRun runs;
    const Options options = runs.options({"stability.action=" + action, "ema.enabled=true"}, {kPoisoned, 40});
    const std::string whole = runs.run("whole", options);
    // Stops at the windows' edges that both runs reach with the same checkpoints behind them.
    ASSERT_EQ(train_here(options, runs.folder().file("parts"), "auto", 25), ExitStatus::kOk);
    ASSERT_EQ(train_here(options, runs.folder().file("parts"), "auto", 35), ExitStatus::kOk);
    const std::string parts = runs.run("parts", options);
    expect_same_weights(whole, parts);
    const auto state = [](const std::string& run) {
      const LoadedFile file = read_tensor_file(run + "/latest.pt");
      return nlohmann::json::parse(file.root.at("train_gpt_v2").at("state").as_string()).at("stability");
    };
    EXPECT_EQ(state(whole), state(parts));
  }
}

// The error a run ends with.
Error failure_of(PoisonedRun& runs, const std::string& name, const Options& options) {
  try {
    train_here(options, runs.folder().file(name));
  } catch (const Error& error) {
    return error;
  }
  return Error("INT001", "it did not fail");
}

TEST(StabilityRun, StepsThatAreNotFiniteAreSkippedAndEndTheRun) {
  PoisonedRun runs;
  const std::string run = runs.run("few", runs.options({"stability.action=off"}, {20, 21, 22, 23}, "burst"));
  EXPECT_EQ(events_named(run, "skip").size(), 4U);
  expect_same_weights(run, runs.run("clean", runs.options({}, {}, "", {20, 21, 22, 23})));
  const Error error = failure_of(runs, "many", runs.options({"stability.action=off"}, {20, 21, 22, 23, 24}, "burst"));
  EXPECT_EQ(error.code(), "NUM001") << error.report();
  EXPECT_EQ(static_cast<int>(error.status()), 80);
  EXPECT_THAT(error.report(), HasSubstr("black_box"));
  EXPECT_TRUE(file_exists(runs.folder().file("many/latest.pt")));
  EXPECT_EQ(events_named(runs.folder().file("many"), "diverged").size(), 1U);
}

TEST(StabilityRun, TooManyRollbacksEndTheRun) {
  PoisonedRun runs;
  const Error error = failure_of(
      runs, "run", runs.options({"stability.action=rollback", "stability.max_rollbacks=1"}, {kPoisoned, 40}));
  EXPECT_EQ(error.code(), "NUM003") << error.report();
  EXPECT_EQ(static_cast<int>(error.status()), 80);
}

}  // namespace
}  // namespace train_gpt_v2
