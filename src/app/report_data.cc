#include "train_gpt_v2/app/report_data.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "report_samples.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kMaxMetrics = 1ull << 30;
constexpr std::uint64_t kMaxSmallFile = 4ull << 20;
constexpr std::size_t kMaxLine = 64 * 1024;
constexpr std::size_t kMaxCurves = 200;
constexpr std::size_t kMaxPoints = 1500;
constexpr std::size_t kMaxEvents = 400;
constexpr std::size_t kMaxProblems = 20;
constexpr std::size_t kMaxRows = 200;
constexpr int kMaxDepth = 64;  // of values within each other

// Copying or printing a value takes stack for each of its levels. What is nested too deeply counts as no JSON.
Json parse_bounded(std::string_view text, bool comments) {
  bool deep = false;
  const auto bounded = [&deep](int depth, Json::parse_event_t, const Json&) {
    deep = deep || depth > kMaxDepth;
    return depth <= kMaxDepth;
  };
  Json parsed = Json::parse(text, bounded, false, comments);
  return deep ? Json(Json::value_t::discarded) : parsed;
}

void add_problem(ReportRun& run, std::string text) {
  if (run.problems.size() < kMaxProblems) run.problems.push_back(std::move(text));
}

// A step as it may stand in a file of ours, else -1: anything else would only distort the pictures.
std::int64_t step_of(const Json& line) {
  const auto found = line.find("step");
  if (found == line.end() || !found->is_number()) return -1;
  const double step = found->get<double>();
  if (!(step >= 0 && step <= 1e12)) return -1;
  return static_cast<std::int64_t>(step);
}

std::string string_of(const Json& line, const char* field, const char* otherwise) {
  const auto found = line.find(field);
  return found != line.end() && found->is_string() ? clean_text(found->get<std::string>(), 60) : otherwise;
}

template <typename Key>
void add_point(std::map<Key, Curve>& curves, const Key& key, std::int64_t step, double value) {
  auto found = curves.find(key);
  if (found == curves.end()) {
    if (curves.size() >= kMaxCurves) return;
    found = curves.emplace(key, Curve{}).first;
  }
  found->second.push_back({static_cast<double>(step), value});
}

bool is_figure(const std::string& field) {
  return field != "v" && field != "step" && field != "time";
}

void add_train_line(ReportRun& run, std::int64_t step, const Json& line) {
  for (const auto& [field, value] : line.items()) {
    if (value.is_number() && is_figure(field)) add_point(run.train, clean_text(field, 60), step, value.get<double>());
    if (!value.is_array() || field != "lr") continue;
    for (std::size_t i = 0; i < std::min<std::size_t>(value.size(), 8); ++i) {
      if (value[i].is_number()) add_point(run.train, concat("lr/", i), step, value[i].get<double>());
    }
  }
  if (const auto time = line.find("time"); time != line.end() && time->is_number()) {
    if (run.first_time == 0) run.first_time = time->get<double>();
    run.last_time = time->get<double>();
  }
}

void add_validation_line(ReportRun& run, std::int64_t step, const Json& line) {
  // A validation that was interrupted or saw nothing has losses of 0, which would be the best of all.
  const auto complete = line.find("complete"), tokens = line.find("mel_tokens");
  if (complete != line.end() && complete->is_boolean() && !complete->get<bool>()) return;
  if (tokens != line.end() && tokens->is_number() && tokens->get<double>() <= 0) return;
  const std::string split = string_of(line, "split", "all"), weights = string_of(line, "weights", "raw");
  for (const auto& [field, value] : line.items()) {
    if (!value.is_number() || !is_figure(field)) continue;
    add_point(run.validation, std::tuple(split, weights, clean_text(field, 60)), step, value.get<double>());
  }
}

std::string brief(const Json& value) {
  if (value.is_string()) return clean_text(value.get<std::string>());
  if (value.is_number_float()) {
    const double number = value.get<double>();
    return std::isfinite(number) && std::fabs(number) >= 1e-3 && std::fabs(number) < 1e6 ? fixed(number, 3)
                                                                                         : value.dump();
  }
  return clean_text(dump_json(value));
}

void add_event_line(ReportRun& run, std::int64_t step, const Json& line) {
  RunEvent event{step, step, 1, 0, string_of(line, "event", "?"), ""};
  std::vector<std::string> details;
  for (const auto& [field, value] : line.items()) {
    if (field == "time" && value.is_number()) event.time = value.get<double>();
    if (!is_figure(field) || field == "type" || field == "event" || value.is_null()) continue;
    if (value.is_string() && value.get_ref<const std::string&>().empty()) continue;
    if (details.size() < 12) details.push_back(concat(clean_text(field, 60), " ", brief(value)));
  }
  event.details = clean_text(join(details, ", "), 600);
  if (run.event_counts.size() < kMaxRows || run.event_counts.contains(event.name)) ++run.event_counts[event.name];
  // Saves come by the hundred: what follows on its like is counted, not listed.
  const bool merged = event.name == "save" || event.name == "best" || event.name == "validation_cost";
  if (merged && !run.events.empty() && run.events.back().name == event.name) {
    RunEvent& last = run.events.back();
    last.last_step = step, last.time = event.time, last.details = event.details;
    ++last.count;
  } else if (run.events.size() < kMaxEvents) {
    run.events.push_back(std::move(event));
  }
}

