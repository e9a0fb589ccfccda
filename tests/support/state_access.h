#pragma once
// The state dict by name, for tests that look at single tensors.

#include <map>
#include <string>

#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2::testing {

inline std::map<std::string, at::Tensor> state_map(const UnifiedVoice& model) {
  std::map<std::string, at::Tensor> out;
  for (const StateEntry& entry : model.state()) out.emplace(entry.name, entry.tensor);
  return out;
}

}  // namespace train_gpt_v2::testing
