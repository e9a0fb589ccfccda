#include "train_gpt_v2/adapt/adapter_set.h"

#include <ATen/ops/randn.h>

#include "support/golden_peft.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/initialise.h"

namespace train_gpt_v2 {
namespace {

using testing::largest_difference;

ModelOptions small_model() {
  ModelOptions options;
  options.model_dim = 16;
  options.layers = 3;
  options.heads = 2;
  options.number_text_tokens = 20;
  options.number_mel_codes = 12;
  options.start_mel_token = 10;
  options.stop_mel_token = 11;
  options.max_text_tokens = 8;
  options.max_mel_tokens = 10;
  options.condition_module = {6, 16, 2, 2, "conv2d2", 1};
  options.emo_condition_module = {4, 12, 1, 2, "conv2d2", 0.015625};
  options.condition_num_latent = 4;
  return options;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code() + " " + error.message();
  }
  return "";
}

class Sets : public ::testing::Test {
 protected:
  Sets() : model(small_model()) {
    initialise(model, 3);
    targets = adapter_targets(model);
    options.method = "dora";
    options.rank = 4;
  }
  UnifiedVoice model;
  std::vector<AdapterTarget> targets;
  PeftOptions options;
};

TEST_F(Sets, TargetsAreTheMatricesOfTheModel) {
  std::set<std::string> parameters;
  for (const auto& item : model.named_parameters()) parameters.insert(item.key());
  std::map<std::string, AdapterTarget> by_name;
  for (const AdapterTarget& target : targets) {
    EXPECT_TRUE(parameters.contains(target.module + ".weight")) << target.module;
    EXPECT_EQ(target.weight.dim(), 2) << target.module;
    by_name[target.module] = target;
  }
  EXPECT_EQ(by_name.at("gpt.h.1.attn.c_attn").layout, WeightLayout::kInOut);
  EXPECT_EQ(by_name.at("text_head").layout, WeightLayout::kOutIn);
  EXPECT_TRUE(by_name.at("text_embedding").embedding);
  EXPECT_FALSE(by_name.contains("gpt.h.0.ln_1"));
}

TEST_F(Sets, RanksAndAlphasByTheFirstPatternThatMatches) {
  options.rank_pattern = {{"h.1.mlp.c_fc", 3}, {"mlp", 2}};
  options.alpha_pattern = {{"attn.c_proj", 5.0}};
  const std::vector<AdapterSpec> specs = plan_adapters(options, targets, false);
  ASSERT_EQ(specs.size(), 12u);
  std::map<std::string, AdapterSpec> by_name;
  for (const AdapterSpec& spec : specs) by_name[spec.module] = spec;
  EXPECT_EQ(by_name.at("gpt.h.0.attn.c_attn").rank, 4);
  EXPECT_EQ(by_name.at("gpt.h.0.attn.c_attn").alpha, 8);
  EXPECT_EQ(by_name.at("gpt.h.0.attn.c_proj").alpha, 5);
  EXPECT_EQ(by_name.at("gpt.h.1.mlp.c_fc").rank, 3);
  EXPECT_EQ(by_name.at("gpt.h.1.mlp.c_fc").alpha, 6);
  EXPECT_EQ(by_name.at("gpt.h.2.mlp.c_fc").rank, 2);
  EXPECT_EQ(by_name.at("gpt.h.1.mlp.c_proj").rank, 2);
}

TEST_F(Sets, ConformersStayWithinTheirShare) {
  options.target_modules.push_back("self_attn");
  options.rank_pattern = {{"self_attn", 4}};
  options.conformer_budget_share = 0.3;
  const std::vector<AdapterSpec> specs = plan_adapters(options, targets, true);
  AdapterSet set(specs, targets);
  double conformers = 0;
  std::int64_t largest = 0;
  for (const Adapter& adapter : set.adapters()) {
    if (!UnifiedVoice::is_conditioner(adapter.spec().module + ".weight")) continue;
    conformers += static_cast<double>(adapter.parameter_count());
    largest = std::max(largest, adapter.rank());
  }
  EXPECT_GT(conformers, 0);
  EXPECT_LE(conformers / static_cast<double>(set.parameter_count()), 0.3);
  options.conformer_budget_share = 0.9;
  for (const AdapterSpec& spec : plan_adapters(options, targets, true)) {
    EXPECT_EQ(spec.rank, 4) << spec.module;  // enough room: as asked
  }
  options.conformer_budget_share = 0.01;
  EXPECT_NE(message_of([&] { plan_adapters(options, targets, true); }).find("PFT001"), std::string::npos);
  EXPECT_NE(message_of([&] { plan_adapters(options, targets, false); }).find("precomputed"), std::string::npos);
}

TEST_F(Sets, RefusesSettingsThatFitNothing) {
  const auto refused = [&](const std::function<void(PeftOptions&)>& change, const std::string& code = "PFT001") {
    PeftOptions changed = options;
    change(changed);
    return message_of([&] { plan_adapters(changed, targets, false); }).find(code) == 0;
  };
  EXPECT_FALSE(refused([](PeftOptions&) {}));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.target_modules = {"attn.c_typo"}; }, "CFG003"));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.rank_pattern = {{"text_head", 2}}; }));  // not adapted
  EXPECT_TRUE(refused([](PeftOptions& o) { o.alpha_pattern = {{"nothing", 2.0}}; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.rank = 17; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.rank = 0; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.lora_alpha = 0.0; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.method = "pissa"; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.method = "adalora", o.use_rslora = true; }));
  EXPECT_TRUE(refused([](PeftOptions& o) { o.method = "adalora", o.target_modules = {"text_embedding"}; }));
}

