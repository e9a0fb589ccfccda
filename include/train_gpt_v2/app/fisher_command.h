#pragma once
// `train_gpt_v2 fisher`: the Fisher information that ewc.fisher needs, measured on the languages to protect.
//
// Labels are drawn from the model at every scored position; one backward of a batch's summed log-likelihood, squared,
// is an unbiased estimate whatever the batch size (algorithms.md §5.2). Measured is every parameter that training could
// move with this conditioning, per scored token, without dropout and in the packed layout. The same file, weights and
// seed give the same result on the CPU. The file also holds a checksum of each tensor's weights, so that a run refuses
// information about other weights.

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/app/model_source.h"
#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {

struct FisherRequest {
  ModelRequest model;
  std::vector<std::string> manifests;
  std::string output;
  std::optional<std::int64_t> samples;  // spread evenly over the manifests; unset = every sample
  std::int64_t batch_size = 8;          // smaller: more independent squares from the same samples
  bool json = false;
};

// kOk, or the status a signal asked for: then nothing is written. Throws CFG021 without a manifest, NUM020 for a model
// whose gradients are not finite, and the errors of loading and writing.
ExitStatus run_fisher(const FisherRequest& request, std::ostream& out);

}  // namespace train_gpt_v2
