#include "train_gpt_v2/adapt/adapter.h"

#include <ATen/ops/eye.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>

#include "support/error_of.h"
#include "support/golden_peft.h"
#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

using testing::golden_peft;
using testing::golden_tensor;
using testing::largest_difference;

constexpr double kExact = 1e-10;

at::TensorOptions wide() {
  return at::TensorOptions().dtype(at::kDouble);
}

at::Tensor stored(const at::Tensor& logical, WeightLayout layout) {
  return (layout == WeightLayout::kInOut ? logical.t() : logical).contiguous();
}

// A DoRA case of the golden file, for the linear and the Conv1D layout, with and without dropout.
class GoldenDora : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenDora, ForwardGradientsAndMerge) {
  const nlohmann::json golden = golden_peft(GetParam());
  const std::int64_t in = golden["d_in"], out = golden["d_out"], rank = golden["r"], tokens = 2;
  const WeightLayout layout = golden["fan_in_fan_out"].get<bool>() ? WeightLayout::kInOut : WeightLayout::kOutIn;
  const at::Tensor weight = golden_tensor(golden["W_out_in"], {out, in}), bias = golden_tensor(golden["bias"], {out});
  Adapter adapter({.module = "m", .kind = AdapterKind::kDora, .layout = layout, .rank = rank, .alpha = golden["alpha"]},
                  stored(weight, layout));
  adapter.set(golden_tensor(golden["A"], {rank, in}), golden_tensor(golden["B"], {out, rank}), {},
              golden_tensor(golden["m"], {out}));
  EXPECT_LT(largest_difference(adapter.norm(), golden["norm"]), kExact);

  const at::Tensor merged = adapter.merged();
  EXPECT_LT(largest_difference(layout == WeightLayout::kInOut ? merged.t() : merged,
                               golden_tensor(golden["merged_W_out_in"], {out, in})),
            kExact);
  EXPECT_LT(largest_difference(adapter.unmerged(merged), adapter.base()), kExact);

  at::Tensor x = golden_tensor(golden["x"], {tokens, in}).set_requires_grad(true);
  const at::Tensor loss_weights = golden_tensor(golden["loss_weights"], {tokens, out});
  const nlohmann::json& mask = golden["dropout_mask_already_scaled"];
  const at::Tensor dropped = mask.is_null() ? x : x * golden_tensor(mask, {tokens, in});
  const at::Tensor y = adapter.forward(at::linear(x, weight, bias), dropped);
  EXPECT_LT(largest_difference(y, golden["y"]), kExact);
  (y * loss_weights).sum().backward();
  EXPECT_LT(largest_difference(x.grad(), golden["grad_x"]), kExact);
  EXPECT_LT(largest_difference(adapter.a().grad(), golden["grad_A"]), kExact);
  EXPECT_LT(largest_difference(adapter.b().grad(), golden["grad_B"]), kExact);
  EXPECT_LT(largest_difference(adapter.magnitude().grad(), golden["grad_m"]), kExact);

  if (!mask.is_null()) return;
  for (const AdapterParameter& parameter : adapter.parameters()) parameter.tensor.mutable_grad().reset();
  const at::Tensor weight_grad = at::mm(loss_weights.t(), x.detach());  // dL/dW' of y = x·W'ᵀ + b
  adapter.push_gradient(stored(weight_grad, layout));
  EXPECT_LT(largest_difference(adapter.a().grad(), golden["grad_A"]), kExact);
  EXPECT_LT(largest_difference(adapter.b().grad(), golden["grad_B"]), kExact);
  EXPECT_LT(largest_difference(adapter.magnitude().grad(), golden["grad_m"]), kExact);
  adapter.push_gradient(stored(weight_grad, layout));  // a second micro-batch adds
  EXPECT_LT(largest_difference(adapter.a().grad() / 2, golden["grad_A"]), kExact);
}

INSTANTIATE_TEST_SUITE_P(Layouts, GoldenDora,
                         ::testing::Values("dora_linear", "dora_conv1d", "dora_linear_dropout", "dora_conv1d_dropout"));

