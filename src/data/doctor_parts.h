#pragma once
// The parts of the data doctor; see data/doctor.h for what is looked for.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/doctor.h"

namespace train_gpt_v2::doctor {

// One finding per check, in order of first appearance.
struct Findings {
  std::vector<Finding> list;

  // `place` is asked only for the first places: finding a line number means counting the lines before it.
  template <class Place>
  void note(std::string_view check, Severity severity, std::string_view summary, std::string_view fix,
            const Place& place) {
    Finding& finding = entry(check, severity, summary, fix);
    ++finding.count;
    if (finding.places.size() < Finding::kPlaces) finding.places.push_back(place());
  }
  Finding& entry(std::string_view check, Severity severity, std::string_view summary, std::string_view fix);
};

// Line numbers of records without counting from the beginning of the file each time.
class LineNumbers {
 public:
  explicit LineNumbers(const PairIndex& index) : index_(index), before_(index.manifests()) {}
  long line(const PairEntry& entry);
  std::string place(const PairEntry& entry) { return concat(index_.file(entry), ":", line(entry)); }

 private:
  const PairIndex& index_;
  std::vector<std::vector<long>> before_;  // per manifest: lines before each block of bytes, filled when first asked
};

struct Clip {
  static constexpr std::uint32_t kNone = UINT32_MAX;
  std::uint32_t sample = kNone;  // the first pair with this clip as its target
  std::uint32_t speaker = 0;
  float duration = -1;
  bool prompt = false;
};

// One side, training or validation, at manifest level. The dataset must outlive it.
struct Corpus {
  // Looks at `most_records` records at most (0 = all), in blocks spread evenly.
  Corpus(const Dataset& dataset, bool is_validation, std::size_t most_records);

  void scan(Findings& findings);
  void report_dropped(Findings& findings) const;
  void find_padded_codes(Findings& findings, double per_second) const;
  void find_rolling_texts(Findings& findings) const;
  void find_lonely_speakers(Findings& findings) const;
  void find_strange_speeds(Findings& findings) const;
  void measure(double per_second, std::vector<LengthHistogram>& histograms);
  FindingPlace place(std::uint32_t sample, std::string detail) const;
  std::string where(std::uint32_t sample) const { return lines_.place(dataset.index()[sample]); }  // "file:line"

  const Dataset& dataset;
  bool validation = false;
  bool whole = true;                                       // every record is looked at
  std::vector<std::uint32_t> scanned;                      // the samples that are
  std::unordered_map<std::uint64_t, Clip> clips;           // by hash of the clip's id
  std::vector<std::uint64_t> targets;                      // distinct, in order
  std::unordered_map<std::uint64_t, std::uint32_t> texts;  // hash of the text -> first sample
  std::vector<ManifestSummary> summaries;

 private:
  mutable LineNumbers lines_;               // a cache
  std::uint64_t neighbours_ = 0;            // texts compared with the one before
  std::vector<std::uint32_t> overlapping_;  // samples whose text begins with the end of the one before
};

LengthHistogram length_histogram(std::string name, std::vector<std::int64_t> lengths);

// The allowance of a codec: rounding, and a frame at either end.
bool longer_than_clip(std::int64_t codes, double duration, double per_second);

// The target clip of a pair, the same in every manifest: its id, else the file of its codes.
std::string clip_key(const PairIndex& index, const PairEntry& entry, const PairRecord& record);

// What one thread saw in the arrays of one sample.
struct ArrayLook {
  std::uint32_t sample = 0;
  std::optional<Error> error;
  std::uint64_t ids = 0, unknown = 0, codes_hash = 0;
  std::int64_t special = -1;          // position of a start or stop id
  std::int64_t tail = 0, period = 0;  // codes at the end that repeat
  bool empty_condition = false, empty_emotion = false;
  bool compared = false, differs = false;  // with what the tokenizer gives
  std::string first_difference;
  std::vector<std::string> uncovered;  // characters without a piece

  // Why the sample must not be trained on; "" = nothing speaks against it.
  std::string unusable() const;
};

ArrayLook look_at_arrays(const Dataset& dataset, const Tokenizer* tokenizer, std::uint32_t sample);

// Everything that needs the arrays: read() looks at samples in parallel and notes what it found in their order.
class ArrayExamination {
 public:
  ArrayExamination(Corpus& corpus, const Tokenizer* tokenizer, const DoctorOptions& options, Findings& findings);
  void read(std::span<const std::uint32_t> samples);
  // Not one of the first samples could be read: looking at more would tell nothing new.
  bool hopeless() const { return looked_ >= kFirstChunk && failed_ == looked_; }
  static constexpr std::size_t kFirstChunk = 64;
  void conclude();  // what only the sums tell; fills unknown_share of the summaries

 private:
  void note(const ArrayLook& look);
  void note_text(const ArrayLook& look);
  FindingPlace place(const ArrayLook& look, std::string detail) const;
  std::string check_name(std::string_view check) const;

  Corpus& corpus_;
  const Tokenizer* tokenizer_;
  const DoctorOptions& options_;
  Findings& findings_;
  std::vector<std::uint64_t> ids_, unknown_;                   // per manifest
  std::unordered_map<std::string, std::uint64_t> uncovered_;   // characters without a piece
  std::unordered_map<std::uint64_t, std::uint32_t> contents_;  // hash of codes -> sample
  std::uint64_t compared_ = 0, differing_ = 0, looked_ = 0, failed_ = 0;
};

}  // namespace train_gpt_v2::doctor
