#include "train_gpt_v2/adapt/adalora.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/randn.h>

#include <cmath>

#include "support/golden_peft.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using testing::golden_peft;
using testing::golden_tensor;
using testing::largest_difference;

at::Tensor weight_like(const at::Tensor& values) {
  return values.clone().set_requires_grad(true);
}

std::string code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return "";
}

// The eight steps of the golden file: two SVD linears with a tanh between, MSE + 0.5·R, SGD on the factors, peft's
// allocator. Gradients come through the effective weights, as in training.
class GoldenTrace : public ::testing::Test {
 protected:
  GoldenTrace() : golden(golden_peft("adalora")) {
    const nlohmann::json& base = golden["base"];
    targets = {{"l1", weight_like(golden_tensor(base["l1"]["W"], {3, 4})), WeightLayout::kOutIn, false},
               {"l2", weight_like(golden_tensor(base["l2"]["W"], {2, 3})), WeightLayout::kOutIn, false}};
    const std::int64_t rank = golden["init_r"];
    std::vector<AdapterSpec> specs;
    for (const AdapterTarget& target : targets) {
      specs.push_back(
          {target.module, AdapterKind::kAdalora, WeightLayout::kOutIn, false, rank, golden["alpha"], false});
    }
    set = std::make_unique<AdapterSet>(specs, targets);
    for (Adapter& adapter : set->adapters()) {
      const std::string& name = adapter.spec().module;
      const nlohmann::json& init = golden["init"];
      adapter.set(golden_tensor(init[name + ".lora_A.default"], {rank, adapter.inputs()}),
                  golden_tensor(init[name + ".lora_B.default"], {adapter.outputs(), rank}),
                  golden_tensor(init[name + ".lora_E.default"], {rank, 1}), {});
    }
    options.method = "adalora";
    options.tinit = golden["tinit"].get<std::int64_t>();
    options.tfinal = golden["tfinal"].get<std::int64_t>();
    options.delta_t = golden["deltaT"].get<std::int64_t>();
    options.target_rank = golden["target_r"].get<std::int64_t>();
    options.compaction = "soft";
  }

  nlohmann::json golden;
  std::vector<AdapterTarget> targets;
  std::unique_ptr<AdapterSet> set;
  PeftOptions options;
};

TEST_F(GoldenTrace, ReproducesPeft) {
  RankAllocator allocator(options, *set, golden["total_step"]);
  for (std::size_t t = 0; t < golden["schedule"].size(); ++t) {
    EXPECT_EQ(allocator.schedule().budget_at(static_cast<std::int64_t>(t)), golden["schedule"][t][0]) << "step " << t;
  }
  const at::Tensor x = golden_tensor(golden["x"], {5, 4}), target = golden_tensor(golden["target"], {5, 2});
  const at::Tensor b1 = golden_tensor(golden["base"]["l1"]["b"], {3}),
                   b2 = golden_tensor(golden["base"]["l2"]["b"], {2});
  for (const nlohmann::json& step : golden["trace"]) {
    SCOPED_TRACE(step["step"].get<int>());
    set->apply();
    const at::Tensor task =
        at::mse_loss(at::linear(at::linear(x, targets[0].weight, b1).tanh(), targets[1].weight, b2), target);
    task.backward();
    set->push_gradients();
    const double reg = allocator.regulariser();
    allocator.add_regulariser_gradient();
    EXPECT_NEAR(reg, step["reg"].get<double>(), 1e-10);
    EXPECT_NEAR(task.item<double>(), step["loss"].get<double>(), 1e-10);  // the file's loss is the task's alone
    {
      const at::NoGradGuard no_grad;
      for (const AdapterParameter& parameter : set->parameters()) parameter.tensor.sub_(parameter.tensor.grad(), 0.1);
    }
    const auto event = allocator.after_step(step["step"]);
    for (std::size_t i = 0; i < 2; ++i) {
      const std::string& name = targets[i].module;
      EXPECT_LT(largest_difference(set->adapters()[i].lambda(), golden_tensor(step["E"][name], {3, 1})), 1e-10);
      if (!step["score"].empty()) {
        // The file keeps fifteen decimals of numbers near 1e-5.
        EXPECT_LT(largest_difference(at::tensor(allocator.scores()[i], at::kDouble), step["score"][name]), 1e-12);
      }
    }
    EXPECT_EQ(event.has_value(), !step["mask"].is_null() && step["step"] <= 6);
    if (event) {
      EXPECT_EQ(event->budget, step["budget"]);
      EXPECT_EQ(event->masks[0], step["mask"]["l1.lora_E.default"].get<std::vector<bool>>());
      EXPECT_EQ(event->masks[1], step["mask"]["l2.lora_E.default"].get<std::vector<bool>>());
    }
    for (const AdapterParameter& parameter : set->parameters()) parameter.tensor.mutable_grad().reset();
  }
  EXPECT_TRUE(allocator.finished());
  for (const AdapterParameter& parameter : set->parameters()) {
    EXPECT_LT(largest_difference(parameter.tensor,
                                 golden_tensor(golden["final"][parameter.name + ".default"], parameter.tensor.sizes())),
              1e-10)
        << parameter.name;
  }
  const Adapter& first = set->adapters()[0];
  EXPECT_LT(largest_difference(first.merged() - first.base(), golden_tensor(golden["delta_weight_l1"], {3, 4})), 1e-10);
}

