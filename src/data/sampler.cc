#include "train_gpt_v2/data/sampler.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

// Streams of the run's seed; the upper half names the purpose, the lower the epoch.
constexpr std::uint64_t kPlanStream = 0x504C414EULL << 32;    // "PLAN"
constexpr std::uint64_t kReplayStream = 0x52504C59ULL << 32;  // "RPLY"; one per replay set below it
constexpr std::uint64_t kStatisticsStream = 0x53544154ULL << 32;

struct Lengths {
  std::int64_t text = 0, codes = 0;
};

Lengths lengths_of(const Dataset& dataset, std::uint32_t sample) {
  const PairEntry& entry = dataset.index()[sample];
  return {entry.text_length, entry.code_length};
}

std::int64_t positions(const Lengths& lengths, std::int64_t prefix) {
  return prefix + lengths.text + 2 + lengths.codes + 2;
}

// The size of a batch that is being filled.
class Filling {
 public:
  Filling(const PlanSettings& settings, std::int64_t prefix, std::int64_t max_count, std::int64_t budget)
      : padded_(settings.padded), prefix_(prefix), max_count_(max_count), budget_(budget) {}

  bool takes(const Lengths& next) const {
    if (count_ == 0) return true;  // a single sample over the budget forms its own batch
    if (count_ + 1 > max_count_) return false;
    if (budget_ == 0) return true;
    const Lengths longest{std::max(longest_.text, next.text), std::max(longest_.codes, next.codes)};
    const std::int64_t total =
        padded_ ? (count_ + 1) * positions(longest, prefix_) : positions_ + positions(next, prefix_);
    return total <= budget_;
  }
  void take(const Lengths& next) {
    longest_ = {std::max(longest_.text, next.text), std::max(longest_.codes, next.codes)};
    positions_ += positions(next, prefix_);
    ++count_;
  }
  void clear() {
    longest_ = {};
    positions_ = count_ = 0;
  }

 private:
  bool padded_;
  std::int64_t prefix_, max_count_, budget_;
  Lengths longest_;
  std::int64_t positions_ = 0, count_ = 0;
};

class Planner {
 public:
  Planner(const Dataset& dataset, const PlanSettings& settings)
      : dataset_(dataset), settings_(settings), prefix_(dataset.model().prefix_length()) {
    double replay = 0;
    for (const double share : settings.replay_shares) replay += share;
    own_count_ = std::max<std::int64_t>(1, std::llround(static_cast<double>(settings.batch_size) * (1 - replay)));
    own_budget_ = static_cast<std::int64_t>(static_cast<double>(settings.batch_tokens) * (1 - replay));
  }

  BatchPlan run(std::vector<std::uint32_t> samples, std::uint64_t epoch) {
    RandomStream random(settings_.seed, kPlanStream + epoch);
    if (settings_.mode != "sequential") shuffle(samples, random);
    if (settings_.mode == "mega_batch") {
      mega_batches(samples);
    } else if (settings_.mode == "buckets") {
      buckets(samples);
    } else {
      cut(samples, true);
    }
    if (settings_.mode == "mega_batch" || settings_.mode == "buckets") shuffle_batches(random);
    return std::move(plan_);
  }

 private:
  // Cuts a run of samples into batches; the last one is incomplete where the run ends.
  void cut(std::span<const std::uint32_t> run, bool end_of_run) {
    Filling filling(settings_, prefix_, own_count_, own_budget_);
    std::vector<std::uint32_t> batch;
    for (const std::uint32_t sample : run) {
      const Lengths lengths = lengths_of(dataset_, sample);
      if (!filling.takes(lengths)) {
        plan_.add(batch);
        batch.clear();
        filling.clear();
      }
      filling.take(lengths);
      batch.push_back(sample);
    }
    if (batch.empty()) return;
    const bool full = static_cast<std::int64_t>(batch.size()) >= own_count_;
    if (!full && end_of_run && settings_.drop_last) return;
    plan_.add(batch);
  }

