#pragma once
// `train_gpt_v2 eval`: losses of a checkpoint on manifests or on the batches of an order file (interface.md §1, §5).

#include <iosfwd>
#include <string>
#include <vector>

#include "train_gpt_v2/app/model_source.h"

namespace train_gpt_v2 {

struct EvalRequest {
  ModelRequest model;
  std::vector<std::string> manifests;  // empty: the configuration's val_manifests
  std::string order_file;              // "": every sample once
  bool per_sample = false;
  bool json = false;
};

void run_eval(const EvalRequest& request, std::ostream& out);

}  // namespace train_gpt_v2