TEST_F(Sets, WeightsCarryTheAdaptersAndGradientsReturn) {
  AdapterSet set(plan_adapters(options, targets, false), targets);
  set.initialise(1);
  EXPECT_TRUE(set.adapts("gpt.h.0.attn.c_attn.weight"));
  EXPECT_FALSE(set.adapts("gpt.h.0.attn.c_attn.bias"));
  EXPECT_FALSE(set.adapts("text_head.weight"));
  const at::Tensor weight = model.named_parameters()["gpt.h.2.mlp.c_proj.weight"];
  const at::Tensor original = weight.detach().clone();
  set.apply();
  EXPECT_TRUE(weight.equal(original));
  {
    const at::NoGradGuard no_grad;
    for (const AdapterParameter& parameter : set.parameters())
      parameter.tensor.add_(at::randn(parameter.tensor.sizes()), 0.1);
  }
  set.apply();
  EXPECT_FALSE(weight.equal(original));
  EXPECT_EQ(largest_difference(weight, set.find("gpt.h.2.mlp.c_proj")->merged()), 0);
  weight.mutable_grad() = at::randn(weight.sizes());
  const at::Tensor& b = set.find("gpt.h.2.mlp.c_proj")->b();
  set.push_gradients();
  EXPECT_GT(b.grad().abs().max().item<double>(), 0);
  EXPECT_EQ(weight.grad().abs().max().item<double>(), 0);
  EXPECT_FALSE(set.find("gpt.h.0.mlp.c_proj")->b().grad().defined());
  set.use_base();
  EXPECT_TRUE(weight.equal(original));
}

TEST_F(Sets, ProductsTakeThePlaceOfAWeightsGradient) {
  options.method = "dora_adalora";
  AdapterSet set(plan_adapters(options, targets, false), targets);
  set.initialise(1);
  for (const at::Tensor& weight : set.weights()) weight.mutable_grad() = at::zeros_like(weight);
  const std::size_t whole = set.gradient_bytes();
  for (std::size_t i = 0; i < set.adapters().size(); ++i) set.leave_products(i);
  EXPECT_LT(set.gradient_bytes(), whole);
  EXPECT_FALSE(set.weights()[0].grad().defined());
  Adapter& first = set.adapters()[0];
  set.products(0).with_b.fill_(1);
  set.products(0).columns.fill_(1);
  set.push_gradients();
  EXPECT_GT(first.magnitude().grad().abs().min().item<double>(), 0);
  EXPECT_EQ(set.products(0).with_b.abs().max().item<double>(), 0) << "the next window starts anew";
  EXPECT_EQ(set.products(0).columns.abs().max().item<double>(), 0);
  first.compact({1});
  set.apply();
  EXPECT_EQ(set.products(0).with_a.sizes(), (std::vector<std::int64_t>{1, first.outputs()}));
  EXPECT_EQ(set.products(0).with_b.sizes(), (std::vector<std::int64_t>{1, first.inputs()}));
}

