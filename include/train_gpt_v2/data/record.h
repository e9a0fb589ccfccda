#pragma once
// One record (line) of a pair manifest, as build_gpt_prompt_pairs.py and generate_gpt_pairs.py write it.
//
// RecordParser checks everything that can be checked without opening another file: JSON syntax, UTF-8, depth <= 8, no
// key twice, types, sizes. It never throws for a bad record: the caller decides between stopping and skipping.
// Lengths are -1 and durations negative when absent; strings that are absent or null are empty.
// Ownership: the views of a PairRecord point into the parser and live until its next parse. One parser per thread.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace train_gpt_v2 {

constexpr std::size_t kMaxRecordBytes = 64 * 1024;
constexpr std::size_t kMaxTextCharacters = 2000;

// The arrays of a pair. kEmoVec is the prompt's emotion vector, or the target's where the prompt has none.
enum class ArrayRole : std::uint8_t { kCondition, kEmoVec, kTextIds, kCodes, kFeatures, kEmoFeatures };
inline constexpr std::size_t kArrayRoles = 6;

struct PairRecord {
  std::string_view id, speaker;
  std::string_view target_language, language, prompt_language;
  std::string_view prompt_id, prompt_audio_path, prompt_condition_path, prompt_emo_vec_path, prompt_features_path;
  std::string_view emo_features_path;
  std::string_view target_id, target_audio_path, target_text, target_text_ids_path, target_codes_path;
  std::string_view target_emo_vec_path;
  std::int64_t prompt_condition_len = -1, target_text_len = -1, target_code_len = -1;
  double prompt_duration = -1, target_duration = -1;

  // The language the record itself states, "" when it states none.
  std::string_view stated_language() const;
  // The prompt's emotion vector; the target's stands in where the prompt's is missing (as in the Python trainer).
  std::string_view emo_vec_path() const;
  // The path of one array as the record writes it, "" when it names none.
  std::string_view array_path(ArrayRole role) const;
};

// What is wrong with a record, before file and line are known.
struct RecordProblem {
  std::string field;    // "" when the line as a whole is at fault
  std::string value;    // shortened
  std::string message;  // one line
  std::string fix;
  bool single_sample = false;  // a record of train_manifest.jsonl instead of pairs
};

class RecordParser {
 public:
  RecordParser();
  ~RecordParser();
  RecordParser(RecordParser&&) noexcept;
  RecordParser& operator=(RecordParser&&) noexcept;

  // `line` without its newline; `readable` = bytes that may be read from line.data() on (at least line.size(); the
  // line is copied where fewer than 64 follow it). False: `problem` says why and `record` is not to be used.
  bool parse(std::string_view line, std::size_t readable, PairRecord& record, RecordProblem& problem);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A value for a message: at most 80 bytes, control characters replaced, cut at a character.
std::string shown_value(std::string_view value);

}  // namespace train_gpt_v2
