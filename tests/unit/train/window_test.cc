// Too little memory: halves of a micro-batch give what the whole gives.
#include "train_gpt_v2/train/window.h"

#include <gtest/gtest.h>

#include <map>

#include "support/fixture_run.h"
#include "support/small_memory.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/data/dataset.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/train/parameters.h"

namespace train_gpt_v2 {
namespace {

using testing::SmallMemory;

class OutOfMemory : public ::testing::TestWithParam<const char*> {
 protected:
  OutOfMemory()
      : options_(testing::fixture_options({std::string("train.engine=") + GetParam(), "train.layout=packed"})),
        tokenizer_(std::make_shared<const Tokenizer>(options_.data.tokenizer)),
        data_(options_.data.train_manifests, {}, options_.data, options_.model, tokenizer_),
        model_(options_.model) {
    configure_logging({LogLevel::kError, false});
    {
      const torch::NoGradGuard no_grad;
      initialise(model_, 7);
    }
    parameters_ = build_parameter_set(model_, options_, 1);
    std::string why;
    engine_ = make_engine(model_, options_, at::kFloat, why);
    engine_->parameters_changed();
    for (std::uint32_t i = 0; i < 12; ++i) data_.load(i, batches_[i / 6]);
  }
  ~OutOfMemory() override { configure_logging({LogLevel::kInfo, false}); }

  std::vector<WindowPart> parts() const {
    std::vector<WindowPart> parts;
    for (const Batch& batch : batches_) {
      parts.push_back({&batch, {1, 2, static_cast<std::uint32_t>(parts.size())}, 1e-2, 2e-2});
    }
    return parts;
  }
  std::map<std::string, torch::Tensor> gradients() const {
    std::map<std::string, torch::Tensor> all;
    for (const auto& item : model_.named_parameters()) {
      if (item.value().grad().defined()) all[item.key()] = item.value().grad().clone();
    }
    return all;
  }

  Options options_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  Dataset data_;
  UnifiedVoice model_;
  ParameterSet parameters_;
  std::unique_ptr<Engine> engine_;
  Batch batches_[2];
};

TEST_P(OutOfMemory, HalvesGiveTheGradientsOfTheWhole) {
  MemoryLimit unlimited;
  const WindowLosses whole = run_window(*engine_, parts(), 1, options_.model, unlimited, {});
  const auto expected = gradients();
  const std::int64_t positions = real_positions(batches_[0], options_.model);

  SmallMemory small(*engine_, options_.model, positions / 3);
  MemoryLimit limit;
  const WindowLosses halved = run_window(small, parts(), 1, options_.model, limit, {});
  EXPECT_GE(halved.retries, 2);  // a half is still too much
  EXPECT_LT(limit.too_many, positions);
  EXPECT_NEAR(halved.loss, whole.loss, 1e-6 * std::abs(whole.loss));
  EXPECT_TRUE(torch::allclose(halved.sums, whole.sums, 1e-6, 0));
  EXPECT_EQ(halved.positions, whole.positions);
  const auto found = gradients();
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& [name, gradient] : expected) {
    const double scale = gradient.abs().max().item<double>();
    EXPECT_LE((found.at(name) - gradient).abs().max().item<double>(), 1e-5 * scale + 1e-9) << name;
  }

