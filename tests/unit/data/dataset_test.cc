#include "train_gpt_v2/data/dataset.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <thread>

#include "train_gpt_v2/core/filesystem.h"
#include "unit/data/data_test_support.h"

namespace train_gpt_v2 {
namespace {

using ::testing::AllOf;
using testing::array_of;
using testing::data_path;
using ::testing::ElementsAre;
using testing::fixture_model;
using ::testing::HasSubstr;
using testing::pair_line;
using testing::PairLengths;
using ::testing::SizeIs;
using testing::TemporaryFolder;
using testing::tiny_model;
using testing::write_array;

DataOptions with(const std::string& on_overlong, const std::string& on_bad = "stop", double fraction = 1) {
  DataOptions options;
  options.on_overlong = on_overlong;
  options.on_bad_sample = on_bad;
  options.max_bad_fraction = fraction;
  return options;
}

template <typename Body>
std::string report_of(Body body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_FALSE(error.hint().empty()) << "every message says what to do";
    EXPECT_NE(error.status(), ExitStatus::kInternal) << error.code() << " must be registered";
    return error.report();
  }
  return "";
}

TEST(Dataset, ReadsTheFixturePairs) {
  const Dataset data({data_path("fixtures/data/train_pairs.jsonl")}, {}, {}, fixture_model());
  ASSERT_EQ(data.size(), 24u);
  EXPECT_EQ(data.epoch_size(), 24u);
  EXPECT_EQ(data.records(), 24u);
  EXPECT_EQ(data.speakers().size(), 4u);
  EXPECT_TRUE(data.has_speaker("spk003"));
  EXPECT_FALSE(data.has_speaker("spk004"));
  EXPECT_THAT(data.languages(), ElementsAre("am"));
  EXPECT_EQ(data.id(0), "spk000_000001__spk000_000000");
  EXPECT_EQ(data.place(1), data_path("fixtures/data/train_pairs.jsonl") + ":2");
  Batch batch;
  for (std::uint32_t i = 0; i < data.size(); ++i) {
    data.load(i, batch);
    EXPECT_EQ(batch.text_length(i), data.info(i).text_length);
    EXPECT_EQ(batch.code_length(i), data.info(i).code_length);
    EXPECT_EQ(data.find(data.id(i)), i);
  }
  EXPECT_EQ(batch.count(), 24);
  EXPECT_EQ(batch.condition.size(), 24u * 32 * 64);
  EXPECT_EQ(batch.emo_vec.size(), 24u * 64);
  EXPECT_TRUE(batch.features.empty());
  // Pair 0 by itself: text and codes of spk000_000001, the prompt's condition of spk000_000000.
  const std::string folder = data_path("fixtures/data/");
  const auto codes = to_int_vector(read_npy(folder + "codes/spk000_000001.npy"));
  const auto condition = to_float_vector(read_npy(folder + "condition/spk000_000000.npy"));
  const auto emotion = to_float_vector(read_npy(folder + "emo_vec/spk000_000000.npy"));
  EXPECT_TRUE(std::equal(codes.begin(), codes.end(), batch.codes.begin()));
  EXPECT_TRUE(std::equal(condition.begin(), condition.end(), batch.condition.begin()));
  EXPECT_TRUE(std::equal(emotion.begin(), emotion.end(), batch.emo_vec.begin()));
}

TEST(Dataset, TextIsTokenisedToTheIdsThatPreprocessingStored) {
  const auto tokenizer = std::make_shared<const Tokenizer>(data_path("fixtures/tokenizer/extended.model"));
  const Dataset stored({data_path("fixtures/data/train_pairs.jsonl")}, {}, {}, fixture_model(), tokenizer);
  const TemporaryFolder folder;
  std::filesystem::copy(data_path("fixtures/data"), folder.path(),
                        std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
  std::string manifest = read_file(folder.file("train_pairs.jsonl"), 1 << 20);
  for (std::size_t at = 0; (at = manifest.find("\"target_text_ids_path\"", at)) != std::string::npos;) {
    manifest.replace(at, 22, "\"not_any_more\"");
  }
  DataOptions amharic;
  amharic.language = "am";
  const Dataset text({folder.write("text.jsonl", manifest)}, {}, amharic, fixture_model(), tokenizer);
  ASSERT_EQ(text.size(), 24u);
  Batch a, b;
  for (std::uint32_t i = 0; i < 24; ++i) {
    EXPECT_EQ(text.info(i).text_length, stored.info(i).text_length);
    stored.load(i, a);
    text.load(i, b);
  }
  EXPECT_EQ(a.text, b.text);
  EXPECT_EQ(a.text_begin, b.text_begin);
  EXPECT_NE(text.fingerprint(), stored.fingerprint());
  ModelOptions other = fixture_model();
  other.number_text_tokens = 160;
  EXPECT_THAT(report_of([&] { Dataset({folder.file("text.jsonl")}, {}, {}, other, tokenizer); }),
              AllOf(HasSubstr("TOK003"), HasSubstr("360"), HasSubstr("160")));
}

TEST(Dataset, OnlineConditioningReadsFeatures) {
  const TemporaryFolder folder;
  std::filesystem::copy(data_path("fixtures/data"), folder.path(), std::filesystem::copy_options::recursive);
  std::string manifest;
  for (const char* target : {"spk000_000001", "spk000_000002"}) {
    manifest += concat(
        R"({"id": ")", target,
        R"(", "prompt_features_path": "features/spk000_000000.npy", "target_text_ids_path": "text_ids/)", target,
        R"(.npy", "target_codes_path": "codes/)", target, R"(.npy")",
        std::string(target).back() == '2' ? R"(, "emo_features_path": "features/spk001_000000.npy"})" : "}", "\n");
  }
  ModelOptions model = fixture_model();
  model.conditioning = "online";
  const Dataset data({folder.write("online.jsonl", manifest)}, {}, {}, model);
  EXPECT_EQ(data.info(0).code_length, 32) << "lengths come from the headers";
  Batch batch;
  data.load(0, batch);
  EXPECT_TRUE(batch.emo_features.empty());
  const std::int64_t frames = batch.frame_begin.back();
  data.load(1, batch);
  data.load(0, batch);
  const Tensor emotion = read_npy(folder.file("features/spk001_000000.npy"));
  EXPECT_THAT(batch.frame_begin, ElementsAre(0, frames, 2 * frames, 3 * frames));
  EXPECT_THAT(batch.emo_frame_begin, ElementsAre(0, frames, frames + emotion.shape[0], 2 * frames + emotion.shape[0]));
  EXPECT_EQ(batch.features.size(), static_cast<std::size_t>(3 * frames) * 1024);
  EXPECT_EQ(batch.emo_features.size(), static_cast<std::size_t>(2 * frames + emotion.shape[0]) * 1024);
  EXPECT_TRUE(std::equal(batch.features.begin(), batch.features.begin() + frames * 1024, batch.emo_features.begin()));
  EXPECT_EQ(batch.emo_features[static_cast<std::size_t>(frames) * 1024], to_float_vector(emotion)[0]);
  EXPECT_TRUE(batch.condition.empty());
}

