#include <gtest/gtest.h>

#include "reference.h"

namespace train_gpt_v2 {
namespace {

using testing::cell;
using testing::Doubles;
using testing::EveryIsa;
using testing::expect_close;
using testing::random_floats;
using testing::TestMatrix;

class LossTest : public EveryIsa {};
TGV2_EVERY_ISA(LossTest);
class OptimizerTest : public EveryIsa {};
TGV2_EVERY_ISA(OptimizerTest);

TEST_P(LossTest, CrossEntropyGradientAndRank) {
  for (const std::int64_t classes : {1, 3, 16, 50, 226, 1003}) {
    for (const Num type : {Num::kFloat, Num::kBf16}) {
      for (const bool gradient : {true, false}) {
        SCOPED_TRACE(::testing::Message() << classes << " classes, gradient " << gradient);
        const std::int64_t rows = 11;
        auto logits = TestMatrix::random(rows, classes, type, 1, 8);
        const TestMatrix before = logits;
        const auto bias = random_floats(static_cast<std::size_t>(classes), 2);
        std::vector<std::int32_t> targets, rank(rows);
        for (std::int64_t r = 0; r < rows; ++r) targets.push_back(static_cast<std::int32_t>(r * 7919 % classes));
        targets[0] = static_cast<std::int32_t>(classes - 1);
        std::vector<float> loss(rows);
        kernels->cross_entropy(
            {rows, classes, logits.view(), bias.data(), targets.data(), gradient, 0.25f, loss.data(), rank.data()});
        for (std::int64_t r = 0; r < rows; ++r) {
          Doubles z(static_cast<std::size_t>(classes));
          double top = -1e300, total = 0;
          for (std::int64_t j = 0; j < classes; ++j) top = std::max(top, z[j] = before.get(r, j) + bias[j]);
          for (const double v : z) total += std::exp(v - top);
          const std::int32_t t = targets[r];
          expect_close(loss[r], top + std::log(total) - z[t], 2e-6, 2e-6, "loss " + std::to_string(r));
          int higher = 0;
          for (std::int64_t j = 0; j < classes; ++j) {
            const float value = static_cast<float>(before.get(r, j)) + bias[j],
                        at = static_cast<float>(before.get(r, t)) + bias[t];
            higher += value > at || (value == at && j < t);
          }
          EXPECT_EQ(rank[r], higher);
          for (std::int64_t j = 0; j < classes; ++j) {
            const double want = gradient ? 0.25 * (std::exp(z[j] - top) / total - (j == t)) : before.get(r, j);
            expect_close(logits.get(r, j), want, 1e-7, type == Num::kBf16 ? 0.004 : 3e-6, cell(r, j));
          }
          if (HasFatalFailure()) return;
        }
        logits.expect_gaps_untouched();
      }
    }
  }
}

TEST_P(LossTest, EqualLogitsRankByIndexAndNanGivesNan) {
  TestMatrix logits(2, 40, Num::kFloat);
  for (int j = 0; j < 40; ++j) {
    logits.set(0, j, 1.f);
    logits.set(1, j, j == 33 ? std::nanf("") : 1.f);
  }
  const std::vector<float> bias(40, 0.f);
  const std::vector<std::int32_t> targets{20, 5};
  std::vector<float> loss(2);
  std::vector<std::int32_t> rank(2);
  kernels->cross_entropy({2, 40, logits.view(), bias.data(), targets.data(), false, 1, loss.data(), rank.data()});
  EXPECT_EQ(rank[0], 20);
  EXPECT_NEAR(loss[0], std::log(40.0), 1e-6);
  EXPECT_TRUE(std::isnan(loss[1]));
}

TEST_P(OptimizerTest, SumOfSquaresOfFlaggedRowsAndFlatSpans) {
  const auto a = random_floats(100003, 1), b = random_floats(40 * 33, 2);
  std::vector<std::uint8_t> flags(40, 0);
  flags[0] = flags[7] = flags[39] = 1;
  const GradientSpan spans[] = {{a.data(), 1, 100003, nullptr}, {b.data(), 40, 33, flags.data()}};
  double want = 0;
  for (const float v : a) want += static_cast<double>(v) * v;
  for (std::size_t i = 0; i < b.size(); ++i) want += flags[i / 33] ? static_cast<double>(b[i]) * b[i] : 0;
  EXPECT_NEAR(kernels->sum_of_squares(spans, 2), want, 2e-7 * want);
  const auto single = make_cpu_kernels(1, GetParam());
  EXPECT_EQ(kernels->sum_of_squares(spans, 2), single->sum_of_squares(spans, 2));
  const float bad[] = {1.f, std::nanf("")};
  const GradientSpan nan_span{bad, 1, 2, nullptr};
  EXPECT_TRUE(std::isnan(kernels->sum_of_squares(&nan_span, 1)));
}

// torch.optim.AdamW in double, 5 steps, with the clip factor, rows without gradient, EMA and the bf16 copy.
TEST_P(OptimizerTest, AdamWFollowsTorch) {
  const std::int64_t rows = 20, width = 37;
  const std::size_t n = rows * width;
  auto p = random_floats(n, 1);
  std::vector<float> m(n, 0), v(n, 0), ema = p;
  std::vector<Bf16> copy(n);
  std::vector<std::uint8_t> flags(rows, 1);
  flags[4] = 0;
  Doubles dp(p.begin(), p.end()), dm(n, 0), dv(n, 0), de(p.begin(), p.end());
  const double lr = 3e-3, decay = 0.02, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, scale = 0.625, ema_decay = 0.99;
  for (int step = 1; step <= 5; ++step) {
    auto g = random_floats(n, 10u + static_cast<unsigned>(step), 2);
    for (std::int64_t j = 0; j < width; ++j) g[4 * width + j] = std::nanf("");  // must not be read
    AdamWTensor t;
    t.parameter = p.data();
    t.exp_avg = m.data();
    t.exp_avg_sq = v.data();
    t.gradient = g.data();
    t.rows = rows;
    t.width = width;
    t.row_flags = flags.data();
    t.ema = ema.data();
    t.copy = copy.data();
    t.learning_rate = lr;
    t.weight_decay = decay;
    AdamWStep s;
    s.step = step;
    s.gradient_scale = static_cast<float>(scale);
    s.ema_decay = ema_decay;
    kernels->adamw(s, &t, 1);
    for (std::size_t i = 0; i < n; ++i) {
      const double grad = flags[i / width] ? g[i] * scale : 0;
      dp[i] -= lr * decay * dp[i];
      dm[i] = beta1 * dm[i] + (1 - beta1) * grad;
      dv[i] = beta2 * dv[i] + (1 - beta2) * grad * grad;
      dp[i] -=
          lr / (1 - std::pow(beta1, step)) * dm[i] / (std::sqrt(dv[i]) / std::sqrt(1 - std::pow(beta2, step)) + eps);
      de[i] = ema_decay * de[i] + (1 - ema_decay) * dp[i];
      expect_close(p[i], dp[i], 5e-7, 0, "p " + std::to_string(i));
      expect_close(m[i], dm[i], 2e-7, 1e-6, "m");
      expect_close(v[i], dv[i], 1e-8, 2e-6, "v");
      expect_close(ema[i], de[i], 5e-7, 0, "ema");
      EXPECT_EQ(copy[i].bits, to_bf16(p[i]).bits);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(OptimizerTest, WithoutFlagsTensorsAreFlatAndSeveralGoInOnePass) {
  std::vector<float> p[2], m[2], v[2], g[2];
  AdamWTensor t[2];
  for (int i = 0; i < 2; ++i) {
    const std::size_t n = i ? 17 : 40001;
    p[i] = random_floats(n, 1);
    g[i] = random_floats(n, 2);
    m[i].assign(n, 0.f);
    v[i].assign(n, 0.f);
    t[i].parameter = p[i].data();
    t[i].exp_avg = m[i].data();
    t[i].exp_avg_sq = v[i].data();
    t[i].gradient = g[i].data();
    t[i].width = static_cast<std::int64_t>(n);
    t[i].learning_rate = 0.1 * (i + 1);
  }
  const auto before = p[0];
  kernels->adamw({}, t, 2);
  // The first step of Adam moves every element by lr * g / (|g| + eps).
  for (int k = 0; k < 2; ++k) {
    for (std::size_t i = 0; i < p[k].size(); ++i) {
      const double gradient = g[k][i], move = 0.1 * (k + 1) * gradient / (std::abs(gradient) + 1e-8);
      EXPECT_NEAR(p[k][i], before[i] - move, 5e-7) << k << " " << i;
    }
  }
}

TEST_P(OptimizerTest, ConvertRoundsLikeTheScalarOne) {
  auto x = random_floats(70001, 3, 1e3);
  x[5] = INFINITY;
  x[6] = 1.00390625f;
  std::vector<Bf16> out(x.size());
  kernels->convert(out.data(), x.data(), static_cast<std::int64_t>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i) ASSERT_EQ(out[i].bits, to_bf16(x[i]).bits) << x[i];
}

TEST_P(OptimizerTest, MemoryIsZeroAndAligned) {
  void* memory = kernels->allocate(5000001);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % 64, 0u);
  const char* bytes = static_cast<const char*>(memory);
  EXPECT_TRUE(std::all_of(bytes, bytes + 5000001, [](char c) { return c == 0; }));
  kernels->release(memory, 5000001);
}

}  // namespace
}  // namespace train_gpt_v2
