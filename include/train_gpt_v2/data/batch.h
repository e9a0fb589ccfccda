#pragma once
// One micro-batch on the host, without padding and without torch: what the loader delivers and both executors read.
//
// Sample i has text ids text[text_begin[i] .. text_begin[i+1]) and codes codes[code_begin[i] .. code_begin[i+1]),
// without start or stop tokens (the model adds them, architecture.md §4). With precomputed conditioning it has
// condition [count, latents, model_dim] and emo_vec [count, model_dim]; with online conditioning it has feature frames
// of 1024 numbers at frame_begin and emo_frame_begin instead.

#include <cstdint>
#include <string>
#include <vector>

namespace train_gpt_v2 {

struct Batch {
  std::vector<std::uint32_t> samples;  // index into the dataset
  std::vector<std::string> ids;        // pair ids, for messages and records
  std::vector<std::int32_t> text;
  std::vector<std::int64_t> text_begin{0};
  std::vector<std::int32_t> codes;
  std::vector<std::int64_t> code_begin{0};
  std::vector<float> condition;
  std::vector<float> emo_vec;
  std::vector<float> features;
  std::vector<std::int64_t> frame_begin{0};
  std::vector<float> emo_features;  // empty: the emotion comes from `features`
  std::vector<std::int64_t> emo_frame_begin{0};

  std::int64_t count() const { return static_cast<std::int64_t>(ids.size()); }
  std::int64_t text_length(std::int64_t i) const { return text_begin[i + 1] - text_begin[i]; }
  std::int64_t code_length(std::int64_t i) const { return code_begin[i + 1] - code_begin[i]; }

  // Scored targets: every id plus one stop token per sample and head.
  std::int64_t text_tokens() const { return static_cast<std::int64_t>(text.size()) + count(); }
  std::int64_t mel_tokens() const { return static_cast<std::int64_t>(codes.size()) + count(); }
};

}  // namespace train_gpt_v2
