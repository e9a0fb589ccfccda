// The improvements of phase 1 in whole runs: what each does, and that it does nothing else.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <map>
#include <optional>

#include "support/resume_run.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using testing::expect_resumes;
using testing::expect_same_checkpoint;
using testing::metrics_of;
using testing::small_run;
using testing::TemporaryFolder;
using testing::timeless;
using testing::train_here;

std::vector<nlohmann::json> events(const std::string& directory, const std::string& name) {
  std::vector<nlohmann::json> found;
  for (const nlohmann::json& line : metrics_of(directory, "event")) {
    if (line.at("event") == name) found.push_back(line);
  }
  return found;
}

std::vector<double> column(const std::string& directory, const char* key) {
  std::vector<double> values;
  for (const nlohmann::json& line : metrics_of(directory, "train")) values.push_back(line.at(key).get<double>());
  return values;
}

std::string log_of(const std::string& directory) {
  return read_file(path_join(directory, "log.txt"), 16 << 20);
}

// --- clipping --------------------------------------------------------------------------------------------------------

TEST(Clipping, LimitsTheUpdateAndReportsTheNormBeforeIt) {
  const TemporaryFolder folder;
  const std::vector<std::string> common = {"train.log_interval=1", "train.max_steps=3", "validation.interval=0"};
  const auto run = [&](const char* name, std::vector<std::string> sets) {
    sets.insert(sets.end(), common.begin(), common.end());
    EXPECT_EQ(train_here(small_run(sets), folder.file(name)), ExitStatus::kOk);
    return folder.file(name);
  };
  const std::string off = run("off", {"train.grad_clip=0"}), wide = run("wide", {"train.grad_clip=1e6"}),
                    tight = run("tight", {"train.grad_clip=0.01"});
  EXPECT_THAT(column(off, "clipped_share"), ::testing::Each(0.0));
  EXPECT_THAT(column(tight, "clipped_share"), ::testing::Each(1.0));
  EXPECT_THAT(column(tight, "grad_norm"), ::testing::Each(::testing::Gt(0.01)));
  EXPECT_EQ(column(tight, "grad_norm")[0], column(off, "grad_norm")[0]);  // nothing was updated yet
  // A limit that no step reaches changes no bit.
  EXPECT_EQ(timeless(wide), timeless(off));
  // A hundredfold smaller gradient moves the second moment by 1e-4 of what it was.
  const auto second_moment = [](const std::string& directory) {
    const LoadedFile file = read_tensor_file(path_join(directory, "latest.pt"));
    const Value& state = file.root.at("optimizer").at("state").entries().front().value;
    double sum = 0;
    for (const float value : to_float_vector(state.at("exp_avg_sq").as_tensor())) sum += value;
    return sum;
  };
  const double norm = column(off, "grad_norm")[0];
  ASSERT_GT(norm, 0.1);
  EXPECT_LT(second_moment(tight), second_moment(off) * 4 * std::pow(0.01 / norm, 2));
}

TEST(Clipping, PerGroupEachGroupHasItsOwnLimit) {
  const TemporaryFolder folder;
  const std::vector<std::string> common = {"train.log_interval=1", "train.max_steps=4", "validation.interval=0",
                                           "train.grad_clip=0.05",
                                           R"(optimizer.groups=[{"name":"heads","match":["mel_head","text_head"]}])"};
  std::vector<std::string> apart = common;
  apart.push_back("train.clip_per_group=true");
  ASSERT_EQ(train_here(small_run(common), folder.file("together")), ExitStatus::kOk);
  ASSERT_EQ(train_here(small_run(apart), folder.file("apart")), ExitStatus::kOk);
  const nlohmann::json line = metrics_of(folder.file("apart"), "train")[0];
  const auto norms = line.at("grad_norm_by_group").get<std::vector<double>>();
  ASSERT_EQ(norms.size(), 2u);
  EXPECT_NEAR(std::hypot(norms[0], norms[1]), line.at("grad_norm").get<double>(), 1e-9);
  // Later steps see other weights: the groups were scaled by other factors.
  EXPECT_NE(metrics_of(folder.file("apart"), "train").back().at("grad_norm_by_group"),
            metrics_of(folder.file("together"), "train").back().at("grad_norm_by_group"));
}