TEST(Adapter, GoldenEmbeddingDora) {
  const nlohmann::json golden = golden_peft("dora_embedding");
  const std::int64_t rows = golden["V"], width = golden["d"], rank = golden["r"];
  const at::Tensor table = golden_tensor(golden["W"], {rows, width});
  Adapter adapter({.module = "text_embedding",
                   .kind = AdapterKind::kDora,
                   .layout = WeightLayout::kInOut,
                   .embedding = true,
                   .rank = rank,
                   .alpha = golden["alpha"]},
                  table);
  adapter.initialise(5);
  EXPECT_EQ(adapter.a().abs().max().item<double>(), 0);
  EXPECT_GT(adapter.b().abs().min().item<double>(), 0);
  EXPECT_LT(largest_difference(adapter.magnitude(), golden_tensor(golden["m_init"], {width})), 1.0);
  adapter.set(golden_tensor(golden["embedding_A_r_by_V"], {rank, rows}),
              golden_tensor(golden["embedding_B_d_by_r"], {width, rank}), {}, golden_tensor(golden["m"], {width}));
  EXPECT_LT(largest_difference(adapter.merged(), golden["merged_W"]), kExact);
  const auto ids = golden["ids"].get<std::vector<std::int64_t>>();
  const at::Tensor index = at::tensor(ids, at::kLong);
  EXPECT_LT(largest_difference(adapter.merged().index_select(0, index), golden_tensor(golden["y"], {4, width})),
            kExact);
  const at::Tensor gradient =
      at::zeros({rows, width}, wide()).index_add(0, index, golden_tensor(golden["loss_weights"], {4, width}));
  adapter.push_gradient(gradient);
  EXPECT_LT(largest_difference(adapter.magnitude().grad(), golden["grad_m"]), kExact);
  EXPECT_LT(largest_difference(adapter.a().grad(), golden["grad_A"]), kExact);
  EXPECT_LT(largest_difference(adapter.b().grad(), golden["grad_B"]), kExact);
  EXPECT_EQ(adapter.parameters().front().name, "text_embedding.lora_embedding_A");
}

class AdaDora : public ::testing::Test {
 protected:
  AdaDora() : golden(golden_peft("adadora")), weight(golden_tensor(golden["W"], {3, 4})) {}
  Adapter make(WeightLayout layout) const {
    Adapter adapter({.module = "m", .kind = AdapterKind::kDoraAdalora, .layout = layout, .rank = 3, .alpha = 6},
                    stored(weight, layout));
    adapter.set(golden_tensor(golden["Q"], {3, 4}), golden_tensor(golden["P"], {3, 3}),
                golden_tensor(golden["lam"], {3, 1}), golden_tensor(golden["m"], {3}));
    return adapter;
  }
  nlohmann::json golden;
  at::Tensor weight;
};

TEST_F(AdaDora, GoldenForwardAndGradients) {
  for (const WeightLayout layout : {WeightLayout::kInOut, WeightLayout::kOutIn}) {
    Adapter adapter = make(layout);
    EXPECT_NEAR(adapter.spec().scale(), golden["scaling"].get<double>(), kExact);
    EXPECT_LT(largest_difference(adapter.norm(), golden["norm"]), kExact);
    const at::Tensor x = golden_tensor(golden["x"], {2, 4}), bias = golden_tensor(golden["bias"], {3});
    const at::Tensor y0 = at::linear(x, weight, bias);
    EXPECT_LT(largest_difference(adapter.forward(y0, x), golden["y"]), kExact);
    const at::Tensor loss_weights = golden_tensor(golden["loss_weights"], {2, 3});
    const auto check = [&] {
      EXPECT_LT(largest_difference(adapter.b().grad(), golden["grad_P"]), kExact);
      EXPECT_LT(largest_difference(adapter.lambda().grad(), golden["grad_lam"]), kExact);
      EXPECT_LT(largest_difference(adapter.a().grad(), golden["grad_Q"]), kExact);
      EXPECT_LT(largest_difference(adapter.magnitude().grad(), golden["grad_m"]), kExact);
    };
    (adapter.forward(y0, x) * loss_weights).sum().backward();
    check();
    for (const AdapterParameter& parameter : adapter.parameters()) parameter.tensor.mutable_grad().reset();
    adapter.push_gradient(stored(at::mm(loss_weights.t(), x), layout));
    check();
  }
}