// One pair with arrays, which each test below spoils in one way.
struct OnePair {
  OnePair() {
    testing::write_arrays(folder, {{5, 6}});
    manifest = testing::write_manifest(folder, "pairs.jsonl", {{5, 6}});
  }
  std::string load_report(const DataOptions& options = {}) const {
    const Dataset data({manifest}, {}, options, tiny_model());
    Batch batch;
    const std::string report = report_of([&] { data.load(0, batch); });
    EXPECT_EQ(batch.count(), report.empty() ? 1 : 0);
    EXPECT_EQ(batch.condition.size(), report.empty() ? 12u : 0u) << "a failed load leaves the batch as it was";
    EXPECT_EQ(batch.text.size() + batch.codes.size(), report.empty() ? 11u : 0u);
    return report;
  }
  void codes(std::vector<std::int32_t> values) const {
    write_array(folder.file("codes_u0.npy"),
                array_of(DType::kInt32, {static_cast<std::int64_t>(values.size())}, values));
  }
  void text(std::vector<std::int32_t> values) const {
    write_array(folder.file("text_u0.npy"),
                array_of(DType::kInt32, {static_cast<std::int64_t>(values.size())}, values));
  }
  TemporaryFolder folder;
  std::string manifest;
};

TEST(Dataset, RefusesCodesAndIdsOutsideTheirRange) {
  const OnePair pair;
  EXPECT_EQ(pair.load_report(), "");
  for (const std::int32_t bad : {-1, 224, 225, 226, 2'000'000'000}) {
    pair.codes({1, 2, bad, 4, 5, 6});
    EXPECT_THAT(pair.load_report(),
                AllOf(HasSubstr("DAT004"), HasSubstr(concat("code ", bad, " at element 2")), HasSubstr("pairs.jsonl:1"),
                      HasSubstr("sample: u0"), HasSubstr("codes_u0.npy")));
  }
  pair.codes({0, 223, 0, 0, 0, 0});
  EXPECT_EQ(pair.load_report(), "");
  for (const std::int32_t bad : {-1, 360, 361}) {
    pair.text({3, 3, 3, 3, bad});
    EXPECT_THAT(pair.load_report(), AllOf(HasSubstr("DAT005"), HasSubstr(concat("id ", bad, " at element 4"))));
  }
  pair.text({0, 1, 2, 359, 3});
  EXPECT_EQ(pair.load_report(), "");
}

TEST(Dataset, RefusesArraysOfAnotherShapeTypeOrLength) {
  const OnePair pair;
  pair.codes({1, 2, 3});
  EXPECT_THAT(pair.load_report(), AllOf(HasSubstr("DAT006"), HasSubstr("manifest  6"), HasSubstr("array     3")));
  write_array(pair.folder.file("codes_u0.npy"), array_of(DType::kInt32, {2, 3}, std::vector<std::int32_t>(6)));
  EXPECT_THAT(pair.load_report(), AllOf(HasSubstr("DAT006"), HasSubstr("[2, 3]")));
  write_array(pair.folder.file("codes_u0.npy"), array_of(DType::kFloat32, {6}, std::vector<float>(6)));
  EXPECT_THAT(pair.load_report(), AllOf(HasSubstr("DAT006"), HasSubstr("float32")));
  write_array(pair.folder.file("codes_u0.npy"), array_of(DType::kInt64, {6}, std::vector<std::int64_t>(6, 9)));
  EXPECT_EQ(pair.load_report(), "");
  pair.folder.write("codes_u0.npy", "no array at all");
  EXPECT_THAT(pair.load_report(), AllOf(HasSubstr("IO006"), HasSubstr("sample: u0"), HasSubstr("pairs.jsonl:1")));
  remove_file(pair.folder.file("codes_u0.npy"));
  EXPECT_THAT(pair.load_report(), AllOf(HasSubstr("IO001"), HasSubstr("codes_u0.npy")));
  ASSERT_EQ(::mkfifo(pair.folder.file("codes_u0.npy").c_str(), 0600), 0);
  EXPECT_THAT(pair.load_report(), HasSubstr("IO004"));
}

TEST(Dataset, RefusesConditionsThatDoNotFitOrAreNotFinite) {
  const OnePair pair;
  const auto condition = [&](std::vector<std::int64_t> shape, std::vector<float> values) {
    write_array(pair.folder.file("condition.npy"), array_of(DType::kFloat32, std::move(shape), values));
  };
  condition({3, 4}, std::vector<float>(12));
  EXPECT_THAT(pair.load_report(), AllOf(HasSubstr("DAT006"), HasSubstr("[4, 3]"), HasSubstr("[3, 4]")));
  std::vector<float> values(12, 1);
  values[7] = std::numeric_limits<float>::quiet_NaN();
  condition({4, 3}, values);
  EXPECT_THAT(pair.load_report(), AllOf(HasSubstr("DAT007"), HasSubstr("element 7"), HasSubstr("condition.npy")));
  values[7] = std::numeric_limits<float>::infinity();
  condition({4, 3}, values);
  EXPECT_THAT(pair.load_report(), HasSubstr("DAT007"));
  write_array(pair.folder.file("condition.npy"), array_of(DType::kInt32, {4, 3}, std::vector<std::int32_t>(12)));
  EXPECT_THAT(pair.load_report(), AllOf(HasSubstr("DAT006"), HasSubstr("int32")));
  // Half precision is read as well: 0x3C00 is 1.0.
  write_array(pair.folder.file("condition.npy"),
              array_of(DType::kFloat16, {4, 3}, std::vector<std::uint16_t>(12, 0x3C00)));
  const Dataset data({pair.manifest}, {}, {}, tiny_model());
  Batch batch;
  data.load(0, batch);
  EXPECT_EQ(batch.condition, std::vector<float>(12, 1.0F));
}

ModelOptions short_model() {
  ModelOptions model = tiny_model();
  model.max_text_tokens = 6;
  model.max_mel_tokens = 9;  // position table 9 + 3, so at most 10 codes
  return model;
}

TEST(Dataset, OverlongSamplesAreDroppedTrimmedOrRefused) {
  const std::vector<PairLengths> pairs{{6, 10}, {7, 10}, {6, 11}, {1, 1}};
  const TemporaryFolder folder;
  testing::write_arrays(folder, pairs);
  const std::string manifest = testing::write_manifest(folder, "pairs.jsonl", pairs);
  const Dataset dropped({manifest}, {}, with("drop"), short_model());
  ASSERT_EQ(dropped.size(), 2u);
  EXPECT_EQ(dropped.id(1), "u3");
  EXPECT_EQ(dropped.place(1), manifest + ":4");
  ASSERT_THAT(dropped.dropped(), SizeIs(2));
  EXPECT_EQ(dropped.dropped()[0].reason, "text longer than 6 ids");
  EXPECT_EQ(dropped.dropped()[1].reason, "more than 10 codes");
  EXPECT_EQ(dropped.dropped()[1].count, 1u);
  EXPECT_FALSE(dropped.dropped()[1].bad);
  EXPECT_THAT(dropped.dropped()[1].examples, ElementsAre(HasSubstr("pairs.jsonl:3: u2")));
  EXPECT_THAT(report_of([&] { dropped.find("u2"); }), AllOf(HasSubstr("DAT009"), HasSubstr("more than 10 codes")));

  const Dataset trimmed({manifest}, {}, with("trim"), short_model());
  ASSERT_EQ(trimmed.size(), 4u);
  Batch batch;
  for (const std::uint32_t i : {1U, 2U}) trimmed.load(i, batch);
  EXPECT_EQ(batch.text_length(0), 6);
  EXPECT_EQ(batch.code_length(1), 10);
  EXPECT_EQ(trimmed.info(2).code_length, 10);

  EXPECT_THAT(report_of([&] { Dataset({manifest}, {}, with("refuse"), short_model()); }),
              AllOf(HasSubstr("DAT003"), HasSubstr("pairs.jsonl:2"), HasSubstr("text 7 ids")));
}

// The same record without its lengths.
std::string without_lengths(std::string line) {
  for (const char* name : {"\"target_text_len\"", "\"target_code_len\""})
    line.replace(line.find(name), std::string(name).size(), concat("\"no", std::string(name).substr(1)));
  return line;
}

TEST(Dataset, TrimsWhetherTheLengthsAreStatedOrNot) {
  const TemporaryFolder folder;
  testing::write_arrays(folder, {{7, 12}, {7, 12}});
  const std::string manifest = folder.write("m.jsonl", pair_line("u0", {7, 12}) + without_lengths(pair_line("u1", {})));
  const Dataset data({manifest}, {}, with("trim"), short_model());
  Batch batch;
  for (const std::uint32_t i : {0U, 1U}) {
    data.load(i, batch);
    EXPECT_EQ(batch.text_length(i), 6);
    EXPECT_EQ(batch.code_length(i), 10);
    EXPECT_EQ(data.info(i).text_length, 6);
    EXPECT_EQ(data.info(i).code_length, 10);
  }
  // Another array than at opening.
  write_array(folder.file("codes_u1.npy"), array_of(DType::kInt32, {9}, std::vector<std::int32_t>(9)));
  EXPECT_THAT(report_of([&] { data.load(1, batch); }),
              AllOf(HasSubstr("DAT006"), HasSubstr("opening   10"), HasSubstr("array     9")));
}

TEST(Dataset, RefusesLengthsThatAreStatedWrongWhenItTrims) {
  const TemporaryFolder folder;
  testing::write_arrays(folder, {{7, 12}});
  const auto report = [&](const PairLengths& stated) {
    const Dataset data({folder.write("m.jsonl", pair_line("u0", stated))}, {}, with("trim"), short_model());
    Batch batch;
    return report_of([&] { data.load(0, batch); });
  };
  EXPECT_EQ(report({7, 12}), "");
  EXPECT_THAT(report({8, 12}), AllOf(HasSubstr("DAT006"), HasSubstr("manifest  8"), HasSubstr("array     7")));
  EXPECT_THAT(report({6, 12}), HasSubstr("manifest  6"));
  EXPECT_THAT(report({7, 13}), AllOf(HasSubstr("manifest  13"), HasSubstr("array     12")));
  EXPECT_THAT(report({7, 10}), HasSubstr("manifest  10"));
}

TEST(Dataset, FindsMissingLengthsInTheArrays) {
  const TemporaryFolder folder;
  testing::write_arrays(folder, {{5, 6}});
  const std::string line = without_lengths(pair_line("u0", {0, 0}));
  const Dataset data({folder.write("m.jsonl", line)}, {}, {}, tiny_model());
  EXPECT_EQ(data.info(0).text_length, 5);
  EXPECT_EQ(data.info(0).code_length, 6);
  remove_file(folder.file("codes_u0.npy"));
  EXPECT_THAT(report_of([&] { Dataset({folder.file("m.jsonl")}, {}, {}, tiny_model()); }),
              AllOf(HasSubstr("IO001"), HasSubstr("m.jsonl:1"), HasSubstr("codes_u0.npy")));
}

TEST(Dataset, EmptySamplesAreBad) {
  const TemporaryFolder folder;
  const std::string manifest = testing::write_manifest(folder, "m.jsonl", {{3, 3}, {0, 3}, {3, 0}});
  EXPECT_THAT(report_of([&] { Dataset({manifest}, {}, {}, tiny_model()); }),
              AllOf(HasSubstr("DAT006"), HasSubstr("m.jsonl:2")));
  const Dataset data({manifest}, {}, with("drop", "skip"), tiny_model());
  EXPECT_EQ(data.size(), 1u);
  EXPECT_EQ(data.bad_at_open(), 2u);
}

TEST(Dataset, SkippingHasALimit) {
  const TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 97; ++i) text += pair_line(concat("u", i), {3, 3});
  text += "broken\n{}\n[]\n";
  const std::string manifest = folder.write("m.jsonl", text);
  const Dataset data({manifest}, {}, with("drop", "skip", 0.03), tiny_model());
  EXPECT_EQ(data.size(), 97u);
  EXPECT_EQ(data.bad_at_open(), 3u);
  EXPECT_NO_THROW(data.check_bad_fraction(3));
  EXPECT_THAT(
      report_of([&] { Dataset({manifest}, {}, with("drop", "skip", 0.02), tiny_model()); }),
      AllOf(HasSubstr("DAT008"), HasSubstr("3 of 100"), HasSubstr("malformed record"), HasSubstr("m.jsonl:98")));
}

