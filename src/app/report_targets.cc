// The parts of the report that hold measured values against targets: milestones, the plan's table, the events.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>

#include "train_gpt_v2/app/report_chart.h"
#include "train_gpt_v2/app/report_page.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::string_view kNotMeasured = "<span class=\"wait\">not measured</span>";

double parse_number(std::string_view text, std::string_view whole) {
  double value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size() || !(value >= 0) || !(value <= 1e12)) {
    throw Error("ARG001", concat("\"", clean_text(whole, 80), "\" is no milestone: \"", clean_text(text, 40),
                                 "\" is not a number in range"))
        .fix("--milestone STEP:MEL_LOW-MEL_HIGH:TOP1_LOW-TOP1_HIGH, for example 50000:3.8-4.2:0.30-0.35");
  }
  return value;
}

std::pair<double, double> parse_range(std::string_view text, std::string_view whole) {
  const auto dash = text.find('-');
  const double low = parse_number(text.substr(0, dash), whole);
  const double high = dash == std::string_view::npos ? low : parse_number(text.substr(dash + 1), whole);
  return {std::min(low, high), std::max(low, high)};
}

std::string range_text(double low, double high, int decimals) {
  return concat(fixed(low, decimals), "–", fixed(high, decimals));
}

std::string verdict_html(const std::string& verdict) {
  const char* kind = verdict == "not reached" ? "bad" : verdict == "not measured" ? "wait" : "good";
  return concat("<span class=\"", kind, "\">", verdict, "</span>");
}

// --- the plan's table of expected performance ------------------------------------------------------------------------

// The mean over the second half of a run: its start is slower and says little.
double settled(const ReportRun* run, const char* field) {
  const auto found = run ? run->train.find(field) : std::map<std::string, Curve>::const_iterator{};
  if (!run || found == run->train.end()) return NAN;
  double sum = 0;
  std::size_t count = 0;
  const Curve& curve = found->second;
  for (std::size_t i = curve.size() / 2; i < curve.size(); ++i) {
    if (std::isfinite(curve[i].value)) sum += curve[i].value, ++count;
  }
  return count > 0 ? sum / static_cast<double>(count) : NAN;
}

std::string setting(const ReportRun* run, const char* key) {
  const auto found = run ? run->settings.find(key) : std::map<std::string, std::string>::const_iterator{};
  return run && found != run->settings.end() ? html(found->second, 40) : std::string(kNotMeasured);
}

std::string seconds_per_step(const ReportContent& content, std::size_t phase) {
  const double seconds = settled(content.phases[phase], "step_seconds");
  if (!(seconds > 0)) return std::string(kNotMeasured);
  const double before = settled(content.phases[0], "step_seconds");
  std::string text = concat(fixed(seconds, 3), " s");
  if (phase > 0 && before > 0) text += concat(" = ", fixed(seconds / before, 2), " X");
  return text;
}

std::string hours_to(const ReportRun* run, double steps) {
  const double seconds = settled(run, "step_seconds");
  if (!(seconds > 0)) return std::string(kNotMeasured);
  return concat(fixed(seconds * steps / 3600, seconds * steps < 36000 ? 2 : 1), " h at the measured pace");
}

std::string memory(const ReportRun* run) {
  const auto found = run ? run->train.find("peak_memory_bytes") : std::map<std::string, Curve>::const_iterator{};
  if (!run || found == run->train.end()) return std::string(kNotMeasured);
  double peak = 0;
  for (const CurvePoint& point : found->second) peak = std::max(peak, point.value);
  return peak > 0 ? concat(fixed(peak / 1e9, peak < 1e10 ? 2 : 1), " GB") : std::string(kNotMeasured);
}

std::string model_size(const ReportRun* run) {
  if (run) {
    for (const auto& [name, bytes] : run->checkpoints) {
      const auto size = static_cast<double>(bytes);
      const std::string text = size < 1e9 ? fixed(size / 1e6, 1) + " MB" : fixed(size / 1e9, 2) + " GB";
      if (name == "best_model.pth") return text + " (best_model.pth)";
    }
  }
  return std::string(kNotMeasured);
}

