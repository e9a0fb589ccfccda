#pragma once
// `train_gpt_v2 report RUN_DIR... --output FILE.html`: one self-contained page about one or several runs.
//
// Errors: IO001 for a run directory that does not exist, ARG001 for a malformed --milestone or --phase, IO003 when the
// page cannot be written. Anything missing or damaged inside a run directory is said on the page instead.

#include <cstdint>
#include <string>
#include <vector>

namespace train_gpt_v2 {

struct ReportOptions {
  std::vector<std::string> runs;
  std::string output;
  std::vector<std::string> milestones{};  // STEP:MEL_LOW-MEL_HIGH:TOP1_LOW-TOP1_HIGH; empty = the plan's two
  std::vector<std::string> phases{};      // before|phase1|phase2=RUN_DIR, one of `runs`; others by their configuration
  std::uint64_t max_media_bytes = 48ull << 20;  // pictures and sounds taken into the page
  bool json = false;
};

// Writes the page atomically; returns what belongs on stdout.
std::string write_report(const ReportOptions& options);

}  // namespace train_gpt_v2
