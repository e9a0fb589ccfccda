#include <gtest/gtest.h>

#include "reference.h"

namespace train_gpt_v2 {
namespace {

using testing::cell;
using testing::EveryIsa;
using testing::expect_close;
using testing::keep_factor;
using testing::random_floats;
using testing::TestMatrix;

class AttentionTest : public EveryIsa {};
TGV2_EVERY_ISA(AttentionTest);

struct Problem {
  std::vector<Segment> segments;
  std::int64_t heads, d, rows = 0;
  Num type;
  Dropout dropout;
  std::vector<float> bias, log_sum;
  TestMatrix qkv, out, d_out, d_qkv;

  Problem(const std::vector<std::int32_t>& lengths, std::int64_t heads_, std::int64_t d_, Num type_, double rate)
      : heads(heads_),
        d(d_),
        type(type_),
        dropout(make_dropout({99, 3, 1}, rate)),
        qkv(0, 0, type_),
        out(0, 0, type_),
        d_out(0, 0, type_),
        d_qkv(0, 0, type_) {
    for (const std::int32_t n : lengths) {
      segments.push_back({static_cast<std::int32_t>(rows), n});
      rows += n;
    }
    const std::int64_t model = heads * d;
    bias = random_floats(static_cast<std::size_t>(3 * model), 7, 0.5);
    log_sum.assign(static_cast<std::size_t>(heads * (rows + 5)), 0);
    qkv = TestMatrix::random(rows, 3 * model, type, 8, 1.5);
    out = TestMatrix(rows, model, type);
    d_out = TestMatrix::random(rows, model, type, 9);
    d_qkv = TestMatrix(rows, 3 * model, type);
  }
  Attention forward() {
    return {segments.data(),
            static_cast<std::int64_t>(segments.size()),
            heads,
            d,
            qkv.view(),
            bias.data(),
            out.view(),
            log_sum.data(),
            rows + 5,
            dropout,
            4};
  }
};

// Textbook attention of every (segment, head) in double, with its gradient by the chain rule over the full matrices.
void expect_textbook(Problem& p, double tolerance) {
  const std::int64_t model = p.heads * p.d;
  for (std::size_t s = 0; s < p.segments.size(); ++s) {
    const std::int64_t n = p.segments[s].length, t0 = p.segments[s].begin;
    for (std::int64_t h = 0; h < p.heads; ++h) {
      const auto value = [&](int third, std::int64_t i, std::int64_t j) {
        const std::int64_t c = third * model + h * p.d + j;
        return p.qkv.get(t0 + i, c) + p.bias[static_cast<std::size_t>(c)];
      };
      const std::size_t size = static_cast<std::size_t>(n * n);
      std::vector<double> prob(size, 0), keep(size, 0), d_score(size, 0);
      const double scale = 1 / std::sqrt(static_cast<double>(p.d));
      for (std::int64_t i = 0; i < n; ++i) {
        double total = 0, top = -1e300;
        for (std::int64_t j = 0; j <= i; ++j) {
          double score = 0;
          for (std::int64_t c = 0; c < p.d; ++c) score += value(0, i, c) * value(1, j, c);
          prob[i * n + j] = score * scale;
          top = std::max(top, score * scale);
        }
        for (std::int64_t j = 0; j <= i; ++j) total += prob[i * n + j] = std::exp(prob[i * n + j] - top);
        for (std::int64_t j = 0; j <= i; ++j) {
          prob[i * n + j] /= total;
          keep[i * n + j] =
              p.dropout.active()
                  ? keep_factor(p.dropout, dropout_site_attention_probability(4, static_cast<std::uint32_t>(h)),
                                dropout_row(static_cast<std::uint32_t>(s), static_cast<std::uint32_t>(i)), j)
                  : 1;
        }
        expect_close(p.log_sum[static_cast<std::size_t>(h * (p.rows + 5) + t0 + i)], top + std::log(total), tolerance,
                     tolerance, "log sum " + cell(h, i));
        for (std::int64_t c = 0; c < p.d; ++c) {
          double o = 0;
          for (std::int64_t j = 0; j <= i; ++j) o += prob[i * n + j] * keep[i * n + j] * value(2, j, c);
          expect_close(p.out.get(t0 + i, h * p.d + c), o, tolerance, tolerance, "out " + cell(i, c));
        }
        if (::testing::Test::HasFatalFailure()) return;
        double dot = 0;
        for (std::int64_t j = 0; j <= i; ++j) {
          double g = 0;
          for (std::int64_t c = 0; c < p.d; ++c) g += p.d_out.get(t0 + i, h * p.d + c) * value(2, j, c);
          d_score[i * n + j] = g * keep[i * n + j];
          dot += d_score[i * n + j] * prob[i * n + j];
        }
        for (std::int64_t j = 0; j <= i; ++j) d_score[i * n + j] = prob[i * n + j] * (d_score[i * n + j] - dot);
      }
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t c = 0; c < p.d; ++c) {
          double dq = 0, dk = 0, dv = 0;
          for (std::int64_t j = 0; j < n; ++j) {
            dq += d_score[i * n + j] * value(1, j, c) * scale;
            dk += d_score[j * n + i] * value(0, j, c) * scale;
            dv += prob[j * n + i] * keep[j * n + i] * p.d_out.get(t0 + j, h * p.d + c);
          }
          expect_close(p.d_qkv.get(t0 + i, h * p.d + c), dq, tolerance, tolerance, "dq " + cell(i, c));
          expect_close(p.d_qkv.get(t0 + i, model + h * p.d + c), dk, 3 * tolerance, tolerance, "dk " + cell(i, c));
          expect_close(p.d_qkv.get(t0 + i, 2 * model + h * p.d + c), dv, 3 * tolerance, tolerance, "dv " + cell(i, c));
        }
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(AttentionTest, ForwardAndBackwardAreTheTextbookOnes) {
  struct Shape {
    std::vector<std::int32_t> lengths;
    std::int64_t heads, d;
  };
  for (const Shape& shape : {Shape{{1}, 1, 64}, Shape{{5, 1, 17}, 2, 32}, Shape{{63, 130, 64}, 2, 64},
                             Shape{{70}, 3, 20}, Shape{{33, 9}, 1, 128}, Shape{{97}, 2, 7}}) {
    for (const double rate : {0.0, 0.3}) {
      for (const Num type : {Num::kFloat, Num::kBf16}) {
        SCOPED_TRACE(::testing::Message() << "heads " << shape.heads << " of " << shape.d << ", dropout " << rate
                                          << (type == Num::kBf16 ? ", bf16" : ", float"));
        Problem p(shape.lengths, shape.heads, shape.d, type, rate);
        kernels->attention(p.forward());
        kernels->attention_backward({p.forward(), p.d_out.view(), p.d_qkv.view()});
        expect_textbook(p, type == Num::kBf16 ? 0.04 : 4e-6);
        p.out.expect_gaps_untouched();
        p.d_qkv.expect_gaps_untouched();
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(AttentionTest, BitsDoNotDependOnTheNumberOfThreads) {
  for (const Num type : {Num::kFloat, Num::kBf16}) {
    Problem one({50, 77, 12}, 3, 32, type, 0.1), three = one;
    const auto single = make_cpu_kernels(1, GetParam()), triple = make_cpu_kernels(3, GetParam());
    single->attention(one.forward());
    single->attention_backward({one.forward(), one.d_out.view(), one.d_qkv.view()});
    triple->attention(three.forward());
    triple->attention_backward({three.forward(), three.d_out.view(), three.d_qkv.view()});
    EXPECT_EQ(one.out.floats, three.out.floats);
    EXPECT_EQ(one.d_qkv.floats, three.d_qkv.floats);
    for (std::size_t i = 0; i < one.d_qkv.halves.size(); ++i)
      EXPECT_EQ(one.d_qkv.halves[i].bits, three.d_qkv.halves[i].bits);
  }
}

TEST_P(AttentionTest, NanComesThrough) {
  Problem p({20}, 1, 16, Num::kFloat, 0);
  p.qkv.set(3, 0, std::nanf(""));
  kernels->attention(p.forward());
  EXPECT_FALSE(std::isnan(p.out.get(2, 0)));
  EXPECT_TRUE(std::isnan(p.out.get(3, 0)));
  EXPECT_FALSE(std::isnan(p.out.get(4, 0)));
}

}  // namespace
}  // namespace train_gpt_v2
