#pragma once
// The GPT training step without autograd: forward and backward written out over the kernels of kernels/kernels.h, on a
// fixed arena of packed tokens. The modules of unified_voice.h stay the definition; tests compare the two.
//
// Parameters are read and gradients written where they lie (`value`, `grad`: float, contiguous, in state-dict layout);
// a null `grad` means frozen: its gradient is not computed. Of a block's matrix W (dW: [in,out]) the CPU can leave the
// products of dW with two thin matrices instead (`thin`). The caller keeps that memory alive and unmoved, and calls
// refresh_weights() after changing values. loss = text_scale * sum of text losses + mel_scale * sum of mel losses; its
// gradient is added to `grad` (or to the results of `thin`), except that the first call after begin_window() overwrites
// (so no zeroing is needed). Only rows of text_embedding and mel_embedding that occur in the window have a gradient:
// see touched_rows(). Precision: float, or bf16 operands and activations with float masters, residual stream,
// statistics and gradients. Masks are those of dropout.h. Same bits for any number of threads. Not thread-safe. Runs on
// the CPU or on a GPU, wherever its kernels do. Errors: DAT042/DAT043 for ids or lengths the model cannot hold, INT001
// for a missing or wrongly sized parameter or a batch without conditioning; std::bad_alloc.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/batch.h"
#include "train_gpt_v2/kernels/kernels.h"
#include "train_gpt_v2/model/gradient_stages.h"

namespace train_gpt_v2 {

// a·dW and (dW·b)' cost 2·N·rank·(in + out) operations each for N tokens, since dW = X'·dY is never formed; dW itself
// costs 2·N·in·out. With bf16 operands a, b and the thin products in between are rounded to bf16 as well.
// The rank may fall, a, b and the results may move: they are looked up at every refresh_weights().
struct FusedThin {
  std::int64_t rank = 0;
  const float *a = nullptr, *b = nullptr;  // [rank,in], [out,rank]
  float* a_dw = nullptr;                   // a·dW [rank,out]
  float* dw_b = nullptr;                   // (dW·b)' [rank,in]
  float* columns = nullptr;  // column sums of dW∘W, which are those of dY∘Y; may be null, then for ever
};

struct FusedParameter {
  const float* value = nullptr;
  float* grad = nullptr;
  std::int64_t numel = 0;
  const FusedThin* thin = nullptr;  // instead of `grad`
};
using FusedParameters = std::map<std::string, FusedParameter>;  // by state-dict key

struct FusedOptions {
  bool bf16 = false;
  bool text_padding = false;    // extra unscored stop tokens: the losses of the reference's padded batch (§4.2)
  std::int64_t max_tokens = 0;  // packed rows the arena is made and touched for; larger batches make it grow
  int threads = 1;              // of the CPU's kernels
  Isa isa = best_isa();
  std::int64_t head_rows = 512;  // rows of logits held at a time
  double growth = 1.5;           // of the arena when a batch does not fit; unused memory of a CPU costs nothing
  bool whole_classes = false;    // bf16 products over classes of whole 64s, which tensor cores want
};

struct FusedLosses {
  double text_loss_sum = 0, mel_loss_sum = 0;
  std::int64_t text_tokens = 0, mel_tokens = 0;
  std::int64_t mel_top1 = 0, mel_top5 = 0;  // scored mel positions whose target is the best, among the best five
};

class FusedGpt {
 public:
  // Without `kernels` it runs on the CPU. With those of a GPU (kernels/cuda.h) the parameters lie there.
  FusedGpt(const ModelOptions& options, const FusedParameters& parameters, const FusedOptions& fused,
           std::unique_ptr<Kernels> kernels = nullptr);
  ~FusedGpt();
  FusedGpt(const FusedGpt&) = delete;
  FusedGpt& operator=(const FusedGpt&) = delete;

  // The keys that must be in FusedParameters, with their sizes.
  static std::map<std::string, std::int64_t> required_parameters(const ModelOptions& options);
  // Bytes of the arena for so many packed rows, without FusedThin::columns; weights and gradients are the caller's.
  static std::int64_t arena_bytes(const ModelOptions& options, const FusedOptions& fused, std::int64_t tokens);

  // Starts a new sum of gradients: clears the touched rows of the tables and their flags, and the position tables.
  void begin_window();
  FusedLosses forward_backward(const Batch& batch, const DropoutKey& key, double text_scale, double mel_scale);
  // forward_backward() then calls `listener`, on the caller's thread, behind every stage of its backward pass; an empty
  // one ends that. On a GPU a gradient is final for whatever is enqueued on the kernels' stream from then on.
  void on_gradients(StageListener listener);
  // Without dropout and gradients. With `samples`, one entry per sample of the batch.
  FusedLosses evaluate(const Batch& batch, std::vector<FusedLosses>* samples = nullptr);

  void refresh_weights();
  // Where refresh_weights() keeps the bf16 copy of a parameter, so that the optimizer pass can write it instead; null
  // for float engines and for parameters that are used as float.
  Bf16* bf16_copy(const std::string& key);
  // One flag per row of text_embedding.weight or mel_embedding.weight: it has a gradient in this window. Null for any
  // other key.
  const std::uint8_t* touched_rows(const std::string& key) const;

  Kernels& kernels();  // for the norm and the optimizer pass, between calls

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace train_gpt_v2
