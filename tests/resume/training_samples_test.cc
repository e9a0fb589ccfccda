// Samples between two steps: what lies in RUN/samples/step_N, and that training does not notice (interface.md §2, §3).

#include "train_gpt_v2/train/training_samples.h"

#include <algorithm>

#include "support/event_file.h"
#include "support/fixture_run.h"
#include "train_gpt_v2/app/model_source.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/npy.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/train/listening_sheet.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using testing::fixture_options;
using testing::metrics_of;
using testing::TemporaryFolder;
using Json = nlohmann::json;

// Eight steps with dropout and averages; samples of at most twelve codes.
Options sampling_run(const std::vector<std::string>& sets = {}) {
  std::vector<std::string> all = {"train.layout=packed",   "train.loss_normalization=window_tokens",
                                  "train.max_steps=8",     "optimizer.total_steps=null",
                                  "model.dropout=0.1",     "optimizer.schedule=cosine",
                                  "validation.interval=4", "checkpoint.interval=4",
                                  "train.batch_size=4",    "ema.enabled=true",
                                  "sampling.interval=4",   "sampling.count=2",
                                  "sampling.max_codes=12"};
  all.insert(all.end(), sets.begin(), sets.end());
  return fixture_options(all);
}

ExitStatus train(const Options& options, const std::string& directory, Vocoder vocoder = {}) {
  reset_signal_flags();
  SessionRequest request;
  request.options = options;
  request.run_directory = directory;
  request.build = "test";
  request.vocoder = std::move(vocoder);
  return run_training(request);
}

std::vector<Json> events(const std::string& directory, const std::string& name) {
  std::vector<Json> found;
  for (const Json& line : metrics_of(directory, "event")) {
    if (line.at("event") == name) found.push_back(line);
  }
  return found;
}

std::vector<Json> records(const std::string& folder) {
  std::vector<Json> found;
  for (const std::string& line : split(read_file(folder + "/samples.jsonl", 1 << 20), '\n')) {
    if (!line.empty()) found.push_back(Json::parse(line));
  }
  return found;
}

std::vector<std::vector<double>> losses(const std::string& directory) {
  std::vector<std::vector<double>> found;
  for (const char* type : {"train", "validation"}) {
    for (const Json& line : metrics_of(directory, type)) {
      found.push_back(
          {line.at("step").get<double>(), line.at("text_loss").get<double>(), line.at("mel_loss").get<double>()});
    }
  }
  return found;
}

void expect_same_state(const std::string& a, const std::string& b) {
  const LoadedFile first = read_tensor_file(a), second = read_tensor_file(b);
  for (const char* key : {"model", "optimizer", "ema_state", "step", "epoch", "batch_idx"}) {
    EXPECT_TRUE(identical(first.root.at(key), second.root.at(key))) << key;
  }
}

TEST(TrainingSamples, TrainingIsBitIdenticalWithAndWithout) {
  for (const char* engine : {"fused", "modules"}) {
    const TemporaryFolder folder;
    const std::string choice = concat("train.engine=", engine);
    ASSERT_EQ(train(sampling_run({choice, "sampling.interval=1"}), folder.file("with")), ExitStatus::kOk);
    ASSERT_EQ(train(sampling_run({choice, "sampling.interval=0"}), folder.file("without")), ExitStatus::kOk);
    EXPECT_EQ(events(folder.file("with"), "sample").size(), 8u);
    EXPECT_FALSE(directory_exists(folder.file("without/samples")));
    EXPECT_EQ(losses(folder.file("with")), losses(folder.file("without"))) << engine;
    expect_same_state(folder.file("with/latest.pt"), folder.file("without/latest.pt"));
  }
}

