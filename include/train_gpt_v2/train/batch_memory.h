#pragma once
// What was measured about the memory of a batch, and what follows from it: a suggestion for train.batch_size, and a
// memory across runs, so that train.batch_size "auto" searches once per card and configuration.
//
// Remembered sizes live in $XDG_CACHE_HOME/train_gpt_v2/batch_sizes.json (else ~/.cache): a table from the SHA-256 of
// everything that decides the memory of a step to the size found. A file that cannot be read or written is a warning,
// never an error, and a remembered size is tried with a real step before it is believed.

#include <cstdint>
#include <optional>
#include <string>

#include "train_gpt_v2/config/options.h"

namespace train_gpt_v2 {

// Peak memory of a step of so many samples.
struct MeasuredBatch {
  std::int64_t samples = 0;
  std::uint64_t peak_bytes = 0;
};

// The largest batch expected to fit into nine tenths of `memory`, on the line through two measurements, from eight
// samples on a multiple of eight. At most twice the larger one: further a straight line is a guess. Nothing where
// memory did not grow between the two, as on systems that do not let the peak be reset.
std::optional<std::int64_t> suggest_batch_size(const MeasuredBatch& smaller, const MeasuredBatch& larger,
                                               std::uint64_t memory);

// What a remembered size belongs to: the card, the model, what trains and how, and the longest sample of the data.
std::string batch_memory_key(const Options& options, const std::string& device, std::int64_t longest_positions,
                             std::int64_t samples_per_rank);

std::string batch_memory_path();  // "" where neither XDG_CACHE_HOME nor HOME is set
std::optional<std::int64_t> remembered_batch_size(const std::string& path, const std::string& key);
void remember_batch_size(const std::string& path, const std::string& key, std::int64_t samples);

}  // namespace train_gpt_v2
