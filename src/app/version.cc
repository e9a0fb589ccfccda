#include "train_gpt_v2/app/version.h"

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/version.h>

#include "build_info.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {

std::string build_id() {
  return concat(TGV2_VERSION, " (git ", TGV2_GIT_COMMIT, ")");
}

std::string version_report() {
  std::string cuda = "none (CPU build)", cudnn = "none";
#ifdef TGV2_CUDA_API
  const auto& hooks = at::detail::getCUDAHooks();
  const long runtime = hooks.versionCUDART();
  cuda = concat(runtime / 1000, ".", runtime % 1000 / 10);
  const long dnn = hooks.versionCuDNN();
  cudnn = concat(dnn / 10000, ".", dnn % 10000 / 100, ".", dnn % 100);
#endif
  return concat("train_gpt_v2 ", build_id(), "\n", "LibTorch ", TORCH_VERSION, "\n", "CUDA ", cuda, "\n", "cuDNN ",
                cudnn, "\n", "own CUDA kernels: ", TGV2_CUDA_ARCHITECTURES, "\n",
                "CPU capability: ", at::get_cpu_capability(), "\n");
}

}  // namespace train_gpt_v2
