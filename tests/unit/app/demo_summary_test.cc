// The summary of a run: baseline from the manifests, everything else from metrics.jsonl.
#include "train_gpt_v2/app/demo_summary.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "support/test_files.h"
#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/bigram.h"
#include "train_gpt_v2/io/npy.h"

namespace train_gpt_v2 {
namespace {

class DemoSummaryTest : public ::testing::Test {
 protected:
  // A run directory over the fixtures' manifests and model.
  void SetUp() override {
    nlohmann::json config;
    config["model"] =
        nlohmann::json::parse(read_file(testing::data_path("fixtures/model/config.json"), 1 << 20))["constructor"];
    config["model"].erase("use_accel");
    config["data"]["train_manifests"] = {testing::data_path("fixtures/data/train_pairs.jsonl") + "::am"};
    config["data"]["val_manifests"] = {testing::data_path("fixtures/data/val_pairs.jsonl")};
    config["data"]["tokenizer"] = testing::data_path("fixtures/tokenizer/extended.model");
    const Options options = load_config_json(config.dump(), "test").options;
    run_.write("config.effective.json", effective_json(options));
  }

  static std::string train(int step, double seconds) {
    return concat(R"({"v":1,"type":"train","step":)", step, R"(,"step_seconds":)", seconds, "}\n");
  }
  static std::string validation(int step, const char* weights, const char* split, double loss, const char* gap = "") {
    return concat(R"({"v":1,"type":"validation","step":)", step, R"(,"weights":")", weights, R"(","split":")", split,
                  R"(","mel_loss":)", loss, R"(,"seconds":2)", *gap ? R"(,"text_usage_gap":)" : "", gap, "}\n");
  }
  std::string code_of_summary() {
    try {
      summarise_demo_run(run_.path());
    } catch (const Error& error) {
      return error.code();
    }
    return "none";
  }

  testing::TemporaryFolder run_;
};

TEST_F(DemoSummaryTest, TakesTheLastValidationAndTheBetterWeights) {
  run_.write("metrics.jsonl", train(10, 0.5) + validation(10, "raw", "all", 1.0, "0.9") + train(20, 0.25) +
                                  validation(20, "raw", "all", 2.5, "0.25") +
                                  validation(20, "ema", "language:am", 0.1) +  // seconds of the same pass
                                  validation(20, "ema", "all", 2.25, "0.5") +
                                  R"({"v":1,"type":"event","step":21,"event":"stop"})" + "\n");
  const DemoSummary summary = summarise_demo_run(run_.path());
  EXPECT_EQ(summary.val_mel_loss, 2.25);
  EXPECT_EQ(summary.text_usage_gap, 0.5);
  EXPECT_EQ(summary.steps, 21);
  EXPECT_DOUBLE_EQ(summary.train_seconds, 10 * 0.5 + 2 + 10 * 0.25 + 2 * 2);

  // fixtures/model/keys.txt lists every parameter with its shape.
  std::istringstream keys(read_file(testing::data_path("fixtures/model/keys.txt"), 1 << 20));
  std::int64_t parameters = 0;
  for (std::string line; std::getline(keys, line);) {
    const std::vector<std::string> fields = split(line, '\t');
    if (fields.size() < 4 || fields[3] != "parameter") continue;
    std::int64_t size = 1;
    for (const std::int64_t d : nlohmann::json::parse(fields[1]).get<std::vector<std::int64_t>>()) size *= d;
    parameters += size;
  }
  EXPECT_EQ(summary.parameters, parameters);

  const nlohmann::json json = nlohmann::json::parse(summary_json(summary));
  for (const char* key :
       {"bigram_mel_loss", "val_mel_loss", "text_usage_gap", "train_seconds", "steps", "parameters"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["bigram_mel_loss"].get<double>(), summary.bigram_mel_loss) << "numbers survive the text";
}

TEST_F(DemoSummaryTest, BaselineCountsEachTrainingClipOnceAndEveryValidationPair) {
  run_.write("metrics.jsonl", validation(10, "raw", "all", 2, "0.1"));
  const auto sequences = [](const char* manifest, bool unique) {
    std::istringstream lines(read_file(testing::data_path(concat("fixtures/data/", manifest)), 1 << 20));
    std::vector<CodeSequence> result;
    std::vector<std::string> seen;
    for (std::string line; std::getline(lines, line);) {
      const std::string path = nlohmann::json::parse(line)["target_codes_path"];
      if (unique && std::find(seen.begin(), seen.end(), path) != seen.end()) continue;
      seen.push_back(path);
      const auto codes = to_int_vector(read_npy(testing::data_path("fixtures/data/" + path)));
      result.emplace_back(codes.begin(), codes.end());
    }
    return result;
  };
  const auto training = sequences("train_pairs.jsonl", true), all = sequences("val_pairs.jsonl", false);
  EXPECT_LT(training.size(), 24u) << "24 pairs share targets";
  const BigramModel model(training, 226, 224, 225);
  const DemoSummary summary = summarise_demo_run(run_.path());
  EXPECT_DOUBLE_EQ(summary.bigram_mel_loss, model.bigram_loss(all));
  EXPECT_DOUBLE_EQ(summary.unigram_mel_loss, model.unigram_loss(all));
}

TEST_F(DemoSummaryTest, SaysWhatIsMissingOrDamaged) {
  EXPECT_EQ(code_of_summary(), "IO001") << "no metrics";
  run_.write("metrics.jsonl", train(10, 1));
  EXPECT_EQ(code_of_summary(), "DEM004") << "no validation";
  run_.write("metrics.jsonl", validation(10, "raw", "all", 2));
  EXPECT_EQ(code_of_summary(), "DEM004") << "no gap";
  run_.write("metrics.jsonl", validation(10, "raw", "all", 2, "0.3") + validation(20, "raw", "all", 1));
  EXPECT_EQ(code_of_summary(), "DEM004") << "the gap of another step is not this step's";
  for (const char* line :
       {"not json\n", "[]\n", "{\"type\":\"train\"}\n", "{\"type\":\"train\",\"step\":\"x\"}\n",
        "{\"type\":\"validation\",\"step\":1,\"seconds\":1,\"split\":\"all\",\"mel_loss\":null}\n"}) {
    run_.write("metrics.jsonl", line);
    EXPECT_EQ(code_of_summary(), "DAT001") << line;
  }
}

}  // namespace
}  // namespace train_gpt_v2
