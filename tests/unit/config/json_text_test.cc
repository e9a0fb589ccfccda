// The JSON reader: places, comments, every kind of malformed text, agreement with nlohmann's reader.
#include "train_gpt_v2/config/json_text.h"

#include <gmock/gmock.h>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

TEST(JsonText, KnowsWhereThingsStand) {
  const LocatedJson read = parse_json_text(
      "\xEF\xBB\xBF// ሰላም\n{ /* x\n */ \"ሀለ\": [1,\n  {\"b/~\": \"\\u1230\\ud83d\\ude00\\n\"}] }\n", "t");
  EXPECT_EQ(read.value.dump(), "{\"ሀለ\":[1,{\"b/~\":\"ሰ😀\\n\"}]}");
  const auto place = [](const TextPosition& at) { return concat(at.line, ":", at.column); };
  EXPECT_EQ(place(read.values.at("")), "2:1");
  EXPECT_EQ(place(read.keys.at("/ሀለ")), "3:5");
  EXPECT_EQ(place(read.values.at("/ሀለ/0")), "3:12");
  EXPECT_EQ(place(read.keys.at("/ሀለ/1/b~1~0")), "4:4");
  EXPECT_EQ(place(read.values.at("/ሀለ/1/b~1~0")), "4:11");
}

TEST(JsonText, RepeatedKeysAreListed) {
  const LocatedJson read = parse_json_text("{\"a\": 1, \"b\": {\"c\": 1, \"c\": 2}, \"a\": 3}", "t");
  EXPECT_THAT(read.repeated_keys, ElementsAre("/b/c", "/a"));
  EXPECT_EQ(read.repeated_at[0].column, 24);
  EXPECT_EQ(read.value.dump(), "{\"a\":3,\"b\":{\"c\":2}}");
}

TEST(JsonText, NumbersKeepTheirKind) {
  const Json read =
      parse_json_text("[0, -0, 12, -9223372036854775808, 9223372036854775807, 1.0, 1e2, 5e-324, 0.1]", "t").value;
  EXPECT_TRUE(read[4].is_number_integer());
  EXPECT_EQ(read[3].get<std::int64_t>(), INT64_MIN);
  EXPECT_TRUE(read[5].is_number_float());
  EXPECT_EQ(read[8].get<double>(), 0.1);
}

struct Case {
  std::string text;
  std::string place;  // "line:column"
  std::string expected;
};

