// Adapters and EWC inside a training run: groups, loss scale, skipped steps, pruning that moments and averages follow.
#include "train_gpt_v2/train/adaptation.h"

#include <gmock/gmock.h>

#include <map>

#include "support/test_files.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/model/tensor_bridge.h"

namespace train_gpt_v2 {
namespace {

Options adapted(const std::string& method) {
  Options options;
  options.model.model_dim = 16;
  options.model.layers = 2;
  options.model.heads = 2;
  options.model.number_text_tokens = 30;
  options.model.number_mel_codes = 22;
  options.model.start_mel_token = 20;
  options.model.stop_mel_token = 21;
  options.model.max_text_tokens = 20;
  options.model.max_mel_tokens = 30;
  options.model.condition_module = {8, 8, 1, 1, "conv2d2", 1};
  options.model.emo_condition_module = {8, 8, 1, 1, "conv2d2", 0.1};
  options.peft.method = method;
  options.peft.rank = 3;
  if (options.peft.adaptive()) options.peft.pruning_steps = {2};
  return options;
}

struct AdaptedRun {
  explicit AdaptedRun(const Options& given)
      : options(given),
        model(given.model),
        adaptation((initialise(model, 3), model), given, nullptr, /*total_steps=*/10, /*goal_step=*/10),
        parameters(build_parameter_set(model, given, 1, adaptation.adapters())),
        optimizer(parameters, given.optimizer),
        ema(parameters, EmaOptions{true, 0.5, false, 1, "same"}) {}

  // Numbers that stand for what a backward pass would leave in the adapted weights, times `scale`.
  void gradients(double scale) {
    adaptation.begin_window(parameters);
    for (const at::Tensor& weight : adaptation.adapters()->weights()) {
      const at::Tensor numbers = at::arange(weight.numel(), at::kFloat).remainder(7).sub(3).mul(0.01 * scale);
      weight.mutable_grad().copy_(numbers.view(weight.sizes()));
    }
    adaptation.complete_gradients(scale);
  }

  std::optional<PruneResult> step(std::int64_t number) {
    gradients(1);
    optimizer.unscale_and_clip(1, 1, false, /*in_place=*/true);
    optimizer.step(1);
    auto pruned = adaptation.after_step(number, 1, parameters, optimizer, &ema);
    adaptation.adapters()->apply();
    ema.update();
    return pruned;
  }

