#include "train_gpt_v2/model/romanise.h"

#include <array>
#include <cstdint>

namespace train_gpt_v2 {
namespace {

using Rows = std::array<const char*, 44>;

// U+1200..U+135F, one entry per eight code points; "" stands for the two glottal rows.
constexpr Rows kMain{"h",  "l", "h",  "m", "s",  "r", "s", "sh", "q",  "qw", "q",  "qw", "b", "v",  "t",
                     "ch", "h", "hw", "n", "ny", "",  "k", "kw", "kh", "kw", "w",  "",   "z", "zh", "y",
                     "d",  "d", "j",  "g", "gw", "g", "t", "ch", "p",  "ts", "ts", "f",  "p", ""};
constexpr std::array<const char*, 8> kVowels{"e", "u", "i", "a", "e", "", "o", "wa"};

// U+1380..U+138F: labialised m, b, f, p in four vowels each.
constexpr std::array<const char*, 4> kLabialised{"mw", "bw", "fw", "pw"};
constexpr std::array<const char*, 4> kLabialVowels{"e", "i", "e", ""};

// U+2D80..U+2D96: single letters with "oa"; U+2DA0..U+2DDF: rows of eight.
constexpr std::array<const char*, 23> kExtended{"l", "m", "r", "s", "sh", "b", "t", "ch", "n",  "ny", "",  "z",
                                                "d", "d", "j", "t", "ch", "p", "p", "gw", "gw", "gw", "gw"};
constexpr std::array<const char*, 8> kExtendedRows{"s", "ch", "z", "ch", "q", "k", "h", "g"};

std::string letter(const char* consonant, std::size_t order, bool open_first) {
  if (*consonant == '\0' && order == 5) return "i";                   // እ
  if (order == 0 && open_first) return std::string(consonant) + "a";  // ሀ አ
  return std::string(consonant) + kVowels[order];
}

std::string ethiopic(std::uint32_t code) {
  if (code >= 0x1358 && code <= 0x135A) return std::array{"rya", "mya", "fya"}[code - 0x1358];
  if (code >= 0x1200 && code < 0x1358) {
    const std::uint32_t row = (code - 0x1200) / 8;
    return letter(kMain[row], code % 8, row == 0 || row == 2 || row == 16 || *kMain[row] == '\0');
  }
  if (code >= 0x1361 && code <= 0x1368) return " ";
  if (code >= 0x1380 && code <= 0x138F) {
    return std::string(kLabialised[(code - 0x1380) / 4]) + kLabialVowels[code % 4];
  }
  if (code >= 0x2D80 && code <= 0x2D96) return std::string(kExtended[code - 0x2D80]) + "wa";
  if (code >= 0x2DA0 && code <= 0x2DDF) return letter(kExtendedRows[(code - 0x2DA0) / 8], code % 8, false);
  return "";
}

}  // namespace

std::string romanise(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = [&](std::size_t k) { return static_cast<unsigned char>(text[k]); };
    // All Ethiopic blocks take three bytes in UTF-8.
    if (i + 2 < text.size() && (byte(i) & 0xF0) == 0xE0 && (byte(i + 1) & 0xC0) == 0x80 &&
        (byte(i + 2) & 0xC0) == 0x80) {
      const std::uint32_t code = (byte(i) & 0x0Fu) << 12 | (byte(i + 1) & 0x3Fu) << 6 | (byte(i + 2) & 0x3Fu);
      const bool known = (code >= 0x1200 && code <= 0x139F) || (code >= 0x2D80 && code <= 0x2DDF);
      out += known ? ethiopic(code) : std::string(text.substr(i, 3));
      i += 3;
    } else {
      out += text[i++];
    }
  }
  return out;
}

}  // namespace train_gpt_v2
