#include "train_gpt_v2/config/json_text.h"

#include <charconv>
#include <cmath>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {

std::string json_pointer(const std::string& parent, std::string_view token) {
  std::string pointer = parent + "/";
  for (const char c : token) {
    if (c == '~') {
      pointer += "~0";
    } else if (c == '/') {
      pointer += "~1";
    } else {
      pointer += c;
    }
  }
  return pointer;
}

namespace {

using Json = nlohmann::ordered_json;

// A recursive-descent reader; the depth limit bounds the recursion.
class Reader {
 public:
  Reader(std::string_view text, const std::string& origin) : text_(text), origin_(origin) {}

  LocatedJson read() {
    if (text_.size() > kMaxConfigBytes) {
      throw Error("CFG002", concat("a configuration of ", human_bytes(text_.size()), " is not read"))
          .where(origin_)
          .fix(concat("the limit is ", human_bytes(kMaxConfigBytes)));
    }
    if (starts_with(text_, "\xEF\xBB\xBF")) text_.remove_prefix(3);  // editors on Windows put it there
    if (!valid_utf8(text_)) fail_encoding();
    skip_space();
    result_.value = value("", 1);
    skip_space();
    if (!at_end()) fail("something follows after the end of the JSON value");
    return std::move(result_);
  }

 private:
  bool at_end() const { return next_ >= text_.size(); }
  char peek() const { return at_end() ? '\0' : text_[next_]; }

  void advance() {
    const char c = text_[next_++];
    if (c == '\n') {
      ++here_.line;
      here_.column = 1;
    } else if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) {
      ++here_.column;
    }
  }

  [[noreturn]] void fail(const std::string& message, const std::string& hint = "") { fail_at(here_, message, hint); }

  [[noreturn]] void fail_at(TextPosition place, const std::string& message, const std::string& hint = "") {
    Error error = Error("CFG002", message).where(origin_, place.line, place.column);
    if (hint.empty()) throw error;
    throw std::move(error).fix(hint);
  }

  [[noreturn]] void fail_encoding() {
    std::string_view rest = text_;
    long line = 1;
    for (std::size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n'), ++line) {
      if (!valid_utf8(rest.substr(0, end))) break;
      rest.remove_prefix(end + 1);
    }
    throw Error("CFG002", "the text is not valid UTF-8").where(origin_, line).fix("save the file as UTF-8");
  }

