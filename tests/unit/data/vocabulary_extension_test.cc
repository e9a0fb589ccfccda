// `extend-vocab` on the fixtures' base model: what is appended, what must not change, what is refused.

#include "train_gpt_v2/data/vocabulary_extension.h"

#include <gmock/gmock.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <nlohmann/json.hpp>

#include "support/error_of.h"
#include "support/test_files.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/data/tokenizer.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using testing::TemporaryFolder;

const std::string kBase = data_path("fixtures/tokenizer/base.model");

std::string utf8(char32_t c) {
  std::string bytes;
  icu::UnicodeString(static_cast<UChar32>(c)).toUTF8String(bytes);
  return bytes;
}

class VocabularyExtension : public ::testing::Test {
 protected:
  ExtensionRequest request(std::int64_t size = 900) const {
    return {kBase,
            {data_path("fixtures/data/train_pairs.jsonl") + "::am", data_path("fixtures/data/val_pairs.jsonl")},
            size,
            folder_.file("extended.model")};
  }

  std::string code_of(const ExtensionRequest& asked) const {
    try {
      extend_vocabulary(asked);
    } catch (const Error& error) {
      EXPECT_FALSE(file_exists(asked.output));
      return error.code();
    }
    return "";
  }

  TemporaryFolder folder_;
};

TEST_F(VocabularyExtension, EveryCharacterOfTheScriptsHasAPiece) {
  const ExtensionReport report = extend_vocabulary(request());
  const Tokenizer extended(request().output), base(kBase);
  EXPECT_EQ(extended.size(), 900);
  EXPECT_EQ(report.base_pieces + report.characters + report.merges, 900);
  EXPECT_GT(report.merges, 0);
  EXPECT_NO_THROW(check_extension(extended, base));
  std::int64_t assigned = 0;
  const auto covered = [&](char32_t c) {
    for (const std::string& text :
         {utf8(c), utf8(c) + utf8(c), utf8(0x1230) + utf8(c) + " " + utf8(c) + utf8(0x1230)}) {
      for (const char* language : {"am", ""}) {
        EXPECT_THAT(extended.encode(text, language), ::testing::Not(::testing::Contains(Tokenizer::kUnknown))) << text;
      }
    }
  };
  for (const auto& [first, last] :
       {std::pair<char32_t, char32_t>{0x1200, 0x139F}, {0x2D80, 0x2DDF}, {0xAB00, 0xAB2F}}) {
    for (char32_t c = first; c <= last; ++c) {
      if (u_charType(static_cast<UChar32>(c)) == U_UNASSIGNED) continue;
      ++assigned;
      covered(c);
    }
  }
  EXPECT_EQ(assigned, report.ethiopic);
  EXPECT_GT(assigned, 480);  // 495 of Unicode 15
  for (char32_t c = 0x21; c < 0x7F; ++c) {
    if (u_isalpha(static_cast<UChar32>(c)) == 0) covered(c);
  }
  for (const char32_t c : std::u32string_view(U"«»…“”’")) covered(c);
}

TEST_F(VocabularyExtension, TheBaseFileIsItsBeginning) {
  extend_vocabulary(request());
  const std::string before = read_file(kBase, 1 << 24), after = read_file(request().output, 1 << 24);
  EXPECT_EQ(after.substr(0, before.size()), before);
}

TEST_F(VocabularyExtension, SameInputSameBytes) {
  extend_vocabulary(request());
  const std::string first = read_file(request().output, 1 << 24);
  extend_vocabulary(request());
  EXPECT_EQ(read_file(request().output, 1 << 24), first);
}

TEST_F(VocabularyExtension, TheCorpusHasNoUnknownPieceAndFewerPieces) {
  const ExtensionReport report = extend_vocabulary(request());
  const Tokenizer extended(request().output);
  EXPECT_GT(report.unknown_before, 0u);
  const auto cases = nlohmann::json::parse(read_file(data_path("fixtures/tokenizer/cases.json"), 1 << 24))["cases"];
  const std::string lines = read_file(data_path("fixtures/data/train_pairs.jsonl"), 1 << 24);
  std::size_t merged = 0, texts = 0;
  for (std::size_t begin = 0; begin < lines.size(); begin = lines.find('\n', begin) + 1) {
    const auto pair = nlohmann::json::parse(lines.substr(begin, lines.find('\n', begin) - begin));
    const auto ids = extended.encode(pair.at("target_text").get<std::string>(), "am");
    EXPECT_THAT(ids, ::testing::Not(::testing::Contains(Tokenizer::kUnknown)));
    merged += std::any_of(ids.begin(), ids.end(), [&](std::int32_t id) { return id >= 160 + report.characters; });
    ++texts;
  }
  EXPECT_EQ(merged, texts);  // the merges are found and used
}

// Texts of the base language, of the base's own characters in any order: same ids, with the new pieces and without.
TEST_F(VocabularyExtension, TextsOfTheBaseAreSplitAsBefore) {
  const ExtensionReport report = extend_vocabulary(request());
  EXPECT_GT(report.segmentations_compared, 10'000u);
  const Tokenizer extended(request().output), base(kBase);
  RandomStream random(5, 5);
  int compared = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (int length = 0; length < 40; ++length)
      text += static_cast<char>(random.below(5) == 0 ? ' ' : 'A' + random.below(26));
    const auto before = base.encode(text, "en");
    if (std::find(before.begin(), before.end(), Tokenizer::kUnknown) != before.end()) continue;
    ++compared;
    EXPECT_EQ(extended.encode(text, "en"), before) << text;
  }
  EXPECT_GT(compared, 500);
}

