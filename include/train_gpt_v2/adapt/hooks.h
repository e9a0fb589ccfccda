#pragma once
// Adapters beside their base projections, for dropout between the two (peft.lora_dropout > 0, algorithms.md §1.3).
//
// While training the weights hold W0 and every adapted Dense passes its input and output through Adapter::forward with
// one dropout draw per projection; while evaluating the weights hold W' and no hook is in place. Only the LibTorch
// modules can run this: other executors read W' alone. Tables are refused: no dropout is applied to embeddings (§1.7).
// Masks on the CPU are functions of (seed, step, micro-batch, matrix, row, column) as in kernels/dropout.h, so resume
// and recomputation repeat them; on CUDA torch's generator draws them, seeded by the model at every block. Keeps
// references to the model and the set; removes its hooks when destroyed. One thread. Errors: PFT001.

#include <memory>
#include <vector>

#include "train_gpt_v2/adapt/adapter_set.h"
#include "train_gpt_v2/kernels/dropout.h"
#include "train_gpt_v2/model/segments.h"

namespace train_gpt_v2 {

class AdapterHooks {
 public:
  AdapterHooks(UnifiedVoice& model, AdapterSet& set, double probability);
  ~AdapterHooks();
  AdapterHooks(const AdapterHooks&) = delete;
  AdapterHooks& operator=(const AdapterHooks&) = delete;

  // W0 into the weights, hooks in place. Also after every change of the adapters' parameters.
  void train();
  // W' into the weights, hooks removed.
  void evaluate();
  // Before each forward pass in training; the masks stay the same until the next call, the backward pass included.
  void begin(const DropoutKey& key, const Segments& segments);

 private:
  at::Tensor dropped(const at::Tensor& x, std::uint32_t site) const;

  AdapterSet& set_;
  double probability_;
  std::vector<std::shared_ptr<Dense>> modules_;  // one per adapter
  Dropout dropout_;
  std::vector<std::uint32_t> rows_;  // dropout rows of the GPT's inputs in this micro-batch
};

}  // namespace train_gpt_v2
