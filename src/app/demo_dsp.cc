#include "train_gpt_v2/app/demo_dsp.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "train_gpt_v2/app/demo_speech.h"
#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

constexpr double kTopFrequency = 8000;
constexpr float kLogFloor = 1e-5F;

double mel_of_hertz(double hertz) {
  return 2595.0 * std::log10(1.0 + hertz / 700.0);
}
double hertz_of_mel(double mel) {
  return 700.0 * (std::pow(10.0, mel / 2595.0) - 1.0);
}

std::vector<float> make_mel_filters() {
  std::array<double, kMelBands + 2> edges;
  for (std::size_t i = 0; i < edges.size(); ++i) {
    edges[i] = hertz_of_mel(mel_of_hertz(kTopFrequency) * static_cast<double>(i) / (kMelBands + 1));
  }
  std::vector<float> filters(kMelBands * kSpectrumSize);
  for (std::size_t band = 0; band < kMelBands; ++band) {
    for (std::size_t bin = 0; bin < kSpectrumSize; ++bin) {
      const double hertz = static_cast<double>(bin) * kDemoSampleRate / kFftSize;
      const double rise = (hertz - edges[band]) / (edges[band + 1] - edges[band]);
      const double fall = (edges[band + 2] - hertz) / (edges[band + 2] - edges[band + 1]);
      filters[band * kSpectrumSize + bin] = static_cast<float>(std::max(0.0, std::min(rise, fall)));
    }
  }
  return filters;
}

// [20, 80], rows orthonormal.
std::vector<float> make_dct() {
  std::vector<float> dct(kCepstra * kMelBands);
  for (std::size_t k = 0; k < kCepstra; ++k) {
    const double scale = std::sqrt((k == 0 ? 1.0 : 2.0) / kMelBands);
    for (std::size_t n = 0; n < kMelBands; ++n) {
      const double angle = std::numbers::pi * static_cast<double>(k) * (static_cast<double>(n) + 0.5) / kMelBands;
      dct[k * kMelBands + n] = static_cast<float>(scale * std::cos(angle));
    }
  }
  return dct;
}

const Fft& frame_fft() {
  static const Fft fft(kFftSize);
  return fft;
}

// First sample under the window of a frame; negative at the start of a clip.
std::ptrdiff_t frame_begin(std::size_t frame) {
  return static_cast<std::ptrdiff_t>(frame * kFrameHop + kFrameHop / 2) - static_cast<std::ptrdiff_t>(kFftSize / 2);
}

const std::vector<float>& dct() {
  static const std::vector<float> matrix = make_dct();
  return matrix;
}

}  // namespace

Fft::Fft(std::size_t size) : size_(size), reversed_(size), cosine_(size / 2), sine_(size / 2) {
  TGV2_CHECK(size >= 2 && (size & (size - 1)) == 0);
  for (std::size_t i = 1; i < size; ++i) reversed_[i] = reversed_[i / 2] / 2 + (i & 1 ? size / 2 : 0);
  for (std::size_t i = 0; i < size / 2; ++i) {
    const double angle = -2.0 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(size);
    cosine_[i] = static_cast<float>(std::cos(angle));
    sine_[i] = static_cast<float>(std::sin(angle));
  }
}

void Fft::forward(std::span<float> real, std::span<float> imaginary) const {
  TGV2_CHECK(real.size() == size_ && imaginary.size() == size_);
  for (std::size_t i = 0; i < size_; ++i) {
    if (i < reversed_[i]) {
      std::swap(real[i], real[reversed_[i]]);
      std::swap(imaginary[i], imaginary[reversed_[i]]);
    }
  }
  for (std::size_t half = 1; half < size_; half *= 2) {
    const std::size_t stride = size_ / (2 * half);
    for (std::size_t begin = 0; begin < size_; begin += 2 * half) {
      for (std::size_t k = 0; k < half; ++k) {
        const std::size_t low = begin + k, high = low + half;
        const float c = cosine_[k * stride], s = sine_[k * stride];
        const float turned_real = real[high] * c - imaginary[high] * s;
        const float turned_imaginary = real[high] * s + imaginary[high] * c;
        real[high] = real[low] - turned_real;
        imaginary[high] = imaginary[low] - turned_imaginary;
        real[low] += turned_real;
        imaginary[low] += turned_imaginary;
      }
    }
  }
}

