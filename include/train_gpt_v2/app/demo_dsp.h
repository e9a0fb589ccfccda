#pragma once
// Signal processing of the demo corpus: short-time spectra at 50 frames a second, 80-band log-mel, cepstra.
//
// 22,050 Hz, window 1,024 (Hann), hop 441; frame t is centred on sample (t + 1/2) * 441. Mel bands by the HTK formula,
// 0..8,000 Hz, triangles of height 1; log is natural, floored at 1e-5. Matrices are row-major vectors [frames, width].
// Everything is a pure function; an Fft is immutable and may be shared between threads.

#include <array>
#include <cstddef>
#include <span>
#include <vector>

namespace train_gpt_v2 {

inline constexpr std::size_t kFftSize = 1024, kFrameHop = 441, kSpectrumSize = kFftSize / 2 + 1;
inline constexpr std::size_t kMelBands = 80, kCepstra = 20;

// In-place radix-2 transform of 2^n complex numbers, real and imaginary parts apart; the inverse divides by the size.
class Fft {
 public:
  explicit Fft(std::size_t size);
  void forward(std::span<float> real, std::span<float> imaginary) const;
  void inverse(std::span<float> real, std::span<float> imaginary) const;

 private:
  std::size_t size_;
  std::vector<std::size_t> reversed_;
  std::vector<float> cosine_, sine_;
};

std::span<const float> hann_window();  // [1024], periodic
std::span<const float> mel_filters();  // [80, 513]

// Short-time spectra of `frames` windows, [T, 513] each part.
struct Spectra {
  std::size_t frames = 0;
  std::vector<float> real, imaginary;
};
Spectra spectra(std::span<const float> samples);           // T = samples / 441
std::vector<float> samples_of(const Spectra& spectra);     // [T * 441], the least-squares inverse (Griffin, Lim 1984)
std::vector<float> amplitudes_of(const Spectra& spectra);  // [T, 513]
std::vector<float> log_mel_of_amplitudes(std::span<const float> amplitudes);  // [T, 513] -> [T, 80]
std::vector<float> log_mel(std::span<const float> samples);                   // [T, 80]

// Mean and deviation of each band over frames.
struct MelStatistics {
  std::array<float, kMelBands> mean{}, deviation{};
};
MelStatistics mel_statistics(const std::vector<std::span<const float>>& clips);

// The first 20 coefficients of the orthonormal DCT-II of each frame after (x - mean) / deviation, and the way back
// (which loses what the other 60 coefficients held).
std::vector<float> cepstra(std::span<const float> log_mel, const MelStatistics& statistics);
std::vector<float> log_mel_of_cepstra(std::span<const float> cepstra, const MelStatistics& statistics);

}  // namespace train_gpt_v2
