#include "train_gpt_v2/app/demo_features.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/random.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kContext = 4, kWindow = (2 * kContext + 1) * kMelBands, kTaps = 16;
constexpr std::uint32_t kMinus = 1u << 31;
constexpr std::size_t kStatistics = 3 * kMelBands;
constexpr std::uint64_t kTapStream = 0xFEA1, kConditionStream = 0xFEA2, kEmotionStream = 0xFEA3;

std::vector<float> gaussian_matrix(std::size_t rows, std::size_t columns, std::uint64_t seed, std::uint64_t which) {
  RandomStream stream(seed, which);
  const double scale = 1.0 / std::sqrt(static_cast<double>(rows));
  std::vector<float> matrix(rows * columns);
  for (float& x : matrix) x = static_cast<float>(stream.normal() * scale);
  return matrix;
}

struct ClipStatistics {
  std::array<float, kMelBands> mean{}, deviation{}, movement{};
};

// Over frames [begin, end) of normalised log-mel; movement is the mean absolute change from frame to frame.
ClipStatistics statistics_of(std::span<const float> frames, std::size_t begin, std::size_t end) {
  ClipStatistics result;
  const auto count = static_cast<double>(end - begin);
  for (std::size_t band = 0; band < kMelBands; ++band) {
    double sum = 0, squares = 0, change = 0;
    for (std::size_t t = begin; t < end; ++t) {
      const double x = frames[t * kMelBands + band];
      sum += x;
      squares += x * x;
      if (t > begin) change += std::fabs(x - frames[(t - 1) * kMelBands + band]);
    }
    const double mean = sum / count;
    result.mean[band] = static_cast<float>(mean);
    result.deviation[band] = static_cast<float>(std::sqrt(std::max(squares / count - mean * mean, 0.0)));
    result.movement[band] = static_cast<float>(change / std::max(count - 1, 1.0));
  }
  return result;
}

}  // namespace

ClipProjection::ClipProjection(const MelStatistics& global, std::size_t model_dim, std::uint64_t seed)
    : global_(global),
      model_dim_(model_dim),
      condition_matrix_(gaussian_matrix(kStatistics, model_dim, seed, kConditionStream)),
      emotion_matrix_(gaussian_matrix(kStatistics, model_dim, seed, kEmotionStream)) {
  RandomStream stream(seed, kTapStream);
  for (std::size_t i = 0; i < kFeatureSize * kTaps; ++i) {
    const auto offset = static_cast<std::uint32_t>(stream.below(kWindow));
    taps_.push_back(offset | (stream.below(2) == 0 ? 0 : kMinus));
  }
}

std::vector<float> ClipProjection::normalised(std::span<const float> log_mel) const {
  std::vector<float> result(log_mel.size());
  for (std::size_t i = 0; i < log_mel.size(); ++i) {
    const std::size_t band = i % kMelBands;
    result[i] = (log_mel[i] - global_.mean[band]) / global_.deviation[band];
  }
  return result;
}

std::vector<float> ClipProjection::frame_features(std::span<const float> log_mel) const {
  const std::size_t frames = log_mel.size() / kMelBands;
  const std::vector<float> inner = normalised(log_mel);
  // The first and the last frame are repeated beyond the ends.
  std::vector<float> padded;
  for (std::size_t t = 0; t < frames + 2 * kContext; ++t) {
    const std::size_t from = std::min(t < kContext ? 0 : t - kContext, frames - 1);
    padded.insert(padded.end(), &inner[from * kMelBands], &inner[from * kMelBands] + kMelBands);
  }
  const float scale = 1.0F / std::sqrt(static_cast<float>(kTaps));
  std::vector<float> result(frames * kFeatureSize);
  for (std::size_t t = 0; t < frames; ++t) {
    const float* window = &padded[t * kMelBands];
    for (std::size_t j = 0; j < kFeatureSize; ++j) {
      float sum = 0;
      for (std::size_t k = 0; k < kTaps; ++k) {
        const std::uint32_t tap = taps_[j * kTaps + k];
        const float value = window[tap & ~kMinus];
        sum += tap & kMinus ? -value : value;
      }
      result[t * kFeatureSize + j] = sum * scale;
    }
  }
  return result;
}

std::vector<float> ClipProjection::project(std::span<const float> statistics, const std::vector<float>& matrix) const {
  TGV2_CHECK(statistics.size() == kStatistics);
  std::vector<float> result(model_dim_);
  for (std::size_t i = 0; i < kStatistics; ++i) {
    for (std::size_t d = 0; d < model_dim_; ++d) result[d] += statistics[i] * matrix[i * model_dim_ + d];
  }
  return result;
}

std::vector<float> ClipProjection::condition(std::span<const float> log_mel) const {
  const std::vector<float> frames = normalised(log_mel);
  const std::size_t count = frames.size() / kMelBands;
  const ClipStatistics whole = statistics_of(frames, 0, count);
  std::vector<float> result;
  for (std::size_t row = 0; row < kConditionRows; ++row) {
    // Clips shorter than 32 frames repeat frames: every row has at least one.
    const std::size_t begin = row * count / kConditionRows;
    const std::size_t end = std::max(begin + 1, (row + 1) * count / kConditionRows);
    const ClipStatistics part = statistics_of(frames, begin, end);
    std::array<float, kStatistics> input;
    std::copy(part.mean.begin(), part.mean.end(), input.begin());
    std::copy(whole.mean.begin(), whole.mean.end(), input.begin() + kMelBands);
    std::copy(whole.deviation.begin(), whole.deviation.end(), input.begin() + 2 * kMelBands);
    const std::vector<float> projected = project(input, condition_matrix_);
    result.insert(result.end(), projected.begin(), projected.end());
  }
  return result;
}

std::vector<float> ClipProjection::emotion(std::span<const float> log_mel) const {
  const std::vector<float> frames = normalised(log_mel);
  const ClipStatistics whole = statistics_of(frames, 0, frames.size() / kMelBands);
  std::array<float, kStatistics> input;
  std::copy(whole.deviation.begin(), whole.deviation.end(), input.begin());
  std::copy(whole.movement.begin(), whole.movement.end(), input.begin() + kMelBands);
  std::copy(whole.mean.begin(), whole.mean.end(), input.begin() + 2 * kMelBands);
  return project(input, emotion_matrix_);
}

}  // namespace train_gpt_v2