TEST(Importance, OneStepOfTheCombinationMatchesTheGoldenTriplets) {
  const nlohmann::json golden = golden_peft("adadora");
  const AdapterTarget target{"m", weight_like(golden_tensor(golden["W"], {3, 4})), WeightLayout::kOutIn, false};
  AdapterSet set({{"m", AdapterKind::kDoraAdalora, WeightLayout::kOutIn, false, 3, 6, false}}, {target});
  Adapter& adapter = set.adapters()[0];
  adapter.set(golden_tensor(golden["Q"], {3, 4}), golden_tensor(golden["P"], {3, 3}),
              golden_tensor(golden["lam"], {3, 1}), golden_tensor(golden["m"], {3}));
  adapter.a().mutable_grad() = golden_tensor(golden["grad_Q"], {3, 4});
  adapter.b().mutable_grad() = golden_tensor(golden["grad_P"], {3, 3});
  adapter.lambda().mutable_grad() = golden_tensor(golden["grad_lam"], {3, 1});
  // The golden number is |w·∂w| summed by triplet: with both factors at zero, Ī = I and U = 0·…, so take β1 = 0 and
  // β2 = 0 out of the averages by reading the mean alone from a saved state.
  PeftOptions options;
  options.method = "dora_adalora";
  options.pruning_steps = {5};
  options.target_budget = 2;
  options.beta1 = 0;
  RankAllocator allocator(options, set, 10);
  EXPECT_FALSE(allocator.after_step(1).has_value());
  const Value state = allocator.save_state();
  const auto mean = [&](const std::string& name, at::IntArrayRef shape) {
    const Tensor& tensor = state.at("importance").at(name).at("mean").as_tensor();
    return at::tensor(std::vector<double>(reinterpret_cast<const double*>(tensor.data),
                                          reinterpret_cast<const double*>(tensor.data) + tensor.numel()),
                      at::kDouble)
        .reshape(shape);
  };
  const at::Tensor triplets =
      mean("m.lora_E", {3, 1}).squeeze(1) + mean("m.lora_A", {3, 4}).mean(1) + mean("m.lora_B", {3, 3}).mean(0);
  EXPECT_LT(largest_difference(triplets, golden["sensitivity_triplet_one_step"]), 1e-10);
}

