#pragma once
// golden_peft.json as float64 tensors, and comparisons with a stated limit.

#include <ATen/core/Tensor.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/test_files.h"

namespace train_gpt_v2::testing {

inline nlohmann::json golden_peft(const std::string& section) {
  std::ifstream file(data_path("golden_peft.json"));
  return nlohmann::json::parse(file).at(section);
}

inline at::Tensor golden_tensor(const nlohmann::json& numbers, at::IntArrayRef shape) {
  return at::tensor(numbers.get<std::vector<double>>(), at::kDouble).reshape(shape);
}

inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  if (a.sizes() != b.sizes()) return 1e300;
  if (a.numel() == 0) return 0;
  const double difference = (a.detach().to(at::kDouble) - b.detach().to(at::kDouble)).abs().max().item<double>();
  return difference == difference ? difference : 1e300;  // NaN is never near anything
}

inline double largest_difference(const at::Tensor& a, const nlohmann::json& numbers) {
  return largest_difference(a, golden_tensor(numbers, a.sizes()));
}

}  // namespace train_gpt_v2::testing
