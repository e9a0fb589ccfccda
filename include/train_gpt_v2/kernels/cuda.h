#pragma once
// Our own CUDA kernels behind raw-pointer launchers; compiled where nvcc is (CMake: TGV2_HAVE_CUDA_KERNELS).
//
// Pointers are device pointers, `stream` is a cudaStream_t. A launcher returns the launch's cudaError_t as an int (0 =
// launched); it does not synchronise. Threads: any, one stream at a time.

#include <cstdint>

#include "train_gpt_v2/kernels/dropout.h"

namespace train_gpt_v2 {

// out[i, c] = dropout.scale where kept, else 0: the decisions of fill_dropout_scale() (dropout.h), bit for bit, so that
// a GPU run can use the masks of a CPU run. rows [count] are dropout_row()s.
int launch_dropout_scale(const Dropout& dropout, std::uint32_t site, const std::uint32_t* rows, std::int64_t count,
                         std::int64_t columns, float* out, void* stream);

}  // namespace train_gpt_v2
