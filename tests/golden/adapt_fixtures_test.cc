// Adapters written by peft 0.18.1 on the reference model: losses, gradients, merged weights, logits, the recorded AdamW
// runs, and AdaLoRA with its masks and importance. In double against the float64 numbers within 1e-10, against recorded
// float32 runs within the limits of the fixtures' README.

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <map>

#include "support/fixture_set.h"
#include "support/golden_peft.h"
#include "support/state_access.h"
#include "train_gpt_v2/adapt/adalora.h"
#include "train_gpt_v2/adapt/hooks.h"
#include "train_gpt_v2/adapt/peft_files.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/safetensors.h"

namespace train_gpt_v2::testing {
namespace {

struct Losses {
  double text = 0, mel = 0;
  double total() const { return 0.2 * text + 0.8 * mel; }
};

// One reference batch through the weights as they are; with gradients, d total is added to every .grad.
Losses run(UnifiedVoice& model, const Json& ids, bool gradients) {
  const Batch batch = fixture_batch(ids.get<std::vector<std::string>>());
  const at::AutoGradMode mode(gradients);
  const ForwardResult r =
      model.forward(assemble_inputs(batch, model.options(), BatchLayout::kPadded, at::kCPU, model.dtype()));
  const auto text_tokens = static_cast<double>(r.text_tokens), mel_tokens = static_cast<double>(r.mel_tokens);
  if (gradients) (0.2 * r.text_loss_sum / text_tokens + 0.8 * r.mel_loss_sum / mel_tokens).backward();
  return {r.text_loss_sum.item<double>() / text_tokens, r.mel_loss_sum.item<double>() / mel_tokens};
}

std::map<std::string, at::Tensor> tensors_of(const std::string& path) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : read_safetensors(path).tensors) {
    std::string key = name;
    if (starts_with(key, "base_model.model.")) key = key.substr(17);
    if (ends_with(key, "lora_magnitude_vector.weight")) key = key.substr(0, key.size() - 7);
    tensors[key] = tensor_to_torch(tensor).to(at::kDouble);
  }
  return tensors;
}

void expect_near(const Losses& actual, const Json& expected, double limit) {
  EXPECT_NEAR(actual.text, expected.at("text_loss").get<double>(), limit);
  EXPECT_NEAR(actual.mel, expected.at("mel_loss").get<double>(), limit);
}

// torch's AdamW on the adapters, written out: an independent check of the gradients over several steps.
class PlainAdamW {
 public:
  PlainAdamW(double rate, double decay) : rate_(rate), decay_(decay) {}
  void step(const std::vector<AdapterParameter>& parameters) {
    const at::NoGradGuard no_grad;
    ++steps_;
    for (const AdapterParameter& parameter : parameters) {
      const at::Tensor& grad = parameter.tensor.grad();
      auto [found, inserted] = moments_.try_emplace(parameter.name);
      auto& [mean, square] = found->second;
      if (inserted) mean = at::zeros_like(grad), square = at::zeros_like(grad);
      mean = mean * 0.9 + grad * 0.1;
      square = square * 0.999 + grad * grad * 0.001;
      const at::Tensor unbiased = mean / (1 - std::pow(0.9, steps_));
      const at::Tensor scale = (square / (1 - std::pow(0.999, steps_))).sqrt() + 1e-8;
      parameter.tensor.mul_(1 - rate_ * decay_).sub_(unbiased / scale * rate_);
    }
  }

 private:
  double rate_, decay_;
  int steps_ = 0;
  std::map<std::string, std::pair<at::Tensor, at::Tensor>> moments_;
};

void drop_gradients(UnifiedVoice& model, const AdapterSet& set) {
  model.zero_grad();
  for (const AdapterParameter& parameter : set.parameters()) parameter.tensor.mutable_grad().reset();
}

class PeftFixture : public ::testing::TestWithParam<const char*> {
 protected:
  PeftFixture()
      : folder(fixture(concat("peft/", GetParam()))),
        expected(fixture_json(concat("peft/", GetParam(), "/expected.json"))),
        model(fixture_model(at::kDouble)),
        set(make_adapter_set(read_peft_folder(folder), adapter_targets(*model))) {}
  std::string folder;
  Json expected;
  std::shared_ptr<UnifiedVoice> model;
  AdapterSet set;
};

TEST_P(PeftFixture, LossesGradientsAndMergedWeights) {
  const Json& ids = expected.at("batch");
  expect_near(run(*model, ids, false), expected.at("base_without_adapter"), 3e-6);
  set.apply();
  expect_near(run(*model, ids, true), expected.at("with_adapter_float64"), 1e-10);
  set.push_gradients();
  const auto gradients = tensors_of(folder + "/gradients.safetensors");
  ASSERT_EQ(gradients.size(), set.parameters().size());
  for (const AdapterParameter& parameter : set.parameters()) {
    const at::Tensor& want = gradients.at(parameter.name);
    const double scale = std::max(1.0, want.abs().max().item<double>());
    EXPECT_LT(largest_difference(parameter.tensor.grad(), want), 1e-5 * scale) << parameter.name;
  }
  if (!expected.contains("merged_tensors") || GetParam() != std::string("dora")) return;
  const auto state = state_map(*model);
  for (const auto& [name, tensor] : tensors_of(folder + "/merged.safetensors")) {
    EXPECT_LT(largest_difference(state.at(name), tensor), 5e-6) << name;
  }
}

