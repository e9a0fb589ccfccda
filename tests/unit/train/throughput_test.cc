#include "train_gpt_v2/train/throughput.h"

#include <gtest/gtest.h>

namespace train_gpt_v2 {
namespace {

// performance.md §3.2: B=64, S=394 (34 + 60 + 300), 24,001 text rows: 75.1 T at D=1280, 6.84 T at D=512; start and stop
// add one percent, which the table leaves out.
TEST(TrainingFlops, AreThoseOfTheTable) {
  ModelOptions large;
  large.number_text_tokens = 24000;
  ModelOptions small = large;
  small.model_dim = 512;
  small.layers = 12;
  const double count = 64;
  const Workload work{count * (34 + 60 + 300 + 3), count * 61, count * 301};
  EXPECT_NEAR(training_flops(large, work) / 1e12, 75.1, 0.01 * 75.1);
  EXPECT_NEAR(training_flops(small, work) / 1e12, 6.84, 0.01 * 6.84);
}

TEST(TrainingFlops, GrowWithEachPart) {
  ModelOptions model;
  model.model_dim = 2;
  model.layers = 1;
  model.number_text_tokens = 9;  // 10 rows
  model.number_mel_codes = 7;
  // One sample of 3 ids and 5 codes: 34 + 8 + 3 = 45 positions, 4 and 6 targets.
  EXPECT_DOUBLE_EQ(training_flops(model, {45, 4, 6}), (72 * 4 + 6 * 45 * 2) * 45 + 6 * 2 * (10 * 4 + 7 * 6));
  EXPECT_EQ(training_flops(model, {}), 0);
}

TEST(PeakFlops, KnowsDevicesByName) {
  EXPECT_EQ(peak_flops("NVIDIA A100-SXM4-80GB (79.2 GiB)", "bf16"), 312e12);
  EXPECT_EQ(peak_flops("NVIDIA A100-SXM4-80GB (79.2 GiB)", "fp32"), 156e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3 (79.1 GiB)", "bf16"), 989e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 PCIe (79.1 GiB)", "bf16"), 756e12);
  EXPECT_EQ(peak_flops("NVIDIA L4 (22.2 GiB)", "bf16"), 121e12);
  EXPECT_EQ(peak_flops("NVIDIA L40S (44.4 GiB)", "bf16"), 362e12);
  EXPECT_EQ(peak_flops("Tesla T4", "fp32"), std::nullopt);  // no TF32
  EXPECT_EQ(peak_flops("CPU (AVX512, 2 threads)", "fp32"), std::nullopt);
}

}  // namespace
}  // namespace train_gpt_v2
