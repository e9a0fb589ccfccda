#pragma once
// The weights a run starts from (init.from), made the same way wherever they are needed: training, and every command
// that measures something on the weights before training (a Fisher file must be measured on exactly these).

#include <string>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/tokenizer.h"
#include "train_gpt_v2/model/weights.h"

namespace train_gpt_v2 {

// A file's weights into `model`, which is on the CPU and holds fresh values. Text rows that the file lacks are made as
// init.new_rows says, from the pieces of `tokenizer` (null: without knowing them) and data.base_tokenizer.
// Errors: those of load_state and of reading the tokenizer.
LoadReport load_start_weights(UnifiedVoice& model, const Value& root, const std::string& source, const Options& options,
                              const Tokenizer* tokenizer);

}  // namespace train_gpt_v2
