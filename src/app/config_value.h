#pragma once
// A configuration as the dict under "config" of a merged file, and back.

#include <string>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/io/value.h"

namespace train_gpt_v2 {

// Every key with its value, as in config.effective.json.
Value config_value(const Options& options);

// JSON text of a dict that may have come from anywhere: "" when it is no configuration of ours (no section "model").
// Throws CKP003 for contents that JSON cannot hold.
std::string config_text(const Value& value);

}  // namespace train_gpt_v2
