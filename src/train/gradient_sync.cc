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

GradientSync::GradientSync(Ranks& ranks, std::vector<Item> items) : ranks_(ranks) {
  if (ranks.single()) return;
  std::int64_t room = 0;
  for (auto item = items.rbegin(); item != items.rend(); ++item) {
    const auto bytes = static_cast<std::int64_t>(item->gradient.nbytes());
    if (buckets_.empty() || bytes > room ||
        !buckets_.back().gradients.front().options().type_equal(item->gradient.options())) {
      room = buckets_.empty() ? kFirstBucketBytes : kBucketBytes;
      buckets_.emplace_back();
    }
    room -= bytes;
    Bucket& bucket = buckets_.back();
    bucket.gradients.push_back(item->gradient);
    if (!item->leaf.defined()) {
      bucket.only_hooked = false;
      continue;
    }
    ++bucket.hooked;
    const auto accumulator = torch::autograd::impl::grad_accumulator(item->leaf);
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
    under_way_.push_back(ranks_.start_sum(buckets_[next_++].gradients));
  }
}

void GradientSync::finish() {
  if (ranks_.single()) return;
  if (!open_) next_ = 0;
  open_ = false;
  sent_early_ = next_;
  for (; next_ < buckets_.size(); ++next_) under_way_.push_back(ranks_.start_sum(buckets_[next_].gradients));
  for (const auto& sum : under_way_) sum->wait();
  under_way_.clear();
}

}  // namespace train_gpt_v2
