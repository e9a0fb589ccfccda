#include "train_gpt_v2/train/batch_fit.h"

#include <gmock/gmock.h>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A device of `memory` bytes on which a step takes 1000 + 100 per sample; sizes tried are recorded.
struct Device {
  std::uint64_t memory;
  std::vector<std::int64_t> tried = {};
  bool dies = false;  // running out of memory is an error that can be caught

  BatchFit fit(std::int64_t effective, std::int64_t first, std::int64_t ranks = 1) {
    return fit_batch({effective, ranks, first, memory, 0, [this](std::int64_t size) -> std::optional<std::uint64_t> {
                        tried.push_back(size);
                        const std::uint64_t peak = 1000 + 100 * static_cast<std::uint64_t>(size);
                        if (dies && peak > memory) return std::nullopt;
                        return peak;
                      }});
  }
};

TEST(BatchFit, TakesEverythingWhereThereIsRoom) {
  Device device{1'000'000};
  const BatchFit fit = device.fit(64, 1);
  EXPECT_EQ(fit.batch_size, 64);
  EXPECT_EQ(fit.grad_accumulation, 1);
  EXPECT_THAT(device.tried, ElementsAre(1, 2, 4, 8, 16, 32, 64));
}

TEST(BatchFit, StopsBeforeTheStepThatWouldNotFit) {
  Device device{4000};  // usable 3600: 26 samples
  const BatchFit fit = device.fit(64, 1);
  EXPECT_EQ(fit.batch_size, 16);
  EXPECT_EQ(fit.grad_accumulation, 4);
  EXPECT_THAT(device.tried, ElementsAre(1, 2, 4, 8, 16));  // 32 is known not to fit without trying
  EXPECT_THAT(fit.reasons, Contains(HasSubstr("batch 32: would take about 4.1 KiB")));
}

TEST(BatchFit, ComesDownFromTheTablesSize) {
  Device device{4000, {}, true};
  const BatchFit fit = device.fit(64, 64);
  EXPECT_EQ(fit.batch_size, 16);
  EXPECT_THAT(device.tried, ElementsAre(64, 32, 16));
  EXPECT_THAT(fit.reasons, Contains("batch 64: out of memory"));
}

TEST(BatchFit, FindsADivisorBetweenThePowersOfTwo) {
  Device device{6000, {}, true};  // usable 5400: 44 samples
  const BatchFit fit = device.fit(96, 96);
  EXPECT_EQ(fit.batch_size * fit.grad_accumulation, 96);
  EXPECT_EQ(fit.batch_size, 32);  // 48 does not fit
}

TEST(BatchFit, KeepsTheEffectiveBatchForEverySize) {
  for (std::int64_t effective = 1; effective <= 60; ++effective) {
    for (const std::uint64_t memory : {1300U, 2000U, 3000U, 9000U}) {
      Device device{memory, {}, true};
      const BatchFit fit = device.fit(effective, 6);
      EXPECT_EQ(fit.batch_size * fit.grad_accumulation, effective);
      EXPECT_LE(1000 + 100 * fit.batch_size, static_cast<std::int64_t>(memory) * 9 / 10);
    }
  }
}

TEST(BatchFit, AccumulationIsAMultipleOfTheRanks) {
  Device device{1'000'000};
  const BatchFit fit = device.fit(64, 1, 4);
  EXPECT_EQ(fit.batch_size, 16);
  EXPECT_EQ(fit.grad_accumulation, 4);
}

TEST(BatchFit, WithoutAMeasurementTheTableDecides) {
  Device device{0};
  const BatchFit fit = device.fit(64, 6);  // no divisor: the next smaller one
  EXPECT_EQ(fit.batch_size, 4);
  EXPECT_EQ(fit.grad_accumulation, 16);
  EXPECT_TRUE(device.tried.empty());
}

TEST(BatchFit, OneSampleThatDoesNotFitIsAnError) {
  Device device{1000, {}, true};
  try {
    device.fit(8, 8);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "MEM001");
    EXPECT_EQ(static_cast<int>(error.status()), 82);
  }
}

TEST(BatchFit, ARememberedSizeIsBelievedAfterOneStep) {
  Device device{4000, {}, true};
  const auto fit = [&device](std::int64_t remembered) {
    device.tried.clear();
    BatchFitRequest request{
        64, 1, 64, device.memory, remembered, [&device](std::int64_t size) -> std::optional<std::uint64_t> {
          device.tried.push_back(size);
          return 1000 + 100 * static_cast<std::uint64_t>(size);
        }};
    return fit_batch(request).batch_size;
  };
  EXPECT_EQ(fit(16), 16);
  EXPECT_THAT(device.tried, ElementsAre(16));
  EXPECT_EQ(fit(32), 16);  // it no longer fits: searched from there down
  EXPECT_THAT(device.tried, ElementsAre(32, 16));
  EXPECT_EQ(fit(48), 16);  // no divisor: as if nothing were known
  EXPECT_THAT(device.tried, ElementsAre(64, 32, 16));
}

TEST(BatchFit, TheTableIsThePythonTrainers) {
  EXPECT_EQ(table_batch_size(79.2, true, false), 64);
  EXPECT_EQ(table_batch_size(79.2, true, true), 96);  // an "80 GB" card
  EXPECT_EQ(table_batch_size(139, true, true), 96);
  EXPECT_EQ(table_batch_size(47.5, true, true), 16);
  EXPECT_EQ(table_batch_size(23.7, true, false), 6);
  EXPECT_EQ(table_batch_size(15.9, true, false), 4);
  EXPECT_EQ(table_batch_size(8, true, false), 2);
  EXPECT_EQ(table_batch_size(6, true, false), 1);
  EXPECT_EQ(table_batch_size(512, false, true), 1);
}

}  // namespace
}  // namespace train_gpt_v2
