#pragma once
// `train_gpt_v2 explain CODE`: what an error code means, what to do, and what the exit status tells a script.
//
// The texts come from core/error_codes.h alone. Throws Error ARG001 (exit 64) for a code that does not exist, with the
// nearest one. Pure functions.

#include <string>
#include <string_view>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {

// What an exit status means and what a script should do next: "65: bad data or a damaged checkpoint; stop and fix".
std::string exit_status_text(ExitStatus status);

// The text for stdout. `code` in any case, also as printed ("error[CKP001]"); "" lists all codes. With `json` one
// document: {"code","status","title","explain"}, or an array of them.
std::string explain_text(std::string_view code, bool json = false);

}  // namespace train_gpt_v2
