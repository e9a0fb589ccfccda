// Rows of sections ema, validation, early_stopping, checkpoint, stability, logging and distributed.

#include <algorithm>

#include "option_builder.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

// "metric" or "metric@split"; the splits are those of metrics.jsonl.
std::string metric_problem(const std::string& text) {
  const std::size_t at = text.find('@');
  const std::string metric = text.substr(0, at);
  if (metric != "mel_loss" && metric != "text_loss" && metric != "mel_top1") {
    return "is not a validation metric (mel_loss, text_loss, mel_top1, each with an optional @split)";
  }
  if (at == std::string::npos) return "";
  const std::string split = text.substr(at + 1);
  const std::size_t colon = split.find(':');
  const std::string group = split.substr(0, colon);
  const bool known = split == "all" || ((group == "language" || group == "speaker") && colon != std::string::npos &&
                                        colon + 1 < split.size());
  return known ? "" : "has a split that is none of all, language:CODE, speaker:seen, speaker:held_out";
}

}  // namespace

OptionRows schedule_rows() {
  return {
      TGV2_OPTION(ema.enabled, kFree, "keep a moving average of the trained weights"),
      TGV2_OPTION(ema.decay, kFree, "share of the old average per step").at_least(0).below(1),
      TGV2_OPTION(ema.warmup, kFree, "rise to decay at the start, so that the average forgets the start weights"),
      TGV2_OPTION(ema.update_every, kFree, "update every k steps with decay^k").range(1, 1e6).unit("steps"),
      TGV2_OPTION(ema.device, kFree, "where the average lives").choices({"same", "cpu"}),

      TGV2_OPTION(validation.interval, kFree, "validate every so many steps; 0 = off")
          .range(0, 1e9)
          .off_is(0)
          .unit("steps"),
      TGV2_OPTION(validation.max_batches, kFree, "at most this many batches, always the same; null = all")
          .range(1, 1e9)
          .unit("batches"),
      TGV2_OPTION(validation.batch_size, kFree, "null = train.batch_size").range(1, 1e6).unit("samples"),
      TGV2_OPTION(validation.by, kFree, "report splits as well").choices({"language", "speaker"}),
      TGV2_OPTION(validation.text_usage_gap, kFree, "also measure the loss with another utterance's text"),
      TGV2_OPTION(validation.gap_alarm, kFree, "warn when that gap is smaller").range(0, 100).unit("nats"),

      TGV2_OPTION(early_stopping.enabled, kFree, "stop when validation no longer improves"),
      TGV2_OPTION(early_stopping.metric, kFree, "what must improve").checked(metric_problem),
      TGV2_OPTION(early_stopping.patience, kFree, "validations without improvement before stopping")
          .range(1, 1e6)
          .unit("validations"),
      TGV2_OPTION(early_stopping.min_improvement, kFree, "smaller changes do not count, absolute")
          .range(0, 100)
          .unit("nats"),

      TGV2_OPTION(checkpoint.interval, kFree, "save every so many steps; 0 = only at the end")
          .range(0, 1e9)
          .off_is(0)
          .unit("steps"),
      TGV2_OPTION(checkpoint.interval_minutes, kFree, "and after this much time; null = off")
          .at_least(0)
          .off_is(nullptr)
          .unit("minutes"),
      TGV2_OPTION(checkpoint.keep, kFree, "how many of the newest stay")
          .range(3, 1'000'000)
          .because("with fewer than 3 one damaged file and one bad stretch of training leave nothing to go back to")
          .unit("files"),
      TGV2_OPTION(checkpoint.keep_every, kFree, "files of these steps stay for good; null = off")
          .range(0, 1e9)
          .off_is(nullptr)
          .unit("steps"),
      TGV2_OPTION(checkpoint.pin, kFree, "steps whose files stay for good").range(0, 1e9).unit("steps"),
      TGV2_OPTION(checkpoint.best_metrics, kFree, "metric[@split]: the best of each is kept").checked(metric_problem),
      TGV2_OPTION(checkpoint.background, kFree, "write while training goes on"),
      TGV2_OPTION(checkpoint.grace_seconds, kFree, "time a stop signal leaves for the last save")
          .range(0, 86400)
          .unit("seconds"),

      TGV2_OPTION(
          stability.action, kFree,
          "on a loss or gradient norm that stands out: train on it with a warning, leave the step out, or go back "
          "to the last checkpoint and on behind that window; a step that is not finite is always left out")
          .choices({"warn", "skip", "rollback", "off"}),
      TGV2_OPTION(stability.z_threshold, kFree, "stands out = so many standard deviations above the window's mean")
          .range(1, 1000),
      TGV2_OPTION(stability.window, kFree, "accepted steps that the mean and deviation are taken over")
          .range(10, 100'000)
          .unit("steps"),
      TGV2_OPTION(stability.max_consecutive, kFree,
                  "so many bad steps in a row (not finite, or skipped) end the run with status 80")
          .range(1, 1'000'000)
          .unit("steps"),
      TGV2_OPTION(stability.skip_steps, kFree, "after a rollback, leave out so many further windows")
          .range(0, 1'000'000)
          .unit("windows"),
      TGV2_OPTION(stability.max_rollbacks, kFree, "one rollback more ends the run with status 80").range(0, 1'000'000),

      TGV2_OPTION(logging.progress, kFree, "what the terminal shows").choices({"auto", "bar", "lines", "off"}),
      TGV2_OPTION(logging.tensorboard, kFree, "write TensorBoard event files"),

      TGV2_OPTION(distributed.backend, kWarn, "what sums over several ranks; auto = nccl on CUDA, else gloo")
          .choices({"auto", "nccl", "gloo"}),
      TGV2_OPTION(distributed.shard_optimizer, kFree, "each rank keeps the moments of its share only (ZeRO stage 1)"),
  };
}

}  // namespace train_gpt_v2