std::string time_text(double unix_seconds) {
  if (!(unix_seconds > 0 && unix_seconds < 4e9)) return "";
  const auto seconds = static_cast<std::time_t>(unix_seconds);
  std::tm parts{};
  char text[32];
  if (!::gmtime_r(&seconds, &parts) || std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts) == 0) return "";
  return text;
}

}  // namespace

std::vector<Milestone> default_milestones() {
  return {{50000, 3.8, 4.2, 0.30, 0.35}, {80000, 3.5, 3.8, 0.35, 0.40}};
}

Milestone parse_milestone(std::string_view text) {
  const std::vector<std::string> parts = split(text, ':');
  if (parts.size() != 3) parse_number("", text);
  const auto [mel_low, mel_high] = parse_range(parts[1], text);
  const auto [top1_low, top1_high] = parse_range(parts[2], text);
  return {static_cast<std::int64_t>(parse_number(parts[0], text)), mel_low, mel_high, top1_low, top1_high};
}

MilestoneState judge_milestone(const std::vector<Milestone>& milestones, std::size_t index, const ReportRun& run) {
  const Milestone& milestone = milestones[index];
  const bool last = index + 1 == milestones.size();
  const double until = last ? INFINITY : static_cast<double>(milestones[index + 1].step);
  MilestoneState state;
  for (const ReportValidation& result : validation_results(run)) {
    if (result.step < static_cast<double>(milestone.step) || result.step >= until) continue;
    if (last || !state.measured) state.measured = result;
  }
  if (!state.measured) {
    state.verdict = "not measured";
  } else if (state.measured->mel_loss > milestone.mel_high || state.measured->top1 < milestone.top1_low) {
    state.verdict = "not reached";
  } else if (std::isnan(state.measured->top1)) {
    state.verdict = "not measured";
  } else {
    const bool better = state.measured->mel_loss < milestone.mel_low;
    state.verdict = better ? "better than the target" : "reached";
  }
  return state;
}

ReportPhase phase_of(const ReportRun& run) {
  const auto is = [&run](const char* key, std::initializer_list<std::string_view> values) {
    const auto found = run.settings.find(key);
    return found != run.settings.end() && std::find(values.begin(), values.end(), found->second) != values.end();
  };
  if (is("peft.method", {"lora", "dora", "adalora", "dora_adalora"})) return ReportPhase::kPhase2;
  return is("ema.enabled", {"true"}) || is("sampler.mode", {"mega_batch", "buckets"}) ? ReportPhase::kPhase1
                                                                                      : ReportPhase::kBefore;
}

std::string render_milestones(const ReportContent& content) {
  if (content.milestones.empty()) return {};
  std::vector<std::vector<std::string>> rows;
  for (std::size_t i = 0; i < content.milestones.size(); ++i) {
    const Milestone& milestone = content.milestones[i];
    const bool last = i + 1 == content.milestones.size();
    for (const ReportRun& run : content.runs) {
      const MilestoneState state = judge_milestone(content.milestones, i, run);
      std::vector<std::string> row{human_count(static_cast<std::uint64_t>(milestone.step)) + (last ? " and later" : ""),
                                   html(run.name),
                                   range_text(milestone.mel_low, milestone.mel_high, 2),
                                   state.measured ? fixed(state.measured->mel_loss, 3) : std::string(kNotMeasured),
                                   range_text(milestone.top1_low, milestone.top1_high, 2),
                                   state.measured && std::isfinite(state.measured->top1)
                                       ? fixed(state.measured->top1, 3)
                                       : std::string(kNotMeasured),
                                   state.measured ? human_count(static_cast<std::uint64_t>(state.measured->step)) : "–",
                                   verdict_html(state.verdict)};
      rows.push_back(std::move(row));
    }
  }
  return "<h2>Milestones</h2>" + html_table({"step", "run", "target mel loss", "mel loss", "target mel top-1",
                                             "mel top-1", "validated at step", "verdict"},
                                            rows);
}

