#pragma once
// Causal self-attention over rows of several independent sequences laid end to end.
//
// qkv [R,3D] holds queries, keys and values of all rows; a row sees itself and earlier rows of its own segment only.
// On the CPU every segment is one call (all together where they are equally long); on CUDA one variable-length kernel
// does it: flash for bf16, memory-efficient for fp32 and fp16. Nothing CUDA is called for CPU tensors.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "train_gpt_v2/model/dropout.h"

namespace train_gpt_v2 {

// -> [R,D]. `layer` selects the dropout numbers of the attention probabilities.
at::Tensor causal_attention(const at::Tensor& qkv, std::int64_t heads, const Segments& segments, const Dropout& dropout,
                            std::int64_t layer);

}  // namespace train_gpt_v2
