#include "train_gpt_v2/train/gradient_sync.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

namespace train_gpt_v2 {

struct GradientSync::Hook : torch::autograd::FunctionPostHook {
  Hook(GradientSync& owner, std::size_t of) : sync(owner), bucket(of) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                            const torch::autograd::variable_list&) override {
    sync.ready(bucket);
    return outputs;
  }
  GradientSync& sync;
  std::size_t bucket;
};

GradientSync::GradientSync(Ranks& ranks, const ParameterSet& parameters, const std::vector<torch::Tensor>& leaves)
    : ranks_(ranks), parameters_(parameters) {
  if (ranks.single()) return;
  std::int64_t room = 0;
  for (std::size_t i = parameters.tensors.size(); i-- > 0;) {
    const auto bytes = static_cast<std::int64_t>(parameters.tensors[i].grad.nbytes());
    if (buckets_.empty() || bytes > room) {
      room = buckets_.empty() ? kFirstBucketBytes : kBucketBytes;
      buckets_.emplace_back();
    }
    room -= bytes;
    Bucket& bucket = buckets_.back();
    bucket.tensors.push_back(i);
    if (!leaves[i].defined()) {
      bucket.only_hooked = false;
      continue;
    }
    ++bucket.hooked;
    const auto accumulator = torch::autograd::impl::grad_accumulator(leaves[i]);
    const auto key = accumulator->add_post_hook(std::make_unique<Hook>(*this, buckets_.size() - 1));
    hook_keys_.emplace_back(accumulator.get(), key);
    accumulators_.push_back(accumulator);
  }
}

GradientSync::~GradientSync() {
  for (const auto& [node, key] : hook_keys_) static_cast<torch::autograd::Node*>(node)->del_post_hook(key);
}

void GradientSync::begin_last_micro_batch() {
  open_ = !ranks_.single();
  next_ = 0;
  for (Bucket& bucket : buckets_) bucket.waiting_for = bucket.hooked;
}

void GradientSync::ready(std::size_t bucket) {
  if (!open_) return;
  --buckets_[bucket].waiting_for;
  send_ready_ones();
}

void GradientSync::send_ready_ones() {
  while (next_ < buckets_.size() && buckets_[next_].only_hooked && buckets_[next_].waiting_for == 0) {
    send_next();
  }
}

void GradientSync::send_next() {
  std::vector<torch::Tensor> gradients;
  for (const std::size_t i : buckets_[next_].tensors) {
    if (parameters_.tensors[i].grad.numel() > 0) gradients.push_back(parameters_.tensors[i].grad);
  }
  ++next_;
  if (!gradients.empty()) under_way_.push_back(ranks_.start_sum(std::move(gradients)));
}

void GradientSync::finish() {
  if (ranks_.single()) return;
  if (!open_) next_ = 0;
  open_ = false;
  sent_early_ = next_;
  while (next_ < buckets_.size()) send_next();
  for (const auto& sum : under_way_) sum->wait();
  under_way_.clear();
}

}  // namespace train_gpt_v2
