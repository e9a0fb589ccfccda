#include <gtest/gtest.h>

#include "reference.h"

namespace train_gpt_v2 {
namespace {

using testing::cell;
using testing::EveryIsa;
using testing::expect_close;
using testing::TestMatrix;

class GemmTest : public EveryIsa {};
TGV2_EVERY_ISA(GemmTest);

struct Case {
  std::int64_t m, n, k;
};

// Sum and sum of magnitudes, which bounds the rounding error.
void check(Kernels& kernels, Case size, bool trans_a, bool trans_b, Num type, Num c_type, bool accumulate) {
  SCOPED_TRACE(::testing::Message() << size.m << "x" << size.n << "x" << size.k << (trans_a ? " At" : "")
                                    << (trans_b ? " Bt" : "") << (type == Num::kBf16 ? " bf16" : " float")
                                    << (c_type == Num::kBf16 ? " to bf16" : "") << (accumulate ? " +C" : ""));
  auto a = trans_a ? TestMatrix::random(size.k, size.m, type, 1) : TestMatrix::random(size.m, size.k, type, 1);
  auto b = trans_b ? TestMatrix::random(size.n, size.k, type, 2) : TestMatrix::random(size.k, size.n, type, 2);
  auto c = TestMatrix::random(size.m, size.n, c_type, 3);
  const TestMatrix before = c;
  kernels.gemm({trans_a, trans_b, size.m, size.n, size.k, a.view(), b.view(), c.view(), accumulate});
  for (std::int64_t i = 0; i < size.m; ++i) {
    for (std::int64_t j = 0; j < size.n; ++j) {
      double sum = accumulate ? before.get(i, j) : 0, magnitude = std::abs(sum);
      for (std::int64_t k = 0; k < size.k; ++k) {
        const double p = (trans_a ? a.get(k, i) : a.get(i, k)) * (trans_b ? b.get(j, k) : b.get(k, j));
        sum += p;
        magnitude += std::abs(p);
      }
      // float sums of k terms, then one rounding to bf16 where C is bf16
      expect_close(c.get(i, j), sum, 3e-7 * magnitude, c_type == Num::kBf16 ? 0.004 : 1e-6, cell(i, j));
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
  c.expect_gaps_untouched();
}

TEST_P(GemmTest, EveryTranspositionAndTypeAtOddSizes) {
  for (const Case size : {Case{1, 1, 1}, Case{13, 33, 7}, Case{12, 32, 16}, Case{101, 67, 45}, Case{37, 130, 161}}) {
    for (const bool trans_a : {false, true}) {
      for (const bool trans_b : {false, true}) {
        check(*kernels, size, trans_a, trans_b, Num::kFloat, Num::kFloat, false);
        check(*kernels, size, trans_a, trans_b, Num::kFloat, Num::kFloat, true);
        check(*kernels, size, trans_a, trans_b, Num::kBf16, Num::kFloat, false);
        check(*kernels, size, trans_a, trans_b, Num::kBf16, Num::kFloat, true);
        check(*kernels, size, trans_a, trans_b, Num::kBf16, Num::kBf16, false);
      }
    }
  }
}

// k in several blocks, whose edges must not lose or repeat a term, also with an odd k and a bf16 C.
TEST_P(GemmTest, LongSums) {
  for (const bool transposed : {false, true}) {
    check(*kernels, {14, 40, 1601}, transposed, !transposed, Num::kFloat, Num::kFloat, true);
    check(*kernels, {14, 40, 3333}, transposed, transposed, Num::kBf16, Num::kFloat, false);
    check(*kernels, {14, 40, 3333}, transposed, !transposed, Num::kBf16, Num::kBf16, false);
  }
}

TEST_P(GemmTest, BitsDoNotDependOnTheNumberOfThreads) {
  const auto other = make_cpu_kernels(5, GetParam());
  const auto single = make_cpu_kernels(1, GetParam());
  for (const Num type : {Num::kFloat, Num::kBf16}) {
    auto a = TestMatrix::random(301, 1300, type, 4), b = TestMatrix::random(1300, 290, type, 5);
    TestMatrix c(301, 290, Num::kFloat), d = c, e = c;
    kernels->gemm({false, false, 301, 290, 1300, a.view(), b.view(), c.view(), false});
    single->gemm({false, false, 301, 290, 1300, a.view(), b.view(), d.view(), false});
    other->gemm({false, false, 301, 290, 1300, a.view(), b.view(), e.view(), false});
    EXPECT_EQ(c.floats, d.floats);
    EXPECT_EQ(c.floats, e.floats);
  }
}

TEST_P(GemmTest, RefusesMixedTypes) {
  TestMatrix a(4, 4, Num::kFloat), b(4, 4, Num::kBf16), c(4, 4, Num::kBf16);
  EXPECT_THROW(kernels->gemm({false, false, 4, 4, 4, a.view(), b.view(), c.view(), false}), std::invalid_argument);
  EXPECT_THROW(kernels->gemm({false, false, 4, 4, 4, b.view(), b.view(), c.view(), true}), std::invalid_argument);
}

TEST(CpuKernels, WantsAtLeastOneThread) {
  EXPECT_THROW(make_cpu_kernels(0), std::invalid_argument);
}

TEST(Bf16, RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(to_bf16(1.f).bits, 0x3f80);
  EXPECT_EQ(to_bf16(1.00390625f).bits, 0x3f80);  // half way: to even
  EXPECT_EQ(to_bf16(1.01171875f).bits, 0x3f82);  // half way: to even
  EXPECT_EQ(to_bf16(1.00390637f).bits, 0x3f81);  // just above half
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::nanf("")))));
  EXPECT_EQ(to_float(to_bf16(INFINITY)), INFINITY);
  EXPECT_EQ(to_float(to_bf16(3.4e38f)), INFINITY);
}

}  // namespace
}  // namespace train_gpt_v2
