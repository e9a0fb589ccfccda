#pragma once
// train.batch_size "auto": the largest micro-batch that fits the memory, with the effective batch kept (contract §2).
//
// Candidates are the divisors of effective_batch. The search starts at the table's size for the card (the Python
// trainer's, data_and_peers.md §3), goes down while a step runs out of memory and up while the next size is expected to
// fit: memory is taken to grow linearly with the batch, and a tenth is left free. Each size is measured with a real
// step on the longest samples, so that no later batch is larger.
// Pure apart from the probe that is given in.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace train_gpt_v2 {

inline constexpr double kUsableMemoryShare = 0.9;

struct BatchFitRequest {
  std::int64_t effective_batch = 64;
  std::int64_t ranks = 1;       // the accumulation is a multiple of them
  std::int64_t first_size = 1;  // where the search starts
  std::uint64_t memory = 0;     // bytes the process may have in all; 0 = not known: the table decides
  std::int64_t remembered = 0;  // a size that was found before: taken without a search when a step confirms it
  // Peak memory of a step of so many samples; nothing when it ran out of memory.
  std::function<std::optional<std::uint64_t>(std::int64_t)> probe;
};

struct BatchFit {
  std::int64_t batch_size = 1, grad_accumulation = 1;
  std::vector<std::string> reasons;  // one line per size looked at, for people
};

// Throws MEM001 when not even the smallest size fits.
BatchFit fit_batch(const BatchFitRequest& request);

// The Python trainer's table by the card's memory in GiB; "phase 2" (adapters) takes 96 from 75 GiB on, because a card
// sold as 80 GB reports 79.2. Without a card 1.
std::int64_t table_batch_size(double gib, bool is_gpu, bool adapters);

}  // namespace train_gpt_v2
