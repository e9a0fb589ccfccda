#pragma once
// The words of a corpus and how often they occur, as they reach SentencePiece. Private to the data layer.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

struct WordCounts {
  std::map<std::string, std::uint64_t> counts;
  std::uint64_t lines = 0;
};

// Reads text files, one utterance a line, and manifests (*.jsonl: target_text, else text, of every record), each with
// an optional ::language. Every utterance goes through before_sentencepiece and is cut at spaces. Errors: TOK012 with
// file and line (not UTF-8, control characters, too long, no record, no text at all, too much).
WordCounts read_word_counts(const std::vector<std::string>& specs);

std::u32string characters_of(std::string_view utf8_text);
std::string utf8(char32_t character);
std::string utf8(std::u32string_view characters);

}  // namespace train_gpt_v2