TEST_P(PeftFixture, AdapterBesideTheBaseGivesTheSame) {
  set.apply();
  run(*model, expected.at("batch"), true);
  set.push_gradients();
  std::vector<at::Tensor> through_weights;
  for (const AdapterParameter& parameter : set.parameters()) through_weights.push_back(parameter.tensor.grad().clone());
  drop_gradients(*model, set);
  AdapterHooks hooks(*model, set, 0.0);
  hooks.train();
  expect_near(run(*model, expected.at("batch"), true), expected.at("with_adapter_float64"), 1e-10);
  const auto parameters = set.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    EXPECT_LT(largest_difference(parameters[i].tensor.grad(), through_weights[i]), 1e-10) << parameters[i].name;
  }
  hooks.evaluate();
  expect_near(run(*model, expected.at("batch"), false), expected.at("with_adapter_float64"), 1e-10);
}

TEST_P(PeftFixture, RecordedAdamWRun) {
  const Json& recorded = expected.at("run");
  PlainAdamW optimizer(recorded.at("lr"), recorded.at("weight_decay"));
  for (const Json& step : recorded.at("steps")) {
    drop_gradients(*model, set);
    set.apply();
    const Losses losses = run(*model, step.at("ids"), true);
    EXPECT_NEAR(losses.total(), step.at("total").get<double>(), 2e-5);
    set.push_gradients();
    optimizer.step(set.parameters());
  }
  double squares = 0;
  std::int64_t count = 0;
  const auto final_tensors = tensors_of(folder + "/after_run.safetensors");
  for (const AdapterParameter& parameter : set.parameters()) {
    EXPECT_LT(largest_difference(parameter.tensor, final_tensors.at(parameter.name)), 1e-3) << parameter.name;
    squares += (parameter.tensor.detach() - final_tensors.at(parameter.name)).square().sum().item<double>();
    count += parameter.tensor.numel();
  }
  EXPECT_LT(std::sqrt(squares / static_cast<double>(count)), 2e-5);
}