TEST(TrainingSamples, WritesTheFilesOfSampleAndTheSheet) {
  const TemporaryFolder folder;
  ASSERT_EQ(train(sampling_run({"sampling.baseline_step=0"}), folder.file("run")), ExitStatus::kOk);
  const std::vector<Json> told = events(folder.file("run"), "sample");
  ASSERT_EQ(told.size(), 3u);  // 0, 4 and 8
  EXPECT_EQ(told[0].at("step"), 0);
  EXPECT_EQ(told[1].at("weights"), "ema");
  EXPECT_EQ(told[1].at("count"), 2);
  std::istringstream manifest(read_file(data_path("fixtures/data/val_pairs.jsonl"), 1 << 20));
  for (const std::string step : {"step_0", "step_4", "step_8"}) {
    const std::string samples = folder.file("run/samples/" + step);
    const std::vector<Json> lines = records(samples);
    ASSERT_EQ(lines.size(), 2u);
    const auto notes = parse_listening_sheet(read_file(samples + "/notes.json", 1 << 20));
    ASSERT_EQ(notes.size(), 2u);
    manifest.seekg(0);
    for (std::size_t i = 0; i < 2; ++i) {
      std::string line;
      std::getline(manifest, line);
      const Json pair = Json::parse(line);
      EXPECT_EQ(lines[i].at("id"), pair.at("id"));
      EXPECT_EQ(notes[i].id, pair.at("id"));
      EXPECT_EQ(notes[i].text, pair.at("target_text"));
      EXPECT_EQ(notes[i].judgements[0], "");
      EXPECT_LE(lines[i].at("length"), 12);
      EXPECT_DOUBLE_EQ(lines[i].at("length_ratio"),
                       lines[i].at("length").get<double>() / pair.at("target_code_len").get<double>());
      const std::string stem = samples + "/" + pair.at("id").get<std::string>();
      EXPECT_EQ(read_npy(stem + ".npy").numel(), lines[i].at("length"));
      EXPECT_TRUE(file_exists(stem + ".png"));
      EXPECT_FALSE(file_exists(stem + ".wav"));
    }
  }
}

// What training wrote at step 4 is what the averaged weights of its checkpoint give, and not what the raw ones give.
TEST(TrainingSamples, SpeaksWithTheAveragedWeights) {
  const TemporaryFolder folder;
  const Options options = sampling_run({"ema.warmup=false", "optimizer.learning_rate=1e-2"});
  ASSERT_EQ(train(options, folder.file("run")), ExitStatus::kOk);
  const std::vector<Json> written = records(folder.file("run/samples/step_4"));
  for (const std::string weights : {"ema", "raw"}) {
    ModelRequest request;
    request.checkpoint = folder.file("run/model_step4.pth");
    request.weights = weights;
    const ModelSource source = load_model(request);
    const Dataset pairs(options.data.val_manifests, {}, options.data, options.model,
                        std::make_shared<const Tokenizer>(options.data.tokenizer));
    const auto again = write_samples(*source.model, validation_cases(pairs, 2), &pairs,
                                     {folder.file(weights), options.sampling.decoding, 8, {}, {}});
    ASSERT_EQ(again.records.size(), written.size());
    for (std::size_t i = 0; i < written.size(); ++i) {
      const double logprob = written[i].at("mean_logprob");
      if (weights == "ema") {
        EXPECT_EQ(again.records[i].mean_logprob, logprob);
        EXPECT_EQ(again.records[i].codes, written[i].at("codes").get<std::vector<std::int32_t>>());
      } else {
        EXPECT_NE(again.records[i].mean_logprob, logprob);
      }
    }
  }
}

