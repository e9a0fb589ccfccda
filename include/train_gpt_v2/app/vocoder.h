#pragma once
// Sound for generated codes: the user's own command, or the demo corpus' codebook.
//
// A command is split into words like a shell does (spaces, '..', "..", \) but never given to one; {codes} and {out} are
// replaced within the words, so that no text of a case can become a command. It runs with stdin and stdout closed off,
// at most ten minutes, and is ended when a stop is asked.
// Errors: CFG022 (a command without {codes} or {out}, an open quote), IO007 (it cannot be started, fails, writes
// nothing), and those of DemoVocoder.

#include <string>
#include <vector>

#include "train_gpt_v2/train/sampling.h"

namespace train_gpt_v2 {

// `command` "" looks for codebook/ beside the first manifest that has one; without one the result is empty.
Vocoder make_vocoder(const std::string& command, const std::vector<std::string>& manifests);

std::vector<std::string> split_command(const std::string& command);

}  // namespace train_gpt_v2
