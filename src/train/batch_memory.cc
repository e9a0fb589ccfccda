#include "train_gpt_v2/train/batch_memory.h"

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/train/batch_fit.h"

namespace train_gpt_v2 {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr std::uint64_t kMaxBytes = 1 << 20;
constexpr std::size_t kMaxEntries = 256;

OrderedJson read_table(const std::string& path) {
  if (!file_exists(path)) return OrderedJson::object();
  OrderedJson table = OrderedJson::parse(read_file(path, kMaxBytes), nullptr, /*allow_exceptions=*/false);
  if (table.is_object()) return table;
  log_warning("batch", path, " is no table of batch sizes; it is written anew");
  return OrderedJson::object();
}

}  // namespace

std::optional<std::int64_t> suggest_batch_size(const MeasuredBatch& smaller, const MeasuredBatch& larger,
                                               std::uint64_t memory) {
  if (smaller.samples >= larger.samples || smaller.peak_bytes >= larger.peak_bytes || memory == 0) return std::nullopt;
  const double per_sample = static_cast<double>(larger.peak_bytes - smaller.peak_bytes) /
                            static_cast<double>(larger.samples - smaller.samples);
  const double room = kUsableMemoryShare * static_cast<double>(memory) - static_cast<double>(larger.peak_bytes);
  const double fitting =
      std::min(static_cast<double>(larger.samples) + room / per_sample, 2.0 * static_cast<double>(larger.samples));
  const auto samples = std::max<std::int64_t>(1, static_cast<std::int64_t>(fitting));
  return samples < 8 ? samples : samples / 8 * 8;
}

std::string batch_memory_key(const Options& options, const std::string& device, std::int64_t longest_positions,
                             std::int64_t samples_per_rank) {
  const OrderedJson all = OrderedJson::parse(effective_json(options));
  OrderedJson key = {{"device", device}, {"longest", longest_positions}, {"samples", samples_per_rank}};
  for (const char* section : {"model", "trainable", "peft", "ema", "ewc", "distributed"})
    key[section] = all.at(section);
  for (const char* name : {"layout", "engine", "precision", "activation_checkpointing", "deterministic"}) {
    key["train"][name] = all.at("train").at(name);
  }
  return sha256(key.dump());
}

std::string batch_memory_path() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (cache && *cache) return path_join(cache, "train_gpt_v2/batch_sizes.json");
  return home && *home ? path_join(home, ".cache/train_gpt_v2/batch_sizes.json") : "";
}

std::optional<std::int64_t> remembered_batch_size(const std::string& path, const std::string& key) {
  if (path.empty()) return std::nullopt;
  try {
    const OrderedJson table = read_table(path);
    const auto found = table.find(key);
    if (found != table.end() && found->is_number_integer()) return found->get<std::int64_t>();
  } catch (const Error& error) {
    log_warning("batch", "what was measured before cannot be read: ", error.what());
  }
  return std::nullopt;
}

void remember_batch_size(const std::string& path, const std::string& key, std::int64_t samples) {
  if (path.empty()) return;
  try {
    OrderedJson table = read_table(path);
    table.erase(key);
    while (table.size() >= kMaxEntries) table.erase(table.begin());  // the oldest
    table[key] = samples;
    make_directories(parent_path(path));
    write_file_atomically(path, table.dump(1) + "\n");
  } catch (const Error& error) {
    log_warning("batch", "what was measured cannot be kept for the next run: ", error.what());
  }
}

}  // namespace train_gpt_v2