  void mega_batches(std::vector<std::uint32_t>& samples) {
    const auto size = static_cast<std::size_t>(settings_.pool * own_count_);
    for (std::size_t begin = 0; begin < samples.size(); begin += size) {
      const std::span pool(samples.data() + begin, std::min(size, samples.size() - begin));
      sort_by_length(pool);
      cut(pool, true);
    }
  }

  // Stable. Each length is looked up once: the entries of a pool lie all over the index.
  void sort_by_length(std::span<std::uint32_t> pool) {
    const std::vector<std::uint32_t> before(pool.begin(), pool.end());
    std::vector<std::uint64_t> keys;
    keys.reserve(pool.size());
    for (const std::uint32_t sample : pool) {
      keys.push_back(static_cast<std::uint64_t>(positions(lengths_of(dataset_, sample), 0)) << 32 | keys.size());
    }
    std::sort(keys.begin(), keys.end());
    for (std::size_t i = 0; i < pool.size(); ++i) pool[i] = before[static_cast<std::uint32_t>(keys[i])];
  }

  void buckets(const std::vector<std::uint32_t>& samples) {
    std::vector<std::vector<std::uint32_t>> contents(settings_.boundaries.size() + 1);
    for (const std::uint32_t sample : samples) {
      const auto bucket = std::lower_bound(settings_.boundaries.begin(), settings_.boundaries.end(),
                                           lengths_of(dataset_, sample).codes);
      contents[static_cast<std::size_t>(bucket - settings_.boundaries.begin())].push_back(sample);
    }
    for (const auto& bucket : contents) cut(bucket, true);
  }

  void shuffle_batches(RandomStream& random) {
    const std::vector<std::uint32_t> order = random_permutation(static_cast<std::uint32_t>(plan_.size()), random);
    BatchPlan shuffled;
    shuffled.samples.reserve(plan_.samples.size());
    shuffled.begin.reserve(plan_.begin.size());
    for (const std::uint32_t i : order) shuffled.add(plan_.batch(i));
    plan_ = std::move(shuffled);
  }

  const Dataset& dataset_;
  const PlanSettings& settings_;
  std::int64_t prefix_, own_count_ = 1, own_budget_ = 0;
  BatchPlan plan_;
};

// The samples of one replay set in the order in which an epoch uses them: permutation after permutation.
class ReplayStream {
 public:
  ReplayStream(const SampleGroup& group, std::uint64_t seed, std::uint64_t set, std::uint64_t epoch)
      : group_(group), random_(seed, kReplayStream + (set << 24 << 16) + epoch) {}

  std::uint32_t next() {
    if (at_ == order_.size()) {
      order_ = random_permutation(group_.end - group_.begin, random_);
      at_ = 0;
    }
    return group_.begin + order_[at_++];
  }

 private:
  SampleGroup group_;
  RandomStream random_;
  std::vector<std::uint32_t> order_;
  std::size_t at_ = 0;
};

// Adds replay samples batch by batch. How many is settled by running totals, so that any run of batches holds the share
// to within one sample; which ones is settled over groups of `pool` batches, long ones going to batches of long
// samples.
BatchPlan with_replay(const Dataset& dataset, const PlanSettings& settings, const BatchPlan& plan,
                      std::uint64_t epoch) {
  double replay_share = 0;
  for (const double share : settings.replay_shares) replay_share += share;
  std::vector<std::vector<std::uint32_t>> added(plan.size());
  const auto length = [&](std::uint32_t sample) { return positions(lengths_of(dataset, sample), 0); };
  for (std::size_t set = 0; set < settings.replay_shares.size(); ++set) {
    ReplayStream stream(dataset.groups()[set + 1], settings.seed, set, epoch);
    const double per_own = settings.replay_shares[set] / (1 - replay_share);
    std::uint64_t own = 0, given = 0;
    for (std::size_t begin = 0; begin < plan.size(); begin += static_cast<std::size_t>(settings.pool)) {
      const std::size_t end = std::min(plan.size(), begin + static_cast<std::size_t>(settings.pool));
      std::vector<std::size_t> counts, order;
      std::vector<std::uint32_t> drawn;
      for (std::size_t i = begin; i < end; ++i) {
        own += plan.batch(i).size();
        const auto due = static_cast<std::uint64_t>(std::floor(static_cast<double>(own) * per_own + 0.5));
        counts.push_back(due - given);
        order.push_back(i);
        for (; given < due; ++given) drawn.push_back(stream.next());
      }
      std::stable_sort(drawn.begin(), drawn.end(),
                       [&](std::uint32_t a, std::uint32_t b) { return length(a) < length(b); });
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return length(plan.batch(a).back()) < length(plan.batch(b).back());
      });
      std::size_t at = 0;
      for (const std::size_t i : order) {
        for (std::size_t n = 0; n < counts[i - begin]; ++n) added[i].push_back(drawn[at++]);
      }
    }
  }
  BatchPlan result;
  std::vector<std::uint32_t> batch;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    batch.assign(plan.batch(i).begin(), plan.batch(i).end());
    batch.insert(batch.end(), added[i].begin(), added[i].end());
    result.add(batch);
  }
  return result;
}

