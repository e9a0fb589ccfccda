#include "train_gpt_v2/train/reporter.h"

#include <sys/resource.h>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"

#ifdef TGV2_CUDA_API
#include <c10/cuda/CUDACachingAllocator.h>
#endif

namespace train_gpt_v2 {
namespace {

double ratio(double part, double whole) { return whole > 0 ? part / whole : 0.0; }

}  // namespace

std::uint64_t peak_memory_bytes(at::Device device) {
#ifdef TGV2_CUDA_API
  if (device.is_cuda()) {
    return static_cast<std::uint64_t>(
        c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).allocated_bytes[0].peak);
  }
#endif
  (void)device;
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

Reporter::Reporter(const std::string& run_directory, const Options& options, const ParameterSet& parameters,
                   at::Device device, std::int64_t step, std::int64_t goal_step)
    : options_(options),
      parameters_(parameters),
      device_(device),
      metrics_(path_join(run_directory, "metrics.jsonl"), step),
      progress_({progress_mode(options.logging.progress), goal_step < INT64_MAX ? goal_step : 0, step, 60, {}}) {
  if (!options.logging.tensorboard) return;
  tensorboard_ = std::make_unique<TensorBoardWriter>(run_directory, step > 0 ? step + 1 : 0);
  tensorboard_->text("config", step, "```json\n" + effective_json(options) + "\n```");
}

Reporter::~Reporter() = default;

void Reporter::scalar(const std::string& tag, std::int64_t step, double value) {
  if (tensorboard_) tensorboard_->scalar(tag, step, value);
}

void Reporter::remember_step(const ClipResult& clip, double factor) {
  last_clip_ = clip;
  last_factor_ = factor;
}

void Reporter::train_line(TrainState& state) {
  const TrainMeters& meters = state.meters;
  const auto text_tokens = static_cast<double>(meters.text_tokens), mel_tokens = static_cast<double>(meters.mel_tokens);
  const auto steps = static_cast<double>(meters.steps);
  const double tokens_per_second = ratio(text_tokens + mel_tokens, meters.step_seconds);
  OrderedJson rates = OrderedJson::array();
  for (const ParameterGroup& group : parameters_.groups) rates.push_back(group.learning_rate * last_factor_);
  OrderedJson line = {{"type", "train"},
                      {"step", state.step},
                      {"epoch", state.epoch},
                      {"loss", ratio(meters.loss_sum, steps)},
                      {"text_loss", ratio(meters.text_loss_sum, text_tokens)},
                      {"mel_loss", ratio(meters.mel_loss_sum, mel_tokens)},
                      {"mel_top1", ratio(meters.mel_top1_count, mel_tokens)},
                      {"lr", rates},
                      {"grad_norm", last_clip_.norm}};
  if (parameters_.groups.size() > 1) line["grad_norm_by_group"] = last_clip_.by_group;
  line["clipped_share"] = ratio(static_cast<double>(meters.clipped), steps);
  line["skipped_steps"] = state.skipped;
  line["text_tokens"] = meters.text_tokens;
  line["mel_tokens"] = meters.mel_tokens;
  line["tokens_per_second"] = tokens_per_second;
  line["padding_share"] = 1.0 - ratio(static_cast<double>(meters.positions), static_cast<double>(meters.padded_positions));
  line["data_wait_share"] = ratio(meters.wait_seconds, meters.step_seconds);
  line["step_seconds"] = ratio(meters.step_seconds, steps);
  line["peak_memory_bytes"] = peak_memory_bytes(device_);
  metrics_.write(line);
  for (const char* key : {"loss", "text_loss", "mel_loss", "mel_top1", "grad_norm", "clipped_share", "skipped_steps",
                          "tokens_per_second", "padding_share", "data_wait_share", "step_seconds", "peak_memory_bytes"}) {
    if (line.contains(key)) scalar(concat("train/", key), state.step, line[key].get<double>());
  }
  for (std::size_t g = 0; g < parameters_.groups.size(); ++g) {
    scalar("lr/" + parameters_.groups[g].name, state.step, rates[g].get<double>());
    if (parameters_.groups.size() > 1) scalar("grad_norm/" + parameters_.groups[g].name, state.step, last_clip_.by_group[g]);
  }
  StepReport report;
  report.step = state.step;
  report.epoch = state.epoch;
  report.loss = line["loss"].get<double>();
  report.text_loss = line["text_loss"].get<double>();
  report.mel_loss = line["mel_loss"].get<double>();
  report.learning_rate = rates.empty() ? 0.0 : rates[0].get<double>();
  report.grad_norm = last_clip_.norm;
  report.tokens_per_second = tokens_per_second;
  progress_.report(report);
  state.meters = TrainMeters{};
}

void Reporter::step_done(const TrainState& state) { progress_.step_done(state.step, state.epoch); }

void Reporter::status(const TrainState& state) {
  log_info("status", progress_.status(), ", ", human_duration(state.train_seconds), " of training");
}

void Reporter::validation(const TrainState& state, const EvaluatorOutput& output) {
  if (!output.results.empty() && !output.results.front().complete) {
    log_info("validation", "step ", state.step, " interrupted; it is done again when the run goes on");
    return;
  }
  for (const ValidationResult& result : output.results) {
    OrderedJson line = {{"type", "validation"},          {"step", state.step},
                        {"weights", result.weights},     {"split", result.split},
                        {"text_loss", result.text_loss}, {"mel_loss", result.mel_loss},
                        {"mel_top1", result.mel_top1},   {"text_tokens", result.text_tokens},
                        {"mel_tokens", result.mel_tokens}, {"seconds", result.seconds}};
    if (result.split == "all") line["mel_top5"] = result.mel_top5;
    if (result.split == "all" && output.text_usage_gap) line["text_usage_gap"] = *output.text_usage_gap;
    metrics_.write(line);
    for (const char* key : {"text_loss", "mel_loss", "mel_top1", "mel_top5", "text_usage_gap"}) {
      if (line.contains(key)) {
        scalar(concat("validation_", result.weights, "/", result.split == "all" ? "" : result.split + "/", key), state.step,
               line[key].get<double>());
      }
    }
    log_info("validation", "step ", state.step, "  ", result.weights, "  ", result.split, "  text ",
             fixed(result.text_loss, 4), "  mel ", fixed(result.mel_loss, 4), "  top1 ", fixed(result.mel_top1, 3),
             result.split == "all" && output.text_usage_gap ? concat("  text-usage gap ", fixed(*output.text_usage_gap, 3)) : "");
  }
  if (output.text_usage_gap && *output.text_usage_gap < options_.validation.gap_alarm &&
      state.step >= options_.optimizer.warmup_steps) {
    log_warning("validation", "the text makes almost no difference (gap ", fixed(*output.text_usage_gap, 4), " < ",
                options_.validation.gap_alarm, "): the model may be ignoring it. Check that texts and codes belong together.");
  }
}

void Reporter::best(std::int64_t step, const Improvement& improvement, const std::string& file) {
  const std::string metric =
      improvement.metric.metric + (improvement.metric.split == "all" ? "" : "@" + improvement.metric.split);
  log_info("validation", "new best ", metric, " ", fixed(improvement.value, 4), " (", improvement.weights, ") -> ", file);
  event(step, "best", {{"metric", metric}, {"value", improvement.value}, {"weights", improvement.weights}, {"file", file}});
}

void Reporter::saved(const SaveResult& result) {
  if (!result.error.empty()) {
    event(result.step, "save_failed", {{"path", result.path}, {"error", result.error}});
    return;
  }
  log_info("checkpoint", "step ", result.step, " saved: ", result.path, " (", human_bytes(result.bytes), ", ",
           human_duration(result.seconds), ")");
  event(result.step, "save", {{"path", result.path}, {"bytes", result.bytes}, {"seconds", result.seconds}});
}

void Reporter::event(std::int64_t step, const std::string& name, OrderedJson details) {
  metrics_.event(step, name, std::move(details));
}

}  // namespace train_gpt_v2
