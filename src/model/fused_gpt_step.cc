// The training step of the GPT, top to bottom (architecture.md §2 and §4): forward, losses of both heads, backward.

#include <algorithm>

#include "fused_gpt_impl.h"

namespace train_gpt_v2 {
namespace {

std::uint32_t layer_number(std::int64_t i) {
  return static_cast<std::uint32_t>(i);
}

}  // namespace

Gemm FusedGpt::Impl::product(std::int64_t rows, const void* a, const FusedWeight& w, std::int64_t in, std::int64_t out,
                             void* c) const {
  return {false, false, rows, out, in, {a, type, in}, operand(w, out), act(c, out), false};
}

Gemm FusedGpt::Impl::product_backward(std::int64_t rows, const void* dc, const FusedWeight& w, std::int64_t in,
                                      std::int64_t out, void* da) const {
  return {false, true, rows, in, out, {dc, type, out}, operand(w, out), act(da, in), false};
}

void FusedGpt::Impl::weight_gradient(std::int64_t rows, const void* a, const void* dc, const void* c,
                                     const FusedWeight& w, std::int64_t in, std::int64_t out) {
  if (w.thin) return thin_gradients(rows, a, dc, c, w);
  if (!w.grad) return;
  kernels->gemm({true, false, in, out, rows, {a, type, in}, {dc, type, out}, {w.grad, Num::kFloat, out}, !overwrite});
}

// With dW = A'·dC: a·dW = (A·a')'·dC and (dW·b)' = (dC·b)'·A. The thin matrices lie where the scored rows were, which
// are through by now.
void FusedGpt::Impl::thin_gradients(std::int64_t rows, const void* a, const void* dc, const void* c,
                                    const FusedWeight& w) {
  const FusedThin& t = *w.thin;
  const std::int64_t in = w.in, out = w.out;
  const ConstMatrix left{a, type, in}, right{dc, type, out};
  if (t.rank > 0) {
    const Matrix left_thin = act(z, t.rank), right_thin = act(dz, t.rank);
    const ConstMatrix by_a{w.a_copy ? static_cast<const void*>(w.a_copy) : t.a, type, in};
    const ConstMatrix by_b{w.b_copy ? static_cast<const void*>(w.b_copy) : t.b, type, t.rank};
    kernels->gemm({false, true, rows, t.rank, in, left, by_a, left_thin, false});
    kernels->gemm({true, false, t.rank, out, rows, left_thin, right, {t.a_dw, Num::kFloat, out}, !overwrite});
    kernels->gemm({false, false, rows, t.rank, out, right, by_b, right_thin, false});
    kernels->gemm({true, false, t.rank, in, rows, right_thin, left, {t.dw_b, Num::kFloat, in}, !overwrite});
  }
  // Of column j: Σ_i dW_ij W_ij = Σ_t dC_tj Σ_i A_ti W_ij.
  if (t.columns) kernels->column_sum({rows, out, right, t.columns, !overwrite, {c, type, out}});
}

Attention FusedGpt::Impl::attention(std::int64_t i, const Dropout& dropout) const {
  const FusedBlock& b = blocks[static_cast<std::size_t>(i)];
  Attention a;
  a.segments = segments;
  a.count = segment_count;
  a.heads = options.heads;
  a.head_dim = width / options.heads;
  a.qkv = act(b.qkv, 3 * width);
  a.bias = b.attn_bias.value;
  a.out = act(b.o, width);
  a.log_sum = b.log_sum;
  a.log_sum_stride = capacity;
  a.dropout = dropout;
  a.layer = layer_number(i);
  return a;
}

void FusedGpt::Impl::forward(const FusedPlan& plan, const Dropout& dropout) {
  const std::int64_t rows = plan.rows();
  EmbedPack embed;
  embed.rows = rows;
  embed.width = width;
  embed.source = rows_source;
  embed.table[kConditionRow] = condition;
  embed.position[kConditionRow] = emotion;
  embed.table[kSpeedRow] = speed_table.value;
  embed.table[kTextRow] = text_table.value;
  embed.position[kTextRow] = text_positions.value;
  embed.table[kMelRow] = mel_table.value;
  embed.position[kMelRow] = mel_positions.value;
  embed.out = x0;
  kernels->embed_pack(embed);

  const FusedBlock& first = blocks.front();
  kernels->drop_residual_ln({rows, width, nullptr, ConstMatrix(x0, Num::kFloat, width), nullptr,
                             place(dropout, dropout_site_embedding()), x0, first.ln_1_weight.value,
                             first.ln_1_bias.value, act(first.a, width), first.mean1, first.rstd1});
  for (std::int64_t i = 0; i < options.layers; ++i) forward_block(i, rows, dropout);
  kernels->double_ln_gather(final_norms(plan));
}

void FusedGpt::Impl::forward_block(std::int64_t i, std::int64_t rows, const Dropout& dropout) {
  FusedBlock& b = blocks[static_cast<std::size_t>(i)];
  const float* x = i ? blocks[static_cast<std::size_t>(i - 1)].out : x0;
  const std::int64_t inner = 4 * width;

  kernels->gemm(product(rows, b.a, b.attn_weight, width, 3 * width, b.qkv));
  kernels->attention(attention(i, dropout));
  kernels->gemm(product(rows, b.o, b.proj_weight, width, width, b.attn_out));
  kernels->drop_residual_ln({rows, width, x, act(b.attn_out, width), b.proj_bias.value,
                             place(dropout, dropout_site_attention_residual(layer_number(i))), b.mid,
                             b.ln_2_weight.value, b.ln_2_bias.value, act(b.m, width), b.mean2, b.rstd2});
  kernels->gemm_gelu(product(rows, b.m, b.fc_weight, width, inner, b.u),
                     {rows, inner, act(b.u, inner), b.fc_bias.value, act(b.g, inner)});
  kernels->gemm(product(rows, b.g, b.out_weight, inner, width, b.mlp_out));

  // The next block's first LayerNorm comes with this block's last sum; the last block's outputs are normalised where
  // they are scored.
  DropResidualLn last{rows,
                      width,
                      b.mid,
                      act(b.mlp_out, width),
                      b.out_bias.value,
                      place(dropout, dropout_site_mlp_residual(layer_number(i))),
                      b.out,
                      nullptr,
                      nullptr,
                      {},
                      nullptr,
                      nullptr};
  if (i + 1 < options.layers) {
    const FusedBlock& next = blocks[static_cast<std::size_t>(i + 1)];
    last.gamma = next.ln_1_weight.value;
    last.beta = next.ln_1_bias.value;
    last.out = act(next.a, width);
    last.mean = next.mean1;
    last.rstd = next.rstd1;
  }
  kernels->drop_residual_ln(last);
}

DoubleLnGather FusedGpt::Impl::final_norms(const FusedPlan& plan) const {
  return {plan.scored_rows(),
          width,
          rows_scored,
          blocks.back().out,
          ln_f_weight.value,
          ln_f_bias.value,
          final_weight.value,
          final_bias.value,
          y,
          act(z, width),
          statistics};
}

// Losses of the scored rows; with `gradient` also dz and the gradients of both heads.
void FusedGpt::Impl::score(const FusedPlan& plan, bool gradient) {
  text_head.first = 0;
  text_head.count = plan.text_tokens;
  mel_head.first = plan.text_tokens;
  mel_head.count = plan.scored_rows() - plan.text_tokens;
  score_head(text_head, gradient);
  score_head(mel_head, gradient);
}

void FusedGpt::Impl::score_head(FusedHead& head, bool gradient) {
  const std::int64_t classes = head.classes, stride = whole_classes(classes);
  const std::size_t element = type == Num::kBf16 ? sizeof(Bf16) : sizeof(float);
  for (std::int64_t at = 0; at < head.count; at += fused.head_rows) {
    const std::int64_t rows = std::min(fused.head_rows, head.count - at), first = head.first + at;
    const std::size_t offset = static_cast<std::size_t>(first * width) * element;
    const ConstMatrix states{static_cast<char*>(z) + offset, type, width};
    const Matrix d_states = act(static_cast<char*>(dz) + offset, width);
    const Matrix scores = act(logits, stride);
    kernels->gemm({false, true, rows, head.columns, width, states, operand(head.weight, width), scores, false});
    kernels->cross_entropy({rows, classes, scores, head.bias.value, rows_target + first, gradient,
                            static_cast<float>(head.scale), loss + first, rank + first});
    if (!gradient) continue;
    const bool add = at > 0 || !overwrite;
    if (head.bias.grad) kernels->column_sum({rows, classes, scores, head.bias.grad, add});
    if (head.weight.grad) {
      kernels->gemm({true, false, classes, width, rows, scores, states, {head.weight.grad, Num::kFloat, width}, add});
    }
    kernels->gemm({false, false, rows, width, head.columns, scores, operand(head.weight, width), d_states, false});
  }
}

void FusedGpt::Impl::backward(const FusedPlan& plan, const Dropout& dropout) {
  const std::int64_t rows = plan.rows();
  kernels->double_ln_gather_backward({final_norms(plan), rows, act(dz, width), dx, ln_f_weight.grad, ln_f_bias.grad,
                                      final_weight.grad, final_bias.grad, !overwrite});
  stage_is_final(0);  // the heads' gradients came with their losses
  if (lowest_block < options.layers) {
    // The gradient of the last block's MLP branch: its dropout again, and the bias.
    LnBackwardDrop last;
    last.rows = rows;
    last.width = width;
    last.d_residual = dx;
    last.d_branch = act(narrow, width);
    last.place = place(dropout, dropout_site_mlp_residual(layer_number(options.layers - 1)));
    last.d_bias = blocks.back().out_bias.grad;
    last.accumulate = !overwrite;
    kernels->ln_backward_drop(last);
  }
  for (std::int64_t i = options.layers - 1; i >= lowest_block; --i) {
    backward_block(i, rows, dropout);
    stage_is_final(options.layers - i);  // its out_bias was added with the block above
  }
  if (embedding_trainable) backward_embedding(plan, dropout);
  stage_is_final(options.layers + 1);
}

// On entry `dx` is the gradient of this block's output and `narrow` that of its MLP branch; on return the same of the
// block below.
void FusedGpt::Impl::backward_block(std::int64_t i, std::int64_t rows, const Dropout& dropout) {
  FusedBlock& b = blocks[static_cast<std::size_t>(i)];
  const std::int64_t inner = 4 * width;

  kernels->gemm_gelu_backward(
      product_backward(rows, narrow, b.out_weight, inner, width, wide),
      {rows, inner, act(b.u, inner), b.fc_bias.value, act(wide, inner), b.fc_bias.grad, !overwrite});
  weight_gradient(rows, b.g, narrow, b.mlp_out, b.out_weight, inner, width);
  kernels->gemm(product_backward(rows, wide, b.fc_weight, width, inner, narrow));
  weight_gradient(rows, b.m, wide, b.u, b.fc_weight, width, inner);
  kernels->ln_backward_drop({rows, width, act(narrow, width), b.mid, b.mean2, b.rstd2, b.ln_2_weight.value, dx,
                             b.ln_2_weight.grad, b.ln_2_bias.grad, act(narrow, width),
                             place(dropout, dropout_site_attention_residual(layer_number(i))), b.proj_bias.grad,
                             !overwrite});
  kernels->gemm(product_backward(rows, narrow, b.proj_weight, width, width, wide));
  weight_gradient(rows, b.o, narrow, b.attn_out, b.proj_weight, width, width);
  kernels->attention_backward({attention(i, dropout), act(wide, width), act(d_qkv, 3 * width)});
  if (b.attn_bias.grad) kernels->column_sum({rows, 3 * width, act(d_qkv, 3 * width), b.attn_bias.grad, !overwrite});
  kernels->gemm(product_backward(rows, d_qkv, b.attn_weight, width, 3 * width, narrow));
  weight_gradient(rows, b.a, d_qkv, b.qkv, b.attn_weight, width, 3 * width);

  LnBackwardDrop last{rows,
                      width,
                      act(narrow, width),
                      i ? blocks[static_cast<std::size_t>(i - 1)].out : x0,
                      b.mean1,
                      b.rstd1,
                      b.ln_1_weight.value,
                      dx,
                      b.ln_1_weight.grad,
                      b.ln_1_bias.grad,
                      {},
                      {},
                      nullptr,
                      !overwrite};
  if (i > lowest_block) {
    last.d_branch = act(narrow, width);
    last.place = place(dropout, dropout_site_mlp_residual(layer_number(i - 1)));
    last.d_bias = blocks[static_cast<std::size_t>(i - 1)].out_bias.grad;
  }
  kernels->ln_backward_drop(last);
}

void FusedGpt::Impl::backward_embedding(const FusedPlan& plan, const Dropout& dropout) {
  if (dropout.active()) {
    LnBackwardDrop drop;
    drop.rows = plan.rows();
    drop.width = width;
    drop.d_residual = dx;
    drop.d_branch = {dx, Num::kFloat, width};
    drop.place = place(dropout, dropout_site_embedding());
    kernels->ln_backward_drop(drop);
  }
  EmbedScatter scatter;
  scatter.rows = plan.rows();
  scatter.width = width;
  scatter.source = rows_source;
  scatter.grad = dx;
  scatter.table[kSpeedRow] = speed_table.grad;
  scatter.table[kTextRow] = text_table.grad;
  scatter.position[kTextRow] = text_positions.grad;
  scatter.table[kMelRow] = mel_table.grad;
  scatter.position[kMelRow] = mel_positions.grad;
  kernels->embed_scatter(scatter);
  for (const EmbedRow& row : plan.source) {
    if (row.kind == kTextRow) text_touched[static_cast<std::size_t>(row.id)] = 1;
    if (row.kind == kMelRow) mel_touched[static_cast<std::size_t>(row.id)] = 1;
  }
}

}  // namespace train_gpt_v2