  // What did not fit once is not tried again.
  const int failures = small.failures();
  EXPECT_EQ(run_window(small, parts(), 1, options_.model, limit, {}).retries, 0);
  EXPECT_EQ(small.failures(), failures);
}

TEST_P(OutOfMemory, OneSampleThatDoesNotFitIsStatus82) {
  SmallMemory small(*engine_, options_.model, 1);
  MemoryLimit limit;
  try {
    run_window(small, parts(), 1, options_.model, limit, {});
    FAIL() << "it fitted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "MEM001");
    EXPECT_EQ(error.status(), ExitStatus::kOutOfMemory);
  }
}

TEST_P(OutOfMemory, ValidationIsHalvedToo) {
  MemoryLimit unlimited, limit;
  const LossSums whole = evaluate_in_memory(*engine_, batches_[0], true, options_.model, unlimited);
  SmallMemory small(*engine_, options_.model, real_positions(batches_[0], options_.model) / 2);
  const LossSums halved = evaluate_in_memory(small, batches_[0], true, options_.model, limit);
  EXPECT_TRUE(torch::allclose(halved.values, whole.values, 1e-6, 0));
  ASSERT_EQ(halved.samples.size(), whole.samples.size());
  for (std::size_t i = 0; i < whole.samples.size(); ++i) {
    EXPECT_NEAR(halved.samples[i].mel_loss_sum, whole.samples[i].mel_loss_sum, 1e-4);
  }
}

TEST_P(OutOfMemory, AStopBetweenMicroBatchesIsSeen) {
  MemoryLimit limit;
  WindowEvents events;
  events.stop = [] { return true; };
  EXPECT_TRUE(run_window(*engine_, parts(), 1, options_.model, limit, events).stopped);
}

// Whoever sends gradients during the last pass cannot begin anew: it is announced only where the size has fitted
// before.
TEST_P(OutOfMemory, TheLastPassIsAnnouncedForSizesThatFitted) {
  SmallMemory small(*engine_, options_.model, std::numeric_limits<std::int64_t>::max());
  MemoryLimit limit;
  int announced = 0;
  bool sent = false;
  WindowEvents events;
  events.begin = [&] { sent = false; };
  events.last_pass = [&] {
    ++announced;
    sent = true;
  };
  events.may_begin_anew = [&] { return !sent; };
  const auto window = [&] { return run_window(small, parts(), 1, options_.model, limit, events).retries; };
  EXPECT_EQ(window(), 0);
  EXPECT_EQ(announced, 0);  // moments and workspaces are still to come
  EXPECT_EQ(window(), 0);
  EXPECT_EQ(window(), 0);
  EXPECT_GE(announced, 1);

  // The last micro-batch grows beyond all that ran, and does not fit: halves, although gradients would be sent.
  const int before = announced;
  data_.load(12, batches_[1]);
  data_.load(13, batches_[1]);
  ASSERT_GT(real_positions(batches_[1], options_.model), limit.fits);
  small.set_room(real_positions(batches_[1], options_.model));
  EXPECT_EQ(window(), 1);
  EXPECT_EQ(announced, before + 1);  // by the last half: it is smaller than the micro-batch before it
  EXPECT_EQ(window(), 0);
  EXPECT_EQ(announced, before + 2);

  // Memory shrinks under a size that did fit, and its gradients are on their way.
  small.set_room(real_positions(slice(batches_[1], 4, 4), options_.model));
  std::vector<WindowPart> half{parts()[1]};
  const Batch second = slice(batches_[1], 4, 4);
  half[0].batch = &second;
  try {
    run_window(small, half, 1, options_.model, limit, events);
    FAIL() << "it began anew";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "MEM001");
    EXPECT_NE(error.report().find("sent to the other ranks"), std::string::npos);
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, OutOfMemory, ::testing::Values("fused", "modules"));

TEST(BatchSlice, PartsPutTogetherAreTheWhole) {
  Batch batch;
  batch.samples = {4, 5, 6};
  batch.ids = {"a", "b", "c"};
  batch.text = {1, 2, 3, 4, 5, 6};
  batch.text_begin = {0, 1, 3, 6};
  batch.codes = {9, 8};
  batch.code_begin = {0, 0, 1, 2};
  batch.condition = {1, 2, 3, 4, 5, 6};
  batch.emo_vec = {7, 8, 9};
  batch.features.assign(2 * 7, 0.f);
  for (std::size_t i = 0; i < batch.features.size(); ++i) batch.features[i] = static_cast<float>(i);
  batch.frame_begin = {0, 3, 4, 7};
  const Batch tail = slice(batch, 1, 2);
  EXPECT_EQ(tail.samples, (std::vector<std::uint32_t>{5, 6}));
  EXPECT_EQ(tail.ids, (std::vector<std::string>{"b", "c"}));
  EXPECT_EQ(tail.text, (std::vector<std::int32_t>{2, 3, 4, 5, 6}));
  EXPECT_EQ(tail.text_begin, (std::vector<std::int64_t>{0, 2, 5}));
  EXPECT_EQ(tail.codes, (std::vector<std::int32_t>{9, 8}));
  EXPECT_EQ(tail.code_begin, (std::vector<std::int64_t>{0, 1, 2}));
  EXPECT_EQ(tail.condition, (std::vector<float>{3, 4, 5, 6}));
  EXPECT_EQ(tail.emo_vec, (std::vector<float>{8, 9}));
  EXPECT_EQ(tail.features, (std::vector<float>{6, 7, 8, 9, 10, 11, 12, 13}));
  EXPECT_EQ(tail.frame_begin, (std::vector<std::int64_t>{0, 1, 4}));
  EXPECT_TRUE(tail.emo_features.empty());
  EXPECT_EQ(slice(batch, 0, 1).text, (std::vector<std::int32_t>{1}));
}

}  // namespace
}  // namespace train_gpt_v2
