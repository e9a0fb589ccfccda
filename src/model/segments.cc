#include "train_gpt_v2/model/segments.h"

#include <ATen/ops/tensor.h>

#include <algorithm>
#include <limits>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/kernels/dropout.h"

namespace train_gpt_v2 {

Segments make_segments(std::vector<std::int64_t> lengths) {
  constexpr std::int64_t kCounterLimit = 1 << 16;
  TGV2_CHECK(!lengths.empty() && static_cast<std::int64_t>(lengths.size()) < kCounterLimit);
  Segments segments;
  std::vector<std::int32_t> offsets{0};
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const std::int64_t length = lengths[i];
    TGV2_CHECK(length > 0 && length < kCounterLimit);
    TGV2_CHECK(offsets.back() <= std::numeric_limits<std::int32_t>::max() - length);
    offsets.push_back(static_cast<std::int32_t>(offsets.back() + length));
    segments.longest = std::max(segments.longest, length);
    for (std::int64_t p = 0; p < length; ++p) {
      segments.dropout_rows.push_back(dropout_row(static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(p)));
    }
  }
  segments.equal = std::all_of(lengths.begin(), lengths.end(), [&](auto n) { return n == lengths.front(); });
  segments.lengths = std::move(lengths);
  segments.offsets = at::tensor(offsets, at::kInt);
  return segments;
}

}  // namespace train_gpt_v2
