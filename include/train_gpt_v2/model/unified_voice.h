#pragma once
// UnifiedVoice, the IndexTTS2 GPT: text and speech codes after 34 conditioning rows (architecture.md §1-§4).
//
// Keys, shapes and registration order are the reference's, so that parameters() is the order of the Python trainer's
// optimiser state. The constructor allocates without filling: initialise() or weights.h fill. A model built with
// at::kMeta costs no memory and lists names and shapes. Not thread-safe; one forward at a time.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/model/conformer.h"
#include "train_gpt_v2/model/gpt2.h"
#include "train_gpt_v2/model/inputs.h"
#include "train_gpt_v2/model/perceiver.h"

namespace train_gpt_v2 {

struct ForwardOptions {
  Dropout dropout;                    // default: off
  std::int64_t checkpoint_every = 0;  // recompute every k-th block in the backward pass
  bool detailed = false;              // fill the last block of ForwardResult
};

struct ForwardResult {
  at::Tensor text_loss_sum, mel_loss_sum;  // float64, 0-dim, differentiable: sums over the scored targets
  std::int64_t text_tokens = 0, mel_tokens = 0;
  at::Tensor mel_top1_count;  // int64, 0-dim

  at::Tensor mel_top5_count;                                               // int64, 0-dim
  at::Tensor text_loss_by_sample, mel_loss_by_sample, mel_top1_by_sample;  // float64 [B] sums, without gradient
};

// One tensor of the state dict; `buffer` marks the two position tables of the conformers.
struct StateEntry {
  std::string name;
  at::Tensor tensor;
  bool buffer = false;
};

class UnifiedVoice : public torch::nn::Module {
 public:
  explicit UnifiedVoice(const ModelOptions& options, const at::TensorOptions& tensor_options = at::kFloat);

  // Losses of one micro-batch. Conditioners take part only with online inputs, and only get gradients when one of
  // their parameters requires them.
  ForwardResult forward(const ModelInputs& inputs, const ForwardOptions& options = {});

  // The steps of forward(): network input [R,D], rows after the last block [R,D], and the state in front of the heads
  // (ln_f then final_norm) of any rows.
  at::Tensor embed(const ModelInputs& inputs);
  at::Tensor run_blocks(const at::Tensor& x, const Segments& segments, const ForwardOptions& options = {}) const;
  at::Tensor final_states(const at::Tensor& rows) const;

  // §3.5. features [B,F,1024], lengths int64 [B] -> [B,latents,D], [B,1024], [B,D], [B,D].
  at::Tensor get_conditioning(const FeatureBatch& features, ConditionPadding padding = ConditionPadding::kClean) const;
  at::Tensor get_emo_conditioning(const FeatureBatch& features,
                                  ConditionPadding padding = ConditionPadding::kClean) const;
  at::Tensor get_emovec(const FeatureBatch& features, ConditionPadding padding = ConditionPadding::kClean) const;
  at::Tensor merge_emovec(const FeatureBatch& speaker, const FeatureBatch& emotion, double alpha) const;

  // State dict in the reference's order, buffers where the reference has them.
  std::vector<StateEntry> state() const;
  // True for parameters that only online conditioning uses (architecture.md §4: no gradient otherwise).
  static bool is_conditioner(const std::string& name);

  const ModelOptions& options() const { return options_; }
  at::ScalarType dtype() const { return text_embedding->weight.scalar_type(); }
  at::Device device() const { return text_embedding->weight.device(); }

  // Modules that other parts of the program use directly (generation, adapters, the fused engine).
  std::shared_ptr<Conformer> conditioning_encoder, emo_conditioning_encoder;
  std::shared_ptr<Perceiver> perceiver_encoder, emo_perceiver_encoder;
  std::shared_ptr<Table> text_embedding, mel_embedding, mel_pos_embedding, text_pos_embedding, speed_emb;
  std::shared_ptr<Dense> emo_layer, emovec_layer, text_head, mel_head;
  std::shared_ptr<Gpt2> gpt;
  std::shared_ptr<LayerNorm> final_norm;

 private:
  std::pair<at::Tensor, at::Tensor> conditions(const ModelInputs& inputs) const;
  bool conditioners_trainable() const;

  ModelOptions options_;
};

}  // namespace train_gpt_v2
