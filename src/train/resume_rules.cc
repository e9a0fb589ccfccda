#include "train_gpt_v2/train/resume_rules.h"

#include <algorithm>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

struct Difference {
  std::string what, saved, now;
  ResumeClass resume;
};

const char* reason(ResumeClass resume) {
  switch (resume) {
    case ResumeClass::kNever:
      return "the weights of the checkpoint belong to it";
    case ResumeClass::kBatch:
      return "the optimiser's moments were gathered with the other batch";
    case ResumeClass::kOrder:
      return "the rest of the epoch would come in another order";
    case ResumeClass::kData:
      return "the position in the epoch counts samples of the other data";
    case ResumeClass::kGroups:
      return "the optimiser's state belongs to the other groups";
    case ResumeClass::kPrecision:
      return "the next steps would be computed differently";
    case ResumeClass::kSchedule:
      return "the learning rate would jump";
    case ResumeClass::kLoss:
      return "losses before and after could not be compared";
    case ResumeClass::kWarn:
    case ResumeClass::kFree:
      break;
  }
  return "";
}

// Differences of resolved facts; those of plain options are found by the configuration layer.
std::vector<Difference> fact_differences(const RunFacts& saved, const RunFacts& now) {
  std::vector<Difference> found;
  const auto text = [&found](const char* what, const std::string& a, const std::string& b, ResumeClass resume) {
    if (a != b) found.push_back({what, a, b, resume});
  };
  const auto number = [&text](const char* what, std::int64_t a, std::int64_t b, ResumeClass resume) {
    text(what, std::to_string(a), std::to_string(b), resume);
  };
  number("effective batch", saved.effective_batch, now.effective_batch, ResumeClass::kBatch);
  number("total steps of the schedule", saved.total_steps, now.total_steps, ResumeClass::kSchedule);
  if (!saved.tokenizer_sha256.empty() && !now.tokenizer_sha256.empty()) {
    text("tokenizer (SHA-256)", saved.tokenizer_sha256, now.tokenizer_sha256, ResumeClass::kNever);
  }
  if (!saved.fisher_sha256.empty() && !now.fisher_sha256.empty()) {
    text("Fisher information (SHA-256)", saved.fisher_sha256, now.fisher_sha256, ResumeClass::kLoss);
  }
  text("precision", saved.precision, now.precision, ResumeClass::kPrecision);
  // With an order file at either end the data are what it names; another file starts at its first line.
  if (saved.order_fingerprint.empty() && now.order_fingerprint.empty()) {
    text("training data (fingerprint)", saved.data_fingerprint, now.data_fingerprint, ResumeClass::kData);
    text("data.replay (fingerprint of contents and shares)", saved.replay_fingerprint, now.replay_fingerprint,
         ResumeClass::kOrder);
  }
  number("threads", saved.threads, now.threads, ResumeClass::kWarn);
  number("ranks", saved.ranks, now.ranks, ResumeClass::kWarn);
  text("device", saved.device, now.device, ResumeClass::kWarn);
  text("CPU capability", saved.cpu_capability, now.cpu_capability, ResumeClass::kWarn);
  return found;
}

std::vector<Difference> all_differences(const std::string& saved_config, const RunFacts& saved,
                                        const Options& now_options, const RunFacts& now) {
  std::vector<Difference> differences = fact_differences(saved, now);
  for (const OptionDifference& option : diff_for_resume(saved_config, now_options)) {
    if (option.is_path || option.key == "effective batch" || option.key == "train.precision") continue;
    differences.push_back({option.key, option.saved, option.current, option.resume});
  }
  return differences;
}

}  // namespace

nlohmann::json RunFacts::save_state() const {
  return {{"effective_batch", effective_batch},
          {"total_steps", total_steps},
          {"data_fingerprint", data_fingerprint},
          {"replay_fingerprint", replay_fingerprint},
          {"order_fingerprint", order_fingerprint},
          {"tokenizer_sha256", tokenizer_sha256},
          {"fisher_sha256", fisher_sha256},
          {"precision", precision},
          {"threads", threads},
          {"ranks", ranks},
          {"device", device},
          {"cpu_capability", cpu_capability}};
}

