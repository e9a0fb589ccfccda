// Gradients of adapters: the fused engine, which multiplies activations with the factors, against the modules, which
// compute dL/dW' by autograd and project it.

#include <gtest/gtest.h>

#include <ATen/Parallel.h>

#include "support/fixture_run.h"
#include "support/small_memory.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/dataset.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/train/adaptation.h"
#include "train_gpt_v2/train/window.h"

namespace train_gpt_v2 {
namespace {

Options adapted(const std::string& method, const std::string& engine, const std::vector<std::string>& more = {}) {
  std::vector<std::string> sets = {concat("train.engine=", engine), "train.layout=packed", "model.dropout=0.1",
                                   concat("peft.method=", method), "peft.rank=6"};
  if (method.find("ada") != std::string::npos) sets.emplace_back("peft.pruning_steps=[5]");
  sets.insert(sets.end(), more.begin(), more.end());
  return testing::fixture_options(sets);
}

// A model with adapters that have moved, and two micro-batches.
struct Training {
  explicit Training(const Options& given, at::ScalarType compute = at::kFloat)
      : options(given),
        model(given.model),
        adaptation((fill(), model), given, nullptr, /*total_steps=*/10, /*goal_step=*/10),
        parameters(build_parameter_set(model, given, 1, adaptation.adapters())) {
    const torch::NoGradGuard no_grad;
    for (const AdapterParameter& parameter : adaptation.adapters()->parameters()) {
      const torch::Tensor numbers = torch::empty(parameter.tensor.sizes());
      fill_normal(numbers, 0.1, 11, parameter.name);
      if (parameter.role == AdapterRole::kMagnitude) {
        parameter.tensor.mul_(1 + numbers);
      } else {
        parameter.tensor.add_(numbers);
      }
    }
    engine = make_engine(model, options, compute, why, adaptation.adapters());
    engine->parameters_changed();
    const Dataset data(options.data.train_manifests, {}, options.data, options.model,
                       std::make_shared<const Tokenizer>(options.data.tokenizer));
    for (std::uint32_t i = 0; i < 12; ++i) data.load(i, batches[i / 6]);
  }

  // Of a window of both micro-batches, within `positions` at a time where that is given.
  std::map<std::string, torch::Tensor> gradients(std::int64_t positions = 0) {
    std::vector<WindowPart> parts;
    for (const Batch& batch : batches) {
      parts.push_back({&batch, {1, 2, static_cast<std::uint32_t>(parts.size())}, 1e-2, 2e-2});
    }
    WindowEvents events;
    events.begin = [&] { adaptation.begin_window(parameters); };
    MemoryLimit limit;
    testing::SmallMemory small(*engine, options.model, positions > 0 ? positions : INT64_MAX);
    retries = run_window(small, parts, 1, options.model, limit, events).retries;
    adaptation.complete_gradients(1);
    std::map<std::string, torch::Tensor> all;
    for (const TrainableTensor& tensor : parameters.tensors) all[tensor.name] = tensor.grad.clone();
    return all;
  }

  // What pruning leaves: fewer ranks, in one matrix none.
  void prune() {
    for (std::size_t i = 0; i < adaptation.adapters()->adapters().size(); ++i) {
      adaptation.adapters()->adapters()[i].compact(i == 2 ? std::vector<std::int64_t>{}
                                                          : std::vector<std::int64_t>{1, 4});
    }
    parameters.renew_adapter_gradients();
    engine->parameters_changed();
  }

  void fill() {
    const torch::NoGradGuard no_grad;
    initialise(model, 7);
  }

