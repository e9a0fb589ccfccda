#pragma once
// Speech codes from text and conditioning: prefix, key-value cache, batched search (architecture.md §5).
//
// The prefix of a case is [34 conditioning rows | start_text, ids without 0 and 1, stop_text | start_mel]. Cases of one
// call run together, shorter prefixes padded on the left behind a mask; every case has its own random numbers, so that
// results depend neither on the batch nor on training. Code k takes mel position k+1 as in training, or k+2 as the
// reference's cached inference does. Works in the model's type and on its device; no gradients. Not thread-safe.
// Errors: DAT042, DAT043 for ids or texts that the model cannot hold, NUM020 for non-finite scores.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/model/search.h"
#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2 {

struct GenerationCase {
  at::Tensor conditioning;         // [34,D], from conditioning_rows()
  std::vector<std::int32_t> text;  // ids, without start and stop
  std::uint64_t stream = 0;        // of its random numbers
};

// [latents,D] and [D] -> the 34 rows in front of the text.
at::Tensor conditioning_rows(const UnifiedVoice& model, const at::Tensor& condition, const at::Tensor& emo_vec);

// Longest run of codes that `options` allow on this model, the stop code included.
std::int64_t code_limit(const ModelOptions& model, const DecodingOptions& options);

// `stop` is polled before every code; when it answers true, the result is empty.
std::vector<SearchResult> generate(const UnifiedVoice& model, const std::vector<GenerationCase>& cases,
                                   const DecodingOptions& options, const std::function<bool()>& stop = {});

// The network's side of decoding: logits for the rows of several cases, one code at a time.
class Decoder {
 public:
  // Computes the prefixes; each case then has `beams` equal rows. At most `limit` codes can be fed.
  Decoder(const UnifiedVoice& model, const std::vector<GenerationCase>& cases, std::int64_t beams, std::int64_t limit,
          bool reference_positions);

  // [rows,V] in double on the CPU, after the prefix or the last step.
  std::vector<Scores> logits() const;
  // Feeds one code per row; row r continues source[r], a row of the same case.
  void step(const std::vector<std::int64_t>& source, const std::vector<std::int64_t>& codes);

 private:
  void prefill(const std::vector<GenerationCase>& cases);
  at::Tensor attend(std::size_t layer, const at::Tensor& qkv);
  void make_room();
  void reorder(const std::vector<std::int64_t>& source);

  const UnifiedVoice& model_;
  std::int64_t beams_, heads_, head_size_, prefix_ = 0, fed_ = 0, rows_ = 0, limit_ = 0;
  bool reference_positions_;
  std::vector<at::Tensor> keys_, values_;  // per layer [rows,H,capacity,d]
  at::Tensor hidden_;                      // bool [rows,1,1,prefix]: left padding; undefined where there is none
  at::Tensor last_;                        // [rows,D] before ln_f
};

}  // namespace train_gpt_v2
