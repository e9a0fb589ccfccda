#pragma once
// Small text helpers: joining values, human numbers, suggestions for mistyped names, aligned tables.

#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

// concat("step ", 12, ": ", 0.5): everything an ostream can print, in order.
template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::string join(const std::vector<std::string>& parts, std::string_view separator);
std::vector<std::string> split(std::string_view text, char separator);
std::string_view trim(std::string_view text);
bool starts_with(std::string_view text, std::string_view prefix);
bool ends_with(std::string_view text, std::string_view suffix);

// The shortest decimal text that reads back as exactly the same double; "NaN", "Infinity" for the rest.
std::string exact_number(double value);

std::string human_bytes(std::uint64_t bytes);   // 1536 -> "1.5 KiB"
std::string human_count(std::uint64_t count);   // 865980639 -> "865,980,639"
std::string human_duration(double seconds);     // 3723 -> "1h02m", 95 -> "1m35s", 0.25 -> "0.25s"
std::string fixed(double value, int decimals);  // 0.12345, 3 -> "0.123"

// Number of insertions, deletions, substitutions and swaps of neighbours between two names.
std::size_t edit_distance(std::string_view a, std::string_view b);

// The candidate nearest to a mistyped name, or "" when none is near enough to be meant.
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

// Rows of cells as aligned text, first row underlined as the heading; columns of numbers are right-aligned.
std::string table(const std::vector<std::vector<std::string>>& rows);

// True for well-formed UTF-8 (no overlong forms, no surrogates, at most U+10FFFF).
bool valid_utf8(std::string_view text);

// The first character of a text that is not empty: a byte and up to three continuation bytes behind it.
std::string_view first_character(std::string_view text);

// True for a character that a terminal might obey: below U+0020, and U+007F-U+009F.
bool is_control(std::string_view character);

// Text from a file for a terminal: '?' for control characters and what is not UTF-8, cut behind 200 bytes.
std::string printable_text(std::string_view text);

}  // namespace train_gpt_v2