void sort_curve(Curve& curve) {
  std::stable_sort(curve.begin(), curve.end(),
                   [](const CurvePoint& a, const CurvePoint& b) { return a.step < b.step; });
  // Of several values for one step the last written counts.
  Curve kept;
  for (const CurvePoint& point : curve) {
    if (!kept.empty() && kept.back().step == point.step) kept.pop_back();
    kept.push_back(point);
  }
  curve = std::move(kept);
}

void read_metrics(ReportRun& run) {
  const std::string path = path_join(run.path, "metrics.jsonl");
  if (!file_exists(path)) return add_problem(run, "no metrics.jsonl: there are no curves");
  const MappedFile file(path, kMaxMetrics);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  std::size_t bad = 0, first_bad = 0, number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (trim(line.substr(0, kMaxLine)).empty() && line.size() <= kMaxLine) continue;
    const Json parsed = line.size() <= kMaxLine ? parse_bounded(line, false) : Json(Json::value_t::discarded);
    const std::int64_t step = parsed.is_object() ? step_of(parsed) : -1;
    const std::string type = step >= 0 ? string_of(parsed, "type", "") : "";
    if (type == "train") {
      add_train_line(run, step, parsed);
    } else if (type == "validation") {
      add_validation_line(run, step, parsed);
    } else if (type == "event") {
      add_event_line(run, step, parsed);
    } else if (bad++ == 0) {
      first_bad = number;
    }
    run.last_step = std::max(run.last_step, step);
  }
  if (bad > 0) {
    add_problem(run, concat("metrics.jsonl: ", human_count(bad), bad == 1 ? " line" : " lines",
                            " could not be read and count for nothing, the first is line ", first_bad));
  }
  for (auto& [name, curve] : run.train) sort_curve(curve), curve = thinned(curve, kMaxPoints);
  for (auto& [name, curve] : run.validation) sort_curve(curve);
}

std::optional<Json> read_json(ReportRun& run, const std::string& name) {
  const std::string path = path_join(run.path, name);
  if (!file_exists(path)) return std::nullopt;
  if (!is_plain_file(path)) {
    add_problem(run, name + " is a link; it is left out");
    return std::nullopt;
  }
  Json parsed = parse_bounded(read_file(path, kMaxSmallFile), true);
  if (parsed.is_object()) return parsed;
  add_problem(run, name + " is not a JSON object, or nested too deeply; it is left out");
  return std::nullopt;
}

void read_config(ReportRun& run) {
  const auto config = read_json(run, "config.effective.json");
  if (!config) return;
  run.config = dump_json(*config, 2);
  for (const auto& [section, keys] : config->items()) {
    if (!keys.is_object()) continue;
    for (const auto& [key, value] : keys.items()) {
      if (!value.is_object() && run.settings.size() < 1000) run.settings[section + "." + key] = brief(value);
    }
  }
}

void read_marks(ReportRun& run) {
  if (const auto done = read_json(run, "DONE")) {
    const std::int64_t step = step_of(*done);
    run.done = string_of(*done, "reason", "finished") + (step >= 0 ? concat(" at step ", step) : "");
  }
  if (const auto summary = read_json(run, "summary.json")) {
    const auto found = summary->find("bigram_mel_loss");
    if (found != summary->end() && found->is_number()) run.bigram_mel_loss = found->get<double>();
  }
}

double number_of(const Json& object, const char* field) {
  const auto found = object.find(field);
  return found != object.end() && found->is_number() ? found->get<double>() : NAN;
}

// The objects of a list, at most kMaxRows.
std::vector<Json> objects_of(const Json& report, const char* field) {
  std::vector<Json> objects;
  const auto list = report.find(field);
  if (list == report.end() || !list->is_array()) return objects;
  for (const Json& one : *list) {
    if (one.is_object() && objects.size() < kMaxRows) objects.push_back(one);
  }
  return objects;
}

void add_histogram(ReportRun& run, const Json& histogram) {
  const auto limits = histogram.find("limits"), counts = histogram.find("counts");
  if (limits == histogram.end() || counts == histogram.end() || !limits->is_array() || !counts->is_array()) return;
  std::vector<CountRow> rows;
  double total = 0;
  for (std::size_t i = 0; i < std::min({limits->size(), counts->size(), kMaxRows}); ++i) {
    if (!(*limits)[i].is_number_integer() || !(*counts)[i].is_number()) return;
    rows.push_back({concat("up to ", (*limits)[i].get<std::int64_t>()), (*counts)[i].get<double>(), 0});
    total += rows.back().count;
  }
  for (CountRow& row : rows) row.of = total;
  if (run.counts.size() < 20) run.counts[string_of(histogram, "name", "lengths")] = std::move(rows);
}

