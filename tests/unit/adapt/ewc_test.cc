#include "train_gpt_v2/adapt/ewc.h"

#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>

#include <cmath>

#include "support/fixture_set.h"
#include "support/golden_peft.h"
#include "support/state_access.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"

namespace train_gpt_v2 {
namespace {

using testing::golden_peft;
using testing::golden_tensor;
using testing::largest_difference;
using testing::TemporaryFolder;

at::TensorOptions wide() {
  return at::TensorOptions().dtype(at::kDouble);
}
at::Tensor parameter(at::IntArrayRef shape) {
  return at::randn(shape, wide()).set_requires_grad(true);
}

std::string code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return "";
}

// A Fisher diagonal of random positive numbers, measured "at" the tensors as they are now.
Fisher random_fisher(const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
  FisherAccumulator accumulator(tensors);
  for (const auto& [name, tensor] : tensors)
    tensor.mutable_grad() = at::rand(tensor.sizes(), tensor.options().requires_grad(false)) + 0.1;
  accumulator.add(2, 1);
  return accumulator.finish();
}

// Softmax regression of the golden file. ∂/∂W of log p(label | x).
struct SoftmaxRegression {
  nlohmann::json golden = golden_peft("ewc_softmax");
  at::Tensor weight = golden_tensor(golden["W"], {3, 2}).set_requires_grad(true),
             x = golden_tensor(golden["X"], {4, 2});
  at::Tensor log_p() const { return at::log_softmax(at::mm(x, weight.t()), 1); }
};

TEST(Fisher, OneBackwardOfSampledLabelsIsUnbiased) {
  // Every labelling of the four samples with its probability: the expectation is exact. Gradients times √p, so that
  // their squares carry the probability.
  SoftmaxRegression model;
  FisherAccumulator accumulator({{"W", model.weight}});
  for (int labelling = 0; labelling < 81; ++labelling) {
    at::Tensor likelihood = at::zeros({}, wide());
    for (int n = 0, rest = labelling; n < 4; ++n, rest /= 3) likelihood = likelihood + model.log_p()[n][rest % 3];
    (likelihood * std::exp(likelihood.item<double>() / 2)).backward();
    accumulator.add(labelling == 0 ? 4 : 0, 1);
  }
  EXPECT_LT(largest_difference(accumulator.finish().values[0].second, model.golden["fisher_true_diag"]), 1e-10);
}

TEST(Fisher, DataLabelsGiveTheEmpiricalOne) {
  SoftmaxRegression model;
  FisherAccumulator accumulator({{"W", model.weight}});
  for (int n = 0; n < 4; ++n) {
    model.log_p()[n][model.golden["y"][n].get<int>()].backward();
    accumulator.add(1, 1);
  }
  EXPECT_LT(largest_difference(accumulator.finish().values[0].second, model.golden["fisher_empirical_diag"]), 1e-10);
  // And what must not be done: the square of the batch mean's gradient.
  FisherAccumulator wrong({{"W", model.weight}});
  at::Tensor mean = at::zeros({}, wide());
  for (int n = 0; n < 4; ++n) mean = mean + model.log_p()[n][model.golden["y"][n].get<int>()] / 4;
  mean.backward();
  wrong.add(1, 1);
  EXPECT_LT(largest_difference(wrong.finish().values[0].second, model.golden["wrong_squared_batch_mean_gradient"]),
            1e-10);
}

TEST(Fisher, LabelsFollowTheModel) {
  const at::Tensor logits = at::tensor({0.0, 1.0, -INFINITY, 2.0}, wide()).expand({20000, 4});
  RandomStream stream(9, 1), same(9, 1);
  const at::Tensor labels = sample_labels(logits, stream);
  EXPECT_TRUE(labels.equal(sample_labels(logits, same)));
  const double total = 1 + std::exp(1.0) + std::exp(2.0);
  for (int c = 0; c < 4; ++c) {
    const double p = c == 2 ? 0 : std::exp(c == 3 ? 2.0 : c) / total, deviation = std::sqrt(p * (1 - p) / 20000);
    EXPECT_NEAR(labels.eq(c).to(at::kDouble).mean().item<double>(), p, 4 * deviation + 1e-12);
  }
}

TEST(Fisher, FilesRoundTripAndDamagedOnesAreRefused) {
  const TemporaryFolder folder;
  const at::Tensor a = at::randn({3, 4}), b = at::randn({5});
  const Fisher fisher = random_fisher({{"a", a}, {"b", b}});
  write_fisher(folder.file("f.safetensors"), fisher);
  const Fisher again = read_fisher(folder.file("f.safetensors"));
  EXPECT_EQ(again.tokens, fisher.tokens);
  EXPECT_EQ(again.weights, fisher.weights);
  ASSERT_EQ(again.values.size(), 2u);
  for (const auto& [name, value] : again.values) {
    EXPECT_EQ(largest_difference(value, fisher.values[name == "a" ? 0 : 1].second), 0);
  }
  write_fisher(folder.file("g.safetensors"), again);
  EXPECT_EQ(read_file(folder.file("f.safetensors"), 1 << 20), read_file(folder.file("g.safetensors"), 1 << 20));
  const auto refused = [&](const std::function<void(Fisher&)>& damage) {
    Fisher damaged = fisher;
    for (auto& [name, value] : damaged.values) value = value.clone();
    damage(damaged);
    write_fisher(folder.file("d.safetensors"), damaged);
    return code_of([&] { read_fisher(folder.file("d.safetensors")); });
  };
  EXPECT_EQ(refused([](Fisher&) {}), "");
  EXPECT_EQ(refused([](Fisher& f) { f.values[0].second[1][2] = -1.0; }), "EWC001");
  EXPECT_EQ(refused([](Fisher& f) { f.values[0].second[1][2] = NAN; }), "EWC001");
  EXPECT_EQ(refused([](Fisher& f) { f.weights.erase("b"); }), "EWC001");
  EXPECT_EQ(refused([](Fisher& f) { f.tokens = -4; }), "EWC001");
  folder.write("n.safetensors", std::string("\x02\0\0\0\0\0\0\0{}", 10));
  EXPECT_EQ(code_of([&] { read_fisher(folder.file("n.safetensors")); }), "EWC001");
  FisherAccumulator empty({{"a", a}});
  EXPECT_EQ(code_of([&] { empty.finish(); }), "EWC001");
}

TEST(Fisher, ModelLikelihoodReachesTheGptAndScalesWithTheSquareOfTheWeights) {
  const auto model = testing::fixture_model(at::kDouble);
  const auto ids = testing::fixture_json("expected/forward.json").at("batches").at("b3").at("ids");
  const ModelInputs inputs = assemble_inputs(testing::fixture_batch(ids.get<std::vector<std::string>>()),
                                             model->options(), BatchLayout::kPacked, at::kCPU, model->dtype());
  const auto state = testing::state_map(*model);
  const std::vector<std::pair<std::string, at::Tensor>> parameters = {
      {"gpt.h.1.mlp.c_fc.weight", state.at("gpt.h.1.mlp.c_fc.weight")},
      {"text_head.weight", state.at("text_head.weight")}};
  const auto measure = [&](double scale) {
    FisherAccumulator accumulator(parameters);
    RandomStream stream(3, 0);
    for (int round = 0; round < 2; ++round) {
      backward_sampled_likelihood(*model, inputs, 0.2 * scale, 0.8 * scale, stream);
      accumulator.add(inputs.text_tokens() + inputs.mel_tokens(), 3);
    }
    return accumulator.finish();
  };
  const Fisher once = measure(1), twice = measure(2);
  EXPECT_EQ(once.tokens, 2 * (inputs.text_tokens() + inputs.mel_tokens()));
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_GT(once.values[i].second.sum().item<double>(), 0);
    const double scale = once.values[i].second.abs().max().item<double>();
    EXPECT_LT(largest_difference(twice.values[i].second, once.values[i].second * 4), 1e-12 * scale);
  }
}

