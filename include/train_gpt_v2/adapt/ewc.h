#pragma once
// Elastic weight consolidation (algorithms.md §5): a Fisher diagonal measured on the languages to protect, and the pull
// back to the weights it was measured on.
//
//     L + (λ/2)·Σ F(θ − θ*)²,  F per scored token, labels sampled from the model: one backward of a batch's summed
// log-likelihood, squared, is unbiased for the summed Fisher; no gradient per sample is needed (§5.2).
// Adapted matrices: θ = W', θ* = W0, so the pull passes through the same chain as dL/dW'. Tensors that train directly:
// θ* = their values at the start of the run. With a mean loss per token λ = N_old/N_new (§5.3).
// "proximal": after the step θ ← (θ + ηλFθ*)/(1 + ηλF) for direct tensors; adapted matrices keep the gradient form.
// λ auto: after 20 steps λ is set so that ‖∇penalty‖ = 0.3·‖∇task‖ over the protected weights, then fixed and saved.
// One thread. Errors: EWC001 a Fisher file of other weights or shapes, CKP001 a damaged one, IO errors.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "train_gpt_v2/adapt/adapter_set.h"
#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/io/value.h"
#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2 {

struct Fisher {
  std::int64_t tokens = 0, samples = 0;
  std::vector<std::pair<std::string, at::Tensor>> values;  // fp32, per token
  std::map<std::string, std::string> weights;              // parameter -> checksum of the values it was measured at
};

void write_fisher(const std::string& path, const Fisher& fisher);
Fisher read_fisher(const std::string& path);

// One label per row of logits [N,C], drawn from softmax(logits): int64 [N]. One number of the stream per row.
at::Tensor sample_labels(const at::Tensor& logits, RandomStream& stream);

// Collects squared gradients of some parameters.
class FisherAccumulator {
 public:
  explicit FisherAccumulator(std::vector<std::pair<std::string, at::Tensor>> parameters);

  // Adds the squares of the parameters' .grad, which are those of a summed log-likelihood over `tokens`, and drops
  // them.
  void add(std::int64_t tokens, std::int64_t samples);
  Fisher finish() const;
  std::size_t bytes() const;

 private:
  std::vector<std::pair<std::string, at::Tensor>> parameters_;
  std::vector<at::Tensor> sums_;
  std::int64_t tokens_ = 0, samples_ = 0;
};

// Samples labels at every scored position of the batch and runs one backward of Σ weight·log p; the model must be
// without dropout. Call add() afterwards.
void backward_sampled_likelihood(UnifiedVoice& model, const ModelInputs& inputs, double text_weight, double mel_weight,
                                 RandomStream& stream);

struct EwcReport {
  double penalty = 0;       // (λ/2)·Σ F(θ − θ*)²; with λ = 1 while λ is not chosen yet
  double penalty_norm = 0;  // ‖λF(θ − θ*)‖ over the protected weights
  double drift = 0;         // ‖θ − θ*‖
  std::optional<double> lambda;
};

class Ewc {
 public:
  // `direct`: tensors that train themselves, in their present values. Protected is what the Fisher file names among
  // them and among the set's matrices (set may be null). New rows of a table (the file has fewer) get F = 0, and so
  // does the base's spare row. weights_hold_effective: the set's weights carry W' (no adapter dropout).
  Ewc(const EwcOptions& options, const Fisher& fisher, std::vector<std::pair<std::string, at::Tensor>> direct,
      AdapterSet* set, bool weights_hold_effective);

  // Refuses a Fisher file measured on other weights than the anchors. After the constructor or load_state().
  void check_anchors() const;

  // Adds loss_scale·λF(θ − θ*) to the gradients, before push_gradients(). Once per optimiser step.
  void add_gradient(double loss_scale = 1);
  // mode "proximal": after the optimiser step, with the learning rate of each direct tensor, in their order.
  void proximal_step(const std::vector<double>& rates);

  // λ "auto" with several ranks: what one of them chose, or nothing yet, for all.
  const std::optional<double>& lambda() const { return lambda_; }
  void set_lambda(std::optional<double> lambda) { lambda_ = lambda; }

  EwcReport measure() const;
  std::size_t bytes() const;  // F and the anchors of direct tensors
  std::vector<std::string> names() const;

  Value save_state() const;
  void load_state(const Value& state);

 private:
  struct Term {
    std::string name;
    at::Tensor value;   // θ: the weight the executors read
    at::Tensor fisher;  // shape of value
    at::Tensor anchor;  // θ*
    Adapter* adapter = nullptr;
    std::int64_t rows = 0;  // of the Fisher file
    std::string checksum;
    int direct = -1;  // index into the constructor's list
  };

  void protect(const Fisher& fisher, Term term);
  at::Tensor distance(const Term& term) const;  // θ − θ*
  void choose_lambda(double loss_scale);

  EwcOptions options_;
  AdapterSet* set_;
  bool weights_hold_effective_;
  std::vector<Term> terms_;
  std::optional<double> lambda_;
  std::int64_t pilot_steps_ = 0;
};

}  // namespace train_gpt_v2