// The fixtures' training pairs with one condition of huge numbers: finite on disk, no longer after a square.
std::string poisoned_manifest(const TemporaryFolder& folder, std::string& id) {
  const std::string data = testing::data_path("fixtures/data/");
  std::string condition = read_file(data + "condition/spk000_000000.npy", 1 << 20);
  const float huge = 3e38F;
  for (std::size_t at = 128; at + 4 <= condition.size(); at += 4) std::memcpy(condition.data() + at, &huge, 4);
  const std::string poison = folder.write("poison.npy", condition);
  std::istringstream lines(read_file(data + "train_pairs.jsonl", 1 << 20));
  std::string out;
  std::size_t number = 0;
  for (std::string text; std::getline(lines, text); ++number) {
    nlohmann::json line = nlohmann::json::parse(text);
    for (auto& [key, value] : line.items()) {
      const bool path = key.size() > 5 && key.compare(key.size() - 5, 5, "_path") == 0;
      if (path) value = data + value.get<std::string>();
    }
    if (number == 5) {
      line["prompt_condition_path"] = poison;
      id = line.at("id").get<std::string>();
    }
    out += line.dump() + "\n";
  }
  return folder.write("pairs.jsonl", out);
}

TEST(NonFiniteStep, IsSkippedCountedAndItsSamplesNamed) {
  const TemporaryFolder folder;
  std::string id;
  const std::string manifest = poisoned_manifest(folder, id);
  for (const char* engine : {"fused", "modules"}) {
    SCOPED_TRACE(engine);
    const std::string run = folder.file(engine);
    const Options options =
        small_run({"data.train_manifests=[\"" + manifest + "::am\"]", "train.max_steps=6", "train.log_interval=1",
                   "validation.interval=0", "checkpoint.interval=1", "checkpoint.keep=10",
                   std::string("train.engine=") + engine, "ema.enabled=true"});
    ASSERT_EQ(train_here(options, run), ExitStatus::kOk);
    const auto skips = events(run, "skip");
    ASSERT_GE(skips.size(), 1u);  // six steps of 8 are two epochs of 24
    for (const nlohmann::json& skip : skips) {
      EXPECT_THAT(skip.at("ids").get<std::vector<std::string>>(), ::testing::Contains(id));
      EXPECT_EQ(skip.at("ids").size(), 8u);
    }
    EXPECT_NE(log_of(run).find(id), std::string::npos);
    const auto lines = metrics_of(run, "train");
    ASSERT_EQ(lines.size(), 6u);  // steps count successes alone
    EXPECT_EQ(lines.back().at("skipped_steps"), skips.size());
    EXPECT_THAT(column(run, "loss"), ::testing::Each(::testing::Truly([](double x) { return std::isfinite(x); })));
    const LoadedFile file = read_tensor_file(path_join(run, "latest.pt"));
    EXPECT_EQ(file.root.at("step").as_int(), 6);
    EXPECT_EQ(file.root.at("ema_updates").as_int(), 6);
  }
}

TEST(NonFiniteStep, ARunThatStaysNonFiniteEndsWithTheReason) {
  const TemporaryFolder folder;
  const Options options = small_run({R"(optimizer.groups=[{"name":"far","match":["mel_head"],"lr_scale":1e37}])",
                                     "optimizer.warmup_steps=0", "validation.interval=0"});
  try {
    train_here(options, folder.file("run"));
    FAIL() << "it went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "NUM001");
    EXPECT_EQ(error.status(), ExitStatus::kDiverged);
  }
  EXPECT_EQ(events(folder.file("run"), "skip").size(), 4u);
  EXPECT_EQ(events(folder.file("run"), "diverged").size(), 1u);
}

TEST(LossScaler, ItsStateIsSavedAndTheRunGoesOnBitByBit) {
  const std::vector<std::string> sets = {"train.precision=fp16", "train.engine=modules", "train.max_steps=5"};
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(small_run(sets), folder.file("run")), ExitStatus::kOk);
  const LoadedFile file = read_tensor_file(folder.file("run/latest.pt"));
  const Value& scaler = file.root.at("scaler");
  const auto skipped = static_cast<double>(events(folder.file("run"), "skip").size());
  EXPECT_EQ(scaler.at("scale").as_double(), 65536 * std::pow(0.5, skipped));
  EXPECT_EQ(file.root.at("step").as_int(), 5);
  expect_resumes(small_run(sets), {2});
}