TEST(TrainingSamples, AStopInTheMiddleSavesAndTheNextStartCatchesUp) {
  const TemporaryFolder folder;
  const Options options = sampling_run();
  ASSERT_EQ(train(options, folder.file("whole")), ExitStatus::kOk);
  int calls = 0;
  const Vocoder interrupted = [&calls](const VocoderInput& input, const std::string&) {
    if (++calls == 1) request_stop(ExitStatus::kSigint);
    EXPECT_TRUE(input.stop());
    throw Error("IO007", "ended by the stop");
  };
  EXPECT_EQ(train(options, folder.file("parts"), interrupted), ExitStatus::kSigint);
  EXPECT_TRUE(file_exists(folder.file("parts/model_step4.pth")));
  EXPECT_FALSE(file_exists(folder.file("parts/DONE")));
  EXPECT_FALSE(file_exists(folder.file("parts/samples/step_4/notes.json")));
  EXPECT_TRUE(events(folder.file("parts"), "sample").empty());
  ASSERT_EQ(train(options, folder.file("parts")), ExitStatus::kOk);
  EXPECT_EQ(events(folder.file("parts"), "sample").size(), 2u);
  EXPECT_EQ(losses(folder.file("whole")), losses(folder.file("parts")));
  expect_same_state(folder.file("whole/latest.pt"), folder.file("parts/latest.pt"));
  for (const char* step : {"4", "8"}) {
    const std::string name = concat("samples/step_", step);
    const std::vector<Json> a = records(folder.file("whole/" + name)), b = records(folder.file("parts/" + name));
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i].at("codes"), b[i].at("codes"));
  }
}

TEST(TrainingSamples, AFailingVocoderCostsTheSoundOnly) {
  const TemporaryFolder folder;
  int calls = 0;
  const Vocoder half = [&calls](const VocoderInput& input, const std::string& path) {
    if (++calls % 2 == 0) throw Error("IO007", "no voice today").detail(input.one.id);
    write_file_atomically(path, "RIFF");
  };
  EXPECT_EQ(train(sampling_run(), folder.file("run"), half), ExitStatus::kOk);
  const std::vector<Json> told = events(folder.file("run"), "sample");
  ASSERT_EQ(told.size(), 2u);
  EXPECT_EQ(told[0].at("without_sound"), 1);
  EXPECT_EQ(records(folder.file("run/samples/step_4")).size(), 2u);
  EXPECT_TRUE(file_exists(folder.file("run/DONE")));
}

TEST(TrainingSamples, AFolderThatCannotBeWrittenDoesNotStopTraining) {
  const TemporaryFolder folder;
  folder.write("run/samples", "a file is in the way");
  EXPECT_EQ(train(sampling_run(), folder.file("run")), ExitStatus::kOk);
  EXPECT_EQ(events(folder.file("run"), "sample_failed").size(), 2u);
  EXPECT_TRUE(file_exists(folder.file("run/DONE")));
}

TEST(TrainingSamples, ASheetThatSomeoneFilledInStays) {
  const TemporaryFolder folder;
  ASSERT_EQ(train(sampling_run(), folder.file("run")), ExitStatus::kOk);
  const std::string path = folder.file("run/samples/step_8/notes.json");
  Json sheet = Json::parse(read_file(path, 1 << 20));
  sheet["samples"][1]["speaker"] = 4;
  write_file_atomically(path, sheet.dump());
  for (const char* name : {"DONE", "latest.pt", "latest.pth", "model_step8.pth"})
    remove_file(folder.file(concat("run/", name)));
  ASSERT_EQ(train(sampling_run(), folder.file("run")), ExitStatus::kOk);
  EXPECT_EQ(read_file(path, 1 << 20), sheet.dump());
  EXPECT_EQ(events(folder.file("run"), "sample").size(), 2u);
}

TEST(TrainingSamples, CasesAreCheckedBeforeTheFirstStep) {
  const TemporaryFolder folder;
  const std::string cases = folder.write("cases.jsonl", R"({"id":"a","text":"ሰላም","prompt":"nobody"})"
                                                        "\n");
  const Options options = sampling_run({"sampling.cases=" + cases});
  try {
    train(options, folder.file("run"));
    FAIL() << "an unknown prompt was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "DAT009");
  }
  EXPECT_FALSE(file_exists(folder.file("run/model_step4.pth")));
}

