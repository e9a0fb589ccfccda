#include "train_gpt_v2/data/normalizer.h"

#include <unicode/locid.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <cctype>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

// The character at `at`, which moves behind it; U+FFFD for a byte that begins none.
char32_t next_character(std::string_view text, std::size_t& at) {
  const auto first = static_cast<unsigned char>(text[at++]);
  if (first < 0x80) return first;
  const std::size_t more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
  if (first < 0xC0 || first >= 0xF8 || at + more > text.size()) return 0xFFFD;
  char32_t c = first & (0x3FU >> more);
  for (std::size_t i = 0; i < more; ++i) c = c << 6 | (static_cast<unsigned char>(text[at + i]) & 0x3FU);
  at += more;
  return c;
}

std::u32string decode(std::string_view text) {
  std::u32string characters;
  characters.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) characters.push_back(next_character(text, at));
  return characters;
}

template <typename Predicate>
bool any_character(std::string_view text, Predicate predicate) {
  for (std::size_t at = 0; at < text.size();) {
    if (predicate(next_character(text, at))) return true;
  }
  return false;
}

icu::UnicodeString wide_string(std::u32string_view text) {
  return icu::UnicodeString::fromUTF32(reinterpret_cast<const UChar32*>(text.data()),
                                       static_cast<std::int32_t>(text.size()));
}

std::string encode(std::u32string_view text) {
  std::string bytes;
  wide_string(text).toUTF8String(bytes);
  return bytes;
}

enum class Form { kNfc, kNfkc };

std::u32string compose(std::u32string_view text, Form form) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer =
      form == Form::kNfc ? icu::Normalizer2::getNFCInstance(status) : icu::Normalizer2::getNFKCInstance(status);
  TGV2_CHECK(U_SUCCESS(status));
  const icu::UnicodeString composed = normalizer->normalize(wide_string(text), status);
  TGV2_CHECK(U_SUCCESS(status));
  std::string bytes;
  composed.toUTF8String(bytes);
  return decode(bytes);
}

// What Python's str.isspace says, and \s in its patterns.
bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::u32string_view strip(std::u32string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::u32string join_spaces(std::u32string_view text) {
  std::u32string joined;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (!is_space(text[i])) {
      joined.push_back(text[i]);
    } else if (i == 0 || !is_space(text[i - 1])) {
      joined.push_back(U' ');
    }
  }
  return joined;
}

// "speaker 3:", "spk3 :" and, with `ethiopic`, "ተናጋሪ 3:" at the start, in any case.
std::u32string_view without_speaker_tag(std::u32string_view text, bool ethiopic) {
  const auto starts_with_word = [&](std::u32string_view word) {
    return text.size() >= word.size() && std::equal(word.begin(), word.end(), text.begin(), [](char32_t a, char32_t b) {
             return a == static_cast<char32_t>(u_tolower(static_cast<UChar32>(b)));
           });
  };
  std::size_t at = 0;
  if (starts_with_word(U"speaker")) {
    at = 7;
  } else if (starts_with_word(U"spk")) {
    at = 3;
  } else if (ethiopic && starts_with_word(U"ተናጋሪ")) {
    at = 5;
  } else {
    return text;
  }
  const auto skip_spaces = [&] {
    while (at < text.size() && is_space(text[at])) ++at;
  };
  skip_spaces();
  const std::size_t digits = at;
  while (at < text.size() && u_charType(static_cast<UChar32>(text[at])) == U_DECIMAL_DIGIT_NUMBER) ++at;
  if (at == digits) return text;
  skip_spaces();
  if (at >= text.size() || (text[at] != U':' && text[at] != U'：')) return text;
  ++at;
  skip_spaces();
  return text.substr(at);
}

// One character of the table that all languages share, 0 when it stays.
char32_t shared_replacement(char32_t c) {
  switch (c) {
    case U'：':
    case U'；':
    case U';':
    case U'，':
    case U'、':
    case U':':
      return U',';
    case U'。':
      return U'.';
    case U'！':
      return U'!';
    case U'？':
      return U'?';
    case U'\n':
      return U' ';
    case U'·':
    case U'—':
    case U'～':
    case U'~':
      return U'-';
    case U'“':
    case U'”':
    case U'"':
    case U'‘':
    case U'’':
    case U'（':
    case U'）':
    case U'(':
    case U')':
    case U'《':
    case U'》':
    case U'【':
    case U'】':
    case U'[':
    case U']':
    case U'「':
    case U'」':
      return U'\'';
    default:
      return 0;
  }
}

char32_t amharic_replacement(char32_t c) {
  switch (c) {
    case U'።':
      return U'.';
    case U'፣':
      return U',';
    case U'፤':
      return U';';
    case U'፥':
    case U'፦':
      return U':';
    case U'፧':
      return U'?';
    case U'፨':
      return U'!';
    case U'፡':
      return U' ';
    default:
      return shared_replacement(c);
  }
}