TEST_F(AdaDora, PruningKeepsRowNormsAndMaskEqualsCompaction) {
  Adapter compacted = make(WeightLayout::kOutIn), masked = make(WeightLayout::kOutIn);
  const at::Tensor x = golden_tensor(golden["x"], {2, 4}), bias = golden_tensor(golden["bias"], {3});
  compacted.compact(golden["keep"].get<std::vector<std::int64_t>>());
  EXPECT_EQ(compacted.rank(), 2);
  EXPECT_LT(largest_difference(compacted.forward(at::linear(x, weight, bias), x), golden["y_after_prune"]), kExact);
  at::Tensor lambda = golden_tensor(golden["lam"], {3, 1});
  lambda[1].zero_();
  masked.set(golden_tensor(golden["Q"], {3, 4}), golden_tensor(golden["P"], {3, 3}), lambda, {});
  EXPECT_LT(largest_difference(masked.merged(), compacted.merged()), 1e-15);
  EXPECT_LT(largest_difference(compacted.merged().norm(2, {1}), golden["m"]), kExact);

  compacted.compact({});  // nothing left but the magnitude
  EXPECT_EQ(compacted.rank(), 0);
  EXPECT_LT(largest_difference(compacted.merged().norm(2, {1}), golden["m"]), kExact);
  compacted.push_gradient(at::randn({3, 4}, wide()));
  EXPECT_TRUE(compacted.magnitude().grad().isfinite().all().item<bool>());
  EXPECT_FALSE(compacted.a().grad().defined());
  compacted.magnitude().mutable_grad().reset();
  compacted.push_products({at::zeros({0, 3}, wide()), at::zeros({0, 4}, wide()), at::ones({3}, wide())});
  EXPECT_LT(largest_difference(compacted.magnitude().grad(), 1 / golden_tensor(golden["m"], {3})), kExact);
  EXPECT_FALSE(compacted.a().grad().defined());
}

TEST_F(AdaDora, AMagnitudeOfZeroLearnsFromProductsToo) {
  Adapter adapter = make(WeightLayout::kOutIn);
  {
    const at::NoGradGuard no_grad;
    adapter.magnitude()[1].zero_();
  }
  adapter.refresh();
  const at::Tensor weight_grad = at::randn({3, 4}, wide());
  adapter.push_gradient(weight_grad);
  const at::Tensor expected = adapter.magnitude().grad().clone();
  EXPECT_NE(expected[1].item<double>(), 0);
  for (const AdapterParameter& parameter : adapter.parameters()) parameter.tensor.mutable_grad().reset();
  adapter.push_products({at::mm(adapter.a().detach(), weight_grad.t()), at::mm(adapter.gained_b().t(), weight_grad),
                         (weight_grad * adapter.merged()).sum(1)});
  EXPECT_LT(largest_difference(adapter.magnitude().grad(), expected), kExact);
  EXPECT_LT(adapter.merged()[1].abs().max().item<double>(), 1e-14);
}

TEST_F(AdaDora, ExportsAsPlainDora) {
  Adapter adapter = make(WeightLayout::kOutIn);
  adapter.compact(golden["keep"].get<std::vector<std::int64_t>>());
  const auto [a, b] = adapter.plain_factors();
  EXPECT_LT(largest_difference(a, golden["export_peft"]["lora_A"]), kExact);
  EXPECT_LT(largest_difference(b, golden["export_peft"]["lora_B"]), kExact);
  Adapter plain({.module = "m", .kind = AdapterKind::kDora, .layout = WeightLayout::kOutIn, .rank = 2, .alpha = 4},
                weight);
  plain.set(a, b, {}, adapter.magnitude());
  EXPECT_LT(largest_difference(plain.merged(), adapter.merged()), 1e-14);
  adapter.compact({});
  const auto [none_a, none_b] = adapter.plain_factors();
  Adapter empty({.module = "m", .kind = AdapterKind::kDora, .layout = WeightLayout::kOutIn, .rank = 1, .alpha = 2},
                weight);
  empty.set(none_a, none_b, {}, adapter.magnitude());
  EXPECT_LT(largest_difference(empty.merged(), adapter.merged()), 1e-14);
}

class AllKinds : public ::testing::TestWithParam<AdapterKind> {
 protected:
  // Distinct row and column norms, so that a norm over the wrong axis cannot pass.
  static at::Tensor uneven(std::int64_t rows, std::int64_t columns, at::ScalarType type) {
    const at::Tensor base = at::randn({rows, columns}, wide());
    return (base * (1 + at::rand({rows, 1}, wide()) * 3) * (1 + at::rand({1, columns}, wide()) * 3)).to(type);
  }
  static void randomise(Adapter& adapter) {
    const at::TensorOptions options = adapter.base().options();
    const std::int64_t rank = adapter.rank();
    adapter.set(at::randn({rank, adapter.inputs()}, options), at::randn({adapter.outputs(), rank}, options),
                at::randn({rank, 1}, options), adapter.norm().defined() ? adapter.norm() * 1.3 : at::Tensor());
  }
};