TEST(Ewc, NothingHappensAtTheAnchorAndThePullIsTheFormula) {
  const at::Tensor theta = parameter({3, 4}), other = parameter({2});
  const Fisher fisher = random_fisher({{"theta", theta}});
  EwcOptions options{true, "", 50.0, "penalty"};
  Ewc ewc(options, fisher, {{"theta", theta}, {"other", other}}, nullptr, true);
  EXPECT_EQ(ewc.names(), std::vector<std::string>{"theta"});
  ewc.check_anchors();
  ewc.add_gradient();
  EXPECT_EQ(theta.grad().abs().max().item<double>(), 0);
  EXPECT_EQ(ewc.measure().penalty, 0);
  const at::Tensor moved = at::randn({3, 4}, wide()), anchor = theta.detach().clone(), f = fisher.values[0].second;
  theta.detach().add_(moved);
  theta.mutable_grad() = at::ones({3, 4}, wide());
  ewc.add_gradient(8);  // a loss scale
  EXPECT_LT(largest_difference(theta.grad(), 1 + 8 * 50 * f * moved), 1e-12 * 8 * 50 * 10);
  EXPECT_NEAR(ewc.measure().penalty, 25 * (f * moved * moved).sum().item<double>(), 1e-9);
  EXPECT_NEAR(ewc.measure().drift, moved.norm().item<double>(), 1e-12);
  EXPECT_FALSE(other.grad().defined());
}

