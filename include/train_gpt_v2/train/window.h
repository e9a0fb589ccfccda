#pragma once
// Forward and backward over the micro-batches of one accumulation window, whatever the memory allows.
//
// Where an executor runs out of memory, the window begins again and the micro-batch that did not fit runs in two halves
// of its samples (again in halves if need be). The plan and the loss factors stay those of the whole micro-batch, so
// the packed layout without dropout gives the same gradients up to rounding; dropout masks of later parts are drawn
// anew, and in the padded layout a half is padded to its own longest sample. What did not fit is remembered, so later
// micro-batches of that size are halved at once.
//
// Of several ranks each does so by itself: only sum_losses() is a call of all. Only the last pass of a window may send
// gradients, and once they are sent the window cannot begin again. So last_pass is announced only for a size that has
// fitted before; a larger one runs without, and its gradients are sent behind it.
// Errors: MEM001 where a single sample does not fit, or where gradients were sent already. Threads: one.

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "train_gpt_v2/train/engine.h"
#include "train_gpt_v2/train/ranks.h"

namespace train_gpt_v2 {

// Samples first .. first + count of a batch, as a batch of its own.
Batch slice(const Batch& batch, std::int64_t first, std::int64_t count);

struct WindowPart {
  const Batch* batch = nullptr;
  DropoutKey key;
  double text_scale = 0, mel_scale = 0;  // d(loss)/d(sum of token losses), without the loss scaler's factor
};

struct WindowLosses {
  double loss = 0;     // what is differentiated
  torch::Tensor sums;  // float64 [4] as LossSums::values, on the host; undefined when every micro-batch was empty
  std::int64_t positions = 0, padded_positions = 0;
  std::int64_t most_positions = 0;  // of several ranks, those of the one with most
  std::int64_t retries = 0;         // how often memory was too small
  bool stopped = false;             // by `stop`: the gradients are worthless
};

// What is known about sizes, in positions of what runs at once.
struct MemoryLimit {
  std::int64_t too_many = std::numeric_limits<std::int64_t>::max();  // so many do not fit
  std::int64_t fits = 0;  // so many did, in a window behind the first: moments and workspaces come with that
  bool first_window = true;
};

struct WindowEvents {
  std::function<void()> begin = [] {};                // the window begins (anew), behind the engine's begin_window()
  std::function<bool()> stop = [] { return false; };  // asked after every micro-batch but the last
  std::function<void()> last_pass = [] {};            // the last forward and backward of the window follows
  std::function<bool()> may_begin_anew = [] { return true; };  // false: the gradients are not ours alone any more
};

// `loss_scale` is the gradient scaler's.
WindowLosses run_window(Engine& engine, const std::vector<WindowPart>& parts, double loss_scale,
                        const ModelOptions& model, MemoryLimit& limit, const WindowEvents& events);

// The losses of all ranks, a call of all. False when one of them failed: then they say nothing.
bool sum_losses(WindowLosses& losses, bool failed, Ranks& ranks);

// As run_window() for one batch of a validation.
LossSums evaluate_in_memory(Engine& engine, const Batch& batch, bool per_sample, const ModelOptions& model,
                            MemoryLimit& limit);

}  // namespace train_gpt_v2
