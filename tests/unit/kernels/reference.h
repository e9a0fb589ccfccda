#pragma once
// What every kernel test needs: numbers, both storage types, all instruction sets of this machine, and comparison with
// references computed in double from the textbook formulas.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "train_gpt_v2/kernels/kernels.h"

namespace train_gpt_v2::testing {

using Doubles = std::vector<double>;

inline std::vector<float> random_floats(std::size_t count, unsigned seed, double scale = 1) {
  std::mt19937_64 engine(seed);
  std::vector<float> v(count);
  for (float& x : v) {
    const double u = static_cast<double>(engine() >> 11) / 9007199254740992.0;
    x = static_cast<float>(scale * (2 * u - 1));
  }
  return v;
}

// A matrix of one storage type with gaps between its rows, filled with a pattern that tests can check for overwriting.
struct TestMatrix {
  std::int64_t rows, columns, stride;
  Num type;
  std::vector<float> floats;
  std::vector<Bf16> halves;

  TestMatrix(std::int64_t rows_, std::int64_t columns_, Num type_, std::int64_t gap = 3)
      : rows(rows_), columns(columns_), stride(columns_ + gap), type(type_) {
    const std::size_t count = static_cast<std::size_t>(rows * stride);
    if (type == Num::kFloat) {
      floats.assign(count, -77.f);
    } else {
      halves.assign(count, to_bf16(-77.f));
    }
  }
  static TestMatrix random(std::int64_t rows, std::int64_t columns, Num type, unsigned seed, double scale = 1) {
    TestMatrix m(rows, columns, type);
    const auto values = random_floats(static_cast<std::size_t>(rows * columns), seed, scale);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) m.set(i, j, values[static_cast<std::size_t>(i * columns + j)]);
    }
    return m;
  }
  std::size_t at(std::int64_t i, std::int64_t j) const { return static_cast<std::size_t>(i * stride + j); }
  void set(std::int64_t i, std::int64_t j, float v) {
    if (type == Num::kFloat) {
      floats[at(i, j)] = v;
    } else {
      halves[at(i, j)] = to_bf16(v);
    }
  }
  double get(std::int64_t i, std::int64_t j) const {
    return type == Num::kFloat ? floats[at(i, j)] : to_float(halves[at(i, j)]);
  }
  Matrix view() {
    return {type == Num::kFloat ? static_cast<void*>(floats.data()) : static_cast<void*>(halves.data()), type, stride};
  }
  void expect_gaps_untouched() const {
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = columns; j < stride; ++j)
        ASSERT_EQ(get(i, j), to_float(to_bf16(-77.f))) << "gap of row " << i;
    }
  }
};

// |a - b| <= absolute + relative * |b|
inline void expect_close(double a, double b, double absolute, double relative, const std::string& what) {
  ASSERT_LE(std::abs(a - b), absolute + relative * std::abs(b)) << what << ": " << a << " instead of " << b;
}

inline std::string cell(std::int64_t i, std::int64_t j) {
  return "[" + std::to_string(i) + "," + std::to_string(j) + "]";
}

// One test instance per instruction set that this machine can run.
class EveryIsa : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!isa_available(GetParam())) GTEST_SKIP() << "this processor has no " << isa_name(GetParam());
    kernels = make_cpu_kernels(2, GetParam());
  }
  std::unique_ptr<Kernels> kernels;
};

#define TGV2_EVERY_ISA(Suite)                                                                                         \
  INSTANTIATE_TEST_SUITE_P(Cpu, Suite, ::testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16), \
                           [](const auto& each) { return std::string(isa_name(each.param)); })

// Keep factor (0 or the scale) of one column by the rule of dropout.h.
inline double keep_factor(const Dropout& d, std::uint32_t site, std::uint32_t row, std::int64_t column) {
  std::uint32_t bits[4];
  dropout_bits(d, site, row, static_cast<std::uint32_t>(column / 128), bits);
  return bits[column % 128 / 32] >> (column % 32) & 1u ? d.scale : 0.0;
}

}  // namespace train_gpt_v2::testing
