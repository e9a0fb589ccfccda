#include "train_gpt_v2/adapt/hooks.h"

#include <ATen/ops/randn.h>

#include "support/fixture_set.h"
#include "support/golden_peft.h"
#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

using testing::largest_difference;

class Hooks : public ::testing::Test {
 protected:
  Hooks() : model(testing::fixture_model(at::kDouble)) {
    PeftOptions options;
    options.method = "dora";
    options.rank = 4;
    const auto targets = adapter_targets(*model);
    set = std::make_unique<AdapterSet>(plan_adapters(options, targets, false), targets);
    set->initialise(1);
    at::manual_seed(3);
    for (Adapter& adapter : set->adapters()) {
      const at::TensorOptions wide = adapter.base().options();
      adapter.set(at::randn({4, adapter.inputs()}, wide) * 0.1, at::randn({adapter.outputs(), 4}, wide) * 0.1, {},
                  adapter.norm() * 1.1);
    }
    const auto ids = testing::fixture_json("expected/forward.json").at("batches").at("b3").at("ids");
    inputs = assemble_inputs(testing::fixture_batch(ids.get<std::vector<std::string>>()), model->options(),
                             BatchLayout::kPacked, at::kCPU, model->dtype());
  }
  // Loss and the gradient of one B under the given key.
  std::pair<double, at::Tensor> step(AdapterHooks& hooks, const DropoutKey& key, std::int64_t checkpoint_every = 0) {
    for (const AdapterParameter& parameter : set->parameters()) parameter.tensor.mutable_grad().reset();
    model->zero_grad();
    hooks.begin(key, inputs.segments);
    ForwardOptions options;
    options.checkpoint_every = checkpoint_every;
    const ForwardResult result = model->forward(inputs, options);
    (result.text_loss_sum + result.mel_loss_sum).backward();
    return {(result.text_loss_sum + result.mel_loss_sum).item<double>(),
            set->find("gpt.h.0.mlp.c_proj")->b().grad().clone()};
  }
  double evaluated() {
    const at::NoGradGuard no_grad;
    const ForwardResult result = model->forward(inputs);
    return (result.text_loss_sum + result.mel_loss_sum).item<double>();
  }
  std::shared_ptr<UnifiedVoice> model;
  std::unique_ptr<AdapterSet> set;
  ModelInputs inputs;
};

TEST_F(Hooks, MasksAreAFunctionOfTheKey) {
  AdapterHooks hooks(*model, *set, 0.25);
  hooks.train();
  const auto [loss, grad] = step(hooks, {7, 3, 0});
  const auto [same_loss, same_grad] = step(hooks, {7, 3, 0});
  const auto [other_loss, other_grad] = step(hooks, {7, 4, 0});
  EXPECT_EQ(loss, same_loss);
  EXPECT_EQ(largest_difference(grad, same_grad), 0);
  EXPECT_NE(loss, other_loss);
  // Blocks computed again in the backward pass meet the same masks.
  const auto [recomputed_loss, recomputed_grad] = step(hooks, {7, 3, 0}, 1);
  EXPECT_EQ(loss, recomputed_loss);
  EXPECT_LT(largest_difference(grad, recomputed_grad), 1e-12);
}

TEST_F(Hooks, EvaluationHasNoDropoutAndTheModelIsLeftClean) {
  set->apply();
  const double through_weights = evaluated();
  set->use_base();
  const double base = evaluated();
  {
    AdapterHooks hooks(*model, *set, 0.25);
    hooks.train();
    hooks.begin({7, 3, 0}, inputs.segments);
    EXPECT_NE(evaluated(), through_weights);
    hooks.evaluate();
    EXPECT_EQ(evaluated(), through_weights);
    hooks.train();
  }
  EXPECT_EQ(evaluated(), base);  // W0 in the weights and no hook behind
}

TEST_F(Hooks, TablesCannotDrop) {
  PeftOptions options;
  options.method = "dora";
  options.rank = 2;
  options.target_modules = {"text_embedding"};
  const auto targets = adapter_targets(*model);
  AdapterSet table(plan_adapters(options, targets, false), targets);
  EXPECT_THROW(AdapterHooks(*model, table, 0.1), Error);
}

}  // namespace
}  // namespace train_gpt_v2