TEST_P(PeftFixture, WritesWhatItRead) {
  const TemporaryFolder temporary;
  write_peft_folder(temporary.file("again"), set, 0.0, {});
  const auto before = tensors_of(folder + "/adapter_model.safetensors");
  const auto after = tensors_of(temporary.file("again/adapter_model.safetensors"));
  ASSERT_EQ(before.size(), after.size());
  for (const auto& [name, tensor] : before) EXPECT_EQ(largest_difference(after.at(name), tensor), 0) << name;
  const Json ours = Json::parse(std::ifstream(temporary.file("again/adapter_config.json")));
  const Json theirs = Json::parse(std::ifstream(folder + "/adapter_config.json"));
  for (const char* key : {"peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "fan_in_fan_out",
                          "bias", "rank_pattern", "alpha_pattern", "modules_to_save", "init_lora_weights"}) {
    EXPECT_EQ(ours.at(key), theirs.at(key)) << key;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, PeftFixture, ::testing::Values("dora", "lora"),
                         [](const auto& test) { return std::string(test.param); });

TEST(PeftFixtureFresh, FreshAdaptersChangeNothing) {
  for (const char* method : {"lora", "dora", "adalora", "dora_adalora"}) {
    const auto model = fixture_model(at::kDouble);
    const Json ids = fixture_json("peft/dora/expected.json").at("batch");
    const Losses before = run(*model, ids, false);
    PeftOptions options;
    options.method = method;
    AdapterSet set(plan_adapters(options, adapter_targets(*model), false), adapter_targets(*model));
    set.initialise(1);
    set.apply();
    const Losses after = run(*model, ids, false);
    EXPECT_EQ(before.text, after.text) << method;
    EXPECT_EQ(before.mel, after.mel) << method;
  }
}

class AdaloraFixture : public ::testing::Test {
 protected:
  AdaloraFixture() : expected(fixture_json("peft/adalora/expected.json")), model(fixture_model(at::kDouble)) {
    const Json& config = expected.at("config");
    options.method = "adalora";
    options.rank = config.at("init_r");
    options.lora_alpha = config.at("lora_alpha").get<double>();
    options.tinit = config.at("tinit").get<std::int64_t>();
    options.tfinal = config.at("tfinal").get<std::int64_t>();
    options.delta_t = config.at("deltaT").get<std::int64_t>();
    options.target_rank = config.at("target_r").get<std::int64_t>();
    options.beta1 = config.at("beta1");
    options.beta2 = config.at("beta2");
    options.orthogonality_weight = config.at("orth_reg_weight");
    options.compaction = "soft";
    set = std::make_unique<AdapterSet>(plan_adapters(options, adapter_targets(*model), false), adapter_targets(*model));
    const auto start = tensors_of(fixture("peft/adalora/start.safetensors"));
    for (Adapter& adapter : set->adapters()) {
      const std::string& module = adapter.spec().module;
      adapter.set(start.at(module + ".lora_A"), start.at(module + ".lora_B"), start.at(module + ".lora_E"), {});
    }
  }
  void expect_importance(const RankAllocator& allocator, const std::string& prefix) const {
    const auto recorded = tensors_of(fixture("peft/adalora/importance.safetensors"));
    const Value state = allocator.save_state();
    for (const Value::Entry& entry : state.at("importance").entries()) {
      for (const auto& [ours, theirs] : {std::pair{"mean", "exp_avg_ipt"}, std::pair{"deviation", "exp_avg_unc"}}) {
        const at::Tensor& want = recorded.at(concat(prefix, ".", theirs, ".", entry.key.as_string()));
        const at::Tensor have = tensor_to_torch(entry.value.at(ours).as_tensor());
        EXPECT_LT(largest_difference(have, want) / want.abs().max().item<double>(), 1e-4) << entry.key.as_string();
      }
    }
  }
  Json expected;
  std::shared_ptr<UnifiedVoice> model;
  PeftOptions options;
  std::unique_ptr<AdapterSet> set;
};

TEST_F(AdaloraFixture, RecordedRunWithItsMasks) {
  RankAllocator allocator(options, *set, expected.at("config").at("total_step"));
  PlainAdamW optimizer(2e-2, 0);
  for (const Json& step : expected.at("steps")) {
    SCOPED_TRACE(step.at("step").get<int>());
    drop_gradients(*model, *set);
    set->apply();
    const Losses losses = run(*model, step.at("ids"), true);
    set->push_gradients();
    const double regulariser = allocator.regulariser();
    allocator.add_regulariser_gradient();
    EXPECT_NEAR(losses.total(), step.at("task").get<double>(), 5e-6);
    EXPECT_NEAR(losses.total() + options.orthogonality_weight * regulariser,
                step.at("loss_with_regulariser").get<double>(), 5e-6);
    optimizer.step(set->parameters());
    const std::int64_t number = step.at("step");
    EXPECT_EQ(allocator.schedule().budget_at(number), step.at("budget").get<std::int64_t>());
    const bool was_finished = allocator.finished();
    const auto event = allocator.after_step(number);
    const Json& mask = step.at("mask_event");
    EXPECT_EQ(event.has_value(), !mask.is_null() && !was_finished);
    if (event) {
      for (std::size_t i = 0; i < set->adapters().size(); ++i) {
        const std::string key = set->adapters()[i].spec().module + ".lora_E";
        EXPECT_EQ(event->masks[i], mask.at("rank_pattern").at(key).get<std::vector<bool>>()) << key;
      }
    }
    if (number == 4) expect_importance(allocator, "step4");
    for (const auto& [key, values] : step.at("lambda_after").items()) {
      const Adapter* adapter = set->find(key.substr(0, key.rfind('.')));
      ASSERT_TRUE(adapter) << key;
      EXPECT_LT(largest_difference(adapter->lambda(), golden_tensor(values, {6, 1})), 1e-3) << key;
    }
  }
  for (const auto& [key, pattern] : expected.at("final_rank_pattern").items()) {
    const auto wanted = pattern.get<std::vector<bool>>();
    for (std::size_t i = 0; i < set->adapters().size(); ++i) {
      if (set->adapters()[i].spec().module + ".lora_E" != key) continue;
      EXPECT_EQ(allocator.ranks()[i], std::count(wanted.begin(), wanted.end(), true)) << key;
    }
  }
  const auto final_tensors = tensors_of(fixture("peft/adalora/after_run_unsliced.safetensors"));
  for (const AdapterParameter& parameter : set->parameters()) {
    EXPECT_LT(largest_difference(parameter.tensor, final_tensors.at(parameter.name)), 1e-3) << parameter.name;
  }
}

TEST_F(AdaloraFixture, SlicedFilesLoadAndExportAsPlainLora) {
  const PeftFolder folder = read_peft_folder(fixture("peft/adalora"));
  EXPECT_EQ(folder.kind, AdapterKind::kAdalora);
  AdapterSet loaded = make_adapter_set(folder, adapter_targets(*model));
  EXPECT_EQ(loaded.find("gpt.h.1.mlp.c_proj")->rank(), 0);
  EXPECT_EQ(loaded.rank_total(), 24);
  loaded.apply();
  const Losses losses = run(*model, expected.at("eval_batch"), false);
  expect_near(losses, expected.at("after"), 3e-6);

  const TemporaryFolder temporary;
  write_peft_folder(temporary.file("plain"), loaded, 0.0, {});
  loaded.use_base();
  const PeftFolder plain = read_peft_folder(temporary.file("plain"));
  EXPECT_EQ(plain.kind, AdapterKind::kLora);
  AdapterSet again = make_adapter_set(plain, adapter_targets(*model));
  again.apply();
  const Losses exported = run(*model, expected.at("eval_batch"), false);
  EXPECT_NEAR(exported.text, losses.text, 2e-6);  // the file holds fp32
  EXPECT_NEAR(exported.mel, losses.mel, 2e-6);
}

}  // namespace
}  // namespace train_gpt_v2::testing
