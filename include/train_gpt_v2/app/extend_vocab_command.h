#pragma once
// `train_gpt_v2 extend-vocab`: the base tokenizer with pieces for a new language (data/vocabulary_extension.h).

#include <iosfwd>

#include "train_gpt_v2/data/vocabulary_extension.h"

namespace train_gpt_v2 {

// Extends, then says what was done: a table, or with `json` one document.
void run_extend_vocab(const ExtensionRequest& request, bool json, std::ostream& out);

}  // namespace train_gpt_v2
