#pragma once
// What happens to a text before SentencePiece sees it, as the Python tools do it (data_and_peers.md §1.7).
//
// normalize_text = the language's own cleaning and the table shared by all; before_sentencepiece = that, then spaces
// around every CJK character, runs of spaces joined, and the whole in upper case (full mapping, as Python's str.upper).
// A text of one character goes to SentencePiece as it is. Text is UTF-8; invalid UTF-8 is the caller's to refuse.
// All functions are pure and may be called from any thread.

#include <string>
#include <string_view>

namespace train_gpt_v2 {

// "amh" -> "am", "cn" -> "zh", "jp" -> "ja"; other names in lower case. "" for what cannot be a language name.
std::string canonical_language(std::string_view name);

// True when the text holds any Ethiopic character or punctuation mark.
bool is_amharic(std::string_view text);

// "am", "ja", "zh" or "en", by the characters found, in this order. "" for an empty text.
std::string language_of_script(std::string_view text);

// `language` "" = by script. Languages without rules of their own (en, de, fr, zh ...) get the shared table alone.
std::string normalize_text(std::string_view text, std::string_view language);

std::string before_sentencepiece(std::string_view text, std::string_view language);

}  // namespace train_gpt_v2
