#include <gtest/gtest.h>

#include "reference.h"

namespace train_gpt_v2 {
namespace {

using testing::cell;
using testing::Doubles;
using testing::EveryIsa;
using testing::expect_close;
using testing::keep_factor;
using testing::random_floats;
using testing::TestMatrix;

class RowsTest : public EveryIsa {};
TGV2_EVERY_ISA(RowsTest);

constexpr double kLnEps = 1e-5;

struct Norm {
  double mean, rstd;
};
Norm norm_of(const Doubles& x) {
  double mean = 0, variance = 0;
  for (const double v : x) mean += v / static_cast<double>(x.size());
  for (const double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
  return {mean, 1 / std::sqrt(variance + kLnEps)};
}
// dL/dx of LayerNorm by its Jacobian, term by term.
Doubles ln_gradient(const Doubles& x, const Doubles& d_out, const std::vector<float>& gamma) {
  const Norm n = norm_of(x);
  const double width = static_cast<double>(x.size());
  Doubles dx(x.size(), 0);
  for (std::size_t j = 0; j < x.size(); ++j) {
    for (std::size_t k = 0; k < x.size(); ++k) {
      const double jacobian =
          n.rstd * ((j == k) - 1 / width - (x[j] - n.mean) * (x[k] - n.mean) * n.rstd * n.rstd / width);
      dx[j] += d_out[k] * gamma[k] * jacobian;
    }
  }
  return dx;
}
Doubles row_of(const std::vector<float>& v, std::int64_t r, std::int64_t width) {
  return Doubles(v.begin() + r * width, v.begin() + (r + 1) * width);
}
double gelu(double u) {
  return 0.5 * u * (1 + std::tanh(std::sqrt(2 / M_PI) * (u + 0.044715 * u * u * u)));
}

struct Width {
  std::int64_t rows, width;
};
const Width kSizes[] = {{1, 1}, {3, 20}, {70, 64}, {65, 131}, {130, 300}};

TEST_P(RowsTest, DropResidualLayerNormAndItsBackward) {
  for (const auto [rows, width] : kSizes) {
    if (width == 1) continue;  // the variance of one number is rounding noise
    for (const Num type : {Num::kFloat, Num::kBf16}) {
      for (const double rate : {0.0, 0.25}) {
        SCOPED_TRACE(::testing::Message()
                     << rows << "x" << width << " rate " << rate << " type " << static_cast<int>(type));
        const double tolerance = type == Num::kBf16 ? 0.004 : 2e-6, absolute = type == Num::kBf16 ? 0.02 : 1e-5;
        const std::size_t size = static_cast<std::size_t>(rows * width), w = static_cast<std::size_t>(width);
        const auto in = random_floats(size, 1), bias = random_floats(w, 2), gamma = random_floats(w, 3),
                   beta = random_floats(w, 4);
        auto branch = TestMatrix::random(rows, width, type, 5);
        TestMatrix out(rows, width, type), d_branch(rows, width, type);
        std::vector<float> x(size), mean(static_cast<std::size_t>(rows)), rstd = mean;
        std::vector<std::uint32_t> ids;
        for (std::int64_t r = 0; r < rows; ++r) ids.push_back(dropout_row(2, static_cast<std::uint32_t>(r + 5)));
        const DropoutPlace place{make_dropout({11, 12, 13}, rate), 17, ids.data()};
        kernels->drop_residual_ln({rows, width, in.data(), branch.view(), bias.data(), place, x.data(), gamma.data(),
                                   beta.data(), out.view(), mean.data(), rstd.data()});
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t j = 0; j < width; ++j) {
            const double keep = rate > 0 ? keep_factor(place.dropout, 17, ids[r], j) : 1;
            expect_close(x[r * width + j], in[r * width + j] + keep * (branch.get(r, j) + bias[j]), 1e-6, 1e-6,
                         cell(r, j));
          }
          const Doubles row = row_of(x, r, width);
          const Norm n = norm_of(row);
          for (std::int64_t j = 0; j < width; ++j) {
            expect_close(out.get(r, j), (row[j] - n.mean) * n.rstd * gamma[j] + beta[j], absolute, tolerance,
                         cell(r, j));
          }
          if (HasFatalFailure()) return;
        }
        out.expect_gaps_untouched();

        auto d_out = TestMatrix::random(rows, width, type, 6);
        const auto d_start = random_floats(size, 7), sums = random_floats(3 * w, 8);
        auto dx = d_start;
        auto d_gamma = std::vector<float>(sums.begin(), sums.begin() + width);
        auto d_beta = std::vector<float>(sums.begin() + width, sums.begin() + 2 * width);
        auto d_bias = std::vector<float>(sums.begin() + 2 * width, sums.end());
        kernels->ln_backward_drop({rows, width, d_out.view(), x.data(), mean.data(), rstd.data(), gamma.data(),
                                   dx.data(), d_gamma.data(), d_beta.data(), d_branch.view(), place, d_bias.data(),
                                   true});
        Doubles want_gamma(w), want_beta(w), want_bias(w);
        for (std::int64_t j = 0; j < width; ++j) {
          want_gamma[j] = sums[j];
          want_beta[j] = sums[width + j];
          want_bias[j] = sums[2 * width + j];
        }
        for (std::int64_t r = 0; r < rows; ++r) {
          const Doubles row = row_of(x, r, width);
          const Norm n = norm_of(row);
          Doubles d(w);
          for (std::int64_t j = 0; j < width; ++j) d[j] = d_out.get(r, j);
          const Doubles g = ln_gradient(row, d, gamma);
          for (std::int64_t j = 0; j < width; ++j) {
            want_gamma[j] += d[j] * (row[j] - n.mean) * n.rstd;
            want_beta[j] += d[j];
            const double total = d_start[r * width + j] + g[j];
            expect_close(dx[r * width + j], total, 2e-5, 1e-5, "dx " + cell(r, j));
            const double keep = rate > 0 ? keep_factor(place.dropout, 17, ids[r], j) : 1;
            expect_close(d_branch.get(r, j), keep * total, 2e-5, type == Num::kBf16 ? 0.004 : 1e-5,
                         "branch " + cell(r, j));
            want_bias[j] += keep * total;
          }
          if (HasFatalFailure()) return;
        }
        for (std::int64_t j = 0; j < width; ++j) {
          expect_close(d_gamma[j], want_gamma[j], 2e-4, 1e-5, "gamma");
          expect_close(d_beta[j], want_beta[j], 1e-4, 1e-5, "beta");
          expect_close(d_bias[j], want_bias[j], 5e-4, 1e-5, "bias");
        }
      }
    }
  }
}

TEST_P(RowsTest, LayerNormAloneAndDropoutBackwardAlone) {
  const std::int64_t rows = 9, width = 40;
  const auto x = random_floats(360, 1), gamma = random_floats(40, 2), beta = random_floats(40, 3);
  TestMatrix out(rows, width, Num::kFloat), d_branch(rows, width, Num::kFloat);
  std::vector<float> mean(9), rstd(9), d_bias(40);
  kernels->drop_residual_ln({rows,
                             width,
                             x.data(),
                             {},
                             nullptr,
                             {},
                             nullptr,
                             gamma.data(),
                             beta.data(),
                             out.view(),
                             mean.data(),
                             rstd.data()});
  auto dx = x;
  LnBackwardDrop only_drop;
  only_drop.rows = rows;
  only_drop.width = width;
  only_drop.d_residual = dx.data();
  only_drop.d_branch = d_branch.view();
  only_drop.d_bias = d_bias.data();
  kernels->ln_backward_drop(only_drop);
  EXPECT_EQ(dx, x);
  Doubles sums(40, 0);
  for (std::int64_t r = 0; r < rows; ++r) {
    const Norm n = norm_of(row_of(x, r, width));
    for (std::int64_t j = 0; j < width; ++j) {
      expect_close(out.get(r, j), (x[r * width + j] - n.mean) * n.rstd * gamma[j] + beta[j], 2e-6, 2e-6, cell(r, j));
      EXPECT_EQ(d_branch.get(r, j), x[r * width + j]);
      sums[j] += x[r * width + j];
    }
  }
  for (std::int64_t j = 0; j < width; ++j) expect_close(d_bias[j], sums[j], 1e-6, 1e-6, "bias");
}

TEST_P(RowsTest, BiasGeluAndItsBackward) {
  for (const auto [rows, width] : kSizes) {
    for (const Num type : {Num::kFloat, Num::kBf16}) {
      const std::size_t w = static_cast<std::size_t>(width);
      auto u = TestMatrix::random(rows, width, type, 1, 12), grad = TestMatrix::random(rows, width, type, 2);
      const TestMatrix before = grad;
      const auto bias = random_floats(w, 3);
      TestMatrix out(rows, width, type);
      std::vector<float> d_bias(w, 0.5f);
      kernels->bias_gelu({rows, width, u.view(), bias.data(), out.view()});
      kernels->bias_gelu_backward({rows, width, u.view(), bias.data(), grad.view(), d_bias.data(), true});
      Doubles want(w, 0.5);
      const double relative = type == Num::kBf16 ? 0.004 : 3e-6;
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t j = 0; j < width; ++j) {
          const double v = u.get(r, j) + bias[j], h = 1e-5;
          expect_close(out.get(r, j), gelu(v), 1e-6, relative, cell(r, j));
          const double d = before.get(r, j) * (gelu(v + h) - gelu(v - h)) / (2 * h);
          expect_close(grad.get(r, j), d, 4e-6, relative, "grad " + cell(r, j));
          want[j] += d;
        }
        if (HasFatalFailure()) return;
      }
      for (std::int64_t j = 0; j < width; ++j) expect_close(d_bias[j], want[j], 1e-4, 1e-5, "bias");
      grad.expect_gaps_untouched();
    }
  }
}

