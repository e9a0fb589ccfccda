#pragma once
// A model to use rather than to train: configuration and weights for `eval`, `sample`, `export` and the like.

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/dataset.h"
#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2 {

struct ModelRequest {
  std::string checkpoint;         // any file with weights
  std::string config;             // "" where the checkpoint carries its own
  std::vector<std::string> sets;  // --set
  std::string weights;            // raw | ema | "": what best_model.pth records, else raw
  at::Device device = at::kCPU;
  bool complete = false;  // every tensor must be in the file, conditioners too
};

struct ModelSource {
  Options options;
  std::unique_ptr<UnifiedVoice> model;  // in evaluation mode, on the device
  std::string weights;                  // raw or ema, as used
};

// Throws CFG020 when no configuration is known, IO001 (66) when EMA weights are asked for and absent, CKP errors.
ModelSource load_model(const ModelRequest& request);

// The pairs a command works on: `manifests`, or the configuration's validation manifests. CFG021 where both are empty.
std::unique_ptr<Dataset> open_pairs(const Options& options, const std::vector<std::string>& manifests);

}  // namespace train_gpt_v2