struct Fault {
  std::string what, fix;
};

// Why these settings give no plan, if they do not. The upper limits are those of the configuration: beyond them the
// products of two settings may overflow.
std::optional<Fault> fault_of(const PlanSettings& settings) {
  constexpr std::int64_t kMost = 1'000'000, kMostTokens = 1'000'000'000;
  if (settings.mode != "mega_batch" && settings.mode != "buckets" && settings.mode != "shuffle" &&
      settings.mode != "sequential") {
    return Fault{"sampler.mode is unknown", "its default is mega_batch"};
  }
  if (settings.batch_size < 1 || settings.batch_size > kMost) {
    return Fault{"the batch size must be 1 to 1,000,000", "set train.batch_size"};
  }
  if (settings.pool < 1 || settings.pool > kMost) {
    return Fault{"sampler.pool must be 1 to 1,000,000", "its default is 50"};
  }
  if (settings.batch_tokens < 0 || settings.batch_tokens > kMostTokens) {
    return Fault{"sampler.batch_tokens must be at most 1,000,000,000 and not negative", "null switches it off"};
  }
  if (settings.mode == "buckets" &&
      (settings.boundaries.empty() || !std::is_sorted(settings.boundaries.begin(), settings.boundaries.end()))) {
    return Fault{"sampler.boundaries must be a rising list", "its default is [32, 64, 128, 256, 512]"};
  }
  double replay = 0;
  for (const double share : settings.replay_shares) {
    if (!(share >= 0)) return Fault{"a replay share is negative or no number", "shares lie between 0 and 1"};
    replay += share;
  }
  if (replay >= 1) return Fault{concat("the replay shares add up to ", replay), "together they must stay below 1"};
  return std::nullopt;
}

[[noreturn]] void malformed_state(const std::string& why) {
  throw Error("CKP001", concat("the saved position in the data is malformed: ", why))
      .fix("choose another checkpoint; `train_gpt_v2 inspect` shows what this one holds");
}

// A whole number up to what runs can count; a negative number would be read as a larger one.
std::uint64_t saved_count(const nlohmann::json& state, const char* name) {
  constexpr std::uint64_t kMost = std::uint64_t{1} << 53;
  const nlohmann::json& value = state.at(name);
  const std::uint64_t count = value.is_number_integer() ? value.get<std::uint64_t>() : UINT64_MAX;
  if (count > kMost) malformed_state(concat(name, " is out of range"));
  return count;
}

}  // namespace

void BatchPlan::add(std::span<const std::uint32_t> batch) {
  samples.insert(samples.end(), batch.begin(), batch.end());
  begin.push_back(samples.size());
}

std::string BatchPlan::hash() const {
  Sha256 hash;
  hash.update(samples.data(), samples.size() * sizeof samples[0]);
  hash.update(begin.data(), begin.size() * sizeof begin[0]);
  return hash.hex();
}

