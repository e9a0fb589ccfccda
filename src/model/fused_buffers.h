#pragma once
// What the fused step keeps in its arena, for N packed tokens (capacity) of width D, F = 4D, H heads. "act" pointers
// hold float or bf16. Sizes per token: about 80 D numbers a block.

#include <cstddef>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/kernels/kernels.h"

namespace train_gpt_v2 {

// Of one block, from forward to backward.
struct FusedActivations {
  float *mid = nullptr, *out = nullptr;             // [N,D] residual stream after attention, after the MLP
  void *a = nullptr, *qkv = nullptr, *o = nullptr;  // act: first LayerNorm [N,D], [N,3D], attention [N,D]
  void *m = nullptr, *u = nullptr, *g = nullptr;    // act: second LayerNorm [N,D], before and after GELU [N,F]
  void *attn_out = nullptr, *mlp_out = nullptr;     // act: products of both c_proj [N,D], not kept unless asked for
  float* log_sum = nullptr;                         // [H,N]
  float *mean1 = nullptr, *rstd1 = nullptr, *mean2 = nullptr, *rstd2 = nullptr;  // [N]
};

// Row length of the logits.
constexpr std::int64_t whole_classes(std::int64_t classes) {
  return (classes + 63) / 64 * 64;
}

struct FusedBuffers {
  float *x0 = nullptr, *dx = nullptr;                          // [N,D]
  float *y = nullptr, *statistics = nullptr, *loss = nullptr;  // of scored rows: [N,D], [N,4], [N]
  float *condition = nullptr, *emotion = nullptr;              // [samples,latents,D], [samples,D]
  void *narrow = nullptr, *wide = nullptr, *d_qkv = nullptr;   // act: [N,D], [N,F], [N,3D]
  void *z = nullptr, *dz = nullptr, *logits = nullptr;         // act: scored [N,D] twice, [head_rows, classes]
  std::int32_t *rank = nullptr, *rows_scored = nullptr, *rows_target = nullptr;  // [N]
  std::uint32_t* rows_dropout = nullptr;                                         // [N]
  EmbedRow* rows_source = nullptr;                                               // [N]

  // Places everything behind `base`; with a null base it only measures. Returns the bytes.
  std::size_t lay_out(char* base, std::int64_t tokens, const ModelOptions& options, Num type, std::int64_t head_rows,
                      bool keep_outputs, const std::vector<FusedActivations*>& blocks);
};

}  // namespace train_gpt_v2
