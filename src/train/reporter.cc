#include "train_gpt_v2/train/reporter.h"

#include <algorithm>
#include <functional>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/png.h"
#include "train_gpt_v2/core/wav.h"
#include "train_gpt_v2/train/device.h"
#include "train_gpt_v2/train/memory.h"
#include "train_gpt_v2/train/throughput.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kMaxMedia = 16ull << 20;  // a picture or sound that goes into the event file
constexpr double kCostlyValidation = 0.02;

double ratio(double part, double whole) {
  return whole > 0 ? part / whole : 0.0;
}

}  // namespace

Reporter::Reporter(const std::string& run_directory, const Options& options, const ParameterSet& parameters,
                   at::Device device, const TrainState& state, std::int64_t goal_step)
    : options_(options),
      parameters_(parameters),
      device_(device),
      peak_flops_(peak_flops(describe_device(device), options.train.precision)),
      metrics_(run_directory.empty() ? "" : path_join(run_directory, "metrics.jsonl"), state.step,
               state.validation_due),
      progress_({progress_mode(run_directory.empty() ? "off" : options.logging.progress),
                 goal_step < INT64_MAX ? goal_step : 0,
                 state.step,
                 60,
                 {}}) {
  if (run_directory.empty() || !options.logging.tensorboard) return;
  tensorboard_ = std::make_unique<TensorBoardWriter>(run_directory, state.step > 0 ? state.step + 1 : 0);
  tensorboard_->text("config", state.step, "```json\n" + effective_json(options) + "\n```");
}

Reporter::~Reporter() = default;

void Reporter::scalar(const std::string& tag, std::int64_t step, double value) {
  if (tensorboard_) tensorboard_->scalar(tag, step, value);
}

void Reporter::lengths(const Dataset& data, std::int64_t step) {
  if (!tensorboard_) return;
  std::vector<double> texts, codes;
  for (std::uint32_t i = 0; i < data.epoch_size(); ++i) {
    const SampleInfo info = data.info(i);
    texts.push_back(static_cast<double>(info.text_length));
    codes.push_back(static_cast<double>(info.code_length));
  }
  tensorboard_->histogram("data/text_length", step, texts);
  tensorboard_->histogram("data/code_length", step, codes);
}

void Reporter::remember_step(const ClipResult& clip, double factor) {
  last_clip_ = clip;
  last_factor_ = factor;
}

void Reporter::train_line(TrainState& state, const OrderedJson& more) {
  if (!last_clip_) return;  // the sums came with the checkpoint: the next line counts them
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
                      {"grad_norm", last_clip_->norm}};
  if (parameters_.groups.size() > 1) line["grad_norm_by_group"] = last_clip_->by_group;
  line["clipped_share"] = ratio(static_cast<double>(meters.clipped), steps);
  line["skipped_steps"] = state.skipped;
  line["text_tokens"] = meters.text_tokens;
  line["mel_tokens"] = meters.mel_tokens;
  line["tokens_per_second"] = tokens_per_second;
  line["padding_share"] =
      1.0 - ratio(static_cast<double>(meters.positions), static_cast<double>(meters.padded_positions));
  if (meters.imbalance_sum > 0) line["rank_imbalance"] = ratio(meters.imbalance_sum, steps);
  line["data_wait_share"] = ratio(meters.wait_seconds, meters.step_seconds);
  line["step_seconds"] = ratio(meters.step_seconds, steps);
  line["peak_memory_bytes"] = peak_memory_bytes(device_);
  if (options_.peft.method.empty()) {  // with adapters most weight gradients are not computed
    const double flops =
        ratio(training_flops(options_.model, {static_cast<double>(meters.positions), text_tokens, mel_tokens}),
              meters.step_seconds);
    line["model_tflops"] = flops / 1e12;
    if (peak_flops_) line["mfu"] = flops / *peak_flops_;
  }
  line.update(more);
  metrics_.write(line);
  for (const auto& [key, value] : more.items()) {
    if (value.is_number()) scalar(concat("train/", key), state.step, value.get<double>());
  }
  for (const char* key : {"loss", "text_loss", "mel_loss", "mel_top1", "grad_norm", "clipped_share", "skipped_steps",
                          "epoch", "tokens_per_second", "padding_share", "data_wait_share", "step_seconds",
                          "peak_memory_bytes", "model_tflops", "mfu"}) {
    if (line.contains(key)) scalar(concat("train/", key), state.step, line[key].get<double>());
  }
  for (std::size_t g = 0; g < parameters_.groups.size(); ++g) {
    scalar("lr/" + parameters_.groups[g].name, state.step, rates[g].get<double>());
    if (parameters_.groups.size() > 1)
      scalar("grad_norm/" + parameters_.groups[g].name, state.step, last_clip_->by_group[g]);
  }
  StepReport report;
  report.step = state.step;
  report.epoch = state.epoch;
  report.loss = line["loss"].get<double>();
  report.text_loss = line["text_loss"].get<double>();
  report.mel_loss = line["mel_loss"].get<double>();
  report.learning_rate = rates.empty() ? 0.0 : rates[0].get<double>();
  report.grad_norm = last_clip_->norm;
  report.tokens_per_second = tokens_per_second;
  progress_.report(report);
  state.meters = TrainMeters{};
}

