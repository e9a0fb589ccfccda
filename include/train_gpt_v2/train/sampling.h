#pragma once
// Cases to codes and files: DIR/<id>.npy, <id>.png (alignment), <id>.wav (with a vocoder), samples.jsonl (interface.md
// §6). Used by `sample`, and usable between two steps of training: it draws from its own random streams alone and
// leaves parameters and gradients untouched.
//
// Cases are decoded batch_size at a time; `stop` is polled before every code and handed to the vocoder; a batch that
// was stopped leaves nothing, what was finished before is written. A failing vocoder costs the sound, not the codes:
// its errors are returned. Errors: those of load_voice() and generate().

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/model/unified_voice.h"
#include "train_gpt_v2/train/sample_cases.h"

namespace train_gpt_v2 {

// The longest answer of the reference's inference, the stop code included.
inline constexpr std::int64_t kShippedMaxCodes = 1500;

// Makes `wav_path` from a file of codes; throws an Error when it cannot.
struct VocoderInput {
  const SampleCase& one;
  const std::vector<std::int32_t>& codes;
  const std::string& codes_path;
  const std::function<bool()>& stop;  // may be empty; polled where the work takes long
};
using Vocoder = std::function<void(const VocoderInput& input, const std::string& wav_path)>;

struct SamplingSetup {
  std::string folder;  // made when it is not there
  DecodingOptions decoding;
  std::int64_t batch_size = 8;
  Vocoder vocoder;  // empty: no sound
  std::function<bool()> stop;
};

struct SampleRecord {
  std::string id;
  std::vector<std::int32_t> codes;
  bool stopped = false;
  std::optional<double> length_ratio;  // of the recording's length, where there is one
  std::int64_t longest_repeat = 0;     // longest run of one code
  std::int64_t distinct_codes = 0;
  double mean_logprob = 0, seconds = 0;          // seconds: an equal share of its batch's
  std::optional<double> monotonicity, coverage;  // of the alignment
};

struct SamplingResult {
  std::vector<SampleRecord> records;  // fewer than the cases when stopped
  bool complete = false;
  std::vector<Error> sound_errors;
};

SamplingResult write_samples(UnifiedVoice& model, const std::vector<SampleCase>& cases, const Dataset* pairs,
                             const SamplingSetup& setup);

// One line of samples.jsonl, without the newline.
std::string record_json(const SampleRecord& record);

// The longest run of equal codes; 0 for none.
std::int64_t longest_repeat(const std::vector<std::int32_t>& codes);

}  // namespace train_gpt_v2
