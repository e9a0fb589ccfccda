#pragma once
// Everything a run tells the outside while it trains: metrics.jsonl, the log, the live line, TensorBoard.
//
// Reads the training state, never changes the mathematics; train_line() is the one place that empties the meters.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/adapt/adalora.h"
#include "train_gpt_v2/train/checkpoint_store.h"
#include "train_gpt_v2/train/evaluator.h"
#include "train_gpt_v2/train/metrics.h"
#include "train_gpt_v2/train/optimizer.h"
#include "train_gpt_v2/train/progress.h"
#include "train_gpt_v2/train/tensorboard.h"
#include "train_gpt_v2/train/train_state.h"
#include "train_gpt_v2/train/training_samples.h"

namespace train_gpt_v2 {

class Reporter {
 public:
  // metrics.jsonl and the event file are cut behind the step of `state`, where training goes on. Folder "": no files,
  // no live line (ranks other than the first).
  Reporter(const std::string& run_directory, const Options& options, const ParameterSet& parameters, at::Device device,
           const TrainState& state, std::int64_t goal_step);
  ~Reporter();

  void lengths(const Dataset& data, std::int64_t step);       // histograms, once per process
  void remember_step(const ClipResult& clip, double factor);  // of the last optimiser step
  // One line with the terms of `more` at its end, then the sums start anew.
  void train_line(TrainState& state, const OrderedJson& more);
  // Ranks per adapter after pruning: event, log, chart.
  void pruned(const PruneResult& result, const AdapterSet& adapters, const std::vector<std::int64_t>& ranks);
  void step_done(const TrainState& state);    // live line
  Progress& progress() { return progress_; }  // for phases: validation, saving, sampling
  void status(const TrainState& state);       // SIGUSR2: one log line now
  void validation(const TrainState& state, const EvaluatorOutput& output);
  void samples(std::int64_t step, const std::string& weights, const TrainingSamples& samples);
  void validation_cost(const TrainState& state);  // its share of the run's time so far
  void best(std::int64_t step, const Improvement& improvement);
  void saved(const SaveResult& result);
  void rolled_back(std::int64_t step);  // cuts metrics.jsonl and the event file behind that step
  void event(std::int64_t step, const std::string& name, OrderedJson details = OrderedJson::object());

 private:
  void scalar(const std::string& tag, std::int64_t step, double value);
  void sample_scalars(std::int64_t step, const std::vector<SampleRecord>& records);
  void sample_media(std::int64_t step, const TrainingSamples& samples);

  const Options& options_;
  const ParameterSet& parameters_;
  at::Device device_;
  std::optional<double> peak_flops_;  // of the device, for the utilisation; unknown on a CPU
  MetricsLog metrics_;
  std::unique_ptr<TensorBoardWriter> tensorboard_;
  Progress progress_;
  std::optional<ClipResult> last_clip_;  // of this process
  double last_factor_ = 0;
};

}  // namespace train_gpt_v2