TEST_P(AllKinds, IsTheIdentityAtTheStart) {
  for (const bool square : {true, false}) {
    for (const WeightLayout layout : {WeightLayout::kInOut, WeightLayout::kOutIn}) {
      at::Tensor base = uneven(24, square ? 24 : 7, at::kFloat);
      base[3].zero_();  // a zero row, whichever axis is the output
      base.select(1, 2).zero_();
      Adapter adapter({.module = "m", .kind = GetParam(), .layout = layout, .rank = 4, .alpha = 8}, base);
      adapter.initialise(11);
      at::Tensor target = at::zeros_like(base);
      adapter.write_effective(target);
      EXPECT_TRUE(target.equal(base)) << "layout " << static_cast<int>(layout);
      adapter.push_gradient(at::randn(base.sizes()));
      for (const AdapterParameter& parameter : adapter.parameters()) {
        EXPECT_TRUE(parameter.tensor.grad().isfinite().all().item<bool>()) << parameter.name;
      }
    }
  }
}

TEST_P(AllKinds, InitialisationDependsOnSeedAndNameOnly) {
  const at::Tensor base = uneven(10, 6, at::kFloat);
  const auto values = [&](const std::string& module, std::uint64_t seed) {
    Adapter adapter({.module = module, .kind = GetParam(), .rank = 3}, base);
    adapter.initialise(seed);
    return adapter.a().detach().clone();
  };
  EXPECT_TRUE(values("x", 1).equal(values("x", 1)));
  EXPECT_FALSE(values("x", 1).equal(values("y", 1)));
  EXPECT_FALSE(values("x", 1).equal(values("x", 2)));
}

TEST_P(AllKinds, FactoredNormAndPushAgreeWithAutograd) {
  for (const WeightLayout layout : {WeightLayout::kInOut, WeightLayout::kOutIn}) {
    for (const std::int64_t columns : {12, 5}) {
      Adapter adapter({.module = "m", .kind = GetParam(), .layout = layout, .rank = 3, .alpha = 5},
                      uneven(12, columns, at::kDouble));
      adapter.initialise(3);
      randomise(adapter);
      const at::Tensor base = layout == WeightLayout::kInOut ? adapter.base().t() : adapter.base();
      const at::Tensor left = is_adaptive(GetParam()) ? adapter.b() * adapter.lambda().t() : adapter.b();
      const at::Tensor v = base + adapter.spec().scale() * at::mm(left, adapter.a());
      at::Tensor effective = v;
      if (has_magnitude(GetParam())) {
        const at::Tensor norm = v.detach().norm(2, {1});
        EXPECT_LT(largest_difference(adapter.norm(), norm), 1e-11);
        effective = (adapter.magnitude() / norm).unsqueeze(1) * v;
      }
      const at::Tensor gradient = at::randn({base.size(0), base.size(1)}, wide());
      (effective * gradient).sum().backward();
      std::vector<at::Tensor> expected;
      for (const AdapterParameter& parameter : adapter.parameters()) {
        expected.push_back(parameter.tensor.grad().clone());
        parameter.tensor.mutable_grad().reset();
      }
      adapter.push_gradient(stored(gradient, layout));
      const auto parameters = adapter.parameters();
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        EXPECT_LT(largest_difference(parameters[i].tensor.grad(), expected[i]), kExact) << parameters[i].name;
        parameters[i].tensor.mutable_grad().reset();
      }
      // What the factors need of the gradient says the same as all of it.
      adapter.push_products({at::mm(adapter.a().detach(), gradient.t()), at::mm(adapter.gained_b().t(), gradient),
                             (gradient * effective.detach()).sum(1)});
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        EXPECT_LT(largest_difference(parameters[i].tensor.grad(), expected[i]), kExact) << parameters[i].name;
      }
      EXPECT_LT(largest_difference(adapter.merged(), stored(effective.detach(), layout)), kExact);
      EXPECT_LT(largest_difference(adapter.unmerged(adapter.merged()), adapter.base()), kExact);
      EXPECT_LT(largest_difference(adapter.merged(0.25), adapter.base() + 0.25 * (adapter.merged() - adapter.base())),
                1e-13);
    }
  }
}

