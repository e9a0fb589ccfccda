#include "train_gpt_v2/app/demo_speech.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "train_gpt_v2/app/demo_process.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr auto kVoices = std::to_array<DemoVoice>({
    {"spk000", "am", 50, 160},
    {"spk001", "am+f2", 55, 155},
    {"spk002", "am+m3", 42, 165},
    {"spk003", "am+f5", 48, 150},
    {"spk004", "am+m7", 60, 158},
    {"spk005", "am+f3", 62, 168},
    {"spk006", "am+m8", 40, 152},
    {"spk007", "am+f1", 52, 162},
    {"spk008", "am+m4", 56, 148},
    {"spk009", "am+f4", 45, 166},
    {"spk010", "am+m2", 36, 156},
    {"spk011", "am+m5", 64, 160},
});
constexpr std::size_t kMaxAudioBytes = 64u << 20;  // 25 minutes
constexpr float kSilence = 0.004F;
constexpr std::size_t kMargin = kDemoSampleRate / 25;  // 40 ms

std::uint32_t little_endian(std::string_view content, std::size_t offset, std::size_t bytes) {
  std::uint32_t value = 0;
  for (std::size_t i = bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(content[offset + i]);
  return value;
}

void append(std::string& out, std::uint32_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
}

std::vector<float> without_outer_silence(const std::vector<float>& samples) {
  const auto loud = [](float x) { return std::fabs(x) > kSilence; };
  const auto first = std::find_if(samples.begin(), samples.end(), loud);
  if (first == samples.end()) return {};
  const auto last = std::find_if(samples.rbegin(), samples.rend(), loud).base();
  const auto begin = first - std::min<std::ptrdiff_t>(first - samples.begin(), kMargin);
  const auto end = last + std::min<std::ptrdiff_t>(samples.end() - last, kMargin);
  return {begin, end};
}

}  // namespace

std::span<const DemoVoice> all_demo_voices() {
  return kVoices;
}

std::vector<float> speak(const DemoVoice& voice, std::string_view text, int pitch_change, int rate_change) {
  const std::vector<std::string> arguments{"espeak-ng",
                                           "-v",
                                           std::string(voice.voice),
                                           "-p",
                                           std::to_string(voice.pitch + pitch_change),
                                           "-s",
                                           std::to_string(voice.words_per_minute + rate_change),
                                           "-b",
                                           "1",
                                           "--stdin",
                                           "--stdout"};
  const std::string wav = run_program(arguments, text, kMaxAudioBytes, "espeak-ng");
  std::vector<float> samples = without_outer_silence(parse_wav(wav, kDemoSampleRate));
  if (samples.empty())
    throw Error("DEM002", concat("espeak-ng was silent with voice ", voice.voice)).detail(std::string(text));
  return samples;
}

std::string wav_bytes(std::span<const float> samples, int sample_rate) {
  const auto rate = static_cast<std::uint32_t>(sample_rate);
  const auto data_bytes = static_cast<std::uint32_t>(samples.size() * 2);
  std::string out = "RIFF";
  append(out, 36 + data_bytes, 4);
  out += "WAVEfmt ";
  append(out, 16, 4);
  append(out, 1, 2);  // PCM
  append(out, 1, 2);  // mono
  append(out, rate, 4);
  append(out, rate * 2, 4);
  append(out, 2, 2);
  append(out, 16, 2);
  out += "data";
  append(out, data_bytes, 4);
  for (const float sample : samples) {
    const float scaled = std::clamp(std::round(sample * 32768.0F), -32768.0F, 32767.0F);
    append(out, static_cast<std::uint32_t>(static_cast<std::int32_t>(scaled)), 2);
  }
  return out;
}

void write_wav(const std::string& path, std::span<const float> samples, int sample_rate) {
  write_file_atomically(path, wav_bytes(samples, sample_rate));
}

std::vector<float> parse_wav(std::string_view content, int sample_rate) {
  if (content.size() < 12 || content.substr(0, 4) != "RIFF" || content.substr(8, 4) != "WAVE") {
    throw Error("DEM002", "the sound is not a RIFF/WAVE file");
  }
  bool known_format = false;
  for (std::size_t position = 12; position + 8 <= content.size();) {
    const std::string_view kind = content.substr(position, 4);
    const std::size_t size = little_endian(content, position + 4, 4);
    const std::size_t body = position + 8;
    const std::size_t present = std::min(size, content.size() - body);
    if (kind == "fmt " && present >= 16) {
      const bool pcm16_mono = little_endian(content, body, 2) == 1 && little_endian(content, body + 2, 2) == 1 &&
                              little_endian(content, body + 14, 2) == 16;
      const auto rate = static_cast<int>(little_endian(content, body + 4, 4));
      if (!pcm16_mono || rate != sample_rate) {
        throw Error("DEM002", concat("the sound must be 16-bit mono at ", sample_rate, " Hz"))
            .detail(concat("it has ", rate, " Hz"));
      }
      known_format = true;
    } else if (kind == "data" && known_format) {
      std::vector<float> samples(present / 2);
      for (std::size_t i = 0; i < samples.size(); ++i) {
        const auto value = static_cast<std::int16_t>(little_endian(content, body + 2 * i, 2));
        samples[i] = static_cast<float>(value) / 32768.0F;
      }
      return samples;
    }
    position = body + present + (present & 1);
  }
  throw Error("DEM002", "the sound file holds no samples");
}

}  // namespace train_gpt_v2