TEST(Ewc, MinimiserOfAQuadraticTask) {
  // L = ½ Σ h(θ − b)²: with the penalty the minimum is (hb + λFθ*)/(h + λF).
  const at::Tensor theta = parameter({6}), h = at::rand({6}, wide()) + 0.5, b = at::randn({6}, wide());
  const at::Tensor anchor = theta.detach().clone();
  const Fisher fisher = random_fisher({{"theta", theta}});
  const at::Tensor f = fisher.values[0].second;
  for (const char* mode : {"penalty", "proximal"}) {
    SCOPED_TRACE(mode);
    theta.detach().copy_(anchor);
    EwcOptions options{true, "", 2.0, mode};
    Ewc ewc(options, fisher, {{"theta", theta}}, nullptr, true);
    const double rate = 1e-2;
    for (int step = 0; step < 8000; ++step) {
      theta.mutable_grad() = h * (theta.detach() - b);
      ewc.add_gradient();
      theta.detach().sub_(theta.grad(), rate);
      ewc.proximal_step({rate});
    }
    EXPECT_LT(largest_difference(theta, (h * b + 2 * f * anchor) / (h + 2 * f)), 1e-10);
  }
}

TEST(Ewc, ProximalStepIsTheClosedFormAndStable) {
  const at::Tensor theta = parameter({4, 3}), anchor = theta.detach().clone();
  const Fisher fisher = random_fisher({{"theta", theta}});
  EwcOptions options{true, "", 7.0, "proximal"};
  Ewc ewc(options, fisher, {{"theta", theta}}, nullptr, true);
  theta.detach().add_(at::randn({4, 3}, wide()));
  const at::Tensor before = theta.detach().clone(), w = fisher.values[0].second * 7.0 * 0.1;
  ewc.add_gradient();
  EXPECT_FALSE(theta.grad().defined());
  ewc.proximal_step({0.1});
  EXPECT_LT(largest_difference(theta, (before + w * anchor) / (1 + w)), 1e-14);
  options.lambda = 1e300;
  theta.detach().copy_(anchor);
  Ewc strong(options, fisher, {{"theta", theta}}, nullptr, true);
  theta.detach().add_(1);
  strong.proximal_step({1.0});
  EXPECT_LT(largest_difference(theta, anchor), 1e-15);
}

TEST(Ewc, AdaptedMatricesArePulledThroughTheChain) {
  for (const AdapterKind kind : {AdapterKind::kLora, AdapterKind::kDora, AdapterKind::kDoraAdalora}) {
    SCOPED_TRACE(adapter_kind_name(kind));
    const AdapterTarget target{"m", parameter({5, 7}), WeightLayout::kInOut, false};
    const Fisher fisher = random_fisher({{"m.weight", target.weight}});
    target.weight.mutable_grad().reset();
    AdapterSet set({{"m", kind, WeightLayout::kInOut, false, 2, 4, false}}, {target});
    set.initialise(1);
    Adapter& adapter = set.adapters()[0];
    EwcOptions options{true, "", 3.0, "proximal"};  // adapted matrices keep the gradient form
    Ewc through_weights(options, fisher, {}, &set, true), direct(options, fisher, {}, &set, false);
    through_weights.check_anchors();
    set.apply();
    EXPECT_EQ(direct.measure().penalty, 0);
    adapter.set(at::randn({2, 5}, wide()), at::randn({7, 2}, wide()), at::randn({2, 1}, wide()),
                adapter.norm().defined() ? adapter.norm() * 1.1 : at::Tensor());
    set.apply();
    EXPECT_GT(direct.measure().penalty, 0);
    EXPECT_NEAR(direct.measure().penalty, through_weights.measure().penalty, 1e-9);

    through_weights.add_gradient(2);
    const at::Tensor pull = 2 * 3 * fisher.values[0].second * (adapter.merged() - adapter.base());
    EXPECT_LT(largest_difference(target.weight.grad(), pull), 1e-10);
    set.push_gradients();
    std::vector<at::Tensor> expected;
    for (const AdapterParameter& p : adapter.parameters()) {
      expected.push_back(p.tensor.grad().clone());
      p.tensor.mutable_grad().reset();
    }
    set.use_base();  // the weights hold W0 while hooks run
    direct.add_gradient(2);
    const auto parameters = adapter.parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      EXPECT_LT(largest_difference(parameters[i].tensor.grad(), expected[i]), 1e-10) << parameters[i].name;
    }
  }
}

