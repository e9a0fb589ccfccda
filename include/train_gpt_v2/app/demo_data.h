#pragma once
// `train_gpt_v2 demo-data`: a small corpus of real Amharic text and synthetic speech, in the layout of the Python
// preprocessing tools, made from installed packages without any download.
//
// Below the output folder: train_pairs.jsonl, val_pairs.jsonl, the clip manifests, text_ids/ codes/ condition/ emo_vec/
// (.npy), tokenizer/, stats.json, demo.json (a config that trains on it), audio/ of the validation clips, codebook/ (to
// turn codes into sound, demo_vocoder.h), and features/ of the prompts with train_pairs_online.jsonl,
// val_pairs_online.jsonl and demo_online.json for online conditioning. Same options, same bytes (for one version of
// espeak-ng, LibreOffice's and aspell's packages). Tokenizer, codebook and speaker statistics depend on the seed alone,
// so that corpora of different voices and sizes fit one model.
// It is built in OUT.partial (removed first, should one be left over) and renamed when complete.
// Errors: DEM001 (package missing), DEM002 (a program or file failed), IO003 (the folder holds something else).

#include <cstdint>
#include <string>

namespace train_gpt_v2 {

inline constexpr std::int64_t kMinDemoUtterances = 24, kMaxDemoUtterances = 100'000;

struct DemoOptions {
  std::string out;
  std::int64_t utterances = 3000;
  std::uint64_t seed = 2025;
  std::string voices = "first";  // first | second | all
};

struct DemoCorpus {
  std::string folder, config;  // config: path of demo.json
  bool already_there = false;
  std::int64_t train_pairs = 0, val_pairs = 0;
  double hours = 0;
};

DemoCorpus make_demo_corpus(const DemoOptions& options);

}  // namespace train_gpt_v2
