// The description of adapters in a checkpoint: what was written comes back, what is damaged is refused.
#include "train_gpt_v2/train/adapter_checkpoint.h"

#include <gmock/gmock.h>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/model/tensor_bridge.h"
#include "train_gpt_v2/model/weights.h"

namespace train_gpt_v2 {
namespace {

ModelOptions tiny() {
  ModelOptions model;
  model.model_dim = 16;
  model.layers = 1;
  model.heads = 2;
  model.number_text_tokens = 30;
  model.number_mel_codes = 22;
  model.start_mel_token = 20;
  model.stop_mel_token = 21;
  model.max_text_tokens = 20;
  model.max_mel_tokens = 30;
  model.condition_module = {8, 8, 1, 1, "conv2d2", 1};
  model.emo_condition_module = {8, 8, 1, 1, "conv2d2", 0.1};
  return model;
}

// The root of a checkpoint with adapters of rank 2 on c_attn and on the text table.
Value checkpoint_of(UnifiedVoice& model, AdapterSet& set, const std::string& description) {
  Value ours = Value::dict(), root = Value::dict();
  ours.set("adapters", description);
  root.set("base_model", state_value(model));
  root.set("adapter", set.save_state());
  root.set("train_gpt_v2", ours);
  return root;
}

class AdapterCheckpoint : public ::testing::Test {
 protected:
  AdapterCheckpoint() : model(tiny()) {
    initialise(model, 3);
    PeftOptions options;
    options.method = "dora";
    options.rank = 2;
    options.target_modules = {"attn.c_attn", "text_embedding"};
    set = std::make_unique<AdapterSet>(plan_adapters(options, adapter_targets(model), false), adapter_targets(model));
    set->initialise(5);
    const at::NoGradGuard no_grad;
    for (const AdapterParameter& parameter : set->parameters()) parameter.tensor.add_(0.01);
  }
  Value root(const std::string& description) { return checkpoint_of(model, *set, description); }
  std::string refusal(const std::string& description) {
    UnifiedVoice other(tiny());
    try {
      load_adapted_model(other, root(description), false, "test");
    } catch (const Error& error) {
      return error.report();
    }
    return "accepted";
  }
  UnifiedVoice model;
  std::unique_ptr<AdapterSet> set;
};

TEST_F(AdapterCheckpoint, ComesBackAsTheModelItWas) {
  const std::string description = describe_adapters(*set, {"mel_head.weight"});
  const Value saved = root(description);
  EXPECT_TRUE(is_adapter_checkpoint(saved));
  EXPECT_THAT(stored_beside(saved), ::testing::ElementsAre("mel_head.weight"));
  UnifiedVoice other(tiny());
  initialise(other, 99);
  const auto again = load_adapted_model(other, saved, false, "test");
  EXPECT_EQ(describe_adapters(*again, {"mel_head.weight"}), description);
  EXPECT_TRUE(identical(again->save_state(), set->save_state()));
  set->apply();  // W' into the weights of the first model
  const auto a = model.state(), b = other.state();
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i].tensor, b[i].tensor)) << a[i].name;
}

TEST_F(AdapterCheckpoint, AveragesReplaceAdaptersAndWhatTrainsBeside) {
  Value saved = root(describe_adapters(*set, {"mel_head.bias"}));
  Value shadows = Value::ordered_dict();
  const at::Tensor bias = at::full({22}, 7.0f), magnitude = at::full({48}, 2.0f);
  shadows.set("mel_head.bias", torch_to_tensor(bias));
  shadows.set("gpt.h.0.attn.c_attn.lora_magnitude_vector", torch_to_tensor(magnitude));
  saved.set("ema_state", shadows);
  UnifiedVoice other(tiny());
  const auto averaged = load_adapted_model(other, saved, true, "test");
  EXPECT_TRUE(at::equal(other.mel_head->bias, bias));
  EXPECT_TRUE(at::equal(averaged->find("gpt.h.0.attn.c_attn")->magnitude(), magnitude));
  EXPECT_TRUE(at::equal(averaged->find("gpt.h.0.attn.c_attn")->a(), set->find("gpt.h.0.attn.c_attn")->a()));
}

TEST_F(AdapterCheckpoint, DamagedDescriptionsAreRefused) {
  const auto modules = [](const std::string& list) { return concat(R"({"beside":[],"modules":[)", list, "]}"); };
  const std::string good = R"({"module":"gpt.h.0.attn.c_attn","method":"dora","rank":2,"alpha":4,"rslora":false})";
  for (const std::string& text :
       {std::string("not json"), std::string("[]"), std::string("{}"), modules(""), modules("1"), modules("{}"),
        modules(R"({"module":"no.such","method":"dora","rank":2,"alpha":4,"rslora":false})"),
        modules(R"({"module":"gpt.h.0.attn.c_attn","method":"dora","rank":0,"alpha":4,"rslora":false})"),
        modules(R"({"module":"gpt.h.0.attn.c_attn","method":"dora","rank":99999999999,"alpha":4,"rslora":false})"),
        modules(R"({"module":"gpt.h.0.attn.c_attn","method":"dora","rank":2,"alpha":-1,"rslora":false})"),
        modules(R"({"module":"gpt.h.0.attn.c_attn","method":"dora","rank":"2","alpha":4,"rslora":false})"),
        modules(good + "," + good),
        modules(good + R"(,{"module":"text_embedding","method":"lora","rank":2,"alpha":4,"rslora":false})")}) {
    EXPECT_THAT(refusal(text), ::testing::HasSubstr("CKP007")) << text;
  }
  // Fine by itself, but the file holds tensors of the text table too.
  EXPECT_THAT(refusal(modules(good)), ::testing::HasSubstr("PFT002"));
}

}  // namespace
}  // namespace train_gpt_v2