TEST(Dataset, NothingLeftIsAnErrorWithTheReasons) {
  const TemporaryFolder folder;
  const std::string manifest = testing::write_manifest(folder, "m.jsonl", {{50, 3}});
  EXPECT_THAT(report_of([&] { Dataset({manifest}, {}, {}, short_model()); }),
              AllOf(HasSubstr("DAT008"), HasSubstr("text longer than 6 ids")));
  EXPECT_THAT(report_of([&] { Dataset({folder.write("e.jsonl", "")}, {}, {}, short_model()); }), HasSubstr("DAT008"));
  EXPECT_THAT(report_of([&] { Dataset({}, {}, {}, short_model()); }), HasSubstr("DAT008"));
}

TEST(Dataset, AnIdInTwoFilesIsAnErrorOnlyWhenNamed) {
  const TemporaryFolder folder;
  const std::string one = testing::write_manifest(folder, "one.jsonl", {{1, 1}, {2, 2}});
  const std::string two = folder.write("two.jsonl", pair_line("u1", {3, 3}));
  const Dataset data({one, two}, {}, {}, tiny_model());
  EXPECT_EQ(data.size(), 3u);
  EXPECT_EQ(data.find("u0"), 0u);
  EXPECT_THAT(report_of([&] { data.find("u1"); }), AllOf(HasSubstr("one.jsonl:2"), HasSubstr("two.jsonl:1")));
}

