#pragma once
// The codes of the demo corpus: k-means over cepstra, entries placed inside the model's real code space 0..8191.
//
// fit is deterministic for a seed whatever the number of threads: distances are exact per point, sums are added in the
// order of the points. A Codebook is immutable and may be shared.

#include <cstdint>
#include <span>
#include <vector>

#include "train_gpt_v2/app/demo_dsp.h"

namespace train_gpt_v2 {

inline constexpr std::int32_t kCodeSpace = 8192;  // start (8192) and stop (8193) lie behind it

struct Codebook {
  std::vector<float> centroids;   // [K, 20]
  std::vector<std::int32_t> ids;  // [K], code of each entry

  std::size_t size() const { return ids.size(); }
  std::vector<std::int32_t> encode(std::span<const float> points) const;  // [T, 20] -> [T] codes
  // [T] codes -> [T, 20]; a code that no entry has is DEM003.
  std::vector<float> decode(std::span<const std::int32_t> codes) const;
};

// `points` [N, 20] with N >= size; k-means++ start, 25 rounds.
Codebook fit_codebook(std::span<const float> points, std::size_t size, std::uint64_t seed, int threads);

}  // namespace train_gpt_v2
