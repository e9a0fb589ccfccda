#pragma once
// `train_gpt_v2 export`: the weights of a checkpoint as a file for inference: exactly the reference's keys, `pe` included.

#include <string>

#include "train_gpt_v2/app/model_source.h"

namespace train_gpt_v2 {

struct ExportRequest {
  ModelRequest model;
  std::string output;
  std::string format = "gpt.pth";  // gpt.pth (a bare state dict in torch.save format) | safetensors
  std::string dtype;               // fp32 | fp16 | bf16; "" as stored
};

// What was written, in one line.
std::string run_export(const ExportRequest& request);

}  // namespace train_gpt_v2