TEST(Dataset, ReplayManifestsFormGroupsBehindTheEpoch) {
  const TemporaryFolder folder;
  const std::string own = testing::write_manifest(folder, "own.jsonl", {{1, 1}, {50, 2}, {2, 2}});
  const std::string more = testing::write_manifest(folder, "more.jsonl", {{50, 1}, {3, 3}}, "r");
  const Dataset data({own}, {{more, 0.25}}, {}, short_model());
  EXPECT_EQ(data.epoch_size(), 2u);
  ASSERT_EQ(data.groups().size(), 2u);
  EXPECT_EQ(data.groups()[1].begin, 2u);
  EXPECT_EQ(data.groups()[1].end, 3u);
  EXPECT_EQ(data.groups()[1].share, 0.25);
  EXPECT_EQ(data.info(2).group, 1u);
  EXPECT_EQ(data.id(2), "r1");
  EXPECT_EQ(data.fingerprint(), Dataset({own}, {}, {}, short_model()).fingerprint()) << "replay belongs to the order";
  EXPECT_EQ(Dataset({own}, {}, {}, short_model()).replay_fingerprint(), "");
  const std::string replay = data.replay_fingerprint();
  EXPECT_EQ(replay.size(), 64u);
  EXPECT_NE(Dataset({own}, {{more, 0.5}}, {}, short_model()).replay_fingerprint(), replay) << "another share";
  const std::string copy = testing::write_manifest(folder, "copy.jsonl", {{50, 1}, {3, 3}}, "r");
  EXPECT_EQ(Dataset({own}, {{copy, 0.25}}, {}, short_model()).replay_fingerprint(), replay) << "same content elsewhere";
  const std::string other = testing::write_manifest(folder, "other.jsonl", {{50, 1}, {4, 3}}, "r");
  EXPECT_NE(Dataset({own}, {{other, 0.25}}, {}, short_model()).replay_fingerprint(), replay) << "another content";
}

