#pragma once
// What may differ between a checkpoint and the run that continues it (interface.md §3 "Resume").
//
// Every difference is named with both values, its class and the reason; a class is let through by --allow-change NAME.
// Never possible: another model, tokenizer or adapter setting. Warned: threads, ranks, device, CPU capability. Free:
// everything that cannot change the mathematics of the next step.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "train_gpt_v2/config/options.h"

namespace train_gpt_v2 {

// Resolved facts that the options alone do not tell; stored in the checkpoint beside the configuration.
struct RunFacts {
  std::int64_t effective_batch = 0;  // batch_size * grad_accumulation
  std::int64_t total_steps = 0;
  std::string data_fingerprint;
  std::string replay_fingerprint;  // of data.replay, "" without it
  std::string order_fingerprint;   // of the order file's content, "" without one
  std::string tokenizer_sha256;
  std::string fisher_sha256;  // of ewc.fisher, "" without EWC
  std::string precision;      // fp32, bf16, fp16
  std::int64_t threads = 0, ranks = 1;
  std::string device;
  std::string cpu_capability;

  nlohmann::json save_state() const;
  void load_state(const nlohmann::json& state);
};

struct ResumeDecision {
  bool groups_changed = false;     // moments are kept by name, new tensors start without
  std::vector<std::string> notes;  // lines for the log
};

// True where the positions in an epoch count other samples: the next epoch begins, with the new data.
bool data_differs(const std::string& saved_config, const RunFacts& saved, const Options& now_options,
                  const RunFacts& now);

// Throws CKP010 naming every difference that is not allowed.
ResumeDecision compare_for_resume(const std::string& saved_config, const RunFacts& saved, const Options& now_options,
                                  const RunFacts& now, const std::set<std::string>& allowed);

// The NAMEs --allow-change knows; throws ARG001 for others.
std::set<std::string> parse_allowed_changes(const std::vector<std::string>& names);

}  // namespace train_gpt_v2