TEST(TrainingSamples, CasesWithFeaturesNeedTheConditioners) {
  const TemporaryFolder folder;
  const Json one{{"id", "voice"},
                 {"text_ids", {5, 6, 7}},
                 {"speaker_features_path", data_path("fixtures/data/features/spk000_000000.npy")}};
  const std::string cases = "sampling.cases=" + folder.write("cases.jsonl", one.dump() + "\n");
  ASSERT_EQ(train(sampling_run({cases, "train.max_steps=4"}), folder.file("whole")), ExitStatus::kOk);
  EXPECT_TRUE(file_exists(folder.file("whole/samples/step_4/voice.npy")));
  try {
    train(sampling_run({cases, "init.from=" + data_path("fixtures/model/gpt_model_key.pth")}), folder.file("part"));
    FAIL() << "conditioners that never were trained spoke";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "CKP005");
  }
}

TEST(TrainingSamples, CasesOfAFileAreSpoken) {
  const TemporaryFolder folder;
  const std::string pair =
      Json::parse(split(read_file(data_path("fixtures/data/val_pairs.jsonl"), 1 << 20), '\n')[0]).at("id");
  const Json one{{"id", "greeting"}, {"text", "ሰላም"}, {"prompt", pair}, {"category", "common phrase"}};
  const std::string cases = folder.write("cases.jsonl", one.dump() + "\n");
  ASSERT_EQ(train(sampling_run({"sampling.cases=" + cases, "ema.enabled=false"}), folder.file("run")), ExitStatus::kOk);
  EXPECT_EQ(events(folder.file("run"), "sample").at(0).at("weights"), "raw");
  const auto notes = parse_listening_sheet(read_file(folder.file("run/samples/step_4/notes.json"), 1 << 20));
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0].category, "common phrase");
  EXPECT_TRUE(file_exists(folder.file("run/samples/step_4/greeting.npy")));
}

// A WAVE file of one channel, 16 bit, 8 kHz.
std::string silence(std::size_t frames) {
  const auto number = [](std::size_t value, int bytes) {
    std::string out;
    for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
    return out;
  };
  return "RIFF" + number(36 + 2 * frames, 4) + "WAVEfmt " + number(16, 4) + number(1, 2) + number(1, 2) +
         number(8000, 4) + number(16000, 4) + number(2, 2) + number(16, 2) + "data" + number(2 * frames, 4) +
         std::string(2 * frames, '\0');
}

// One run with everything on: what TensorBoard gets to see.
TEST(TrainingSamples, TheEventFileShowsCurvesLengthsPicturesSoundAndSettings) {
  const TemporaryFolder folder;
  const Vocoder mute = [](const VocoderInput&, const std::string& path) { write_file_atomically(path, silence(100)); };
  const Options options = sampling_run({"logging.tensorboard=true", "validation.text_usage_gap=true"});
  ASSERT_EQ(train(options, folder.file("run"), mute), ExitStatus::kOk);
  std::map<int, std::set<std::string>> tags;  // field of Summary.Value -> tags
  for (const std::string& name : list_directory(folder.file("run"))) {
    if (!starts_with(name, "events.out.tfevents.")) continue;
    for (const std::string& record : testing::records(folder.file("run/" + name))) {
      const testing::Message event = testing::parse(record);
      if (event.count(5) == 0) continue;
      const testing::Message value = testing::value_of(event);
      for (const int kind : {2, 4, 5, 6, 8}) {
        if (value.count(kind) > 0) tags[kind].insert(testing::field(value, 1));
      }
    }
  }
  EXPECT_GE(tags[2].size(), 30u);
  for (const char* tag : {"train/mel_loss", "train/model_tflops", "train/padding_share", "validation_ema/mel_top5",
                          "validation_raw/text_usage_gap", "lr/default", "samples/length_ratio"}) {
    EXPECT_EQ(tags[2].count(tag), 1u) << tag;
  }
  EXPECT_EQ(tags[4].size(), 2u);  // alignments
  EXPECT_EQ(tags[5], (std::set<std::string>{"data/code_length", "data/text_length"}));
  EXPECT_EQ(tags[6].size(), 2u);  // sounds
  EXPECT_EQ(tags[8].count("config"), 1u);
}

}  // namespace
}  // namespace train_gpt_v2
