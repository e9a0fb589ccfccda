#pragma once
// The adapters in a file, judged by names and shapes alone: kind, ranks, sizes beside the matrices they change.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/io/value.h"

namespace train_gpt_v2 {

struct AdapterModuleSummary {
  std::string module;  // "gpt.h.0.attn.c_attn"
  std::int64_t rank = 0;
  std::uint64_t parameters = 0;
  std::uint64_t base_elements = 0;  // of the matrix it changes; 0 where the file does not hold it
};

struct AdapterSummary {
  std::string method;  // as in peft.method
  std::vector<AdapterModuleSummary> modules;

  std::uint64_t parameters() const;
  std::int64_t rank_total() const;
};

// From "adapter" of one of our checkpoints, else from "model" (a bare file of adapters); nothing where there are none.
std::optional<AdapterSummary> summarise_adapters(const Value& root);

// One row per kind of matrix (layers together), then the totals.
std::string adapter_table(const AdapterSummary& summary);

}  // namespace train_gpt_v2
