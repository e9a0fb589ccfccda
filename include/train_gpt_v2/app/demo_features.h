#pragma once
// What stands in for the speech encoder and the conditioner in the demo corpus: fixed seeded random projections of a
// clip's log-mel, which keep who speaks and how.
//
// frame_features: [T, 1024], each number a signed sum of 16 of the 9 x 80 log-mel values around the frame (a sparse
// random projection, Achlioptas 2003). condition: [32, D], one row per 32nd of the clip, from the mean there and the
// mean and deviation of the whole clip. emotion: [D], from deviation, movement and mean of the clip.
// A ClipProjection is immutable and may be shared between threads.

#include <cstdint>
#include <span>
#include <vector>

#include "train_gpt_v2/app/demo_dsp.h"

namespace train_gpt_v2 {

inline constexpr std::size_t kFeatureSize = 1024, kConditionRows = 32;

class ClipProjection {
 public:
  // `global`: statistics over all speakers, which set the scale of the input.
  ClipProjection(const MelStatistics& global, std::size_t model_dim, std::uint64_t seed);

  std::vector<float> frame_features(std::span<const float> log_mel) const;  // [T, 80] -> [T, 1024]
  std::vector<float> condition(std::span<const float> log_mel) const;       // [T, 80] -> [32, D]
  std::vector<float> emotion(std::span<const float> log_mel) const;         // [T, 80] -> [D]

 private:
  std::vector<float> normalised(std::span<const float> log_mel) const;
  std::vector<float> project(std::span<const float> statistics, const std::vector<float>& matrix) const;

  MelStatistics global_;
  std::size_t model_dim_;
  std::vector<std::uint32_t> taps_;      // [1024, 16]: offset in the window, top bit = minus
  std::vector<float> condition_matrix_;  // [240, D]
  std::vector<float> emotion_matrix_;    // [240, D]
};

}  // namespace train_gpt_v2
