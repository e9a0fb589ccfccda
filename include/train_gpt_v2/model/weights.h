#pragma once
// The state dict of a UnifiedVoice to and from file values, by the rules of architecture.md §1.4.
//
// Reading accepts the bare dict or one under "model". Aliases and adapter deltas are dropped, `X.base_layer.Y` becomes
// `X.Y`, text rows may be fewer or more than the model's (vocabulary.h). Names and shapes of everything are compared
// before the first byte is copied, so a refused file leaves the model as it was. Tensors may have any strides and any
// floating type. Errors: CKP020 shapes or types, CKP021 another architecture, CKP022 adapters, CKP023 missing tensors,
// CKP002 a Fisher file.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/io/value.h"
#include "train_gpt_v2/model/unified_voice.h"
#include "train_gpt_v2/model/vocabulary.h"

namespace train_gpt_v2 {

struct LoadOptions {
  std::string source;     // the file, for messages
  bool complete = false;  // every tensor of the model must be there, with its exact shape (resume, eval)
  NewRows new_rows = NewRows::kRomanisedMean;
  Vocabulary vocabulary;
  std::uint64_t seed = 0;  // of the noise in new rows
};

struct LoadReport {
  std::int64_t loaded = 0;
  std::vector<std::string> missing;     // keep their fresh values
  std::vector<std::string> unexpected;  // not part of the model, not read
  std::vector<std::string> dropped;     // aliases, buffers of old libraries, adapter deltas
  std::vector<std::string> renamed;     // had ".base_layer." in their name
  std::optional<VocabularyReport> vocabulary;
};

// What `train_gpt_v2 fisher` writes: safetensors with a model's names and shapes, but no weights.
bool is_fisher_file(const Value& root);
void refuse_fisher_file(const Value& root, const std::string& source);  // CKP002

// The dict of tensors inside a file's root: under "model" or the root itself. Throws CKP022 for our checkpoints of
// unmerged adapters, CKP002 for a Fisher file, and CKP003 where neither holds.
const Value& find_model_dict(const Value& root, const std::string& source);

LoadReport load_state(UnifiedVoice& model, const Value& root, const LoadOptions& options);

// What was loaded, opened, dropped and left out, in lines of the log (area "weights").
void log_load_report(const LoadReport& report, const LoadOptions& options);

// An OrderedDict with the reference's keys, `pe` included; CPU tensors are shared, not copied.
Value state_value(const UnifiedVoice& model);

}  // namespace train_gpt_v2
