// A run that is stopped and continued ends with exactly the bytes of one that was not (interface.md §3 "Resume").
#include "support/resume_run.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using testing::expect_resumes;
using testing::expect_same_checkpoint;
using testing::metrics_of;
using testing::small_run;
using testing::TemporaryFolder;
using testing::train_here;

TEST(Resume, TenStepsAreFourAndSix) {
  expect_resumes(small_run(), {4});
}

TEST(Resume, TheStoredConfigurationIsResolvedFromTheStart) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(small_run(), folder.file("run"), "auto", 1), ExitStatus::kOk);
  const std::string fresh = read_file(folder.file("run/config.effective.json"), 1 << 20);
  EXPECT_EQ(nlohmann::json::parse(fresh).at("train").at("precision"), "fp32");
  ASSERT_EQ(train_here(small_run(), folder.file("run"), "auto", 2), ExitStatus::kOk);
  EXPECT_EQ(read_file(folder.file("run/config.effective.json"), 1 << 20), fresh);
}

TEST(Resume, AtEveryStep) {
  expect_resumes(small_run(), {1, 2, 3, 4, 5, 6, 7, 8, 9});
}

TEST(Resume, WithEmaAndEarlyStoppingState) {
  expect_resumes(small_run({"ema.enabled=true", "ema.update_every=2", "early_stopping.enabled=true",
                            "early_stopping.patience=50"}),
                 {3, 5});
}

TEST(Resume, WithGroupsLayerDecayAndNewRowsOnly) {
  expect_resumes(
      small_run({"optimizer.layer_lr_decay=0.9", "trainable.text_rows=new_only", "trainable.base_text_rows=160",
                 R"(optimizer.groups=[{"name":"heads","match":["mel_head"],"learning_rate":1e-4,"weight_decay":0}])"}),
      {5});
}

TEST(Resume, InPaddedLayoutWithBucketsAndMicroBatchMeans) {
  expect_resumes(small_run({"train.layout=padded", "sampler.mode=buckets", "train.loss_normalization=micro_batch"}),
                 {4});
}

TEST(Resume, WhateverTheWorkerCount) {
  const Options later = small_run({"data.num_workers=0", "data.prefetch_batches=1"});
  expect_resumes(small_run({"data.num_workers=3"}), {5}, &later);
}

TEST(Resume, RandomSettingsAndStops) {
  RandomStream random(20260, 1);
  const auto coin = [&random] { return random.below(2) == 1; };
  for (int round = 0; round < 6; ++round) {
    std::vector<std::string> sets = {"sampler.mode=" + std::string(coin() ? "mega_batch" : "shuffle"),
                                     "train.grad_accumulation=" + std::to_string(1 + random.below(3)),
                                     "train.max_steps=" + std::to_string(6 + random.below(4)),
                                     "data.num_workers=" + std::to_string(random.below(3)),
                                     std::string("train.engine=") + (coin() ? "fused" : "modules"),
                                     std::string("ema.enabled=") + (coin() ? "true" : "false"),
                                     "validation.interval=" + std::to_string(2 + random.below(3)),
                                     "train.seed=" + std::to_string(random.below(1000)),
                                     std::string("train.grad_clip=") + (coin() ? "0" : "0.5")};
    SCOPED_TRACE(join(sets, " "));
    expect_resumes(small_run(sets), {static_cast<std::int64_t>(1 + random.below(5))});
  }
}

TEST(Resume, OldCheckpointsWithoutEmaLoad) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(small_run(), folder.file("run"), "auto", 4), ExitStatus::kOk);
  ASSERT_EQ(train_here(small_run({"ema.enabled=true"}), folder.file("run")), ExitStatus::kOk);
  EXPECT_TRUE(read_tensor_file(folder.file("run/latest.pt")).root.contains("ema_state"));
}