TEST_F(VocabularyExtension, RefusesSizesThatCannotBe) {
  EXPECT_EQ(code_of(request(160)), "TOK011");
  EXPECT_EQ(code_of(request(-1)), "TOK011");
  EXPECT_EQ(code_of(request(100'001)), "TOK011");
  EXPECT_EQ(code_of(request(200)), "TOK011");     // not even the characters
  EXPECT_EQ(code_of(request(99'999)), "TOK011");  // more merges than the texts have
}

TEST_F(VocabularyExtension, RefusesTextsThatAreNone) {
  const auto with = [&](const std::string& name, const std::string& content) {
    ExtensionRequest asked = request();
    asked.texts = {folder_.write(name, content)};
    return code_of(asked);
  };
  EXPECT_EQ(with("a.txt", ""), "TOK012");
  EXPECT_EQ(with("a.txt", "\n \n\t\n"), "TOK012");
  EXPECT_EQ(with("a.txt", "ሰላም\n\xE1\x88\n"), "TOK012");  // cut off
  EXPECT_EQ(with("a.txt", std::string("ሰላም\0", 10)), "TOK012");
  EXPECT_EQ(with("a.txt", "ሰላም \x01\n"), "TOK012");
  EXPECT_EQ(with("a.txt", std::string(70'000, 'x')), "TOK012");
  EXPECT_EQ(with("a.txt", std::string(5'000, 'x')), "TOK012");  // one word
  EXPECT_EQ(with("a.jsonl", "{\"text\": \"ሰላም\"}\nno json\n"), "TOK012");
  EXPECT_EQ(with("a.jsonl", "{\"text\": 5}\n"), "TOK012");
  EXPECT_EQ(with("a.jsonl", "[[[[[[[[\n"), "TOK012");
  ExtensionRequest missing = request();
  missing.texts = {folder_.file("nothing.txt")};
  EXPECT_EQ(code_of(missing), "IO001");
}

TEST_F(VocabularyExtension, RefusesModelsThatAreNone) {
  const std::string whole = read_file(kBase, 1 << 24);
  ExtensionRequest asked = request();
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{1}, std::size_t{100}, whole.size() / 2, whole.size() - 1}) {
    asked.base = folder_.write("cut.model", whole.substr(0, size));
    EXPECT_EQ(code_of(asked), "TOK001") << size;
  }
  // trainer_spec.model_type 1 behind the other fields makes it a unigram model.
  asked.base = folder_.write("unigram.model", whole + std::string("\x12\x02\x18\x01"));
  EXPECT_EQ(code_of(asked), "TOK010");
  // <s>, </s> and <unk> alone, BPE.
  asked.base = folder_.write("bare.model", std::string("\x0A\x07\x0A\x03<s>\x18\x03\x0A\x08\x0A\x04</s>\x18\x03"
                                                       "\x0A\x09\x0A\x05<unk>\x18\x02\x12\x02\x18\x02"));
  const Error bare = testing::error_of([&] { extend_vocabulary(asked); });
  EXPECT_EQ(bare.message(), "this model cannot be extended: it has no text pieces");
}

// A base without a piece for the beginning of a word, which no merge of these few words makes good.
TEST_F(VocabularyExtension, WordsThatKeepAnUnknownPieceAreNamed) {
  const std::string word_start = "\x0A\x03\xE2\x96\x81";
  std::string base = read_file(kBase, 1 << 24);
  ASSERT_NE(base.find(word_start), std::string::npos);
  base.replace(base.find(word_start), word_start.size(), "\x0A\x03☃");
  ExtensionRequest asked = request(200);
  asked.base = folder_.write("no_word_start.model", base);
  asked.texts = {folder_.write("a.txt", "ሰላም ለሁላችሁ\nሰላም\n")};
  const std::string need = "the characters alone need ";
  const std::string small = testing::error_of([&] { extend_vocabulary(asked); }).message();
  ASSERT_THAT(small, ::testing::StartsWith(need));
  asked.size = std::stoll(small.substr(need.size()));
  const Error error = testing::error_of([&] { extend_vocabulary(asked); });
  EXPECT_EQ(error.code(), "TOK013") << error.report();
  EXPECT_EQ(error.status(), ExitStatus::kBadData);
  EXPECT_EQ(error.message(), "2 words would still hold an unknown piece");
  EXPECT_THAT(error.details(), ::testing::UnorderedElementsAre("ሰላም", "ለሁላችሁ"));
  EXPECT_EQ(error.hint(), "clean these words from the texts");
  EXPECT_FALSE(file_exists(asked.output));
}

// A corpus of characters that nobody planned for: every one gets a piece, and they are named.
TEST_F(VocabularyExtension, UnplannedCharactersAreCoveredAndNamed) {
  ExtensionRequest asked = request(750);
  asked.texts.push_back(folder_.write("more.txt", "ሰላም ЖИЗНЬ 🙂\n"));
  const ExtensionReport report = extend_vocabulary(asked);
  EXPECT_THAT(report.unexpected, ::testing::IsSupersetOf({"Ж", "Ь", "🙂"}));
  EXPECT_THAT(Tokenizer(asked.output).encode("🙂 ЖЖ", "am"),
              ::testing::Not(::testing::Contains(Tokenizer::kUnknown)));
}

}  // namespace
}  // namespace train_gpt_v2
