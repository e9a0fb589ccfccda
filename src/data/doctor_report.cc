// The data doctor's report as text and as JSON.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/doctor.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kBarWidth = 40;
constexpr std::size_t kPlacesInText = 3;

std::string_view severity_name(Severity severity) {
  constexpr std::string_view kNames[] = {"info", "warning", "error"};
  return kNames[static_cast<int>(severity)];
}

std::string bars(const LengthHistogram& histogram) {
  std::string text = concat(histogram.name, ": shortest ", histogram.shortest, ", median ", histogram.median, ", 95 % ",
                            histogram.p95, ", longest ", histogram.longest, "\n");
  const std::uint64_t most =
      histogram.counts.empty() ? 0 : *std::max_element(histogram.counts.begin(), histogram.counts.end());
  for (std::size_t i = 0; i < histogram.counts.size(); ++i) {
    std::string limit = concat("<= ", histogram.limits[i]);
    limit.insert(0, limit.size() < 9 ? 9 - limit.size() : 0, ' ');
    const std::size_t width = most == 0 ? 0 : static_cast<std::size_t>(histogram.counts[i] * kBarWidth / most);
    text += concat(limit, " ", std::string(width, '#'), histogram.counts[i] > 0 ? " " : "", histogram.counts[i], "\n");
  }
  return text;
}

std::string place_text(const FindingPlace& place) {
  std::string text = place.line > 0 ? concat(place.file, ":", place.line) : place.file;
  if (!place.sample.empty()) text += concat(text.empty() ? "" : ": ", place.sample);
  if (!place.detail.empty()) text += concat(text.empty() ? "" : ": ", place.detail);
  return text;
}

}  // namespace

Severity DoctorReport::worst() const {
  Severity worst = Severity::kInfo;
  for (const Finding& finding : findings) worst = std::max(worst, finding.severity);
  return worst;
}

std::string DoctorReport::text() const {
  std::vector<std::vector<std::string>> rows{{"manifest", "side", "pairs", "clips", "speakers", "hours", "unk"}};
  for (const ManifestSummary& manifest : manifests) {
    rows.push_back({manifest.path, manifest.validation ? "validation" : "training", human_count(manifest.pairs),
                    human_count(manifest.clips), human_count(manifest.speakers), fixed(manifest.hours, 2),
                    manifest.unknown_share < 0 ? "-" : fixed(100 * manifest.unknown_share, 2) + " %"});
  }
  std::string report = table(rows) + "\n";
  for (const LengthHistogram& histogram : histograms) report += bars(histogram) + "\n";
  report += concat(human_count(records), " records read, the arrays of ", human_count(arrays_read), " pairs\n");
  for (const Finding& finding : findings) {
    report += concat("\n", severity_name(finding.severity), " ", finding.check, ": ", finding.summary, " (",
                     human_count(finding.count), ")\n");
    for (std::size_t i = 0; i < std::min(kPlacesInText, finding.places.size()); ++i) {
      report += concat("  --> ", place_text(finding.places[i]), "\n");
    }
    if (finding.count > kPlacesInText && finding.places.size() > kPlacesInText) {
      report += concat("  ", human_count(finding.count - kPlacesInText), " more\n");
    }
    report += concat("  fix: ", finding.fix, "\n");
  }
  if (findings.empty()) report += "nothing found\n";
  return report;
}

nlohmann::json DoctorReport::json() const {
  nlohmann::json document = {{"records", records},
                             {"records_looked_at", records_looked_at},
                             {"arrays_read", arrays_read},
                             {"worst", severity_name(worst())}};
  document["findings"] = nlohmann::json::array();
  for (const Finding& finding : findings) {
    nlohmann::json places = nlohmann::json::array();
    for (const FindingPlace& place : finding.places) {
      places.push_back({{"file", place.file}, {"line", place.line}, {"id", place.sample}, {"detail", place.detail}});
    }
    document["findings"].push_back({{"check", finding.check},
                                    {"severity", severity_name(finding.severity)},
                                    {"summary", finding.summary},
                                    {"fix", finding.fix},
                                    {"count", finding.count},
                                    {"places", places}});
  }
  document["manifests"] = nlohmann::json::array();
  for (const ManifestSummary& manifest : manifests) {
    nlohmann::json unknown = nullptr;
    if (manifest.unknown_share >= 0) unknown = manifest.unknown_share;
    document["manifests"].push_back({{"path", manifest.path},
                                     {"side", manifest.validation ? "validation" : "training"},
                                     {"pairs", manifest.pairs},
                                     {"clips", manifest.clips},
                                     {"speakers", manifest.speakers},
                                     {"hours", manifest.hours},
                                     {"unk_share", unknown}});
  }
  document["histograms"] = nlohmann::json::array();
  for (const LengthHistogram& histogram : histograms) {
    document["histograms"].push_back({{"name", histogram.name},
                                      {"limits", histogram.limits},
                                      {"counts", histogram.counts},
                                      {"shortest", histogram.shortest},
                                      {"median", histogram.median},
                                      {"p95", histogram.p95},
                                      {"longest", histogram.longest}});
  }
  return document;
}

}  // namespace train_gpt_v2