// --- EMA, best, validation: the training itself does not notice ------------------------------------------------------

TEST(Improvements, ValidationBestEmaAndEarlyStoppingLeaveTheTrainingAlone) {
  const TemporaryFolder folder;
  const std::vector<std::vector<std::string>> variants = {
      {"validation.interval=0", "checkpoint.best_metrics=[]"},
      {"validation.interval=3", "checkpoint.best_metrics=[]"},
      {"validation.interval=3"},
      {"validation.interval=3", "ema.enabled=true", "ema.decay=0.9"},
      {"validation.interval=3", "early_stopping.enabled=true", "early_stopping.patience=90"}};
  for (std::size_t i = 0; i < variants.size(); ++i) {
    std::vector<std::string> sets = variants[i];
    sets.push_back("train.log_interval=1");
    const std::string run = folder.file("run" + std::to_string(i));
    ASSERT_EQ(train_here(small_run(sets), run), ExitStatus::kOk);
    EXPECT_EQ(column(run, "loss"), column(folder.file("run0"), "loss")) << i;
    EXPECT_EQ(file_exists(run + "/best_model.pth"), i >= 2) << i;
    const LoadedFile file = read_tensor_file(run + "/latest.pt");
    EXPECT_TRUE(identical(file.root.at("model"), read_tensor_file(folder.file("run0/latest.pt")).root.at("model")))
        << i;
  }
  // The average differs from the weights it averages, and both were validated.
  const LoadedFile file = read_tensor_file(folder.file("run3/latest.pt"));
  EXPECT_FALSE(identical(file.root.at("ema_state").at("mel_head.weight"), file.root.at("model").at("mel_head.weight")));
  std::vector<std::string> weights;
  for (const nlohmann::json& line : metrics_of(folder.file("run3"), "validation"))
    weights.push_back(line.at("weights"));
  EXPECT_EQ(weights, (std::vector<std::string>{"raw", "ema", "raw", "ema", "raw", "ema", "raw", "ema"}));
}

TEST(Ema, ACheckpointGrowsByFourBytesPerTrainableNumber) {
  const TemporaryFolder folder;
  const std::vector<std::string> sets = {"train.max_steps=1", "validation.interval=0"};
  ASSERT_EQ(train_here(small_run(sets), folder.file("off")), ExitStatus::kOk);
  std::vector<std::string> with = sets;
  with.push_back("ema.enabled=true");
  ASSERT_EQ(train_here(small_run(with), folder.file("on")), ExitStatus::kOk);
  const LoadedFile file = read_tensor_file(folder.file("on/latest.pt"));
  std::uint64_t predicted = 0, tensors = 0;
  for (const auto& [name, value] : file.root.at("optimizer").at("state").entries()) {
    predicted += 4 * static_cast<std::uint64_t>(value.at("exp_avg").as_tensor().numel());
    ++tensors;
  }
  const std::uint64_t grown = file_size(folder.file("on/latest.pt")) - file_size(folder.file("off/latest.pt"));
  EXPECT_GE(grown, predicted);
  EXPECT_LE(grown, predicted + predicted / 100 + 512 * tensors);   // names and headers, up to half a KiB each
  EXPECT_EQ(file.root.at("ema_state").entries().size(), tensors);  // what trains, nothing else
  EXPECT_NE(log_of(folder.file("on")).find(concat("a checkpoint grows by ", human_bytes(predicted))), std::string::npos)
      << log_of(folder.file("on"));
}

