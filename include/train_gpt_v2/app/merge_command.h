#pragma once
// `train_gpt_v2 merge`: adapters folded into their base, one file of plain weights (algorithms.md §1.8).
//
// Before anything is written, batches of real samples run twice: with the adapters computed beside their projections
// as peft does it, and with the folded weights. The file is refused when logits or losses differ by more than
// `tolerance` relative to max(1, the largest). Everything is computed in fp32.
// The file is {model, config}: `model` has exactly the keys of the reference, `config` is the configuration as a dict,
// without its adapter sections, so that eval, sample and export need no --config.

#include <iosfwd>
#include <string>
#include <vector>

#include "train_gpt_v2/app/model_source.h"
#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {

struct MergeRequest {
  ModelRequest model;
  std::vector<std::string> manifests;  // for the proof; empty: the configuration's validation manifests
  std::string output;
  // W0 + scale·(W' − W0): what the adapters changed, taken back in part (§5.5). What trained beside them stays.
  double scale = 1;
  double tolerance = 1e-4;
  bool json = false;
};

// kOk, or the status a signal asked for: then nothing is written. Throws PFT004 for a file without adapters, PFT005
// when the folded model differs, CFG021 without a manifest.
ExitStatus run_merge(const MergeRequest& request, std::ostream& out);

}  // namespace train_gpt_v2
