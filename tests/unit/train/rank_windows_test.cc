// Windows of several ranks with real engines: sums that overlap backward, memory that is too small on one of them, an
// error in the middle of a window of one of them.
#include <gmock/gmock.h>

#include <limits>
#include <map>

#include "support/fixture_run.h"
#include "support/rank_processes.h"
#include "support/small_memory.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/train/trainer.h"

namespace train_gpt_v2 {
namespace {

using testing::run_ranks;
using testing::SmallMemory;
using testing::TemporaryFolder;

constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

// A model on the fixtures' data, as one rank has it.
struct Rig {
  Rig(Ranks& all, const std::string& engine)
      : ranks(all),
        options(testing::fixture_options({"train.engine=" + engine, "train.layout=packed", "train.max_steps=20",
                                          "train.grad_accumulation=4", "validation.interval=0"})),
        tokenizer(std::make_shared<const Tokenizer>(options.data.tokenizer)),
        data(options.data.train_manifests, {}, options.data, options.model, tokenizer),
        model(options.model) {
    configure_logging({LogLevel::kError, false});
    {
      const torch::NoGradGuard no_grad;
      initialise(model, 7);
    }
    parameters = build_parameter_set(model, options, 1);
    std::string why;
    executor = make_engine(model, options, at::kFloat, why);
    executor->parameters_changed();
    std::vector<std::int64_t> stages;
    for (const TrainableTensor& tensor : parameters.tensors) {
      stages.push_back(gradient_stage(options.model, tensor.name));
    }
    sync = std::make_unique<GradientSync>(ranks, parameters, stages, BucketBytes{1 << 10, 1 << 14});
    events.begin = [this] {
      sync->begin_window();
      for (TrainableTensor& tensor : parameters.tensors) tensor.grad.zero_();
    };
    events.last_pass = [this] { sync->begin_last_pass(); };
    events.may_begin_anew = [this] { return !sync->begun(); };
    for (std::uint32_t i = 0; i < 6; ++i) {
      data.load((6 * static_cast<std::uint32_t>(ranks.rank()) + i) % 24, batches[i / 3]);
    }
  }

  // The summed gradients of a window: two micro-batches on every rank.
  std::vector<torch::Tensor> window(Engine& engine, MemoryLimit& limit) {
    std::vector<WindowPart> parts;
    for (const Batch& batch : batches) {
      parts.push_back({&batch, {1, 2, static_cast<std::uint32_t>(parts.size())}, 1e-2, 2e-2});
    }
    run_window(engine, parts, 1, options.model, limit, events);
    sync->finish();
    std::vector<torch::Tensor> all;
    for (const TrainableTensor& tensor : parameters.tensors) all.push_back(tensor.grad.clone());
    return all;
  }

  Ranks& ranks;
  Options options;
  std::shared_ptr<const Tokenizer> tokenizer;
  Dataset data;
  UnifiedVoice model;
  ParameterSet parameters;
  std::unique_ptr<Engine> executor;
  std::unique_ptr<GradientSync> sync;
  WindowEvents events;
  Batch batches[2];
};

class RankWindows : public ::testing::TestWithParam<const char*> {};

TEST_P(RankWindows, WhatIsToldFinalIsFinal) {
  Ranks one;
  Rig rig(one, GetParam());
  std::map<std::size_t, torch::Tensor> told;
  rig.executor->on_gradients([&](std::int64_t stage) {
    for (std::size_t i = 0; i < rig.parameters.tensors.size(); ++i) {
      const TrainableTensor& tensor = rig.parameters.tensors[i];
      if (gradient_stage(rig.options.model, tensor.name) == stage) told[i] = tensor.grad.clone();
    }
  });
  MemoryLimit limit;
  const std::vector<torch::Tensor> found = rig.window(*rig.executor, limit);
  ASSERT_EQ(told.size(), found.size());
  for (const auto& [i, gradient] : told) {
    EXPECT_TRUE(gradient.equal(found[i])) << rig.parameters.tensors[i].name;
    EXPECT_GT(gradient.abs().sum().item<float>(), 0) << rig.parameters.tensors[i].name;
  }
}

// With three ranks the order of summation depends on what a bucket holds, so equal bits say that it was the same.
TEST_P(RankWindows, SumsDuringBackwardHaveTheBitsOfSumsBehindIt) {
  const auto statuses = run_ranks(3, [](Ranks& ranks) {
    Rig rig(ranks, GetParam());
    if (rig.sync->buckets() < 8) return 1;
    std::int64_t begun_at = -1;
    std::vector<std::int64_t> told;
    rig.executor->on_gradients([&](std::int64_t stage) {
      told.push_back(stage);
      rig.sync->stage_is_final(stage);
      if (begun_at < 0 && rig.sync->begun()) begun_at = stage;
    });
    MemoryLimit unknown, fitted;
    fitted.fits = kNoLimit;
    const std::vector<torch::Tensor> behind = rig.window(*rig.executor, unknown);
    if (rig.sync->sent_during_backward() != 0 || begun_at != -1) return 2;
    for (int repeat = 0; repeat < 2; ++repeat) {
      told.clear();
      const std::vector<torch::Tensor> during = rig.window(*rig.executor, fitted);
      if (begun_at != 0) return 3;  // the heads are on their way before the blocks are
      if (rig.sync->sent_during_backward() != rig.sync->buckets()) return 4;
      std::vector<std::int64_t> expected;
      for (int pass = 0; pass < 2; ++pass) {
        for (std::int64_t stage = 0; stage < gradient_stages(rig.options.model); ++stage) expected.push_back(stage);
      }
      if (told != expected) return 5;
      float sum = 0;
      for (std::size_t i = 0; i < behind.size(); ++i) {
        sum += behind[i].abs().sum().item<float>();
        if (!during[i].equal(behind[i])) return 6;
      }
      if (!(sum > 0)) return 7;
    }
    return 0;
  });
  EXPECT_THAT(statuses, ::testing::Each(0));
}

TEST_P(RankWindows, OneRankRunsInHalves) {
  const auto statuses = run_ranks(2, [](Ranks& ranks) {
    Rig rig(ranks, GetParam());
    rig.executor->on_gradients([&](std::int64_t stage) { rig.sync->stage_is_final(stage); });
    MemoryLimit unlimited, limit;
    const std::vector<torch::Tensor> whole = rig.window(*rig.executor, unlimited);
    const std::int64_t room = real_positions(rig.batches[0], rig.options.model) / 2;
    SmallMemory engine(*rig.executor, rig.options.model, ranks.rank() == 1 ? room : kNoLimit);
    for (int repeat = 0; repeat < 3; ++repeat) {  // the last one sends during backward, from the second half on
      const std::vector<torch::Tensor> halved = rig.window(engine, limit);
      for (std::size_t i = 0; i < whole.size(); ++i) {
        const double scale = whole[i].abs().max().item<double>();
        if ((halved[i] - whole[i]).abs().max().item<double>() > 1e-5 * scale + 1e-8) return 1;
      }
    }
    if (rig.sync->sent_during_backward() == 0) return 2;
    return (engine.failures() > 0) == (ranks.rank() == 1) ? 0 : 3;
  });
  EXPECT_THAT(statuses, ::testing::Each(0));
}

// Runs out of memory in every pass from the n-th on, when all gradients are there and may have been sent.
class FailsLater final : public Engine {
 public:
  FailsLater(Engine& inner, int from) : inner_(inner), left_(from) {}
  std::string name() const override { return inner_.name(); }
  void begin_window() override { inner_.begin_window(); }
  void on_gradients(StageListener listener) override { inner_.on_gradients(std::move(listener)); }
  LossSums evaluate(const Batch& batch, bool per_sample) override { return inner_.evaluate(batch, per_sample); }
  void parameters_changed() override { inner_.parameters_changed(); }
  LossSums forward_backward(const Batch& batch, const DropoutKey& key, double text_scale, double mel_scale) override {
    const LossSums sums = inner_.forward_backward(batch, key, text_scale, mel_scale);
    if (--left_ < 0) throw std::bad_alloc();
    return sums;
  }

