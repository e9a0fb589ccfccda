#pragma once
// Choosing and setting up the device (interface.md §1 "Device auto").

#include <torch/types.h>

#include <cstdint>
#include <exception>
#include <string>

#include "train_gpt_v2/config/options.h"

namespace train_gpt_v2 {

// "auto" (the GPU where one works, else the CPU), "cpu", "cuda", "cuda:N". Throws GPU001 for a driver too old for this
// build, GPU002 for a GPU asked for and not there, ARG001 for anything else. Touches no GPU when "cpu".
at::Device choose_device(const std::string& name);

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

}  // namespace train_gpt_v2
