#include "train_gpt_v2/data/loader.h"

#include <gmock/gmock.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <set>
#include <thread>

#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/signals.h"
#include "unit/data/data_test_support.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using testing::PairLengths;
using testing::TemporaryFolder;

std::vector<PairLengths> some_pairs(std::size_t count) {
  std::vector<PairLengths> pairs;
  for (std::size_t i = 0; i < count; ++i) {
    pairs.push_back({static_cast<std::int64_t>(i % 7 + 1), static_cast<std::int64_t>(i * 13 % 40 + 1)});
  }
  return pairs;
}

// Forty-one small pairs with arrays.
struct Corpus {
  explicit Corpus(DataOptions options = {}, std::size_t count = 41) {
    const auto pairs = some_pairs(count);
    testing::write_arrays(folder, pairs);
    manifest = testing::write_manifest(folder, "pairs.jsonl", pairs);
    data = std::make_unique<Dataset>(std::vector<std::string>{manifest}, std::vector<ReplayOptions>{}, options,
                                     testing::tiny_model());
    settings.mode = "mega_batch";
    settings.batch_size = 4;
    settings.pool = 3;
    settings.seed = 11;
    sampler = std::make_unique<Sampler>(*data, settings);
  }
  std::unique_ptr<BatchSequence> epochs(BatchCursor start = {}, std::optional<std::uint64_t> end = std::nullopt) const {
    return std::make_unique<EpochSequence>(*sampler, std::move(start), end);
  }
  TemporaryFolder folder;
  std::string manifest;
  std::unique_ptr<Dataset> data;
  PlanSettings settings;
  std::unique_ptr<Sampler> sampler;
};

DataOptions skipping(double fraction) {
  DataOptions options;
  options.on_bad_sample = "skip";
  options.max_bad_fraction = fraction;
  return options;
}

LoaderOptions workers(std::int64_t count, std::int64_t prefetch = 3) {
  return {count, prefetch, 0, 1};
}

struct Seen {
  std::vector<std::uint32_t> samples;
  std::vector<std::int32_t> codes, text;
  std::uint64_t epoch;
  BatchCursor after;
  bool operator==(const Seen&) const = default;
};

std::vector<Seen> read(BatchLoader& loader, std::size_t count) {
  std::vector<Seen> all;
  while (all.size() < count) {
    auto loaded = loader.next();
    if (!loaded) break;
    EXPECT_EQ(loaded->after, loader.cursor());
    all.push_back({loaded->batch.samples, loaded->batch.codes, loaded->batch.text, loaded->epoch, loaded->after});
  }
  return all;
}

TEST(BatchLoader, DeliversTheSameWhateverTheWorkerCount) {
  const Corpus corpus;
  BatchLoader direct(*corpus.data, corpus.epochs(), workers(0));
  const auto expected = read(direct, 30);  // across two epoch ends
  ASSERT_EQ(expected.size(), 30u);
  EXPECT_EQ(expected[10].epoch, 0u);
  EXPECT_EQ(expected[11].epoch, 1u);
  EXPECT_EQ(expected[10].after, (BatchCursor{1, 0, 11, {}}));
  for (const std::int64_t count : {1, 2, 7}) {
    for (const std::int64_t prefetch : {1, 4, 50}) {
      BatchLoader loader(*corpus.data, corpus.epochs(), workers(count, prefetch));
      EXPECT_EQ(read(loader, 30), expected) << count << " workers, " << prefetch << " ahead";
    }
  }
}

TEST(BatchLoader, GoesOnFromItsCursor) {
  const Corpus corpus;
  BatchLoader whole(*corpus.data, corpus.epochs(), workers(2));
  const auto expected = read(whole, 25);
  BatchLoader first(*corpus.data, corpus.epochs(), workers(3, 8));
  auto parts = read(first, 9);
  BatchLoader second(*corpus.data, corpus.epochs(first.cursor()), workers(1), first.cursor());
  EXPECT_EQ(second.cursor(), first.cursor());
  const auto rest = read(second, 16);
  parts.insert(parts.end(), rest.begin(), rest.end());
  EXPECT_EQ(parts, expected);
}

