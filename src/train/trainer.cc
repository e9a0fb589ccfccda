#include "train_gpt_v2/train/trainer.h"

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/signals.h"

namespace train_gpt_v2 {
namespace {

// So many non-finite steps in a row are no accident.
constexpr std::int64_t kMaxBadInARow = 5;

bool due(std::int64_t step, std::int64_t interval) { return interval > 0 && step % interval == 0; }

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

Trainer::Trainer(TrainerParts parts)
    : parts_(std::move(parts)),
      state_(parts_.core.state),
      options_(parts_.core.options),
      started_(std::chrono::steady_clock::now()),
      last_save_(started_),
      last_saved_step_(state_.step) {}

TrainOutcome Trainer::run() {
  if (state_.validation_due && parts_.evaluator) validate();
  if (parts_.sampler && parts_.sampler->missing(state_.step)) sample();
  while (true) {
    if (const auto reason = reason_to_stop()) return finish(*reason);
    const auto begin = std::chrono::steady_clock::now();
    const std::optional<Window> window = next_window();
    if (!window) return finish(reason_to_stop().value_or(StopReason::kDataEnd));
    if (!train_window(*window)) return finish(StopReason::kSignal);
    const double seconds = seconds_since(begin);
    state_.meters.step_seconds += seconds;
    state_.train_seconds += seconds;
    do_what_is_due(/*last=*/false);
  }
}

std::optional<StopReason> Trainer::reason_to_stop() const {
  poll_trigger_files(parts_.run_directory);
  if (stop_requested() != ExitStatus::kOk) return StopReason::kSignal;
  if (state_.step >= parts_.goal_step) return StopReason::kGoal;
  if (parts_.core.monitors.should_stop()) return StopReason::kEarlyStop;
  if (parts_.process_step_limit && state_.step >= *parts_.process_step_limit) return StopReason::kProcessLimit;
  if (options_.train.max_hours && seconds_since(started_) >= *options_.train.max_hours * 3600) {
    return StopReason::kTimeLimit;
  }
  return std::nullopt;
}

std::optional<Trainer::Window> Trainer::next_window() {
  Window window;
  while (static_cast<std::int64_t>(window.micro_batches.size()) < options_.train.grad_accumulation) {
    const auto begin = std::chrono::steady_clock::now();
    std::optional<LoadedBatch> loaded = parts_.loader.next();
    state_.meters.wait_seconds += seconds_since(begin);
    if (!loaded) return std::nullopt;  // an incomplete last window is not stepped
    window.text_tokens += loaded->batch.text_tokens();
    window.mel_tokens += loaded->batch.mel_tokens();
    window.micro_batches.push_back(std::move(*loaded));
  }
  return window;
}

// False when a stop was asked in the middle: nothing of the window counts then.
bool Trainer::train_window(const Window& window) {
  const TrainOptions& train = options_.train;
  const double loss_scale = parts_.core.scaler ? parts_.core.scaler->scale() : 1.0;
  const bool by_window = train.loss_normalization == "window_tokens";
  const auto micro_count = static_cast<double>(window.micro_batches.size());
  torch::Tensor sums;
  double loss = 0;  // what is differentiated
  std::int64_t positions = 0, padded_positions = 0;
  Adaptation& adaptation = parts_.core.adaptation;
  parts_.engine.begin_window();
  adaptation.begin_window(parts_.core.parameters);
  for (std::size_t micro = 0; micro < window.micro_batches.size(); ++micro) {
    const Batch& batch = window.micro_batches[micro].batch;
    if (batch.count() == 0) continue;  // every sample of it was bad and is skipped
    // d(loss)/d(sum of token losses), for each head.
    const double text_tokens = by_window ? static_cast<double>(window.text_tokens) : micro_count * batch.text_tokens();
    const double mel_tokens = by_window ? static_cast<double>(window.mel_tokens) : micro_count * batch.mel_tokens();
    const double text_scale = train.text_loss_weight / text_tokens, mel_scale = train.mel_loss_weight / mel_tokens;
    const DropoutKey key{static_cast<std::uint64_t>(train.seed), static_cast<std::uint32_t>(state_.windows),
                         static_cast<std::uint32_t>(micro)};
    const LossSums micro_sums =
        parts_.engine.forward_backward(batch, key, text_scale * loss_scale, mel_scale * loss_scale);
    const torch::Tensor values = micro_sums.values.cpu();
    loss += text_scale * values[0].item<double>() + mel_scale * values[1].item<double>();
    sums = sums.defined() ? sums + values : values;
    positions += micro_sums.positions;
    padded_positions += micro_sums.padded_positions;
    poll_trigger_files(parts_.run_directory);
    if (stop_requested() != ExitStatus::kOk && micro + 1 < window.micro_batches.size()) return false;
  }
  adaptation.complete_gradients(loss_scale);
  {
    const torch::NoGradGuard no_grad;
    for (torch::Tensor& rows : parts_.core.parameters.masked_grads) rows.zero_();
  }
  // Unless something reads the gradients after the update, the CPU may scale them there.
  const ClipResult clip = parts_.core.optimizer.unscale_and_clip(1.0 / loss_scale, train.grad_clip, train.clip_per_group,
                                                                 adaptation.reads_clipped_gradients());
  state_.cursor = window.micro_batches.back().after;
  state_.epoch = static_cast<std::int64_t>(window.micro_batches.back().epoch);
  ++state_.windows;
  for (const LoadedBatch& micro : window.micro_batches) state_.samples += micro.batch.count();
  if (window.text_tokens == 0) return true;  // nothing in it at all
  const bool finite = clip.finite && std::isfinite(loss);
  if (parts_.core.scaler) parts_.core.scaler->update(finite);
  if (!finite) {
    skip_step(window, clip.norm, loss);
    return true;
  }
  bad_in_a_row_ = 0;
  const double factor = parts_.schedule.factor(state_.step);
  Ema* const ema = parts_.core.ema;
  // The averages go with the update's pass over memory, unless adapters may lose ranks between the two.
  const AdamW::Averages averages =
      ema && !adaptation.adapters() ? ema->update_with(parts_.core.optimizer) : AdamW::Averages{};
  parts_.core.optimizer.step(factor, averages);
  if (const auto pruned =
          adaptation.after_step(state_.step + 1, factor, parts_.core.parameters, parts_.core.optimizer, parts_.core.ema)) {
    parts_.reporter.pruned(*pruned, *adaptation.adapters(), adaptation.allocator()->ranks());
  }
  parts_.engine.parameters_changed();
  if (ema && !averages.joined) ema->update();
  ++state_.step;

  const double* value = sums.const_data_ptr<double>();
  TrainMeters& meters = state_.meters;
  meters.loss_sum += loss;
  meters.text_loss_sum += value[0];
  meters.mel_loss_sum += value[1];
  meters.mel_top1_count += value[2];
  meters.text_tokens += window.text_tokens;
  meters.mel_tokens += window.mel_tokens;
  meters.positions += positions;
  meters.padded_positions += padded_positions;
  meters.steps += 1;
  meters.clipped += clip.clipped;
  state_.last_text_loss = value[0] / static_cast<double>(window.text_tokens);
  state_.last_mel_loss = value[1] / static_cast<double>(window.mel_tokens);
  state_.last_mel_top1 = value[2] / static_cast<double>(window.mel_tokens);
  parts_.reporter.remember_step(clip, factor);
  return true;
}

void Trainer::skip_step(const Window& window, double norm, double loss) {
  ++state_.skipped;
  ++state_.meters.skipped;
  std::vector<std::string> ids;
  for (const LoadedBatch& micro : window.micro_batches) ids.insert(ids.end(), micro.batch.ids.begin(), micro.batch.ids.end());
  log_warning("train", "step ", state_.step + 1, " skipped: loss ", loss, ", gradient norm ", norm,
              " is not finite; samples ", join(ids, " "));
  parts_.reporter.event(state_.step, "skip", {{"loss", loss}, {"grad_norm", norm}, {"ids", ids}});
  parts_.engine.parameters_changed();  // the weights as whoever reads them between two steps expects them
  if (++bad_in_a_row_ >= kMaxBadInARow && !parts_.core.scaler) {
    throw Error("NUM001", concat("training diverged: ", bad_in_a_row_, " steps in a row were not finite"))
        .at(concat("step ", state_.step + 1))
        .fix("resume from an older checkpoint with a lower optimizer.learning_rate; the samples are named in the log");
  }
}

void Trainer::do_what_is_due(bool last) {
  parts_.reporter.step_done(state_);
  if (due(state_.step, options_.train.log_interval) && state_.meters.steps > 0) {
    parts_.reporter.train_line(state_, parts_.core.adaptation.measure());
  }
  if (parts_.evaluator && last_validated_step_ != state_.step && (due(state_.step, options_.validation.interval) || last)) {
    validate();
  }
  for (const SaveResult& result : parts_.store.take_results()) parts_.reporter.saved(result);
  const CheckpointOptions& checkpoint = options_.checkpoint;
  const bool minutes_over =
      checkpoint.interval_minutes && seconds_since(last_save_) >= *checkpoint.interval_minutes * 60;
  const bool asked = take_save_request();
  if (asked || (last_saved_step_ != state_.step && (due(state_.step, checkpoint.interval) || minutes_over))) {
    save(/*wait=*/false);
  }
  if (take_status_request()) parts_.reporter.status(state_);
  // Last: the checkpoint of this step is on its way meanwhile.
  if (parts_.sampler && last_sampled_step_ != state_.step && parts_.sampler->due(state_.step)) sample();
}

void Trainer::validate() {
  const Progress::Phase phase(parts_.reporter.progress(), "validating");
  last_validated_step_ = state_.step;
  state_.validation_due = true;
  const auto stop = [this] { return stop_asked(); };
  std::vector<ValidationResult> results;
  const auto run = [&](const std::string& weights) {
    const EvaluatorOutput output = parts_.evaluator->run(parts_.engine, weights, stop);
    parts_.reporter.validation(state_, output);
    results.insert(results.end(), output.results.begin(), output.results.end());
  };
  run("raw");
  if (parts_.core.ema && stop_requested() == ExitStatus::kOk) {
    {
      const Ema::ScopedSwap averaged(*parts_.core.ema);
      parts_.engine.parameters_changed();
      run("ema");
    }
    parts_.engine.parameters_changed();
  }
  if (stop_requested() != ExitStatus::kOk) return;  // done again by whoever continues this run
  state_.validation_due = false;
  const bool warmup_done = state_.step >= options_.optimizer.warmup_steps && parts_.core.adaptation.pruning_done();
  double val_mel_loss = results.front().mel_loss;
  for (const ValidationResult& result : results) {
    if (result.split == "all") val_mel_loss = std::min(val_mel_loss, result.mel_loss);
  }
  for (const Improvement& improvement : parts_.core.monitors.observe(results, warmup_done)) {
    SaveJob job;
    job.step = state_.step;
    job.file_name = improvement.metric.file_name();
    job.is_step_checkpoint = false;
    job.content = snapshots_.best_checkpoint(parts_.core, improvement, val_mel_loss, parts_.build);
    parts_.reporter.best(state_.step, improvement, job.file_name);
    parts_.store.submit(std::move(job), /*wait=*/false);
  }
}

// Under the averaged weights where there are some; the exchange restores the very same values, so that training goes on
// as if nothing had been.
void Trainer::sample() {
  const Progress::Phase phase(parts_.reporter.progress(), "sampling");
  last_sampled_step_ = state_.step;
  TrainingSamples samples;
  {
    std::optional<Ema::ScopedSwap> averaged;
    if (parts_.core.ema) {
      averaged.emplace(*parts_.core.ema);
      parts_.engine.parameters_changed();
    }
    samples = parts_.sampler->run(state_.step, [this] { return stop_asked(); });
  }
  if (parts_.core.ema) parts_.engine.parameters_changed();
  parts_.reporter.samples(state_.step, parts_.core.ema ? "ema" : "raw", samples);
}

bool Trainer::stop_asked() const {
  poll_trigger_files(parts_.run_directory);
  return stop_requested() != ExitStatus::kOk;
}

void Trainer::save(bool wait) {
  const Progress::Phase phase(parts_.reporter.progress(), "saving");
  const auto begin = std::chrono::steady_clock::now();
  SaveJob job;
  job.step = state_.step;
  job.file_name = CheckpointStore::step_file_name(state_.step);
  parts_.extras.recent_checkpoints.clear();
  for (const std::int64_t step : parts_.store.steps_on_disk()) {
    parts_.extras.recent_checkpoints.push_back(path_join(parts_.run_directory, CheckpointStore::step_file_name(step)));
  }
  job.content = snapshots_.training_checkpoint(parts_.core, parts_.extras, parts_.build, parts_.schedule.factor(state_.step));
  last_saved_step_ = state_.step;
  last_save_ = begin;
  parts_.store.submit(std::move(job), wait);
  log_debug("checkpoint", "step ", state_.step, ": training stood still for ", human_duration(seconds_since(begin)));
}

TrainOutcome Trainer::finish(StopReason reason) {
  const bool goal = reason == StopReason::kGoal || reason == StopReason::kDataEnd || reason == StopReason::kEarlyStop;
  if (goal) do_what_is_due(/*last=*/true);
  ExitStatus status = ExitStatus::kOk;
  if (reason == StopReason::kTimeLimit) status = ExitStatus::kTemporary;
  if (stop_requested() != ExitStatus::kOk) status = stop_requested();
  if (last_saved_step_ != state_.step || parts_.store.steps_on_disk().empty() || state_.validation_due) {
    save(/*wait=*/reason != StopReason::kSignal);
  }
  if (!parts_.store.wait_for(options_.checkpoint.grace_seconds) && reason == StopReason::kSignal) {
    log_warning("checkpoint", "the last save did not end within checkpoint.grace_seconds (",
                options_.checkpoint.grace_seconds, "): the checkpoint before it stays the newest");
    std::_Exit(static_cast<int>(status));  // the writer cannot be interrupted; its temporary file is harmless
  }
  parts_.store.wait();
  for (const SaveResult& result : parts_.store.take_results()) parts_.reporter.saved(result);
  const char* names[] = {"goal", "data_end", "early_stop", "process_limit", "time_limit", "signal"};
  const char* name = names[static_cast<int>(reason)];
  parts_.reporter.event(state_.step, reason == StopReason::kEarlyStop ? "early_stop" : "stop", {{"reason", name}});
  if (goal && status == ExitStatus::kOk) {
    const nlohmann::ordered_json done = {{"reason", name}, {"step", state_.step}, {"goal", parts_.goal_step}};
    write_file_atomically(path_join(parts_.run_directory, "DONE"), done.dump() + "\n");
  }
  return {reason, status};
}

}  // namespace train_gpt_v2
