#pragma once
// Our own CUDA kernels behind raw-pointer launchers; compiled where nvcc is (CMake: TGV2_HAVE_CUDA_KERNELS).
//
// Pointers are device pointers, `stream` is a cudaStream_t. A launcher returns the launch's cudaError_t as an int (0 =
// launched); it does not synchronise. Threads: any, one stream at a time.

#include <cstdint>
#include <memory>

#include "train_gpt_v2/kernels/dropout.h"
#include "train_gpt_v2/kernels/kernels.h"

namespace train_gpt_v2 {

// out[i, c] = dropout.scale where kept, else 0: the decisions of fill_dropout_scale() (dropout.h), bit for bit, so that
// a GPU run can use the masks of a CPU run. rows [count] are dropout_row()s.
int launch_dropout_scale(const Dropout& dropout, std::uint32_t site, const std::uint32_t* rows, std::int64_t count,
                         std::int64_t columns, float* out, void* stream);

// The kernels of kernels.h on one CUDA stream. Pointers in the structs are device pointers, except those named host
// memory; every call is queued and returns, save download(), sum_of_squares() and an upload() that finds its 32 MiB of
// page-locked memory in use. Products go to cuBLAS; `tf32` lets it round float operands to 10 bits.
// Masks are those of the CPU, bit for bit; those of the attention stay from forward to backward (one bit for a head, a
// query and a key of the longest segment). Same bits every time on the same device: no atomic adds floats. log_sum may
// differ from the CPU's by a constant of the row (the key bias is left out, as softmax ignores it).
// Limits beside kernels.h: cuda_kernels_take(); rows of matrices start at multiples of 16 bytes, their padding may be
// read and that of logits overwritten; a product has bf16 operands, or float ones and a float result; no row flags.
// Tensor cores do the attention for bf16 with a head size of 64; other sizes run, slowly.
// Errors: std::runtime_error with CUDA's message, beside those of kernels.h.
std::unique_ptr<Kernels> make_cuda_kernels(int device, void* stream, bool tf32);

// Model widths and heads the kernels can run.
bool cuda_kernels_take(std::int64_t width, std::int64_t heads);

int cuda_device_count();  // 0 without a usable driver

}  // namespace train_gpt_v2
