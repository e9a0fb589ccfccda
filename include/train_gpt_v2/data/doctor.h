#pragma once
// The data doctor: looks for what spoils a training run without an error message (data_and_peers.md §1.2, §4, §6).
//
// examine_data reads every record at manifest level, and arrays by a seeded sample (all of them with `full`).
// examine_quickly looks at no more than quick_records of open datasets and a few arrays. All findings are
// collected, nothing is thrown for bad data; each names its first places as file, line and pair id, and what to do.
//   malformed, overlong, unreadable   what the loader would stop at or leave out
//   padded_codes      code lengths of the padded batch: longer than the clip, equal among neighbours, constant tails
//   unknown_pieces    share of <unk> per manifest, with the characters that cause it
//   other_tokenizer   stored ids that differ from what the configured tokenizer gives for the text
//   special_ids       start or stop ids inside a text
//   leakage_*         utterances, texts, speakers that training and validation share
//   duplicate_*       the same text or the same codes under different clips, the same pair twice
//   language, rolling_text   texts under a wrong language; subtitles that overlap with their neighbour's
//   self_prompt, lonely_speaker, empty_features, text_speed   see their texts
// repair_data writes manifests without what cannot be used, and padded codes trimmed; the originals are never touched.
// Errors: only for what is missing altogether (IO001, DAT002, DAT008). Threads: uses its own; call from one.

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/dataset.h"

namespace train_gpt_v2 {

enum class Severity { kInfo, kWarning, kError };

struct FindingPlace {
  std::string file;
  long line = 0;
  std::string sample;
  std::string detail;  // the values
};

struct Finding {
  static constexpr std::size_t kPlaces = 10;
  std::string check;
  Severity severity = Severity::kInfo;
  std::string summary;
  std::string fix;
  std::uint64_t count = 0;
  std::vector<FindingPlace> places;  // the first kPlaces
};

// Lengths in equal steps on a logarithmic axis; `limit` is the upper end of each bar.
struct LengthHistogram {
  std::string name;
  std::vector<std::int64_t> limits;
  std::vector<std::uint64_t> counts;
  std::int64_t shortest = 0, median = 0, p95 = 0, longest = 0;
};

struct ManifestSummary {
  std::string path;
  bool validation = false;
  std::uint64_t pairs = 0, clips = 0, speakers = 0;
  double hours = 0;           // of distinct targets, from their codes at 50 per second
  double unknown_share = -1;  // of the sampled ids; -1 = none looked at
};

struct DoctorOptions {
  bool full = false;
  std::size_t sample = 2000;  // pairs whose arrays are read, per data set
  std::uint64_t seed = 1;
  double unknown_warning = 0.001, unknown_error = 0.01;
  double codes_per_second = 50;
  std::size_t quick_records = 100'000, quick_sample = 100;  // examine_quickly: the same limits there
};

struct DoctorReport {
  std::vector<Finding> findings;  // worst first
  std::vector<ManifestSummary> manifests;
  std::vector<LengthHistogram> histograms;
  std::uint64_t records = 0, records_looked_at = 0, arrays_read = 0;

  Severity worst() const;
  std::string text() const;  // tables and findings for people
  nlohmann::json json() const;
};

DoctorReport examine_data(DataOptions data, const ModelOptions& model,
                          const std::shared_ptr<const Tokenizer>& tokenizer, const DoctorOptions& options);

// Before every run. Checks that need every record (speakers with a single clip) are left out where not all are looked
// at.
DoctorReport examine_quickly(const Dataset& train, const Dataset* validation, const Tokenizer* tokenizer,
                             const DoctorOptions& options = {});

struct RepairOptions {
  std::string folder;  // made when it is not there
  double codes_per_second = 50;
};

struct RepairReport {
  std::uint64_t trimmed = 0, unchanged = 0, without_duration = 0;  // distinct target clips
  std::uint64_t left_out = 0;                                      // records, see left_out.jsonl
  std::vector<std::string> train, validation;                      // the manifests written
};

// Writes the manifests of `data` anew into a folder; the originals are never touched, and every array is read.
//   Codes longer than their clip are cut to round(duration x codes_per_second) where a duration is known: the target's
//   own, or the one another pair states for the same clip as its prompt.
//   Ids that are not those of the tokenizer are not named any more: the text is then tokenised when it is read.
//   Left out: malformed records, pairs whose arrays cannot be used, pairs that are their own prompt, and validation
//   clips that are also trained on. folder/left_out.jsonl names each with file, line, id and reason (of malformed
//   records the first 100).
RepairReport repair_data(const RepairOptions& options, DataOptions data, const ModelOptions& model,
                         const std::shared_ptr<const Tokenizer>& tokenizer);

}  // namespace train_gpt_v2
