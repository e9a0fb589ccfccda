#pragma once
// Codes of the demo corpus as sound: codebook entry -> log-mel of the speaker -> amplitudes -> Griffin-Lim.
//
// Amplitudes come from mel bands by multiplicative non-negative least squares (Lee, Seung 2001); phases by the fast
// Griffin-Lim iteration (Perraudin et al. 2013, momentum 0.99) from a fixed random start, so the same codes give the
// same samples. It is the sound of 128 spectral shapes: intelligible, not pretty. Immutable; may be shared.
// Errors: IO001, IO006, DEM003 (a damaged codebook folder, a code or a speaker it does not know).

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "train_gpt_v2/app/demo_codebook.h"
#include "train_gpt_v2/app/demo_dsp.h"

namespace train_gpt_v2 {

class DemoVocoder {
 public:
  // `folder`: codebook/ of a demo corpus.
  explicit DemoVocoder(const std::string& folder);

  // Samples at 22,050 Hz, 441 per code, peak at most 0.95. A speaker not in the codebook gets the mean of all.
  std::vector<float> synthesize(std::span<const std::int32_t> codes, const std::string& speaker) const;
  // The log-mel that the codes stand for, [T, 80].
  std::vector<float> log_mel(std::span<const std::int32_t> codes, const std::string& speaker) const;

 private:
  Codebook codebook_;
  std::map<std::string, MelStatistics> speakers_;
  MelStatistics average_;
};

}  // namespace train_gpt_v2