// Three matrices of different shape with random factors.
class Allocation : public ::testing::Test {
 protected:
  std::unique_ptr<AdapterSet> make_set(AdapterKind kind = AdapterKind::kDoraAdalora) {
    targets.clear();
    std::vector<AdapterSpec> specs;
    for (int i = 0; i < 3; ++i) {
      const std::string name = "gpt.h." + std::to_string(i) + ".mlp.c_fc";
      targets.push_back({name, weight_like(at::randn({6, 5 + 2 * i})), WeightLayout::kInOut, false});
      specs.push_back({name, kind, WeightLayout::kInOut, false, 4, 8, false});
    }
    auto set = std::make_unique<AdapterSet>(specs, targets);
    set->initialise(7);
    return set;
  }
  // One SGD step on Σ W'∘C for fixed C, with the allocator behind it.
  std::optional<PruneResult> step(AdapterSet& set, RankAllocator& allocator, std::int64_t number) {
    set.apply();
    for (std::size_t i = 0; i < targets.size(); ++i) {
      const at::Tensor& weight = targets[i].weight;
      weight.mutable_grad() = (weight.detach() * 0.3 + static_cast<double>(number % 5) * 0.1).cos();
    }
    set.push_gradients();
    allocator.add_regulariser_gradient();
    {
      const at::NoGradGuard no_grad;
      for (const AdapterParameter& parameter : set.parameters()) {
        if (parameter.tensor.grad().defined()) parameter.tensor.sub_(parameter.tensor.grad(), 0.05);
      }
    }
    auto result = allocator.after_step(number);
    for (const AdapterParameter& parameter : set.parameters()) parameter.tensor.mutable_grad().reset();
    return result;
  }
  PeftOptions pruning() {
    PeftOptions options;
    options.method = "dora_adalora";
    options.pruning_steps = {3, 6, 9};
    options.target_budget = 6;
    return options;
  }
  std::vector<AdapterTarget> targets;
};

TEST_F(Allocation, BudgetsFollowTheCurve) {
  auto set = make_set();
  PeftOptions options = pruning();
  const auto budgets = [&] {
    std::vector<std::int64_t> list;
    for (const PruneEvent& event : plan_pruning(options, *set, 20).events) list.push_back(event.budget);
    return list;
  };
  EXPECT_EQ(budgets(), (std::vector<std::int64_t>{10, 8, 6}));  // 12 ranks, excess 6: 2/3, 1/3, 0
  options.budget_curve = "cubic";
  EXPECT_EQ(budgets(), (std::vector<std::int64_t>{8, 6, 6}));  // excess 6: 8/27, 1/27, 0
  options.target_budget.reset();
  EXPECT_EQ(budgets().back(), 8);  // round(12 / 1.5)
  options.budget_unit = "params";
  EXPECT_EQ(plan_pruning(options, *set, 20).initial_budget, 4 * (12 + 14 + 16));
  EXPECT_EQ(budgets().back(), 112);  // round(168 / 1.5)
}

TEST_F(Allocation, HardPruningKeepsTheBestAndShrinks) {
  auto set = make_set();
  RankAllocator allocator(pruning(), *set, 20);
  for (std::int64_t number = 1; number <= 2; ++number) EXPECT_FALSE(step(*set, allocator, number));
  const at::Tensor before = set->adapters()[0].lambda().detach().clone();
  const std::int64_t parameters = set->parameter_count();
  const auto result = step(*set, allocator, 3);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->ranks_before, 12);
  EXPECT_EQ(result->ranks_after, 10);
  EXPECT_EQ(set->rank_total(), 10);
  EXPECT_LT(set->parameter_count(), parameters);
  for (const KeptIndices& shrunk : result->shrunk) {
    for (const AdapterParameter& parameter : set->parameters()) {
      if (parameter.name != shrunk.parameter) continue;
      EXPECT_EQ(parameter.tensor.size(shrunk.dimension), static_cast<std::int64_t>(shrunk.kept.size()));
      EXPECT_TRUE(parameter.tensor.requires_grad());
    }
  }
  for (std::int64_t number = 4; number <= 12; ++number) step(*set, allocator, number);
  EXPECT_EQ(set->rank_total(), 6);
  EXPECT_TRUE(allocator.finished());
  for (const std::vector<std::int64_t>& kept : allocator.kept()) {
    EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end()));
    if (!kept.empty()) {
      EXPECT_LT(kept.back(), 4);
    }
  }
}