TEST(JsonText, MalformedTextIsRefusedAtItsPlace) {
  const std::vector<Case> cases{
      {"", "1:1", "the text ends where a value is expected"},
      {"  \n ", "2:2", "the text ends"},
      {"{", "1:2", "the name of a member is expected"},
      {"{\"a\"", "1:5", "a colon is expected after \"a\""},
      {"{\"a\":", "1:6", "the text ends"},
      {"{\"a\":1", "1:7", "a comma or a closing brace"},
      {"{\"a\":1,}", "1:8", "a comma stands before this brace"},
      {"{\"a\":1 \"b\":2}", "1:8", "a comma or a closing brace"},
      {"{a: 1}", "1:2", "names are written in double quotes"},
      {"{'a': 1}", "1:2", "names are written in double quotes"},
      {"[1,]", "1:4", "a comma stands before this bracket"},
      {"[1 2]", "1:4", "a comma or a closing bracket"},
      {"[1}", "1:3", "a comma or a closing bracket"},
      {"{} {}", "1:4", "something follows"},
      {"{}}", "1:3", "something follows"},
      {"[01]", "1:2", "cannot begin with 0"},
      {"[-01]", "1:2", "cannot begin with 0"},
      {"[1.]", "1:2", "not a number"},
      {"[.5]", "1:2", "a value is expected"},
      {"[+5]", "1:2", "a value is expected"},
      {"[-]", "1:2", "not a number"},
      {"[1e]", "1:2", "not a number"},
      {"[1e999]", "1:2", "outside the range of a double"},
      {"[9223372036854775808]", "1:2", "does not fit into 64 bits"},
      {"[NaN]", "1:2", "NaN is not a JSON number"},
      {"[None]", "1:2", "write null"},
      {"[True]", "1:2", "write true or false"},
      {"[bf16]", "1:2", "is not a JSON value"},
      {"[\"a]", "1:2", "never closed"},
      {"[\"a\nb\"]", "1:2", "never closed"},
      {"[\"a\tb\"]", "1:4", "a control character"},
      {"[\"\\x\"]", "1:3", "unknown escape"},
      {"[\"\\", "1:3", "unknown escape"},
      {"[\"\\u12\"]", "1:3", "four hexadecimal digits"},
      {"[\"\\ud800\"]", "1:3", "surrogate"},
      {"[\"\\ud800\\u0041\"]", "1:3", "surrogate"},
      {"[\"\\udc00\"]", "1:3", "surrogate"},
      {"[\"\\u0000\"]", "1:3", "zero character"},
      {"[/* x", "1:2", "this comment is never closed"},
      {"[/ 1]", "1:2", "a value is expected"},
      {"[1]\n\xff", "2", "not valid UTF-8"},
      {std::string("[\0]", 3), "1:2", "a value is expected"},
  };
  for (const Case& one : cases) {
    try {
      parse_json_text(one.text, "t.json");
      ADD_FAILURE() << "accepted: " << one.text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), "CFG002");
      EXPECT_EQ(error.place(), "t.json:" + one.place) << one.text;
      EXPECT_THAT(error.report(), HasSubstr(one.expected)) << one.text;
    }
  }
}

TEST(JsonText, SizeAndDepthAreBounded) {
  const auto nested = [](int depth) {
    return std::string(static_cast<std::size_t>(depth), '[') + std::string(static_cast<std::size_t>(depth), ']');
  };
  EXPECT_NO_THROW(parse_json_text(nested(kMaxConfigDepth), "t"));
  EXPECT_THROW(parse_json_text(nested(kMaxConfigDepth + 1), "t"), Error);
  EXPECT_THROW(parse_json_text(nested(100000), "t"), Error);
  EXPECT_THROW(parse_json_text(std::string(kMaxConfigBytes + 1, ' '), "t"), Error);
}

// Whatever we accept, nlohmann accepts with the same value; what we refuse beyond it is known.
TEST(JsonText, AgreesWithAnIndependentReader) {
  const std::string base = R"({"a": [1, -2.5e3, true, null], "b": {"c": "x\"y\u1230", /* n */ "d": {}}, // e
 "f": [], "g": "ሰላም"})";
  const std::string alphabet = "{}[]:,\"\\/* \n0123456789.eE+-truefalsn\xe1\x88\x30";
  RandomStream random(5, 5);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text = base;
    for (std::uint64_t edits = 1 + random.below(3); edits > 0; --edits) {
      const std::size_t at = random.below(text.size());
      const char c = alphabet[random.below(alphabet.size())];
      if (random.below(3) == 0) {
        text.erase(at, 1 + random.below(3));
      } else if (random.below(2) == 0) {
        text[at] = c;
      } else {
        text.insert(at, 1, c);
      }
    }
    const Json other = Json::parse(text, nullptr, false, true);
    try {
      const LocatedJson mine = parse_json_text(text, "t");
      ++accepted;
      ASSERT_FALSE(other.is_discarded()) << text;
      if (mine.repeated_keys.empty()) {
        ASSERT_EQ(mine.value, other) << text;
      }
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), "CFG002");
      const bool range = error.message().find("does not fit") != std::string::npos ||
                         error.message().find("UTF-8") != std::string::npos;  // we look into comments too
      ASSERT_TRUE(other.is_discarded() || range) << text << "\n" << error.report();
    }
  }
  EXPECT_GT(accepted, 1000);
}

}  // namespace
}  // namespace train_gpt_v2
