// Every combination of the six improvements of phase 1 goes on bit by bit after a stop at any step, whatever the number
// of workers before and after.
#include <gmock/gmock.h>

#include "support/resume_run.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/random.h"

namespace train_gpt_v2 {
namespace {

using testing::expect_resumes;
using testing::small_run;

struct Improvement {
  const char* name;
  std::vector<std::string> on, off;
};

const std::vector<Improvement>& improvements() {
  static const std::vector<Improvement> six = {
      {"clipping", {"train.grad_clip=0.3", "train.clip_per_group=true"}, {"train.grad_clip=0"}},
      {"best", {R"(checkpoint.best_metrics=["mel_loss","mel_top1"])"}, {"checkpoint.best_metrics=[]"}},
      {"validation", {"validation.interval=3"}, {"validation.interval=0"}},
      {"ema", {"ema.enabled=true", "ema.update_every=2"}, {"ema.enabled=false"}},
      {"bucketing", {"sampler.mode=buckets", "sampler.boundaries=[20,30,40,60]"}, {"sampler.mode=shuffle"}},
      {"early_stopping",
       {"early_stopping.enabled=true", "early_stopping.patience=2", "early_stopping.min_improvement=0.2"},
       {"early_stopping.enabled=false"}}};
  return six;
}

constexpr unsigned kValidation = 1U << 2, kEarlyStopping = 1U << 5;

// Bit k switches the k-th improvement on; where the run stops and how many workers it has follow from `mask`.
void check_combination(unsigned mask) {
  RandomStream random(20261126, mask);
  std::vector<std::string> sets = {"checkpoint.interval=0"};
  std::string names;
  for (std::size_t i = 0; i < improvements().size(); ++i) {
    const Improvement& one = improvements()[i];
    const bool on = (mask >> i & 1U) != 0;
    if (on) names += std::string(" ") + one.name;
    for (const std::string& set : on ? one.on : one.off) sets.push_back(set);
  }
  const auto stop = static_cast<std::int64_t>(1 + random.below(6));  // early stopping ends no run before step 7
  SCOPED_TRACE(::testing::Message() << "combination" << names << ", stopped at step " << stop);
  if ((mask & kEarlyStopping) && !(mask & kValidation)) {
    EXPECT_THROW(small_run(sets), Error);  // it acts on validations
    return;
  }
  auto with_workers = [&sets, &random] {
    std::vector<std::string> all = sets;
    all.push_back("data.num_workers=" + std::to_string(random.below(4)));
    all.push_back("data.prefetch_batches=" + std::to_string(1 + random.below(4)));
    return small_run(all);
  };
  const Options first = with_workers(), later = with_workers();
  expect_resumes(first, {stop}, &later);
}

TEST(ResumeMatrix, EveryPairOfImprovements) {
  // Any two improvements occur in all four on-off combinations (early stopping only where there is validation).
  const unsigned chosen[] = {0b000000, 0b111111, 0b110110, 0b011101, 0b011011, 0b001010, 0b100101};
  for (std::size_t a = 0; a < 6; ++a) {
    for (std::size_t b = 0; b < 6; ++b) {
      std::vector<bool> seen(4, false);
      for (const unsigned mask : chosen) seen[(mask >> a & 1U) * 2 + (mask >> b & 1U)] = true;
      const bool impossible = (1U << a) == kEarlyStopping && (1U << b) == kValidation;
      for (unsigned both = 0; both < 4 && a != b; ++both) {
        if (impossible && both == 2) continue;
        if ((1U << b) == kEarlyStopping && (1U << a) == kValidation && both == 1) continue;
        EXPECT_TRUE(seen[both]) << a << " " << b << " " << both;
      }
    }
  }
  for (const unsigned mask : chosen) check_combination(mask);
}

TEST(ResumeMatrix, AllSixtyFourCombinations) {
  for (unsigned mask = 0; mask < 64; ++mask) check_combination(mask);
}

TEST(ResumeMatrix, AllSixAtEveryStep) {
  std::vector<std::string> sets;
  for (const Improvement& one : improvements()) sets.insert(sets.end(), one.on.begin(), one.on.end());
  sets.push_back("early_stopping.min_improvement=0");
  expect_resumes(small_run(sets), {1, 2, 3, 4, 5, 6, 7, 8, 9});
}

}  // namespace
}  // namespace train_gpt_v2
