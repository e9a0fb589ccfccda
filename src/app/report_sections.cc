// The parts of the report that show things: curves, samples with the listening sheet, count tables.
#include <algorithm>
#include <cmath>
#include <set>

#include "train_gpt_v2/app/report_chart.h"
#include "train_gpt_v2/app/report_page.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

std::string base64(std::string_view bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    const std::size_t count = std::min<std::size_t>(3, bytes.size() - i);
    for (std::size_t k = 0; k < 3; ++k)
      group = group << 8 | (k < count ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    for (std::size_t k = 0; k < 4; ++k) out += k <= count ? kDigits[group >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

// --- curves ----------------------------------------------------------------------------------------------------------

// The trend beneath the noise of single lines: a running mean over about 2 % of the curve.
Curve smoothed(const Curve& curve) {
  Curve out;
  const double weight = 2.0 / (1.0 + std::max(1.0, static_cast<double>(curve.size()) / 50));
  double mean = NAN;
  for (const CurvePoint& point : curve) {
    if (std::isfinite(point.value)) mean = std::isnan(mean) ? point.value : mean + weight * (point.value - mean);
    out.push_back({point.step, mean});
  }
  return out;
}

std::string label_of(const ReportContent& content, const ReportRun& run, const std::string& what) {
  return content.runs.size() > 1 ? concat(run.name, ": ", what) : what;
}

int colour_of(const ReportContent& content, std::size_t run, int kind) {
  return content.runs.size() > 1 ? static_cast<int>(run % 8) : kind;
}

void add_train_line(const ReportContent& content, Chart& chart, const std::string& field, const std::string& label,
                    int kind, bool smooth) {
  for (std::size_t i = 0; i < content.runs.size(); ++i) {
    const auto found = content.runs[i].train.find(field);
    if (found == content.runs[i].train.end()) continue;
    const int colour = colour_of(content, i, kind);
    chart.lines.push_back({label_of(content, content.runs[i], label), colour, LineStyle::kThin,
                           smooth ? smoothed(found->second) : found->second});
  }
}

void add_validation_lines(const ReportContent& content, Chart& chart, const std::string& field) {
  for (std::size_t i = 0; i < content.runs.size(); ++i) {
    for (const auto& [weights, kind, style] :
         {std::tuple("raw", 1, LineStyle::kSolid), std::tuple("ema", 2, LineStyle::kDashed)}) {
      const auto found = content.runs[i].validation.find({"all", weights, field});
      if (found == content.runs[i].validation.end()) continue;
      const std::string label = label_of(content, content.runs[i], concat("validation, ", weights));
      chart.lines.push_back({label, colour_of(content, i, kind), style, thinned(found->second, 1500)});
    }
  }
}

Chart loss_chart(const ReportContent& content, const std::string& title, const std::string& field,
                 const std::string& note) {
  Chart chart;
  chart.title = title;
  chart.note = note;
  chart.hide_start = field != "mel_top1";
  add_train_line(content, chart, field, "training (smoothed)", 0, true);
  add_validation_lines(content, chart, field);
  for (const ReportRun& run : content.runs) {
    for (const RunEvent& event : run.events) {
      if (event.name != "resume" && event.name != "rollback" && event.name != "skip") continue;
      chart.marks.push_back({static_cast<double>(event.first_step),
                             label_of(content, run, concat(event.name, " at step ", event.first_step))});
    }
  }
  return chart;
}

struct PlainChart {
  const char* title;
  const char* note;
  std::vector<std::pair<const char*, const char*>> fields;  // field, label
  bool percent, log_scale, from_zero;
};

std::vector<PlainChart> plain_charts() {
  return {
      {"Learning rate",
       "",
       {{"lr/0", "group 1"}, {"lr/1", "group 2"}, {"lr/2", "group 3"}, {"lr/3", "group 4"}},
       false,
       false,
       true},
      {"Gradient norm before clipping",
       "Single spikes are harmless; a rising floor is not.",
       {{"grad_norm", "gradient norm"}},
       false,
       true,
       false},
      {"Scored tokens per second", "", {{"tokens_per_second", "tokens/s"}}, false, false, true},
      {"Seconds per step", "", {{"step_seconds", "mean whole step"}}, false, false, true},
      {"Waste",
       "Padding below 10 % and waiting for data below 2 % are healthy.",
       {{"padding_share", "padding"}, {"data_wait_share", "waiting for data"}},
       true,
       false,
       true},
      {"Peak memory (bytes)", "", {{"peak_memory_bytes", "peak"}}, false, false, true},
  };
}

std::string split_chart(const ReportContent& content) {
  Chart chart;
  chart.title = "Validation mel loss by part";
  chart.note = "No part should drift away from the others.";
  int colour = 0;
  for (const ReportRun& run : content.runs) {
    for (const auto& [key, curve] : run.validation) {
      const auto& [split, weights, field] = key;
      if (split == "all" || field != "mel_loss" || weights != "raw" || chart.lines.size() >= 16) continue;
      chart.lines.push_back({label_of(content, run, split), colour++ % 8, LineStyle::kSolid, thinned(curve, 500)});
    }
  }
  return render_chart(chart);
}

// Figures that have no chart of their own above still deserve their curve.
std::string further_charts(const ReportContent& content, const std::set<std::string>& shown) {
  std::set<std::string> fields;
  for (const ReportRun& run : content.runs) {
    for (const auto& [field, curve] : run.train) {
      if (!shown.contains(field) && !starts_with(field, "lr/")) fields.insert(field);
    }
  }
  std::string out;
  std::size_t count = 0;
  for (const std::string& field : fields) {
    if (count++ == 24) break;
    Chart chart;
    chart.title = field;
    add_train_line(content, chart, field, field, 0, false);
    out += render_chart(chart);
  }
  return out;
}

std::string further_validation_charts(const ReportContent& content) {
  const std::set<std::string> shown{"mel_loss", "mel_top1", "text_loss", "text_tokens", "mel_tokens", "seconds"};
  std::set<std::string> fields;
  for (const ReportRun& run : content.runs) {
    for (const auto& [key, curve] : run.validation) {
      if (std::get<0>(key) == "all" && !shown.contains(std::get<2>(key))) fields.insert(std::get<2>(key));
    }
  }
  std::string out;
  std::size_t count = 0;
  for (const std::string& field : fields) {
    if (count++ == 8) break;
    Chart chart;
    chart.title = field == "text_usage_gap" ? "Text-usage gap (nats)" : field;
    chart.from_zero = field == "text_usage_gap";
    if (chart.from_zero)
      chart.note = "Mel loss with another text minus with the right one; near 0 the text is ignored.";
    add_validation_lines(content, chart, field);
    out += render_chart(chart);
  }
  return out;
}

// --- samples ---------------------------------------------------------------------------------------------------------

std::string figures_text(const SampleFolder::Sample& sample) {
  std::vector<std::string> parts;
  const std::pair<const char*, const char*> names[] = {{"length", "codes"},
                                                       {"length_ratio", "× reference length"},
                                                       {"longest_repeat", "longest repeat"},
                                                       {"monotonicity", "monotonicity"},
                                                       {"coverage", "coverage"},
                                                       {"mean_logprob", "mean log-probability"}};
  for (const auto& [field, label] : names) {
    const auto found = sample.figures.find(field);
    if (found != sample.figures.end()) parts.push_back(concat(axis_number(found->second), " ", label));
  }
  if (!sample.stop.empty()) parts.push_back(sample.stop == "stop" ? "ended by itself" : "cut at the limit");
  return html(join(parts, " · "));
}

std::string media_html(const SampleFolder::Sample& sample) {
  std::string out;
  if (!sample.picture.empty()) {
    out += concat("<img alt=\"alignment of ", html(sample.id), "\" src=\"data:image/png;base64,",
                  base64(sample.picture), "\">");
  }
  if (!sample.sound.empty()) {
    out += concat("<audio controls preload=\"none\" src=\"data:audio/wav;base64,", base64(sample.sound), "\"></audio>");
  }
  return out + concat("<p class=\"note\">", figures_text(sample), "</p>");
}

// `baseline` (may be null) holds the samples of sampling.baseline_step, to hear both one beneath the other.
std::string sample_card(const SampleFolder::Sample& sample, const SampleFolder* baseline) {
  std::string out = concat("<figure class=\"sample\"><figcaption>", html(sample.id), "</figcaption>");
  if (!sample.text.empty()) out += concat("<p>", html(sample.text), "</p>");
  out += media_html(sample);
  if (baseline) {
    for (const SampleFolder::Sample& earlier : baseline->samples) {
      if (earlier.id != sample.id) continue;
      out += concat("<p class=\"soft\">baseline, step ", human_count(static_cast<std::uint64_t>(baseline->step)),
                    ":</p>", media_html(earlier));
      break;
    }
  }
  return out + "</figure>";
}

// What the listener said of the same sample at the baseline step; "" = nothing.
std::string baseline_judgement(const SampleFolder* baseline, const std::string& id, std::size_t criterion) {
  if (!baseline) return {};
  for (const ListeningNote& note : baseline->notes) {
    if (note.id == id) return note.judgements[criterion];
  }
  return {};
}

// `baseline` (may be null): its judgements stand beside this step's.
std::string listening_table(const SampleFolder& folder, const SampleFolder* baseline) {
  if (folder.notes.empty()) return {};
  std::vector<std::string> heading{"sample", "text"};
  for (const ListeningCriterion& criterion : kListeningCriteria) {
    heading.push_back(concat("<abbr title=\"", html(criterion.question), "\">", html(criterion.field), "</abbr>"));
  }
  heading.push_back("comment");
  std::vector<std::vector<std::string>> rows;
  for (const ListeningNote& note : folder.notes) {
    std::vector<std::string> row{html(note.id), html(note.text)};
    for (std::size_t i = 0; i < std::size(note.judgements); ++i) {
      const std::string& judgement = note.judgements[i];
      const std::string earlier = baseline_judgement(baseline, note.id, i);
      row.push_back(judgement.empty() ? "<span class=\"wait\">not listened to</span>" : html(judgement));
      if (!earlier.empty()) row.back() += concat(" <span class=\"soft\">(baseline ", html(earlier), ")</span>");
    }
    row.push_back(html(note.comment, 1000));
    rows.push_back(std::move(row));
    if (rows.size() == 50) break;
  }
  return concat("<h4>Listening sheet</h4>", html_table(heading, rows));
}

bool has_media(const SampleFolder& folder) {
  return std::any_of(folder.samples.begin(), folder.samples.end(),
                     [](const auto& sample) { return !sample.picture.empty() || !sample.sound.empty(); });
}

std::string folder_section(const SampleFolder& folder, const SampleFolder* baseline, bool open) {
  std::string cards;
  const SampleFolder* beside = open && baseline != &folder ? baseline : nullptr;
  for (const SampleFolder::Sample& sample : folder.samples) cards += sample_card(sample, beside);
  return concat("<details", open ? " open" : "", "><summary>step ",
                human_count(static_cast<std::uint64_t>(folder.step)), baseline == &folder ? " (baseline)" : "", ", ",
                folder.samples.size(), " samples</summary><div class=\"samples\">", cards, "</div>",
                listening_table(folder, baseline == &folder ? nullptr : baseline), "</details>");
}

// How the samples develop: one row per sampled step.
std::string development(const ReportRun& run) {
  if (run.samples.size() < 2) return {};
  std::vector<std::vector<std::string>> rows;
  for (const SampleFolder& folder : run.samples) {
    const auto mean = [&folder](const char* field) {
      double sum = 0;
      std::size_t count = 0;
      for (const auto& sample : folder.samples) {
        const auto found = sample.figures.find(field);
        if (found != sample.figures.end()) sum += found->second, ++count;
      }
      return count > 0 ? axis_number(sum / static_cast<double>(count)) : std::string("–");
    };
    const auto ended =
        std::count_if(folder.samples.begin(), folder.samples.end(), [](const auto& s) { return s.stop == "stop"; });
    rows.push_back({human_count(static_cast<std::uint64_t>(folder.step)), std::to_string(folder.samples.size()),
                    concat(ended, "/", folder.samples.size()), mean("length_ratio"), mean("longest_repeat"),
                    mean("monotonicity"), mean("coverage")});
  }
  return html_table(
      {"step", "samples", "ended by themselves", "length ratio", "longest repeat", "monotonicity", "coverage"}, rows);
}

}  // namespace

std::string render_charts(const ReportContent& content) {
  Chart mel = loss_chart(content, "Mel loss (nats per code)", "mel_loss",
                         "Training and validation fall together; a widening gap is overfitting.");
  Chart top1 = loss_chart(content, "Mel top-1 accuracy", "mel_top1", "");
  double reached = 0;
  for (const ReportRun& run : content.runs) {
    reached = std::max(reached, static_cast<double>(run.last_step));
    if (run.bigram_mel_loss) mel.reference = *run.bigram_mel_loss, mel.reference_label = "bigram of the codes";
  }
  for (const Milestone& milestone : content.milestones) {
    const auto step = static_cast<double>(milestone.step);
    if (step > reached) continue;
    mel.bands.push_back({step, milestone.mel_low, milestone.mel_high, concat("target from step ", milestone.step)});
    top1.bands.push_back({step, milestone.top1_low, milestone.top1_high, concat("target from step ", milestone.step)});
  }
  std::string out = render_chart(mel) + render_chart(top1);
  out += render_chart(loss_chart(content, "Text loss (nats per token)", "text_loss", ""));
  out += render_chart(loss_chart(content, "Loss that is differentiated", "loss", ""));
  std::set<std::string> shown{"mel_loss", "mel_top1", "text_loss", "loss", "epoch", "text_tokens", "mel_tokens"};
  for (const PlainChart& plain : plain_charts()) {
    Chart chart;
    chart.title = plain.title;
    chart.note = plain.note;
    chart.percent = plain.percent;
    chart.log_scale = plain.log_scale;
    chart.from_zero = plain.from_zero;
    int kind = 0;
    for (const auto& [field, label] : plain.fields) {
      add_train_line(content, chart, field, label, kind++, false);
      shown.insert(field);
    }
    out += render_chart(chart);
  }
  out += split_chart(content) + further_validation_charts(content) + further_charts(content, shown);
  return out.empty() ? out : concat("<h2>Curves</h2><div class=\"charts\">", out, "</div>");
}

std::string render_samples(const ReportContent& content) {
  std::string out;
  for (const ReportRun& run : content.runs) {
    if (run.samples.empty()) continue;
    if (content.runs.size() > 1) out += concat("<h3>", html(run.name), "</h3>");
    out += development(run);
    const auto wanted = run.settings.find("sampling.baseline_step");
    const SampleFolder* baseline = nullptr;
    for (const SampleFolder& folder : run.samples) {
      if (wanted != run.settings.end() && std::to_string(folder.step) == wanted->second) baseline = &folder;
    }
    for (std::size_t i = run.samples.size(); i-- > 0;) {
      const SampleFolder& folder = run.samples[i];
      const bool newest = i + 1 == run.samples.size();
      if (newest || &folder == baseline || has_media(folder) || !folder.notes.empty()) {
        out += folder_section(folder, baseline, newest);
      }
    }
  }
  if (out.empty()) return out;
  return "<h2>Samples</h2><p class=\"note\">Alignments read from the lower left (first text token, first code) to the "
         "upper "
         "right; one bright path without gaps is what reading aloud looks like.</p>" +
         out;
}

std::string render_counts(const ReportContent& content) {
  std::string out;
  for (const ReportRun& run : content.runs) {
    for (const auto& [title, rows] : run.counts) {
      double largest = 0;
      for (const CountRow& row : rows) largest = std::max(largest, row.of > 0 ? row.count / row.of : row.count);
      std::vector<std::vector<std::string>> cells;
      for (const CountRow& row : rows) {
        const double size = row.of > 0 ? row.count / row.of : row.count;
        const double share = largest > 0 && size > 0 ? std::min(1.0, size / largest) : 0;
        cells.push_back({html(row.name), axis_number(row.count), row.of > 0 ? fixed(100 * size, 2) + "%" : "–",
                         concat("<span class=\"meter\"><i style=\"width:", fixed(100 * share, 0), "%\"></i></span>")});
      }
      if (cells.empty()) continue;
      out += concat("<h3>", content.runs.size() > 1 ? html(run.name) + ": " : "", html(title), "</h3>",
                    html_table({"", "count", "share", ""}, cells));
    }
  }
  return out.empty() ? out : "<h2>Data</h2>" + out;
}

}  // namespace train_gpt_v2
