#include "train_gpt_v2/train/optimizer_shards.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <numeric>

#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kSendNumbers = 16 << 20;  // 64 MiB of fp32 at a time

}  // namespace

OptimizerShards::OptimizerShards(Ranks& ranks, const std::vector<torch::Tensor>& tensors)
    : ranks_(ranks), owners_(tensors.size(), 0), numbers_(static_cast<std::size_t>(ranks.size()), 0) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return tensors[a].numel() > tensors[b].numel(); });
  for (const std::size_t i : order) {
    const auto least = std::min_element(numbers_.begin(), numbers_.end());
    owners_[i] = static_cast<int>(least - numbers_.begin());
    *least += tensors[i].numel();
  }
}

std::string OptimizerShards::describe() const {
  const std::int64_t all = std::accumulate(numbers_.begin(), numbers_.end(), std::int64_t{0});
  const auto bytes = [](std::int64_t numbers) { return human_bytes(static_cast<std::uint64_t>(numbers) * 8); };
  return concat(bytes(numbers_[static_cast<std::size_t>(ranks_.rank())]), " of ", bytes(all),
                " of moments here, at most ", bytes(*std::max_element(numbers_.begin(), numbers_.end())),
                " on any rank");
}

void OptimizerShards::exchange(const std::vector<torch::Tensor>& tensors) const {
  const torch::NoGradGuard no_grad;
  for (int owner = 0; owner < ranks_.size(); ++owner) {
    std::vector<torch::Tensor> parts;
    std::int64_t numbers = 0;
    const auto send = [&] {
      if (parts.empty()) return;
      std::vector<torch::Tensor> flat;
      flat.reserve(parts.size());
      for (const torch::Tensor& part : parts) flat.push_back(part.reshape({-1}));
      const torch::Tensor all = owner == ranks_.rank() ? at::cat(flat) : at::empty({numbers}, parts[0].options());
      ranks_.broadcast(all, owner);
      if (owner != ranks_.rank()) {
        std::int64_t at = 0;
        for (torch::Tensor& part : parts) {
          part.copy_(all.narrow(0, at, part.numel()).view(part.sizes()));
          at += part.numel();
        }
      }
      parts.clear();
      numbers = 0;
    };
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (owners_[i] != owner || tensors[i].numel() == 0) continue;
      parts.push_back(tensors[i].detach());
      numbers += tensors[i].numel();
      if (numbers >= kSendNumbers) send();
    }
    send();
  }
}

torch::Tensor OptimizerShards::fetch(std::size_t tensor, const torch::Tensor& owned, const torch::Tensor& like) const {
  torch::Tensor value = mine(tensor) ? owned.contiguous() : at::empty_like(like).contiguous();
  if (value.numel() > 0) ranks_.broadcast(value, owners_[tensor]);
  return value;
}

}  // namespace train_gpt_v2
