#pragma once
// Checks of command-line values that CLI11 lacks.

#include <string>

namespace train_gpt_v2 {

// For option->check. CLI11's NonNegativeNumber answers with the 309 digits of the largest double, and its unsigned
// integers take -1 for their largest.
inline std::string not_negative(const std::string& value) {
  return value.starts_with('-') ? value + " is negative" : std::string();
}

}  // namespace train_gpt_v2
