#include "train_gpt_v2/app/report_command.h"

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/app/report_page.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxRuns = 32;

std::string now_text() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  char text[40];
  if (!::gmtime_r(&now, &parts) || std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &parts) == 0) return "";
  return text;
}

std::size_t parse_phase(std::string_view name, const std::string& whole) {
  if (name == "before") return static_cast<std::size_t>(ReportPhase::kBefore);
  if (name == "phase1") return static_cast<std::size_t>(ReportPhase::kPhase1);
  if (name == "phase2") return static_cast<std::size_t>(ReportPhase::kPhase2);
  throw Error("ARG001", concat("\"", clean_text(whole, 120), "\" does not say which run is which phase"))
      .fix("--phase before=RUN_DIR, phase1=RUN_DIR or phase2=RUN_DIR, with a RUN_DIR of the same command");
}

void assign_phases(const ReportOptions& options, ReportContent& content) {
  std::vector<bool> taken(content.runs.size(), false);
  for (const std::string& text : options.phases) {
    const auto equals = text.find('=');
    const std::size_t phase = parse_phase(text.substr(0, equals), text);
    const bool named = equals != std::string::npos && equals + 1 < text.size();
    const std::string wanted = named ? absolute_path(text.substr(equals + 1)) : "";
    const auto found = std::find_if(content.runs.begin(), content.runs.end(),
                                    [&](const ReportRun& run) { return absolute_path(run.path) == wanted; });
    if (found == content.runs.end()) parse_phase("", text);
    content.phases[phase] = &*found;
    taken[static_cast<std::size_t>(found - content.runs.begin())] = true;
  }
  for (std::size_t i = 0; i < content.runs.size(); ++i) {
    if (taken[i] || content.runs[i].config.empty()) continue;
    const ReportRun*& place = content.phases[static_cast<std::size_t>(phase_of(content.runs[i]))];
    if (!place) place = &content.runs[i];
  }
}

// Two runs may live in folders of the same name; their paths then tell them apart.
void make_names_unique(std::vector<ReportRun>& runs) {
  for (ReportRun& run : runs) {
    const auto same = std::count_if(runs.begin(), runs.end(), [&run](const ReportRun& other) {
      return file_name(absolute_path(other.path)) == file_name(absolute_path(run.path));
    });
    if (same > 1) run.name = clean_text(run.path, 120);
  }
}

Json summary_of(const ReportRun& run) {
  Json summary{{"run", run.path}, {"last_step", run.last_step}, {"done", !run.done.empty()}};
  const auto results = validation_results(run);
  const auto best = std::min_element(results.begin(), results.end(),
                                     [](const auto& a, const auto& b) { return a.mel_loss < b.mel_loss; });
  summary["best_mel_loss"] = best == results.end() ? Json() : Json(best->mel_loss);
  summary["best_step"] = best == results.end() ? Json() : Json(static_cast<std::int64_t>(best->step));
  summary["problems"] = run.problems;
  return summary;
}

}  // namespace

std::string write_report(const ReportOptions& options) {
  if (options.runs.empty() || options.runs.size() > kMaxRuns) {
    throw Error("ARG001", concat("report takes 1 to ", kMaxRuns, " run directories, not ", options.runs.size()))
        .fix("train_gpt_v2 report RUN_DIR... --output FILE.html");
  }
  ReportContent content;
  content.written = now_text();
  for (const std::string& text : options.milestones) content.milestones.push_back(parse_milestone(text));
  if (content.milestones.empty()) content.milestones = default_milestones();
  std::sort(content.milestones.begin(), content.milestones.end(),
            [](const Milestone& a, const Milestone& b) { return a.step < b.step; });

  std::uint64_t media = options.max_media_bytes;
  for (const std::string& directory : options.runs) content.runs.push_back(load_run(directory, media));
  make_names_unique(content.runs);
  assign_phases(options, content);

  const std::string page = render_page(content);
  write_file_atomically(options.output, page);

  Json document{{"output", options.output}, {"bytes", page.size()}, {"runs", Json::array()}};
  std::string text = concat(options.output, "  ", human_bytes(page.size()), "\n");
  for (const ReportRun& run : content.runs) {
    document["runs"].push_back(summary_of(run));
    text += concat("  ", run.name, ": ", human_count(static_cast<std::uint64_t>(run.last_step)), " steps",
                   run.done.empty() ? "" : ", done", "\n");
    for (const std::string& problem : run.problems) text += concat("    ", problem, "\n");
  }
  return options.json ? dump_json(document, 2) + "\n" : text;
}

}  // namespace train_gpt_v2
