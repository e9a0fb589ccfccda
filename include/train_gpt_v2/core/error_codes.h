#pragma once
// The registry behind Error codes and `train_gpt_v2 explain CODE`.

#include <span>
#include <string_view>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {

struct ErrorCode {
  std::string_view code;     // three letters (two for IO) and three digits
  ExitStatus status;         // what main exits with
  std::string_view title;    // one line
  std::string_view explain;  // what it means and what to do, plain text, one paragraph
};

// All codes, sorted by family; static storage.
std::span<const ErrorCode> error_codes();

// nullptr when there is no such code. The comparison ignores case.
const ErrorCode* find_error_code(std::string_view code);

}  // namespace train_gpt_v2
