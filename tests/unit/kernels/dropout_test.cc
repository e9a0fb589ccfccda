#include "train_gpt_v2/kernels/dropout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "train_gpt_v2/kernels/isa.h"

#include "../../../src/kernels/isa/table.h"

namespace train_gpt_v2 {
namespace {

// Philox4x32-R written down a second time, from the paper.
std::vector<std::uint32_t> philox(std::vector<std::uint32_t> c, std::uint32_t k0, std::uint32_t k1, int rounds) {
  for (int r = 0; r < rounds; ++r) {
    const std::uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
    c = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(a)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// The rule of the header, column by column.
bool kept(const Dropout& d, std::uint32_t site, std::uint32_t row, std::uint32_t column) {
  const std::uint32_t group = column / 128 * 16 + column % 32 / 2;
  const auto word = philox({d.key.micro << 16 | group, row, site, d.key.step}, static_cast<std::uint32_t>(d.key.seed),
                           static_cast<std::uint32_t>(d.key.seed >> 32), 7)[column % 128 / 32];
  return (word >> (16 * (column % 2)) & 0xffffu) >= d.threshold;
}

TEST(Dropout, TheTestsOwnPhiloxGivesThePublishedKnownAnswer) {
  EXPECT_EQ(philox({0, 0, 0, 0}, 0, 0, 10),
            (std::vector<std::uint32_t>{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
}

TEST(Dropout, EveryInstructionSetFollowsTheRuleOfTheHeader) {
  const Dropout d = make_dropout({0x123456789abcdef0ull, 77, 3}, 0.37);
  for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (!isa_available(isa)) continue;
    SCOPED_TRACE(isa_name(isa));
    for (const std::int64_t columns : {1, 7, 16, 31, 128, 129, 300}) {
      const std::uint32_t row = dropout_row(2, 1000 + static_cast<std::uint32_t>(columns));
      const std::uint32_t site = dropout_site_attention_probability(11, 5);
      std::vector<float> out(static_cast<std::size_t>(columns) + 1, -5.f);
      kernel_table(isa).dropout_scale_row(d, site, row, columns, out.data());
      for (std::int64_t c = 0; c < columns; ++c) {
        ASSERT_EQ(out[c], kept(d, site, row, static_cast<std::uint32_t>(c)) ? d.scale : 0.f) << "column " << c;
      }
      ASSERT_EQ(out.back(), -5.f) << "wrote past the row";
    }
  }
}

TEST(Dropout, FillFunctionsUseTheRowsTheyAreGiven) {
  const Dropout d = make_dropout({5, 6, 7}, 0.1);
  const std::vector<std::uint32_t> rows{dropout_row(1, 2), dropout_row(0, 9)};
  std::vector<float> out(2 * 40);
  fill_dropout_scale(d, dropout_site_mlp_residual(3), rows.data(), 2, 40, out.data());
  for (std::uint32_t c = 0; c < 40; ++c) {
    EXPECT_EQ(out[40 + c] != 0, kept(d, dropout_site_mlp_residual(3), rows[1], c));
  }
  fill_attention_dropout_scale(d, 3, 1, 4, 10, 2, 40, out.data());
  for (std::uint32_t c = 0; c < 40; ++c) {
    EXPECT_EQ(out[40 + c] != 0, kept(d, dropout_site_attention_probability(3, 1), dropout_row(4, 11), c));
  }
}

TEST(Dropout, ScaleIsThatOfTheQuantisedRate) {
  const Dropout d = make_dropout({}, 0.1);
  EXPECT_EQ(d.threshold, 6554u);
  EXPECT_EQ(d.scale, static_cast<float>(1 / (1 - 6554 / 65536.0)));
  EXPECT_FALSE(make_dropout({}, 0).active());
  std::vector<float> out(3, 0.f);
  const std::uint32_t row = 0;
  fill_dropout_scale(make_dropout({}, 0), 0, &row, 1, 3, out.data());
  EXPECT_EQ(out, (std::vector<float>{1, 1, 1}));
  EXPECT_THROW(make_dropout({}, 1.0), std::invalid_argument);
  EXPECT_THROW(make_dropout({}, -0.1), std::invalid_argument);
  EXPECT_THROW(make_dropout({}, std::nan("")), std::invalid_argument);
}

TEST(Dropout, SitesOfOneModelAreDistinct) {
  EXPECT_NE(dropout_site_embedding(), dropout_site_attention_residual(0));
  EXPECT_NE(dropout_site_mlp_residual(0), dropout_site_attention_residual(1));
  EXPECT_NE(dropout_site_attention_probability(0, 1), dropout_site_attention_probability(1, 0));
}

// Drop rate, and joint drops of neighbours, rows, sites, steps, micro-batches: each a z-score of a binomial count.
TEST(Dropout, DecisionsAreIndependent) {
  const double p = 6554 / 65536.0;
  const Dropout d = make_dropout({1234, 5, 0}, 0.1);
  Dropout next_step = d, next_micro = d, next_seed = d;
  next_step.key.step++;
  next_micro.key.micro++;
  next_seed.key.seed++;
  std::int64_t total = 0, drops = 0, pairs = 0, neighbour = 0;
  std::int64_t joint[5] = {};
  for (std::uint32_t row = 0; row < 20000; ++row) {
    for (std::uint32_t block = 0; block < 2; ++block) {
      std::uint32_t a[4], b[5][4];
      dropout_bits(d, 3, row, block, a);
      dropout_bits(d, 3, row + 1, block, b[0]);
      dropout_bits(d, 4, row, block, b[1]);
      dropout_bits(next_step, 3, row, block, b[2]);
      dropout_bits(next_micro, 3, row, block, b[3]);
      dropout_bits(next_seed, 3, row, block, b[4]);
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t drop = ~a[i];
        total += 32;
        drops += __builtin_popcount(drop);
        pairs += 31;
        neighbour += __builtin_popcount(drop & (drop >> 1) & 0x7fffffffu);
        for (int k = 0; k < 5; ++k) joint[k] += __builtin_popcount(drop & ~b[k][i]);
      }
    }
  }
  const auto z = [](std::int64_t hits, std::int64_t n, double q) {
    return (static_cast<double>(hits) / n - q) / std::sqrt(q * (1 - q) / n);
  };
  EXPECT_LT(std::abs(z(drops, total, p)), 4);
  EXPECT_LT(std::abs(z(neighbour, pairs, p * p)), 4);
  for (int k = 0; k < 5; ++k) EXPECT_LT(std::abs(z(joint[k], total, p * p)), 4) << k;
}

}  // namespace
}  // namespace train_gpt_v2
