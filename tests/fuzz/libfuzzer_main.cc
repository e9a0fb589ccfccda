// libFuzzer's entry points (preset fuzz, clang). The target is named by TGV2_FUZZ_TARGET; scripts/fuzz.sh runs them
// all.
#include <cstdio>
#include <cstdlib>

#include "fuzz_targets.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"

namespace {
const train_gpt_v2::fuzz::Target* target = nullptr;
}

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* name = std::getenv("TGV2_FUZZ_TARGET");
  target = train_gpt_v2::fuzz::find_target(name ? name : "");
  if (!target) {
    std::fprintf(stderr, "TGV2_FUZZ_TARGET names no target; there are:");
    for (const auto& known : train_gpt_v2::fuzz::targets()) std::fprintf(stderr, " %s", known.name.data());
    std::fprintf(stderr, "\n");
    std::exit(64);
  }
  train_gpt_v2::configure_logging({train_gpt_v2::LogLevel::kError, false});
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    target->run({data, size});
  } catch (const train_gpt_v2::Error&) {
  }
  return 0;
}
