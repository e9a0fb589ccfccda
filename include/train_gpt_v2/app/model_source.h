#pragma once
// A model to use rather than to train: configuration and weights for `eval`, `sample`, `export` and the like.
//
// Adapters come from one of our own checkpoints (base_model + adapter), or from init.peft_adapter, a folder of peft
// that is applied on top of any file of plain weights. Either way the model's weights hold W'.

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "train_gpt_v2/adapt/adapter_set.h"
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
  std::unique_ptr<UnifiedVoice> model;   // in evaluation mode, on the device
  std::string weights;                   // raw or ema, as used
  std::unique_ptr<AdapterSet> adapters;  // null: plain weights
  std::vector<std::string> beside;       // parameters that trained beside the adapters
  double adapter_dropout = 0;            // of the adapters' training
};

// Throws CFG020 when no configuration is known, CKP014 (66) when EMA weights are asked for and absent, CKP002 for a
// Fisher file, other CKP errors, PFT001 for init.peft_adapter on a checkpoint that has adapters.
ModelSource load_model(const ModelRequest& request);

// PFT004 for a model without adapters, where a command is about them.
void require_adapters(const ModelSource& source, const std::string& checkpoint);

// The file that a command will write, looked at before the work: ARG001 where it is the checkpoint that is read (a
// resume needs more than what is written), IO003 where it is a folder.
void check_output_file(const std::string& output, const std::string& checkpoint);

// The plain tensors inside a file, the base's in a checkpoint with adapters. Throws CKP003 where there are none.
const Value& weights_in(const Value& root, const std::string& source);

// The pairs a command works on: `manifests`, or the configuration's validation manifests. CFG021 where both are empty.
std::unique_ptr<Dataset> open_pairs(const Options& options, const std::vector<std::string>& manifests);

}  // namespace train_gpt_v2