std::string render_expected(const ReportContent& content) {
  const ReportRun *before = content.phases[0], *first = content.phases[1], *second = content.phases[2];
  std::vector<std::vector<std::string>> rows;
  const auto add = [&rows](const char* what, const char* target0, std::string value0, const char* target1,
                           std::string value1, const char* target2, std::string value2) {
    rows.push_back({what, target0, std::move(value0), target1, std::move(value1), target2, std::move(value2)});
  };
  add("batch", "64", setting(before, "train.batch_size"), "64", setting(first, "train.batch_size"), "96",
      setting(second, "train.batch_size"));
  add("accumulation", "1", setting(before, "train.grad_accumulation"), "1", setting(first, "train.grad_accumulation"),
      "1", setting(second, "train.grad_accumulation"));
  add("data workers", "12", setting(before, "data.num_workers"), "12", setting(first, "data.num_workers"), "16",
      setting(second, "data.num_workers"));
  add("seconds per step", "X", seconds_per_step(content, 0), "0.9 X", seconds_per_step(content, 1), "0.7 X",
      seconds_per_step(content, 2));
  add("peak memory", "50–60 GB", memory(before), "53–63 GB", memory(first), "40–50 GB", memory(second));
  add("training time", "to 100k: 1.2 Y", hours_to(before, 1e5), "to 100k: Y", hours_to(first, 1e5), "to 80k: 0.5 Y",
      hours_to(second, 8e4));
  add("model on disk", "~1.5 GB", model_size(before), "~1.5 GB", model_size(first), "~500 MB (adapters)",
      model_size(second));
  std::string out = "<h2>Expected performance (plan, A100 80 GB)</h2>";
  std::vector<std::string> heading{"",         "before: target",  "measured", "phase 1: target",
                                   "measured", "phase 2: target", "measured"};
  for (std::size_t i = 0; i < 3; ++i) {
    if (content.phases[i]) heading[2 + 2 * i] += concat(" (", html(content.phases[i]->name, 60), ")");
  }
  out += html_table(heading, rows);
  return out +
         "<p class=\"note\">X and Y are what the first column and phase 1 measure. Pace: mean step time of the "
         "second half of the run. A run counts as phase 2 with adapters, as phase 1 with EMA or length batching, "
         "unless --phase says otherwise.</p>";
}

std::string render_events(const ReportContent& content) {
  std::string out;
  for (const ReportRun& run : content.runs) {
    if (run.events.empty()) continue;
    std::vector<std::string> counts;
    for (const auto& [name, count] : run.event_counts)
      counts.push_back(concat(html(name), " ", human_count(static_cast<std::uint64_t>(count))));
    std::vector<std::vector<std::string>> rows;
    for (const RunEvent& event : run.events) {
      const bool grave = event.name == "skip" || event.name == "rollback" || event.name == "diverged";
      std::string name = grave ? concat("<span class=\"bad\">", html(event.name), "</span>") : html(event.name);
      if (event.count > 1) name += concat(" ×", event.count);
      std::string step = human_count(static_cast<std::uint64_t>(event.first_step));
      if (event.last_step != event.first_step)
        step += concat("–", human_count(static_cast<std::uint64_t>(event.last_step)));
      rows.push_back({step, name, time_text(event.time), html(event.details, 600)});
    }
    if (content.runs.size() > 1) out += concat("<h3>", html(run.name), "</h3>");
    out += concat("<p class=\"soft\">", join(counts, " · "), "</p><details", rows.size() <= 25 ? " open" : "",
                  "><summary>", rows.size(), " rows</summary>",
                  html_table({"step", "event", "time (UTC)", "details"}, rows), "</details>");
  }
  return out.empty() ? out : "<h2>Events</h2>" + out;
}

}  // namespace train_gpt_v2
