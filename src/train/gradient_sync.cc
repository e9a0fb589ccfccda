#include "train_gpt_v2/train/gradient_sync.h"

#include <algorithm>
#include <numeric>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {

GradientSync::GradientSync(Ranks& ranks, const ParameterSet& parameters, const std::vector<std::int64_t>& stages,
                           BucketBytes bytes)
    : ranks_(ranks), parameters_(parameters) {
  if (ranks.single()) return;
  TGV2_CHECK(stages.size() == parameters.tensors.size());
  std::vector<std::size_t> order(stages.size());
  std::iota(order.rbegin(), order.rend(), 0U);  // within a stage the last first, as backward goes
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return stages[a] < stages[b]; });
  std::int64_t room = 0;
  for (const std::size_t i : order) {
    const auto size = static_cast<std::int64_t>(parameters.tensors[i].grad.nbytes());
    if (buckets_.empty() || size > room) {
      room = buckets_.empty() ? bytes.first : bytes.others;
      buckets_.emplace_back();
    }
    room -= size;
    buckets_.back().tensors.push_back(i);
    buckets_.back().last_stage = stages[i];
  }
}

void GradientSync::begin_window() {
  TGV2_CHECK(under_way_.empty());
  open_ = false;
  next_ = 0;
}

void GradientSync::begin_last_pass() {
  open_ = true;
}

void GradientSync::stage_is_final(std::int64_t stage) {
  if (!open_) return;
  while (next_ < buckets_.size() && buckets_[next_].last_stage <= stage) send_next();
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
  open_ = false;
  sent_early_ = next_;
  while (next_ < buckets_.size()) send_next();
  for (const auto& sum : under_way_) sum->wait();
  under_way_.clear();
}

}  // namespace train_gpt_v2