 private:
  Engine& inner_;
  int left_;
};

// Trains with moments spread over the ranks until `engine` fails; 0 when it ended as it should.
int train_until_it_fails(Rig& rig, Engine& engine, const std::string& folder, std::int64_t steps, bool sent) {
  std::vector<torch::Tensor> values;
  for (const TrainableTensor& tensor : rig.parameters.tensors) values.push_back(tensor.value);
  OptimizerShards shards(rig.ranks, values);
  AdamW optimizer(rig.parameters, rig.options.optimizer, &shards);
  Monitors monitors(rig.options.checkpoint, rig.options.early_stopping);
  StabilityGuard guard(rig.options.stability, /*scaled=*/false);
  TrainState state;
  const RunFacts facts;
  Adaptation adaptation(rig.model, rig.options, nullptr, 20, 20);
  CheckpointParts core{rig.model, rig.parameters, optimizer,   nullptr, nullptr,   monitors,
                       guard,     state,          rig.options, facts,   adaptation};
  const LearningRateSchedule schedule(rig.options.optimizer, 20);
  const Sampler sampler(rig.data, PlanSettings::from(rig.options));
  const auto rank = static_cast<std::uint64_t>(rig.ranks.rank());
  BatchLoader loader(rig.data, std::make_unique<EpochSequence>(sampler, BatchCursor{}), {1, 2, rank, 2, 2});
  const std::string own = rank == 0 ? folder : "";
  CheckpointStore store(own, rig.options.checkpoint);
  Reporter reporter(own, rig.options, rig.parameters, at::kCPU, TrainState{}, 20);
  PythonExtras extras;
  Trainer trainer({core, schedule, engine, rig.ranks, *rig.sync, loader, nullptr, nullptr, store, reporter, extras,
                   folder, "test", std::nullopt, 20});
  try {
    trainer.run();
  } catch (const SharedError& error) {
    if (error.code() != "MEM001" || error.details().back() != "on rank 1") return 1;
    if ((error.report().find("sent to the other ranks") != std::string::npos) != sent) return 2;
    return state.step == steps ? 0 : 3;
  }
  return 4;
}

TEST_P(RankWindows, AnErrorWithinAWindowLosesNoStep) {
  // Two passes per window. In the first one halves are tried down to a sample; in the other sums are under way, which
  // is an error at once.
  for (const int passes : {2 * 2, 2 * 4 + 1}) {
    const TemporaryFolder folder;
    const auto statuses = run_ranks(2, [&](Ranks& ranks) {
      Rig rig(ranks, GetParam());
      rig.executor->on_gradients([&](std::int64_t stage) { rig.sync->stage_is_final(stage); });
      FailsLater engine(*rig.executor, ranks.rank() == 1 ? passes : 1 << 20);
      return train_until_it_fails(rig, engine, folder.path(), passes / 2, passes % 2 == 1);
    });
    EXPECT_THAT(statuses, ::testing::Each(0)) << passes;
    const LoadedFile saved = read_tensor_file(folder.file("latest.pt"), true);
    EXPECT_EQ(saved.root.at("step").as_int(), passes / 2);
    EXPECT_GT(saved.root.at("optimizer").at("state").size(), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, RankWindows, ::testing::Values("fused", "modules"));

}  // namespace
}  // namespace train_gpt_v2
