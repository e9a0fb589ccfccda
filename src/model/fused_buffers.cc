#include "fused_buffers.h"

#include <algorithm>

namespace train_gpt_v2 {
namespace {

// Takes 64-byte aligned pieces behind a base; with a null base it only adds up.
struct Layout {
  char* base;
  std::size_t used = 0;
  template <typename T>
  void take(T*& pointer, std::int64_t count, std::size_t element) {
    if (base) pointer = reinterpret_cast<T*>(base + used);
    used += (static_cast<std::size_t>(count) * element + 63) / 64 * 64;
  }
  template <typename T>
  void take(T*& pointer, std::int64_t count) {
    take(pointer, count, sizeof(T));
  }
  void take_act(void*& pointer, std::int64_t count, Num type) {
    char* bytes = nullptr;
    take(bytes, count, type == Num::kBf16 ? sizeof(Bf16) : sizeof(float));
    if (base) pointer = bytes;
  }
};

}  // namespace

std::size_t FusedBuffers::lay_out(char* base, std::int64_t n, const ModelOptions& options, Num type,
                                  std::int64_t head_rows, bool keep_outputs,
                                  const std::vector<FusedActivations*>& blocks) {
  Layout l{base};
  const std::int64_t d = options.model_dim;
  for (FusedActivations* block : blocks) {
    FusedActivations& b = *block;
    l.take(b.mid, n * d);
    l.take(b.out, n * d);
    l.take_act(b.a, n * d, type);
    l.take_act(b.qkv, 3 * n * d, type);
    l.take_act(b.o, n * d, type);
    l.take_act(b.m, n * d, type);
    l.take_act(b.u, 4 * n * d, type);
    l.take_act(b.g, 4 * n * d, type);
    if (keep_outputs) {
      l.take_act(b.attn_out, n * d, type);
      l.take_act(b.mlp_out, n * d, type);
    }
    l.take(b.log_sum, n * options.heads);
    for (float** p : {&b.mean1, &b.rstd1, &b.mean2, &b.rstd2}) l.take(*p, n);
  }
  for (float** p : {&x0, &dx, &y}) l.take(*p, n * d);
  l.take(statistics, 4 * n);
  l.take(loss, n);
  // A sample has prefix_length() rows of its own, so there are at most n / prefix_length() samples.
  const std::int64_t samples = n / options.prefix_length() + 1;
  l.take(condition, samples * options.condition_num_latent * d);
  l.take(emotion, samples * d);
  for (void** p : {&narrow, &z, &dz}) l.take_act(*p, n * d, type);
  for (FusedActivations* block : blocks) {
    if (!keep_outputs) block->attn_out = block->mlp_out = narrow;
  }
  l.take_act(wide, 4 * n * d, type);
  l.take_act(d_qkv, 3 * n * d, type);
  const std::int64_t classes = std::max(options.text_rows(), options.number_mel_codes);
  l.take_act(logits, head_rows * whole_classes(classes), type);
  for (std::int32_t** p : {&rank, &rows_scored, &rows_target}) l.take(*p, n);
  l.take(rows_dropout, n);
  l.take(rows_source, n);
  return l.used;
}

}  // namespace train_gpt_v2