// One pass, left to right: what was replaced is not looked at again (so ፤ gives ";", while ";" gives ",").
std::u32string replace_punctuation(std::u32string_view text, std::string_view language) {
  std::u32string replaced;
  replaced.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::u32string_view rest = text.substr(i);
    if (rest.starts_with(U"...") || rest.starts_with(U",,,")) {
      replaced.push_back(U'…');
      i += 2;
    } else if (rest.starts_with(U"……")) {
      replaced.push_back(U'…');
      i += 1;
    } else {
      const char32_t c = text[i];
      const char32_t other = language == "am"                ? amharic_replacement(c)
                             : language == "zh" && c == U'$' ? U'.'
                                                             : shared_replacement(c);
      replaced.push_back(other ? other : c);
    }
  }
  return replaced;
}

bool is_ethiopic(char32_t c) {
  return (c >= 0x1200 && c <= 0x139F) || (c >= 0x2D80 && c <= 0x2DDF) || (c >= 0xAB00 && c <= 0xAB2F);
}

bool is_japanese(char32_t c) {
  return (c >= 0x3040 && c <= 0x30FF) || (c >= 0x31F0 && c <= 0x31FF) || (c >= 0xFF66 && c <= 0xFF9F) || c == U'〝' ||
         c == U'〞' || c == U'〟' || c == U'々' || c == U'〆';
}

bool is_ideograph(char32_t c) {
  return c >= 0x4E00 && c <= 0x9FFF;
}

// The ranges at which the reference splits; they include Ethiopic Extended-A.
bool is_split_character(char32_t c) {
  return (c >= 0x1100 && c <= 0x11FF) || (c >= 0x2E80 && c <= 0xA4CF) || (c >= 0xA840 && c <= 0xD7AF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0xFE30 && c <= 0xFE4F) || (c >= 0xFF65 && c <= 0xFFDC) ||
         (c >= 0x20000 && c <= 0x2FFFF);
}

std::u32string normalize(std::u32string_view text, std::string_view language) {
  if (language == "am") {
    text = strip(text);
    return std::u32string(
        strip(replace_punctuation(join_spaces(compose(without_speaker_tag(text, true), Form::kNfc)), language)));
  }
  if (language == "ja") {
    text = strip(text);
    return std::u32string(
        strip(replace_punctuation(join_spaces(compose(without_speaker_tag(text, false), Form::kNfkc)), language)));
  }
  if (language == "en" || language == "de" || language == "fr" || language == "zh") {
    return replace_punctuation(text, language);
  }
  return replace_punctuation(strip(join_spaces(compose(text, Form::kNfkc))), language);
}

std::string upper_case(std::u32string_view text) {
  std::string bytes;
  wide_string(text).toUpper(icu::Locale::getRoot()).toUTF8String(bytes);
  return bytes;
}

}  // namespace

std::string canonical_language(std::string_view name) {
  if (name.size() > 16) return "";
  std::string language;
  for (const char c : name) {
    if (!std::isalpha(static_cast<unsigned char>(c)) && c != '-' && c != '_') return "";
    language += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  if (language == "amh") return "am";
  if (language == "cn") return "zh";
  if (language == "jp") return "ja";
  return language;
}

bool is_amharic(std::string_view text) {
  return any_character(text, is_ethiopic);
}

std::string language_of_script(std::string_view text) {
  if (text.empty()) return "";
  if (is_amharic(text)) return "am";
  if (any_character(text, is_japanese)) return "ja";
  return any_character(text, is_ideograph) ? "zh" : "en";
}

std::string normalize_text(std::string_view text, std::string_view language) {
  return encode(normalize(decode(text), language.empty() ? language_of_script(text) : std::string(language)));
}

std::string before_sentencepiece(std::string_view text, std::string_view language) {
  const std::u32string characters = decode(text);
  if (strip(characters).size() == 1) return std::string(text);
  const std::u32string normalized =
      normalize(characters, language.empty() ? language_of_script(text) : std::string(language));
  // Pieces between split characters, and these themselves, stripped and joined by single spaces.
  std::string result;
  const auto add = [&](std::u32string_view piece) {
    piece = strip(piece);
    if (piece.empty()) return;
    if (!result.empty()) result += ' ';
    result += upper_case(piece);
  };
  std::size_t begin = 0;
  for (std::size_t i = 0; i < normalized.size(); ++i) {
    if (!is_split_character(normalized[i])) continue;
    add(std::u32string_view(normalized).substr(begin, i - begin));
    add(std::u32string_view(normalized).substr(i, 1));
    begin = i + 1;
  }
  add(std::u32string_view(normalized).substr(begin));
  return result;
}

}  // namespace train_gpt_v2