TEST_F(Allocation, MinimumRankAndParameterBudgetHold) {
  auto set = make_set();
  PeftOptions options = pruning();
  options.min_rank = 1;
  options.target_budget = 3;
  RankAllocator allocator(options, *set, 20);
  for (std::int64_t number = 1; number <= 9; ++number) step(*set, allocator, number);
  EXPECT_EQ(allocator.ranks(), (std::vector<std::int64_t>{1, 1, 1}));

  auto other = make_set();
  options = pruning();
  options.budget_unit = "params";
  options.target_budget = 60;
  RankAllocator by_cost(options, *other, 20);
  for (std::int64_t number = 1; number <= 9; ++number) step(*other, by_cost, number);
  std::int64_t cost = 0;
  for (const Adapter& adapter : other->adapters()) cost += adapter.rank() * adapter.triplet_cost();
  EXPECT_LE(cost, 60);
  EXPECT_GT(cost, 60 - 16);  // nothing that still fitted was left out
}

TEST_F(Allocation, TiesAreExactWhenHardAndPeftsWhenSoft) {
  auto set = make_set(AdapterKind::kAdalora);
  PeftOptions options;
  options.method = "adalora";
  options.importance = "magnitude";  // λ is zero: every score is equal
  options.pruning_steps = {1};
  options.target_budget = 5;
  RankAllocator hard(options, *set, 20);
  ASSERT_TRUE(hard.after_step(1));
  EXPECT_EQ(hard.ranks(), (std::vector<std::int64_t>{4, 1, 0}));  // earlier modules and ranks first
  auto other = make_set(AdapterKind::kAdalora);
  options.compaction = "soft";
  RankAllocator soft(options, *other, 20);
  ASSERT_TRUE(soft.after_step(1));
  EXPECT_EQ(soft.ranks(), (std::vector<std::int64_t>{0, 0, 0}));
}

TEST_F(Allocation, MagnitudeIsTheNormOfTheRankOneTerm) {
  auto set = make_set(AdapterKind::kAdalora);
  PeftOptions options = pruning();
  options.method = "adalora";
  options.importance = "magnitude";
  RankAllocator allocator(options, *set, 20);
  for (std::int64_t number = 1; number <= 2; ++number) step(*set, allocator, number);
  for (std::size_t i = 0; i < 3; ++i) {
    const Adapter& adapter = set->adapters()[i];
    for (std::int64_t k = 0; k < 4; ++k) {
      const at::Tensor term = adapter.lambda()[k] * at::outer(adapter.b().select(1, k), adapter.a()[k]);
      EXPECT_NEAR(allocator.scores()[i][static_cast<std::size_t>(k)], term.norm().item<double>(), 1e-6);
    }
  }
}

TEST_F(Allocation, NonFiniteImportancePrunesNothing) {
  auto set = make_set();
  RankAllocator allocator(pruning(), *set, 20);
  step(*set, allocator, 1);
  set->adapters()[1].lambda().mutable_grad() = at::full({4, 1}, NAN);
  EXPECT_FALSE(allocator.after_step(2));
  EXPECT_EQ(code_of([&] { allocator.after_step(3); }), "NUM011");
  EXPECT_EQ(set->rank_total(), 12);
}

TEST_F(Allocation, ResumeAtAnyStepContinuesBitByBit) {
  for (const char* compaction : {"hard", "soft"}) {
    PeftOptions options = pruning();
    options.compaction = compaction;
    at::manual_seed(4);
    auto whole = make_set();
    const std::vector<AdapterTarget> same = targets;
    RankAllocator uninterrupted(options, *whole, 20);
    for (std::int64_t number = 1; number <= 11; ++number) step(*whole, uninterrupted, number);
    for (const std::int64_t cut : {1, 2, 3, 4, 6, 9, 10}) {
      SCOPED_TRACE(concat(compaction, " interrupted after ", cut));
      at::manual_seed(4);
      auto first = make_set();
      RankAllocator before(options, *first, 20);
      for (std::int64_t number = 1; number <= cut; ++number) step(*first, before, number);
      const Value adapters = first->save_state(), ranks = before.save_state();

      at::manual_seed(4);
      auto second = make_set();
      second->load_state(adapters);
      RankAllocator after(options, *second, 20);
      after.load_state(ranks);
      EXPECT_TRUE(identical(second->save_state(), adapters));
      EXPECT_TRUE(identical(after.save_state(), ranks));
      for (std::int64_t number = cut + 1; number <= 11; ++number) step(*second, after, number);
      EXPECT_TRUE(identical(second->save_state(), whole->save_state()));
      EXPECT_TRUE(identical(after.save_state(), uninterrupted.save_state()));
      EXPECT_EQ(after.ranks(), uninterrupted.ranks());
    }
  }
}

