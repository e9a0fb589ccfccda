#pragma once
// summary.json of a demo run: what the model reached, beside the honest bigram of the same codes (data/bigram.h).
//
// Everything is read from the run directory: config.effective.json names the manifests, metrics.jsonl holds the last
// validation (split "all"; the better of raw and EMA weights) and the times. train_seconds counts steps and
// validations, not the time between two starts. Errors: IO001 (no run there), DAT001 (metrics.jsonl damaged), DEM004
// (no validation yet, or none with data.val_manifests and validation.text_usage_gap).

#include <cstdint>
#include <string>

namespace train_gpt_v2 {

struct DemoSummary {
  double bigram_mel_loss = 0, unigram_mel_loss = 0;  // nats per code
  double val_mel_loss = 0, text_usage_gap = 0;
  double train_seconds = 0;
  std::int64_t steps = 0;
  std::int64_t parameters = 0;  // all, trained or not
};

DemoSummary summarise_demo_run(const std::string& run_directory);

// The contract's JSON object, numbers exact, one key a line.
std::string summary_json(const DemoSummary& summary);

// The same for people: measured beside baseline and aim.
std::string summary_table(const DemoSummary& summary);

}  // namespace train_gpt_v2
