#pragma once
// What this program was built from and with.

#include <string>

namespace train_gpt_v2 {

// Several lines for `--version`: version, git commit, LibTorch, CUDA, cuDNN, compiled architectures, CPU capability.
// Works without a GPU or driver.
std::string version_report();

// "0.1.0 (git 1a2b3c4)": stored in checkpoints.
std::string build_id();

}  // namespace train_gpt_v2