TEST(Resume, RefusesWhatWouldChangeTheMathematics) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(small_run(), folder.file("run"), "auto", 2), ExitStatus::kOk);
  const std::vector<std::pair<std::string, std::string>> changes = {
      {"train.batch_size=6", "batch"},          {"train.seed=7", "order"},
      {"sampler.mode=shuffle", "order"},        {"optimizer.learning_rate=1e-3", "schedule"},
      {"optimizer.warmup_steps=1", "schedule"}, {"train.mel_loss_weight=0.5", "loss"},
      {"train.layout=padded", "loss"},          {"optimizer.weight_decay=0.1", "groups"},
      {"train.precision=bf16", "precision"},    {"model.dropout=0", "loss"}};
  for (const auto& [change, name] : changes) {
    try {
      train_here(small_run({change}), folder.file("run"));
      FAIL() << change << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), "CKP010") << error.report();
      EXPECT_NE(error.report().find("--allow-change " + name), std::string::npos) << change << "\n" << error.report();
    }
  }
  EXPECT_EQ(train_here(small_run({"train.seed=7"}), folder.file("run"), "auto", 3, {"order"}), ExitStatus::kOk);
  EXPECT_EQ(train_here(small_run({"train.seed=7", "train.grad_clip=0.1", "checkpoint.keep=5"}), folder.file("run"),
                       "auto", 4),
            ExitStatus::kOk);
}

TEST(Resume, ReplayIsPartOfTheOrder) {
  const TemporaryFolder folder;
  const auto replay = [](const char* share, const char* manifest) {
    return small_run({concat("data.replay=[{\"manifest\":\"", testing::data_path(concat("fixtures/data/", manifest)),
                             "\",\"share\":", share, "}]")});
  };
  expect_resumes(replay("0.25", "val_pairs.jsonl"), {3, 7});
  ASSERT_EQ(train_here(replay("0.25", "val_pairs.jsonl"), folder.file("run"), "auto", 2), ExitStatus::kOk);
  for (const Options& changed : {replay("0.5", "val_pairs.jsonl"), replay("0.25", "train_pairs.jsonl"), small_run()}) {
    try {
      train_here(changed, folder.file("run"), "auto", 3);
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_NE(error.report().find("--allow-change order"), std::string::npos) << error.report();
    }
  }
  EXPECT_EQ(train_here(replay("0.5", "val_pairs.jsonl"), folder.file("run"), "auto", 3, {"order"}), ExitStatus::kOk);
  EXPECT_EQ(train_here(small_run(), folder.file("run"), "auto", 4, {"order"}), ExitStatus::kOk);
}

TEST(BatchSize, AutoIsChosenOnceAndKept) {
  const TemporaryFolder folder;
  ::setenv("XDG_CACHE_HOME", folder.file("cache").c_str(), 1);
  const Options options = small_run({"train.batch_size=auto", "train.effective_batch=8", "train.grad_accumulation=1"});
  ASSERT_EQ(train_here(options, folder.file("run"), "auto", 4), ExitStatus::kOk);
  const auto config = nlohmann::json::parse(read_file(folder.file("run/config.effective.json"), 1 << 20)).at("train");
  const std::int64_t size = config.at("batch_size");  // all 8 fit any machine that runs this test
  EXPECT_EQ(size, 8);
  EXPECT_EQ(config.at("grad_accumulation"), 1);
  // Another run remembers, and believes it after one step.
  ASSERT_EQ(train_here(options, folder.file("again"), "auto", 1), ExitStatus::kOk);
  EXPECT_NE(read_file(folder.file("again/log.txt"), 1 << 20).find("batch 8: found in an earlier run"),
            std::string::npos);
  EXPECT_EQ(read_file(folder.file("run/log.txt"), 1 << 20).find("found in an earlier run"), std::string::npos);
  // A run that was given the size from the start is the same run.
  const Options fixed = small_run({"train.batch_size=8", "train.grad_accumulation=1", "train.effective_batch=8"});
  ASSERT_EQ(train_here(fixed, folder.file("fixed"), "auto", 4), ExitStatus::kOk);
  expect_same_checkpoint(folder.file("run/latest.pt"), folder.file("fixed/latest.pt"));
  // Whatever would be chosen now, the checkpoint's size stays.
  const Options halved = small_run({"train.batch_size=4", "train.grad_accumulation=2"});
  ASSERT_EQ(train_here(halved, folder.file("halved"), "auto", 2), ExitStatus::kOk);
  ASSERT_EQ(train_here(options, folder.file("halved"), "auto", 4), ExitStatus::kOk);
  const auto kept = nlohmann::json::parse(read_file(folder.file("halved/config.effective.json"), 1 << 20)).at("train");
  EXPECT_EQ(kept.at("batch_size"), 4);
  EXPECT_EQ(kept.at("grad_accumulation"), 2);
  // Another effective batch is a change like any other.
  const Options other = small_run({"train.batch_size=auto", "train.effective_batch=6", "train.grad_accumulation=1"});
  EXPECT_THROW(train_here(other, folder.file("halved"), "auto", 6), Error);
}