TEST(BatchLoader, EndsWithItsSequence) {
  const Corpus corpus;
  for (const std::int64_t count : {0, 1, 5}) {
    BatchLoader loader(*corpus.data, corpus.epochs({}, 1), workers(count));
    EXPECT_EQ(read(loader, 100).size(), 11u);
    EXPECT_TRUE(loader.ended());
    EXPECT_FALSE(loader.next().has_value());
    BatchLoader listed(*corpus.data, std::make_unique<ListSequence>(sequential_plan(*corpus.data, 10)), workers(count));
    const auto all = read(listed, 100);
    ASSERT_EQ(all.size(), 5u);
    EXPECT_THAT(all[4].samples, ::testing::ElementsAre(40));
    EXPECT_EQ(all[1].after.batch, 2u);
  }
}

TEST(BatchLoader, RanksShareOneSequence) {
  const Corpus corpus;
  BatchLoader single(*corpus.data, corpus.epochs(), workers(0));
  const auto expected = read(single, 24);
  const auto positions = [](const Batch& batch) { return batch.text.size() + batch.codes.size(); };
  std::vector<std::vector<LoadedBatch>> own;
  for (std::uint64_t rank = 0; rank < 3; ++rank) {
    BatchLoader loader(*corpus.data, corpus.epochs(), {2, 3, rank, 3, 2});
    own.emplace_back();
    for (int i = 0; i < 8; ++i) own.back().push_back(*loader.next());
  }
  std::vector<std::size_t> load(3, 0);
  for (std::size_t round = 0; round < 8; ++round) {
    if (round % 2 == 0) load.assign(3, 0);
    std::set<std::uint64_t> places;
    for (std::size_t rank = 0; rank < 3; ++rank) {
      const LoadedBatch& mine = own[rank][round];
      places.insert(mine.place);
      EXPECT_EQ(mine.batch.samples, expected[3 * round + mine.place].samples);
      EXPECT_EQ(mine.after, expected[3 * round + 2].after);
      EXPECT_EQ(mine.epoch, expected[3 * round + 2].epoch);
    }
    EXPECT_EQ(places.size(), 3u);
    for (std::size_t a = 0; a < 3; ++a) {  // who carries less so far carries more now
      for (std::size_t b = 0; b < 3; ++b) {
        if (load[a] < load[b]) {
          EXPECT_GE(positions(own[a][round].batch), positions(own[b][round].batch));
        }
      }
    }
    for (std::size_t rank = 0; rank < 3; ++rank) load[rank] += positions(own[rank][round].batch);
  }
  // Eleven batches over three ranks: the last two make no round.
  for (std::uint64_t rank = 0; rank < 3; ++rank) {
    for (const std::int64_t count : {0, 2}) {
      BatchLoader loader(*corpus.data, corpus.epochs({}, 1), {count, 3, rank, 3});
      EXPECT_EQ(read(loader, 100).size(), 3u);
      EXPECT_TRUE(loader.ended());
    }
  }
}

TEST(BatchLoader, ThrowsABadSampleAtItsBatch) {
  const Corpus corpus;
  const BatchPlan plan = corpus.sampler->plan(0);
  const std::uint32_t victim = plan.batch(5)[1];
  const std::string name = corpus.data->id(victim);
  remove_file(corpus.folder.file("codes_" + name + ".npy"));
  for (const std::int64_t count : {0, 1, 4}) {
    BatchLoader loader(*corpus.data, corpus.epochs(), workers(count));
    EXPECT_EQ(read(loader, 5).size(), 5u);
    for (int repeat = 0; repeat < 2; ++repeat) {
      try {
        loader.next();
        FAIL() << "the batch with a missing file was delivered";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), "IO001");
        EXPECT_THAT(error.report(), ::testing::HasSubstr("sample: " + name));
        EXPECT_THAT(error.report(), ::testing::HasSubstr(corpus.data->place(victim)));
        EXPECT_THAT(error.report(), ::testing::HasSubstr("codes_" + name + ".npy"));
      }
    }
    EXPECT_EQ(loader.cursor().batch, 5u);
  }
}

