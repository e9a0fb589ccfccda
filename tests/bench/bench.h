#pragma once
// Parts of bench_train: synthetic data, the clock, and results as JSON lines on stdout.

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/batch.h"

namespace train_gpt_v2::bench {

struct Settings {
  bool quick = false;      // smaller counts, the same measurements
  bool processor = false;  // processor time of the process instead of wall time
  int threads = 1;
  std::int64_t dim = 512, layers = 12, batch = 4;
  std::string device = "cpu";  // of the step
  std::string folder;          // for data; the caller removes it
};

double now(const Settings& settings);
std::uint64_t resident_bytes();

// {"group": ..., "name": ..., "value": ..., "unit": ..., "limit": ...}; a limit is what the specification allows.
void emit(const std::string& group, const std::string& name, double value, const std::string& unit,
          nlohmann::ordered_json more = nlohmann::ordered_json::object());

// Median of `repeat` calls after one that is not counted.
double median_seconds(const Settings& settings, int repeat, const std::function<void()>& call);

// The model of the measurements: 24,001 text rows, 8,194 codes, released position tables.
ModelOptions bench_model(const Settings& settings);

// Lengths of an utterance drawn like the corpus of the plan: codes log-normal (median 230, sigma 0.5, 50 to 800), about
// one text id to eight codes. Padding a batch of four to its longest then adds a half.
struct Lengths {
  std::int64_t text = 0, codes = 0;
};
std::vector<Lengths> draw_lengths(std::size_t count, std::uint64_t seed);

// A batch of samples of these lengths; ids come from every fourth row, so that a few steps lower the loss.
Batch make_batch(const ModelOptions& model, const std::vector<Lengths>& lengths, std::uint64_t seed);

// manifest.jsonl with arrays, order.jsonl (micro-batches of `batch`), equal_text.jsonl (micro-batches of equal text
// length), and model.json; with `weights` also init.pth.
void write_corpus(const Settings& settings, std::size_t pairs, std::size_t micro_batches, bool weights);

// A manifest of so many pairs whose arrays are a handful of files; lines as long as the Python tools write them.
std::string write_large_manifest(const Settings& settings, std::size_t pairs);

void bench_step(const Settings& settings);
void bench_parts(const Settings& settings);
void bench_growth(const Settings& settings);

}  // namespace train_gpt_v2::bench
