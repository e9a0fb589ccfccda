// Checks that involve several keys.

#include <set>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

void check_conditioner(const ConditionModuleOptions& module, const std::string& key, std::int64_t perceiver_width,
                       const CrossProblem& report) {
  if (module.output_size % module.attention_heads != 0) {
    report({key + ".attention_heads", key + ".output_size"},
           concat(key, ".attention_heads (", module.attention_heads, ") does not divide output_size (",
                  module.output_size, ")"),
           "the heads share the width evenly");
  }
  if (module.output_size % 2 != 0) {
    report({key + ".output_size"}, concat(key, ".output_size (", module.output_size, ") is odd"),
           "positions are sine and cosine pairs: take an even width");
  }
  if (static_cast<std::int64_t>(static_cast<double>(perceiver_width) * module.perceiver_mult * 2 / 3) < 1) {
    report({key + ".perceiver_mult"},
           concat(key, ".perceiver_mult (", exact_number(module.perceiver_mult),
                  ") leaves the feed-forward layer without a unit"),
           concat("int(", perceiver_width, " * perceiver_mult * 2 / 3) must be at least 1"));
  }
}

// Two tokens of one table: both inside it, and not the same.
void check_tokens(const std::string& start_key, std::int64_t start, const std::string& stop_key, std::int64_t stop,
                  const std::string& size_key, std::int64_t size, const CrossProblem& report) {
  if (start >= size) {
    report({start_key, size_key},
           concat(start_key, " (", start, ") is outside the table of ", size_key, " (", size, ")"), "");
  }
  if (stop >= size) {
    report({stop_key, size_key}, concat(stop_key, " (", stop, ") is outside the table of ", size_key, " (", size, ")"),
           "");
  }
  if (start == stop) {
    report({stop_key, start_key}, concat(start_key, " and ", stop_key, " are both ", start), "they must differ");
  }
}

void check_model(const ModelOptions& m, const CrossProblem& report) {
  if (m.model_dim % m.heads != 0) {
    report({"model.heads", "model.model_dim"},
           concat("model.heads (", m.heads, ") does not divide model.model_dim (", m.model_dim, ")"),
           "the heads share the width evenly");
  }
  check_tokens("model.start_mel_token", m.start_mel_token, "model.stop_mel_token", m.stop_mel_token,
               "model.number_mel_codes", m.number_mel_codes, report);
  check_tokens("model.start_text_token", m.start_text_token, "model.stop_text_token", m.stop_text_token,
               "model.number_text_tokens", m.number_text_tokens, report);
  check_conditioner(m.condition_module, "model.condition_module", m.model_dim, report);
  check_conditioner(m.emo_condition_module, "model.emo_condition_module", 1024, report);
}

void check_data(const Options& o, const CrossProblem& report) {
  if (!o.data.order_file.empty() && !o.data.replay.empty()) {
    report({"data.order_file", "data.replay"}, "data.order_file cannot be combined with data.replay",
           "an order file says every sample of every batch; remove one of the two");
  }
  double share = 0;
  for (const ReplayOptions& replay : o.data.replay) share += replay.share;
  if (share >= 1) {
    report({"data.replay"}, concat("the shares of data.replay add up to ", exact_number(share)),
           "below 1 is needed, so that something is left for data.train_manifests");
  }
  for (std::size_t i = 1; i < o.sampler.boundaries.size(); ++i) {
    if (o.sampler.boundaries[i] > o.sampler.boundaries[i - 1]) continue;
    report(
        {"sampler.boundaries"},
        concat("sampler.boundaries do not rise: ", o.sampler.boundaries[i], " follows ", o.sampler.boundaries[i - 1]),
        "");
    break;
  }
  if (o.sampler.mode == "buckets" && o.sampler.boundaries.empty()) {
    report({"sampler.boundaries", "sampler.mode"}, "sampler.mode \"buckets\" needs sampler.boundaries", "");
  }
}

void check_groups(const OptimizerOptions& optimizer, const CrossProblem& report) {
  std::set<std::string> names;
  for (const ParameterGroupOptions& group : optimizer.groups) {
    const auto complain = [&](const std::string& what, const std::string& fix) {
      report({"optimizer.groups"}, concat("optimizer.groups: group \"", group.name, "\" ", what), fix);
    };
    if (!names.insert(group.name).second) complain("appears twice", "names must be unique");
    if (group.name == "default") complain("has a reserved name", "\"default\" holds what no group matches");
    if (group.match.empty()) complain("matches nothing", "give module patterns in \"match\"");
    if (group.learning_rate && group.lr_scale) complain("has both learning_rate and lr_scale", "give one of them");
  }
}

void check_batch_size(const TrainOptions& train, const CrossProblem& report, std::vector<std::string>& warnings) {
  if (train.batch_size_auto && !train.effective_batch) {
    report({"train.batch_size"}, "train.batch_size \"auto\" needs train.effective_batch",
           "say how many samples a step takes, e.g. \"effective_batch\": 64");
  }
  if (train.batch_size_auto && train.grad_accumulation != 1) {
    report({"train.grad_accumulation", "train.batch_size"},
           "train.grad_accumulation is chosen together with train.batch_size \"auto\"", "remove it");
  }
  const std::int64_t stated = train.batch_size * train.grad_accumulation;
  if (!train.batch_size_auto && train.effective_batch && *train.effective_batch != stated) {
    warnings.push_back(concat("train.effective_batch (", *train.effective_batch,
                              ") is read with batch_size \"auto\" only; batch_size * grad_accumulation is ", stated));
  }
}

