#include "train_gpt_v2/app/demo_vocoder.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/npy.h"

namespace train_gpt_v2 {
namespace {

constexpr int kLeastSquaresRounds = 40, kPhaseRounds = 48;
constexpr float kMomentum = 0.99F, kTiny = 1e-9F, kPeak = 0.95F;
constexpr std::uint64_t kPhaseSeed = 7, kPhaseStream = 0x9A5E;

// [T, 80] mel -> [T, 513] x >= 0 with filters * x ~ mel, by x <- x * (F' m) / (F' F x).
std::vector<float> amplitudes_of_mel(std::span<const float> log_mel) {
  const std::size_t frames = log_mel.size() / kMelBands;
  const std::span<const float> filters = mel_filters();
  const auto spread = [&](std::span<const float> bands, std::span<float> bins) {  // F' b
    std::fill(bins.begin(), bins.end(), 0.0F);
    for (std::size_t band = 0; band < kMelBands; ++band) {
      for (std::size_t bin = 0; bin < kSpectrumSize; ++bin)
        bins[bin] += filters[band * kSpectrumSize + bin] * bands[band];
    }
  };
  std::vector<float> result(frames * kSpectrumSize), mel(kMelBands), seen(kMelBands);
  std::vector<float> wanted(kSpectrumSize), present(kSpectrumSize);
  for (std::size_t frame = 0; frame < frames; ++frame) {
    const std::span<float> x = std::span(result).subspan(frame * kSpectrumSize, kSpectrumSize);
    for (std::size_t band = 0; band < kMelBands; ++band) mel[band] = std::exp(log_mel[frame * kMelBands + band]);
    spread(mel, wanted);
    std::copy(wanted.begin(), wanted.end(), x.begin());
    for (int round = 0; round < kLeastSquaresRounds; ++round) {
      for (std::size_t band = 0; band < kMelBands; ++band) {
        float sum = 0;
        for (std::size_t bin = 0; bin < kSpectrumSize; ++bin) sum += filters[band * kSpectrumSize + bin] * x[bin];
        seen[band] = sum;
      }
      spread(seen, present);
      for (std::size_t bin = 0; bin < kSpectrumSize; ++bin) x[bin] *= wanted[bin] / (present[bin] + kTiny);
    }
  }
  return result;
}

std::vector<float> griffin_lim(const std::vector<float>& amplitudes) {
  Spectra guess;
  guess.frames = amplitudes.size() / kSpectrumSize;
  guess.real.resize(amplitudes.size());
  guess.imaginary.resize(amplitudes.size());
  RandomStream stream(kPhaseSeed, kPhaseStream);
  for (std::size_t i = 0; i < amplitudes.size(); ++i) {
    const double phase = 2.0 * std::numbers::pi * stream.uniform();
    guess.real[i] = amplitudes[i] * static_cast<float>(std::cos(phase));
    guess.imaginary[i] = amplitudes[i] * static_cast<float>(std::sin(phase));
  }
  Spectra previous = guess;
  for (int round = 0; round < kPhaseRounds; ++round) {
    const Spectra consistent = spectra(samples_of(guess));
    for (std::size_t i = 0; i < amplitudes.size(); ++i) {
      const float real = consistent.real[i] + kMomentum * (consistent.real[i] - previous.real[i]);
      const float imaginary = consistent.imaginary[i] + kMomentum * (consistent.imaginary[i] - previous.imaginary[i]);
      const float scale = amplitudes[i] / (std::sqrt(real * real + imaginary * imaginary) + kTiny);
      guess.real[i] = real * scale;
      guess.imaginary[i] = imaginary * scale;
    }
    previous = consistent;
  }
  return samples_of(guess);
}

std::vector<float> read_floats(const std::string& path, const std::vector<std::int64_t>& shape) {
  const Tensor tensor = read_npy(path);
  if (tensor.dtype != DType::kFloat32 || tensor.shape != shape) {
    throw Error("DEM003", "an array of the codebook has another type or shape")
        .where(path)
        .detail(concat("found ", dtype_name(tensor.dtype), " ", shape_text(tensor.shape), ", need float32 ",
                       shape_text(shape)));
  }
  return to_float_vector(tensor);
}

}  // namespace

DemoVocoder::DemoVocoder(const std::string& folder) {
  const Tensor ids = read_npy(path_join(folder, "code_ids.npy"));
  for (const std::int64_t id : to_int_vector(ids)) codebook_.ids.push_back(static_cast<std::int32_t>(id));
  const auto size = static_cast<std::int64_t>(codebook_.size());
  codebook_.centroids = read_floats(path_join(folder, "centroids.npy"), {size, kCepstra});
  const std::string names_path = path_join(folder, "speakers.json");
  const auto names = nlohmann::json::parse(read_file(names_path, 1 << 20), nullptr, /*allow_exceptions=*/false);
  const bool are_names = names.is_array() && !names.empty() &&
                         std::all_of(names.begin(), names.end(), [](const auto& name) { return name.is_string(); });
  if (!are_names) throw Error("DEM003", "the list of speakers is not a list of names").where(names_path);
  const auto count = static_cast<std::int64_t>(names.size());
  const std::vector<float> values = read_floats(path_join(folder, "speaker_mel.npy"), {count, 2, kMelBands});
  for (std::size_t i = 0; i < names.size(); ++i) {
    MelStatistics& own = speakers_[names[i].get<std::string>()];
    for (std::size_t band = 0; band < kMelBands; ++band) {
      own.mean[band] = values[(2 * i) * kMelBands + band];
      own.deviation[band] = values[(2 * i + 1) * kMelBands + band];
      average_.mean[band] += own.mean[band] / static_cast<float>(count);
      average_.deviation[band] += own.deviation[band] / static_cast<float>(count);
    }
  }
}

std::vector<float> DemoVocoder::log_mel(std::span<const std::int32_t> codes, const std::string& speaker) const {
  const auto found = speakers_.find(speaker);
  return log_mel_of_cepstra(codebook_.decode(codes), found == speakers_.end() ? average_ : found->second);
}

std::vector<float> DemoVocoder::synthesize(std::span<const std::int32_t> codes, const std::string& speaker) const {
  std::vector<float> samples = griffin_lim(amplitudes_of_mel(log_mel(codes, speaker)));
  float peak = 0;
  for (const float sample : samples) peak = std::max(peak, std::fabs(sample));
  if (peak > kPeak) {
    for (float& sample : samples) sample *= kPeak / peak;
  }
  return samples;
}

}  // namespace train_gpt_v2