void Reporter::step_done(const TrainState& state) {
  progress_.step_done(state.step, state.epoch);
}

void Reporter::status(const TrainState& state) {
  log_info("status", progress_.status(), ", ", human_duration(state.train_seconds), " of training");
}

void Reporter::validation(const TrainState& state, const EvaluatorOutput& output) {
  if (!output.results.empty() && !output.results.front().complete) {
    log_info("validation", "step ", state.step, " interrupted; it is done again when the run goes on");
    return;
  }
  for (const ValidationResult& result : output.results) {
    OrderedJson line = {{"type", "validation"},
                        {"step", state.step},
                        {"weights", result.weights},
                        {"split", result.split},
                        {"text_loss", result.text_loss},
                        {"mel_loss", result.mel_loss},
                        {"mel_top1", result.mel_top1},
                        {"text_tokens", result.text_tokens},
                        {"mel_tokens", result.mel_tokens},
                        {"seconds", result.seconds}};
    if (result.split == "all") line["mel_top5"] = result.mel_top5;
    if (result.split == "all" && output.text_usage_gap) line["text_usage_gap"] = *output.text_usage_gap;
    metrics_.write(line);
    for (const char* key : {"text_loss", "mel_loss", "mel_top1", "mel_top5", "text_usage_gap"}) {
      if (line.contains(key)) {
        scalar(concat("validation_", result.weights, "/", result.split == "all" ? "" : result.split + "/", key),
               state.step, line[key].get<double>());
      }
    }
    log_info("validation", "step ", state.step, "  ", result.weights, "  ", result.split, "  text ",
             fixed(result.text_loss, 4), "  mel ", fixed(result.mel_loss, 4), "  top1 ", fixed(result.mel_top1, 3),
             result.split == "all" && output.text_usage_gap
                 ? concat("  text-usage gap ", fixed(*output.text_usage_gap, 3))
                 : "");
  }
  if (output.text_usage_gap && *output.text_usage_gap < options_.validation.gap_alarm &&
      state.step >= options_.optimizer.warmup_steps) {
    log_warning("validation", "the text makes almost no difference (gap ", fixed(*output.text_usage_gap, 4), " < ",
                options_.validation.gap_alarm,
                "): the model may be ignoring it. Check that texts and codes belong together.");
    event(state.step, "gap_alarm",
          {{"text_usage_gap", *output.text_usage_gap}, {"alarm", options_.validation.gap_alarm}});
  }
}

void Reporter::samples(std::int64_t step, const std::string& weights, const TrainingSamples& samples) {
  if (!samples.error.empty()) {
    log_warning("sample", "step ", step, ": no samples, training goes on. ", samples.error);
    event(step, "sample_failed", {{"error", samples.error}});
    return;
  }
  if (!samples.complete) {
    log_info("sample", "step ", step, " interrupted; it is done again when the run goes on");
    return;
  }
  const auto stopped = std::count_if(samples.records.begin(), samples.records.end(),
                                     [](const SampleRecord& record) { return record.stopped; });
  if (!samples.sound_errors.empty()) {
    log_warning("sample", samples.sound_errors.size(), " of ", samples.records.size(),
                " samples have no sound; the first: ", samples.sound_errors.front());
  }
  log_info("sample", "step ", step, "  ", weights, "  ", samples.records.size(), " samples, ", stopped,
           " ended by themselves, ", human_duration(samples.seconds), " -> ", samples.folder);
  event(step, "sample",
        {{"weights", weights},
         {"folder", samples.folder},
         {"count", samples.records.size()},
         {"stopped", stopped},
         {"without_sound", samples.sound_errors.size()},
         {"seconds", samples.seconds}});
  if (!tensorboard_) return;
  sample_scalars(step, samples.records);
  sample_media(step, samples);
}

// Means over the samples that have the figure.
void Reporter::sample_scalars(std::int64_t step, const std::vector<SampleRecord>& records) {
  const auto mean = [&](const char* name, const std::function<std::optional<double>(const SampleRecord&)>& figure) {
    double sum = 0, count = 0;
    for (const SampleRecord& record : records) {
      const std::optional<double> value = figure(record);
      sum += value.value_or(0);
      count += value.has_value();
    }
    if (count > 0) scalar(concat("samples/", name), step, sum / count);
  };
  mean("stop_share", [](const SampleRecord& r) { return r.stopped ? 1.0 : 0.0; });
  mean("length_ratio", [](const SampleRecord& r) { return r.length_ratio; });
  mean("longest_repeat", [](const SampleRecord& r) { return static_cast<double>(r.longest_repeat); });
  mean("distinct_codes", [](const SampleRecord& r) { return static_cast<double>(r.distinct_codes); });
  mean("mean_logprob", [](const SampleRecord& r) { return r.mean_logprob; });
  mean("monotonicity", [](const SampleRecord& r) { return r.monotonicity; });
  mean("coverage", [](const SampleRecord& r) { return r.coverage; });
}

