#pragma once
// A model with adapters in a checkpoint file (interface.md §3): what stands there instead of the key "model".
//
//   base_model             OrderedDict, the plain keys in the reference's order: adapted matrices hold W0, all else its
//                          current value, so also what trains beside the adapters
//   adapter                {peft's name without "base_model.model.": tensor}; shapes carry the current ranks
//   train_gpt_v2.adapters  JSON text {"modules": [{module, method, rank, alpha, rslora}], "beside": [parameter name]};
//                          ranks as at the start of the run, from which the scale follows
//   optimizer, ema_state   by name; the averages are those of the adapters' tensors and of what trains beside them
// Step checkpoints also hold train_gpt_v2.allocator (adapt/adalora.h) and train_gpt_v2.ewc (adapt/ewc.h).
//
// One thread. Errors: CKP003 and CKP007 for damaged descriptions, PFT002 for adapters that do not fit the model, CKP
// errors of model/weights.h.

#include <memory>
#include <string>
#include <vector>

#include "train_gpt_v2/adapt/adapter_set.h"
#include "train_gpt_v2/io/value.h"
#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2 {

bool is_adapter_checkpoint(const Value& root);  // it has base_model and adapter

// The text of train_gpt_v2.adapters.
std::string describe_adapters(const AdapterSet& set, const std::vector<std::string>& beside);
std::vector<AdapterSpec> stored_adapter_specs(const Value& root, const std::vector<AdapterTarget>& targets);
std::vector<std::string> stored_beside(const Value& root);  // parameters that train beside the adapters

// base_model into `model`, every tensor; `source` is for messages.
void load_base_model(UnifiedVoice& model, const Value& root, const std::string& source);

// The whole model of such a checkpoint: base, adapters with their values (`averaged`: those of ema_state, also for what
// trained beside them), W' in the model's weights. The set shares the model's weights as they are now: move the model
// to a device before the call or not at all while the set is in use.
std::unique_ptr<AdapterSet> load_adapted_model(UnifiedVoice& model, const Value& root, bool averaged,
                                               const std::string& source);

// A folder of peft on top of the model (init.peft_adapter): its modules_to_save, then its adapters, then W' in the
// weights. Same rule for devices.
std::unique_ptr<AdapterSet> apply_peft_folder(UnifiedVoice& model, const std::string& folder);

// The averages of an ema_state over the model's own tensors; an average of new rows alone goes to the end of its table.
void apply_averages(UnifiedVoice& model, const Value& shadows, const std::string& source);

}  // namespace train_gpt_v2
