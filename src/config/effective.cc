// Options back to JSON, and what differs between two of them.

#include <nlohmann/json.hpp>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

std::string to_text(const Options& options, bool only_changed) {
  Json root = Json::object();
  for (const OptionRow& row : option_rows()) {
    if (row.accepted_only) continue;
    const Json value = row.get(options);
    if (only_changed && value == default_value(row)) continue;
    Json* place = &root;
    for (const std::string& part : split(row.path, '.')) place = &(*place)[part];
    *place = value;
  }
  return root.dump(2) + "\n";
}

bool holds_path(const ValueSpec& spec) {
  if (spec.kind == ValueKind::kPath) return true;
  for (const FieldSpec& field : spec.fields) {
    if (holds_path(field.value)) return true;
  }
  return false;
}

}  // namespace

std::string effective_json(const Options& options) {
  return to_text(options, false);
}

std::string minimal_json(const Options& options) {
  return to_text(options, true);
}

std::vector<OptionDifference> diff_options(const Options& saved, const Options& current) {
  std::vector<OptionDifference> differences;
  for (const OptionRow& row : option_rows()) {
    const Json before = row.get(saved);
    const Json now = row.get(current);
    if (before == now) continue;
    differences.push_back({row.path, before.dump(), now.dump(), row.resume, holds_path(row.value)});
  }
  return differences;
}

std::vector<OptionDifference> diff_for_resume(std::string_view saved_json, const Options& current) {
  const Options saved = load_config_json(saved_json, "the configuration stored in the checkpoint").options;
  const std::int64_t batch_before = saved.train.batch_size * saved.train.grad_accumulation;
  const std::int64_t batch_now = current.train.batch_size * current.train.grad_accumulation;
  std::vector<OptionDifference> differences;
  for (OptionDifference& one : diff_options(saved, current)) {
    if (one.key == "train.precision" && current.train.precision == "auto") continue;
    if (one.key == "optimizer.total_steps") continue;
    if (one.key == "train.grad_accumulation") continue;  // told below, as what it changes
    differences.push_back(std::move(one));
  }
  if (batch_before != batch_now) {
    differences.push_back(
        {"effective batch", std::to_string(batch_before), std::to_string(batch_now), ResumeClass::kBatch, false});
  }
  return differences;
}

}  // namespace train_gpt_v2
