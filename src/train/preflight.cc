#include "train_gpt_v2/train/preflight.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/train/memory.h"

namespace train_gpt_v2 {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::int64_t positions_of(const Dataset& dataset, std::span<const std::uint32_t> batch) {
  std::int64_t positions = 0;
  for (const std::uint32_t sample : batch) {
    const SampleInfo info = dataset.info(sample);
    positions += info.text_length + info.code_length + 4 + dataset.model().condition_num_latent + 2;
  }
  return positions;
}

StepCost finite_step(const PreflightParts& parts, std::span<const std::uint32_t> samples) {
  const Batch batch = load_batch(parts.train, samples, samples.size());
  const StepCost cost = probe_step(parts.core, parts.engine, batch, parts.device);
  if (std::isfinite(cost.loss) && std::isfinite(cost.grad_norm)) return cost;
  throw Error("NUM020", concat("the first step is not finite: loss ", cost.loss, ", gradient norm ", cost.grad_norm))
      .detail(concat("samples ", join(batch.ids, " ")))
      .fix("look at the weights with train_gpt_v2 inspect; try train.precision \"fp32\"");
}

// One step on the longest batch of the epoch and one on the middle one.
void measure_steps(const PreflightParts& parts, PreflightResult& result) {
  std::vector<std::size_t> order(parts.plan.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::vector<std::int64_t> positions;
  positions.reserve(parts.plan.size());
  for (std::size_t i = 0; i < parts.plan.size(); ++i)
    positions.push_back(positions_of(parts.train, parts.plan.batch(i)));
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return positions[a] < positions[b]; });
  const auto longest = parts.plan.batch(order.back()), usual = parts.plan.batch(order[order.size() / 2]);
  // From the smallest to the largest, because the CPU's peak may only ever grow; moments appear with the first.
  result.usual = finite_step(parts, usual);
  if (longest.size() > 1) {
    const auto half = longest.first(longest.size() / 2);
    result.half = {static_cast<std::int64_t>(half.size()), finite_step(parts, half).peak_memory};
  }
  result.longest = finite_step(parts, longest);
  result.longest_samples = static_cast<std::int64_t>(longest.size());
  result.usual_samples = static_cast<std::int64_t>(usual.size());
  result.memory = memory_within_reach(parts.device).value_or(0);
  if (result.half.samples > 0) {
    result.suggested_batch_size =
        suggest_batch_size(result.half, {result.longest_samples, result.longest.peak_memory}, result.memory);
  }
  const double mean = std::accumulate(positions.begin(), positions.end(), 0.0) / static_cast<double>(positions.size());
  const double scale = mean / static_cast<double>(std::max<std::int64_t>(positions[order[order.size() / 2]], 1));
  const auto micro_batches = static_cast<double>(parts.core.options.train.grad_accumulation);
  result.step_seconds = result.usual.forward_backward_seconds * scale * micro_batches + result.usual.update_seconds;
  result.steps_left = parts.steps_left;
  result.total_seconds = result.step_seconds * static_cast<double>(parts.steps_left);
}

// A file that is gone when the check is over.
struct TemporaryFile {
  std::string path;
  ~TemporaryFile() {
    try {
      remove_file(path);
    } catch (const Error& failure) {
      log_warning("check", failure.message(), " ", failure.place());
    }
  }
};

std::string existing_folder(std::string path) {
  while (!directory_exists(path) && path != "/" && path != ".") path = parent_path(path);
  return path;
}

void check_saving(const PreflightParts& parts, PreflightResult& result) {
  const auto snapshot = [&] {
    return SnapshotMaker().training_checkpoint(parts.core, {}, parts.build, parts.next_factor);
  };
  const Value written = snapshot();
  result.checkpoint_bytes = torch_file_size(written);
  const TemporaryFile file{
      path_join(existing_folder(parts.run_directory), concat(".train_gpt_v2_check.", ::getpid(), ".pth"))};
  auto begin = Clock::now();
  write_torch_file(file.path, written);
  result.save_seconds = seconds_since(begin);
  begin = Clock::now();
  const LoadedFile read = read_tensor_file(file.path, /*verify=*/true);
  restore_training_state(read.root, parts.core, /*groups_changed=*/false);
  result.load_seconds = seconds_since(begin);
  if (!identical(written, read.root) || !identical(written, snapshot())) {
    throw Error("CKP001", "what was read back is not what was written")
        .where(file.path)
        .fix("the disk or the memory of this machine is at fault: do not train here");
  }
}

void check_disk(const PreflightParts& parts, PreflightResult& result) {
  const CheckpointOptions& options = parts.core.options.checkpoint;
  const auto files = static_cast<std::uint64_t>(options.keep) + options.pin.size() + options.best_metrics.size() + 1;
  result.free_bytes = free_space(existing_folder(parts.run_directory));
  result.wanted_bytes = files * result.checkpoint_bytes;
  if (result.free_bytes >= 2 * result.checkpoint_bytes) return;
  throw Error("IO002", "there is no room for two checkpoints")
      .where(parts.run_directory)
      .detail(concat("one takes ", human_bytes(result.checkpoint_bytes), ", free are ", human_bytes(result.free_bytes)))
      .fix("free space, or choose another --output-dir");
}

}  // namespace

PreflightResult run_preflight(const PreflightParts& parts, const StageCallback& stage) {
  PreflightResult result;
  result.resumed_step = parts.core.state.step;
  stage("step");
  measure_steps(parts, result);
  stage("save and load");
  install_signal_handlers();  // whoever stops the check from here on waits until its file is gone
  check_saving(parts, result);
  stage("disk");
  check_disk(parts, result);
  return result;
}

}  // namespace train_gpt_v2
