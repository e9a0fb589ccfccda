// The whole demo corpus, made from the installed packages (scripts/setup.sh installs them).
#include <gtest/gtest.h>
#include <signal.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "support/test_files.h"
#include "train_gpt_v2/app/demo_data.h"
#include "train_gpt_v2/app/demo_dsp.h"
#include "train_gpt_v2/app/demo_speech.h"
#include "train_gpt_v2/app/demo_vocoder.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/data/tokenizer.h"
#include "train_gpt_v2/io/npy.h"

namespace train_gpt_v2 {
namespace {

// Two small corpora of one seed. Making them is most of the time, so one test below looks at everything.
class DemoCorpusTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ::signal(SIGPIPE, SIG_IGN);
    first_ = make_demo_corpus({folder_.file("first"), 72, 11, "first"});
    second_ = make_demo_corpus({folder_.file("second/"), 48, 11, "second"});
  }

  void expect_arrays_as_the_manifests_say();
  void expect_complete_pairs();
  void expect_same_bytes_again();
  void expect_voice_sets_that_fit_together();
  void expect_made_once_and_never_over_other_files();
  void expect_codes_that_sound_like_their_clip();
  void expect_a_damaged_codebook_refused();

  static std::vector<nlohmann::json> lines(const DemoCorpus& corpus, const std::string& name) {
    std::istringstream content(read_file(path_join(corpus.folder, name), 1 << 24));
    std::vector<nlohmann::json> result;
    for (std::string line; std::getline(content, line);) result.push_back(nlohmann::json::parse(line));
    return result;
  }
  static Tensor array(const DemoCorpus& corpus, const nlohmann::json& path) {
    return read_npy(path_join(corpus.folder, path.get<std::string>()));
  }
  // Relative path -> content of every file.
  static std::map<std::string, std::string> files(const std::string& folder) {
    std::map<std::string, std::string> result;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      if (!entry.is_regular_file()) continue;
      result[std::filesystem::relative(entry.path(), folder)] = read_file(entry.path(), 1 << 26);
    }
    return result;
  }

  testing::TemporaryFolder folder_;
  DemoCorpus first_, second_;
};

void DemoCorpusTest::expect_arrays_as_the_manifests_say() {
  const Tokenizer tokenizer(path_join(first_.folder, "tokenizer/demo.model"));
  std::set<std::string> speakers;
  std::size_t clips = 0;
  for (const char* name : {"train_manifest.jsonl", "val_manifest.jsonl"}) {
    for (const nlohmann::json& clip : lines(first_, name)) {
      ++clips;
      speakers.insert(clip["speaker"]);
      const Tensor text = array(first_, clip["text_ids_path"]), codes = array(first_, clip["codes_path"]);
      const Tensor condition = array(first_, clip["condition_path"]), emotion = array(first_, clip["emo_vec_path"]);
      EXPECT_EQ(text.dtype, DType::kInt32);
      EXPECT_EQ(codes.dtype, DType::kInt32);
      EXPECT_EQ(text.shape, std::vector<std::int64_t>{clip["text_len"].get<std::int64_t>()});
      EXPECT_EQ(codes.shape, std::vector<std::int64_t>{clip["code_len"].get<std::int64_t>()});
      ASSERT_EQ(condition.shape.size(), 2u);
      EXPECT_EQ(condition.shape[0], 32);
      EXPECT_EQ(emotion.shape, std::vector<std::int64_t>{condition.shape[1]});
      EXPECT_NEAR(clip["duration"].get<double>() * 50, clip["code_len"].get<double>(), 1.01) << "50 codes a second";
      for (const std::int64_t code : to_int_vector(codes)) EXPECT_TRUE(code >= 0 && code < 8192);
      // What the trainer would get from the text itself: the stored ids, none of them unknown.
      const std::vector<std::int32_t> ids = tokenizer.encode(clip["text"].get<std::string>(), "am");
      EXPECT_EQ(std::vector<std::int64_t>(ids.begin(), ids.end()), to_int_vector(text));
      EXPECT_EQ(std::count(ids.begin(), ids.end(), Tokenizer::kUnknown), 0);
    }
  }
  EXPECT_EQ(clips, 72u);
  EXPECT_EQ(speakers.size(), 6u);
}