void check_training(const Options& o, const CrossProblem& report, std::vector<std::string>& warnings) {
  if (o.train.text_loss_weight + o.train.mel_loss_weight <= 0) {
    report({"train.mel_loss_weight", "train.text_loss_weight"}, "both loss weights are 0: nothing would be learned",
           "");
  }
  if (!o.train.max_steps && !o.train.epochs && o.data.order_file.empty()) {
    report({"train.epochs", "train.max_steps"}, "the run has no end: train.max_steps and train.epochs are both null",
           "set one of them");
  }
  check_batch_size(o.train, report, warnings);
  if (o.stability.action == "rollback" && o.peft.adaptive()) {
    report({"stability.action", "peft.method"},
           concat("stability.action \"rollback\" and peft.method \"", o.peft.method,
                  "\" do not go together: the ranks of the checkpoint may have been pruned since"),
           "use \"skip\"");
  }
  check_groups(o.optimizer, report);
  const std::optional<std::int64_t> total = o.optimizer.total_steps ? o.optimizer.total_steps : o.train.max_steps;
  if (total && o.optimizer.warmup_steps > *total) {
    warnings.push_back(concat("optimizer.warmup_steps (", o.optimizer.warmup_steps,
                              ") lies beyond the schedule's total of ", *total,
                              " steps: the learning rate never reaches its peak"));
  }
  if (o.trainable.text_rows && *o.trainable.text_rows != "all" && o.trainable.base_text_rows >= o.model.text_rows()) {
    report(
        {"trainable.base_text_rows", "trainable.text_rows"},
        concat("trainable.text_rows \"", *o.trainable.text_rows, "\" leaves no text row to train: base_text_rows is ",
               o.trainable.base_text_rows, ", the table has ", o.model.text_rows(), " rows"),
        "lower trainable.base_text_rows to the rows of the base vocabulary");
  }
}

void check_adapters(const Options& o, const CrossProblem& report) {
  const PeftOptions& p = o.peft;
  if (p.enabled() && p.target_modules.empty()) {
    report({"peft.target_modules", "peft.method"},
           concat("peft.target_modules is empty, so peft.method \"", p.method, "\" has nothing to adapt"),
           "name module patterns, or leave the key out");
  }
  const auto needs_adaptive = [&](const char* key, bool given) {
    if (!given || p.adaptive()) return;
    report({key, "peft.method"},
           concat(key, " is set, but peft.method is ", p.enabled() ? concat("\"", p.method, "\"") : "null",
                  ", which never prunes"),
           "use \"adalora\" or \"dora_adalora\", or leave the schedule out");
  };
  needs_adaptive("peft.pruning_steps", !p.pruning_steps.empty());
  needs_adaptive("peft.target_budget", p.target_budget.has_value());
  needs_adaptive("peft.tinit", p.tinit.has_value());
  needs_adaptive("peft.tfinal", p.tfinal.has_value());
  needs_adaptive("peft.delta_t", p.delta_t.has_value());
  needs_adaptive("peft.target_rank", p.target_rank.has_value());
  if (p.use_rslora && p.adaptive()) {
    report({"peft.use_rslora", "peft.method"},
           concat("peft.use_rslora has no meaning with peft.method \"", p.method, "\""),
           "the scale of AdaLoRA is alpha / initial rank");
  }
  if (o.ewc.enabled && o.ewc.fisher.empty()) {
    report({"ewc.enabled", "ewc.fisher"}, "ewc.enabled is true, but ewc.fisher names no file",
           "measure one with train_gpt_v2 fisher --checkpoint FILE --manifest M --output FILE");
  }
  if (o.ewc.enabled && !o.ewc.lambda && p.enabled() && p.lora_dropout > 0) {
    report({"ewc.lambda", "peft.lora_dropout"},
           "ewc.lambda \"auto\" needs the gradient of the adapted weights, which peft.lora_dropout hides",
           "give ewc.lambda a number, or set peft.lora_dropout to 0");
  }
}

bool split_is_measured(const std::string& metric, const std::vector<std::string>& by) {
  const std::size_t at = metric.find('@');
  if (at == std::string::npos || metric.substr(at + 1) == "all") return true;
  const std::string group = metric.substr(at + 1, metric.find(':', at) - at - 1);
  return std::find(by.begin(), by.end(), group) != by.end();
}

void check_validation(const Options& o, const CrossProblem& report) {
  if (o.validation.interval > 0 && o.data.val_manifests.empty()) {
    report({"validation.interval", "data.val_manifests"},
           concat("validation.interval is ", o.validation.interval, ", but data.val_manifests is empty"),
           "name a manifest, or set validation.interval to 0");
  }
  if (o.early_stopping.enabled && o.validation.interval == 0) {
    report({"early_stopping.enabled", "validation.interval"}, "early_stopping needs validation, which is off",
           "set validation.interval and data.val_manifests");
  }
  const auto check_metric = [&](const std::string& key, const std::string& metric) {
    if (split_is_measured(metric, o.validation.by)) return;
    report({key, "validation.by"}, concat(key, ": \"", metric, "\" is never measured"),
           "add its split to validation.by (\"language\" or \"speaker\")");
  };
  if (o.early_stopping.enabled) check_metric("early_stopping.metric", o.early_stopping.metric);
  std::set<std::string> seen;
  for (const std::string& metric : o.checkpoint.best_metrics) {
    check_metric("checkpoint.best_metrics", metric);
    if (!seen.insert(metric).second)
      report({"checkpoint.best_metrics"}, concat("checkpoint.best_metrics names \"", metric, "\" twice"), "");
  }
}

}  // namespace

void check_cross_fields(const Options& options, const CrossProblem& report, std::vector<std::string>& warnings) {
  check_model(options.model, report);
  check_data(options, report);
  check_training(options, report, warnings);
  check_adapters(options, report);
  check_validation(options, report);
}

}  // namespace train_gpt_v2
