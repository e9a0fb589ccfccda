#pragma once
// `train_gpt_v2 sample`: codes, pictures and sound for a file of cases (interface.md §6).
//
// Everything is checked before the first code is decoded: options, cases, the shapes of their arrays, and whether the
// file holds the conditioners that cases with features need.

#include <iosfwd>
#include <string>
#include <vector>

#include "train_gpt_v2/app/model_source.h"
#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {

struct SampleRequest {
  ModelRequest model;
  std::string cases, folder;
  std::vector<std::string> manifests;  // of the prompts; empty = the configuration's
  std::string prompt;                  // pair id for cases that name no voice
  std::string vocoder_command;
  DecodingOptions decoding;
  std::int64_t batch_size = 8;
  bool json = false;
};

// What the reference's inference ships (architecture.md §5.3), with the positions of training.
DecodingOptions shipped_decoding();

// kOk, or the status a signal asked for. Throws IO007 at the end when a vocoder failed: the codes are there by then.
ExitStatus run_sample(const SampleRequest& request, std::ostream& out);

}  // namespace train_gpt_v2