void DemoCorpusTest::expect_complete_pairs() {
  std::set<std::string> validation;
  for (const auto& clip : lines(first_, "val_manifest.jsonl")) {
    validation.insert(clip["id"]);
    EXPECT_TRUE(file_exists(path_join(first_.folder, clip["audio_path"].get<std::string>())));
  }
  for (const char* name :
       {"train_pairs.jsonl", "val_pairs.jsonl", "train_pairs_online.jsonl", "val_pairs_online.jsonl"}) {
    const bool online = std::string(name).find("online") != std::string::npos;
    const auto pairs = lines(first_, name);
    EXPECT_GT(pairs.size(), 5u) << name;
    std::set<std::string> ids;
    for (const auto& pair : pairs) {
      EXPECT_TRUE(ids.insert(pair["id"]).second);
      EXPECT_NE(pair["prompt_id"], pair["target_id"]);
      EXPECT_EQ(validation.count(pair["target_id"]), validation.count(pair["prompt_id"]));
      for (const char* key : {"prompt_condition_path", "prompt_emo_vec_path", "target_text_ids_path",
                              "target_codes_path", "target_emo_vec_path"}) {
        EXPECT_TRUE(file_exists(path_join(first_.folder, pair[key].get<std::string>()))) << key;
      }
      EXPECT_EQ(pair.contains("prompt_features_path"), online);
      if (online) {
        const Tensor features = array(first_, pair["prompt_features_path"]);
        ASSERT_EQ(features.shape.size(), 2u);
        EXPECT_EQ(features.shape[1], 1024);
        EXPECT_EQ(features.shape[0], std::lround(pair["prompt_duration"].get<double>() * 50 - 0.5));
      }
    }
  }
}

void DemoCorpusTest::expect_same_bytes_again() {
  const DemoCorpus again = make_demo_corpus({folder_.file("again"), 72, 11, "first"});
  const auto a = files(first_.folder), b = files(again.folder);
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, content] : a) EXPECT_EQ(content, b.at(name)) << name;
}

void DemoCorpusTest::expect_voice_sets_that_fit_together() {
  const auto a = files(first_.folder), b = files(second_.folder);
  for (const char* name :
       {"tokenizer/demo.model", "codebook/centroids.npy", "codebook/code_ids.npy", "codebook/speaker_mel.npy"}) {
    EXPECT_EQ(a.at(name), b.at(name)) << name;
  }
  std::set<std::string> ids;
  for (const DemoCorpus& corpus : {first_, second_}) {
    for (const auto& clip : lines(corpus, "source.jsonl")) EXPECT_TRUE(ids.insert(clip["id"]).second);
  }
}

