#pragma once
// metrics.jsonl (interface.md §4) and the sums between two of its lines.
//
// The file is append-only; on resume it is cut behind the step that training goes on from, so that there is one line
// per log interval whatever happened. Sums since the last line are part of the checkpoint, so a resumed run writes the
// same line as an uninterrupted one.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace train_gpt_v2 {

using OrderedJson = nlohmann::ordered_json;

class MetricsLog {
 public:
  // Opens for appending; lines with a step beyond `last_step` and a torn last line are removed first, and where the
  // validation at that step is done again (`validation_due`), its lines of the first time.
  // An unwritable file is reported once in the log and does not stop training. "" writes nothing.
  MetricsLog(const std::string& path, std::int64_t last_step, bool validation_due = false);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  // One line; "v" is put in front and "time" at the end.
  void write(const OrderedJson& line);
  void event(std::int64_t step, const std::string& name, OrderedJson details = OrderedJson::object());
  // Removes what lies behind `last_step` (rollback within a run).
  void cut(std::int64_t last_step, bool validation_due = false);

 private:
  void open();
  std::string path_;
  int fd_ = -1;
  bool reported_ = false;
};

// Everything a training line reports, summed since the last line.
struct TrainMeters {
  double loss_sum = 0;  // one term per step: what was differentiated
  double text_loss_sum = 0, mel_loss_sum = 0, mel_top1_count = 0;
  std::int64_t text_tokens = 0, mel_tokens = 0;
  std::int64_t positions = 0, padded_positions = 0;  // real ones; those the layout computes on
  std::int64_t steps = 0, clipped = 0, skipped = 0;
  double imbalance_sum = 0;  // several ranks: positions of the rank with most over the mean, one term per step
  double step_seconds = 0, wait_seconds = 0;  // wall clock, the only numbers here that no other run repeats

  nlohmann::json save_state() const;
  void load_state(const nlohmann::json& state);
};

}  // namespace train_gpt_v2