TEST(Best, HoldsTheStepOfTheBestValidationAndSaysWhichWeights) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  ASSERT_EQ(
      train_here(small_run({"validation.interval=2", "ema.enabled=true", "ema.decay=0.5", "ema.warmup=false",
                            "validation.by=[\"language\"]", "checkpoint.interval=2", "checkpoint.keep=10",
                            R"(checkpoint.best_metrics=["mel_loss","text_loss","mel_top1","mel_loss@language:am"])"}),
                 run),
      ExitStatus::kOk);
  std::optional<nlohmann::json> best;
  for (const nlohmann::json& line : metrics_of(run, "validation")) {
    if (line.at("split") != "all") continue;
    if (!best || line.at("mel_loss") < best->at("mel_loss")) best = line;
  }
  ASSERT_TRUE(best);
  const LoadedFile file = read_tensor_file(run + "/best_model.pth");
  EXPECT_EQ(file.root.at("step").as_int(), best->at("step").get<std::int64_t>());
  EXPECT_EQ(file.root.at("val_mel_loss").as_double(), best->at("mel_loss").get<double>());
  EXPECT_EQ(file.root.at("weights").as_string(), best->at("weights").get<std::string>());
  const LoadedFile step = read_tensor_file(run + "/model_step" + std::to_string(best->at("step").get<int>()) + ".pth");
  EXPECT_TRUE(identical(file.root.at("model"), step.root.at("model")));  // raw, whichever was better
  EXPECT_TRUE(identical(file.root.at("ema_state"), step.root.at("ema_state")));
  for (const char* name : {"best_text_loss.pth", "best_mel_top1.pth", "best_mel_loss_language_am.pth"}) {
    EXPECT_TRUE(file_exists(run + "/" + name)) << name;
  }
  EXPECT_EQ(read_tensor_file(run + "/latest.pt").root.at("best_val_mel_loss").as_double(),
            best->at("mel_loss").get<double>());
}

TEST(Validation, SplitsAddUpToTheWholeAndKnowHeldOutSpeakers) {
  const TemporaryFolder folder;
  // The first training speaker is taken out of the training set, and so is new to the validation.
  std::istringstream lines(read_file(testing::data_path("fixtures/data/val_pairs.jsonl"), 1 << 20));
  std::string first;
  std::getline(lines, first);
  const std::string held_out = nlohmann::json::parse(first).at("speaker").get<std::string>();
  const std::string data = testing::data_path("fixtures/data/");
  std::istringstream pairs(read_file(data + "train_pairs.jsonl", 1 << 20));
  std::string kept;
  for (std::string text; std::getline(pairs, text);) {
    nlohmann::json line = nlohmann::json::parse(text);
    if (line.at("speaker") == held_out) continue;
    for (auto& [key, value] : line.items()) {
      if (key.size() > 5 && key.compare(key.size() - 5, 5, "_path") == 0) value = data + value.get<std::string>();
    }
    kept += line.dump() + "\n";
  }
  ASSERT_FALSE(kept.empty());
  const std::string manifest = folder.write("pairs.jsonl", kept);
  ASSERT_EQ(train_here(small_run({"data.train_manifests=[\"" + manifest + "::am\"]", "validation.interval=2",
                                  "train.max_steps=2", R"(validation.by=["language","speaker"])"}),
                       folder.file("run")),
            ExitStatus::kOk);
  std::map<std::string, std::pair<double, double>> sums;  // loss, tokens
  for (const nlohmann::json& line : metrics_of(folder.file("run"), "validation")) {
    const double tokens = line.at("mel_tokens").get<double>();
    const std::string split = line.at("split").get<std::string>();
    auto& sum = sums[split.substr(0, split.find(':'))];
    sum.first += line.at("mel_loss").get<double>() * tokens;
    sum.second += tokens;
    sums[split] = {line.at("mel_loss").get<double>() * tokens, tokens};
  }
  ASSERT_TRUE(sums.contains("speaker:held_out"));
  EXPECT_GT(sums["speaker:held_out"].second, 0);
  EXPECT_EQ(sums["language"].second, sums["all"].second);
  EXPECT_EQ(sums["speaker"].second, sums["all"].second);
  EXPECT_NEAR(sums["language"].first, sums["all"].first, 1e-4 * sums["all"].first);
  EXPECT_NEAR(sums["speaker"].first, sums["all"].first, 1e-4 * sums["all"].first);
  const auto cost = events(folder.file("run"), "validation_cost");
  ASSERT_EQ(cost.size(), 1u);
  EXPECT_GT(cost[0].at("share_of_time").get<double>(), 0);
  EXPECT_LT(cost[0].at("share_of_time").get<double>(), 1);
}