PlanSettings PlanSettings::from(const Options& options) {
  PlanSettings settings;
  settings.mode = options.sampler.mode;
  settings.boundaries = options.sampler.boundaries;
  settings.batch_tokens = options.sampler.batch_tokens.value_or(0);
  settings.pool = options.sampler.pool;
  settings.drop_last = options.sampler.drop_last;
  settings.batch_size = options.train.batch_size;
  settings.padded = settings.batch_tokens > 0 && options.train.layout == "padded";  // without a budget it has no part
  settings.seed = static_cast<std::uint64_t>(options.train.seed);
  for (const ReplayOptions& replay : options.data.replay) settings.replay_shares.push_back(replay.share);
  return settings;
}

nlohmann::json PlanSettings::save_state() const {
  return {{"mode", mode},
          {"boundaries", boundaries},
          {"batch_tokens", batch_tokens},
          {"pool", pool},
          {"drop_last", drop_last},
          {"batch_size", batch_size},
          {"padded", padded},
          {"seed", seed},
          {"replay_shares", replay_shares}};
}

PlanSettings PlanSettings::load_state(const nlohmann::json& state) {
  PlanSettings settings;
  try {
    state.at("mode").get_to(settings.mode);
    state.at("boundaries").get_to(settings.boundaries);
    state.at("batch_tokens").get_to(settings.batch_tokens);
    state.at("pool").get_to(settings.pool);
    state.at("drop_last").get_to(settings.drop_last);
    state.at("batch_size").get_to(settings.batch_size);
    state.at("padded").get_to(settings.padded);
    state.at("seed").get_to(settings.seed);
    state.at("replay_shares").get_to(settings.replay_shares);
  } catch (const nlohmann::json::exception& error) {
    malformed_state(error.what());
  }
  if (const auto fault = fault_of(settings)) malformed_state(fault->what);
  return settings;
}

nlohmann::json BatchCursor::save_state() const {
  nlohmann::json parts = nlohmann::json::array();
  for (const ConsumedPart& part : earlier) {
    parts.push_back({{"settings", part.settings.save_state()}, {"batches", part.batches}});
  }
  return {{"epoch", epoch}, {"batch", batch}, {"consumed", consumed}, {"earlier", parts}};
}

BatchCursor BatchCursor::load_state(const nlohmann::json& state) {
  BatchCursor cursor;
  try {
    cursor.epoch = saved_count(state, "epoch");
    cursor.batch = saved_count(state, "batch");
    cursor.consumed = saved_count(state, "consumed");
    for (const nlohmann::json& part : state.at("earlier")) {
      cursor.earlier.push_back({PlanSettings::load_state(part.at("settings")), saved_count(part, "batches")});
    }
  } catch (const nlohmann::json::exception& error) {
    malformed_state(error.what());
  }
  return cursor;
}

Sampler::Sampler(const Dataset& dataset, PlanSettings settings) : dataset_(dataset), settings_(std::move(settings)) {
  const auto refuse = [](std::string why, std::string fix) {
    throw Error("CFG001", std::move(why)).fix(std::move(fix));
  };
  if (const auto fault = fault_of(settings_)) refuse(fault->what, fault->fix);
  if (settings_.replay_shares.size() + 1 != dataset_.groups().size()) {
    refuse("data.replay and the opened manifests differ", "this is a bug; please report it");
  }
}

std::vector<std::uint32_t> Sampler::remaining(std::uint64_t epoch, const std::vector<ConsumedPart>& earlier) const {
  std::vector<std::uint32_t> samples(dataset_.epoch_size());
  std::iota(samples.begin(), samples.end(), 0U);
  for (const ConsumedPart& part : earlier) {
    const BatchPlan plan = Planner(dataset_, part.settings).run(samples, epoch);
    std::vector<bool> consumed(dataset_.epoch_size(), false);
    const std::uint64_t batches = std::min<std::uint64_t>(part.batches, plan.size());
    for (std::uint64_t i = 0; i < plan.begin[batches]; ++i) consumed[plan.samples[i]] = true;
    std::erase_if(samples, [&](std::uint32_t sample) { return consumed[sample]; });
  }
  return samples;
}

BatchPlan Sampler::plan(std::uint64_t epoch, const std::vector<ConsumedPart>& earlier) const {
  const BatchPlan own = Planner(dataset_, settings_).run(remaining(epoch, earlier), epoch);
  return settings_.replay_shares.empty() ? own : with_replay(dataset_, settings_, own, epoch);
}