TEST_F(Allocation, RefusesAStateOfOtherSettings) {
  auto set = make_set();
  RankAllocator allocator(pruning(), *set, 20);
  for (std::int64_t number = 1; number <= 4; ++number) step(*set, allocator, number);
  const Value state = allocator.save_state();
  PeftOptions changed = pruning();
  changed.beta1 = 0.9;
  auto fresh = make_set();
  fresh->load_state(set->save_state());
  RankAllocator other(changed, *fresh, 20);
  EXPECT_EQ(code_of([&] { other.load_state(state); }), "PFT002");
  RankAllocator longer(pruning(), *fresh, 30);
  EXPECT_EQ(code_of([&] { longer.load_state(state); }), "");  // the events are the same, whatever the run's length
  changed = pruning();
  changed.pruning_steps.back() += 1;
  RankAllocator later(changed, *fresh, 20);
  EXPECT_EQ(code_of([&] { later.load_state(state); }), "PFT002");
  RankAllocator right(pruning(), *fresh, 20);
  Value damaged = state;
  damaged.set("events_done", 7);
  EXPECT_EQ(code_of([&] { right.load_state(damaged); }), "PFT002");
  damaged = state;
  damaged.set("modules", Value::dict());
  EXPECT_NE(code_of([&] { right.load_state(damaged); }), "");
  right.load_state(state);
  auto unpruned = make_set();  // ranks 4, 4, 4 do not fit the saved indices
  RankAllocator wrong_ranks(pruning(), *unpruned, 20);
  EXPECT_EQ(code_of([&] { wrong_ranks.load_state(state); }), "PFT002");
}

TEST_F(Allocation, SchedulesThatCannotTakeEffectAreErrors) {
  auto set = make_set();
  const auto refused = [&](const std::function<void(PeftOptions&)>& change, std::int64_t steps = 20) {
    PeftOptions options = pruning();
    change(options);
    return code_of([&] { plan_pruning(options, *set, steps); }) == "PFT003";
  };
  EXPECT_FALSE(refused([](PeftOptions&) {}));
  EXPECT_TRUE(refused([](PeftOptions&) {}, 9));  // the last event is the last step
  EXPECT_TRUE(refused([](PeftOptions& o) { o.pruning_steps = {}; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.pruning_steps = {3, 3}; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.pruning_steps = {0}; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.target_budget = 13; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.min_rank = 3; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.tinit = 1; }));  // both kinds of schedule
  const auto peft = [&](std::int64_t tinit, std::int64_t tfinal, std::int64_t delta) {
    return refused([&](PeftOptions& o) {
      o.pruning_steps = {};
      o.tinit = tinit, o.tfinal = tfinal, o.delta_t = delta, o.target_rank = 2;
    });
  };
  EXPECT_FALSE(peft(2, 4, 3));
  EXPECT_TRUE(peft(16, 4, 3));  // t_i = T − t_f
  EXPECT_TRUE(peft(2, 18, 3));
  EXPECT_TRUE(peft(2, 4, 0));
  EXPECT_TRUE(peft(-1, 4, 3));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.pruning_steps = {}, o.tinit = 1, o.tfinal = 2; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.compaction = "soft", o.budget_unit = "params"; }));
}

}  // namespace
}  // namespace train_gpt_v2
