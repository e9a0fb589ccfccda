#include "train_gpt_v2/data/tokenizer.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "support/error_of.h"
#include "support/test_files.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/normalizer.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using namespace std::string_literals;

TEST(Tokenizer, AgreesWithTheReferenceOnEveryCase) {
  const Tokenizer base(data_path("fixtures/tokenizer/base.model"));
  const Tokenizer extended(data_path("fixtures/tokenizer/extended.model"));
  EXPECT_EQ(base.size(), 160);
  EXPECT_EQ(extended.size(), 360);
  const auto cases = nlohmann::json::parse(read_file(data_path("fixtures/tokenizer/cases.json"), 1 << 24))["cases"];
  ASSERT_GT(cases.size(), 50u);
  for (const auto& example : cases) {
    const std::string text = example["text"];
    SCOPED_TRACE(text);
    EXPECT_EQ(is_amharic(text), example["language_auto_is_amharic"].get<bool>());
    EXPECT_EQ(normalize_text(text, "am"), example["normalised_am"].get<std::string>());
    EXPECT_EQ(before_sentencepiece(text, "am"), example["before_sentencepiece"].get<std::string>());
    for (const auto& [name, tokenizer] : {std::pair{"base", &base}, std::pair{"extended", &extended}}) {
      const auto ids = tokenizer->encode(text, "am");
      EXPECT_EQ(ids, example[name]["ids"].get<std::vector<std::int32_t>>());
      // Pieces of unknown characters keep the text in the reference; ours name the piece of the id.
      const auto pieces = example[name]["pieces"].get<std::vector<std::string>>();
      const auto ours = tokenizer->pieces(ids);
      ASSERT_EQ(ours.size(), pieces.size());
      for (std::size_t i = 0; i < ids.size(); ++i) {
        EXPECT_TRUE(ids[i] == Tokenizer::kUnknown || ours[i] == pieces[i]) << ours[i];
      }
    }
  }
}

// --- damaged models --------------------------------------------------------------------------------------------------

std::string base_model() {
  return read_file(data_path("fixtures/tokenizer/base.model"), 1 << 20);
}

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

std::string field(int number, const std::string& content) {
  return varint(static_cast<std::uint64_t>(number) << 3 | 2) + varint(content.size()) + content;
}

std::string piece(const std::string& text) {
  return field(1, field(1, text));
}

// The Error report of opening these bytes, "" when they open.
std::string refusal(const std::string& bytes) {
  const testing::TemporaryFolder folder;
  try {
    const Tokenizer tokenizer(folder.write("t.model", bytes));
    tokenizer.encode("ሰላም ለሁላችሁ! Straße ﬁ 3", "am");
    return "";
  } catch (const Error& error) {
    EXPECT_THAT(error.code(), ::testing::StartsWith("TOK"));
    EXPECT_FALSE(error.hint().empty());
    return error.report();
  }
}

TEST(Tokenizer, ExtensionKeepsEveryBasePiece) {
  const Tokenizer base(data_path("fixtures/tokenizer/base.model")),
      extended(data_path("fixtures/tokenizer/extended.model"));
  check_extension(extended, base);
  const Error error = testing::error_of([&] { check_extension(base, extended); });
  EXPECT_EQ(error.code(), "TOK004");
  EXPECT_EQ(error.status(), ExitStatus::kConfig);
  EXPECT_EQ(error.message(),
            concat("data.tokenizer has ", base.size(), " pieces, data.base_tokenizer ", extended.size()));
  EXPECT_EQ(error.place(), base.path());
  EXPECT_THAT(error.hint(), ::testing::HasSubstr("the one it extends under data.base_tokenizer"));
}

TEST(Tokenizer, AnExtensionMovesNoPiece) {
  const testing::TemporaryFolder folder;
  const Tokenizer base(folder.write("base.model", base_model() + piece("one") + piece("two") + piece("three"))),
      moved(folder.write("moved.model", base_model() + piece("one") + piece("three") + piece("two") + piece("four")));
  const Error error = testing::error_of([&] { check_extension(moved, base); });
  EXPECT_EQ(error.code(), "TOK004");
  EXPECT_EQ(error.message(), concat("2 of the base tokenizer's ", base.size(), " pieces have another id"));
  EXPECT_EQ(error.place(), moved.path());
  EXPECT_EQ(error.details(),
            std::vector{concat("first: id ", base.size() - 2, " is \"two\" there and \"three\" here")});
  EXPECT_THAT(error.hint(), ::testing::HasSubstr("appending pieces"));
  const Tokenizer hostile(folder.write("hostile.model", base_model() + piece("\x1b[2J") + piece("a") + piece("b")));
  EXPECT_THAT(testing::error_of([&] { check_extension(hostile, base); }).details()[0],
              ::testing::EndsWith("and \"?[2J\" here"));
}