TEST(BatchLoader, LeavesBadSamplesOutAndCountsEachOnce) {
  const Corpus corpus(skipping(0.05));  // 2 of 41
  const BatchPlan plan = corpus.sampler->plan(0);
  const std::uint32_t victim = plan.batch(2)[0];
  testing::write_array(corpus.folder.file("codes_" + corpus.data->id(victim) + ".npy"),
                       testing::array_of(DType::kInt32, {1}, std::vector<std::int32_t>{225}));
  std::vector<std::vector<Seen>> runs;
  for (const std::int64_t count : {0, 1, 7}) {
    BatchLoader loader(*corpus.data, corpus.epochs(), workers(count));
    runs.push_back(read(loader, 22));  // the sample comes up twice
    EXPECT_EQ(loader.bad_samples(), 1u);
    EXPECT_EQ(runs.back()[2].samples.size(), 3u);
    EXPECT_THAT(runs.back()[2].samples, ::testing::Not(::testing::Contains(victim)));
  }
  EXPECT_EQ(runs[0], runs[1]);
  EXPECT_EQ(runs[0], runs[2]);
}

TEST(BatchLoader, StopsWhenTooManySamplesAreBad) {
  const Corpus corpus(skipping(0.05));
  for (const int i : {1, 2, 3}) remove_file(corpus.folder.file("text_u" + std::to_string(i) + ".npy"));
  BatchLoader loader(*corpus.data, corpus.epochs(), workers(2));
  try {
    read(loader, 11);
    FAIL() << "three of 41 are more than 5 %";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "DAT008");
  }
}

TEST(BatchLoader, AManifestThatWasCutWasLeftOutAsBadSamples) {
  const Corpus corpus(skipping(0.9));
  BatchLoader loader(*corpus.data, corpus.epochs(), workers(0));
  ASSERT_EQ(read(loader, 1).size(), 1u);
  std::filesystem::resize_file(corpus.manifest, file_size(corpus.manifest) - 1);
  try {
    read(loader, 1);
    FAIL() << "a manifest without its end was read";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "IO008");
  }
}

TEST(BatchLoader, MayBeDestroyedAtAnyTime) {
  const Corpus corpus;
  for (int i = 0; i < 20; ++i) {
    BatchLoader loader(*corpus.data, corpus.epochs(), workers(4, 16));
    if (i % 2) loader.next();
  }
}

// A sequence that does not hand out anything until it is released.
class HeldSequence final : public BatchSequence {
 public:
  explicit HeldSequence(std::atomic<bool>& release) : release_(release) {}
  std::optional<PlannedBatch> next() override {
    while (!release_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return std::nullopt;
  }

 private:
  std::atomic<bool>& release_;
};

// Blocks like a file on a dead disk: a FIFO would be refused, so the held sequence stands in for it.
TEST(BatchLoader, AStopRequestEndsTheWait) {
  const Corpus corpus;
  std::atomic<bool> release = false;
  BatchLoader loader(*corpus.data, corpus.epochs(), workers(1, 1));
  EXPECT_EQ(read(loader, 3).size(), 3u);
  request_stop(ExitStatus::kSigterm);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    release = true;
  });
  {
    BatchLoader held(*corpus.data, std::make_unique<HeldSequence>(release), workers(1));
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_FALSE(held.next().has_value());
    EXPECT_FALSE(held.ended());
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(250));
    EXPECT_GT(held.wait_seconds(), 0.01);
  }
  later.join();
  reset_signal_flags();
}

TEST(BatchLoader, ReadsTheFixtures) {
  const Dataset data({data_path("fixtures/data/train_pairs.jsonl"), data_path("fixtures/data/val_pairs.jsonl")}, {}, {},
                     testing::fixture_model());
  ASSERT_EQ(data.size(), 32u);
  BatchLoader loader(data, std::make_unique<ListSequence>(sequential_plan(data, 5)), workers(2));
  std::size_t samples = 0;
  while (const auto loaded = loader.next()) samples += loaded->batch.ids.size();
  EXPECT_EQ(samples, 32u);
}

}  // namespace
}  // namespace train_gpt_v2
