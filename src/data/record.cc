#include "train_gpt_v2/data/record.h"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kMaxDepth = 8;
constexpr std::size_t kMaxIdBytes = 512;
constexpr std::size_t kMaxPathBytes = 4096;
constexpr std::int64_t kMaxLength = 1'000'000'000;

enum class Kind { kName, kPath, kText, kLength, kDuration, kSingle };

struct Field {
  std::string_view name;
  Kind kind;
  std::string_view PairRecord::*text = nullptr;
  std::int64_t PairRecord::*length = nullptr;
  double PairRecord::*duration = nullptr;
};

// The order in which the Python tools write them, so that the next field is nearly always the expected one.
constexpr auto kFields = std::to_array<Field>({
    {"id", Kind::kName, &PairRecord::id},
    {"speaker", Kind::kName, &PairRecord::speaker},
    {"prompt_id", Kind::kName, &PairRecord::prompt_id},
    {"prompt_audio_path", Kind::kPath, &PairRecord::prompt_audio_path},
    {"prompt_condition_path", Kind::kPath, &PairRecord::prompt_condition_path},
    {"prompt_condition_len", Kind::kLength, nullptr, &PairRecord::prompt_condition_len},
    {"prompt_emo_vec_path", Kind::kPath, &PairRecord::prompt_emo_vec_path},
    {"prompt_duration", Kind::kDuration, nullptr, nullptr, &PairRecord::prompt_duration},
    {"target_id", Kind::kName, &PairRecord::target_id},
    {"target_audio_path", Kind::kPath, &PairRecord::target_audio_path},
    {"target_text", Kind::kText, &PairRecord::target_text},
    {"target_text_ids_path", Kind::kPath, &PairRecord::target_text_ids_path},
    {"target_text_len", Kind::kLength, nullptr, &PairRecord::target_text_len},
    {"target_codes_path", Kind::kPath, &PairRecord::target_codes_path},
    {"target_code_len", Kind::kLength, nullptr, &PairRecord::target_code_len},
    {"target_emo_vec_path", Kind::kPath, &PairRecord::target_emo_vec_path},
    {"target_language", Kind::kName, &PairRecord::target_language},
    {"language", Kind::kName, &PairRecord::language},
    {"prompt_language", Kind::kName, &PairRecord::prompt_language},
    {"prompt_features_path", Kind::kPath, &PairRecord::prompt_features_path},
    {"emo_features_path", Kind::kPath, &PairRecord::emo_features_path},
    {"target_duration", Kind::kDuration, nullptr, nullptr, &PairRecord::target_duration},
    // Fields of single-sample manifests: only remembered, to say what kind of file this is.
    {"text_ids_path", Kind::kSingle},
    {"codes_path", Kind::kSingle},
    {"condition_path", Kind::kSingle},
    {"audio_path", Kind::kSingle},
});
static_assert(kFields.size() <= 32);

constexpr std::size_t kUnknownField = kFields.size();

std::size_t field_number(std::string_view key) {
  for (std::size_t i = 0; i < kFields.size(); ++i) {
    if (kFields[i].name == key) return i;
  }
  return kUnknownField;
}

std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

bool has_control_characters(std::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; });
}

void fill(RecordProblem& problem, std::string_view field, std::string_view value, std::string message,
          std::string fix) {
  problem = {std::string(field), shown_value(value), std::move(message), std::move(fix), false};
}

// False with `problem` filled when the string does not fit its field.
bool check_string(const Field& field, std::string_view value, RecordProblem& problem) {
  switch (field.kind) {
    case Kind::kText:
      if (value.size() > kMaxTextCharacters && characters(value) > kMaxTextCharacters) {
        fill(problem, field.name, value, concat("the text has ", characters(value), " characters; 2,000 are allowed"),
             "split the utterance, or remove the record");
        return false;
      }
      return true;
    case Kind::kPath:
      if (value.size() > kMaxPathBytes || value.find('\0') != std::string_view::npos) {
        fill(problem, field.name, value, "a path is at most 4,096 bytes long and holds no zero byte",
             "correct the path");
        return false;
      }
      return true;
    default:
      if (value.size() > kMaxIdBytes || has_control_characters(value)) {
        fill(problem, field.name, value, "a name is at most 512 bytes long and holds no control character",
             "correct the name");
        return false;
      }
      return true;
  }
}

bool read_value(const Field& field, const simdjson::dom::element& element, PairRecord& record, RecordProblem& problem) {
  if (element.is_null()) return true;
  if (field.text) {
    std::string_view value;
    if (element.get_string().get(value) != simdjson::SUCCESS) {
      fill(problem, field.name, simdjson::minify(element), "a string is expected here", "write it in quotes");
      return false;
    }
    record.*field.text = value;
    return check_string(field, value, problem);
  }
  if (field.length) {
    std::int64_t value = 0;
    if (element.get_int64().get(value) != simdjson::SUCCESS || value < 0 || value > kMaxLength) {
      fill(problem, field.name, simdjson::minify(element), "a length is a whole number, 0 or more",
           "write the true length, or remove the field: it is then read from the .npy header");
      return false;
    }
    record.*field.length = value;
    return true;
  }
  double value = 0;
  if (element.get_double().get(value) != simdjson::SUCCESS || value < 0) {
    fill(problem, field.name, simdjson::minify(element), "a duration is a number of seconds, 0 or more",
         "correct it, or write null");
    return false;
  }
  record.*field.duration = value;
  return true;
}

