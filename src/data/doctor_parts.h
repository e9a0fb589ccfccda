#pragma once
// The parts of the data doctor; see data/doctor.h for what is looked for.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "train_gpt_v2/data/doctor.h"

namespace train_gpt_v2::doctor {

// One finding per check, in order of first appearance.
struct Findings {
  std::vector<Finding> list;

  void note(std::string_view check, Severity severity, std::string_view summary, std::string_view fix,
            FindingPlace place);
  Finding& entry(std::string_view check, Severity severity, std::string_view summary, std::string_view fix);
};

struct Clip {
  static constexpr std::uint32_t kNone = UINT32_MAX;
  std::uint32_t sample = kNone;  // the first pair with this clip as its target
  std::uint32_t speaker = 0;
  float duration = -1;
  bool prompt = false;
};

// One side, training or validation, at manifest level.
struct Corpus {
  Corpus(const std::vector<std::string>& manifests, DataOptions data, const ModelOptions& model,
         const std::shared_ptr<const Tokenizer>& tokenizer, bool is_validation);

  void scan(Findings& findings);
  void report_dropped(Findings& findings) const;
  void find_padded_codes(Findings& findings, double per_second) const;
  void find_lonely_speakers(Findings& findings) const;
  void find_strange_speeds(Findings& findings) const;
  void measure(double per_second, std::vector<LengthHistogram>& histograms);
  FindingPlace place(std::uint32_t sample, std::string detail) const;

  bool validation = false;
  std::unique_ptr<Dataset> dataset;
  std::unordered_map<std::uint64_t, Clip> clips;           // by hash of the clip's id
  std::vector<std::uint64_t> targets;                      // distinct, in order
  std::unordered_map<std::uint64_t, std::uint32_t> texts;  // hash of the text -> first sample
  std::vector<ManifestSummary> summaries;
};

LengthHistogram length_histogram(std::string name, std::vector<std::int64_t> lengths);

// Everything that needs the arrays: read() looks at samples in parallel and notes what it found in their order.
class ArrayExamination {
 public:
  ArrayExamination(Corpus& corpus, const Tokenizer* tokenizer, const DoctorOptions& options, Findings& findings);
  void read(std::span<const std::uint32_t> samples);
  void conclude();  // what only the sums tell; fills unknown_share of the summaries

 private:
  struct Look;

  Look look_at(std::uint32_t sample) const;
  void note(const Look& look);
  void note_text(const Look& look);
  FindingPlace place(const Look& look, std::string detail) const;
  std::string check_name(std::string_view check) const;

  Corpus& corpus_;
  const Tokenizer* tokenizer_;
  const DoctorOptions& options_;
  Findings& findings_;
  std::vector<std::uint64_t> ids_, unknown_;                   // per manifest
  std::unordered_map<std::string, std::uint64_t> uncovered_;   // characters without a piece
  std::unordered_map<std::uint64_t, std::uint32_t> contents_;  // hash of codes -> sample
  std::uint64_t compared_ = 0, differing_ = 0;
};

}  // namespace train_gpt_v2::doctor
