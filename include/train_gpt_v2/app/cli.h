#pragma once
// The command line: sub-commands, common options, and the one place that turns Errors into exit statuses.

namespace train_gpt_v2 {

// Parses, runs and returns the exit status of the process (interface.md §1). Never throws.
int run_command_line(int argc, char** argv);

}  // namespace train_gpt_v2
