#include "train_gpt_v2/config/option_table.h"

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>

#include "option_builder.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

struct ResumeName {
  ResumeClass resume;
  std::string_view name;
};
constexpr auto kResumeNames = std::to_array<ResumeName>({{ResumeClass::kNever, "never"},
                                                         {ResumeClass::kBatch, "batch"},
                                                         {ResumeClass::kOrder, "order"},
                                                         {ResumeClass::kData, "data"},
                                                         {ResumeClass::kGroups, "groups"},
                                                         {ResumeClass::kPrecision, "precision"},
                                                         {ResumeClass::kSchedule, "schedule"},
                                                         {ResumeClass::kLoss, "loss"},
                                                         {ResumeClass::kWarn, "warn"},
                                                         {ResumeClass::kFree, "free"}});

const OptionRows& table_rows() {
  static const OptionRows rows = [] {
    OptionRows all;
    for (OptionRows (*part)() : {&model_rows, &data_rows, &train_rows, &schedule_rows, &peft_rows, &sampling_rows}) {
      for (OptionRow& row : part()) all.push_back(std::move(row));
    }
    return all;
  }();
  return rows;
}

}  // namespace

std::string_view resume_class_name(ResumeClass resume) {
  for (const ResumeName& known : kResumeNames) {
    if (known.resume == resume) return known.name;
  }
  TGV2_CHECK(false);
}

std::optional<ResumeClass> find_resume_class(std::string_view name) {
  for (const ResumeName& known : kResumeNames) {
    if (known.name == name) return known.resume;
  }
  return std::nullopt;
}

std::span<const OptionRow> option_rows() {
  return table_rows();
}

std::span<const OptionSection> option_sections() {
  static const std::vector<OptionSection> sections{
      {"model", "The network. Names are those of `gpt:` in the released config.yaml."},
      {"init", "What the weights start from."},
      {"data", "Manifests, tokenizer and reading."},
      {"sampler", "How samples become batches."},
      {"train", "The training loop. It ends with max_steps or epochs, whichever comes first."},
      {"optimizer", "AdamW and the course of its learning rate."},
      {"trainable", "What trains. Patterns are globs over dotted names: attn.c_attn, gpt.h.*.ln_1."},
      {"ema", "Moving average of the weights."},
      {"validation", "Losses on the validation manifests, in a fixed order."},
      {"early_stopping", "Never before the warm-up has ended."},
      {"checkpoint", "When files are written and which stay. A run always saves when it ends or is stopped."},
      {"sampling", "Speech codes decoded while training, to be looked at and heard: RUN/samples/step_N."},
      {"stability", "What happens when training leaves its course."},
      {"logging", "What is shown and recorded."},
      {"distributed", "Several ranks, one process each (torchrun, Slurm, scripts/launch_local.sh)."},
      {"peft",
       "Adapters instead of whole weights: LoRA, DoRA, AdaLoRA. All else is frozen unless trainable.train names it."},
      {"ewc", "Elastic weight consolidation: a pull back to the start weights where earlier languages need them."},
  };
  return sections;
}

const OptionRow* find_option(std::string_view path) {
  static const auto index = [] {
    std::map<std::string, const OptionRow*, std::less<>> result;
    for (const OptionRow& row : table_rows()) result.emplace(row.path, &row);
    return result;
  }();
  const auto found = index.find(path);
  return found == index.end() ? nullptr : found->second;
}

Json default_value(const OptionRow& row) {
  static const Options defaults;
  return row.get(defaults);
}

std::vector<std::string> completion_keys() {
  std::vector<std::string> keys;
  for (const OptionRow& row : table_rows()) keys.push_back(row.path);
  return keys;
}

}  // namespace train_gpt_v2
