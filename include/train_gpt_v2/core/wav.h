#pragma once
// What a RIFF/WAVE file says about its sound. Files come from a user's own vocoder, so nothing in them is trusted:
// sizes are held against the bytes that are there. Pure.

#include <cstdint>
#include <optional>
#include <string_view>

namespace train_gpt_v2 {

struct WavFormat {
  std::int64_t rate = 0;      // hertz
  std::int64_t channels = 0;  // 1..64
  std::int64_t frames = 0;    // samples per channel that are present
};

// Nothing where `content` is no whole PCM or floating-point WAVE file.
std::optional<WavFormat> wav_format(std::string_view content);

}  // namespace train_gpt_v2