TEST_P(RowsTest, GeluOfExtremeValues) {
  auto u = TestMatrix(1, 6, Num::kFloat), grad = u;
  const float values[] = {-1e30f, -60.f, 60.f, 1e30f, 0.f, std::nanf("")};
  for (int j = 0; j < 6; ++j) {
    u.set(0, j, values[j]);
    grad.set(0, j, 1.f);
  }
  const std::vector<float> bias(6, 0.f);
  TestMatrix out(1, 6, Num::kFloat);
  kernels->bias_gelu({1, 6, u.view(), bias.data(), out.view()});
  kernels->bias_gelu_backward({1, 6, u.view(), bias.data(), grad.view(), nullptr, false});
  const double want[] = {0, 0, 60, 1e30f, 0}, want_grad[] = {0, 0, 1, 1, 0.5};
  for (int j = 0; j < 5; ++j) {
    EXPECT_NEAR(out.get(0, j), want[j], 1e-7 + 1e-6 * std::abs(want[j])) << j;
    if (std::abs(values[j]) < 1e20f) {
      EXPECT_NEAR(grad.get(0, j), want_grad[j], 1e-6) << j;
    }
  }
  EXPECT_TRUE(std::isnan(out.get(0, 5)));
}

TEST_P(RowsTest, DoubleLayerNormOfListedRows) {
  const std::int64_t total = 90, width = 52;
  std::vector<std::int32_t> rows;
  for (std::int32_t r = 3; r < total; r += (r % 7 == 0 ? 5 : 1)) rows.push_back(r);
  const std::int64_t count = static_cast<std::int64_t>(rows.size());
  const auto x = random_floats(total * width, 1), g1 = random_floats(width, 2), b1 = random_floats(width, 3),
             g2 = random_floats(width, 4), b2 = random_floats(width, 5);
  std::vector<float> y(count * width), statistics(4 * count), dx(total * width, 9.f);
  TestMatrix out(count, width, Num::kFloat);
  auto d_out = TestMatrix::random(count, width, Num::kFloat, 6);
  const DoubleLnGather forward{count,     width,     rows.data(), x.data(),   g1.data(),        b1.data(),
                               g2.data(), b2.data(), y.data(),    out.view(), statistics.data()};
  kernels->double_ln_gather(forward);
  std::vector<float> dg1(width, 1.f), db1 = dg1, dg2 = dg1, db2 = dg1;
  kernels->double_ln_gather_backward(
      {forward, total, d_out.view(), dx.data(), dg1.data(), db1.data(), dg2.data(), db2.data(), true});
  Doubles want_g1(width, 1), want_b1 = want_g1, want_g2 = want_g1, want_b2 = want_g1;
  std::vector<bool> listed(total, false);
  for (std::int64_t i = 0; i < count; ++i) {
    const Doubles row = row_of(x, rows[i], width);
    listed[rows[i]] = true;
    const Norm n1 = norm_of(row);
    Doubles first(width), d(width);
    for (std::int64_t j = 0; j < width; ++j) {
      first[j] = (row[j] - n1.mean) * n1.rstd * g1[j] + b1[j];
      d[j] = d_out.get(i, j);
    }
    const Norm n2 = norm_of(first);
    const Doubles dy = ln_gradient(first, d, g2), want = ln_gradient(row, dy, g1);
    for (std::int64_t j = 0; j < width; ++j) {
      expect_close(out.get(i, j), (first[j] - n2.mean) * n2.rstd * g2[j] + b2[j], 1e-5, 1e-5, cell(i, j));
      expect_close(dx[rows[i] * width + j], want[j], 5e-5, 2e-5, "dx " + cell(i, j));
      want_g2[j] += d[j] * (first[j] - n2.mean) * n2.rstd;
      want_b2[j] += d[j];
      want_g1[j] += dy[j] * (row[j] - n1.mean) * n1.rstd;
      want_b1[j] += dy[j];
    }
  }
  for (std::int64_t r = 0; r < total; ++r) {
    if (!listed[r]) {
      EXPECT_EQ(dx[r * width], 0.f);
    }
  }
  for (std::int64_t j = 0; j < width; ++j) {
    expect_close(dg1[j], want_g1[j], 3e-4, 3e-5, "gamma1");
    expect_close(db1[j], want_b1[j], 3e-4, 3e-5, "beta1");
    expect_close(dg2[j], want_g2[j], 1e-4, 1e-5, "gamma2");
    expect_close(db2[j], want_b2[j], 1e-4, 1e-5, "beta2");
  }
}

