// `sample` on the reference's model and its recorded sequences, and cases files that must be refused.

#include "train_gpt_v2/app/sample_command.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "support/error_of.h"
#include "support/test_files.h"
#include "train_gpt_v2/app/vocoder.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/npy.h"
#include "train_gpt_v2/train/sampling.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::json;
using testing::data_path;
using testing::TemporaryFolder;

class SampleCommand : public ::testing::Test {
 protected:
  SampleCommand() {
    reset_signal_flags();
    request_.model.checkpoint = data_path("fixtures/model/gpt.pth");
    request_.model.config = data_path("export/fixture.json");
    request_.folder = folder_.file("out");
    request_.decoding = shipped_decoding();
    request_.decoding.greedy = true;
    request_.decoding.num_beams = 1;
    request_.decoding.repetition_penalty = 1;
  }

  std::string run(const std::string& cases) {
    request_.cases = folder_.write("cases.jsonl", cases);
    std::ostringstream out;
    EXPECT_EQ(run_sample(request_, out), ExitStatus::kOk);
    return out.str();
  }

  std::vector<Json> records() const {
    std::vector<Json> records;
    std::istringstream lines(read_file(request_.folder + "/samples.jsonl", 1 << 24));
    for (std::string line; std::getline(lines, line);) records.push_back(Json::parse(line));
    return records;
  }

  // One line of a cases file with features of the fixtures.
  Json recorded_case(std::size_t i) const {
    const Json input = expected_.at("inputs").at(i);
    const auto path = [](const Json& id) {
      return data_path("fixtures/data/features/" + id.get<std::string>() + ".npy");
    };
    return {{"id", "case" + std::to_string(i)},
            {"text_ids", input.at("text_ids")},
            {"speaker_features_path", path(input.at("speaker_features"))},
            {"emotion_features_path", path(input.at("emotion_features"))},
            {"emotion_alpha", input.at("emo_alpha")}};
  }

  TemporaryFolder folder_;
  SampleRequest request_;
  Json expected_ = Json::parse(read_file(data_path("fixtures/expected/generation.json"), 1 << 26));
};

TEST_F(SampleCommand, GivesTheRecordedCodes) {
  int checked = 0;
  for (const Json& one : expected_.at("cases")) {
    if (!one.contains("without_kv_cache")) continue;
    SCOPED_TRACE(one.dump().substr(0, 100));
    request_.decoding.num_beams = one.at("num_beams");
    request_.decoding.repetition_penalty = one.at("repetition_penalty");
    const Json& limit =
        one.at("max_generate_length").is_null() ? expected_.at("default_limit") : one.at("max_generate_length");
    request_.decoding.max_codes = limit.get<std::int64_t>();
    for (const bool reference : {false, true}) {
      request_.decoding.mel_position = reference ? "reference_inference" : "training";
      run(recorded_case(one.at("case").get<std::size_t>()).dump() + "\n");
      const Json record = records().at(0);
      auto codes = one.at(reference ? "codes" : "without_kv_cache").get<std::vector<std::int64_t>>();
      const bool stopped = codes.back() == 225;
      if (stopped) codes.pop_back();
      EXPECT_EQ(record.at("codes").get<std::vector<std::int64_t>>(), codes);
      EXPECT_EQ(record.at("stop"), stopped ? "stop" : "limit");
      EXPECT_EQ(record.at("length"), codes.size());
      EXPECT_EQ(record.at("distinct_codes"), std::set(codes.begin(), codes.end()).size());
      EXPECT_LT(record.at("mean_logprob").get<double>(), 0);
      const double coverage = record.at("alignment").at("coverage").get<double>();
      EXPECT_TRUE(coverage > 0 && coverage <= 1) << coverage;
      const Tensor array = read_npy(request_.folder + "/" + record.at("id").get<std::string>() + ".npy");
      EXPECT_EQ(array.dtype, DType::kInt32);
      EXPECT_EQ(to_int_vector(array), codes);
      EXPECT_EQ(read_file(request_.folder + "/" + record.at("id").get<std::string>() + ".png", 1 << 20).substr(1, 3),
                "PNG");
      ++checked;
    }
  }
  EXPECT_GT(checked, 0);
}

