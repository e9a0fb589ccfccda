#pragma once
// Sums the gradients of a window over the ranks, in buckets, overlapped with the backward pass where the engine tells
// how far that has come (Li et al., "PyTorch Distributed", VLDB 2020).
//
// Buckets hold gradients in the order in which backward finishes them, heads and last layers first; a bucket is sent
// when all its gradients are final and every bucket before it was sent. Which rank sends when does not matter, but all
// send the same buckets in the same order, so the sums have the same bits whether they were sent early or in finish().
// Only the last backward pass of a window may send: those before it only add.
//
// On CUDA nothing waits for the host: NCCL's stream waits for an event that is recorded, when a bucket is sent, on the
// current stream of the sending thread. That is the stream of the kernels that wrote the gradients (the fused engine's
// by construction, autograd's by its stream guard in the hook), and those kernels are enqueued by then. finish() makes
// the current stream wait for the sums, so the update comes behind them; in between backward writes other gradients.
// One caller; stage_is_final() may come from autograd's thread while the caller waits for backward.

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "train_gpt_v2/train/parameters.h"
#include "train_gpt_v2/train/ranks.h"

namespace train_gpt_v2 {

struct BucketBytes {
  std::int64_t first = 1 << 20, others = 25 << 20;
};

class GradientSync {
 public:
  // `stages[i]`: when backward finishes the i-th gradient (model/gradient_stages.h). The gradients are looked up when
  // they are sent, so buffers may be replaced between windows.
  GradientSync(Ranks& ranks, const ParameterSet& parameters, const std::vector<std::int64_t>& stages,
               BucketBytes bytes = {});

  // Whenever a window begins, or begins anew because memory was too small; not after sums were begun.
  void begin_window();
  // Before the window's last backward pass on this rank: it may send. Without this call finish() sends everything.
  void begin_last_pass();
  void stage_is_final(std::int64_t stage);  // and all stages before it; ignored except in the last pass
  // All: sends what was not sent yet and waits for every sum.
  void finish();

  bool begun() const { return !under_way_.empty(); }  // other ranks may be adding our gradients
  std::size_t buckets() const { return buckets_.size(); }
  std::size_t sent_during_backward() const { return sent_early_; }  // buckets, of the last window

 private:
  struct Bucket {
    std::vector<std::size_t> tensors;  // of the parameter set
    std::int64_t last_stage = 0;
  };

  void send_next();

  Ranks& ranks_;
  const ParameterSet& parameters_;
  std::vector<Bucket> buckets_;
  std::vector<std::unique_ptr<PendingSum>> under_way_;
  std::size_t next_ = 0;  // the first bucket that was not sent
  std::size_t sent_early_ = 0;
  bool open_ = false;
};

}  // namespace train_gpt_v2
