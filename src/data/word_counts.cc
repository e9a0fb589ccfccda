#include "word_counts.h"

#include <unicode/unistr.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/manifest.h"
#include "train_gpt_v2/data/normalizer.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kMaxFile = 16ull << 30;
constexpr std::size_t kMaxLine = 64 << 10;
constexpr std::size_t kMaxWords = 8'000'000, kMaxWord = 4096;  // different words; bytes of one

// One file of the corpus, line by line into the counts.
class CorpusFile {
 public:
  CorpusFile(const std::string& spec, WordCounts& out)
      : spec_(parse_manifest_spec(spec)), records_(ends_with(spec_.path, ".jsonl")), out_(out) {}

  void read() {
    const MappedFile file(absolute_path(spec_.path), kMaxFile);
    const std::string_view content(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    for (std::size_t begin = 0; begin < content.size();) {
      const std::size_t end = std::min(content.find('\n', begin), content.size());
      const std::string_view line = trim(content.substr(begin, end - begin));
      begin = end + 1;
      ++line_;
      if (line.empty()) continue;
      if (line.size() > kMaxLine)
        throw problem(concat("a line of ", line.size(), " bytes; ", kMaxLine, " are allowed"));
      if (!valid_utf8(line)) throw problem("the line is not UTF-8");
      ++out_.lines;
      if (records_) {
        add_record(line);
      } else {
        add_text(line, spec_.language);
      }
    }
  }

 private:
  Error problem(const std::string& message) const { return Error("TOK012", message).where(spec_.path, line_); }

  void add_record(std::string_view line) {
    const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!record.is_object()) throw problem("the line is no JSON object");
    const auto text_of = [&record](const char* field) {
      const auto found = record.find(field);
      return found != record.end() && found->is_string() ? found->get<std::string>() : std::string();
    };
    const std::string target = text_of("target_text"), text = target.empty() ? text_of("text") : target;
    if (text.empty()) throw problem("the record has neither \"target_text\" nor \"text\"");
    const std::string language = canonical_language(text_of("language"));
    add_text(text, language.empty() ? spec_.language : language);
  }

  void add_text(std::string_view text, const std::string& language) {
    for (const unsigned char c : text) {
      if ((c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7F)
        throw problem("the text holds a control character");
    }
    for (const std::string& word : split(before_sentencepiece(text, language), ' ')) {
      if (word.empty()) continue;
      if (word.size() > kMaxWord)
        throw problem(concat("a word of ", word.size(), " bytes; ", kMaxWord, " are allowed"));
      ++out_.counts[word];
    }
    if (out_.counts.size() > kMaxWords) throw problem(concat("more than ", kMaxWords, " different words"));
  }

  ManifestSpec spec_;
  bool records_;
  WordCounts& out_;
  long line_ = 0;
};

}  // namespace

WordCounts read_word_counts(const std::vector<std::string>& specs) {
  WordCounts words;
  for (const std::string& spec : specs) CorpusFile(spec, words).read();
  if (words.counts.empty()) throw Error("TOK012", "the texts are empty").where(specs.empty() ? "" : specs.front());
  return words;
}

std::u32string characters_of(std::string_view utf8_text) {
  const auto wide =
      icu::UnicodeString::fromUTF8(icu::StringPiece(utf8_text.data(), static_cast<int32_t>(utf8_text.size())));
  std::u32string characters;
  for (int32_t i = 0; i < wide.length(); i = wide.moveIndex32(i, 1)) {
    characters.push_back(static_cast<char32_t>(wide.char32At(i)));
  }
  return characters;
}

std::string utf8(char32_t character) {
  return utf8(std::u32string_view(&character, 1));
}

std::string utf8(std::u32string_view characters) {
  std::string bytes;
  icu::UnicodeString::fromUTF32(reinterpret_cast<const UChar32*>(characters.data()),
                                static_cast<int32_t>(characters.size()))
      .toUTF8String(bytes);
  return bytes;
}

}  // namespace train_gpt_v2
