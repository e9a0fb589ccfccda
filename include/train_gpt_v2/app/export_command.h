#pragma once
// `train_gpt_v2 export`: the weights of a checkpoint for other programs. gpt.pth (a bare state dict in torch.save
// format) and safetensors hold exactly the reference's keys, `pe` included, adapters folded in. peft is a folder for
// huggingface/peft: the adapters alone, and as modules_to_save the modules that trained beside them.
//
// Errors: PFT004 for peft without adapters, PFT001 for what peft cannot express, ARG001 for --dtype with peft.

#include <string>

#include "train_gpt_v2/app/model_source.h"

namespace train_gpt_v2 {

struct ExportRequest {
  ModelRequest model;
  std::string output;
  std::string format = "gpt.pth";  // gpt.pth | safetensors | peft
  std::string dtype;               // fp32 | fp16 | bf16; "" as stored. Adapters are always fp32
};

// What was written, in one line.
std::string run_export(const ExportRequest& request);

}  // namespace train_gpt_v2
