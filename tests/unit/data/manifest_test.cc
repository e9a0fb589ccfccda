#include "train_gpt_v2/data/manifest.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include "unit/data/data_test_support.h"

namespace train_gpt_v2 {
namespace {

using ::testing::AllOf;
using testing::data_path;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::pair_line;
using testing::TemporaryFolder;

PairIndex::Settings with(PairIndex::Settings::Needs needs, unsigned threads = 2) {
  PairIndex::Settings settings;
  settings.needs = needs;
  settings.threads = threads;
  return settings;
}

// The report of indexing a good line followed by `line`; "" when it is accepted.
std::string report_of(const std::string& line,
                      PairIndex::Settings settings = with(PairIndex::Settings::Needs::kCondition)) {
  const TemporaryFolder folder;
  PairIndex index(settings);
  try {
    index.add(folder.write("pairs.jsonl", pair_line("good", {3, 4}) + line + "\n" + pair_line("after", {3, 4})));
    return "";
  } catch (const Error& error) {
    EXPECT_FALSE(error.hint().empty()) << "every message says what to do";
    return error.report();
  }
}

std::string replaced(std::string line, const std::string& what, const std::string& with_what) {
  const std::size_t at = line.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return line.replace(at, what.size(), with_what);
}

std::string line() {
  std::string text = pair_line("u1", {5, 6});
  text.pop_back();
  return text;
}

TEST(Manifest, ReadsEveryFieldOfThePythonTools) {
  PairIndex index(with(PairIndex::Settings::Needs::kCondition));
  EXPECT_EQ(index.add(data_path("fixtures/data/val_pairs.jsonl")), 8u);
  RecordParser parser;
  const PairEntry& entry = index[0];
  const PairRecord record = index.record(entry, parser);
  EXPECT_EQ(record.id, "spk000_000006__spk000_000004");
  EXPECT_EQ(record.speaker, "spk000");
  EXPECT_EQ(record.prompt_id, "spk000_000004");
  EXPECT_EQ(record.prompt_audio_path, "audio/spk000_000004.wav");
  EXPECT_EQ(record.prompt_condition_path, "condition/spk000_000004.npy");
  EXPECT_EQ(record.prompt_condition_len, 32);
  EXPECT_EQ(record.emo_vec_path(), "emo_vec/spk000_000004.npy");
  EXPECT_DOUBLE_EQ(record.prompt_duration, 1.2);
  EXPECT_EQ(record.target_id, "spk000_000006");
  EXPECT_EQ(record.target_text, "ተናጋሪ 2: እንኳን ደህና መጣችሁ።");
  EXPECT_EQ(record.target_text_len, 7);
  EXPECT_EQ(record.target_code_len, 37);
  EXPECT_EQ(record.target_emo_vec_path, "emo_vec/spk000_000006.npy");
  EXPECT_EQ(index.languages(), std::vector<std::string>{"am"});
  EXPECT_EQ(index.line(index[7]), 8);
  EXPECT_EQ(index.resolve(entry, record.target_codes_path), data_path("fixtures/data/codes/spk000_000006.npy"));
  EXPECT_EQ(index.resolve(entry, "/else/where.npy"), "/else/where.npy");
  EXPECT_EQ(index.resolve(entry, "../up.npy"), data_path("fixtures/data/../up.npy"));
}

TEST(Manifest, SuffixesNameALanguage) {
  const TemporaryFolder folder;
  const std::string path = folder.write("m.jsonl", line() + "\n");
  const std::string odd = folder.write("m=am", line() + "\n");
  EXPECT_EQ(parse_manifest_spec(path).path, path);
  for (const std::string mark : {"::", "@", "="}) {
    EXPECT_EQ(parse_manifest_spec(path + mark + "AMH").path, path);
    EXPECT_EQ(parse_manifest_spec(path + mark + "AMH").language, "am");
  }
  EXPECT_EQ(parse_manifest_spec(odd).path, odd);  // a file of this name wins
  EXPECT_EQ(parse_manifest_spec("a@b/c.jsonl").path, "a@b/c.jsonl");
  EXPECT_EQ(parse_manifest_spec("x.jsonl::").path, "x.jsonl::");
}

TEST(Manifest, LanguageComesFromRecordThenSuffixThenDefaultThenScript) {
  const TemporaryFolder folder;
  const std::string plain = replaced(line(), "\"x\"", "\"ሰላም\"");
  const auto language = [&](const std::string& record, const std::string& suffix, const std::string& fallback) {
    PairIndex::Settings settings;
    settings.default_language = fallback;
    PairIndex index(settings);
    index.add(folder.write("m.jsonl", record + "\n") + suffix);
    return index.languages().at(index[0].language());
  };
  const std::string stated = replaced(plain, "{", R"({"language": "fr", "prompt_language": "zh", )");
  EXPECT_EQ(language(replaced(stated, "{", R"({"target_language": "de", )"), "::en", "en"), "de");
  EXPECT_EQ(language(stated, "::en", "en"), "fr");
  EXPECT_EQ(language(plain, "::en", "zh"), "en");
  EXPECT_EQ(language(plain, "", "jp"), "ja");
  EXPECT_EQ(language(plain, "", ""), "am");
}

TEST(Manifest, NamesFileLineFieldValueAndRemedy) {
  const std::string report = report_of(replaced(line(), ": 6}", ": -6}"));
  EXPECT_THAT(report, AllOf(HasSubstr("error[DAT001]"), HasSubstr("pairs.jsonl:2"), HasSubstr("\"target_code_len\""),
                            HasSubstr("value: -6"), HasSubstr("sample: u1"), HasSubstr("fix: ")));
}

TEST(Manifest, RefusesMalformedRecords) {
  EXPECT_EQ(report_of(line()), "");
  EXPECT_EQ(report_of(""), "") << "blank lines are no records";
  EXPECT_EQ(report_of(line() + "\r"), "") << "Windows line ends";
  const auto refused = [](const std::string& bad, const std::string& because) {
    EXPECT_THAT(report_of(bad), AllOf(HasSubstr("pairs.jsonl:2"), HasSubstr(because))) << bad.substr(0, 200);
  };
  refused("not json", "not a valid JSON record");
  refused("[1, 2]", "JSON object");
  refused("\"text\"", "JSON object");
  refused("{}", "no id");
  refused(line().substr(0, 100), "not a valid JSON record");
  refused(line() + "{}", "not a valid JSON record");
  refused(line() + " x", "not a valid JSON record");
  refused(replaced(line(), "1.5", "NaN"), "no NaN");
  refused(replaced(line(), "1.5", "-Infinity"), "no NaN");
  refused(replaced(line(), "1.5", "1e999"), "not a valid JSON record");
  refused(replaced(line(), "1.5", "-1"), "duration");
  refused(replaced(line(), "1.5", "\"1.5\""), "duration");
  refused(replaced(line(), "\"x\"", "\"\xC3\x28\""), "UTF-8");
  refused(replaced(line(), "\"x\"", "\"\xED\xA0\x80\""), "UTF-8");
  refused(replaced(line(), "\"x\"", "\"\xC0\xAF\""), "UTF-8");
  refused(replaced(line(), "\"x\"", "\"" + std::string(2001, 'y') + "\""), "2,000 are allowed");
  EXPECT_EQ(report_of(replaced(line(), "\"x\"", "\"" + std::string(2000, 'y') + "\"")), "");
  refused(replaced(line(), "\"x\"", "\"" + std::string(70'000, 'y') + "\""), "65,536 are allowed");
  refused(replaced(line(), "\"x\"", "7"), "a string is expected");
  refused(replaced(line(), "\"u1\"", "\"\""), "no id");
  refused(replaced(line(), "\"u1\"", "null"), "no id");
  refused(replaced(line(), "\"u1\"", "12"), "a string is expected");
  refused(replaced(line(), "\"u1\"", "\"a\\u0000b\""), "control character");
  refused(replaced(line(), "\"u1\"", "\"a\\nb\""), "control character");
  refused(replaced(line(), "\"u1\"", "\"" + std::string(513, 'i') + "\""), "512 bytes");
  refused(replaced(line(), "codes_u1.npy", "a\\u0000.npy"), "zero byte");
  refused(replaced(line(), "codes_u1.npy", std::string(5000, 'p')), "4,096 bytes");
  refused(replaced(line(), ": 6}", ": 6.5}"), "whole number");
  refused(replaced(line(), ": 6}", ": \"6\"}"), "whole number");
  refused(replaced(line(), ": 6}", ": 99999999999999999999}"), "");
  refused(replaced(line(), ": 6}", ": 2000000000}"), "whole number");
  refused(replaced(line(), "\"target_codes_path\"", "\"codes\""), "no codes file");
  refused(replaced(line(), "\"prompt_condition_path\"", "\"condition\""), "no condition file");
  refused(replaced(line(), "\"prompt_emo_vec_path\"", "\"emo\""), "no emotion vector");
  refused(replaced(replaced(line(), "\"target_text_ids_path\"", "\"t\""), "\"x\"", "\"\""),
          "neither text ids nor text");
  refused(replaced(line(), "{", R"({"id": "u1", )"), "stands twice");
  refused(replaced(line(), "{", R"({"unknown": 1, "unknown": 2, )"), "stands twice");
  refused(replaced(line(), "{", R"({"language": "not a language!", )"), "no language name");
  std::string deep = "1";
  for (int i = 0; i < 6; ++i) deep = "[" + deep + "]";
  EXPECT_EQ(report_of(replaced(line(), "{", "{\"extra\": " + deep + ", ")), "");
  refused(replaced(line(), "{", "{\"extra\": [[" + deep + "]], "), "8 levels");
  std::string abyss(20'000, '[');
  refused(abyss, "not a valid JSON record");
}

TEST(Manifest, OnlineConditioningNeedsFeaturesInstead) {
  const auto online = with(PairIndex::Settings::Needs::kFeatures);
  EXPECT_THAT(report_of(line(), online), HasSubstr("prompt_features_path"));
  PairIndex::Settings ids = with(PairIndex::Settings::Needs::kNothing);
  ids.text_needs_ids = true;
  EXPECT_THAT(report_of(replaced(line(), "\"target_text_ids_path\"", "\"t\""), ids), HasSubstr("no tokenizer"));
  EXPECT_EQ(report_of(replaced(line(), "\"target_text_ids_path\"", "\"t\"")), "");
}

TEST(Manifest, RefusesSingleSampleManifestsEvenWhenSkipping) {
  for (const bool skip : {false, true}) {
    PairIndex::Settings settings;
    settings.skip_bad = skip;
    PairIndex index(settings);
    try {
      index.add(data_path("fixtures/data/train_manifest.jsonl"));
      FAIL() << "single clips were accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), "DAT002");
      EXPECT_THAT(error.report(), AllOf(HasSubstr("train_manifest.jsonl:1"), HasSubstr("build_gpt_prompt_pairs.py")));
    }
  }
}

TEST(Manifest, RefusesAnIdThatStandsTwiceInAFileButNotInTwoFiles) {
  const TemporaryFolder folder;
  const std::string twice = pair_line("a", {1, 1}) + pair_line("b", {1, 1}) + pair_line("a", {2, 2});
  PairIndex index(with(PairIndex::Settings::Needs::kNothing));
  try {
    index.add(folder.write("twice.jsonl", twice));
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.report(), AllOf(HasSubstr("twice.jsonl:3"), HasSubstr("id: a"), HasSubstr("first at line 1")));
  }
  PairIndex two(with(PairIndex::Settings::Needs::kNothing));
  two.add(folder.write("one.jsonl", pair_line("a", {1, 1})));
  two.add(folder.write("two.jsonl", pair_line("a", {1, 1})));
  EXPECT_EQ(two.size(), 2u);
}

TEST(Manifest, SkipsMalformedRecordsAndKeepsTheirReasons) {
  const TemporaryFolder folder;
  PairIndex::Settings settings = with(PairIndex::Settings::Needs::kCondition);
  settings.skip_bad = true;
  PairIndex index(settings);
  const std::string text = "\n" + pair_line("a", {1, 1}) + "broken\n\n" + pair_line("b", {1, 1}) + "{}\n";
  EXPECT_EQ(index.add(folder.write("m.jsonl", text)), 4u);
  EXPECT_EQ(index.size(), 2u);
  EXPECT_EQ(index.bad_records(), 2u);
  ASSERT_EQ(index.problems().size(), 2u);
  EXPECT_EQ(index.problems()[0].line, 3);
  EXPECT_EQ(index.problems()[1].line, 6);
  EXPECT_EQ(index.line(index[1]), 5);
}

TEST(Manifest, SaysHowManyMoreRecordsAreBad) {
  const TemporaryFolder folder;
  PairIndex index(with(PairIndex::Settings::Needs::kNothing));
  try {
    index.add(folder.write("m.jsonl", "x\ny\nz\n"));
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.report(), AllOf(HasSubstr("m.jsonl:1"), HasSubstr("2 more records")));
  }
}

TEST(Manifest, ManyThreadsIndexAsOneDoes) {
  const TemporaryFolder folder;
  std::string text = "\xEF\xBB\xBF";
  for (int i = 0; i < 24'000; ++i) {
    text += pair_line(concat("u", i), {i % 50 + 1, i % 70 + 1, concat("speaker ", i / 777)});
    if (i % 1000 == 5) text += "\n";
  }
  text.pop_back();  // no newline at the end
  ASSERT_GT(text.size(), 8U << 20);
  const std::string path = folder.write("m.jsonl", text);
  PairIndex one(with(PairIndex::Settings::Needs::kCondition, 1)),
      three(with(PairIndex::Settings::Needs::kCondition, 3));
  EXPECT_EQ(one.add(path), 24'000u);
  EXPECT_EQ(three.add(path), 24'000u);
  EXPECT_EQ(one.speakers(), three.speakers());
  ASSERT_EQ(one.size(), three.size());
  for (std::size_t i = 0; i < one.size(); ++i) {
    ASSERT_EQ(one[i].place, three[i].place);
    ASSERT_EQ(one[i].speaker, three[i].speaker);
  }
  EXPECT_EQ(three.id(three[23'999]), "u23999");
  EXPECT_EQ(three.line(three[23'999]), 24'024);
  EXPECT_LE(sizeof(PairEntry), 32u);
}

TEST(Manifest, ReadsRegularFilesOnly) {
  const TemporaryFolder folder;
  PairIndex index(with(PairIndex::Settings::Needs::kNothing));
  EXPECT_THROW(index.add(folder.file("missing.jsonl")), Error);
  EXPECT_THROW(index.add(folder.path()), Error);
  ASSERT_EQ(::mkfifo(folder.file("pipe").c_str(), 0600), 0);
  EXPECT_THROW(index.add(folder.file("pipe")), Error) << "must not wait for a writer";
  EXPECT_THROW(index.add("/dev/zero"), Error);
  EXPECT_EQ(index.add(folder.write("empty.jsonl", "")), 0u);
}

}  // namespace
}  // namespace train_gpt_v2