TEST(Resume, NoneIsRefusedWhereCheckpointsAre) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(small_run(), folder.file("run"), "none", 1), ExitStatus::kOk);
  EXPECT_THROW(train_here(small_run(), folder.file("run"), "none"), Error);
}

TEST(Resume, FallsBackFromADamagedCheckpoint) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(small_run({"checkpoint.interval=2"}), folder.file("run"), "auto", 6), ExitStatus::kOk);
  const std::string newest = folder.file("run/model_step6.pth");
  std::string bytes = read_file(newest, 64 << 20);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_file_atomically(newest, bytes);
  ASSERT_EQ(train_here(small_run({"checkpoint.interval=2"}), folder.file("run")), ExitStatus::kOk);
  const auto events = metrics_of(folder.file("run"), "event");
  const auto resumed =
      std::find_if(events.begin(), events.end(), [](const auto& event) { return event.at("event") == "resume"; });
  ASSERT_NE(resumed, events.end());
  EXPECT_NE(resumed->at("from").template get<std::string>().find("latest.p"), std::string::npos);  // still a good copy
  const TemporaryFolder clean;
  ASSERT_EQ(train_here(small_run({"checkpoint.interval=2"}), clean.file("run")), ExitStatus::kOk);
  expect_same_checkpoint(folder.file("run/latest.pt"), clean.file("run/latest.pt"));
}

TEST(Rotation, KeepsTheLastThreeEveryNthAndPinned) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(small_run({"checkpoint.interval=1", "checkpoint.keep_every=4", "checkpoint.pin=[3]"}),
                       folder.file("run")),
            ExitStatus::kOk);
  std::vector<std::string> kept;
  for (const std::string& name : list_directory(folder.file("run"))) {
    if (starts_with(name, "model_step")) kept.push_back(name);
  }
  EXPECT_EQ(kept, (std::vector<std::string>{"model_step10.pth", "model_step3.pth", "model_step4.pth", "model_step8.pth",
                                            "model_step9.pth"}));
  EXPECT_TRUE(file_exists(folder.file("run/best_model.pth")));
}

TEST(NewRowsOnly, BaseRowsStayBitIdentical) {
  const TemporaryFolder folder;
  const Options options =
      small_run({"trainable.text_rows=new_only", "trainable.base_text_rows=160", "optimizer.weight_decay=0.5"});
  ASSERT_EQ(train_here(options, folder.file("run")), ExitStatus::kOk);
  const LoadedFile before = read_tensor_file(testing::data_path("fixtures/model/gpt.pth"));
  const LoadedFile after = read_tensor_file(folder.file("run/latest.pt"));
  for (const char* key : {"text_embedding.weight", "text_head.weight", "text_head.bias"}) {
    const auto a = to_float_vector(before.root.at(key).as_tensor());
    const auto b = to_float_vector(after.root.at("model").at(key).as_tensor());
    const std::size_t width = a.size() / 361;
    EXPECT_TRUE(std::equal(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(160 * width), b.begin())) << key;
    EXPECT_FALSE(std::equal(a.begin() + static_cast<std::ptrdiff_t>(160 * width), a.end(),
                            b.begin() + static_cast<std::ptrdiff_t>(160 * width)))
        << key;
  }
}

}  // namespace
}  // namespace train_gpt_v2
