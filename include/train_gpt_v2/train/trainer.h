#pragma once
// The training loop. It owns nothing: what it drives is built by the session and given by reference.
//
// One round: take a window of micro-batches, forward and backward each, norm and clip, ask the stability guard, update,
// average, count; then whatever is due: a line of metrics, validation, a checkpoint. Signals are polled between
// micro-batches; a window that is not finished leaves no trace, so a checkpoint always stands at a window's edge
// (algorithms.md §7.2, §9.3).
//
// With several ranks every window begins with one small sum: how much it holds over all of them, and whether anybody
// has a reason to stop or to save, or has failed. From then on all do the same; rank 0 reports, samples and writes. The
// sum of the losses behind the window tells who failed within it: then nobody takes the step.

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/core/watchdog.h"
#include "train_gpt_v2/data/loader.h"
#include "train_gpt_v2/train/checkpoint_content.h"
#include "train_gpt_v2/train/checkpoint_store.h"
#include "train_gpt_v2/train/engine.h"
#include "train_gpt_v2/train/evaluator.h"
#include "train_gpt_v2/train/gradient_sync.h"
#include "train_gpt_v2/train/ranks.h"
#include "train_gpt_v2/train/reporter.h"
#include "train_gpt_v2/train/schedule.h"
#include "train_gpt_v2/train/window.h"

namespace train_gpt_v2 {

struct TrainerParts {
  CheckpointParts& core;  // model, parameters, optimiser, EMA, scaler, monitors, counters, options, facts
  const LearningRateSchedule& schedule;
  Engine& engine;
  Ranks& ranks;
  GradientSync& sync;
  BatchLoader& loader;
  Evaluator* evaluator;      // null: no validation
  TrainingSampler* sampler;  // null: no samples, and on other ranks than the first
  CheckpointStore& store;
  Reporter& reporter;
  PythonExtras& extras;
  std::string run_directory;
  std::string build;
  std::optional<std::int64_t> process_step_limit;  // --max-steps
  std::int64_t goal_step;                          // INT64_MAX: the data's end decides
  double hang_seconds = 0;                         // --hang-seconds; 0 = wait for ever
};

enum class StopReason { kGoal, kDataEnd, kEarlyStop, kProcessLimit, kTimeLimit, kSignal };

// The run is done, not only this process.
inline bool is_goal(StopReason reason) {
  return reason == StopReason::kGoal || reason == StopReason::kDataEnd || reason == StopReason::kEarlyStop;
}

struct TrainOutcome {
  StopReason reason;
  ExitStatus status;
};

class Trainer {
 public:
  explicit Trainer(TrainerParts parts);

  // Trains until there is a reason to stop; saves, and writes DONE where the run's own goal is reached.
  // Throws NUM001 when bad steps follow each other, NUM003 when rollbacks do not help (train/stability.h), MEM001 when
  // a single sample does not fit, IO002 when the state could not be saved at the end, and what the loader throws;
  // except after the first two the state reached is saved before it leaves. Of several ranks' errors, that holds for
  // those of reading data, of a window, of validation and of sampling: all ranks throw the same one.
  TrainOutcome run();

 private:
  struct Window {
    std::vector<LoadedBatch> micro_batches;
    std::int64_t samples = 0, text_tokens = 0, mel_tokens = 0;  // of all ranks, once agree() has said so
  };

  TrainOutcome train();
  void alone(const std::function<void()>& work);
  bool stop_asked(const char* doing);  // signals and trigger files; tells the watchdog that `doing` moves
  std::optional<StopReason> reason_to_stop();
  std::optional<Window> next_window();  // nothing: the data ended or a stop was asked
  bool agree(std::optional<Window>& window);
  bool train_window(const Window& window);
  WindowLosses forward_backward(const Window& window, double loss_scale);
  void consume(const Window& window);
  void update(const Window& window, const WindowLosses& losses, const ClipResult& clip);
  void report_bad_step(const Window& window, const WindowLosses& losses, const ClipResult& clip,
                       const StepVerdict& verdict);
  void skip_step();
  void roll_back();
  [[noreturn]] void stop_diverged(const StepVerdict& verdict);
  void do_what_is_due(bool last);
  void validate();
  void sample();
  void save(bool wait);
  bool time_is_over() const;
  bool save_is_wanted();
  void submit(std::string file_name, bool is_step_checkpoint, bool wait, const std::function<Value()>& snapshot);
  void report_saves();
  bool saved() const { return last_saved_step_ == state_.step; }
  bool something_to_save();
  bool save_within_grace();
  void keep_what_is_there();
  TrainOutcome finish(StopReason reason);

  TrainerParts parts_;
  TrainState& state_;
  const Options& options_;
  std::chrono::steady_clock::time_point started_, last_save_;
  std::int64_t last_sampled_step_ = -1, last_saved_step_ = -1;
  ExitStatus agreed_stop_ = ExitStatus::kOk;  // several ranks: what agree() found out
  bool agreed_save_ = false, agreed_time_over_ = false;
  std::optional<Error> failure_;  // of this rank, for agree()
  MemoryLimit memory_;
  Watchdog watchdog_;
  SnapshotMaker snapshots_;
};

}  // namespace train_gpt_v2