TEST_F(SampleCommand, PromptsTextAndSoundComeFromTheirFiles) {
  const std::string pair = "spk000_000006__spk000_000004";
  request_.model.sets = {"data.tokenizer=\"" + data_path("fixtures/tokenizer/extended.model") + "\""};
  request_.manifests = {data_path("fixtures/data/val_pairs.jsonl")};
  request_.decoding.max_codes = 5;
  request_.prompt = pair;
  request_.vocoder_command = "cp '{codes}' {out}";
  const auto fixture = [](const std::string& name) {
    return data_path("fixtures/data/" + name + "/spk000_000004.npy");
  };
  const std::string text = "ሰላም";
  const Json files{{"id", "files; touch x"},
                   {"text", text},
                   {"condition_path", fixture("condition")},
                   {"emo_vec_path", fixture("emo_vec")},
                   {"reference_codes_path", fixture("codes")}};
  const Json prompt{{"id", "prompt"}, {"text", text}};  // the pair's prompt is the same clip
  run(files.dump() + "\n\n" + prompt.dump());
  const auto found = records();
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].at("codes"), found[1].at("codes"));
  EXPECT_EQ(found[0].at("length"), 5);
  EXPECT_EQ(found[0].at("length_ratio").get<double>(), 5.0 / static_cast<double>(read_npy(fixture("codes")).numel()));
  EXPECT_FALSE(found[1].contains("length_ratio"));
  EXPECT_EQ(read_file(request_.folder + "/files; touch x.wav", 1 << 20),
            read_file(request_.folder + "/files; touch x.npy", 1 << 20));
  request_.vocoder_command = "false {codes} {out}";
  EXPECT_THROW(run(prompt.dump()), Error);
  EXPECT_EQ(records().size(), 1u);  // the codes are there all the same
}

