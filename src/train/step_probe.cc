#include "train_gpt_v2/train/step_probe.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/train/device.h"
#include "train_gpt_v2/train/memory.h"

namespace train_gpt_v2 {
namespace {

class Stopwatch {
 public:
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    begin_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

LossSums forward_backward(CheckpointParts& parts, Engine& engine, const Batch& batch) {
  const TrainOptions& train = parts.options.train;
  engine.begin_window();
  parts.adaptation.begin_window(parts.parameters);
  LossSums sums = engine.forward_backward(batch, {static_cast<std::uint64_t>(train.seed), 0, 0},
                                          train.text_loss_weight / static_cast<double>(batch.text_tokens()),
                                          train.mel_loss_weight / static_cast<double>(batch.mel_tokens()));
  sums.values = sums.values.cpu();  // a GPU is through only now
  return sums;
}

StepCost measured_step(CheckpointParts& parts, Engine& engine, const Batch& batch) {
  const TrainOptions& train = parts.options.train;
  StepCost cost;
  Stopwatch watch;
  const double text_scale = train.text_loss_weight / static_cast<double>(batch.text_tokens());
  const double mel_scale = train.mel_loss_weight / static_cast<double>(batch.mel_tokens());
  const LossSums sums = forward_backward(parts, engine, batch);
  const torch::Tensor values = sums.values;
  cost.loss = text_scale * values[0].item<double>() + mel_scale * values[1].item<double>();
  cost.positions = sums.padded_positions;
  cost.forward_backward_seconds = watch.lap();
  parts.adaptation.complete_gradients(1.0);
  cost.grad_norm = parts.optimizer.unscale_and_clip(1.0, train.grad_clip, train.clip_per_group).norm;
  parts.optimizer.step(1.0);
  engine.parameters_changed();
  if (parts.ema) parts.ema->update();
  cost.update_seconds = watch.lap();
  return cost;
}

}  // namespace

StepCost probe_step(CheckpointParts& parts, Engine& engine, const Batch& batch, at::Device device) {
  reset_peak_memory(device);
  try {
    StepCost cost = measured_step(parts, engine, batch);
    cost.peak_memory = peak_memory_bytes(device);
    return cost;
  } catch (const std::exception& failure) {
    if (!is_out_of_memory(failure)) throw;
  }
  throw Error("MEM001", concat("out of memory in a step of ", batch.count(), " samples, ",
                               batch.text_tokens() + batch.mel_tokens(), " targets"))
      .fix("lower train.batch_size and raise train.grad_accumulation by the same factor, or let \"auto\" choose");
}

std::optional<double> seconds_per_position(CheckpointParts& parts, Engine& engine, const Batch& batch) {
  try {
    forward_backward(parts, engine, batch);  // the first one makes buffers and chooses kernels
    Stopwatch watch;
    const LossSums sums = forward_backward(parts, engine, batch);
    return watch.lap() / static_cast<double>(sums.positions);
  } catch (const std::exception& failure) {
    if (!is_out_of_memory(failure)) throw;
  }
  release_cached_memory();
  return std::nullopt;
}

std::vector<std::uint32_t> longest_samples(const Dataset& dataset, std::size_t count) {
  std::vector<std::uint32_t> samples(dataset.epoch_size());
  std::iota(samples.begin(), samples.end(), 0U);
  const auto length = [&](std::uint32_t sample) {
    const SampleInfo info = dataset.info(sample);
    return info.text_length + info.code_length;
  };
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(std::min(count, samples.size()));
  std::partial_sort(samples.begin(), middle, samples.end(), [&](std::uint32_t a, std::uint32_t b) {
    const std::int64_t one = length(a), two = length(b);
    return one != two ? one > two : a < b;
  });
  samples.erase(middle, samples.end());
  return samples;
}

Batch load_batch(const Dataset& dataset, std::span<const std::uint32_t> samples, std::size_t count) {
  Batch batch;
  for (std::size_t tried = 0; tried < count + samples.size() && batch.ids.size() < count; ++tried) {
    try {
      dataset.load(samples[tried % samples.size()], batch);
    } catch (const Error&) {
      if (tried + 1 >= samples.size() && batch.ids.empty()) throw;  // not one of them can be loaded
    }
  }
  return batch;
}

}  // namespace train_gpt_v2