TEST(Validation, MaxBatchesTakesTheSameStrideEveryTime) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(small_run({"validation.interval=2", "train.max_steps=6", "validation.max_batches=2",
                                  "validation.batch_size=2", "optimizer.learning_rate=0"}),
                       folder.file("run")),
            ExitStatus::kOk);
  const auto lines = metrics_of(folder.file("run"), "validation");
  ASSERT_EQ(lines.size(), 3u);
  for (const nlohmann::json& line : lines) {
    EXPECT_EQ(line.at("mel_loss"), lines[0].at("mel_loss"));  // nothing learns here
    EXPECT_EQ(line.at("mel_tokens"), lines[0].at("mel_tokens"));
  }
}

// --- early stopping --------------------------------------------------------------------------------------------------

TEST(Validation, LeavesOutWhatCannotBeUsedWhereTheDataSaySo) {
  const TemporaryFolder folder;
  const std::string data = testing::data_path("fixtures/data/");
  std::istringstream lines(read_file(data + "val_pairs.jsonl", 1 << 20));
  std::string out;
  std::int64_t samples = 0;
  for (std::string text; std::getline(lines, text); ++samples) {
    nlohmann::json line = nlohmann::json::parse(text);
    for (auto& [key, value] : line.items()) {
      if (ends_with(key, "_path")) value = data + value.get<std::string>();
    }
    if (samples == 2) {
      std::string codes = read_file(line.at("target_codes_path").get<std::string>(), 1 << 20);
      const std::int32_t wrong = 9999;
      std::memcpy(codes.data() + codes.size() - 4, &wrong, 4);
      line["target_codes_path"] = folder.write("wrong.npy", codes);
    }
    out += line.dump() + "\n";
  }
  const std::string manifest = folder.write("pairs.jsonl", out), run = folder.file("run");
  const std::vector<std::string> sets = {"data.val_manifests=[\"" + manifest + "\"]",
                                         "validation.interval=2",
                                         "validation.batch_size=1",
                                         "validation.text_usage_gap=true",
                                         "ema.enabled=true",
                                         "train.max_steps=4"};
  EXPECT_THROW(train_here(small_run(sets), folder.file("strict")), Error);
  std::vector<std::string> skipping = sets;
  skipping.insert(skipping.end(), {"data.on_bad_sample=skip", "data.max_bad_fraction=0.5"});
  ASSERT_EQ(train_here(small_run(skipping), run), ExitStatus::kOk);
  const std::string log = log_of(run), said = "validation leaves out";
  EXPECT_NE(log.find(said), std::string::npos);
  EXPECT_EQ(log.find(said), log.rfind(said));  // once, however often it is met
  ASSERT_EQ(metrics_of(run, "validation").size(), 4u);
  std::vector<std::string> too_many = sets;
  too_many.insert(too_many.end(), {"data.on_bad_sample=skip", "data.max_bad_fraction=0.01"});
  EXPECT_THROW(train_here(small_run(too_many), folder.file("too_many")), Error);
}

std::vector<std::string> impatient(int warmup) {
  return {"train.max_steps=20",
          "validation.interval=2",
          "early_stopping.enabled=true",
          "early_stopping.patience=2",
          "early_stopping.min_improvement=50",
          "checkpoint.interval=0",
          "optimizer.warmup_steps=" + std::to_string(warmup)};
}

TEST(EarlyStopping, NeverBeforeTheWarmUpHasEnded) {
  // Validations at 2, 4, ...: the first one after the warm-up sets the reference, two more end the run.
  for (const auto& [warmup, end] : std::vector<std::pair<int, std::int64_t>>{{0, 6}, {9, 14}}) {
    const TemporaryFolder folder;
    ASSERT_EQ(train_here(small_run(impatient(warmup)), folder.file("run")), ExitStatus::kOk);
    const LoadedFile file = read_tensor_file(folder.file("run/latest.pt"));
    EXPECT_EQ(file.root.at("step").as_int(), end) << warmup;
    EXPECT_EQ(file.root.at("patience_counter").as_int(), 2);
    const auto done = nlohmann::json::parse(read_file(folder.file("run/DONE"), 1 << 16));
    EXPECT_EQ(done.at("reason"), "early_stop");
    EXPECT_EQ(done.at("step"), end);
    EXPECT_EQ(events(folder.file("run"), "early_stop").size(), 1u);
  }
}