void Fft::inverse(std::span<float> real, std::span<float> imaginary) const {
  forward(imaginary, real);  // swapping the parts conjugates before and after
  const float scale = 1.0F / static_cast<float>(size_);
  for (std::size_t i = 0; i < size_; ++i) {
    real[i] *= scale;
    imaginary[i] *= scale;
  }
}

std::span<const float> hann_window() {
  static const std::vector<float> window = [] {
    std::vector<float> values(kFftSize);
    for (std::size_t i = 0; i < kFftSize; ++i) {
      const double angle = 2.0 * std::numbers::pi * static_cast<double>(i) / kFftSize;
      values[i] = static_cast<float>(0.5 - 0.5 * std::cos(angle));
    }
    return values;
  }();
  return window;
}

std::span<const float> mel_filters() {
  static const std::vector<float> filters = make_mel_filters();
  return filters;
}

Spectra spectra(std::span<const float> samples) {
  Spectra result;
  result.frames = samples.size() / kFrameHop;
  result.real.resize(result.frames * kSpectrumSize);
  result.imaginary.resize(result.frames * kSpectrumSize);
  const std::span<const float> window = hann_window();
  std::array<float, kFftSize> real, imaginary;
  const auto windowed = [&](std::size_t frame, std::span<float> out) {
    const std::ptrdiff_t begin = frame_begin(frame);
    for (std::size_t i = 0; i < kFftSize; ++i) {
      const std::ptrdiff_t at = begin + static_cast<std::ptrdiff_t>(i);
      const bool inside = frame < result.frames && at >= 0 && at < static_cast<std::ptrdiff_t>(samples.size());
      out[i] = inside ? samples[static_cast<std::size_t>(at)] * window[i] : 0.0F;
    }
  };
  // Two real frames ride in one complex transform; the symmetry of real signals takes them apart again.
  for (std::size_t frame = 0; frame < result.frames; frame += 2) {
    windowed(frame, real);
    windowed(frame + 1, imaginary);
    frame_fft().forward(real, imaginary);
    for (std::size_t bin = 0; bin < kSpectrumSize; ++bin) {
      const std::size_t mirror = (kFftSize - bin) % kFftSize, at = frame * kSpectrumSize + bin;
      result.real[at] = 0.5F * (real[bin] + real[mirror]);
      result.imaginary[at] = 0.5F * (imaginary[bin] - imaginary[mirror]);
      if (frame + 1 == result.frames) continue;
      result.real[at + kSpectrumSize] = 0.5F * (imaginary[bin] + imaginary[mirror]);
      result.imaginary[at + kSpectrumSize] = 0.5F * (real[mirror] - real[bin]);
    }
  }
  return result;
}

std::vector<float> samples_of(const Spectra& spectra) {
  const std::size_t length = spectra.frames * kFrameHop;
  const std::span<const float> window = hann_window();
  std::vector<float> samples(length), weights(length);
  std::array<float, kFftSize> real, imaginary;
  const auto overlap_add = [&](std::size_t frame, std::span<const float> values) {
    const std::ptrdiff_t begin = frame_begin(frame);
    for (std::size_t i = 0; i < kFftSize; ++i) {
      const std::ptrdiff_t at = begin + static_cast<std::ptrdiff_t>(i);
      if (at < 0 || at >= static_cast<std::ptrdiff_t>(length)) continue;
      samples[static_cast<std::size_t>(at)] += values[i] * window[i];
      weights[static_cast<std::size_t>(at)] += window[i] * window[i];
    }
  };
  for (std::size_t frame = 0; frame < spectra.frames; frame += 2) {
    const bool paired = frame + 1 < spectra.frames;
    for (std::size_t bin = 0; bin < kFftSize; ++bin) {
      const bool mirrored = bin >= kSpectrumSize;
      const std::size_t at = frame * kSpectrumSize + (mirrored ? kFftSize - bin : bin);
      const float sign = mirrored ? -1.0F : 1.0F;
      const float second_real = paired ? spectra.real[at + kSpectrumSize] : 0.0F;
      const float second_imaginary = paired ? sign * spectra.imaginary[at + kSpectrumSize] : 0.0F;
      real[bin] = spectra.real[at] - second_imaginary;
      imaginary[bin] = sign * spectra.imaginary[at] + second_real;
    }
    frame_fft().inverse(real, imaginary);
    overlap_add(frame, real);
    if (paired) overlap_add(frame + 1, imaginary);
  }
  for (std::size_t i = 0; i < length; ++i) samples[i] /= std::max(weights[i], 1e-3F);
  return samples;
}

