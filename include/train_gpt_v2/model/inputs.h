#pragma once
// From a host batch to the index tensors of one forward pass (architecture.md §4).
//
// All layouts become rows [R,D] of segments laid end to end: 34 conditioning rows, text inputs, mel inputs per sample.
//   kPacked             34 + (l+2) + (m+1) rows; a sample sees only itself: equal to the reference run one by one
//   kPadded             the reference's batch: 34 + (lmax+2) + (mmax+2) rows, text padding visible to the mel part
//   kPackedTextPadded   packed, but with the lmax-l unscored stop tokens: the losses of kPadded with fewer rows (§4.2)
// Row numbers in `*_scored_rows` count within the R rows. Throws DAT errors for ids or lengths the model cannot hold.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/batch.h"
#include "train_gpt_v2/model/attention.h"

namespace train_gpt_v2 {

enum class BatchLayout { kPacked, kPadded, kPackedTextPadded };

// "packed" or "padded", the values of train.layout.
BatchLayout parse_layout(std::string_view name);

// Features of one conditioner: [B,F,1024] zero-padded, and int64 [B] true frame counts on the CPU.
struct FeatureBatch {
  at::Tensor features;
  at::Tensor lengths;
  bool defined() const { return features.defined(); }
};

struct ModelInputs {
  BatchLayout layout = BatchLayout::kPacked;
  std::int64_t count = 0;  // samples
  Segments segments;

  at::Tensor text_ids, text_positions;  // int64 [all text inputs]
  at::Tensor mel_ids, mel_positions;    // int64 [all mel inputs]
  // Row r of the network's input is row gather[r] of [conditioning | speed 1 | speed 0 | text | mel], where the
  // conditioning block has count*latents rows and both speed blocks have `count`.
  at::Tensor gather;

  at::Tensor text_scored_rows, text_targets, text_sample;  // int64 [text_tokens]; sample = index into the batch
  at::Tensor mel_scored_rows, mel_targets, mel_sample;     // int64 [mel_tokens]
  // int64 [count]: the row of each sample's first text and first mel input.
  std::vector<std::int64_t> text_begin, mel_begin;

  at::Tensor condition, emo_vec;                // [B,latents,D], [B,D]; undefined with online conditioning
  FeatureBatch speaker_features, emo_features;  // emo_features undefined: the emotion comes from the speaker's

  std::int64_t text_tokens() const { return text_targets.numel(); }
  std::int64_t mel_tokens() const { return mel_targets.numel(); }
  std::int64_t rows() const { return gather.numel(); }
};

// Throws DAT042/DAT043 for an id or a length that the model's tables cannot hold.
void check_batch(const Batch& batch, const ModelOptions& options);

// Tensors land on `device`; floating ones in `dtype` (the model's parameter type).
ModelInputs assemble_inputs(const Batch& batch, const ModelOptions& options, BatchLayout layout, at::Device device,
                            at::ScalarType dtype = at::kFloat);

}  // namespace train_gpt_v2
