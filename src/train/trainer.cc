#include "train_gpt_v2/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <utility>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/train/black_box.h"

namespace train_gpt_v2 {
namespace {

bool due(std::int64_t step, std::int64_t interval) {
  return interval > 0 && step % interval == 0;
}

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
      last_saved_step_(state_.step),
      watchdog_(parts_.hang_seconds) {}

TrainOutcome Trainer::run() {
  try {
    return train();
  } catch (const Error& failure) {
    // Bad data, a lost file or too little memory leave the state whole, as it was at the window's edge. Several ranks
    // must meet to save it, which they can where all of them learnt of the error; else their newest checkpoint counts.
    const bool whole = failure.status() != ExitStatus::kDiverged && failure.status() != ExitStatus::kInternal;
    const bool together = parts_.ranks.single() || dynamic_cast<const SharedError*>(&failure);
    if (whole && together) keep_what_is_there();
    throw;
  }
}

// What this rank does without the others. Its failure waits until they meet.
void Trainer::alone(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& failure) {
    if (parts_.ranks.single()) throw;
    failure_ = failure;
  }
}

TrainOutcome Trainer::train() {
  if (!parts_.core.parameters.tensors.front().value.is_cpu()) {
    // The page-locked memory of the copies is made now, once, and not while the first save keeps training waiting.
    snapshots_.training_checkpoint(parts_.core, parts_.extras, parts_.build, parts_.schedule.factor(state_.step));
    snapshots_.forget_copies();
  }
  if (state_.validation_due && parts_.evaluator) validate();
  if (parts_.sampler && parts_.sampler->missing(state_.step)) alone([this] { sample(); });
  last_sampled_step_ = state_.step;
  snapshots_.forget_copies();
  while (true) {
    if (const auto reason = reason_to_stop()) return finish(*reason);
    const auto begin = std::chrono::steady_clock::now();
    std::optional<Window> window;
    if (!failure_) alone([&] { window = next_window(); });
    if (!agree(window)) return finish(reason_to_stop().value_or(StopReason::kDataEnd));
    if (!train_window(*window)) return finish(StopReason::kSignal);
    const double seconds = seconds_since(begin);
    state_.meters.step_seconds += seconds;
    state_.train_seconds += seconds;
    do_what_is_due(/*last=*/state_.step >= parts_.goal_step);
  }
}

bool Trainer::stop_asked(const char* doing) {
  watchdog_.alive(doing);
  if (parts_.ranks.first()) poll_trigger_files(parts_.run_directory);
  return stop_requested() != ExitStatus::kOk;
}

bool Trainer::time_is_over() const {
  return options_.train.max_hours && seconds_since(started_) >= *options_.train.max_hours * 3600;
}

bool Trainer::save_is_wanted() {
  const auto& minutes = options_.checkpoint.interval_minutes;
  return take_save_request() || (minutes && !saved() && seconds_since(last_save_) >= *minutes * 60);
}

std::optional<StopReason> Trainer::reason_to_stop() {
  const bool asked = stop_asked("training");
  if (parts_.ranks.single() ? asked : agreed_stop_ != ExitStatus::kOk) return StopReason::kSignal;
  if (state_.step >= parts_.goal_step) return StopReason::kGoal;
  if (parts_.core.monitors.should_stop()) return StopReason::kEarlyStop;
  if (parts_.process_step_limit && state_.step >= *parts_.process_step_limit) return StopReason::kProcessLimit;
  if (parts_.ranks.single() ? time_is_over() : agreed_time_over_) return StopReason::kTimeLimit;
  return std::nullopt;
}

// Whether to train the window. Of several ranks each has its part of it: this is where they learn of the whole, and of
// each other's signals and failures.
bool Trainer::agree(std::optional<Window>& window) {
  Ranks& ranks = parts_.ranks;
  if (ranks.single()) return window.has_value();
  const auto count = [](auto number) { return static_cast<double>(number); };
  const ExitStatus stop = stop_requested();
  const bool save = save_is_wanted();
  std::vector<double> all{
      window ? count(window->samples) : 0,    window ? count(window->text_tokens) : 0,
      window ? count(window->mel_tokens) : 0, count(!window),
      count(stop == ExitStatus::kSigint),     count(stop == ExitStatus::kSigterm),
      count(stop == ExitStatus::kSighup),     count(save && (ranks.first() || stop == ExitStatus::kOk)),
      count(ranks.first() && time_is_over()), count(failure_.has_value())};
  {
    const Watchdog::Pause pause(watchdog_);  // the first may be sampling
    ranks.sum(all);
  }
  if (all[9] > 0) ranks.agree(failure_);
  agreed_stop_ = all[4] > 0   ? ExitStatus::kSigint
                 : all[5] > 0 ? ExitStatus::kSigterm
                 : all[6] > 0 ? ExitStatus::kSighup
                              : ExitStatus::kOk;
  if (agreed_stop_ != ExitStatus::kOk) request_stop(agreed_stop_);
  agreed_save_ = all[7] > 0;
  agreed_time_over_ = all[8] > 0;
  if (all[3] > 0 || agreed_stop_ != ExitStatus::kOk || agreed_time_over_) return false;
  window->samples = static_cast<std::int64_t>(all[0]);
  window->text_tokens = static_cast<std::int64_t>(all[1]);
  window->mel_tokens = static_cast<std::int64_t>(all[2]);
  return true;
}

std::optional<Trainer::Window> Trainer::next_window() {
  Window window;
  const auto own = static_cast<std::size_t>(options_.train.grad_accumulation / parts_.ranks.size());
  while (window.micro_batches.size() < own) {
    const auto begin = std::chrono::steady_clock::now();
    watchdog_.alive("waiting for the data loader");
    std::optional<LoadedBatch> loaded = parts_.loader.next();
    state_.meters.wait_seconds += seconds_since(begin);
    if (!loaded) return std::nullopt;  // an incomplete last window is not stepped
    window.samples += loaded->batch.count();
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
  const WindowLosses losses = forward_backward(window, loss_scale);
  if (losses.stopped) return false;
  // Unless something reads the gradients after the update, the CPU may scale them there.
  const ClipResult clip = parts_.core.optimizer.unscale_and_clip(
      1.0 / loss_scale, train.grad_clip, train.clip_per_group, parts_.core.adaptation.reads_clipped_gradients());
  consume(window);
  if (window.text_tokens == 0) return true;  // nothing in it at all
  const bool finite = clip.finite && std::isfinite(losses.loss);
  if (parts_.core.scaler) parts_.core.scaler->update(finite);
  const StepVerdict verdict = parts_.core.guard.judge(losses.loss, clip.norm, finite);
  if (verdict.action != StepAction::kTrain) report_bad_step(window, losses, clip, verdict);
  switch (verdict.action) {
    case StepAction::kTrain:
    case StepAction::kWarn:
      update(window, losses, clip);
      break;
    case StepAction::kSkip:
      skip_step();
      break;
    case StepAction::kRollback:
      roll_back();
      break;
    case StepAction::kStop:
      stop_diverged(verdict);
  }
  return true;
}

// Gradients and losses of the whole window, over all ranks; the gradients still carry `loss_scale`.
WindowLosses Trainer::forward_backward(const Window& window, double loss_scale) {
  const TrainOptions& train = options_.train;
  const bool by_window = train.loss_normalization == "window_tokens";
  const auto micro_count = static_cast<double>(train.grad_accumulation);
  Ranks& ranks = parts_.ranks;
  Adaptation& adaptation = parts_.core.adaptation;
  std::vector<WindowPart> parts;
  for (std::size_t micro = 0; micro < window.micro_batches.size(); ++micro) {
    const Batch& batch = window.micro_batches[micro].batch;
    // d(loss)/d(sum of token losses), for each head.
    const double text_tokens = by_window ? static_cast<double>(window.text_tokens) : micro_count * batch.text_tokens();
    const double mel_tokens = by_window ? static_cast<double>(window.mel_tokens) : micro_count * batch.mel_tokens();
    const double text_scale = train.text_loss_weight / text_tokens, mel_scale = train.mel_loss_weight / mel_tokens;
    const DropoutKey key{
        static_cast<std::uint64_t>(train.seed), static_cast<std::uint32_t>(state_.windows),
        static_cast<std::uint32_t>(micro * static_cast<std::size_t>(ranks.size()) + window.micro_batches[micro].place)};
    parts.push_back({&batch, key, text_scale, mel_scale});
  }
  watchdog_.alive("training");
  watchdog_.describe(concat("samples: ", join(window.micro_batches.front().batch.ids, " ")));
  WindowEvents events;
  events.begin = [&] {
    parts_.sync.begin_window();
    adaptation.begin_window(parts_.core.parameters);
    if (ranks.single()) return;
    // The fused engine clears what its own batches touched; the sums left what the others' did.
    const torch::NoGradGuard no_grad;
    for (TrainableTensor& tensor : parts_.core.parameters.tensors) tensor.grad.zero_();
  };
  events.stop = [&] { return stop_asked("training") && ranks.single(); };
  events.last_pass = [this] { parts_.sync.begin_last_pass(); };
  events.may_begin_anew = [this] { return !parts_.sync.begun(); };
  WindowLosses losses;
  alone([&] { losses = run_window(parts_.engine, parts, loss_scale, options_.model, memory_, events); });
  if (losses.stopped) return losses;
  if (!sum_losses(losses, failure_.has_value(), ranks)) ranks.agree(failure_);
  if (losses.retries > 0) {
    parts_.reporter.event(state_.step, "out_of_memory",
                          {{"retries", losses.retries}, {"too_many_positions", memory_.too_many}});
  }
  adaptation.complete_gradients(loss_scale / ranks.size());
  adaptation.agree(ranks);
  parts_.sync.finish();
  const torch::NoGradGuard no_grad;
  for (torch::Tensor& rows : parts_.core.parameters.masked_grads) rows.zero_();
  return losses;
}

void Trainer::consume(const Window& window) {
  state_.cursor = window.micro_batches.back().after;
  state_.epoch = static_cast<std::int64_t>(window.micro_batches.back().epoch);
  ++state_.windows;
  state_.samples += window.samples;
}

void Trainer::update(const Window& window, const WindowLosses& losses, const ClipResult& clip) {
  const double factor = parts_.schedule.factor(state_.step);
  Adaptation& adaptation = parts_.core.adaptation;
  Ema* const ema = parts_.core.ema;
  // The averages go with the pass of the update over memory, unless weights change once more behind it.
  const JoinedAverages averages =
      ema && !adaptation.changes_weights_after_step() ? ema->update_with(parts_.core.optimizer) : JoinedAverages{};
  parts_.core.optimizer.step(factor, averages);
  if (const auto pruned =
          adaptation.after_step(state_.step + 1, factor, parts_.core.parameters, parts_.core.optimizer, ema)) {
    parts_.reporter.pruned(*pruned, *adaptation.adapters(), adaptation.allocator()->ranks());
  }
  parts_.engine.parameters_changed();
  if (ema && !averages.joined) ema->update();
  ++state_.step;

  const double* value = losses.sums.const_data_ptr<double>();
  TrainMeters& meters = state_.meters;
  meters.loss_sum += losses.loss;
  meters.text_loss_sum += value[0];
  meters.mel_loss_sum += value[1];
  meters.mel_top1_count += value[2];
  meters.text_tokens += window.text_tokens;
  meters.mel_tokens += window.mel_tokens;
  meters.positions += losses.positions;
  meters.padded_positions += losses.padded_positions;
  meters.steps += 1;
  if (losses.most_positions > 0) {
    meters.imbalance_sum +=
        static_cast<double>(losses.most_positions * parts_.ranks.size()) / static_cast<double>(losses.positions);
  }
  meters.clipped += clip.clipped;
  state_.last_text_loss = value[0] / static_cast<double>(window.text_tokens);
  state_.last_mel_loss = value[1] / static_cast<double>(window.mel_tokens);
  state_.last_mel_top1 = value[2] / static_cast<double>(window.mel_tokens);
  parts_.reporter.remember_step(clip, factor);
}

// Log, event and black box of a step that stands out, before anything is done about it.
void Trainer::report_bad_step(const Window& window, const WindowLosses& losses, const ClipResult& clip,
                              const StepVerdict& verdict) {
  std::vector<std::string> ids;
  for (const LoadedBatch& micro : window.micro_batches)
    ids.insert(ids.end(), micro.batch.ids.begin(), micro.batch.ids.end());
  const bool searching_scale = parts_.core.scaler && !(clip.finite && std::isfinite(losses.loss));
  const std::int64_t number = state_.windows - 1;
  const BlackBoxEntry entry{state_.step,
                            number,
                            losses.loss,
                            clip.norm,
                            verdict,
                            window.micro_batches,
                            parts_.ranks.single() ? -1 : parts_.ranks.rank()};
  const std::string file = searching_scale ? "" : write_black_box(parts_.run_directory, entry);
  const std::string action = step_action_name(verdict.action);
  if (!parts_.ranks.single()) ids = parts_.ranks.gather(join(ids, " "));
  log_warning("stability", "step ", state_.step + 1, ": ", verdict.reason, " -> ", action, "; samples ", join(ids, " "),
              file.empty() ? "" : "; the batch is in " + file);
  if (verdict.action == StepAction::kRollback) return;  // its event follows, once metrics.jsonl is cut
  parts_.reporter.event(state_.step,
                        action == "warn"   ? "spike"
                        : action == "stop" ? "diverged"
                                           : action,
                        {{"reason", verdict.reason},
                         {"window", number},
                         {"loss", losses.loss},
                         {"grad_norm", clip.norm},
                         {"loss_z", verdict.loss_z},
                         {"norm_z", verdict.norm_z},
                         {"ids", ids},
                         {"black_box", file}});
}

void Trainer::skip_step() {
  ++state_.skipped;
  ++state_.meters.skipped;
  parts_.engine.parameters_changed();  // the weights as whoever reads them between two steps expects them
}

// Weights and counters of the newest good checkpoint; the data goes on behind the window at hand.
void Trainer::roll_back() {
  parts_.store.wait();
  report_saves();
  std::optional<FoundCheckpoint> good;
  if (parts_.ranks.first()) good = find_newest_checkpoint(parts_.run_directory, state_.step);
  if (good && checkpoint_kind(good->file.root) != CheckpointKind::kOurs) good.reset();
  const std::string path = parts_.ranks.from_first(good ? good->path : "");
  if (!parts_.ranks.first() && !path.empty()) good = FoundCheckpoint{path, read_tensor_file(path, /*verify=*/true), 0};
  if (!good) {
    log_warning("stability", "there is no checkpoint to go back to yet: the step is skipped");
    return skip_step();
  }
  const TrainState left = state_;
  const StabilityGuard guard = parts_.core.guard;
  const Monitors monitors = parts_.core.monitors;
  restore_training_state(good->file.root, parts_.core, /*groups_changed=*/true);
  parts_.engine.parameters_changed();
  parts_.core.guard.rolled_back(guard);
  parts_.core.monitors.keep_best_of(monitors);
  state_.cursor = left.cursor;
  state_.plan_start = left.plan_start;
  state_.epoch = left.epoch;
  state_.windows = left.windows;
  state_.samples = left.samples;
  state_.skipped = left.skipped + 1;
  state_.train_seconds = left.train_seconds;
  last_saved_step_ = state_.last_validated_step = last_sampled_step_ = state_.step;
  for (std::int64_t i = 0; i < options_.stability.skip_steps; ++i) {
    if (const std::optional<Window> window = next_window()) consume(*window);
  }
  parts_.reporter.rolled_back(state_.step);
  parts_.reporter.event(state_.step, "rollback",
                        {{"from_step", left.step},
                         {"checkpoint", good->path},
                         {"window", left.windows - 1},
                         {"windows_left_out", options_.stability.skip_steps + 1},
                         {"rollbacks", parts_.core.guard.rollbacks()}});
  log_warning("stability", "back from step ", left.step, " to step ", state_.step, " (", good->path, "), rollback ",
              parts_.core.guard.rollbacks(), " of at most ", options_.stability.max_rollbacks);
}

void Trainer::stop_diverged(const StepVerdict& verdict) {
  const bool helpless =
      parts_.core.guard.rollbacks() > 0 && parts_.core.guard.rollbacks() >= options_.stability.max_rollbacks;
  throw Error(helpless ? "NUM003" : "NUM001",
              helpless ? concat("training diverged: it left its course again after ", parts_.core.guard.rollbacks(),
                                " rollbacks")
                       : concat("training diverged: ", options_.stability.max_consecutive, " bad steps in a row"))
      .at(concat("step ", state_.step + 1))
      .detail(verdict.reason)
      .fix(concat(
          "look at the batches in ", path_join(parts_.run_directory, "black_box"),
          "; then go on from the last checkpoint with a lower optimizer.learning_rate (--allow-change schedule)"));
}

void Trainer::do_what_is_due(bool last) {
  parts_.reporter.step_done(state_);
  if (due(state_.step, options_.train.log_interval) && state_.meters.steps > 0) {
    parts_.reporter.train_line(state_, parts_.core.adaptation.measure());
  }
  if (parts_.evaluator && state_.last_validated_step != state_.step &&
      (due(state_.step, options_.validation.interval) || last)) {
    validate();
  }
  report_saves();
  const CheckpointOptions& checkpoint = options_.checkpoint;
  const bool asked = parts_.ranks.single() ? save_is_wanted() : std::exchange(agreed_save_, false);
  if (asked || due(state_.step, checkpoint.interval)) {
    if (parts_.ranks.from_first(asked || !saved())) save(/*wait=*/false);
  }
  if (take_status_request()) parts_.reporter.status(state_);
  // Last: the checkpoint of this step is on its way meanwhile.
  if (parts_.sampler && last_sampled_step_ != state_.step && parts_.sampler->due(state_.step)) {
    alone([this] { sample(); });
  }
  snapshots_.forget_copies();  // the next step changes the weights
}

void Trainer::validate() {
  const Progress::Phase phase(parts_.reporter.progress(), "validating");
  const auto begin = std::chrono::steady_clock::now();
  state_.last_validated_step = state_.step;
  last_saved_step_ = -1;  // a checkpoint of this step lacks what comes now
  state_.validation_due = true;
  const auto stop = [this] { return stop_asked("validating"); };
  std::vector<EvaluatorOutput> outputs;
  const auto run = [&](const std::string& weights) {
    outputs.push_back(parts_.evaluator->run(parts_.engine, weights, stop, parts_.ranks));
  };
  const auto complete = [&] { return outputs.back().results.back().complete; };
  run("raw");
  if (parts_.core.ema && complete()) {
    {
      const Ema::ScopedSwap averaged(*parts_.core.ema);
      parts_.engine.parameters_changed();
      run("ema");
    }
    parts_.engine.parameters_changed();
  }
  state_.validation_seconds += seconds_since(begin);
  if (!complete()) {  // done again, both of it, by whoever continues this run: nothing is told twice
    parts_.reporter.validation(state_, outputs.back());
    return;
  }
  state_.validation_due = false;
  std::vector<ValidationResult> results;
  for (const EvaluatorOutput& output : outputs) {
    parts_.reporter.validation(state_, output);
    results.insert(results.end(), output.results.begin(), output.results.end());
  }
  parts_.reporter.validation_cost(state_);
  parts_.store.wait_for_other_steps(state_.step);
  report_saves();  // what is best depends on what could be written
  const bool warmup_done = state_.step >= options_.optimizer.warmup_steps && parts_.core.adaptation.pruning_done();
  double val_mel_loss = results.front().mel_loss;
  for (const ValidationResult& result : results) {
    if (result.split == "all") val_mel_loss = std::min(val_mel_loss, result.mel_loss);
  }
  for (const Improvement& improvement : parts_.core.monitors.observe(results, warmup_done)) {
    parts_.reporter.best(state_.step, improvement);
    submit(improvement.metric.file_name(), /*is_step_checkpoint=*/false, /*wait=*/false,
           [&] { return snapshots_.best_checkpoint(parts_.core, improvement, val_mel_loss, parts_.build); });
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
    samples = parts_.sampler->run(state_.step, [this] { return stop_asked("sampling"); });
  }
  if (parts_.core.ema) parts_.engine.parameters_changed();
  parts_.reporter.samples(state_.step, parts_.core.ema ? "ema" : "raw", samples);
}

// Everything for which training stands still: the wait for the files of an earlier step, then the copies.
void Trainer::submit(std::string file_name, bool is_step_checkpoint, bool wait,
                     const std::function<Value()>& snapshot) {
  if (!parts_.ranks.first()) return;
  const auto begin = std::chrono::steady_clock::now();
  watchdog_.alive("saving a checkpoint");
  parts_.store.wait_for_other_steps(state_.step);
  SaveJob job;
  job.step = state_.step;
  job.file_name = std::move(file_name);
  job.is_step_checkpoint = is_step_checkpoint;
  job.content = snapshot();
  job.stall_seconds = seconds_since(begin);
  parts_.store.submit(std::move(job), wait);
}

void Trainer::save(bool wait) {
  const Progress::Phase phase(parts_.reporter.progress(), "saving");
  last_saved_step_ = state_.step;
  last_save_ = std::chrono::steady_clock::now();
  if (!parts_.ranks.single()) parts_.ranks.check_equal("the parameters", bit_fingerprint(parts_.core.parameters));
  // Moments that are spread over the ranks come together: a call of all.
  if (!parts_.ranks.first()) {
    parts_.core.optimizer.save_state(parts_.schedule.factor(state_.step));
    return;
  }
  parts_.extras.recent_checkpoints.clear();
  for (const std::int64_t step : parts_.store.steps_on_disk()) {
    parts_.extras.recent_checkpoints.push_back(path_join(parts_.run_directory, CheckpointStore::step_file_name(step)));
  }
  submit(CheckpointStore::step_file_name(state_.step), /*is_step_checkpoint=*/true, wait, [this] {
    return snapshots_.training_checkpoint(parts_.core, parts_.extras, parts_.build,
                                          parts_.schedule.factor(state_.step));
  });
}

// Results of saves that have ended. A failed one leaves the state unsaved, whatever was believed when it began.
void Trainer::report_saves() {
  for (const SaveResult& result : parts_.store.take_results()) {
    parts_.reporter.saved(result);
    if (result.is_step_checkpoint && !result.error.empty() && result.step == last_saved_step_) last_saved_step_ = -1;
    if (!result.is_step_checkpoint && !result.error.empty()) {
      parts_.core.monitors.not_written(file_name(result.path));
    }
  }
}

// All: before an error ends the run. The error is what the user must see, so a failure here is only a warning.
void Trainer::keep_what_is_there() {
  try {
    parts_.sync.finish();  // in a window that failed some ranks have begun these sums; worthless now
    parts_.store.wait();
    report_saves();
    if (parts_.ranks.from_first(!saved())) save(/*wait=*/true);
    report_saves();
    parts_.ranks.from_first(true);  // whoever leaves with an error ends the others: not before the file is there
  } catch (const std::exception& failure) {
    log_warning("checkpoint", "step ", state_.step, " could not be saved either: ", failure.what());
  }
}

// What rank 0 finds, for all.
bool Trainer::something_to_save() {
  const bool here = parts_.ranks.first() && (!saved() || parts_.store.steps_on_disk().empty());
  return parts_.ranks.from_first(here);
}

// False when the time is over. What is being written cannot be interrupted; its temporary file is harmless.
bool Trainer::save_within_grace() {
  const auto begin = std::chrono::steady_clock::now();
  const auto ended = [&] { return parts_.store.wait_for(options_.checkpoint.grace_seconds - seconds_since(begin)); };
  if (!ended()) return false;
  report_saves();
  if (something_to_save()) save(/*wait=*/false);
  if (!ended()) return false;
  report_saves();
  return true;
}

TrainOutcome Trainer::finish(StopReason reason) {
  const bool goal = is_goal(reason);
  if (goal) do_what_is_due(/*last=*/true);
  parts_.ranks.agree(failure_);
  ExitStatus status = ExitStatus::kOk;
  if (reason == StopReason::kTimeLimit) status = ExitStatus::kTemporary;
  if (stop_requested() != ExitStatus::kOk) status = stop_requested();
  if (reason == StopReason::kSignal) {
    if (!save_within_grace()) {
      log_warning("checkpoint", "the last save did not end within checkpoint.grace_seconds (",
                  options_.checkpoint.grace_seconds, "): the checkpoint before it stays the newest");
      std::_Exit(static_cast<int>(status));
    }
    if (!saved()) throw Error("IO002", concat("step ", state_.step, " could not be saved")).where(parts_.run_directory);
  } else {
    parts_.store.wait();
    report_saves();
    if (something_to_save()) save(/*wait=*/true);
    parts_.store.wait();
    report_saves();
  }
  const char* names[] = {"goal", "data_end", "early_stop", "process_limit", "time_limit", "signal"};
  const char* name = names[static_cast<int>(reason)];
  parts_.reporter.event(state_.step, reason == StopReason::kEarlyStop ? "early_stop" : "stop", {{"reason", name}});
  if (goal && status == ExitStatus::kOk && parts_.ranks.first()) {
    nlohmann::ordered_json done = {{"reason", name},
                                   {"step", state_.step},
                                   {"goal", parts_.goal_step},
                                   {"order", parts_.core.facts.order_fingerprint},
                                   {"plan_start", state_.plan_start.save_state()}};
    if (reason == StopReason::kEarlyStop) done["patience"] = options_.early_stopping.patience;
    write_file_atomically(path_join(parts_.run_directory, "DONE"), done.dump() + "\n");
  }
  return {reason, status};
}

}  // namespace train_gpt_v2
