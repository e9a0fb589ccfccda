#include "train_gpt_v2/model/attention.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_efficient_attention_forward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>

#include <cmath>
#include <limits>

namespace train_gpt_v2 {
namespace {

// One set of equally long segments: qkv [B*S,3D] -> [B*S,D].
at::Tensor attend_equal(const at::Tensor& qkv, std::int64_t heads, std::int64_t count) {
  const std::int64_t rows = qkv.size(0), width = qkv.size(1) / 3;
  const auto parts = qkv.view({count, rows / count, 3, heads, width / heads}).permute({2, 0, 3, 1, 4}).unbind(0);
  const at::Tensor out = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0, true);
  return out.transpose(1, 2).reshape({rows, width});
}

// The formula itself, where probabilities must be dropped by our own mask: qkv [S,3D] of one segment.
at::Tensor attend_with_dropout(const at::Tensor& qkv, std::int64_t heads, std::int64_t sequence, const Dropout& dropout,
                               std::int64_t layer) {
  const std::int64_t rows = qkv.size(0), width = qkv.size(1) / 3, size = width / heads;
  const auto parts = qkv.view({rows, 3, heads, size}).permute({1, 2, 0, 3}).unbind(0);  // [H,S,d] each
  at::Tensor scores = at::matmul(parts[0] / std::sqrt(static_cast<double>(size)), parts[1].transpose(1, 2));
  const at::Tensor later = at::ones({rows, rows}, scores.options().dtype(at::kBool)).triu(1);
  if (scores.scalar_type() != at::kDouble) scores = scores.to(at::kFloat);
  const at::Tensor share = at::softmax(scores.masked_fill(later, -std::numeric_limits<double>::infinity()), -1);
  const at::Tensor kept = apply_attention_dropout(share, dropout, layer, sequence).to(parts[2].scalar_type());
  return at::matmul(kept, parts[2]).transpose(0, 1).reshape({rows, width});
}

at::Tensor attend_segments(const at::Tensor& qkv, std::int64_t heads, const Segments& segments, const Dropout& dropout,
                           std::int64_t layer) {
  if (segments.equal && !dropout.active()) return attend_equal(qkv, heads, segments.count());
  // One split: its gradient is a single concatenation, where slices would each fill a whole zero tensor.
  const auto pieces = qkv.split_with_sizes(segments.lengths, 0);
  std::vector<at::Tensor> out;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    out.push_back(dropout.active() ? attend_with_dropout(pieces[i], heads, static_cast<std::int64_t>(i), dropout, layer)
                                   : attend_equal(pieces[i], heads, 1));
  }
  return at::cat(out);
}

bool cuda_kernels_take(const at::Tensor& qkv, std::int64_t head_size) {
  const auto type = qkv.scalar_type();
  return head_size % 8 == 0 && head_size <= 256 && (type == at::kFloat || type == at::kHalf || type == at::kBFloat16);
}

at::Tensor attend_cuda(const at::Tensor& qkv, std::int64_t heads, const Segments& segments, double rate) {
  const std::int64_t rows = qkv.size(0), width = qkv.size(1) / 3;
  const auto parts = qkv.view({rows, 3, heads, width / heads}).unbind(1);  // [R,H,d]
  const at::Tensor& offsets = segments.offsets;
  if (qkv.scalar_type() == at::kBFloat16) {  // bf16 implies compute capability 8.0, which flash needs
    const auto result = at::_flash_attention_forward(parts[0], parts[1], parts[2], offsets, offsets, segments.longest,
                                                     segments.longest, rate, true, false);
    return std::get<0>(result).reshape({rows, width});
  }
  constexpr std::int64_t kCausalFromTopLeft = 1;
  const auto result = at::_efficient_attention_forward(
      parts[0].unsqueeze(0), parts[1].unsqueeze(0), parts[2].unsqueeze(0), {}, offsets, offsets, segments.longest,
      segments.longest, rate, kCausalFromTopLeft, at::GradMode::is_enabled());
  return std::get<0>(result).reshape({rows, width});
}

}  // namespace

at::Tensor causal_attention(const at::Tensor& qkv, std::int64_t heads, const Segments& segments, const Dropout& dropout,
                            std::int64_t layer) {
  if (qkv.is_cuda() && cuda_kernels_take(qkv, qkv.size(1) / 3 / heads)) {
    return attend_cuda(qkv, heads, segments, dropout_rate(dropout));
  }
  return attend_segments(qkv, heads, segments, dropout, layer);
}

}  // namespace train_gpt_v2