std::vector<float> amplitudes_of(const Spectra& spectra) {
  std::vector<float> result(spectra.real.size());
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] = std::sqrt(spectra.real[i] * spectra.real[i] + spectra.imaginary[i] * spectra.imaginary[i]);
  }
  return result;
}

std::vector<float> log_mel_of_amplitudes(std::span<const float> amplitudes) {
  const std::size_t frames = amplitudes.size() / kSpectrumSize;
  const std::span<const float> filters = mel_filters();
  std::vector<float> result(frames * kMelBands);
  for (std::size_t band = 0; band < kMelBands; ++band) {
    const std::span<const float> filter = filters.subspan(band * kSpectrumSize, kSpectrumSize);
    const auto positive = [](float x) { return x > 0; };
    const auto first = static_cast<std::size_t>(std::find_if(filter.begin(), filter.end(), positive) - filter.begin());
    std::size_t last = first;
    while (last < kSpectrumSize && filter[last] > 0) ++last;
    for (std::size_t frame = 0; frame < frames; ++frame) {
      float sum = 0;
      for (std::size_t bin = first; bin < last; ++bin) sum += filter[bin] * amplitudes[frame * kSpectrumSize + bin];
      result[frame * kMelBands + band] = std::log(std::max(sum, kLogFloor));
    }
  }
  return result;
}

std::vector<float> log_mel(std::span<const float> samples) {
  return log_mel_of_amplitudes(amplitudes_of(spectra(samples)));
}

MelStatistics mel_statistics(const std::vector<std::span<const float>>& clips) {
  std::array<double, kMelBands> sum{}, squares{};
  double frames = 0;
  for (const std::span<const float> clip : clips) {
    for (std::size_t i = 0; i < clip.size(); ++i) {
      sum[i % kMelBands] += clip[i];
      squares[i % kMelBands] += static_cast<double>(clip[i]) * clip[i];
    }
    const std::size_t clip_frames = clip.size() / kMelBands;
    frames += static_cast<double>(clip_frames);
  }
  TGV2_CHECK(frames > 0);
  MelStatistics result;
  for (std::size_t band = 0; band < kMelBands; ++band) {
    const double mean = sum[band] / frames;
    result.mean[band] = static_cast<float>(mean);
    // A band that never moves must not blow up; real bands have deviations of about 2.
    result.deviation[band] = static_cast<float>(std::sqrt(std::max(squares[band] / frames - mean * mean, 1e-4)));
  }
  return result;
}

std::vector<float> cepstra(std::span<const float> log_mel, const MelStatistics& statistics) {
  const std::size_t frames = log_mel.size() / kMelBands;
  std::vector<float> result(frames * kCepstra);
  std::array<float, kMelBands> normal;
  for (std::size_t frame = 0; frame < frames; ++frame) {
    for (std::size_t band = 0; band < kMelBands; ++band) {
      normal[band] = (log_mel[frame * kMelBands + band] - statistics.mean[band]) / statistics.deviation[band];
    }
    for (std::size_t k = 0; k < kCepstra; ++k) {
      float sum = 0;
      for (std::size_t band = 0; band < kMelBands; ++band) sum += dct()[k * kMelBands + band] * normal[band];
      result[frame * kCepstra + k] = sum;
    }
  }
  return result;
}

std::vector<float> log_mel_of_cepstra(std::span<const float> cepstra, const MelStatistics& statistics) {
  const std::size_t frames = cepstra.size() / kCepstra;
  std::vector<float> result(frames * kMelBands);
  for (std::size_t frame = 0; frame < frames; ++frame) {
    for (std::size_t band = 0; band < kMelBands; ++band) {
      float sum = 0;
      for (std::size_t k = 0; k < kCepstra; ++k) sum += dct()[k * kMelBands + band] * cepstra[frame * kCepstra + k];
      result[frame * kMelBands + band] = sum * statistics.deviation[band] + statistics.mean[band];
    }
  }
  return result;
}

}  // namespace train_gpt_v2
