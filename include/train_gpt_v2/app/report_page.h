#pragma once
// The report as one HTML page: no script, no network (a Content-Security-Policy in the page forbids both), pictures and
// sounds inside. Everything that comes from a run directory is escaped. Pure functions.

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/app/report_data.h"

namespace train_gpt_v2 {

// A convergence target: what a validation at `step` should show.
struct Milestone {
  std::int64_t step = 0;
  double mel_low = 0, mel_high = 0;
  double top1_low = 0, top1_high = 0;
};

// The plan's two: 50k (3.8-4.2, 0.30-0.35) and 80k and later (3.5-3.8, 0.35-0.40).
std::vector<Milestone> default_milestones();

// "50000:3.8-4.2:0.30-0.35"; Error ARG001 otherwise.
Milestone parse_milestone(std::string_view text);

// How a run stands towards a milestone. The last milestone is open-ended: its newest validation counts; an earlier one
// is judged by the first validation at or behind its step and before the next milestone.
struct MilestoneState {
  std::optional<ReportValidation> measured;
  std::string verdict;  // "reached", "better than the target", "not reached", "not measured"
};
MilestoneState judge_milestone(const std::vector<Milestone>& milestones, std::size_t index, const ReportRun& run);

// The columns of the plan's table of expected performance.
enum class ReportPhase { kBefore, kPhase1, kPhase2 };

// What the run's configuration says: adapters = phase 2, EMA or length bucketing = phase 1, else before.
ReportPhase phase_of(const ReportRun& run);

struct ReportContent {
  std::vector<ReportRun> runs;
  std::vector<Milestone> milestones;
  std::array<const ReportRun*, 3> phases{};  // by ReportPhase; nullptr = no such run here
  std::string written;                       // date and time for the head of the page
};

std::string render_page(const ReportContent& content);

// The sections, in order; each "" when there is nothing to show.
std::string render_overview(const ReportContent& content);
std::string render_milestones(const ReportContent& content);
std::string render_charts(const ReportContent& content);
std::string render_expected(const ReportContent& content);
std::string render_events(const ReportContent& content);
std::string render_counts(const ReportContent& content);
std::string render_samples(const ReportContent& content);
std::string render_settings(const ReportContent& content);

// A table; cells are HTML already.
std::string html_table(const std::vector<std::string>& heading, const std::vector<std::vector<std::string>>& rows);

}  // namespace train_gpt_v2