TEST(Ewc, AFisherOfTheFactorsWouldProtectHalfOfThem) {
  // Why F is taken on W0: at the start B = 0, so ∂A = 0 and F_A would be zero.
  const AdapterTarget target{"m", parameter({5, 7}), WeightLayout::kInOut, false};
  AdapterSet set({{"m", AdapterKind::kLora, WeightLayout::kInOut, false, 2, 4, false}}, {target});
  set.initialise(1);
  FisherAccumulator accumulator({{"A", set.adapters()[0].a()}, {"B", set.adapters()[0].b()}});
  target.weight.mutable_grad() = at::randn({5, 7}, wide());
  set.push_gradients();
  accumulator.add(1, 1);
  const Fisher fisher = accumulator.finish();
  EXPECT_EQ(fisher.values[0].second.abs().max().item<double>(), 0);
  EXPECT_GT(fisher.values[1].second.abs().max().item<double>(), 0);
}

TEST(Ewc, AutomaticLambdaMeetsTheRatioOnceAndIsKept) {
  const at::Tensor theta = parameter({8});
  const Fisher fisher = random_fisher({{"theta", theta}});
  const EwcOptions options{true, "", std::nullopt, "penalty"};
  Ewc ewc(options, fisher, {{"theta", theta}}, nullptr, true);
  const double scale = 16;
  for (int step = 1; step <= 20; ++step) {
    theta.detach().add_(at::randn({8}, wide()), 0.1);
    theta.mutable_grad() = at::full({8}, 0.5 * scale, wide());
    EXPECT_FALSE(ewc.measure().lambda) << step;
    ewc.add_gradient(scale);
    if (step < 20) {
      EXPECT_EQ(theta.grad().min().item<double>(), 0.5 * scale) << step;
    }
  }
  ASSERT_TRUE(ewc.measure().lambda);
  EXPECT_NEAR(ewc.measure().penalty_norm, 0.3 * 0.5 * std::sqrt(8.0), 1e-12);
  const double lambda = *ewc.measure().lambda;
  theta.detach().add_(1);
  ewc.add_gradient(scale);
  EXPECT_EQ(*ewc.measure().lambda, lambda);

  const Value state = ewc.save_state();
  Ewc resumed(options, fisher, {{"theta", theta}}, nullptr, true);
  EXPECT_EQ(code_of([&] { resumed.check_anchors(); }), "EWC001");  // θ has moved
  resumed.load_state(state);
  resumed.check_anchors();
  EXPECT_TRUE(identical(resumed.save_state(), state));
  EXPECT_EQ(resumed.measure().penalty, ewc.measure().penalty);
}

TEST(Ewc, OtherShapesAreRefusedAndNewRowsAreFree) {
  const at::Tensor table = parameter({4, 3});
  const Fisher fisher = random_fisher({{"table", table}});
  const EwcOptions options{true, "", 2.0, "penalty"};
  const auto refused = [&](const at::Tensor& value) {
    return code_of([&] { Ewc(options, fisher, {{"table", value}}, nullptr, true).check_anchors(); });
  };
  EXPECT_EQ(refused(table), "");
  EXPECT_EQ(refused(parameter({4, 2})), "EWC001");
  EXPECT_EQ(refused(parameter({3, 3})), "EWC001");
  EXPECT_EQ(refused(parameter({4})), "EWC001");
  EXPECT_EQ(refused(parameter({4, 3})), "EWC001");  // other values
  EXPECT_EQ(code_of([&] { Ewc(options, fisher, {{"elsewhere", table}}, nullptr, true); }), "EWC001");
  const at::Tensor longer = at::cat({table.detach(), at::randn({2, 3}, wide())}).set_requires_grad(true);
  Ewc ewc(options, fisher, {{"table", longer}}, nullptr, true);
  ewc.check_anchors();
  longer.detach().add_(1);
  ewc.add_gradient();
  EXPECT_GT(longer.grad().narrow(0, 0, 3).min().item<double>(), 0);
  EXPECT_EQ(longer.grad().narrow(0, 3, 3).abs().max().item<double>(), 0);  // the spare row and the new ones
  EXPECT_EQ(ewc.bytes(), 2 * 6 * 3 * sizeof(double));
  const auto rows = [&](std::int64_t first, std::int64_t count) { return table.detach().narrow(0, first, count); };
  const at::Tensor news = at::randn({2, 3}, wide());
  EXPECT_EQ(refused(at::cat({rows(0, 3), news, rows(3, 1)}).set_requires_grad(true)), "");  // the spare row at the end
  EXPECT_EQ(refused(at::cat({rows(0, 2), news, rows(2, 2)}).set_requires_grad(true)), "EWC001");
}

}  // namespace
}  // namespace train_gpt_v2
