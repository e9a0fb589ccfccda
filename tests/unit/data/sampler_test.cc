#include "train_gpt_v2/data/sampler.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/data/sequence.h"
#include "unit/data/data_test_support.h"

namespace train_gpt_v2 {
namespace {

using testing::PairLengths;
using testing::TemporaryFolder;
using testing::write_manifest;
using Batches = std::vector<std::vector<std::uint32_t>>;

Batches batches(const BatchPlan& plan) {
  Batches all;
  for (std::size_t i = 0; i < plan.size(); ++i) all.emplace_back(plan.batch(i).begin(), plan.batch(i).end());
  return all;
}

std::vector<std::uint32_t> sorted_samples(const BatchPlan& plan) {
  std::vector<std::uint32_t> samples = plan.samples;
  std::sort(samples.begin(), samples.end());
  return samples;
}

std::vector<std::uint32_t> first_numbers(std::size_t count) {
  std::vector<std::uint32_t> numbers(count);
  for (std::size_t i = 0; i < count; ++i) numbers[i] = static_cast<std::uint32_t>(i);
  return numbers;
}

PlanSettings settings(const std::string& mode, std::int64_t batch_size, std::uint64_t seed = 1234) {
  PlanSettings made;
  made.mode = mode;
  made.batch_size = batch_size;
  made.boundaries = {32, 64};
  made.pool = 2;
  made.seed = seed;
  return made;
}

// Twelve pairs; the plans below were computed by an independent Python program from the written rules.
std::vector<PairLengths> twelve() {
  std::vector<PairLengths> pairs;
  for (int i = 0; i < 12; ++i) pairs.push_back({(7 * i) % 11 + 3, (5 * i * i) % 97 + 10});
  return pairs;
}

// Lengths as in speech corpora: code lengths log-normal around 5 s at 50 per second, text in proportion.
std::vector<PairLengths> speech_like(std::size_t count, std::uint64_t seed, int speakers = 40) {
  RandomStream random(seed, 1);
  std::vector<PairLengths> pairs;
  for (std::size_t i = 0; i < count; ++i) {
    const double seconds = std::clamp(5 * std::exp(0.6 * random.normal()), 1.0, 30.0);
    pairs.push_back({static_cast<std::int64_t>(seconds * (8 + 4 * random.uniform())),
                     static_cast<std::int64_t>(seconds * 50),
                     concat("spk", i * static_cast<std::size_t>(speakers) / count)});
  }
  return pairs;
}

struct Corpus {
  explicit Corpus(const std::vector<PairLengths>& pairs, const std::vector<PairLengths>& replay = {},
                  double share = 0) {
    const std::string manifest = write_manifest(folder, "pairs.jsonl", pairs);
    std::vector<ReplayOptions> more;
    if (!replay.empty()) more.push_back({write_manifest(folder, "replay.jsonl", replay, "r"), share});
    data = std::make_unique<Dataset>(std::vector<std::string>{manifest}, more, DataOptions{}, testing::fixture_model());
  }
  TemporaryFolder folder;
  std::unique_ptr<Dataset> data;
};

TEST(Sampler, PlansAreTheseExactOnes) {
  const Corpus corpus(twelve());
  const auto plan = [&](PlanSettings made, std::uint64_t epoch) {
    return batches(Sampler(*corpus.data, std::move(made)).plan(epoch));
  };
  EXPECT_EQ(plan(settings("shuffle", 3), 0), (Batches{{5, 3, 10}, {2, 4, 7}, {0, 1, 8}, {9, 6, 11}}));
  EXPECT_EQ(plan(settings("shuffle", 3), 3), (Batches{{4, 9, 1}, {10, 7, 11}, {5, 0, 3}, {2, 6, 8}}));
  EXPECT_EQ(plan(settings("mega_batch", 3), 0), (Batches{{9, 8, 6}, {0, 1, 11}, {10, 2, 5}, {3, 7, 4}}));
  EXPECT_EQ(plan(settings("mega_batch", 3), 3), (Batches{{1, 10, 11}, {0, 2, 5}, {9, 7, 4}, {8, 3, 6}}));
  EXPECT_EQ(plan(settings("buckets", 3), 0), (Batches{{5, 3, 7}, {10, 2, 0}, {8, 11}, {4, 6}, {1, 9}}));
  EXPECT_EQ(plan(settings("buckets", 3), 3), (Batches{{7, 11, 5}, {4, 6}, {9, 1, 10}, {0, 2}, {3, 8}}));
  PlanSettings budget = settings("mega_batch", 3);
  budget.batch_tokens = 300;
  EXPECT_EQ(plan(budget, 0), (Batches{{4}, {10, 2, 5}, {0, 1, 11}, {9, 8, 6}, {3, 7}}));
  EXPECT_EQ(plan(budget, 3), (Batches{{0, 2, 5}, {4}, {1, 10, 11}, {8, 3}, {9, 7}, {6}}));
  budget.padded = true;
  EXPECT_EQ(plan(budget, 0), (Batches{{10, 2, 5}, {6}, {0, 1, 11}, {9, 8}, {4}, {3, 7}}));
  EXPECT_EQ(plan(settings("sequential", 5), 8), (Batches{{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}, {10, 11}}));
}

TEST(Sampler, EverySampleOnceInEveryModeAndEpoch) {
  const Corpus corpus(speech_like(997, 5));
  for (const char* mode : {"mega_batch", "buckets", "shuffle", "sequential"}) {
    for (const std::int64_t budget : {0, 3000}) {
      PlanSettings made = settings(mode, 16);
      made.batch_tokens = budget;
      const Sampler sampler(*corpus.data, made);
      std::set<std::string> hashes;
      for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
        const BatchPlan plan = sampler.plan(epoch);
        EXPECT_EQ(sorted_samples(plan), first_numbers(997)) << mode;
        EXPECT_EQ(plan.hash(), sampler.plan(epoch).hash());
        hashes.insert(plan.hash());
      }
      EXPECT_EQ(hashes.size(), std::string(mode) == "sequential" ? 1u : 3u);
    }
  }
}

TEST(Sampler, DropLastLeavesOutOnlyIncompleteBatches) {
  const Corpus corpus(speech_like(103, 5));
  for (const char* mode : {"mega_batch", "buckets", "shuffle", "sequential"}) {
    PlanSettings made = settings(mode, 10);
    made.drop_last = true;
    const BatchPlan plan = Sampler(*corpus.data, made).plan(0);
    for (std::size_t i = 0; i < plan.size(); ++i) EXPECT_EQ(plan.batch(i).size(), 10u) << mode;
    EXPECT_GE(plan.samples.size(), std::string(mode) == "buckets" ? 70u : 100u);
  }
}

TEST(Sampler, BudgetHoldsExceptForSingleSamples) {
  const Corpus corpus(speech_like(2000, 9));
  for (const bool padded : {false, true}) {
    PlanSettings made = settings("mega_batch", 64);
    made.pool = 50;
    made.batch_tokens = 4000;
    made.padded = padded;
    const BatchPlan plan = Sampler(*corpus.data, made).plan(1);
    std::size_t full = 0;
    for (std::size_t i = 0; i < plan.size(); ++i) {
      std::int64_t text = 0, codes = 0, sum = 0;
      for (const std::uint32_t sample : plan.batch(i)) {
        const SampleInfo info = corpus.data->info(sample);
        text = std::max(text, info.text_length);
        codes = std::max(codes, info.code_length);
        sum += 38 + info.text_length + info.code_length;
      }
      const auto count = static_cast<std::int64_t>(plan.batch(i).size());
      const std::int64_t positions = padded ? count * (38 + text + codes) : sum;
      EXPECT_TRUE(positions <= 4000 || count == 1);
      full += positions > 3000;
    }
    EXPECT_GT(full, plan.size() * 8 / 10);
  }
}

TEST(Sampler, LengthSortingSavesPaddingAndKeepsTheMix) {
  const Corpus corpus(speech_like(6400, 3));
  PlanSettings made = settings("mega_batch", 16);
  made.pool = 50;
  const PlanStatistics sorted = plan_statistics(*corpus.data, Sampler(*corpus.data, made).plan(0));
  EXPECT_LT(sorted.padding_share, 0.10);         // data_and_peers.md §4.2: 6-8 % with sorted windows
  EXPECT_GT(sorted.random_padding_share, 0.45);  // and 50-60 % at random
  EXPECT_LT(std::abs(sorted.length_correlation), 0.3);
  EXPECT_GT(sorted.speakers_per_batch, 0.95 * sorted.random_speakers_per_batch);
  const PlanStatistics random = plan_statistics(*corpus.data, Sampler(*corpus.data, settings("shuffle", 16)).plan(0));
  EXPECT_NEAR(random.padding_share, random.random_padding_share, 0.02);
  EXPECT_EQ(random.positions, sorted.positions);
  // In the manifests' order a batch holds one or two speakers.
  const PlanStatistics ordered =
      plan_statistics(*corpus.data, Sampler(*corpus.data, settings("sequential", 16)).plan(0));
  EXPECT_LT(ordered.speakers_per_batch, 1.2);
}

TEST(Sampler, BucketsGoByTheTargetsCodes) {
  const Corpus corpus(speech_like(1000, 3));
  PlanSettings made = settings("buckets", 8);
  made.boundaries = {64, 128, 256, 512};
  const BatchPlan plan = Sampler(*corpus.data, made).plan(0);
  for (std::size_t i = 0; i < plan.size(); ++i) {
    std::set<std::ptrdiff_t> used;
    for (const std::uint32_t sample : plan.batch(i)) {
      used.insert(
          std::lower_bound(made.boundaries.begin(), made.boundaries.end(), corpus.data->info(sample).code_length) -
          made.boundaries.begin());
    }
    EXPECT_EQ(used.size(), 1u);
  }
}

TEST(Sampler, ReplayKeepsItsShareInEveryRunOfBatches) {
  const Corpus corpus(speech_like(900, 3), speech_like(70, 4), 0.25);
  PlanSettings made = settings("mega_batch", 8);
  made.pool = 10;
  made.replay_shares = {0.25};
  const Sampler sampler(*corpus.data, made);
  const BatchPlan plan = sampler.plan(0);
  std::vector<std::uint32_t> own;
  std::vector<double> excess{0};
  for (std::size_t i = 0; i < plan.size(); ++i) {
    EXPECT_LE(plan.batch(i).size(), 9u);
    double replay = 0;
    for (const std::uint32_t sample : plan.batch(i)) {
      replay += sample >= 900;
      if (sample < 900) own.push_back(sample);
    }
    excess.push_back(excess.back() + replay - 0.25 * static_cast<double>(plan.batch(i).size()));
  }
  // Any window is a difference of two running totals.
  EXPECT_LE(*std::max_element(excess.begin(), excess.end()) - *std::min_element(excess.begin(), excess.end()), 1.0);
  std::sort(own.begin(), own.end());
  EXPECT_EQ(own, first_numbers(900));
  EXPECT_EQ(plan.samples.size(), 1200u);
  // Seventy samples fill three hundred places: each is used four or five times.
  std::vector<int> uses(70);
  for (const std::uint32_t sample : plan.samples) {
    if (sample >= 900) ++uses[sample - 900];
  }
  EXPECT_THAT(uses, ::testing::Each(::testing::AllOf(::testing::Ge(4), ::testing::Le(5))));
  EXPECT_EQ(plan.hash(), sampler.plan(0).hash());
  EXPECT_NE(plan.hash(), sampler.plan(1).hash());
}

TEST(Sampler, ChangedSettingsGoOnWithTheUnconsumedSamples) {
  const Corpus corpus(speech_like(500, 3));
  const Sampler first(*corpus.data, settings("mega_batch", 16, 1));
  const Sampler second(*corpus.data, settings("buckets", 7, 2));
  const Sampler third(*corpus.data, settings("shuffle", 3, 9));
  std::vector<std::uint32_t> seen;
  const auto consume = [&](const BatchPlan& plan, std::size_t count) {
    seen.insert(seen.end(), plan.samples.begin(),
                plan.samples.begin() + static_cast<std::ptrdiff_t>(plan.begin[count]));
  };
  BatchCursor cursor{2, 11, 100, {}};
  consume(first.plan(2), 11);
  cursor = second.carry_over(cursor, first.settings());
  EXPECT_EQ(cursor.batch, 0u);
  EXPECT_EQ(cursor.consumed, 100u);
  consume(second.plan(2, cursor.earlier), 20);
  cursor.batch = 20;
  cursor =
      BatchCursor::load_state(nlohmann::json::parse(third.carry_over(cursor, second.settings()).save_state().dump()));
  const BatchPlan rest = third.plan(2, cursor.earlier);
  consume(rest, rest.size());
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(seen, first_numbers(500));
  EXPECT_EQ(third.carry_over(cursor, third.settings()), cursor);
}

TEST(BatchCursor, StateRoundTripsToTheSameBytes) {
  BatchCursor cursor{3, 14, 159, {{settings("buckets", 26, 535), 89}}};
  cursor.earlier[0].settings.replay_shares = {0.1, 1.0 / 3};
  const std::string bytes = cursor.save_state().dump();
  const BatchCursor loaded = BatchCursor::load_state(nlohmann::json::parse(bytes));
  EXPECT_EQ(loaded, cursor);
  EXPECT_EQ(loaded.save_state().dump(), bytes);
  for (const char* broken : {"{}", "[]", R"({"epoch":"x","batch":0,"consumed":0,"earlier":[]})",
                             R"({"epoch":0,"batch":0,"consumed":0,"earlier":[{}]})"}) {
    EXPECT_THROW(BatchCursor::load_state(nlohmann::json::parse(broken)), Error) << broken;
  }
}

TEST(BatchCursor, RefusesWhatNoRunWrites) {
  using nlohmann::json;
  const json good = BatchCursor{3, 14, 159, {{settings("buckets", 26, 535), 89}}}.save_state();
  const auto code = [&](const std::string& place, const json& value) -> std::string {
    json state = good;
    state[json::json_pointer(place)] = value;
    try {
      BatchCursor::load_state(state);
    } catch (const Error& error) {
      return error.code();
    }
    return "";
  };
  const std::string part = "/earlier/0/settings/";
  EXPECT_EQ(code("/epoch", json(4)), "");
  EXPECT_EQ(code(part + "pool", json(1'000'000)), "");
  for (const char* count : {"/epoch", "/batch", "/consumed", "/earlier/0/batches"}) {
    EXPECT_EQ(code(count, json(-1)), "CKP001") << count;
    EXPECT_EQ(code(count, json(1.5)), "CKP001") << count;
    EXPECT_EQ(code(count, json(UINT64_MAX)), "CKP001") << count;
  }
  // With a pool of 0 the planner would never end, with 2^62 times 4 (which wraps) neither.
  for (const std::int64_t bad : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 62}) {
    EXPECT_EQ(code(part + "pool", json(bad)), "CKP001") << bad;
    EXPECT_EQ(code(part + "batch_size", json(bad)), "CKP001") << bad;
  }
  EXPECT_EQ(code(part + "batch_tokens", json(-1)), "CKP001");
  EXPECT_EQ(code(part + "batch_tokens", json(std::int64_t{1} << 62)), "CKP001");
  EXPECT_EQ(code(part + "mode", json("unknown")), "CKP001");
  EXPECT_EQ(code(part + "boundaries", json::array()), "CKP001");
  EXPECT_EQ(code(part + "boundaries", json(std::vector<std::int64_t>{64, 32})), "CKP001");
  for (const double bad : {-0.1, 1.0, 1e300, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_EQ(code(part + "replay_shares", json(std::vector<double>{bad})), "CKP001") << bad;
  }
  EXPECT_EQ(code(part + "replay_shares", json(std::vector<double>{0.5, 0.5})), "CKP001");
}

TEST(EpochSequence, InterruptedAnywhereEqualsUninterrupted) {
  const Corpus corpus(speech_like(83, 3));
  const Sampler sampler(*corpus.data, settings("mega_batch", 8));
  const auto read = [&](std::vector<std::uint64_t> stops) {
    std::vector<std::vector<std::uint32_t>> all;
    BatchCursor cursor;
    stops.push_back(40);
    for (const std::uint64_t stop : stops) {
      EpochSequence sequence(sampler, BatchCursor::load_state(nlohmann::json::parse(cursor.save_state().dump())));
      while (cursor.consumed < stop) {
        auto planned = sequence.next();
        all.push_back(std::move(planned->samples));
        cursor = planned->after;
      }
    }
    return all;
  };
  const auto whole = read({});
  ASSERT_EQ(whole.size(), 40u);
  const std::size_t per_epoch = sampler.plan(0).size();
  ASSERT_EQ(per_epoch, 11u);
  EXPECT_EQ(read({1}), whole);
  EXPECT_EQ(read({per_epoch - 1, per_epoch, per_epoch + 1}), whole);
  EXPECT_EQ(read({3, 7, 11, 20, 22, 33, 39}), whole);
  // The first epoch's batches hold every sample once.
  std::multiset<std::uint32_t> ids;
  for (std::size_t i = 0; i < per_epoch; ++i) ids.insert(whole[i].begin(), whole[i].end());
  EXPECT_EQ(std::vector<std::uint32_t>(ids.begin(), ids.end()), first_numbers(83));
}

TEST(EpochSequence, EndsWhereItIsToldAndRefusesStrangePositions) {
  const Corpus corpus(twelve());
  const Sampler sampler(*corpus.data, settings("shuffle", 5));
  EpochSequence two(sampler, {}, 2);
  std::size_t count = 0;
  while (const auto planned = two.next()) {
    EXPECT_EQ(planned->epoch, count / 3);
    ++count;
  }
  EXPECT_EQ(count, 6u);
  EXPECT_FALSE(two.next().has_value());
  EXPECT_THROW(EpochSequence(sampler, {0, 4, 0, {}}), Error);
  PlanSettings none = settings("shuffle", 50);
  none.drop_last = true;
  const Sampler nothing(*corpus.data, none);
  EpochSequence empty(nothing, {});
  EXPECT_THROW(empty.next(), Error);
}

TEST(Spread, TakesBatchesFromTheWholePlan) {
  const Corpus corpus(twelve());
  const BatchPlan plan = sequential_plan(*corpus.data, 2);
  EXPECT_EQ(batches(spread(plan, 3)), (Batches{{0, 1}, {4, 5}, {8, 9}}));
  EXPECT_EQ(batches(spread(plan, 9)), batches(plan));
}

TEST(OrderFile, IsUsedVerbatim) {
  const Corpus corpus(twelve());
  const std::string path =
      corpus.folder.write("order.jsonl", "[\"u3\", \"u1\"]\n[\"u3\"]\n[\"u11\",\"u0\",\"u2\"]\n\n");
  const OrderFile order = read_order_file(path, *corpus.data);
  EXPECT_EQ(batches(order.plan), (Batches{{3, 1}, {3}, {11, 0, 2}}));
  EXPECT_EQ(order.hash.size(), 64u);
}

TEST(OrderFile, NamesTheLineOfEveryFault) {
  const Corpus corpus(twelve());
  const auto report = [&](const std::string& text) -> std::string {
    try {
      read_order_file(corpus.folder.write("order.jsonl", text), *corpus.data);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), "DAT009");
      return error.report();
    }
    return "no error";
  };
  EXPECT_THAT(report("[\"u1\"]\n[\"u2\", \"nobody\"]\n"),
              ::testing::AllOf(::testing::HasSubstr("order.jsonl:2"), ::testing::HasSubstr("nobody")));
  EXPECT_THAT(report("[\"u1\"]\n\n[\"u2\"]\n"), ::testing::HasSubstr("order.jsonl:2"));
  EXPECT_THAT(report("[\"u1\"]\n[\"u2\"\n"), ::testing::HasSubstr("order.jsonl:2"));
  EXPECT_THAT(report("[1]\n"), ::testing::HasSubstr("order.jsonl:1"));
  EXPECT_THAT(report("[]\n"), ::testing::HasSubstr("order.jsonl:1"));
  EXPECT_THAT(report("{\"id\": \"u1\"}\n"), ::testing::HasSubstr("order.jsonl:1"));
  EXPECT_THAT(report(""), ::testing::HasSubstr("empty"));
}

}  // namespace
}  // namespace train_gpt_v2