void RunFacts::load_state(const nlohmann::json& state) {
  effective_batch = state.value("effective_batch", std::int64_t{0});
  total_steps = state.value("total_steps", std::int64_t{0});
  data_fingerprint = state.value("data_fingerprint", "");
  replay_fingerprint = state.value("replay_fingerprint", "");
  order_fingerprint = state.value("order_fingerprint", "");
  tokenizer_sha256 = state.value("tokenizer_sha256", "");
  fisher_sha256 = state.value("fisher_sha256", "");
  precision = state.value("precision", "");
  threads = state.value("threads", std::int64_t{0});
  ranks = state.value("ranks", std::int64_t{1});
  device = state.value("device", "");
  cpu_capability = state.value("cpu_capability", "");
}

std::set<std::string> parse_allowed_changes(const std::vector<std::string>& names) {
  std::set<std::string> allowed;
  for (const std::string& name : names) {
    const auto known = find_resume_class(name);
    if (!known || *known == ResumeClass::kNever || *known == ResumeClass::kWarn || *known == ResumeClass::kFree) {
      throw Error("ARG001", concat("--allow-change does not know \"", name, "\""))
          .fix("use batch, order, data, groups, precision, schedule or loss");
    }
    allowed.insert(name);
  }
  return allowed;
}

bool data_differs(const std::string& saved_config, const RunFacts& saved, const Options& now_options,
                  const RunFacts& now) {
  const std::vector<Difference> differences = all_differences(saved_config, saved, now_options, now);
  return std::any_of(differences.begin(), differences.end(),
                     [](const Difference& one) { return one.resume == ResumeClass::kData; });
}

ResumeDecision compare_for_resume(const std::string& saved_config, const RunFacts& saved, const Options& now_options,
                                  const RunFacts& now, const std::set<std::string>& allowed) {
  const std::vector<Difference> differences = all_differences(saved_config, saved, now_options, now);
  const std::string saved_method = load_config_json(saved_config, "the stored configuration").options.peft.method;
  bool other_adapters = false;
  ResumeDecision decision;
  std::vector<std::string> refused;
  std::set<std::string> needed;
  for (const Difference& difference : differences) {
    const std::string values = concat(difference.what, ": checkpoint ", difference.saved, ", now ", difference.now);
    const std::string name(resume_class_name(difference.resume));
    if (difference.resume == ResumeClass::kFree) continue;
    if (difference.resume == ResumeClass::kWarn) {
      decision.notes.push_back(values + " (the next steps may differ in the last bits)");
      continue;
    }
    if (difference.resume != ResumeClass::kNever && allowed.count(name)) {
      decision.notes.push_back(values + " (allowed)");
      decision.groups_changed |= difference.resume == ResumeClass::kGroups;
      continue;
    }
    refused.push_back(concat(values, "  [", name, ": ", reason(difference.resume), "]"));
    needed.insert(difference.resume == ResumeClass::kNever ? "" : name);
    other_adapters |= starts_with(difference.what, "peft.");
  }
  if (refused.empty()) return decision;
  Error error("CKP010", "this run differs from the one that wrote the checkpoint");
  for (const std::string& line : refused) std::move(error).detail(line);
  if (saved_method.empty() != now_options.peft.method.empty()) {
    const char* whole = "model (whole weights; optimizer state of those)";
    const char* adapted = "base_model and adapter (optimizer state of …lora_A, …lora_B)";
    std::move(error).detail(concat("keys: the checkpoint holds ", saved_method.empty() ? whole : adapted,
                                   ", this run needs ", saved_method.empty() ? adapted : whole));
  }
  if (other_adapters && !saved_method.empty()) {
    std::move(error).fix(
        "to go on from these weights otherwise, start fresh from them as a base: train_gpt_v2 merge --checkpoint FILE "
        "--output merged_final.pth, then init.from merged_final.pth and another --output-dir");
  } else if (needed.count("")) {
    std::move(error).fix(
        "such a change needs a fresh run: set init.from to this checkpoint and use another --output-dir");
  } else {
    std::string flags;
    for (const std::string& name : needed) flags += " --allow-change " + name;
    std::move(error).fix(concat("undo the change, or accept it for this start with", flags));
  }
  throw error;
}

}  // namespace train_gpt_v2
