#pragma once
// `check`: everything that can spoil a run, before it begins (interface.md §1): configuration, tokenizer, data,
// weights, one step on the longest batch, saving and loading, room on the disk; then memory, time per step and for the
// whole run.
//
// A stage that fails does not end the check: what can still be looked at is. The exit status is that of the first
// error, 0 where there are only warnings. With `repair` the manifests are written anew without what cannot be used and
// with padded codes cut, and the repaired ones are looked at.

#include <torch/types.h>

#include <iosfwd>
#include <string>
#include <vector>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {

struct CheckRequest {
  std::string config;
  std::vector<std::string> sets;
  std::string device = "auto";
  std::string output_dir;  // "" = runs/<config name>
  std::string repair;      // "" = no repair
  bool full = false;       // read every array
  bool data_only = false;  // stop after the data
  bool json = false;
  std::string build;
};

// Writes a table and findings for people, or one JSON document, to `out`.
ExitStatus run_check(const CheckRequest& request, std::ostream& out);

}  // namespace train_gpt_v2