  void skip_space() {
    while (!at_end()) {
      const char c = peek();
      if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
        advance();
      } else if (c == '/' && text_.substr(next_, 2) == "//") {
        while (!at_end() && peek() != '\n') advance();
      } else if (c == '/' && text_.substr(next_, 2) == "/*") {
        const TextPosition start = here_;
        const std::size_t end = text_.find("*/", next_ + 2);
        if (end == std::string_view::npos) fail_at(start, "this comment is never closed", "end it with */");
        while (next_ < end + 2) advance();
      } else {
        return;
      }
    }
  }

  Json value(const std::string& pointer, int depth) {
    if (depth > kMaxConfigDepth) fail(concat("nested deeper than ", kMaxConfigDepth, " levels"));
    result_.values[pointer] = here_;
    const char c = peek();
    if (c == '{') return object(pointer, depth);
    if (c == '[') return array(pointer, depth);
    if (c == '"') return string();
    if (c == '-' || (c >= '0' && c <= '9')) return number();
    return word();
  }

  Json object(const std::string& pointer, int depth) {
    Json result = Json::object();
    advance();
    skip_space();
    if (peek() == '}') {
      advance();
      return result;
    }
    while (true) {
      const TextPosition place = here_;
      if (peek() == '}') fail("a comma stands before this brace", "remove the comma after the last member");
      if (peek() != '"') fail("the name of a member is expected here", "names are written in double quotes");
      const std::string name = string();
      skip_space();
      if (peek() != ':') fail(concat("a colon is expected after \"", name, "\""));
      advance();
      skip_space();
      const std::string member = json_pointer(pointer, name);
      if (result.contains(name)) {
        result_.repeated_keys.push_back(member);
        result_.repeated_at.push_back(place);
      }
      result_.keys[member] = place;
      result[name] = value(member, depth + 1);
      skip_space();
      if (peek() == '}') break;
      if (peek() != ',') fail("a comma or a closing brace is expected here");
      advance();
      skip_space();
    }
    advance();
    return result;
  }

  Json array(const std::string& pointer, int depth) {
    Json result = Json::array();
    advance();
    skip_space();
    if (peek() == ']') {
      advance();
      return result;
    }
    while (true) {
      if (peek() == ']') fail("a comma stands before this bracket", "remove the comma after the last element");
      result.push_back(value(json_pointer(pointer, std::to_string(result.size())), depth + 1));
      skip_space();
      if (peek() == ']') break;
      if (peek() != ',') fail("a comma or a closing bracket is expected here");
      advance();
      skip_space();
    }
    advance();
    return result;
  }

  std::string string() {
    const TextPosition start = here_;
    advance();
    std::string result;
    while (true) {
      if (at_end() || peek() == '\n') fail_at(start, "this string is never closed", "end it with a double quote");
      const char c = peek();
      if (static_cast<unsigned char>(c) < 0x20)
        fail("a control character stands in a string", "write it as \\t or \\u0009");
      if (c == '"') {
        advance();
        return result;
      }
      if (c == '\\') {
        escape(result);
      } else {
        result += c;
        advance();
      }
    }
  }

  void escape(std::string& result) {
    const TextPosition start = here_;
    advance();
    const char c = peek();
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    const std::size_t known = c == '\0' ? std::string_view::npos : kNames.find(c);
    if (known != std::string_view::npos) {
      advance();
      result += kMeanings[known];
      return;
    }
    if (c != 'u') fail_at(start, "unknown escape in a string", "write \\\\ for a backslash");
    advance();
    std::uint32_t point = hex4(start);
    if (point >= 0xD800 && point < 0xDC00) {
      if (text_.substr(next_, 2) != "\\u") fail_at(start, "half of a surrogate pair stands alone");
      advance();
      advance();
      const std::uint32_t low = hex4(start);
      if (low < 0xDC00 || low > 0xDFFF) fail_at(start, "half of a surrogate pair stands alone");
      point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    } else if (point >= 0xDC00 && point < 0xE000) {
      fail_at(start, "half of a surrogate pair stands alone");
    }
    if (point == 0) fail_at(start, "a zero character cannot stand in a string");
    append_utf8(point, result);
  }

  std::uint32_t hex4(TextPosition start) {
    std::uint32_t point = 0;
    const std::string_view digits = text_.substr(next_, 4);
    const auto [end, status] = std::from_chars(digits.data(), digits.data() + digits.size(), point, 16);
    if (status != std::errc() || end != digits.data() + 4) fail_at(start, "\\u needs four hexadecimal digits");
    for (int i = 0; i < 4; ++i) advance();
    return point;
  }

  static void append_utf8(std::uint32_t point, std::string& result) {
    const auto tail = [&result](std::uint32_t bits) { result += static_cast<char>(0x80 | (bits & 0x3F)); };
    if (point < 0x80) {
      result += static_cast<char>(point);
    } else if (point < 0x800) {
      result += static_cast<char>(0xC0 | (point >> 6));
      tail(point);
    } else if (point < 0x10000) {
      result += static_cast<char>(0xE0 | (point >> 12));
      tail(point >> 6);
      tail(point);
    } else {
      result += static_cast<char>(0xF0 | (point >> 18));
      tail(point >> 12);
      tail(point >> 6);
      tail(point);
    }
  }

  Json number() {
    const TextPosition start = here_;
    const std::size_t first = next_;
    const auto digits = [this, start] {
      if (peek() < '0' || peek() > '9') fail_at(start, "this is not a number", "a digit is missing");
      while (peek() >= '0' && peek() <= '9') advance();
    };
    bool real = false;
    if (peek() == '-') advance();
    const bool zero = peek() == '0';
    digits();
    const std::size_t lead = text_[first] == '-' ? 1 : 0;
    if (zero && next_ - first > 1 + lead) fail_at(start, "a number cannot begin with 0", "write it without the zero");
    if (peek() == '.') {
      real = true;
      advance();
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      real = true;
      advance();
      if (peek() == '+' || peek() == '-') advance();
      digits();
    }
    const std::string_view written = text_.substr(first, next_ - first);
    const char* const end = written.data() + written.size();
    if (!real) {
      std::int64_t integer = 0;
      if (std::from_chars(written.data(), end, integer).ec != std::errc()) {
        fail_at(start, concat(written, " does not fit into 64 bits"));
      }
      return integer;
    }
    double result = 0;
    const std::errc status = std::from_chars(written.data(), end, result).ec;
    if (status != std::errc() || !std::isfinite(result)) {
      fail_at(start, concat(written, " is outside the range of a double"));
    }
    return result;
  }

  Json word() {
    const TextPosition start = here_;
    const std::size_t first = next_;
    while ((peek() >= 'a' && peek() <= 'z') || (peek() >= 'A' && peek() <= 'Z') || peek() == '_') advance();
    const std::string_view written = text_.substr(first, next_ - first);
    if (written == "true") return true;
    if (written == "false") return false;
    if (written == "null") return nullptr;
    if (written.empty() && at_end()) fail_at(start, "the text ends where a value is expected");
    if (written.empty()) fail_at(start, "a value is expected here");
    if (written == "None") fail_at(start, "None is not JSON", "write null");
    if (written == "True" || written == "False") fail_at(start, concat(written, " is not JSON"), "write true or false");
    if (written == "NaN" || written == "Infinity") fail_at(start, concat(written, " is not a JSON number"));
    fail_at(start, concat("\"", written.substr(0, 40), "\" is not a JSON value"), "text is written in double quotes");
  }

  std::string_view text_;
  const std::string& origin_;
  std::size_t next_ = 0;
  TextPosition here_{1, 1};
  LocatedJson result_;
};

}  // namespace

LocatedJson parse_json_text(std::string_view text, const std::string& origin) {
  return Reader(text, origin).read();
}

}  // namespace train_gpt_v2