TEST(Dataset, FingerprintFollowsContentNotPlace) {
  const TemporaryFolder here, there;
  const std::vector<PairLengths> pairs{{1, 1}, {7, 2}, {2, 2}};
  const Dataset a({testing::write_manifest(here, "m.jsonl", pairs)}, {}, {}, short_model());
  EXPECT_EQ(a.fingerprint(),
            Dataset({testing::write_manifest(there, "other.jsonl", pairs)}, {}, {}, short_model()).fingerprint());
  EXPECT_NE(a.fingerprint(), Dataset({here.file("m.jsonl")}, {}, with("trim"), short_model()).fingerprint());
  ModelOptions longer = short_model();
  longer.max_text_tokens = 7;
  EXPECT_NE(a.fingerprint(), Dataset({here.file("m.jsonl")}, {}, {}, longer).fingerprint());
  auto changed = pairs;
  changed[2].codes = 3;
  EXPECT_NE(a.fingerprint(),
            Dataset({testing::write_manifest(there, "m.jsonl", changed)}, {}, {}, short_model()).fingerprint());
  DataOptions workers = with("drop", "skip", 0.5);
  workers.num_workers = 9;
  EXPECT_EQ(a.fingerprint(), Dataset({here.file("m.jsonl")}, {}, workers, short_model()).fingerprint());
}

TEST(Dataset, ManyThreadsMayLoad) {
  const Dataset data({data_path("fixtures/data/train_pairs.jsonl")}, {}, {}, fixture_model());
  std::vector<Batch> batches(4);
  std::vector<std::thread> threads;
  for (Batch& batch : batches) {
    threads.emplace_back([&] {
      for (std::uint32_t i = 0; i < 24; ++i) {
        data.load(i, batch);
        EXPECT_EQ(data.find(batch.ids.back()), i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Batch& batch : batches) EXPECT_EQ(batch.codes, batches[0].codes);
}

}  // namespace
}  // namespace train_gpt_v2
