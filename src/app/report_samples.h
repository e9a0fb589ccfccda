#pragma once
// Reads samples/step_N/ of a run directory for its report. Only regular files directly in these folders are opened, a
// name from samples.jsonl never becomes a path that leaves them, and a picture or sound must look like one.

#include <cstdint>
#include <string>
#include <vector>

#include "train_gpt_v2/app/report_data.h"

namespace train_gpt_v2 {

// Not a link: a link could show any file of this machine to whoever gets the page.
bool is_plain_file(const std::string& path);

// The newest three steps and the baseline step (a number as text, or nothing) with pictures and sounds, all other steps
// with their figures alone.
std::vector<SampleFolder> load_sample_folders(const std::string& run_directory, const std::string& baseline_step,
                                              std::uint64_t& media_bytes, std::vector<std::string>& problems);

}  // namespace train_gpt_v2