// data_report.json is what the data doctor found before the run (DoctorReport::json).
void read_counts(ReportRun& run) {
  const auto report = read_json(run, "data_report.json");
  if (!report) return;
  for (const Json& histogram : objects_of(*report, "histograms")) add_histogram(run, histogram);
  for (const Json& manifest : objects_of(*report, "manifests")) {
    const auto path = manifest.find("path");
    const std::string file = path != manifest.end() && path->is_string() ? file_name(path->get<std::string>()) : "?";
    const std::string name = concat(string_of(manifest, "side", "data"), ": ", clean_text(file, 100));
    if (const double pairs = number_of(manifest, "pairs"); pairs >= 0) run.counts["pairs"].push_back({name, pairs, 0});
    if (const double share = number_of(manifest, "unk_share"); share >= 0) {
      run.counts["unknown pieces, share of the ids looked at"].push_back({name, share, 1});
    }
  }
  for (const Json& finding : objects_of(*report, "findings")) {
    run.counts["findings"].push_back(
        {concat(string_of(finding, "severity", ""), ": ", string_of(finding, "check", "?")),
         number_of(finding, "count"), 0});
  }
}

void read_checkpoints(ReportRun& run) {
  for (const std::string& name : list_directory(run.path)) {
    if (!ends_with(name, ".pth") && !ends_with(name, ".pt")) continue;
    const std::string path = path_join(run.path, name);
    if (run.checkpoints.size() < kMaxRows && file_exists(path)) {
      run.checkpoints.emplace_back(clean_text(name, 100), file_size(path));
    }
  }
}

}  // namespace

std::string clean_text(std::string_view text, std::size_t bytes) {
  std::string out;
  while (!text.empty()) {
    const std::string_view character = first_character(text);
    if (out.size() + character.size() > bytes) return out + "…";
    if (!valid_utf8(character)) {
      out += "\xEF\xBF\xBD";
    } else if (is_control(character)) {
      out += ' ';
    } else {
      out += character;
    }
    text.remove_prefix(character.size());
  }
  return out;
}

Curve thinned(const Curve& curve, std::size_t points) {
  if (curve.size() <= points || points < 2) return curve;
  const std::size_t stretches = points / 2;
  Curve out;
  for (std::size_t i = 0; i < stretches; ++i) {
    const std::size_t begin = i * curve.size() / stretches, end = (i + 1) * curve.size() / stretches;
    std::size_t low = begin, high = begin;
    for (std::size_t k = begin; k < end; ++k) {
      if (curve[k].value < curve[low].value) low = k;
      if (curve[k].value > curve[high].value) high = k;
    }
    out.push_back(curve[std::min(low, high)]);
    if (low != high) out.push_back(curve[std::max(low, high)]);
  }
  return out;
}

std::vector<ReportValidation> validation_results(const ReportRun& run) {
  std::map<double, ReportValidation> best;
  for (const std::string weights : {"raw", "ema"}) {
    const auto curve_of = [&](const char* field) {
      const auto found = run.validation.find({"all", weights, field});
      return found == run.validation.end() ? Curve{} : found->second;
    };
    const auto value_at = [](const Curve& curve, double step) {
      const auto found = std::lower_bound(curve.begin(), curve.end(), step,
                                          [](const CurvePoint& point, double wanted) { return point.step < wanted; });
      return found == curve.end() || found->step != step ? NAN : found->value;
    };
    const Curve top1 = curve_of("mel_top1"), text = curve_of("text_loss");
    for (const CurvePoint& point : curve_of("mel_loss")) {
      const auto found = best.find(point.step);
      if (!std::isfinite(point.value) || (found != best.end() && found->second.mel_loss <= point.value)) continue;
      best[point.step] = {point.step, point.value, value_at(top1, point.step), value_at(text, point.step), weights};
    }
  }
  std::vector<ReportValidation> results;
  results.reserve(best.size());
  for (const auto& [step, result] : best) results.push_back(result);
  return results;
}

ReportRun load_run(const std::string& directory, std::uint64_t& media_bytes) {
  if (!directory_exists(directory)) {
    throw Error("IO001", concat("there is no run directory ", directory))
        .fix("give the folder that holds metrics.jsonl (train's --output-dir)");
  }
  ReportRun run;
  run.path = directory;
  run.name = clean_text(file_name(absolute_path(directory)), 80);
  const std::pair<const char*, void (*)(ReportRun&)> readers[] = {{"metrics.jsonl", read_metrics},
                                                                  {"config.effective.json", read_config},
                                                                  {"DONE", read_marks},
                                                                  {"data_report.json", read_counts},
                                                                  {"the checkpoints", read_checkpoints}};
  for (const auto& [what, read] : readers) {
    try {
      read(run);
    } catch (const Error& failure) {
      add_problem(run, concat(what, ": ", clean_text(failure.message())));
    }
  }
  run.samples = load_sample_folders(run.path, run.settings["sampling.baseline_step"], media_bytes, run.problems);
  return run;
}

}  // namespace train_gpt_v2
