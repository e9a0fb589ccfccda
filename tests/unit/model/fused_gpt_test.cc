// The fused step against the modules in double: same losses, same gradients, same dropout masks.
#include "train_gpt_v2/model/fused_gpt.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "support/model_fill.h"
#include "support/state_access.h"
#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2::testing {
namespace {

constexpr double kTextScale = 0.0375, kMelScale = 0.08;

// A model of float parameters with the gradients of the fused step beside it.
struct Fixture {
  ModelOptions options = tiny_options();
  std::map<std::string, std::vector<float>> values, grads;

  explicit Fixture(double dropout = 0, std::int64_t heads = 4) {
    options.dropout = dropout;
    options.heads = heads;
    const auto state = state_map(*filled_model(options, at::kFloat));
    for (const auto& [key, numel] : FusedGpt::required_parameters(options)) {
      values[key] = numbers(state.at(key));
      grads[key].assign(values[key].size(), 0.f);
    }
  }
  FusedParameters parameters() {
    FusedParameters p;
    for (auto& [key, value] : values) {
      p[key] = {value.data(), grads[key].data(), static_cast<std::int64_t>(value.size())};
    }
    return p;
  }
};

std::vector<std::int32_t> ids(std::int64_t count, int seed, int from, int to) {
  std::vector<std::int32_t> v;
  for (std::int64_t i = 0; i < count; ++i)
    v.push_back(static_cast<std::int32_t>(from + (i * 37 + seed * 11 + i * i) % (to - from)));
  return v;
}

Batch random_batch(const std::vector<std::pair<int, int>>& lengths, int seed = 1) {
  Batch batch;
  for (const auto& [text, codes] : lengths) {
    const int k = static_cast<int>(batch.count());
    add_sample(batch, ids(text, seed + k, 2, 50), ids(codes, seed + 5 + k, 0, 38));
  }
  const std::int64_t n = batch.count();
  batch.condition = numbers(filled("condition" + std::to_string(seed), {n, 32, 64}, 2));
  batch.emo_vec = numbers(filled("emotion" + std::to_string(seed), {n, 64}, 2));
  return batch;
}

struct Truth {
  FusedLosses losses;
  std::map<std::string, std::vector<double>> grads;
};

// Losses and gradients by the modules in double.
Truth module_truth(const ModelOptions& options, const Batch& batch, BatchLayout layout, const DropoutKey& key) {
  at::set_num_threads(1);  // the matrices are tiny
  const auto model = filled_model(options, at::kDouble);
  ForwardOptions forward;
  forward.dropout = make_dropout(key, options.dropout);
  forward.detailed = true;
  const ForwardResult r = model->forward(assemble_inputs(batch, options, layout, at::kCPU, at::kDouble), forward);
  torch::autograd::backward({r.text_loss_sum * kTextScale + r.mel_loss_sum * kMelScale}, {});
  Truth truth;
  truth.losses = {
      r.text_loss_sum.item<double>(),        r.mel_loss_sum.item<double>(),        r.text_tokens, r.mel_tokens,
      r.mel_top1_count.item<std::int64_t>(), r.mel_top5_count.item<std::int64_t>()};
  for (const auto& [name, tensor] : state_map(*model)) {
    if (!tensor.grad().defined()) continue;
    const at::Tensor g = tensor.grad().contiguous();
    truth.grads[name] = {g.const_data_ptr<double>(), g.const_data_ptr<double>() + g.numel()};
  }
  return truth;
}

// Each gradient to `limit` of its own largest entry (and of the bias' scale for the key biases, whose gradient is zero
// in exact arithmetic).
void expect_gradients(const std::map<std::string, std::vector<float>>& grads, const Truth& truth, double limit) {
  for (const auto& [key, mine] : grads) {
    const auto& want = truth.grads.at(key);
    ASSERT_EQ(mine.size(), want.size()) << key;
    double largest = 0, worst = 0;
    for (const double v : want) largest = std::max(largest, std::abs(v));
    for (std::size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::abs(mine[i] - want[i]));
    EXPECT_GT(largest, 0) << key;
    EXPECT_LE(worst, limit * largest) << key;
  }
}

void expect_losses(const FusedLosses& mine, const FusedLosses& want, double limit) {
  EXPECT_NEAR(mine.text_loss_sum, want.text_loss_sum, limit * want.text_loss_sum);
  EXPECT_NEAR(mine.mel_loss_sum, want.mel_loss_sum, limit * want.mel_loss_sum);
  EXPECT_EQ(mine.text_tokens, want.text_tokens);
  EXPECT_EQ(mine.mel_tokens, want.mel_tokens);
}

const std::vector<std::pair<int, int>> kLengths{{7, 31}, {19, 4}, {1, 1}, {3, 58}};

struct Setting {
  double dropout;
  bool text_padding;
  Isa isa;
};

class FusedAgainstModules : public ::testing::TestWithParam<Setting> {};

TEST_P(FusedAgainstModules, LossesAndEveryGradient) {
  const Setting setting = GetParam();
  if (!isa_available(setting.isa)) GTEST_SKIP() << "this processor has no " << isa_name(setting.isa);
  Fixture f(setting.dropout);
  const Batch batch = random_batch(kLengths);
  const DropoutKey key{77, 5, 2};
  FusedGpt engine(f.options, f.parameters(), {false, setting.text_padding, 0, 2, setting.isa});
  const FusedLosses losses = engine.forward_backward(batch, key, kTextScale, kMelScale);
  const Truth truth =
      module_truth(f.options, batch, setting.text_padding ? BatchLayout::kPackedTextPadded : BatchLayout::kPacked, key);
  expect_losses(losses, truth.losses, 3e-7);
  EXPECT_EQ(losses.mel_top1, truth.losses.mel_top1);
  EXPECT_EQ(losses.mel_top5, truth.losses.mel_top5);
  expect_gradients(f.grads, truth, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Settings, FusedAgainstModules,
                         ::testing::Values(Setting{0, false, best_isa()}, Setting{0, true, best_isa()},
                                           Setting{0.1, false, best_isa()}, Setting{0.3, true, best_isa()},
                                           Setting{0.1, true, Isa::kPortable}, Setting{0.1, false, Isa::kAvx2},
                                           Setting{0.1, false, Isa::kAvx512}));

TEST(FusedGpt, PaddedLayoutOfTheModulesGivesTheSameLosses) {
  Fixture f;
  const Batch batch = random_batch(kLengths, 4);
  FusedGpt engine(f.options, f.parameters(), {false, true, 0, 1, best_isa()});
  expect_losses(engine.evaluate(batch), module_truth(f.options, batch, BatchLayout::kPadded, {}).losses, 3e-7);
}

TEST(FusedGpt, TheWorkedExampleOfTheSpecification) {
  Fixture f;
  FusedGpt engine(f.options, f.parameters(), {false, true, 0, 1, best_isa()});
  const FusedLosses l = engine.evaluate(worked_example());
  EXPECT_NEAR(l.text_loss_sum / 7, 4.084428781, 3e-6);
  EXPECT_NEAR(l.mel_loss_sum / 8, 3.564875492, 3e-6);
  EXPECT_EQ(l.mel_top1, 1);
}

// Gradients against differences of the loss itself, without any other implementation. Step and limit: float losses
// carry about 1e-6, a difference over 2 * 0.02 then 3e-5.
TEST(FusedGpt, GradientsAreTheSlopesOfTheLoss) {
  Fixture f(0.1);
  const Batch batch = random_batch({{4, 6}, {2, 9}});
  const DropoutKey key{3, 1, 0};
  FusedGpt engine(f.options, f.parameters(), {false, false, 0, 1, best_isa()});
  const auto loss = [&] {
    Fixture other = f;
    FusedGpt again(other.options, other.parameters(), {false, false, 0, 1, best_isa()});
    const FusedLosses l = again.forward_backward(batch, key, kTextScale, kMelScale);
    return l.text_loss_sum * kTextScale + l.mel_loss_sum * kMelScale;
  };
  engine.forward_backward(batch, key, kTextScale, kMelScale);
  for (auto& [name, value] : f.values) {
    // Along the gradient itself, so that the slope is its squared length over its length.
    const std::vector<float> start = value, &g = f.grads.at(name);
    double length = 0;
    for (const float v : g) length += static_cast<double>(v) * v;
    length = std::sqrt(length);
    const double step = 0.01;
    double slope = 0;
    for (const double sign : {1.0, -1.0}) {
      for (std::size_t i = 0; i < value.size(); ++i)
        value[i] = static_cast<float>(start[i] + sign * step * g[i] / length);
      slope += sign * loss() / (2 * step);
    }
    value = start;
    EXPECT_NEAR(slope, length, 2e-3 * length + 1e-4) << name;
  }
}

TEST(FusedGpt, BitsDoNotDependOnThreads) {
  for (const bool bf16 : {false, true}) {
    Fixture one(0.1), three(0.1);
    const Batch batch = random_batch(kLengths);
    FusedGpt a(one.options, one.parameters(), {bf16, false, 512, 1, best_isa()});
    FusedGpt b(three.options, three.parameters(), {bf16, false, 0, 3, best_isa()});
    const FusedLosses x = a.forward_backward(batch, {1, 2, 3}, kTextScale, kMelScale);
    const FusedLosses y = b.forward_backward(batch, {1, 2, 3}, kTextScale, kMelScale);
    EXPECT_EQ(x.text_loss_sum, y.text_loss_sum);
    EXPECT_EQ(x.mel_loss_sum, y.mel_loss_sum);
    for (const auto& [key, g] : one.grads) EXPECT_EQ(g, three.grads.at(key)) << key;
  }
}

TEST(FusedGpt, Bf16StaysCloseToTheModulesInDouble) {
  for (const Isa isa : {best_isa(), Isa::kPortable}) {
    Fixture f(0.1);
    const Batch batch = random_batch(kLengths);
    const DropoutKey key{8, 0, 0};
    FusedGpt engine(f.options, f.parameters(), {true, false, 0, 2, isa});
    const FusedLosses losses = engine.forward_backward(batch, key, kTextScale, kMelScale);
    const Truth truth = module_truth(f.options, batch, BatchLayout::kPacked, key);
    expect_losses(losses, truth.losses, 2e-3);
    for (const auto& [name, mine] : f.grads) {
      double dot = 0, a = 0, b = 0;
      const auto& want = truth.grads.at(name);
      for (std::size_t i = 0; i < want.size(); ++i) {
        // The gradient of the key biases is rounding noise.
        if (name.ends_with("c_attn.bias") && i >= 64 && i < 128) continue;
        dot += mine[i] * want[i];
        a += static_cast<double>(mine[i]) * mine[i];
        b += want[i] * want[i];
      }
      EXPECT_GT(dot / std::sqrt(a * b), 0.999) << name;
      EXPECT_NEAR(std::sqrt(a / b), 1, 0.02) << name;
    }
  }
}

TEST(FusedGpt, MicroBatchesAddUpAndAWindowStartsFresh) {
  Fixture f(0.1), first(0.1), second(0.1);
  const Batch a = random_batch({{5, 9}, {8, 3}}, 1), b = random_batch({{2, 40}}, 2);
  FusedGpt engine(f.options, f.parameters(), {false, false, 64, 2, best_isa()});
  for (auto& [key, g] : f.grads) {
    if (key != "text_embedding.weight" && key != "mel_embedding.weight") std::fill(g.begin(), g.end(), std::nanf(""));
  }
  engine.begin_window();
  engine.forward_backward(a, {1, 1, 0}, kTextScale, kMelScale);
  engine.forward_backward(b, {1, 1, 1}, kTextScale, kMelScale);
  FusedGpt(first.options, first.parameters(), {}).forward_backward(a, {1, 1, 0}, kTextScale, kMelScale);
  FusedGpt(second.options, second.parameters(), {}).forward_backward(b, {1, 1, 1}, kTextScale, kMelScale);
  for (const auto& [key, g] : f.grads) {
    float largest = 0, worst = 0;
    for (std::size_t i = 0; i < g.size(); ++i) {
      const float want = first.grads.at(key)[i] + second.grads.at(key)[i];
      largest = std::max(largest, std::abs(want));
      worst = std::max(worst, std::isnan(g[i]) ? INFINITY : std::abs(g[i] - want));
    }
    EXPECT_LE(worst, 1e-6f * largest) << key;
  }
  // The next window forgets all of it, and its flags are those of its own rows.
  engine.begin_window();
  engine.forward_backward(b, {1, 1, 1}, kTextScale, kMelScale);
  for (const auto& [key, g] : f.grads) EXPECT_EQ(g, second.grads.at(key)) << key;
  const std::uint8_t* touched = engine.touched_rows("mel_embedding.weight");
  ASSERT_NE(touched, nullptr);
  const auto& g = f.grads.at("mel_embedding.weight");
  for (std::size_t r = 0; r < 40; ++r) {
    const bool used = r == 38 || std::find(b.codes.begin(), b.codes.end(), static_cast<int>(r)) != b.codes.end();
    EXPECT_EQ(touched[r], used) << r;
    EXPECT_EQ(std::any_of(g.begin() + r * 64, g.begin() + (r + 1) * 64, [](float v) { return v != 0; }), used) << r;
  }
  EXPECT_EQ(engine.touched_rows("gpt.ln_f.weight"), nullptr);
}

// Thin matrices for every product of the blocks, of ranks from 0 to the whole width, and where their results go.
struct Thin {
  std::map<std::string, FusedThin> sites;
  std::map<std::string, std::vector<float>> numbers;

  explicit Thin(const Fixture& f) {
    const std::int64_t ranks[] = {5, 64, 16, 0, 1, 33};
    for (const auto& [key, value] : f.values) {
      const bool product =
          key.ends_with("attn.c_attn.weight") || key.ends_with("c_proj.weight") || key.ends_with("c_fc.weight");
      if (!product) continue;
      const std::int64_t in = key.ends_with("mlp.c_proj.weight") ? 256 : 64;
      make(key, ranks[sites.size() % 6], in, static_cast<std::int64_t>(value.size()) / in);
    }
  }
  void make(const std::string& key, std::int64_t rank, std::int64_t in, std::int64_t out) {
    const auto some = [&](const char* what, std::int64_t count) {
      std::vector<float>& v = numbers[key + what];
      v = testing::numbers(filled(key + what, {std::max<std::int64_t>(count, 1)}, 0.5));
      return v.data();
    };
    const auto none = [&](const char* what, std::int64_t count) {
      std::vector<float>& v = numbers[key + what];
      v.assign(static_cast<std::size_t>(count), std::nanf(""));  // the first pass of a window overwrites
      return v.data();
    };
    sites[key] = {rank,
                  some(".a", rank * in),
                  some(".b", out * rank),
                  none(".a_dw", rank * out),
                  none(".dw_b", rank * in),
                  none(".columns", out)};
  }
  FusedParameters in_place_of_gradients(Fixture& f) const {
    FusedParameters p = f.parameters();
    for (auto& [key, parameter] : p) {
      const auto found = sites.find(key);
      parameter.grad = nullptr;
      if (found != sites.end()) parameter.thin = &found->second;
    }
    return p;
  }
};

// Largest error of the products that `thin` received of the gradients, relative to the largest number of each.
void expect_products(const Fixture& f, const Thin& thin, const std::map<std::string, at::Tensor>& gradients,
                     double limit) {
  const auto tensor = [](const std::vector<float>& v, at::IntArrayRef shape) {
    return at::tensor(std::vector<double>(v.begin(), v.end()), at::kDouble)
        .narrow(0, 0, c10::multiply_integers(shape))
        .view(shape);
  };
  for (const auto& [key, t] : thin.sites) {
    const at::Tensor& g = gradients.at(key);
    const std::int64_t in = g.size(0), out = g.size(1);
    const auto expect = [&, name = key](const char* what, const at::Tensor& want) {
      if (want.numel() == 0) return;
      const at::Tensor mine = tensor(thin.numbers.at(name + what), want.sizes());
      const double largest = want.abs().max().item<double>();
      EXPECT_GT(largest, 0) << name << what;
      EXPECT_LE((mine - want).abs().max().item<double>(), limit * largest) << name << what;
    };
    expect(".a_dw", at::mm(tensor(thin.numbers.at(key + ".a"), {t.rank, in}), g));
    expect(".dw_b", at::mm(g, tensor(thin.numbers.at(key + ".b"), {out, t.rank})).t());
    expect(".columns", (g * tensor(f.values.at(key), {in, out})).sum(0));
  }
}

std::map<std::string, at::Tensor> weight_gradients(const Fixture& f, const Thin& thin,
                                                   const std::vector<Batch>& batches) {
  std::map<std::string, at::Tensor> sums;
  std::uint32_t micro = 0;
  for (const Batch& batch : batches) {
    const Truth truth = module_truth(f.options, batch, BatchLayout::kPacked, {1, 1, micro++});
    for (const auto& [key, t] : thin.sites) {
      const std::int64_t in = key.ends_with("mlp.c_proj.weight") ? 256 : 64;
      const at::Tensor g = at::tensor(truth.grads.at(key), at::kDouble).view({in, -1});
      sums[key] = sums.contains(key) ? sums.at(key) + g : g;
    }
  }
  return sums;
}

TEST(FusedGpt, ThinMatricesReceiveProductsOfTheWeightGradients) {
  const std::vector<Batch> batches{random_batch(kLengths, 1), random_batch({{2, 40}}, 2)};
  for (const Setting setting : {Setting{0.1, false, best_isa()}, Setting{0.1, false, Isa::kPortable}}) {
    for (const bool bf16 : {false, true}) {
      Fixture f(setting.dropout);
      Thin thin(f), more_threads(f);
      const auto truth = weight_gradients(f, thin, batches);
      const auto run = [&](Thin& to, int threads) {
        FusedGpt engine(f.options, to.in_place_of_gradients(f), {bf16, false, 0, threads, setting.isa});
        engine.begin_window();
        std::uint32_t micro = 0;
        for (const Batch& batch : batches) engine.forward_backward(batch, {1, 1, micro++}, kTextScale, kMelScale);
      };
      run(thin, 1);
      run(more_threads, 3);
      expect_products(f, thin, truth, bf16 ? 0.03 : 1e-5);
      for (const auto& [key, v] : thin.numbers) EXPECT_EQ(v, more_threads.numbers.at(key)) << key;
    }
  }
}

TEST(FusedGpt, ThinMatricesMayLoseRanksAndMove) {
  for (const bool bf16 : {false, true}) {
    Fixture f(0.1);
    Thin thin(f);
    const std::vector<Batch> batches{random_batch({{6, 17}, {9, 2}})};
    FusedGpt engine(f.options, thin.in_place_of_gradients(f), {bf16, false, 0, 2, best_isa()});
    engine.forward_backward(batches[0], {1, 1, 0}, kTextScale, kMelScale);
    std::map<std::string, std::vector<float>> before = std::move(thin.numbers);
    thin.numbers.clear();
    for (const auto& [key, t] : std::map(thin.sites)) {
      const std::int64_t in = key.ends_with("mlp.c_proj.weight") ? 256 : 64;
      thin.make(key, t.rank / 2, in, static_cast<std::int64_t>(f.values.at(key).size()) / in);
    }
    engine.refresh_weights();
    engine.begin_window();
    engine.forward_backward(batches[0], {1, 1, 0}, kTextScale, kMelScale);
    expect_products(f, thin, weight_gradients(f, thin, batches), bf16 ? 0.03 : 1e-5);
    thin.sites.at("gpt.h.0.attn.c_attn.weight").rank += 64;
    EXPECT_ANY_THROW(engine.refresh_weights()) << "more ranks than at the start";
  }
}

TEST(FusedGpt, FrozenParametersAreNotComputedAndChangeNothingElse) {
  Fixture all(0.1);
  const Batch batch = random_batch(kLengths);
  FusedGpt(all.options, all.parameters(), {}).forward_backward(batch, {}, kTextScale, kMelScale);
  const std::vector<std::vector<std::string>> trained{{"text_embedding.weight", "text_head.weight"},
                                                      {"gpt.h.1.attn.c_attn.bias", "gpt.h.2.mlp.c_fc.weight"},
                                                      {"gpt.h.2.ln_1.weight"},
                                                      {"mel_head.bias"},
                                                      {"gpt.ln_f.bias", "final_norm.weight"},
                                                      {"speed_emb.weight"},
                                                      {}};
  for (const auto& keys : trained) {
    Fixture f(0.1);
    FusedParameters parameters = f.parameters();
    for (auto& [key, p] : parameters) {
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) p.grad = nullptr;
    }
    FusedGpt(f.options, parameters, {}).forward_backward(batch, {}, kTextScale, kMelScale);
    for (const auto& key : keys) EXPECT_EQ(f.grads.at(key), all.grads.at(key)) << key;
  }
}

TEST(FusedGpt, EvaluationIsTheForwardPassAndCountsPerSample) {
  Fixture f(0.3);
  const Batch batch = random_batch(kLengths);
  FusedGpt engine(f.options, f.parameters(), {false, false, 0, 2, best_isa()});
  std::vector<FusedLosses> samples;
  const FusedLosses total = engine.evaluate(batch, &samples);
  for (const auto& [key, g] : f.grads) {
    EXPECT_TRUE(std::all_of(g.begin(), g.end(), [](float v) { return v == 0; })) << key;
  }
  Fixture plain(0);
  const FusedLosses same = FusedGpt(plain.options, plain.parameters(), {}).forward_backward(batch, {}, 1, 1);
  EXPECT_EQ(total.text_loss_sum, same.text_loss_sum);
  EXPECT_EQ(total.mel_loss_sum, same.mel_loss_sum);
  ASSERT_EQ(samples.size(), kLengths.size());
  for (std::size_t i = 0; i < samples.size(); ++i) {
    EXPECT_EQ(samples[i].text_tokens, kLengths[i].first + 1);
    EXPECT_EQ(samples[i].mel_tokens, kLengths[i].second + 1);
    Batch alone;
    add_sample(alone, {batch.text.begin() + batch.text_begin[i], batch.text.begin() + batch.text_begin[i + 1]},
               {batch.codes.begin() + batch.code_begin[i], batch.codes.begin() + batch.code_begin[i + 1]});
    const auto k = static_cast<std::ptrdiff_t>(i);
    alone.condition = {batch.condition.begin() + k * 2048, batch.condition.begin() + (k + 1) * 2048};
    alone.emo_vec = {batch.emo_vec.begin() + k * 64, batch.emo_vec.begin() + (k + 1) * 64};
    const FusedLosses one = engine.evaluate(alone);
    EXPECT_NEAR(samples[i].text_loss_sum, one.text_loss_sum, 1e-5) << i;
    EXPECT_NEAR(samples[i].mel_loss_sum, one.mel_loss_sum, 3e-5) << i;
    EXPECT_EQ(samples[i].mel_top1, one.mel_top1) << i;
  }
}

TEST(FusedGpt, Bf16CopiesFollowTheParameters) {
  Fixture f;
  const Batch batch = random_batch({{4, 5}});
  FusedGpt engine(f.options, f.parameters(), {true, false, 0, 1, best_isa()});
  const FusedLosses before = engine.evaluate(batch);
  for (float& v : f.values.at("gpt.h.0.mlp.c_fc.weight")) v *= -1;
  EXPECT_EQ(engine.evaluate(batch).mel_loss_sum, before.mel_loss_sum) << "the copy is stale until it is refreshed";
  engine.refresh_weights();
  EXPECT_NE(engine.evaluate(batch).mel_loss_sum, before.mel_loss_sum);
  const Bf16* copy = engine.bf16_copy("gpt.h.0.mlp.c_fc.weight");
  ASSERT_NE(copy, nullptr);
  EXPECT_EQ(copy[5].bits, to_bf16(f.values.at("gpt.h.0.mlp.c_fc.weight")[5]).bits);
  EXPECT_EQ(engine.bf16_copy("gpt.h.0.mlp.c_fc.bias"), nullptr);
}

TEST(FusedGpt, OddShapesOfTheModel) {
  for (const std::int64_t heads : {1, 2, 16, 64}) {
    Fixture f(0.1, heads);
    const Batch batch = random_batch({{6, 17}, {9, 2}});
    FusedGpt(f.options, f.parameters(), {}).forward_backward(batch, {4, 4, 4}, kTextScale, kMelScale);
    expect_gradients(f.grads, module_truth(f.options, batch, BatchLayout::kPacked, {4, 4, 4}), 1e-5);
  }
}

TEST(FusedGpt, RefusesWhatItCannotRun) {
  Fixture f;
  FusedParameters missing = f.parameters();
  missing.erase("final_norm.bias");
  EXPECT_THROW(FusedGpt(f.options, missing, {}), Error);
  FusedParameters wrong = f.parameters();
  wrong.at("text_head.bias").numel++;
  EXPECT_THROW(FusedGpt(f.options, wrong, {}), Error);
  FusedGpt engine(f.options, f.parameters(), {});
  Batch online = random_batch({{4, 5}});
  online.condition.clear();
  EXPECT_THROW(engine.evaluate(online), Error);
  Batch id = random_batch({{4, 5}});
  id.text[2] = 51;
  EXPECT_THROW(engine.evaluate(id), Error);
  id.text[2] = -1;
  EXPECT_THROW(engine.evaluate(id), Error);
  EXPECT_THROW(engine.evaluate(random_batch({{41, 5}})), Error);
  EXPECT_THROW(engine.evaluate(random_batch({{4, 62}})), Error);
  EXPECT_GT(engine.evaluate(random_batch({{40, 60}})).mel_loss_sum, 0);
}

TEST(FusedGpt, ArenaBytesGrowWithTokens) {
  const ModelOptions options = tiny_options();
  const auto small = FusedGpt::arena_bytes(options, {}, 1000), large = FusedGpt::arena_bytes(options, {}, 8000);
  EXPECT_GT(large, 6 * small);
  FusedOptions bf16;
  bf16.bf16 = true;
  EXPECT_LT(FusedGpt::arena_bytes(options, bf16, 8000), large);
}

}  // namespace
}  // namespace train_gpt_v2::testing