TEST_P(AllKinds, DropoutLeavesTheMeanUnchanged) {
  Adapter adapter({.module = "m", .kind = GetParam(), .rank = 2, .alpha = 4}, uneven(6, 5, at::kDouble));
  adapter.initialise(1);
  randomise(adapter);
  // All masks of six inputs at p = 1/2: the average is exact, no statistics needed.
  const at::Tensor x = at::randn({1, 6}, wide()), y0 = at::mm(x, adapter.base());
  at::Tensor total = at::zeros({1, 5}, wide());
  for (int mask = 0; mask < 64; ++mask) {
    at::Tensor dropped = x.clone();
    for (int i = 0; i < 6; ++i) dropped[0][i] *= (mask >> i & 1) ? 2.0 : 0.0;
    total += adapter.forward(y0, dropped).detach();
  }
  EXPECT_LT(largest_difference(total / 64, adapter.forward(y0, x)), 1e-12);
}

INSTANTIATE_TEST_SUITE_P(Kinds, AllKinds,
                         ::testing::Values(AdapterKind::kLora, AdapterKind::kDora, AdapterKind::kAdalora,
                                           AdapterKind::kDoraAdalora),
                         [](const auto& kind) { return std::string(adapter_kind_name(kind.param)); });

TEST(Adapter, ScalesByKind) {
  AdapterSpec spec{.module = "m", .kind = AdapterKind::kLora, .rank = 16, .alpha = 32};
  EXPECT_DOUBLE_EQ(spec.scale(), 2);
  spec.rslora = true;
  EXPECT_DOUBLE_EQ(spec.scale(), 8);
  spec = {.module = "m", .kind = AdapterKind::kAdalora, .rank = 32, .alpha = 64};
  EXPECT_NEAR(spec.scale(), 1.9999994, 1e-7);
  spec.alpha = 0;
  EXPECT_DOUBLE_EQ(spec.scale(), 32 / 32.00001);
}

TEST(Adapter, RefusesWhatDoesNotFit) {
  Adapter adapter({.module = "m", .kind = AdapterKind::kDora, .rank = 2}, at::randn({4, 3}));
  EXPECT_THROW(adapter.set(at::randn({2, 3}), at::randn({3, 2}), {}, at::randn({3})), Error);
  EXPECT_THROW(adapter.set(at::randn({2, 4}), at::randn({3, 1}), {}, at::randn({3})), Error);
  EXPECT_THROW(adapter.set(at::randn({2, 4}), at::randn({3, 2}), {}, at::randn({4})), Error);
  EXPECT_THROW(parse_adapter_kind("pissa"), Error);
}

TEST(Adapter, NonFiniteWeightsAreNeverMerged) {
  Adapter adapter({.module = "gpt.h.1.mlp.c_fc", .kind = AdapterKind::kDora, .rank = 2}, at::randn({4, 3}));
  const at::Tensor a = at::randn({2, 4}), b = at::randn({3, 2}), magnitude = at::ones({3});
  adapter.set(a, b, {}, magnitude);
  EXPECT_NO_THROW(adapter.merged());
  for (const double spoilt : {INFINITY, NAN}) {
    at::Tensor bad = magnitude.clone();
    bad[1] = spoilt;
    adapter.set(a, b, {}, bad);
    const Error error = testing::error_of([&] { adapter.merged(); });
    EXPECT_EQ(error.code(), "NUM010");
    EXPECT_EQ(error.status(), ExitStatus::kDiverged);
    EXPECT_THAT(error.message(), ::testing::HasSubstr("the merged weight of gpt.h.1.mlp.c_fc holds non-finite"));
    EXPECT_THAT(error.hint(), ::testing::HasSubstr("an earlier checkpoint"));
  }
}

TEST(Adapter, KeepsAdaptersInFullPrecisionOnAHalfBase) {
  const at::Tensor base = at::randn({8, 6}).to(at::kBFloat16);
  Adapter adapter({.module = "m", .kind = AdapterKind::kDora, .rank = 2}, base);
  adapter.initialise(1);
  EXPECT_EQ(adapter.a().scalar_type(), at::kFloat);
  at::Tensor target = at::zeros_like(base);
  adapter.write_effective(target);
  EXPECT_TRUE(target.equal(base));
}

}  // namespace
}  // namespace train_gpt_v2