TEST_P(RowsTest, ColumnSumOfAnyWidth) {
  for (const Num type : {Num::kFloat, Num::kBf16}) {
    auto m = TestMatrix::random(37, 203, type, 1);
    std::vector<float> out(204, 2.f);
    kernels->column_sum({37, 203, m.view(), out.data(), true});
    for (std::int64_t j = 0; j < 203; ++j) {
      double want = 2;
      for (std::int64_t i = 0; i < 37; ++i) want += m.get(i, j);
      expect_close(out[j], want, 1e-5, 1e-6, "column " + std::to_string(j));
    }
    EXPECT_EQ(out[203], 2.f);
  }
}

TEST_P(RowsTest, ColumnSumsOfProducts) {
  for (const Num type : {Num::kFloat, Num::kBf16}) {
    auto m = TestMatrix::random(37, 203, type, 1), n = TestMatrix::random(37, 203, type, 2);
    std::vector<float> out(204, 2.f);
    for (const bool accumulate : {false, true}) {
      kernels->column_sum({37, 203, m.view(), out.data(), accumulate, n.view()});
      for (std::int64_t j = 0; j < 203; ++j) {
        double want = 0;
        for (std::int64_t i = 0; i < 37; ++i) want += m.get(i, j) * n.get(i, j);
        expect_close(out[j], accumulate ? 2 * want : want, 1e-5, 1e-6, "column " + std::to_string(j));
      }
      EXPECT_EQ(out[203], 2.f);
    }
  }
  auto m = TestMatrix::random(2, 3, Num::kFloat, 1), n = TestMatrix::random(2, 3, Num::kBf16, 2);
  std::vector<float> out(3);
  EXPECT_THROW(kernels->column_sum({2, 3, m.view(), out.data(), false, n.view()}), std::invalid_argument);
}

