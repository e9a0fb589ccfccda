#pragma once
// Runs that are stopped and continued, and what must be equal afterwards.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/fixture_run.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2::testing {

// A small run in our own order: 10 steps, accumulation 2, packed, dropout on, several epochs.
inline Options small_run(const std::vector<std::string>& sets = {}) {
  std::vector<std::string> all = {"train.layout=packed",       "train.loss_normalization=window_tokens",
                                  "train.max_steps=10",        "optimizer.total_steps=null",
                                  "optimizer.schedule=cosine", "model.dropout=0.1",
                                  "validation.interval=4",     "checkpoint.interval=100",
                                  "train.batch_size=4",        "train.log_interval=3"};
  all.insert(all.end(), sets.begin(), sets.end());
  return fixture_options(all);
}

// Everything a checkpoint holds but clocks and the configuration (run lengths of the process differ by nothing else).
inline void expect_same_checkpoint(const std::string& a, const std::string& b) {
  const LoadedFile first = read_tensor_file(a), second = read_tensor_file(b);
  for (const char* key : {"model", "base_model", "adapter", "optimizer", "scheduler", "scaler", "epoch", "step",
                          "batch_idx", "last_losses", "best_val_mel_loss", "early_stopping_reference",
                          "patience_counter", "ema_state", "ema_updates"}) {
    ASSERT_EQ(first.root.contains(key), second.root.contains(key)) << key;
    if (first.root.contains(key)) {
      EXPECT_TRUE(identical(first.root.at(key), second.root.at(key))) << key;
    }
  }
  const Value &ours = first.root.at("train_gpt_v2"), &theirs = second.root.at("train_gpt_v2");
  for (const char* key : {"adapters", "allocator", "ewc"}) {
    ASSERT_EQ(ours.contains(key), theirs.contains(key)) << key;
    if (ours.contains(key)) {
      EXPECT_TRUE(identical(ours.at(key), theirs.at(key))) << key;
    }
  }
  auto state = [](const LoadedFile& file) {
    auto json = nlohmann::json::parse(file.root.at("train_gpt_v2").at("state").as_string());
    json.erase("train_seconds");
    json.erase("validation_seconds");
    for (const char* clock : {"step_seconds", "wait_seconds"}) json["meters"].erase(clock);
    return json;
  };
  EXPECT_EQ(state(first), state(second));
}

// The same best files, with the same content.
inline void expect_same_best(const std::string& a, const std::string& b) {
  const auto best = [](const std::string& folder) {
    std::vector<std::string> names;
    for (const std::string& name : list_directory(folder)) {
      if (starts_with(name, "best_")) names.push_back(name);
    }
    return names;
  };
  ASSERT_EQ(best(a), best(b));
  for (const std::string& name : best(a)) {
    const LoadedFile first = read_tensor_file(path_join(a, name)), second = read_tensor_file(path_join(b, name));
    ASSERT_EQ(first.root.contains("ema_state"), second.root.contains("ema_state")) << name;
    for (const char* key :
         {"model", "base_model", "adapter", "ema_state", "step", "epoch", "val_mel_loss", "weights"}) {
      if (!first.root.contains(key)) continue;
      EXPECT_TRUE(identical(first.root.at(key), second.root.at(key))) << name << ": " << key;
    }
  }
}

// Metrics lines without what a clock says.
inline std::vector<nlohmann::json> timeless(const std::string& directory) {
  std::vector<nlohmann::json> lines;
  for (const char* type : {"train", "validation"}) {
    for (auto line : metrics_of(directory, type)) {
      for (const char* key : {"time", "tokens_per_second", "model_tflops", "mfu", "data_wait_share", "step_seconds",
                              "peak_memory_bytes", "seconds"}) {
        line.erase(key);
      }
      lines.push_back(std::move(line));
    }
  }
  return lines;
}

inline void expect_resumes(const Options& options, const std::vector<std::int64_t>& stops,
                           const Options* later = nullptr) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(options, folder.file("whole")), ExitStatus::kOk);
  for (const std::int64_t stop : stops) {
    ASSERT_EQ(train_here(options, folder.file("parts"), "auto", stop), ExitStatus::kOk);
    EXPECT_FALSE(file_exists(folder.file("parts/DONE")));
  }
  ASSERT_EQ(train_here(later ? *later : options, folder.file("parts")), ExitStatus::kOk);
  EXPECT_TRUE(file_exists(folder.file("parts/DONE")));
  expect_same_checkpoint(folder.file("whole/latest.pt"), folder.file("parts/latest.pt"));
  expect_same_best(folder.file("whole"), folder.file("parts"));
  EXPECT_EQ(timeless(folder.file("whole")), timeless(folder.file("parts")));
}

}  // namespace train_gpt_v2::testing
