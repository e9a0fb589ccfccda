#include "train_gpt_v2/train/batch_memory.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/test_files.h"
#include "train_gpt_v2/core/filesystem.h"

namespace train_gpt_v2 {
namespace {

using testing::TemporaryFolder;

TEST(SuggestBatchSize, FollowsTheLineThroughTwoMeasurements) {
  // 1000 + 100 per sample.
  EXPECT_EQ(suggest_batch_size({32, 4200}, {64, 7400}, 12'000), 96);  // 10,800 usable: 98 samples
  EXPECT_EQ(suggest_batch_size({32, 4200}, {64, 7400}, 10'000), 80);  // 9,000 usable
  EXPECT_EQ(suggest_batch_size({32, 4200}, {64, 7400}, 7'000), 48);   // 6,300 usable: 53; the present size is too large
  EXPECT_EQ(suggest_batch_size({32, 4200}, {64, 7400}, 99'000), 128);  // no further than twice what was measured
  EXPECT_EQ(suggest_batch_size({2, 1200}, {4, 1400}, 1'890), 7);       // below eight not rounded
  EXPECT_EQ(suggest_batch_size({2, 1200}, {4, 1400}, 100), 1);
}

TEST(SuggestBatchSize, SaysNothingWithoutAMeasuredGrowth) {
  EXPECT_EQ(suggest_batch_size({32, 4200}, {64, 4200}, 12'000), std::nullopt);
  EXPECT_EQ(suggest_batch_size({64, 4200}, {64, 7400}, 12'000), std::nullopt);
  EXPECT_EQ(suggest_batch_size({32, 4200}, {64, 7400}, 0), std::nullopt);
}

TEST(BatchMemory, WhatDecidesTheMemoryOfAStepIsInTheKey) {
  const Options options;
  const std::string key = batch_memory_key(options, "card", 100, 64);
  EXPECT_EQ(batch_memory_key(options, "card", 100, 64), key);
  EXPECT_NE(batch_memory_key(options, "other card", 100, 64), key);
  EXPECT_NE(batch_memory_key(options, "card", 101, 64), key);
  EXPECT_NE(batch_memory_key(options, "card", 100, 32), key);
  Options changed = options;
  changed.train.max_steps = 7;
  changed.train.seed = 5;
  EXPECT_EQ(batch_memory_key(changed, "card", 100, 64), key);
  changed = options;
  changed.ema.enabled = !options.ema.enabled;
  EXPECT_NE(batch_memory_key(changed, "card", 100, 64), key);
  changed = options;
  changed.train.activation_checkpointing = 1;
  EXPECT_NE(batch_memory_key(changed, "card", 100, 64), key);
  changed = options;
  changed.peft.method = "dora";
  EXPECT_NE(batch_memory_key(changed, "card", 100, 64), key);
}

TEST(BatchMemory, KeepsWhatWasFoundAndSurvivesDamage) {
  const TemporaryFolder folder;
  const std::string path = folder.file("deep/batch_sizes.json");
  EXPECT_EQ(remembered_batch_size(path, "a"), std::nullopt);
  remember_batch_size(path, "a", 16);
  remember_batch_size(path, "b", 32);
  remember_batch_size(path, "a", 8);
  EXPECT_EQ(remembered_batch_size(path, "a"), 8);
  EXPECT_EQ(remembered_batch_size(path, "b"), 32);
  for (const std::string& damage : {std::string("{\"a\": \"x\"}"), std::string("[1]"), std::string("{\"a\": 1e999}"),
                                    std::string("\0\xff", 2), std::string(2 << 20, '[')}) {
    write_file_atomically(path, damage);
    EXPECT_EQ(remembered_batch_size(path, "a"), std::nullopt);
    if (damage.size() > 1000) continue;  // too large to be ours: left alone
    remember_batch_size(path, "a", 4);
    EXPECT_EQ(remembered_batch_size(path, "a"), 4);
  }
  for (int i = 0; i < 300; ++i) remember_batch_size(folder.file("many"), std::to_string(i), i);
  EXPECT_EQ(nlohmann::json::parse(read_file(folder.file("many"), 1 << 20)).size(), 256u);
  EXPECT_EQ(remembered_batch_size(folder.file("many"), "43"), std::nullopt);
  EXPECT_EQ(remembered_batch_size(folder.file("many"), "44"), 44);
  remember_batch_size("/proc/nowhere/x", "a", 1);  // said, not thrown
  remember_batch_size("", "a", 1);
}

}  // namespace
}  // namespace train_gpt_v2