  Options options;
  UnifiedVoice model;
  Adaptation adaptation;
  ParameterSet parameters;
  std::string why;
  std::unique_ptr<Engine> engine;
  Batch batches[2];
  std::int64_t retries = 0;
};

void expect_close(const std::map<std::string, torch::Tensor>& found, const std::map<std::string, torch::Tensor>& want,
                  double limit) {
  ASSERT_EQ(found.size(), want.size());
  for (const auto& [name, gradient] : want) {
    ASSERT_EQ(found.at(name).sizes(), gradient.sizes()) << name;
    if (gradient.numel() == 0) continue;
    const double largest = gradient.abs().max().item<double>();
    EXPECT_GT(largest, 0) << name;
    EXPECT_LE((found.at(name) - gradient).abs().max().item<double>(), limit * largest) << name;
  }
}

class AdapterGradients : public ::testing::TestWithParam<const char*> {
 protected:
  AdapterGradients() { configure_logging({LogLevel::kError, false}); }
  ~AdapterGradients() override { configure_logging({LogLevel::kInfo, false}); }
};
INSTANTIATE_TEST_SUITE_P(Methods, AdapterGradients, ::testing::Values("lora", "dora", "adalora", "dora_adalora"),
                         [](const auto& method) { return std::string(method.param); });

TEST_P(AdapterGradients, OfBothEnginesAgree) {
  Training modules(adapted(GetParam(), "modules")), fused(adapted(GetParam(), "fused"));
  expect_close(fused.gradients(), modules.gradients(), 1e-5);
  expect_close(fused.gradients(), modules.gradients(), 1e-5);  // nothing is left of the window before
  if (std::string(GetParam()).find("ada") == std::string::npos) return;
  modules.prune();
  fused.prune();
  expect_close(fused.gradients(), modules.gradients(), 1e-5);
}

TEST_P(AdapterGradients, InBf16StayCloseToFp32) {
  Training wide(adapted(GetParam(), "modules")), narrow(adapted(GetParam(), "fused"), at::kBFloat16);
  const auto want = wide.gradients(), found = narrow.gradients();
  for (const auto& [name, gradient] : want) {
    const torch::Tensor a = gradient.to(torch::kDouble), b = found.at(name).to(torch::kDouble);
    EXPECT_GT((a * b).sum().item<double>() / (a.norm() * b.norm()).item<double>(), 0.999) << name;
    EXPECT_NEAR((b.norm() / a.norm()).item<double>(), 1, 0.02) << name;
  }
}

TEST_P(AdapterGradients, DoNotDependOnThreads) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  Training one(adapted(GetParam(), "fused"));
  at::set_num_threads(3);
  Training three(adapted(GetParam(), "fused"));
  at::set_num_threads(threads);
  const auto expected = one.gradients(), found = three.gradients();
  for (const auto& [name, gradient] : expected) EXPECT_TRUE(torch::equal(gradient, found.at(name))) << name;
}

TEST_P(AdapterGradients, AreTheSameInHalves) {
  Training training(adapted(GetParam(), "fused", {"model.dropout=0"}));  // the halves' masks are others
  const auto whole = training.gradients();
  expect_close(training.gradients(real_positions(training.batches[0], training.options.model) / 3), whole, 1e-5);
  EXPECT_GE(training.retries, 2);
}

TEST_P(AdapterGradients, WholeWhereSomethingElseNeedsThem) {
  const auto holds = [](const Training& run, std::size_t i) {
    return run.adaptation.adapters()->weights()[i].grad().defined();
  };
  EXPECT_TRUE(holds(Training(adapted(GetParam(), "modules")), 0));
  EXPECT_FALSE(holds(Training(adapted(GetParam(), "fused")), 0));
  Options protecting = adapted(GetParam(), "fused");
  protecting.ewc.enabled = true;
  EXPECT_TRUE(holds(Training(protecting), 0));
  if (std::string(GetParam()).find("ada") != std::string::npos) return;
  const std::vector<std::string> tables = {"peft.target_modules=[\"mel_head\",\"wte\",\"attn.c_attn\"]"};
  Training modules(adapted(GetParam(), "modules", tables)), fused(adapted(GetParam(), "fused", tables));
  expect_close(fused.gradients(), modules.gradients(), 1e-5);
}

}  // namespace
}  // namespace train_gpt_v2
