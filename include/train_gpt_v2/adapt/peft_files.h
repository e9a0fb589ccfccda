#pragma once
// Adapters in the files of huggingface/peft: adapter_config.json and adapter_model.safetensors (algorithms.md §1.9).
//
// Reading accepts keys with and without "base_model.model.", with ".default", both spellings of the magnitude, LORA
// (plain and DoRA) and ADALORA (sliced by its rank_pattern). A setting of the config that is not honoured, a tensor
// that would be dropped, a missing magnitude and a rank other than the patterns say are refused: each would load as
// another model. Writing keeps LoRA and DoRA as they are; the adaptive kinds become plain ones of rank r and alpha 2r
// with the same W' (§3.6), rank 0 as rank 1 with B = 0. Errors: PFT001 nothing peft could express, PFT002 for files, IO
// errors.

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

#include "train_gpt_v2/adapt/adapter_set.h"
#include "train_gpt_v2/io/tensor.h"

namespace train_gpt_v2 {

struct PeftModule {
  std::string module;  // "gpt.h.0.attn.c_attn"
  bool embedding = false;
  std::int64_t rank = 0;  // as configured; an ADALORA module may hold fewer rows
  double alpha = 0;
  Tensor a, b, lambda, magnitude;  // `data` is null where the kind has none
};

struct PeftFolder {
  AdapterKind kind = AdapterKind::kLora;
  bool rslora = false;
  double dropout = 0;
  std::vector<PeftModule> modules;                    // by name
  std::vector<std::pair<std::string, Tensor>> saved;  // modules_to_save, under the names of the plain model
};

PeftFolder read_peft_folder(const std::string& folder);

// Adapters with the folder's values over the model's matrices. `saved` is the caller's to load.
AdapterSet make_adapter_set(const PeftFolder& folder, const std::vector<AdapterTarget>& targets);

// `beside`: whatever trains beside the adapters, by parameter name; becomes modules_to_save.
void write_peft_folder(const std::string& folder, const AdapterSet& set, double dropout,
                       const std::vector<std::pair<std::string, at::Tensor>>& beside);

}  // namespace train_gpt_v2