TEST_F(Sets, StateRoundTripsAndRefusesOtherShapes) {
  for (const char* method : {"lora", "dora", "adalora", "dora_adalora"}) {
    SCOPED_TRACE(method);
    options.method = method;
    const std::vector<AdapterSpec> specs = plan_adapters(options, targets, false);
    AdapterSet set(specs, targets), other(specs, targets);
    set.initialise(1);
    if (set.adapters()[0].lambda().defined()) set.adapters()[0].compact({1, 3});
    const Value state = set.save_state();
    other.load_state(state);
    EXPECT_TRUE(identical(other.save_state(), state));
    Value fewer = Value::dict();
    for (const Value::Entry& entry : std::vector(state.entries().begin(), state.entries().end() - 1)) {
      fewer.set(entry.key, entry.value);
    }
    EXPECT_EQ(message_of([&] { other.load_state(fewer); }).substr(0, 6), "PFT002");
    Value more = state;
    more.set("gpt.h.9.attn.c_attn.lora_A.weight", 1);
    EXPECT_EQ(message_of([&] { other.load_state(more); }).substr(0, 6), "PFT002");
    PeftOptions ranks = options;
    ranks.rank = 2;
    AdapterSet smaller(plan_adapters(ranks, targets, false), targets);
    EXPECT_EQ(message_of([&] { smaller.load_state(state); }).substr(0, 6), "PFT002");
  }
}

TEST_F(Sets, CountsAtThePlansSize) {
  // 12 layers of width 512, ranks 32/32/16/16: 12·(32·2048 + 32·1024 + 2·16·2560 + 4608) by hand.
  const auto meta = at::TensorOptions().device(at::kMeta);
  std::int64_t expected = 0;
  std::vector<AdapterTarget> large;
  const std::pair<const char*, std::pair<int, int>> shapes[] = {{"attn.c_attn", {512, 1536}},
                                                                {"attn.c_proj", {512, 512}},
                                                                {"mlp.c_fc", {512, 2048}},
                                                                {"mlp.c_proj", {2048, 512}}};
  for (int layer = 0; layer < 12; ++layer) {
    for (const auto& [name, shape] : shapes) {
      large.push_back({"gpt.h." + std::to_string(layer) + "." + name, at::empty({shape.first, shape.second}, meta),
                       WeightLayout::kInOut, false});
    }
  }
  expected = 12 * (32 * 2048 + 32 * 1024 + 2 * 16 * 2560 + 4608);
  options.rank = 32;
  options.rank_pattern = {{"mlp.c_fc", 16}, {"mlp.c_proj", 16}};
  AdapterSet set(plan_adapters(options, large, false), large);
  EXPECT_EQ(set.parameter_count(), expected);
  const std::string text = set.describe();
  EXPECT_NE(text.find("gpt.h.*.mlp.c_fc"), std::string::npos) << text;
  EXPECT_NE(text.find(human_count(static_cast<std::uint64_t>(expected))), std::string::npos) << text;
  EXPECT_NE(text.find("per layer 184,832 of 3,145,728, 17.0x fewer"), std::string::npos) << text;
  const std::string chart = set.rank_chart(std::vector<std::int64_t>(set.adapters().size(), 7));
  EXPECT_NE(chart.find("gpt.h.*.attn.c_proj"), std::string::npos) << chart;
  EXPECT_NE(chart.find('7'), std::string::npos) << chart;
}

}  // namespace
}  // namespace train_gpt_v2