BatchCursor Sampler::carry_over(const BatchCursor& cursor, const PlanSettings& previous) const {
  if (previous == settings_) return cursor;
  BatchCursor next = cursor;
  next.batch = 0;
  if (cursor.batch > 0) next.earlier.push_back({previous, cursor.batch});
  return next;
}

BatchPlan sequential_plan(const Dataset& dataset, std::int64_t batch_size) {
  PlanSettings settings;
  settings.mode = "sequential";
  settings.batch_size = batch_size;
  std::vector<std::uint32_t> samples(dataset.epoch_size());
  std::iota(samples.begin(), samples.end(), 0U);
  return Planner(dataset, settings).run(std::move(samples), 0);
}

BatchPlan spread(const BatchPlan& plan, std::size_t count) {
  if (plan.size() <= count) return plan;
  BatchPlan chosen;
  for (std::size_t i = 0; i < count; ++i) chosen.add(plan.batch(i * plan.size() / count));
  return chosen;
}

namespace {

struct PaddingTotals {
  std::uint64_t padded = 0, real = 0, speakers = 0;
  double share() const { return padded == 0 ? 0 : 1 - static_cast<double>(real) / static_cast<double>(padded); }
};

// Adds one batch; returns its padded positions.
std::uint64_t measure(const Dataset& dataset, std::span<const std::uint32_t> batch, PaddingTotals& totals) {
  const std::int64_t prefix = dataset.model().prefix_length();
  Lengths longest;
  std::vector<std::uint32_t> speakers;
  for (const std::uint32_t sample : batch) {
    const Lengths lengths = lengths_of(dataset, sample);
    longest = {std::max(longest.text, lengths.text), std::max(longest.codes, lengths.codes)};
    totals.real += static_cast<std::uint64_t>(positions(lengths, prefix));
    speakers.push_back(dataset.index()[sample].speaker);
  }
  std::sort(speakers.begin(), speakers.end());
  totals.speakers += static_cast<std::uint64_t>(std::unique(speakers.begin(), speakers.end()) - speakers.begin());
  const std::uint64_t padded = static_cast<std::uint64_t>(positions(longest, prefix)) * batch.size();
  totals.padded += padded;
  return padded;
}

}  // namespace

PlanStatistics plan_statistics(const Dataset& dataset, const BatchPlan& plan) {
  PlanStatistics statistics;
  statistics.samples = plan.samples.size();
  statistics.batches = plan.size();
  if (plan.size() == 0) return statistics;
  PaddingTotals own, random;
  std::vector<double> means;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const std::uint64_t real_before = own.real;
    const std::uint64_t padded = measure(dataset, plan.batch(i), own);
    means.push_back(static_cast<double>(own.real - real_before) / static_cast<double>(plan.batch(i).size()));
    if (padded > statistics.longest_positions) {
      statistics.longest_positions = padded;
      statistics.longest_batch = i;
    }
  }
  BatchPlan mixed = plan;
  RandomStream stream(0, kStatisticsStream);
  shuffle(mixed.samples, stream);
  for (std::size_t i = 0; i < mixed.size(); ++i) measure(dataset, mixed.batch(i), random);

  const auto batches = static_cast<double>(plan.size());
  statistics.positions = own.real;
  statistics.padding_share = own.share();
  statistics.random_padding_share = random.share();
  statistics.speakers_per_batch = static_cast<double>(own.speakers) / batches;
  statistics.random_speakers_per_batch = static_cast<double>(random.speakers) / batches;
  for (const std::uint32_t sample : plan.samples) statistics.replay_samples += sample >= dataset.epoch_size();
  const double mean = std::accumulate(means.begin(), means.end(), 0.0) / batches;
  double variance = 0, covariance = 0;
  for (std::size_t i = 0; i < means.size(); ++i) {
    variance += (means[i] - mean) * (means[i] - mean);
    if (i > 0) covariance += (means[i] - mean) * (means[i - 1] - mean);
  }
  statistics.length_correlation = variance > 0 ? covariance / variance : 0;
  return statistics;
}

}  // namespace train_gpt_v2