void DemoCorpusTest::expect_made_once_and_never_over_other_files() {
  const DemoCorpus same = make_demo_corpus({first_.folder, 72, 11, "first"});
  EXPECT_TRUE(same.already_there);
  EXPECT_FALSE(first_.already_there);
  EXPECT_EQ(same.train_pairs, first_.train_pairs);
  EXPECT_EQ(same.hours, first_.hours);
  const auto expect_refused = [](const DemoOptions& options, const char* code) {
    try {
      make_demo_corpus(options);
      FAIL() << options.out;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
    }
  };
  expect_refused({first_.folder, 73, 11, "first"}, "IO003");
  folder_.write("taken/notes.txt", "mine");
  expect_refused({folder_.file("taken"), 72, 11, "first"}, "IO003");
  EXPECT_TRUE(file_exists(folder_.file("taken/notes.txt")));
  expect_refused({folder_.file("new"), 72, 11, "third"}, "ARG001");
  expect_refused({folder_.file("new"), 1, 11, "first"}, "ARG001");
  expect_refused({folder_.file("new"), 1'000'000'000, 11, "first"}, "ARG001");
}

void DemoCorpusTest::expect_codes_that_sound_like_their_clip() {
  const DemoVocoder vocoder(path_join(first_.folder, "codebook"));
  const auto clip = lines(first_, "val_manifest.jsonl").at(0);
  std::vector<std::int32_t> codes;
  for (const std::int64_t code : to_int_vector(array(first_, clip["codes_path"]))) {
    codes.push_back(static_cast<std::int32_t>(code));
  }
  const std::vector<float> samples = vocoder.synthesize(codes, clip["speaker"]);
  ASSERT_EQ(samples.size(), codes.size() * kFrameHop);
  EXPECT_EQ(samples, vocoder.synthesize(codes, clip["speaker"])) << "deterministic";
  EXPECT_LE(*std::max_element(samples.begin(), samples.end()), 0.951F);

  const std::string wav = read_file(path_join(first_.folder, clip["audio_path"].get<std::string>()), 1 << 26);
  const std::vector<float> truth = log_mel(parse_wav(wav, kDemoSampleRate));
  const std::vector<float> wanted = vocoder.log_mel(codes, clip["speaker"]), heard = log_mel(samples);
  // Decibels of amplitude, over frames with speech; frames of silence have no meaningful level.
  const auto decibels = [](const std::vector<float>& x, const std::vector<float>& y) {
    double sum = 0, count = 0;
    for (std::size_t frame = 0; frame < std::min(x.size(), y.size()) / kMelBands; ++frame) {
      double level = 0;
      for (std::size_t band = 0; band < kMelBands; ++band) level += x[frame * kMelBands + band] / kMelBands;
      if (level < -3) continue;
      for (std::size_t band = 0; band < kMelBands; ++band) {
        const double difference = x[frame * kMelBands + band] - y[frame * kMelBands + band];
        sum += difference * difference;
        ++count;
      }
    }
    return 20 / std::log(10.0) * std::sqrt(sum / count);
  };
  std::vector<float> reversed;
  for (std::size_t frame = truth.size() / kMelBands; frame-- > 0;) {
    reversed.insert(reversed.end(), &truth[frame * kMelBands], &truth[frame * kMelBands] + kMelBands);
  }
  RecordProperty("codes_db", std::to_string(decibels(truth, wanted)));
  RecordProperty("sound_db", std::to_string(decibels(wanted, heard)));
  EXPECT_LT(decibels(truth, wanted), 8.0) << "128 spectral shapes";
  EXPECT_LT(decibels(wanted, heard), 4.0) << "Griffin-Lim";
  EXPECT_LT(decibels(truth, heard), 9.0);
  EXPECT_GT(decibels(reversed, heard), 1.4 * decibels(truth, heard)) << "nearer to its own clip than to another order";
  EXPECT_THROW(vocoder.synthesize(std::vector<std::int32_t>{8192}, clip["speaker"]), Error);
}

void DemoCorpusTest::expect_a_damaged_codebook_refused() {
  const std::string folder = folder_.file("damaged");
  for (const char* name : {"centroids.npy", "code_ids.npy", "speaker_mel.npy", "speakers.json"}) {
    std::filesystem::remove_all(folder);
    std::filesystem::copy(path_join(first_.folder, "codebook"), folder);
    const std::string path = path_join(folder, name);
    const std::string content = read_file(path, 1 << 24);
    write_file_atomically(path, content.substr(0, content.size() / 2));
    EXPECT_THROW(DemoVocoder{folder}, Error) << name;
    remove_file(path);
    EXPECT_THROW(DemoVocoder{folder}, Error) << name;
  }
}

TEST_F(DemoCorpusTest, IsCompleteDeterministicAndAudible) {
  expect_arrays_as_the_manifests_say();
  expect_complete_pairs();
  expect_same_bytes_again();
  expect_voice_sets_that_fit_together();
  expect_made_once_and_never_over_other_files();
  expect_codes_that_sound_like_their_clip();
  expect_a_damaged_codebook_refused();
}

}  // namespace
}  // namespace train_gpt_v2
