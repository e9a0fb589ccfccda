#pragma once
// Inside of FusedGpt: the parameters by role, the plan of one batch, the arena, and the two passes (fused_gpt_step.cc).

#include "fused_buffers.h"
#include "train_gpt_v2/model/fused_gpt.h"

namespace train_gpt_v2 {

struct FusedWeight {
  const float* value = nullptr;
  float* grad = nullptr;
  Bf16* copy = nullptr;
  std::int64_t numel = 0;
  const FusedThin* thin = nullptr;
  std::int64_t in = 0, out = 0, most_ranks = 0;  // with `thin`: sizes of W, and the rank at the start
  Bf16 *a_copy = nullptr, *b_copy = nullptr;     // of thin->a and thin->b
};

struct FusedBlock : FusedActivations {
  FusedWeight ln_1_weight, ln_1_bias, attn_weight, attn_bias, proj_weight, proj_bias;
  FusedWeight ln_2_weight, ln_2_bias, fc_weight, fc_bias, out_weight, out_bias;
  bool trainable = false;  // any of them
};

struct FusedHead {
  FusedWeight weight, bias;
  std::int64_t classes = 0;
  std::int64_t columns = 0;  // of its products: the classes and, with FusedOptions::whole_classes, columns of zeros
  std::int64_t first = 0, count = 0;  // its rows among the scored ones
  double scale = 0;
};

// Rows of one batch in packed order, and the scored ones: all of text, then all of mel.
struct FusedPlan {
  std::vector<Segment> segments;
  std::vector<EmbedRow> source;
  std::vector<std::uint32_t> dropout_rows;
  std::vector<std::int32_t> scored, targets, sample;
  std::int64_t text_tokens = 0;

  std::int64_t rows() const { return static_cast<std::int64_t>(source.size()); }
  std::int64_t scored_rows() const { return static_cast<std::int64_t>(scored.size()); }
};

enum EmbedKind { kConditionRow = 0, kSpeedRow = 1, kTextRow = 2, kMelRow = 3 };

struct FusedGpt::Impl : FusedBuffers {
  Impl(const ModelOptions& options, const FusedParameters& parameters, const FusedOptions& fused,
       std::unique_ptr<Kernels> kernels);
  ~Impl();

  // ---- fused_gpt.cc: what is computed
  FusedPlan plan(const Batch& batch) const;
  void load(const FusedPlan& plan, const Batch& batch);
  void reserve(std::int64_t tokens);
  FusedLosses collect(const FusedPlan& plan, std::vector<FusedLosses>* samples, std::int64_t count) const;
  FusedWeight weight(const FusedParameters& parameters, const std::string& key);

  // ---- fused_gpt_step.cc: the step itself
  void forward(const FusedPlan& plan, const Dropout& dropout);
  void score(const FusedPlan& plan, bool gradient);
  void backward(const FusedPlan& plan, const Dropout& dropout);
  void forward_block(std::int64_t i, std::int64_t rows, const Dropout& dropout);
  void backward_block(std::int64_t i, std::int64_t rows, const Dropout& dropout);
  void score_head(FusedHead& head, bool gradient);
  void backward_embedding(const FusedPlan& plan, const Dropout& dropout);
  void stage_is_final(std::int64_t stage) const {
    if (listener) listener(stage);
  }

  Matrix act(void* data, std::int64_t stride) const { return {data, type, stride}; }
  ConstMatrix operand(const FusedWeight& w, std::int64_t stride) const {
    return w.copy ? ConstMatrix(w.copy, Num::kBf16, stride) : ConstMatrix(w.value, Num::kFloat, stride);
  }
  DropoutPlace place(const Dropout& dropout, std::uint32_t site) const { return {dropout, site, rows_dropout}; }
  Attention attention(std::int64_t i, const Dropout& dropout) const;
  DoubleLnGather final_norms(const FusedPlan& plan) const;
  // C = A * W, dA = dC * W', dW += A' * dC (or what is wanted of it) of a weight stored [in, out].
  Gemm product(std::int64_t rows, const void* a, const FusedWeight& w, std::int64_t in, std::int64_t out,
               void* c) const;
  Gemm product_backward(std::int64_t rows, const void* dc, const FusedWeight& w, std::int64_t in, std::int64_t out,
                        void* da) const;
  void weight_gradient(std::int64_t rows, const void* a, const void* dc, const void* c, const FusedWeight& w,
                       std::int64_t in, std::int64_t out);
  void thin_gradients(std::int64_t rows, const void* a, const void* dc, const void* c, const FusedWeight& w);

  const ModelOptions options;
  const FusedOptions fused;
  const Num type;
  const std::int64_t width;  // D
  std::unique_ptr<Kernels> kernels;

  std::vector<FusedBlock> blocks;
  FusedWeight ln_f_weight, ln_f_bias, final_weight, final_bias;
  FusedWeight text_table, text_positions, mel_table, mel_positions, speed_table;
  FusedHead text_head, mel_head;
  std::map<std::string, FusedWeight*> by_key;
  std::vector<std::uint8_t> text_touched, mel_touched;
  std::int64_t lowest_block = 0;  // backward stops after this block: nothing below it is trained
  bool embedding_trainable = false;
  bool keep_outputs = false;  // of both c_proj, for FusedThin::columns
  bool overwrite = false;     // the next gradients start a new sum
  StageListener listener;     // may be empty

  void* copies = nullptr;  // bf16 weights
  std::size_t copies_bytes = 0;
  void* arena = nullptr;  // FusedBuffers lie in it
  std::size_t arena_size = 0;
  std::int64_t capacity = 0;
  const Segment* segments = nullptr;  // of the plan at work
  std::int64_t segment_count = 0;
};

}  // namespace train_gpt_v2
