// The fused step on the weights of the Python reference: its losses and gradients within the float limits of the
// fixtures' README, every instruction set of this machine.

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/fixture_set.h"
#include "support/state_access.h"
#include "train_gpt_v2/io/safetensors.h"
#include "train_gpt_v2/model/fused_gpt.h"

namespace train_gpt_v2::testing {
namespace {

class FusedFixture : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!isa_available(GetParam())) GTEST_SKIP() << "this processor has no " << isa_name(GetParam());
    at::set_num_threads(1);
    const auto state = state_map(*fixture_model(at::kFloat));
    for (const auto& [key, numel] : FusedGpt::required_parameters(fixture_options())) {
      values_[key] = numbers(state.at(key));
      grads_[key].assign(values_[key].size(), 0.f);
      parameters_[key] = {values_[key].data(), grads_[key].data(), numel};
    }
    FusedOptions how;
    how.text_padding = true;
    how.threads = 2;
    how.isa = GetParam();
    engine_ = std::make_unique<FusedGpt>(fixture_options(), parameters_, how);
  }
  std::map<std::string, std::vector<float>> values_, grads_;
  FusedParameters parameters_;
  std::unique_ptr<FusedGpt> engine_;
};

TEST_P(FusedFixture, LossesEqualTheReference) {
  const Json expected = fixture_json("expected/forward.json");
  for (const auto& [name, entry] : expected.at("batches").items()) {
    SCOPED_TRACE(name);
    const FusedLosses l = engine_->evaluate(fixture_batch(entry.at("ids").get<std::vector<std::string>>()));
    const Json& wide = entry.at("float64");
    EXPECT_NEAR(l.text_loss_sum / static_cast<double>(l.text_tokens), wide.at("text_loss").get<double>(), 3e-6);
    EXPECT_NEAR(l.mel_loss_sum / static_cast<double>(l.mel_tokens), wide.at("mel_loss").get<double>(), 3e-6);
    EXPECT_NEAR(static_cast<double>(l.mel_top1) / static_cast<double>(l.mel_tokens), wide.at("mel_top1").get<double>(),
                1e-7);
  }
}

TEST_P(FusedFixture, GradientsEqualTheReference) {
  const Json expected = fixture_json("expected/forward.json");
  const Batch batch = fixture_batch(expected.at("batches").at("b3").at("ids").get<std::vector<std::string>>());
  engine_->forward_backward(batch, {}, 0.2 / static_cast<double>(batch.text_tokens()),
                            0.8 / static_cast<double>(batch.mel_tokens()));
  double total = 0;
  std::size_t compared = 0;
  for (const auto& [key, entry] : expected.at("gradients").at("per_parameter").items()) {
    const double norm = entry.at("float64").at("l2").get<double>();
    double mine = 0;
    for (const float v : grads_.at(key)) mine += static_cast<double>(v) * v;
    total += mine;
    ++compared;
    EXPECT_NEAR(std::sqrt(mine), norm, std::max(2e-6 * norm, 1e-7)) << key;
  }
  EXPECT_EQ(compared, grads_.size());
  EXPECT_NEAR(std::sqrt(total), expected.at("gradients").at("total_norm_float64").get<double>(), 2e-6);
  for (const auto& [key, tensor] : read_safetensors(fixture("expected/forward_grads_float64.safetensors")).tensors) {
    const std::vector<float> want = to_float_vector(tensor);
    ASSERT_EQ(want.size(), grads_.at(key).size()) << key;
    for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(grads_.at(key)[i], want[i], 2e-6) << key << " " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, FusedFixture,
                         ::testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16),
                         [](const auto& each) { return std::string(isa_name(each.param)); });

}  // namespace
}  // namespace train_gpt_v2::testing
