#pragma once
// Short training runs on the fixtures' model and data, in process.

#include <ATen/Parallel.h>

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "support/test_files.h"
#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/train/session.h"

namespace train_gpt_v2::testing {

inline nlohmann::json fixture_json(const std::string& name) {
  return nlohmann::json::parse(read_file(data_path("fixtures/" + name), 64 << 20));
}

// The fixtures' model and data with the recorded run's settings; dropout 0, padded, fp32.
inline Options fixture_options(const std::vector<std::string>& sets = {}) {
  const nlohmann::json constructor = fixture_json("model/config.json").at("constructor");
  nlohmann::json model;
  for (const auto& [key, value] : constructor.items()) {
    if (key != "use_accel") model[key] = value;
  }
  model["dropout"] = 0.0;
  const nlohmann::json config = {
      {"model", model},
      {"init", {{"from", data_path("fixtures/model/gpt.pth")}}},
      {"data",
       {{"train_manifests", {data_path("fixtures/data/train_pairs.jsonl") + "::am"}},
        {"val_manifests", {data_path("fixtures/data/val_pairs.jsonl")}},
        {"tokenizer", data_path("fixtures/tokenizer/extended.model")}}},
      {"train",
       {{"batch_size", 3},
        {"grad_accumulation", 2},
        {"layout", "padded"},
        {"loss_normalization", "micro_batch"},
        {"log_interval", 1}}},
      {"optimizer", {{"learning_rate", 2e-4}, {"schedule", "hf_cosine"}, {"warmup_steps", 3}, {"total_steps", 40}}},
      {"validation", {{"interval", 6}, {"batch_size", 6}}},
      {"checkpoint", {{"interval", 6}}},
      {"logging", {{"progress", "off"}, {"tensorboard", false}}}};
  return load_config_json(config.dump(), "fixtures", sets).options;
}

// An order file of the recorded micro-batches from `first` on.
inline std::string write_order(const TemporaryFolder& folder, const nlohmann::json& micro_batches,
                               std::size_t first = 0) {
  std::string lines;
  for (std::size_t i = first; i < micro_batches.size(); ++i) lines += micro_batches[i].at("ids").dump() + "\n";
  return folder.write("order.jsonl", lines);
}

inline ExitStatus train_here(const Options& options, const std::string& directory, const std::string& resume = "auto",
                             std::optional<std::int64_t> max_steps = std::nullopt, std::set<std::string> allowed = {},
                             at::Device device = at::kCPU) {
  reset_signal_flags();
  SessionRequest request;
  request.options = options;
  request.run_directory = directory;
  request.resume = resume;
  request.max_steps = max_steps;
  request.allowed_changes = std::move(allowed);
  request.device = device;
  request.build = "test";
  return run_training(request);
}

// The lines of metrics.jsonl of one type, in order.
inline std::vector<nlohmann::json> metrics_of(const std::string& directory, const std::string& type) {
  std::vector<nlohmann::json> lines;
  std::istringstream in(read_file(directory + "/metrics.jsonl", 64 << 20));
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line);
    if (json.at("type") == type) lines.push_back(json);
  }
  return lines;
}

}  // namespace train_gpt_v2::testing
