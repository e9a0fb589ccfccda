#include <cstdlib>

#include "support/test_files.h"

namespace train_gpt_v2::testing {
namespace {

std::string from_environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

}  // namespace

std::string data_path(std::string_view name) {
  return from_environment("TGV2_TEST_DATA", TGV2_DEFAULT_TEST_DATA) + "/" + std::string(name);
}

std::string binary_path() {
  return from_environment("TGV2_BINARY", TGV2_DEFAULT_BINARY);
}

std::string torch_site() {
  return from_environment("TGV2_TORCH_SITE", TGV2_DEFAULT_TORCH_SITE);
}

}  // namespace train_gpt_v2::testing

// libgomp is not instrumented; without this TSan reports its barriers as races (libtorch.md V6).
extern "C" const char* __tsan_default_options();
extern "C" const char* __tsan_default_options() {
  return "ignore_noninstrumented_modules=1";
}
