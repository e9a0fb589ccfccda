#include "train_gpt_v2/core/wav.h"

#include <algorithm>

namespace train_gpt_v2 {
namespace {

std::uint32_t little_endian(std::string_view bytes, std::size_t at, std::size_t count) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < count; ++i) {
    value |= static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
  }
  return value;
}

}  // namespace

std::optional<WavFormat> wav_format(std::string_view content) {
  if (content.size() < 12 || content.substr(0, 4) != "RIFF" || content.substr(8, 4) != "WAVE") return std::nullopt;
  WavFormat format;
  std::size_t frame_bytes = 0;
  for (std::size_t at = 12; at + 8 <= content.size();) {
    const std::string_view kind = content.substr(at, 4);
    const std::size_t size = little_endian(content, at + 4, 4), body = at + 8;
    const std::size_t present = std::min(size, content.size() - body);
    if (kind == "fmt " && present >= 16) {
      format.channels = little_endian(content, body + 2, 2);
      format.rate = little_endian(content, body + 4, 4);
      frame_bytes = little_endian(content, body + 12, 2);
    } else if (kind == "data") {
      if (format.rate <= 0 || format.channels < 1 || format.channels > 64 || frame_bytes == 0) return std::nullopt;
      format.frames = static_cast<std::int64_t>(present / frame_bytes);
      return format;
    }
    at = body + present + present % 2;
  }
  return std::nullopt;
}

}  // namespace train_gpt_v2
