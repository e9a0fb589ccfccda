#pragma once
// Speech of the demo corpus: espeak-ng's Amharic voice in several variants, started as a program (it is GPL, so it is
// never linked). The same call gives the same samples for one version of espeak-ng.
//
// Audio is mono, 22,050 Hz, samples in [-1, 1). Errors: DEM001 (not installed), DEM002 (it failed), IO003, IO002.

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

inline constexpr int kDemoSampleRate = 22050;

struct DemoVoice {
  std::string_view speaker;  // "spk000"
  std::string_view voice;    // espeak-ng's name with the variant, "am+f2"
  int pitch;                 // 0..99
  int words_per_minute;
};

// Two sets of six voices; the second stands for new speakers in tests that must protect the first.
std::span<const DemoVoice> all_demo_voices();

// One sentence, with the silence before and after it cut to 40 ms.
std::vector<float> speak(const DemoVoice& voice, std::string_view text, int pitch_change, int rate_change);

// RIFF/WAVE, 16 bit PCM, mono.
std::string wav_bytes(std::span<const float> samples, int sample_rate);
void write_wav(const std::string& path, std::span<const float> samples, int sample_rate);  // atomically

// The samples of a 16-bit mono RIFF/WAVE file with the given rate; the data size may be larger than what follows, as a
// program that writes to a pipe leaves it.
std::vector<float> parse_wav(std::string_view content, int sample_rate);

}  // namespace train_gpt_v2
