#include "train_gpt_v2/data/tokenizer.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "support/test_files.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/data/normalizer.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;

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

}  // namespace
}  // namespace train_gpt_v2
