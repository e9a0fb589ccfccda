#pragma once
// The black box: the batch behind a step that stood out, kept so that it can be looked at and trained on again.
//
// RUN/black_box/window_{W}.pth, of several ranks window_{W}_rank{R}.pth with the batches of each (torch.save format):
// {step, window, action, reason, loss, grad_norm, loss_z, norm_z, micro_batches: [{ids, text, text_begin, codes,
// code_begin, condition, emo_vec, ...}]}; the arrays are those of data/batch.h. At most kMostFiles per run. A file that
// cannot be written is a warning: watching never stops training.

#include <string>
#include <vector>

#include "train_gpt_v2/data/loader.h"
#include "train_gpt_v2/train/stability.h"

namespace train_gpt_v2 {

struct BlackBoxEntry {
  static constexpr std::size_t kMostFiles = 20;
  std::int64_t step = 0, window = 0;
  double loss = 0, grad_norm = 0;
  const StepVerdict& verdict;
  const std::vector<LoadedBatch>& micro_batches;
  int rank = -1;  // -1: the only one
};

// The file's path, "" when it was not written.
std::string write_black_box(const std::string& run_directory, const BlackBoxEntry& entry);

// "warn", "skip", "rollback", "stop"; "train" for a step that is as it should be.
std::string step_action_name(StepAction action);

}  // namespace train_gpt_v2