std::string syntax_fix(simdjson::error_code code, std::string_view line) {
  if (code == simdjson::UTF8_ERROR) return "write the file as UTF-8";
  if (code == simdjson::DEPTH_ERROR) return "records are flat objects; at most 8 levels are read";
  for (const std::string_view word : {"NaN", "Infinity"}) {  // Python's json module writes them
    if (line.find(word) != std::string_view::npos) return "JSON knows no NaN and no Infinity: write null";
  }
  return "each line holds one complete JSON object";
}

}  // namespace

std::string_view PairRecord::stated_language() const {
  if (!target_language.empty()) return target_language;
  return language.empty() ? prompt_language : language;
}

std::string_view PairRecord::emo_vec_path() const {
  return prompt_emo_vec_path.empty() ? target_emo_vec_path : prompt_emo_vec_path;
}

std::string_view PairRecord::array_path(ArrayRole role) const {
  switch (role) {
    case ArrayRole::kCondition:
      return prompt_condition_path;
    case ArrayRole::kEmoVec:
      return emo_vec_path();
    case ArrayRole::kTextIds:
      return target_text_ids_path;
    case ArrayRole::kCodes:
      return target_codes_path;
    case ArrayRole::kFeatures:
      return prompt_features_path;
    case ArrayRole::kEmoFeatures:
      return emo_features_path;
  }
  return {};
}

std::string shown_value(std::string_view value) {
  constexpr std::size_t kShown = 80;
  std::string shown(value.substr(0, kShown));
  if (value.size() > kShown) {
    while (!shown.empty() && (static_cast<unsigned char>(shown.back()) & 0xC0) == 0x80) shown.pop_back();
    if (!shown.empty() && (static_cast<unsigned char>(shown.back()) & 0x80)) shown.pop_back();
    shown += "...";
  }
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return valid_utf8(shown) ? shown : std::string("(not UTF-8)");
}

struct RecordParser::Impl {
  simdjson::dom::parser parser;
  std::vector<char> padded;                  // the last lines of a file, copied to have room behind them
  std::vector<std::string_view> other_keys;  // unknown keys of the record at hand

  Impl() {
    if (parser.allocate(kMaxRecordBytes, kMaxDepth) != simdjson::SUCCESS) throw std::bad_alloc();
  }

  bool read_object(const simdjson::dom::object& object, PairRecord& record, RecordProblem& problem);
};

bool RecordParser::Impl::read_object(const simdjson::dom::object& object, PairRecord& record, RecordProblem& problem) {
  std::uint32_t seen = 0;
  std::size_t expected = 0;
  other_keys.clear();
  for (const auto [key, element] : object) {
    std::size_t number = expected < kFields.size() && kFields[expected].name == key ? expected : field_number(key);
    bool twice = false;
    if (number == kUnknownField) {
      twice = std::find(other_keys.begin(), other_keys.end(), key) != other_keys.end();
      other_keys.push_back(key);
    } else {
      twice = (seen >> number) & 1U;
      seen |= 1U << number;
      expected = number + 1;
    }
    if (twice) {
      fill(problem, key, "", "this key stands twice in one record", "keep one of the two");
      return false;
    }
    if (other_keys.size() > 256) {
      fill(problem, "", "", "the record has more than 256 unknown keys", "this is not a pair manifest");
      return false;
    }
    if (number != kUnknownField && kFields[number].kind != Kind::kSingle &&
        !read_value(kFields[number], element, record, problem)) {
      return false;
    }
  }
  const std::uint32_t single_mask = (~0U << field_number("text_ids_path")) & ((1ULL << kFields.size()) - 1);
  if ((seen & single_mask) && record.target_codes_path.empty() && record.target_id.empty()) {
    fill(problem, "", record.id,
         "this is a manifest of single clips (as preprocess_data.py writes it), not of prompt/target pairs",
         "make pairs with build_gpt_prompt_pairs.py: with prompt = target the model learns to copy the prompt's sound");
    problem.single_sample = true;
    return false;
  }
  return true;
}

RecordParser::RecordParser() : impl_(std::make_unique<Impl>()) {}
RecordParser::~RecordParser() = default;
RecordParser::RecordParser(RecordParser&&) noexcept = default;
RecordParser& RecordParser::operator=(RecordParser&&) noexcept = default;

bool RecordParser::parse(std::string_view line, std::size_t readable, PairRecord& record, RecordProblem& problem) {
  record = PairRecord{};
  if (line.size() > kMaxRecordBytes) {
    fill(problem, "", line, concat("the line has ", line.size(), " bytes; 65,536 are allowed"),
         "each line holds one record; long arrays belong into .npy files");
    return false;
  }
  const char* data = line.data();
  if (readable < line.size() + simdjson::SIMDJSON_PADDING) {
    impl_->padded.assign(line.begin(), line.end());
    impl_->padded.resize(line.size() + simdjson::SIMDJSON_PADDING, ' ');
    data = impl_->padded.data();
  }
  simdjson::dom::element root;
  const auto parsed = impl_->parser.parse(reinterpret_cast<const std::uint8_t*>(data), line.size(), false).get(root);
  if (parsed != simdjson::SUCCESS) {
    fill(problem, "", line, concat("not a valid JSON record: ", simdjson::error_message(parsed)),
         syntax_fix(parsed, line));
    return false;
  }
  simdjson::dom::object object;
  if (root.get_object().get(object) != simdjson::SUCCESS) {
    fill(problem, "", line, "a record is a JSON object", "each line holds one {...}");
    return false;
  }
  if (!impl_->read_object(object, record, problem)) return false;
  if (record.id.empty()) {
    fill(problem, "id", "", "the record has no id", "every pair needs an id that is unique in its file");
    return false;
  }
  if (record.target_codes_path.empty()) {
    fill(problem, "target_codes_path", "", "the record names no codes file", "add target_codes_path");
    return false;
  }
  return true;
}

}  // namespace train_gpt_v2
