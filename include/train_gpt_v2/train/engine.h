#pragma once
// The seam between the training loop and what executes the model: forward, backward and loss sums of one micro-batch.
//
// The LibTorch modules are one executor, the fused step is another. Both read the same parameters and
// add into the same gradient buffers, so optimizer, EMA and checkpoints know neither.
//
// Scales: d(text_scale · Σ text losses + mel_scale · Σ mel losses) is added to the gradients, so the caller decides on
// the normalisation (algorithms.md §7.2 point 2). Sums stay on the device until they are read.

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "train_gpt_v2/adapt/adapter_set.h"
#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/batch.h"
#include "train_gpt_v2/kernels/dropout.h"
#include "train_gpt_v2/model/gradient_stages.h"
#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2 {

struct SampleLoss {
  double text_loss_sum = 0, mel_loss_sum = 0;
  std::int64_t mel_top1 = 0;
};

struct LossSums {
  torch::Tensor
      values;  // float64 [4] on the device: text loss, mel loss, mel top-1 count, mel top-5 count (evaluate only)
  std::int64_t text_tokens = 0, mel_tokens = 0;
  std::int64_t positions = 0, padded_positions = 0;
  std::vector<SampleLoss> samples;  // only when asked for
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::string name() const = 0;
  // Before the first micro-batch of a window: the gradients start at zero.
  virtual void begin_window() = 0;
  // Training mode, dropout as configured; gradients are added.
  virtual LossSums forward_backward(const Batch& batch, const DropoutKey& key, double text_scale, double mel_scale) = 0;
  // forward_backward() then tells `listener` which gradients are final while its backward pass goes on below them; an
  // empty one ends that. Calls come one at a time, maybe from autograd's thread, and stages may be left out: the next
  // one includes them. On a GPU a gradient is final for what the calling thread's current stream does next.
  virtual void on_gradients(StageListener listener) = 0;
  // No dropout, no gradient, no random numbers.
  virtual LossSums evaluate(const Batch& batch, bool per_sample) = 0;
  // After anything changed the parameters (a step, an EMA swap, a load). With adapters the model's weights hold W'
  // afterwards, until the next forward_backward(): generation and saving see the adapted model.
  virtual void parameters_changed() = 0;
};

// Positions that carry something: what a packed forward computes on (performance.md §3.1).
std::int64_t real_positions(const Batch& batch, const ModelOptions& options);

// fp32, bf16 or fp16 as resolved for this device; "auto" is bf16 on CUDA >= 8.0, fp16 on older, fp32 on the CPU.
at::ScalarType resolve_precision(const std::string& precision, at::Device device);
std::string precision_name(at::ScalarType type);  // "fp32", "bf16", "fp16"

// The LibTorch modules as executor: every device, every feature. `model` must outlive it, and so must the adapters over
// it, if there are any.
std::unique_ptr<Engine> make_modules_engine(UnifiedVoice& model, const Options& options, at::ScalarType compute,
                                            AdapterSet* adapters = nullptr);

// The executor train.engine asks for; "auto" is the fused one (model/fused_gpt.h) wherever it can run. Gradients must
// be allocated before (train/parameters.h); on the CPU the fused one gives up those of adapted block matrices, of which
// it computes no more than the factors need, unless EWC acts on them. `why` says what decided. Throws CFG017 where
// "fused" cannot run.
std::unique_ptr<Engine> make_engine(UnifiedVoice& model, const Options& options, at::ScalarType compute,
                                    std::string& why, AdapterSet* adapters = nullptr);

}  // namespace train_gpt_v2