// The folder's pictures and sounds; a vocoder may have written anything, so that what is no sound is left out.
void Reporter::sample_media(std::int64_t step, const TrainingSamples& samples) {
  for (const SampleRecord& record : samples.records) {
    const std::string stem = path_join(samples.folder, record.id);
    try {
      if (file_exists(stem + ".png")) {
        const std::string png = read_file(stem + ".png", kMaxMedia);
        if (const auto size = png_size(png)) {
          tensorboard_->image(concat("alignment/", record.id), step, png, size->first, size->second);
        }
      }
      if (file_exists(stem + ".wav")) {
        const std::string wav = read_file(stem + ".wav", kMaxMedia);
        if (const auto format = wav_format(wav)) {
          tensorboard_->audio(concat("speech/", record.id), step, wav, static_cast<double>(format->rate),
                              format->channels, format->frames);
        }
      }
    } catch (const Error& failure) {
      log_debug("sample", failure.report());
    }
  }
}

void Reporter::validation_cost(const TrainState& state) {
  const double share = ratio(state.validation_seconds, state.validation_seconds + state.train_seconds);
  scalar("train/validation_share", state.step, share);
  log_info("validation", "has taken ", human_duration(state.validation_seconds), " so far, ", fixed(100 * share, 1),
           " % of the run's time",
           share > kCostlyValidation ? " (validation.max_batches and validation.interval bound it)" : "");
  event(state.step, "validation_cost", {{"seconds_so_far", state.validation_seconds}, {"share_of_time", share}});
}

void Reporter::best(std::int64_t step, const Improvement& improvement) {
  const std::string file = improvement.metric.file_name();
  const std::string metric =
      improvement.metric.metric + (improvement.metric.split == "all" ? "" : "@" + improvement.metric.split);
  log_info("validation", "new best ", metric, " ", fixed(improvement.value, 4), " (", improvement.weights, ") -> ",
           file);
  event(step, "best",
        {{"metric", metric}, {"value", improvement.value}, {"weights", improvement.weights}, {"file", file}});
}

void Reporter::saved(const SaveResult& result) {
  if (!result.error.empty()) {
    event(result.step, "save_failed", {{"path", result.path}, {"error", result.error}});
    return;
  }
  log_info("checkpoint", "step ", result.step, " saved: ", result.path, " (", human_bytes(result.bytes), ", ",
           human_duration(result.seconds), "; training stood still for ", human_duration(result.stall_seconds), ")");
  event(result.step, "save",
        {{"path", result.path},
         {"bytes", result.bytes},
         {"seconds", result.seconds},
         {"stall_seconds", result.stall_seconds}});
}

void Reporter::pruned(const PruneResult& result, const AdapterSet& adapters, const std::vector<std::int64_t>& ranks) {
  const auto [least, most] = std::minmax_element(ranks.begin(), ranks.end());
  const std::string chart = adapters.rank_chart(ranks);
  const bool planned = options_.model.layers == 12 && options_.model.model_dim == 512;
  log_info("adapters", "step ", result.step, ": ", result.ranks_before, " ranks pruned to ", result.ranks_after,
           " (budget ", result.budget, "), from ", *least, " to ", *most, " per matrix",
           planned ? " (plan: 8 to 32)" : "", ", ", human_count(static_cast<std::uint64_t>(adapters.parameter_count())),
           " parameters", planned ? " (plan: 1.5 to 2 M)" : "", "\n", chart);
  OrderedJson by_module = OrderedJson::object();
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const std::string& module = adapters.adapters()[i].spec().module;
    by_module[module] = ranks[i];
    scalar("rank/" + module, result.step, static_cast<double>(ranks[i]));
  }
  if (tensorboard_) tensorboard_->text("ranks", result.step, "```\n" + chart + "\n```");
  event(result.step, "prune",
        {{"budget", result.budget},
         {"ranks_before", result.ranks_before},
         {"ranks_after", result.ranks_after},
         {"parameters", adapters.parameter_count()},
         {"ranks", by_module}});
}

void Reporter::rolled_back(std::int64_t step) {
  metrics_.cut(step);
  if (tensorboard_) tensorboard_->purge_from(step + 1);
}

void Reporter::event(std::int64_t step, const std::string& name, OrderedJson details) {
  metrics_.event(step, name, std::move(details));
}

}  // namespace train_gpt_v2