TEST(EarlyStopping, AStoppedRunGoesOnOnlyWithMorePatience) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  ASSERT_EQ(train_here(small_run(impatient(0)), run), ExitStatus::kOk);
  const auto step = [&run] { return read_tensor_file(run + "/latest.pt").root.at("step").as_int(); };
  ASSERT_EQ(train_here(small_run(impatient(0)), run), ExitStatus::kOk);
  EXPECT_EQ(step(), 6);
  std::vector<std::string> patient = impatient(0);
  patient.push_back("early_stopping.patience=3");
  ASSERT_EQ(train_here(small_run(patient), run), ExitStatus::kOk);
  EXPECT_EQ(step(), 8);
  patient.push_back("early_stopping.enabled=false");
  ASSERT_EQ(train_here(small_run(patient), run), ExitStatus::kOk);
  EXPECT_EQ(step(), 20);
}

// --- bucketing -------------------------------------------------------------------------------------------------------

TEST(Bucketing, TrainsOtherBatchesAndTheLogShowsWhatItBrings) {
  const TemporaryFolder folder;
  const std::vector<std::string> common = {"train.max_steps=3", "train.log_interval=1", "validation.interval=0",
                                           "train.grad_accumulation=1"};
  const auto run = [&](const char* mode) {
    std::vector<std::string> sets = common;
    sets.push_back(std::string("sampler.mode=") + mode);
    EXPECT_EQ(train_here(small_run(sets), folder.file(mode)), ExitStatus::kOk);
    return column(folder.file(mode), "loss");
  };
  EXPECT_NE(run("buckets"), run("shuffle"));
  run("mega_batch");
  for (const char* mode : {"buckets", "mega_batch"}) {
    const std::string log = log_of(folder.file(mode));
    for (const char* part :
         {"padding in a padded layout", "random batches", "speakers per batch", "length correlation"}) {
      EXPECT_NE(log.find(part), std::string::npos) << mode << ": " << part;
    }
  }
}

TEST(Padding, TheMetricsCountWhatTheLayoutComputesOn) {
  const TemporaryFolder folder;
  const auto share = [&](const std::string& layout, const std::string& engine) {
    const std::string run = folder.file(layout + engine);
    EXPECT_EQ(train_here(small_run({"train.layout=" + layout, "train.engine=" + engine, "train.max_steps=2",
                                    "train.log_interval=2", "validation.interval=0"}),
                         run),
              ExitStatus::kOk);
    return column(run, "padding_share").at(0);
  };
  EXPECT_EQ(share("packed", "fused"), 0);
  const double texts = share("padded", "fused"), everything = share("padded", "modules");
  EXPECT_GT(texts, 0);  // the texts alone
  EXPECT_GT(everything, texts);
}

TEST(Keep, FewerThanThreeIsRefusedWithTheReason) {
  try {
    small_run({"checkpoint.keep=2"});
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(error.report().find("one damaged file"), std::string::npos) << error.report();
  }
}

// --- saving ----------------------------------------------------------------------------------------------------------

TEST(Saving, EveryDueCheckpointIsWrittenAndSaysHowLongTrainingStoodStill) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  ASSERT_EQ(train_here(small_run({"checkpoint.interval=1", "checkpoint.keep=20"}), run), ExitStatus::kOk);
  std::vector<std::int64_t> steps;
  for (const nlohmann::json& event : events(run, "save")) {
    EXPECT_GE(event.at("stall_seconds").get<double>(), 0);
    if (event.at("path").get<std::string>().find("model_step") != std::string::npos) steps.push_back(event.at("step"));
  }
  EXPECT_EQ(steps, (std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
}

TEST(Saving, TheLastCheckpointKnowsTheLastValidationAndIsWrittenOnce) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  ASSERT_EQ(train_here(small_run({"checkpoint.interval=5", "validation.interval=100"}), run), ExitStatus::kOk);
  const std::vector<nlohmann::json> validations = metrics_of(run, "validation");
  ASSERT_EQ(validations.size(), 1u);
  ASSERT_EQ(validations[0].at("step"), 10);
  EXPECT_EQ(read_tensor_file(run + "/latest.pt").root.at("best_val_mel_loss").as_double(),
            validations[0].at("mel_loss").get<double>());
  std::size_t written = 0;
  for (const nlohmann::json& event : events(run, "save")) {
    written += event.at("path").get<std::string>().find("model_step10") != std::string::npos;
  }
  EXPECT_EQ(written, 1u);
}

}  // namespace
}  // namespace train_gpt_v2
