#include <algorithm>

#include "session_impl.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/data/doctor.h"
#include "train_gpt_v2/train/device.h"
#include "train_gpt_v2/train/step_probe.h"

namespace train_gpt_v2 {

// What is left to do, by what the run has taken so far, else by one pass over a part of the first micro-batch.
std::string Session::estimated_time(const BatchPlan& plan, const PlanStatistics& statistics) {
  const std::int64_t left = std::max<std::int64_t>(last_step() - state_.step, 0);
  if (state_.step > 0 && state_.train_seconds > 0) {
    return concat(human_duration(state_.train_seconds / static_cast<double>(state_.step) * static_cast<double>(left)),
                  " more, at the pace so far");
  }
  if (plan.size() == 0) return "nothing to do";
  // A CPU would take long for a large batch, and its pace does not depend on the size.
  constexpr std::size_t kFewOnCpu = 2;
  const std::size_t most = request_.device.is_cuda() ? plan.batch(0).size() : kFewOnCpu;
  CheckpointParts live = parts();
  std::optional<double> pace;
  try {
    pace =
        seconds_per_position(live, *engine_, load_batch(*train_, plan.batch(0), std::min(most, plan.batch(0).size())));
  } catch (const Error&) {  // unusable samples: training tells which
  }
  if (!pace) return "not known yet";
  const double positions = static_cast<double>(statistics.positions) / static_cast<double>(statistics.batches) *
                           static_cast<double>(options_.train.grad_accumulation / ranks_.size());
  return concat("about ", human_duration(*pace * positions * static_cast<double>(left)),
                " by a first pass, without updates and validation");
}

void Session::banner() {
  std::int64_t all = 0;
  for (const auto& parameter : model_->parameters()) all += parameter.numel();
  const auto count = [](std::int64_t n) { return human_count(static_cast<std::uint64_t>(n)); };
  log_info("run", "device      ", describe_device(request_.device), ", ", facts_.precision, ", engine ",
           engine_->name(), " (", engine_reason_, ")");
  log_info("run", "parameters  ", count(all), ", trainable ", count(parameters_.trainable_count()));
  log_info("run", "groups\n", describe_groups(parameters_));
  if (const std::string text = adaptation_->describe(); !text.empty()) log_info("run", "adaptation\n", text);
  log_info("run", "samples     ", count(static_cast<std::int64_t>(train_->epoch_size())), " of ", train_->records(),
           " records", validation_ ? concat(", validation ", validation_->epoch_size()) : ", no validation");
  for (const DropReason& reason : train_->dropped()) {
    log_info("run", "left out    ", reason.count, ": ", reason.reason,
             reason.examples.empty() ? "" : ", first " + reason.examples[0]);
  }
  if (!ranks_.single()) {
    log_info("run", "ranks       ", ranks_.describe(),
             shards_ ? concat(", optimizer sharded: ", shards_->describe()) : "");
  }
  log_info("run", "batch       ", options_.train.batch_size, " x ", options_.train.grad_accumulation, " = ",
           facts_.effective_batch, " samples per step",
           options_.sampler.batch_tokens ? concat(" at most, ", *options_.sampler.batch_tokens, " positions each") : "",
           ", layout ", options_.train.layout);
  const BatchPlan plan = order_ ? order_->plan : sampler_->plan(state_.cursor.epoch);
  const PlanStatistics statistics = plan_statistics(*train_, plan);
  if (sampler_) {
    log_info("run", "sampler     ", options_.sampler.mode, ": padding in a padded layout ",
             fixed(100 * statistics.padding_share, 1), " % (random batches ",
             fixed(100 * statistics.random_padding_share, 1), " %), speakers per batch ",
             fixed(statistics.speakers_per_batch, 1), " (random ", fixed(statistics.random_speakers_per_batch, 1),
             "), length correlation of neighbours ", fixed(statistics.length_correlation, 2));
  }
  log_info("run", "steps       ", batches_per_epoch_ / options_.train.grad_accumulation, " per epoch, ",
           goal_step_ < INT64_MAX ? concat(goal_step_, " in all") : "until the data ends", ", schedule over ",
           facts_.total_steps, "; starting at step ", state_.step);
  log_info("run", "time        ", estimated_time(plan, statistics));
  std::uint64_t size = 0;
  for (const StateEntry& entry : model_->state()) size += entry.tensor.nbytes();
  size += static_cast<std::uint64_t>(parameters_.trainable_count()) * 8;
  if (ema_) size += static_cast<std::uint64_t>(parameters_.trainable_count()) * 4;
  const std::uint64_t room = free_space(directory_) / std::max<std::uint64_t>(size, 1);
  log_info("run", "files       ", directory_, ", a checkpoint takes ", human_bytes(size), ", room for ", room);
  if (room < 2) {
    throw Error("IO002", "there is no room for two checkpoints")
        .where(directory_)
        .detail(concat("one takes ", human_bytes(size), ", free are ", human_bytes(free_space(directory_))))
        .fix("free space, or choose another --output-dir");
  }
  if (ema_) {
    const auto shadows = static_cast<std::uint64_t>(parameters_.trainable_count()) * 4;
    const double growth = static_cast<double>(shadows) / static_cast<double>(size - shadows);
    log_info("run", "EMA         ", human_bytes(ema_device_bytes_), " more on the device, measured (ema.device \"",
             options_.ema.device, "\"; 4 bytes per trainable number are ", human_bytes(shadows),
             "); a checkpoint grows by ", human_bytes(shadows), ", ", fixed(100 * growth, 1), " %",
             growth > 0.1 ? " (the +5 % of adapters does not hold where whole tensors train)" : "");
    if (options_.ema.decay >= 1 - 1e-9 || 10.0 / (1 - options_.ema.decay) > static_cast<double>(last_step())) {
      log_warning("ema", "decay ", options_.ema.decay, " averages over about ", fixed(1 / (1 - options_.ema.decay), 0),
                  " steps; a run of ", last_step(), " steps is short for it (0.999 fits better)");
    }
  }
}

// The quick data doctor: warnings, and data_report.json for the report page. Nothing stops the run here.
void Session::look_at_data() const {
  const DoctorReport report = examine_quickly(*train_, validation_.get(), tokenizer_.get());
  for (const Finding& finding : report.findings) {
    if (finding.severity == Severity::kInfo || finding.places.empty()) continue;
    const FindingPlace& place = finding.places.front();
    log_warning("data", finding.summary, " (", human_count(finding.count), "), first ", place.file,
                place.line > 0 ? concat(":", place.line) : "", place.detail.empty() ? "" : ": ", place.detail,
                "; train_gpt_v2 check tells more");
  }
  write_file_atomically(path_join(directory_, "data_report.json"), report.json().dump(1) + "\n");
}

}  // namespace train_gpt_v2
