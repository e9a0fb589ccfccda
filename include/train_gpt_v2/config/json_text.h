#pragma once
// JSON with // and /* */ comments, read into a value that knows where each part of it stood in the text.
//
// Strict otherwise (RFC 8259): valid UTF-8, no trailing commas, finite numbers, integers within 64 bits. Bounded: text
// of at most kMaxConfigBytes, nesting of at most kMaxConfigDepth. Lines and columns count from 1, columns in
// characters. Errors: CFG002 at the first place where the text is not JSON. Repeated keys do not stop the reading; they
// are listed.

#include <cstddef>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

inline constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 20;
inline constexpr int kMaxConfigDepth = 16;

struct TextPosition {
  long line = 0;
  long column = 0;
};

struct LocatedJson {
  nlohmann::ordered_json value;
  std::map<std::string, TextPosition> keys;    // JSON pointer of a member -> where its name stands
  std::map<std::string, TextPosition> values;  // JSON pointer -> where the value begins; "" = the whole
  std::vector<std::string> repeated_keys;      // JSON pointers; the later value is kept
  std::vector<TextPosition> repeated_at;       // where, same order
};

// `origin` is the name used in errors.
LocatedJson parse_json_text(std::string_view text, const std::string& origin);

// Appends one token to a JSON pointer, escaped.
std::string json_pointer(const std::string& parent, std::string_view token);

}  // namespace train_gpt_v2
