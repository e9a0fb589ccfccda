#pragma once
// What a report needs to know of a run directory, read defensively: anything may be missing, half-written or hostile.
//
// Numbers become curves (at most 1,500 points each, extremes kept), everything else becomes short texts. Reading stops
// at limits instead of failing; what could not be read is listed in `problems`. Only a run directory that does not
// exist is an Error (IO001). Pure reading, no thread rules.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "train_gpt_v2/train/listening_sheet.h"

namespace train_gpt_v2 {

struct CurvePoint {
  double step = 0;
  double value = 0;
};
using Curve = std::vector<CurvePoint>;

struct RunEvent {
  std::int64_t first_step = 0, last_step = 0;  // differ where equal events in a row were put together
  std::int64_t count = 1;
  double time = 0;      // unix seconds of the last one, 0 = not known
  std::string name;     // start, resume, save, best, skip, rollback, ...
  std::string details;  // "key value, key value"
};

struct SampleFolder {
  struct Sample {
    std::string id, text, stop;
    std::map<std::string, double> figures;  // length, length_ratio, longest_repeat, monotonicity, ...
    std::string picture, sound;             // file contents, "" = none or over the limit
  };
  std::int64_t step = 0;
  std::vector<Sample> samples;
  std::vector<ListeningNote> notes;
};

// One row of a count table: lengths of texts or codes, unknown pieces of a manifest.
struct CountRow {
  std::string name;
  double count = 0, of = 0;
};

struct ReportRun {
  std::string path, name;
  std::map<std::string, Curve> train;                                             // field of the train lines
  std::map<std::tuple<std::string, std::string, std::string>, Curve> validation;  // (split, weights, field)
  std::vector<RunEvent> events;
  std::map<std::string, std::int64_t> event_counts;
  std::int64_t last_step = 0;
  double first_time = 0, last_time = 0;         // unix seconds, 0 = not known
  std::string done;                             // "goal reached at step 800", "" = not finished
  std::string config;                           // config.effective.json as text, "" = none
  std::map<std::string, std::string> settings;  // "train.batch_size" -> "64"; values as JSON, strings bare
  std::optional<double> bigram_mel_loss;        // of summary.json (quickstart)
  std::vector<std::pair<std::string, std::uint64_t>> checkpoints;  // file, bytes
  std::map<std::string, std::vector<CountRow>> counts;             // data_report.json: "text lengths", ...
  std::vector<SampleFolder> samples;                               // by step
  std::vector<std::string> problems;
};

// `media_bytes` is what may still be taken into the page as pictures and sounds; it is counted down.
ReportRun load_run(const std::string& directory, std::uint64_t& media_bytes);

// The better of raw and EMA weights (by mel loss) at one validation, split "all".
struct ReportValidation {
  double step = 0, mel_loss = 0, top1 = 0, text_loss = 0;  // not-a-number where a field is missing
  std::string weights;
};
std::vector<ReportValidation> validation_results(const ReportRun& run);

// At most `points` points: of each stretch its smallest and its largest value.
Curve thinned(const Curve& curve, std::size_t points);

// Valid UTF-8 without control characters, at most `bytes` long.
std::string clean_text(std::string_view text, std::size_t bytes = 300);

}  // namespace train_gpt_v2