TEST(Tokenizer, RefusesWhatIsNoModel) {
  using ::testing::HasSubstr;
  EXPECT_EQ(refusal(base_model()), "");
  EXPECT_THAT(refusal(""), HasSubstr("no pieces"));
  EXPECT_THAT(refusal("this is not a model"), HasSubstr("TOK001"));
  EXPECT_THAT(refusal(base_model() + piece("x\0y"s)), HasSubstr("zero byte"));
  EXPECT_THAT(refusal(base_model() + piece(std::string(513, 'x'))), HasSubstr("513 bytes"));
  EXPECT_THAT(refusal(base_model() + piece("\xC3")), HasSubstr("UTF-8"));
  EXPECT_THAT(refusal(base_model() + field(1, "")), HasSubstr("has no text"));
  EXPECT_THAT(refusal(base_model() + "\x0A\xFF\xFF\xFF\xFF\x0F"), HasSubstr("beyond the file"));
  EXPECT_THAT(refusal(base_model() + std::string(11, '\xFF')), HasSubstr("64 bits"));
  EXPECT_THAT(refusal(base_model() + "\x0B"), HasSubstr("wire type"));
  EXPECT_THAT(refusal(base_model() + field(3, field(2, std::string(2 << 20, 'x')))), HasSubstr("character map"));
  EXPECT_THAT(refusal(base_model() + field(3, field(2, std::string("\0\4\0\0", 4) + std::string(1024, '\xFF') + '\0'))),
              HasSubstr("points outside"));
  EXPECT_THAT(refusal(base_model() + field(3, field(2, "\xFF\xFF\xFF\xFFrest\0"s))), HasSubstr("states a trie"));
  std::string many;
  for (int i = 0; i < 100'001; ++i) many += piece("p" + std::to_string(i));
  EXPECT_THAT(refusal(many), HasSubstr("100,000"));
}

TEST(Tokenizer, RefusesOtherNumbersOfTheSpecialPieces) {
  // The three special pieces stand first, each as one field 1.
  const std::string model = base_model();
  std::size_t ends[4] = {0};
  for (int i = 0; i < 3; ++i) ends[i + 1] = ends[i] + 2 + static_cast<unsigned char>(model[ends[i] + 1]);
  const std::string unknown_first =
      model.substr(ends[2], ends[3] - ends[2]) + model.substr(0, ends[2]) + model.substr(ends[3]);
  const std::string report = refusal(unknown_first);
  EXPECT_THAT(report, ::testing::HasSubstr("TOK002"));
  EXPECT_THAT(report, ::testing::HasSubstr("<unk> 0"));
}

TEST(Tokenizer, SurvivesEveryTruncationAndManyFlips) {
  const std::string model = base_model();
  for (std::size_t size = 0; size < model.size(); size += 997) refusal(model.substr(0, size));
  RandomStream random(4, 4);
  for (int i = 0; i < 200; ++i) {
    std::string damaged = model;
    for (int flips = 0; flips < 3; ++flips) {
      damaged[random.below(damaged.size())] ^= static_cast<char>(1U << random.below(8));
    }
    refusal(damaged);
  }
}

TEST(Tokenizer, ChecksIdsAndMeasuresVocabulary) {
  const Tokenizer base(data_path("fixtures/tokenizer/base.model"));
  EXPECT_EQ(base.piece(0), "<s>");
  EXPECT_EQ(base.piece_id("</s>"), 1);
  EXPECT_EQ(base.piece_id("no such piece"), Tokenizer::kUnknown);
  EXPECT_THROW(base.piece(-1), Error);
  EXPECT_THROW(base.piece(160), Error);
  EXPECT_THROW(base.decode(std::vector<std::int32_t>{160}), Error);
  EXPECT_EQ(base.decode(base.encode("Hello world", "en")), "HELLO WORLD");
  EXPECT_EQ(base.sha256(), sha256_of_file(base.path()));
  EXPECT_TRUE(base.encode("", "am").empty());
}

// --- normaliser beyond the reference's cases -------------------------------------------------------------------------

TEST(Normalizer, OtherLanguagesGetTheSharedTable) {
  EXPECT_EQ(before_sentencepiece("Straße: \"ﬁn\"", "de"), "STRASSE, 'FIN'");  // full upper-casing: ß, the ligature
  EXPECT_EQ(normalize_text("a;b…  c", "fr"), "a,b…  c");
  EXPECT_EQ(normalize_text("价格$5。好", "zh"), "价格.5.好");
  EXPECT_EQ(before_sentencepiece("你好 world", "zh"), "你 好 WORLD");
  EXPECT_EQ(normalize_text("ＡＢ  １", "xx"), "AB 1");  // anything else: NFKC and joined spaces
  EXPECT_EQ(normalize_text("Speaker 12 :  こんにちは", "ja"), "こんにちは");
  EXPECT_EQ(normalize_text("Spk 3: ሰላም", "am"), "ሰላም");
  EXPECT_EQ(normalize_text("spk: ሰላም", "am"), "spk, ሰላም");  // no number: no tag
  EXPECT_EQ(normalize_text("ሰ\u00A0\u3000ላ", "am"), "ሰ ላ");
  EXPECT_EQ(normalize_text(",,, ……", "en"), "… …");
  EXPECT_EQ(before_sentencepiece(" x ", "am"), " x ");  // one character goes as it is
  EXPECT_EQ(before_sentencepiece("   ", "am"), "");
}

TEST(Normalizer, FindsTheLanguageOfAScript) {
  EXPECT_EQ(language_of_script("hello ሰ"), "am");
  EXPECT_EQ(language_of_script("ꬁ"), "am");
  EXPECT_EQ(language_of_script("漢字かな"), "ja");
  EXPECT_EQ(language_of_script("漢字"), "zh");
  EXPECT_EQ(language_of_script("hello"), "en");
  EXPECT_EQ(language_of_script(""), "");
  EXPECT_EQ(canonical_language("AMH"), "am");
  EXPECT_EQ(canonical_language("cn"), "zh");
  EXPECT_EQ(canonical_language("pt-BR"), "pt-br");
  EXPECT_EQ(canonical_language("a b"), "");
  EXPECT_EQ(canonical_language("\u1230"), "");
  for (const char* broken : {"\xE1", "\xE1\x88", "\xFF\xFE", "\xF0\x9F", "a\x80z"}) {
    EXPECT_NO_THROW(before_sentencepiece(broken, "am")) << "invalid UTF-8 never reads outside";
  }
}

}  // namespace
}  // namespace train_gpt_v2
