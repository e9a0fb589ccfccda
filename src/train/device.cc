#include "train_gpt_v2/train/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <c10/util/Exception.h>
#include <malloc.h>

#include <cstdlib>
#include <new>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

#ifdef TGV2_CUDA_API
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>
#endif
#ifdef TGV2_OWN_CUDA_KERNELS
#include "train_gpt_v2/kernels/cuda.h"
#endif

namespace train_gpt_v2 {
namespace {

GpuProbe probe_gpus() {
  GpuProbe probe;
#ifdef TGV2_CUDA_API
  probe.runtime = CUDART_VERSION;
  const cudaError_t result = cudaGetDeviceCount(&probe.count);
  if (result != cudaSuccess) probe.count = 0;
  if (result == cudaErrorInsufficientDriver) {
    probe.insufficient = true;
    if (cudaDriverGetVersion(&probe.driver) != cudaSuccess) probe.driver = 0;
  }
#endif
  return probe;
}

std::string version_text(int version) {
  return concat(version / 1000, ".", version % 1000 / 10);
}

}  // namespace

int usable_gpus(const GpuProbe& probe) {
  if (!probe.insufficient || probe.driver == 0) return probe.count;
  throw Error("GPU001", "the GPU driver is too old for this build")
      .detail(concat("driver supports CUDA ", version_text(probe.driver), ", this build needs CUDA ",
                     version_text(probe.runtime)))
      .fix("update the driver, or run with --device cpu");
}

at::Device choose_device(const std::string& name, int local_rank) {
  if (name == "cpu") return at::kCPU;
  const bool automatic = name.empty() || name == "auto";
  int index = 0;
  if (!automatic && name != "cuda") {
    char* end = nullptr;
    if (starts_with(name, "cuda:")) index = static_cast<int>(std::strtol(name.c_str() + 5, &end, 10));
    if (!end || *end != '\0' || end == name.c_str() + 5 || index < 0) {
      throw Error("ARG001", concat("--device does not know \"", name, "\"")).fix("use auto, cpu, cuda or cuda:N");
    }
  }
  const int count = usable_gpus(probe_gpus());
  if (automatic && count == 0) return at::kCPU;
  if ((automatic || name == "cuda") && count > 1) index = local_rank;  // Slurm may show each task its own GPU alone
  if (index >= count) {
    throw Error("GPU002", concat("no such GPU: ", name, local_rank > 0 ? concat(" for local rank ", local_rank) : ""))
        .detail(concat("usable GPUs here: ", count))
        .fix("use --device auto or --device cpu; train_gpt_v2 --version tells whether this build has GPU support");
  }
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
}

std::string describe_device(at::Device device) {
#ifdef TGV2_CUDA_API
  if (device.is_cuda()) {
    const cudaDeviceProp* properties = at::cuda::getDeviceProperties(device.index());
    return concat(properties->name, " (", human_bytes(properties->totalGlobalMem), ")");
  }
#endif
  (void)device;
  return concat("CPU (", at::get_cpu_capability(), ", ", at::get_num_threads(), " threads)");
}

void configure_compute(const TrainOptions& options, at::Device device) {
  if (options.num_threads) at::set_num_threads(static_cast<int>(*options.num_threads));
  if (!device.is_cuda()) return;
  if (options.deterministic) {
    ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);  // read at the first use of cuBLAS
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  }
  at::globalContext().setFloat32MatmulPrecision(options.tf32 ? "high" : "highest");
}

std::uint64_t allocated_bytes(at::Device device) {
#ifdef TGV2_CUDA_API
  if (device.is_cuda()) {
    return static_cast<std::uint64_t>(
        c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).allocated_bytes[0].current);
  }
#endif
  (void)device;
  const struct mallinfo2 heap = ::mallinfo2();
  return heap.uordblks + heap.hblkhd;
}

bool is_out_of_memory(const std::exception& failure) {
  if (dynamic_cast<const std::bad_alloc*>(&failure) || dynamic_cast<const c10::OutOfMemoryError*>(&failure))
    return true;
  if (!dynamic_cast<const c10::Error*>(&failure)) return false;
  // LibTorch has no type of its own for these.
  const std::string_view what = failure.what();
  for (const std::string_view sign :
       {"DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "CUDA out of memory",
        "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"}) {
    if (what.find(sign) != std::string_view::npos) return true;
  }
  return false;
}

void release_cached_memory() {
#ifdef TGV2_CUDA_API
  if (at::hasCUDA() && c10::cuda::CUDACachingAllocator::allocator.load()) c10::cuda::CUDACachingAllocator::emptyCache();
#endif
}

#ifdef TGV2_OWN_CUDA_KERNELS
namespace {

bool has_kernels(at::Device device) {
  return device.is_cuda() && at::cuda::getDeviceProperties(device.index())->major >= 8;
}

}  // namespace

std::unique_ptr<Kernels> device_kernels(at::Device device, bool tf32) {
  if (!has_kernels(device)) return nullptr;
  return make_cuda_kernels(device.index(), at::cuda::getCurrentCUDAStream(device.index()).stream(), tf32);
}

bool device_kernels_take(at::Device device, const ModelOptions& options) {
  return has_kernels(device) && cuda_kernels_take(options.model_dim, options.heads);
}
#else
std::unique_ptr<Kernels> device_kernels(at::Device, bool) {
  return nullptr;
}

bool device_kernels_take(at::Device, const ModelOptions&) {
  return false;
}
#endif

}  // namespace train_gpt_v2
