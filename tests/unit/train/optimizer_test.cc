// The one-pass update of the CPU against torch's own AdamW, clipping and groups included.
#include "train_gpt_v2/train/optimizer.h"

#include <ATen/ops/_fused_adamw.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/model_fill.h"

namespace train_gpt_v2::testing {
namespace {

struct Tensors {
  std::vector<torch::Tensor> values, grads, first, second, steps;
};

// Two groups with different rates; the second tensor of the first group is a view into the middle of a table.
ParameterSet two_groups(torch::Tensor& table) {
  ParameterSet set;
  table = filled("table", {50, 33}, 1);
  const auto add = [&](const std::string& name, const torch::Tensor& value, int group) {
    set.groups[static_cast<std::size_t>(group)].members.push_back(static_cast<int>(set.tensors.size()));
    set.tensors.push_back({name, value, torch::zeros(value.sizes()), 0, group, std::nullopt});
    set.all_names.push_back(name);
  };
  set.groups = {{"slow", 1e-3, 0.1, {}}, {"fast", 2e-2, 0.0, {}}};
  add("weight", filled("weight", {130, 129}, 1), 0);
  add("table", table.narrow(0, 7, 20), 0);
  add("bias", filled("bias", {17}, 1), 1);
  return set;
}

Tensors copies(const ParameterSet& set) {
  Tensors t;
  for (const TrainableTensor& tensor : set.tensors) {
    t.values.push_back(tensor.value.clone());
    t.grads.push_back(torch::zeros_like(tensor.value));
    t.first.push_back(torch::zeros_like(tensor.value));
    t.second.push_back(torch::zeros_like(tensor.value));
    t.steps.push_back(torch::zeros({}));
  }
  return t;
}

// torch's clip_grad_norm_ (or one per group) and fused AdamW.
double torch_step(const ParameterSet& set, Tensors& t, double grad_scale, double max_norm, bool per_group,
                  const OptimizerOptions& options, double factor) {
  double total = 0;
  std::vector<double> by_group(set.groups.size(), 0);
  for (std::size_t i = 0; i < t.grads.size(); ++i) {
    const double square = t.grads[i].to(torch::kFloat64).square().sum().item<double>() * grad_scale * grad_scale;
    total += square;
    by_group[static_cast<std::size_t>(set.tensors[i].group)] += square;
  }
  for (std::size_t i = 0; i < t.grads.size(); ++i) {
    const auto g = static_cast<std::size_t>(set.tensors[i].group);
    const double norm = std::sqrt(per_group ? by_group[g] : total);
    t.grads[i].mul_(grad_scale * (max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0));
    t.steps[i] += 1;
    at::_fused_adamw_({t.values[i]}, {t.grads[i]}, {t.first[i]}, {t.second[i]}, {}, {t.steps[i]},
                      set.groups[g].learning_rate * factor, options.beta1, options.beta2, set.groups[g].weight_decay,
                      options.eps, false, false);
  }
  return std::sqrt(total);
}

TEST(AdamW, OnePassOnTheCpuIsTorchsUpdate) {
  for (const bool per_group : {false, true}) {
    for (const double max_norm : {0.0, 0.7}) {
      torch::Tensor table, other_table;
      ParameterSet set = two_groups(table), in_place_set = two_groups(other_table);
      const OptimizerOptions options;
      AdamW optimizer(set, options), in_place(in_place_set, options);
      Tensors want = copies(set);
      const torch::Tensor outside = table.narrow(0, 0, 7).clone();
      for (int step = 1; step <= 6; ++step) {
        for (std::size_t i = 0; i < want.grads.size(); ++i) {
          want.grads[i] = filled("grad" + std::to_string(10 * step) + std::to_string(i), want.values[i].sizes(), 3);
          set.tensors[i].grad.copy_(want.grads[i]);
          in_place_set.tensors[i].grad.copy_(want.grads[i]);
        }
        const double factor = 1.0 / step;
        const ClipResult clip = optimizer.unscale_and_clip(0.25, max_norm, per_group, /*in_place=*/false);
        optimizer.step(factor);
        const ClipResult same = in_place.unscale_and_clip(0.25, max_norm, per_group);
        in_place.step(factor);
        const double norm = torch_step(set, want, 0.25, max_norm, per_group, options, factor);
        EXPECT_NEAR(clip.norm, norm, 1e-6 * norm);
        EXPECT_EQ(clip.norm, same.norm);
        EXPECT_EQ(clip.clipped, max_norm > 0);
        for (std::size_t i = 0; i < want.values.size(); ++i) {
          EXPECT_LT((set.tensors[i].value - want.values[i]).abs().max().item<double>(), 3e-7) << step << " " << i;
          EXPECT_LT((in_place_set.tensors[i].value - want.values[i]).abs().max().item<double>(), 3e-7);
          // In place means the gradients themselves.
          EXPECT_LT((in_place_set.tensors[i].grad - want.grads[i]).abs().max().item<double>(), 1e-7);
        }
      }
      EXPECT_TRUE(torch::equal(table.narrow(0, 0, 7), outside)) << "rows outside the view changed";
    }
  }
}

TEST(AdamW, NonFiniteNormIsReportedAndNothingScaled) {
  torch::Tensor table;
  ParameterSet set = two_groups(table);
  AdamW optimizer(set, OptimizerOptions{});
  set.tensors[2].grad[3] = INFINITY;
  const ClipResult clip = optimizer.unscale_and_clip(1, 1, false, false);
  EXPECT_FALSE(clip.finite);
  EXPECT_FALSE(clip.clipped);
  set.tensors[2].grad[3] = std::nan("");
  EXPECT_FALSE(optimizer.unscale_and_clip(1, 1, false).finite);
}

}  // namespace
}  // namespace train_gpt_v2::testing
