#pragma once
// Sums the gradients of a window over the ranks, in buckets, overlapped with the backward pass where autograd runs it
// (Li et al., "PyTorch Distributed", VLDB 2020).
//
// Buckets hold gradients in the order in which backward finishes them, last layers first; a bucket is sent when all its
// gradients are final and every bucket before it was sent, so that all ranks send in the same order. Only the last
// micro-batch of a window may start sums: those before it only add. One caller; hooks run on autograd's thread.

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "train_gpt_v2/train/parameters.h"
#include "train_gpt_v2/train/ranks.h"

namespace train_gpt_v2 {

class GradientSync {
 public:
  static constexpr std::int64_t kFirstBucketBytes = 1 << 20, kBucketBytes = 25 << 20;

  // `leaves[i]`: the leaf whose backward fills the i-th gradient; an undefined one leaves it to finish(). The gradients
  // are looked up when they are sent, so buffers may be replaced between windows.
  GradientSync(Ranks& ranks, const ParameterSet& parameters, const std::vector<torch::Tensor>& leaves);
  ~GradientSync();
  GradientSync(const GradientSync&) = delete;
  GradientSync& operator=(const GradientSync&) = delete;

  // Before the window's last micro-batch on this rank: its backward may send.
  void begin_last_micro_batch();
  // All: sends what was not sent yet and waits for every sum.
  void finish();

  std::size_t buckets() const { return buckets_.size(); }
  std::size_t sent_during_backward() const { return sent_early_; }  // buckets, of the last window

 private:
  struct Bucket {
    std::vector<std::size_t> tensors;  // of the parameter set
    std::size_t waiting_for = 0;       // leaves whose backward has not come yet
    std::size_t hooked = 0;
    bool only_hooked = true;
  };
  struct Hook;

  void ready(std::size_t bucket);
  void send_ready_ones();
  void send_next();

  Ranks& ranks_;
  const ParameterSet& parameters_;
  std::vector<Bucket> buckets_;
  std::vector<std::unique_ptr<PendingSum>> under_way_;
  std::size_t next_ = 0;  // the first bucket that was not sent
  std::size_t sent_early_ = 0;
  bool open_ = false;
  std::vector<std::shared_ptr<void>> accumulators_;  // autograd nodes that carry the hooks: alive as long as those
  std::vector<std::pair<void*, std::uintptr_t>> hook_keys_;
};

}  // namespace train_gpt_v2
