#pragma once
// The sub-commands: each adds its options to the parser and, when chosen, leaves its exit status in `status`.

#include "train_gpt_v2/core/error.h"

namespace CLI {
class App;
}

namespace train_gpt_v2 {

void add_commands(CLI::App& app, ExitStatus& status);

}  // namespace train_gpt_v2
