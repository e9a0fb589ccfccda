#pragma once
// A second pass over finished codes (architecture.md §5.4): their latents, and which text each code attended to.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2 {

// One utterance: text ids (as trained: nothing is removed), codes without stop, [latents,D] and [D] conditioning.
struct Utterance {
  std::vector<std::int32_t> text, codes;
  at::Tensor condition, emo_vec;
};

// [m,D]: the state that predicts each code, for the vocoder's first stage.
at::Tensor latents(UnifiedVoice& model, const Utterance& utterance);

struct Alignment {
  at::Tensor weights;  // float [m,l] on the CPU: attention of code positions to text ids, rows scaled to sum 1
  std::int64_t layer = 0, head = 0;
  double monotonicity = 0;  // share of steps whose most attended text id does not lie before the last one's
  double coverage = 0;      // share of text ids that are most attended by some code
};

// The head whose path through the text is the most orderly (largest monotonicity x coverage). Needs at least one text
// id and one code.
Alignment text_alignment(UnifiedVoice& model, const Utterance& utterance);

// The two measures of one attention map [m,l].
std::pair<double, double> path_measures(const at::Tensor& weights);

}  // namespace train_gpt_v2
