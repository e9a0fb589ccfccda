#pragma once
// Several sequences laid end to end as rows [R,D]: where each begins, and how dropout names its rows.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace train_gpt_v2 {

struct Segments {
  std::vector<std::int64_t> lengths;        // rows per sequence, at least 1 each
  std::vector<std::uint32_t> dropout_rows;  // dropout_row(sequence, position) of each of the R rows
  at::Tensor offsets;                       // int32 [count+1] on the device of the rows: first row of each, then R
  std::int64_t longest = 0;
  bool equal = false;  // all of the same length

  std::int64_t count() const { return static_cast<std::int64_t>(lengths.size()); }
};

// `offsets` is left on the CPU. Throws INT001 beyond 65,535 sequences or rows per sequence (the dropout counters).
Segments make_segments(std::vector<std::int64_t> lengths);

}  // namespace train_gpt_v2
