#include "train_gpt_v2/model/gradient_stages.h"

#include <string_view>

#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {

std::int64_t gradient_stages(const ModelOptions& options) {
  return options.layers + 2;
}

std::int64_t gradient_stage(const ModelOptions& options, const std::string& key) {
  constexpr std::string_view kBlock = "gpt.h.";
  if (starts_with(key, kBlock)) return options.layers - std::stoll(key.substr(kBlock.size()));
  for (const char* prefix : {"text_head.", "mel_head.", "final_norm.", "gpt.ln_f."}) {
    if (starts_with(key, prefix)) return 0;
  }
  return options.layers + 1;
}

}  // namespace train_gpt_v2