TEST_F(SampleCommand, CasesFilesAreNotTrusted) {
  const auto with = [this](const char* field, const Json& value) {
    Json one = recorded_case(0);
    one[field] = value;
    return one.dump();
  };
  const std::string good = recorded_case(0).dump();
  const std::map<std::string, std::string> refused{
      {"not JSON", "{"},
      {"no object", "[1]"},
      {"bad UTF-8", "{\"id\":\"\xff\"}"},
      {"escapes", with("id", "../../x")},
      {"absolute", with("id", "/x")},
      {"hidden", with("id", "..")},
      {"control", with("id", "a\nb")},
      {"empty id", with("id", "")},
      {"long id", with("id", std::string(300, 'a'))},
      {"number id", with("id", 3)},
      {"twice", good + "\n" + good},
      {"ids", with("text_ids", {1.5})},
      {"large id", with("text_ids", {999999})},
      {"negative id", with("text_ids", {-1})},
      {"huge number", with("text_ids", {1e300})},
      {"no text", with("text_ids", Json::array())},
      {"too long", with("text_ids", std::vector<int>(61, 5))},
      {"no tokenizer", with("text_ids", nullptr)},
      {"alpha", with("emotion_alpha", 1.5)},
      {"two voices", with("prompt", "a__b")},
      {"no voice", R"({"id":"a","text_ids":[5]})"},
      {"shape", with("speaker_features_path", data_path("fixtures/data/condition/spk000_000004.npy"))},
      {"zero byte", with("speaker_features_path", std::string("a\0b", 3))},
      {"nothing", "\n\n"},
      {"long line", with("text", std::string(70'000, 'a'))},
  };
  for (const auto& [name, content] : refused) {
    SCOPED_TRACE(name);
    try {
      run(content);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), "DAT092") << error.report();
      EXPECT_NE(error.place().find("cases.jsonl"), std::string::npos);
    }
    EXPECT_FALSE(directory_exists(request_.folder));
  }
}

TEST_F(SampleCommand, FeaturesThatTheEncoderCannotHoldAreNamed) {
  const auto features = [this](std::int64_t frames) {
    const std::string path = folder_.file("features.npy");
    write_npy(path, Tensor::zeros(DType::kFloat16, {frames, 1024}));
    return path;
  };
  for (const std::int64_t frames : {2, 10'001}) {
    for (const char* field : {"speaker_features_path", "emotion_features_path"}) {
      SCOPED_TRACE(frames);
      Json one = recorded_case(0);
      one[field] = features(frames);
      const Error error = testing::error_of([&] { run(one.dump()); });
      EXPECT_EQ(error.code(), "DAT041");
      EXPECT_EQ(error.status(), ExitStatus::kBadData);
      EXPECT_EQ(error.message(), concat("speech features of ", frames, " frames cannot be used for conditioning"));
      EXPECT_EQ(error.place(), "case case0");
      EXPECT_EQ(error.details(), std::vector<std::string>{"allowed: 3 to 10000 frames of 20 ms"});
      EXPECT_EQ(error.hint(), "cut the prompt utterance, or leave the sample out");
    }
  }
}

TEST_F(SampleCommand, CommandsAreSplitWithoutAShell) {
  EXPECT_EQ(split_command(R"(a  'b c' "d\"e" f\ g {codes} {out})"),
            (std::vector<std::string>{"a", "b c", "d\"e", "f g", "{codes}", "{out}"}));
  const std::map<std::string, std::string> refused{{" ", "names no program"},
                                                   {"'' {codes} {out}", "names no program"},
                                                   {"a {codes}", "does not hold {out}"},
                                                   {"a {out}", "does not hold {codes}"},
                                                   {"a '{codes} {out}", "has an open quote"}};
  for (const auto& [command, reason] : refused) {
    SCOPED_TRACE(command);
    const Error error = testing::error_of([&] { make_vocoder(command, {}); });
    EXPECT_EQ(error.code(), "CFG022");
    EXPECT_EQ(error.status(), ExitStatus::kConfig);
    EXPECT_EQ(error.message(), "the vocoder command " + reason);
    EXPECT_EQ(error.details(), std::vector{command});
    EXPECT_EQ(error.hint(), "e.g. \"my_vocoder {codes} {out}\"");
  }
}

TEST(LongestRepeat, CountsRuns) {
  EXPECT_EQ(longest_repeat({}), 0);
  EXPECT_EQ(longest_repeat({4}), 1);
  EXPECT_EQ(longest_repeat({1, 2, 2, 2, 1, 1}), 3);
}

TEST(AmharicCases, EveryCategoryHasSix) {
  std::map<std::string, int> count;
  std::set<std::string> ids;
  std::istringstream lines(read_file(data_path("amharic_test_cases.jsonl"), 1 << 20));
  for (std::string line; std::getline(lines, line);) {
    const Json one = Json::parse(line);
    for (const char* field : {"id", "text", "translation", "category", "emotion"}) {
      EXPECT_FALSE(one.at(field).get<std::string>().empty()) << line;
    }
    EXPECT_EQ(id_problem(one.at("id").get<std::string>()), "");
    EXPECT_TRUE(ids.insert(one.at("id")).second) << line;
    ++count[one.at("category").get<std::string>() + "/" + one.at("emotion").get<std::string>()];
  }
  for (const char* name : {"common_phrases/neutral", "long_utterances/neutral", "rare_fidels/neutral",
                           "emotional_speech/happy", "emotional_speech/sad", "emotional_speech/neutral"}) {
    EXPECT_GE(count[name], 6) << name;
  }
}

}  // namespace
}  // namespace train_gpt_v2
