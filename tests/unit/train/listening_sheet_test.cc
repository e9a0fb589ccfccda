#include "train_gpt_v2/train/listening_sheet.h"

#include <map>

#include "support/error_of.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

TEST(ListeningSheet, AnEmptySheetReadsBack) {
  const std::string sheet =
      empty_listening_sheet(5000, {{"a__b", "ሰላም \"x\"", "common phrase", "", {}}, {"c", "", "", "", {}}});
  EXPECT_NE(sheet.find("\"pronunciation\": null"), std::string::npos) << sheet;
  const auto notes = parse_listening_sheet(sheet);
  ASSERT_EQ(notes.size(), 2u);
  EXPECT_EQ(notes[0].id, "a__b");
  EXPECT_EQ(notes[0].text, "ሰላም \"x\"");
  EXPECT_EQ(notes[0].category, "common phrase");
  for (const std::string& judgement : notes[0].judgements) EXPECT_EQ(judgement, "");
}

TEST(ListeningSheet, TakesWhatPeopleWrite) {
  const auto notes = parse_listening_sheet(
      R"([{"id":"a","pronunciation":4,"prosody":3.5,"speaker":true,"emotion":"too flat","comment":"ok","mood":[1]}])");
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0].judgements[0], "4");
  EXPECT_EQ(notes[0].judgements[1], "3.5");
  EXPECT_EQ(notes[0].judgements[2], "yes");
  EXPECT_EQ(notes[0].judgements[3], "too flat");
  EXPECT_EQ(notes[0].comment, "ok");
}

TEST(ListeningSheet, RefusesWhatIsNone) {
  std::string many = "[{}";
  for (int i = 0; i < 1000; ++i) many += ",{}";
  const std::map<std::string, std::string> refused{{"", "it is not JSON"},
                                                   {"{", "it is not JSON"},
                                                   {"\xff\xfe", "it is not JSON"},
                                                   {"{}", "there is no list \"samples\""},
                                                   {"3", "there is no list \"samples\""},
                                                   {"{\"samples\": 5}", "there is no list \"samples\""},
                                                   {"[1]", "entry 1 is not an object"},
                                                   {"{\"samples\": [{}, null]}", "entry 2 is not an object"},
                                                   {many + "]", "more than 1000 samples"}};
  for (const auto& [text, reason] : refused) {
    SCOPED_TRACE(text.substr(0, 40));
    const Error error = testing::error_of([&] { parse_listening_sheet(text); });
    EXPECT_EQ(error.code(), "DAT090");
    EXPECT_EQ(error.status(), ExitStatus::kBadData);
    EXPECT_EQ(error.message(), "the listening sheet cannot be read: " + reason);
  }
}

TEST(ListeningSheet, LongTextsAreCutBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "ሰ";
  const auto notes = parse_listening_sheet("[{\"id\":\"" + text + "\"}]");
  EXPECT_LE(notes[0].id.size(), 2010u);
  EXPECT_TRUE(valid_utf8(notes[0].id));
}

}  // namespace
}  // namespace train_gpt_v2
