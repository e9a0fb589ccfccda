#pragma once
// The cases file of `sample` (interface.md §6): what to say and in whose voice, one JSON object per line.
//
// {id, text | text_ids, and one of condition_path + emo_vec_path | prompt | speaker_features_path
// [+ emotion_features_path, emotion_alpha 0..1]; optional category, emotion, speaker, reference_codes_path}. Relative
// paths are relative to the file. Ids become file names, so only names that stay inside a folder are accepted.
// Reading checks everything that needs no array: arrays are opened for their shapes here and read by load_voice().
// Limits: 16 MiB, 10,000 cases, 64 KiB a line. Errors: DAT092 with file and line, DAT009, IO001, IO006, TOK001.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/dataset.h"
#include "train_gpt_v2/data/tokenizer.h"

namespace train_gpt_v2 {

struct SampleCase {
  std::string id, text, category, emotion, speaker;
  std::vector<std::int32_t> text_ids;
  std::string condition_path, emo_vec_path;                  // absolute; either these,
  std::string speaker_features_path, emotion_features_path;  // these,
  std::string prompt;                                        // or the id of a pair,
  std::optional<std::uint32_t> pair;                         // or its number, which then stands for the id
  double emotion_alpha = 1;
  std::optional<std::int64_t> reference_length;  // codes of the recording, where there is one
};

// What a case is conditioned on: rows of the pair or files, or features for the model's own conditioners.
struct Voice {
  std::vector<float> condition, emo_vec;                  // [latents,D] and [D], or empty
  std::vector<float> speaker_features, emotion_features;  // [frames,1024] each; no emotion: the speaker's
};

struct CaseContext {
  const ModelOptions& model;
  const Tokenizer* tokenizer = nullptr;  // null: only cases with text_ids
  std::string language;                  // "" = by the script of the text
  std::string default_prompt;            // for cases that name no voice; "" = refuse them
};

std::vector<SampleCase> read_cases(const std::string& path, const CaseContext& context);

// Opens the voice of a case; `pairs` may be null where no case has a prompt.
Voice load_voice(const SampleCase& one, const ModelOptions& model, const Dataset* pairs);

// "" where `id` can be a file name within a folder, else the reason why not.
std::string id_problem(std::string_view id);

}  // namespace train_gpt_v2