  Options options;
  UnifiedVoice model;
  Adaptation adaptation;
  ParameterSet parameters;
  AdamW optimizer;
  Ema ema;
};

TEST(AdapterGroups, CoverEveryTensorOnceAndFollowPatternsLayersAndLoraPlus) {
  Options options = adapted("dora");
  options.trainable.train = {"mel_head"};
  options.optimizer.learning_rate = 1e-4;
  options.optimizer.layer_lr_decay = 0.5;
  options.peft.lora_plus_ratio = 4;
  options.optimizer.groups = {{"scalars", {"lora_magnitude_vector"}, 2e-5, std::nullopt, 0.0}};
  const AdaptedRun run(options);
  std::vector<int> seen(run.parameters.tensors.size(), 0);
  std::map<std::string, double> rates;
  for (const ParameterGroup& group : run.parameters.groups) {
    rates[group.name] = group.learning_rate;
    for (const int member : group.members) ++seen[static_cast<std::size_t>(member)];
  }
  EXPECT_THAT(seen, ::testing::Each(1));
  EXPECT_EQ(run.parameters.tensors.size(), 2u + 8 * 3);
  EXPECT_DOUBLE_EQ(rates.at("default"), 1e-4);
  EXPECT_DOUBLE_EQ(rates.at("default.h.1"), 0.5e-4);
  EXPECT_DOUBLE_EQ(rates.at("default.h.0"), 0.25e-4);
  EXPECT_DOUBLE_EQ(rates.at("default.h.0.B"), 1e-4);
  EXPECT_DOUBLE_EQ(rates.at("scalars.h.1"), 1e-5);
  EXPECT_THAT(run.parameters.beside_adapters(), ::testing::ElementsAre("mel_head.weight", "mel_head.bias"));
  EXPECT_TRUE(run.parameters.stored_by_name());
}

TEST(Adaptation, TheLossScaleIsNoPartOfTheGradients) {
  std::vector<std::vector<at::Tensor>> grads;
  for (const double scale : {1.0, 1024.0}) {
    AdaptedRun run(adapted("dora_adalora"));
    run.gradients(scale);
    run.optimizer.unscale_and_clip(1 / scale, 0, false, /*in_place=*/true);
    grads.emplace_back();
    for (const TrainableTensor& tensor : run.parameters.tensors) grads.back().push_back(tensor.grad.clone());
  }
  double largest = 0;
  for (std::size_t i = 0; i < grads[0].size(); ++i) {
    EXPECT_TRUE(at::allclose(grads[0][i], grads[1][i], 1e-5, 1e-9)) << i;
    largest = std::max(largest, grads[0][i].abs().max().item<double>());
  }
  EXPECT_GT(largest, 1e-3);
}

TEST(Adaptation, AWindowThatIsNotSteppedLeavesNoTrace) {
  AdaptedRun run(adapted("dora_adalora"));
  run.step(1);
  Value before = Value::dict();
  run.adaptation.save_state(before, run.parameters);
  std::vector<at::Tensor> importance;
  for (const auto& [name, averages] : before.at("allocator").at("importance").entries()) {
    importance.push_back(tensor_to_torch(averages.at("mean").as_tensor()).clone());
  }
  run.gradients(1e30);  // as an overflow would: complete, never stepped
  Value after = Value::dict();
  run.adaptation.save_state(after, run.parameters);
  std::size_t i = 0;
  for (const auto& [name, averages] : after.at("allocator").at("importance").entries()) {
    EXPECT_TRUE(at::equal(tensor_to_torch(averages.at("mean").as_tensor()), importance[i++])) << name.as_string();
  }
  EXPECT_TRUE(identical(before.at("adapters"), after.at("adapters")));
  run.gradients(1);  // the next window starts from zero
  EXPECT_LT(run.optimizer.unscale_and_clip(1, 0, false).norm, 1e6);
}

TEST(Adaptation, MomentsAndAveragesKeepTheIndicesOfTheirTensors) {
  AdaptedRun run(adapted("dora_adalora"));
  ASSERT_FALSE(run.step(1));
  // Like step(2), but with the state before pruning kept.
  run.gradients(1);
  run.optimizer.unscale_and_clip(1, 1, false, /*in_place=*/true);
  run.optimizer.step(1);
  std::map<std::string, std::pair<at::Tensor, at::Tensor>> before;
  const Value moments = run.optimizer.save_state(1), averages = run.ema.save_state();
  for (const TrainableTensor& tensor : run.parameters.tensors) {
    before[tensor.name] = {tensor_to_torch(moments.at("state").at(tensor.name).at("exp_avg").as_tensor()).clone(),
                           tensor_to_torch(averages.at(tensor.name).as_tensor()).clone()};
  }
  const auto pruned = run.adaptation.after_step(2, 1, run.parameters, run.optimizer, &run.ema);
  ASSERT_TRUE(pruned);
  EXPECT_EQ(pruned->ranks_before, 24);
  EXPECT_EQ(pruned->ranks_after, 16);
  EXPECT_FALSE(pruned->shrunk.empty());
  EXPECT_TRUE(run.adaptation.pruning_done());
  const Value kept_moments = run.optimizer.save_state(1), kept_averages = run.ema.save_state();
  for (const KeptIndices& one : pruned->shrunk) {
    const at::Tensor index = at::tensor(one.kept, at::kLong);
    const auto& [moment, average] = before.at(one.parameter);
    const auto now = tensor_to_torch(kept_moments.at("state").at(one.parameter).at("exp_avg").as_tensor());
    EXPECT_TRUE(at::equal(now, moment.index_select(one.dimension, index))) << one.parameter;
    EXPECT_TRUE(at::equal(tensor_to_torch(kept_averages.at(one.parameter).as_tensor()),
                          average.index_select(one.dimension, index)))
        << one.parameter;
  }
  for (const TrainableTensor& tensor : run.parameters.tensors) {
    EXPECT_EQ(tensor.grad.sizes(), tensor.value.sizes()) << tensor.name;
    EXPECT_TRUE(tensor.value.grad().is_same(tensor.grad)) << tensor.name;
  }
  run.adaptation.adapters()->apply();
  ASSERT_FALSE(run.step(3));  // everything still fits together
}

TEST(Adaptation, GoingBackBehindAPruningBringsItsRanksBack) {
  const testing::TemporaryFolder folder;
  AdaptedRun run(adapted("dora_adalora"));
  const auto save = [&](const std::string& name) {
    Value ours = Value::dict(), root = Value::dict();
    run.adaptation.save_state(ours, run.parameters);
    root.set("train_gpt_v2", ours);
    root.set("adapter", run.adaptation.adapters()->save_state());
    root.set("optimizer", run.optimizer.save_state(1));
    root.set("ema_state", run.ema.save_state());
    write_torch_file(folder.file(name), root);
  };
  run.step(1);
  save("before");
  ASSERT_TRUE(run.step(2));
  save("pruned");
  {
    const LoadedFile before = read_tensor_file(folder.file("before"));
    run.adaptation.load_state(before.root, run.parameters);
    run.optimizer.load_state(before.root.at("optimizer"), {}, /*missing_start_anew=*/false);
    run.ema.load_state(before.root.at("ema_state"), 1, 1);
  }
  save("again");
  EXPECT_TRUE(identical(read_tensor_file(folder.file("again")).root, read_tensor_file(folder.file("before")).root));
  run.adaptation.adapters()->apply();
  ASSERT_TRUE(run.step(2));
  save("pruned again");
  EXPECT_TRUE(
      identical(read_tensor_file(folder.file("pruned again")).root, read_tensor_file(folder.file("pruned")).root));
}

TEST(Adaptation, SoftMasksReachTheAverage) {
  Options options = adapted("adalora");
  options.peft.compaction = "soft";
  AdaptedRun run(options);
  run.step(1);
  const auto pruned = run.step(2);
  ASSERT_TRUE(pruned);
  const Value averages = run.ema.save_state();
  int masked = 0;
  for (std::size_t i = 0; i < pruned->masks.size(); ++i) {
    const Adapter& adapter = run.adaptation.adapters()->adapters()[i];
    const at::Tensor lambda = tensor_to_torch(averages.at(adapter.parameter_name(AdapterRole::kLambda)).as_tensor());
    for (std::size_t rank = 0; rank < pruned->masks[i].size(); ++rank) {
      if (pruned->masks[i][rank]) continue;
      ++masked;
      EXPECT_EQ(lambda[static_cast<std::int64_t>(rank)].item<float>(), 0) << i << " " << rank;
    }
  }
  EXPECT_GT(masked, 0);
}

}  // namespace
}  // namespace train_gpt_v2
