#pragma once
// One training run from configuration to exit status: builds what the loop needs, restores what a checkpoint holds,
// says what is going to happen, trains.

#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/train/preflight.h"
#include "train_gpt_v2/train/rank_environment.h"
#include "train_gpt_v2/train/sampling.h"

namespace train_gpt_v2 {

struct SessionRequest {
  Options options;
  std::string run_directory;
  std::string resume = "auto";  // auto | none | a path
  std::set<std::string> allowed_changes;
  std::optional<std::int64_t> max_steps;  // --max-steps: this process stops there
  double hang_seconds = 0;                // end with status 83 when nothing moved for so long; 0 = never
  bool dry_run = false;                   // everything up to the first step
  StageCallback stage;                    // called as each part of the preparation begins; may be empty
  // When set: no training and no trace in the run directory; two steps are measured, saving and loading tried.
  PreflightResult* preflight = nullptr;
  at::Device device = at::kCPU;
  RankEnvironment ranks;  // one process of several: each runs this with its own rank
  std::string build;
  Vocoder vocoder;  // of the samples while training; empty: no sound
};

// Throws Errors; a run that ended as asked, or was stopped and saved, gives its status.
ExitStatus run_training(const SessionRequest& request);

// Where `--resume NAME` points: a bare file name is looked for in the working directory, then in the run directory.
std::string find_resume_file(const std::string& name, const std::string& run_directory);

}  // namespace train_gpt_v2
