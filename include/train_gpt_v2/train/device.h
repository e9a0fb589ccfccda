#pragma once
// Choosing and setting up the device (interface.md §1 "Device auto").

#include <torch/types.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/kernels/kernels.h"

namespace train_gpt_v2 {

// "auto" (the GPU where one works, else the CPU), "cpu", "cuda", "cuda:N". Throws GPU001 for a driver too old for this
// build, GPU002 for a GPU asked for and not there, ARG001 for anything else. Touches no GPU when "cpu".
// "auto" and "cuda" mean the GPU of this local rank, where a process sees more than one.
at::Device choose_device(const std::string& name, int local_rank = 0);

// What CUDA says about this machine; all zero in a build without it. Versions as CUDA writes them: 12080 is 12.8.
struct GpuProbe {
  int count = 0;
  bool insufficient = false;  // no driver (version 0), or one that cannot serve this build
  int driver = 0, runtime = 0;
};

// Number of usable GPUs. A driver that is there but too old is an error (GPU001), none at all means none.
int usable_gpus(const GpuProbe& probe);

// "NVIDIA A100 80GB (79.2 GiB)", "CPU (AVX512, 2 threads)".
std::string describe_device(at::Device device);

// Threads, TF32 and determinism switches; call once before the first tensor work.
void configure_compute(const TrainOptions& options, at::Device device);

// Bytes the process has in use there now: of the GPU's allocator, or of the heap.
std::uint64_t allocated_bytes(at::Device device);

// Whether a failure says that host or device memory was too small (std::bad_alloc, LibTorch's allocators, cuBLAS).
bool is_out_of_memory(const std::exception& failure);

// Gives memory that LibTorch keeps for reuse back to the device.
void release_cached_memory();

// Our own kernels on torch's current stream of a GPU; null on the CPU, in a build without them and on GPUs before
// compute capability 8.0.
std::unique_ptr<Kernels> device_kernels(at::Device device, bool tf32);
// Whether there are such kernels, and for this model's sizes.
bool device_kernels_take(at::Device device, const ModelOptions& options);

}  // namespace train_gpt_v2