TEST_P(RowsTest, EmbeddingGatherAndScatter) {
  const std::int64_t width = 70;
  const auto a = random_floats(5 * width, 1), b = random_floats(6 * width, 2), p = random_floats(9 * width, 3);
  const std::vector<EmbedRow> source{{0, 4, 0}, {1, 5, 8}, {1, 5, 0}, {1, 2, 8}, {2, 0, 0}};
  EmbedPack pack;
  pack.rows = 5;
  pack.width = width;
  pack.source = source.data();
  pack.table[0] = a.data();
  pack.table[1] = b.data();
  pack.table[2] = a.data();
  pack.position[1] = p.data();
  std::vector<float> out(5 * width);
  pack.out = out.data();
  kernels->embed_pack(pack);
  for (std::int64_t j = 0; j < width; ++j) {
    EXPECT_EQ(out[j], a[4 * width + j]);
    EXPECT_EQ(out[width + j], b[5 * width + j] + p[8 * width + j]);
    EXPECT_EQ(out[4 * width + j], a[j]);
  }
  std::vector<float> db(6 * width, 1.f), dp(9 * width, 0.f);
  EmbedScatter scatter;
  scatter.rows = 5;
  scatter.width = width;
  scatter.source = source.data();
  scatter.grad = out.data();
  scatter.table[1] = db.data();
  scatter.position[1] = dp.data();
  kernels->embed_scatter(scatter);
  for (std::int64_t j = 0; j < width; ++j) {
    EXPECT_EQ(db[5 * width + j], 1.f + out[width + j] + out[2 * width + j]);
    EXPECT_EQ(dp[8 * width + j], out[width + j] + out[3 * width + j]);
    EXPECT_EQ(db[0 * width + j], 1.f);
  }
}

}  // namespace
}  // namespace train_gpt_v2
