#pragma once
// Samples between two steps of training (interface.md §2 `sampling`): the same cases every sampling.interval steps,
// into RUN/samples/step_N with the files of `sample` and notes.json, the sheet for a listener.
//
// Watching must never stop or change training: decoding draws from random streams of its own, parameters and gradients
// stay as they are, and whatever goes wrong ends up in TrainingSamples::error. Only the constructor throws, before the
// first step: errors of read_cases(), and DAT009 for a prompt that is not there.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/train/sampling.h"

namespace train_gpt_v2 {

struct TrainingSamples {
  std::string folder;
  std::vector<SampleRecord> records;
  std::vector<std::string> sound_errors;
  double seconds = 0;
  bool complete = false;  // false: a stop was asked, or
  std::string error;      // this went wrong
};

class TrainingSampler {
 public:
  struct Sources {
    const Dataset* pairs = nullptr;        // of the prompts; of the cases where sampling.cases is not set
    const Tokenizer* tokenizer = nullptr;  // may be null where the cases have ids
    Vocoder vocoder;                       // empty: no sound
  };

  // `model` and what `sources` points to must outlive it.
  TrainingSampler(UnifiedVoice& model, const Options& options, const std::string& run_directory, Sources sources);

  const std::vector<SampleCase>& cases() const { return cases_; }
  // A multiple of sampling.interval, or sampling.baseline_step.
  bool due(std::int64_t step) const;
  // Due, but not on disk in full: an earlier process was stopped in the middle.
  bool missing(std::int64_t step) const;
  // Decodes with the values the model holds now. `stop` is polled often.
  TrainingSamples run(std::int64_t step, const std::function<bool()>& stop);

 private:
  std::string folder_of(std::int64_t step) const;
  void write_sheet(std::int64_t step, const std::string& folder) const;

  UnifiedVoice& model_;
  SamplingOptions options_;
  std::string run_directory_;
  Sources sources_;
  std::vector<SampleCase> cases_;
};

// The first `count` pairs that can be loaded, each with its own text, voice and recording's length.
std::vector<SampleCase> validation_cases(const Dataset& pairs, std::int64_t count);

}  // namespace train_gpt_v2
