#include "train_gpt_v2/app/report_page.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "train_gpt_v2/app/report_chart.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::string_view kStyle = R"css(
:root{color-scheme:light dark;--bg:#fbfbfa;--panel:#fff;--ink:#1d2125;--soft:#667079;--line:#dfe3e6;--good:#1a7f4b;--bad:#b3361e;--wait:#8a6100;--band:#1a7f4b22;
--c0:#2563c9;--c1:#d9582b;--c2:#1d8f6a;--c3:#8a4fc4;--c4:#b98900;--c5:#c2417f;--c6:#4d7f17;--c7:#56708a}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--panel:#1c2024;--ink:#e6e9ec;--soft:#97a2ac;--line:#30363c;--good:#5bc48f;--bad:#f0836b;--wait:#dcb04a;--band:#5bc48f2b;
--c0:#78a9f7;--c1:#f39a72;--c2:#63cba6;--c3:#bd94ea;--c4:#e3bd55;--c5:#ec8bb6;--c6:#a4cc6d;--c7:#a3b6c7}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,"Noto Sans","Noto Sans Ethiopic",sans-serif}
main{max-width:1360px;margin:0 auto;padding:24px}h1{font-size:26px;margin:0 0 2px}h2{font-size:19px;margin:34px 0 10px}h3{font-size:16px;margin:20px 0 8px}
p{margin:6px 0}.soft,.note{color:var(--soft)}.note{font-size:13px;margin:4px 0 0}.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}.wait{color:var(--wait)}td .wait,td .good,td .bad{white-space:nowrap}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(165px,1fr));gap:10px;margin:10px 0}.card{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.card b{display:block;font-size:20px;line-height:1.3;overflow-wrap:anywhere}.card span{color:var(--soft);font-size:13px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(430px,100%),1fr));gap:14px}figure{margin:0;background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:12px}
figcaption{font-weight:600;margin-bottom:4px}figure svg{width:100%;height:auto;display:block}.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:13px;color:var(--soft)}
.legend span{display:inline-flex;align-items:center;gap:5px;overflow-wrap:anywhere}.legend svg{width:26px;height:10px;flex:none}.swatch{width:16px;height:10px;background:var(--band);border:1px solid var(--good)}.tickmark{width:1px;height:12px;border-left:1px dashed var(--soft)}
.grid{stroke:var(--line);stroke-width:1}.tick{fill:var(--soft);font-size:12px}.line{fill:none;stroke-width:2;stroke-linejoin:round}.thin{stroke-width:1.2;opacity:.75}.dashed{stroke-dasharray:6 4}
.band{fill:var(--band)}.mark{stroke:var(--soft);stroke-dasharray:3 3}.reference{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:2 3;fill:none}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}.c6{stroke:var(--c6)}.c7{stroke:var(--c7)}
.f0{fill:var(--c0)}.f1{fill:var(--c1)}.f2{fill:var(--c2)}.f3{fill:var(--c3)}.f4{fill:var(--c4)}.f5{fill:var(--c5)}.f6{fill:var(--c6)}.f7{fill:var(--c7)}
.scroll{overflow-x:auto}table{border-collapse:collapse;background:var(--panel);border:1px solid var(--line);font-size:14px;min-width:50%}th,td{text-align:left;padding:5px 11px;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;background:color-mix(in srgb,var(--line) 35%,var(--panel));white-space:nowrap}td{overflow-wrap:break-word;min-width:7ch}th.n{text-align:right}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));gap:12px}.sample img{width:100%;height:auto;max-height:260px;object-fit:contain;image-rendering:pixelated;background:#440154;border-radius:4px}
.sample audio{width:100%;margin-top:6px}.sample p{font-size:13px;overflow-wrap:anywhere}.meter{display:inline-block;width:90px;height:8px;background:var(--line);border-radius:4px;overflow:hidden}.meter i{display:block;height:100%;background:var(--c0)}
pre{background:var(--panel);border:1px solid var(--line);padding:12px;overflow:auto;max-height:480px;font-size:13px}details{margin:8px 0}summary{cursor:pointer}
@media print{main{max-width:none}figure,.card{break-inside:avoid}}
)css";

std::string card(const std::string& value, const std::string& label) {
  return concat("<div class=\"card\"><b>", value, "</b><span>", label, "</span></div>");
}

double last_value(const ReportRun& run, const char* field) {
  const auto found = run.train.find(field);
  return found == run.train.end() || found->second.empty() ? NAN : found->second.back().value;
}

std::string number_or_dash(double value, int decimals) {
  return std::isfinite(value) ? fixed(value, decimals) : "–";
}

std::string step_text(double step) {
  return human_count(static_cast<std::uint64_t>(std::max(step, 0.0)));
}

std::string overview_cards(const ReportRun& run) {
  const auto goal = run.settings.find("train.max_steps");
  const bool has_goal = goal != run.settings.end() && goal->second.find_first_not_of("0123456789") == std::string::npos;
  std::string out =
      card(step_text(static_cast<double>(run.last_step)),
           has_goal ? concat("steps of ", step_text(std::strtod(goal->second.c_str(), nullptr))) : "steps");
  const auto results = validation_results(run);
  if (!results.empty()) {
    const auto best = std::min_element(results.begin(), results.end(),
                                       [](const auto& a, const auto& b) { return a.mel_loss < b.mel_loss; });
    out += card(fixed(best->mel_loss, 3),
                concat("best validation mel loss, ", html(best->weights), " weights, step ", step_text(best->step)));
    if (std::isfinite(best->top1)) out += card(fixed(best->top1, 3), "mel top-1 at that step");
    if (run.bigram_mel_loss) {
      out += card(concat(fixed(*run.bigram_mel_loss - best->mel_loss, 2), " nats"),
                  concat("below a bigram of the codes (", fixed(*run.bigram_mel_loss, 3), ")"));
    }
  }
  if (const double rate = last_value(run, "tokens_per_second"); rate > 0 && rate < 1e12) {
    out += card(human_count(static_cast<std::uint64_t>(rate)), "scored tokens per second");
  }
  if (const double seconds = last_value(run, "step_seconds"); seconds > 0) {
    out += card(concat(fixed(seconds, seconds < 10 ? 3 : 1), " s"), "per step");
  }
  if (run.last_time > run.first_time && run.first_time > 0) {
    out += card(human_duration(run.last_time - run.first_time), "from the first to the last line, pauses included");
  }
  out += card(run.done.empty() ? "unfinished" : "done", run.done.empty() ? "there is no DONE mark" : html(run.done));
  return out;
}

std::string comparison(const ReportContent& content) {
  std::vector<std::vector<std::string>> rows;
  for (const ReportRun& run : content.runs) {
    const auto results = validation_results(run);
    const auto best = std::min_element(results.begin(), results.end(),
                                       [](const auto& a, const auto& b) { return a.mel_loss < b.mel_loss; });
    const bool any = best != results.end();
    const double memory = last_value(run, "peak_memory_bytes");
    rows.push_back({html(run.name), step_text(static_cast<double>(run.last_step)), any ? fixed(best->mel_loss, 4) : "–",
                    any ? step_text(best->step) : "–", any ? html(best->weights) : "–",
                    any ? number_or_dash(best->top1, 4) : "–", number_or_dash(last_value(run, "tokens_per_second"), 0),
                    number_or_dash(last_value(run, "step_seconds"), 3),
                    memory > 0 && memory < 1e18 ? human_bytes(static_cast<std::uint64_t>(memory)) : "–"});
  }
  return "<h2>Comparison</h2>" + html_table({"run", "steps", "best mel loss", "at step", "weights", "mel top-1",
                                             "tokens/s", "s/step", "peak memory"},
                                            rows);
}

bool is_number(const std::string& cell) {
  return !cell.empty() && cell.find_first_not_of("0123456789.,-+%–e") == std::string::npos;
}

}  // namespace

std::string html_table(const std::vector<std::string>& heading, const std::vector<std::vector<std::string>>& rows) {
  std::string out = "<div class=\"scroll\"><table><tr>";
  for (std::size_t column = 0; column < heading.size(); ++column) {
    const bool numbers =
        std::any_of(rows.begin(), rows.end(), [column](const auto& row) { return is_number(row[column]); });
    out += concat(numbers ? "<th class=\"n\">" : "<th>", heading[column], "</th>");
  }
  out += "</tr>\n";
  for (const auto& row : rows) {
    out += "<tr>";
    for (const std::string& cell : row) out += concat(is_number(cell) ? "<td class=\"n\">" : "<td>", cell, "</td>");
    out += "</tr>\n";
  }
  return out + "</table></div>\n";
}

std::string render_overview(const ReportContent& content) {
  std::string out;
  for (const ReportRun& run : content.runs) {
    if (content.runs.size() > 1) out += concat("<h3>", html(run.name), "</h3>");
    out +=
        concat("<p class=\"soft\">", html(run.path, 1000), "</p><div class=\"cards\">", overview_cards(run), "</div>");
    for (const std::string& problem : run.problems) out += concat("<p class=\"wait\">", html(problem), "</p>");
  }
  return content.runs.size() > 1 ? out + comparison(content) : out;
}

std::string render_settings(const ReportContent& content) {
  std::string out;
  for (const ReportRun& run : content.runs) {
    if (run.config.empty()) continue;
    out += concat("<details><summary>", html(run.name), ": config.effective.json</summary><pre>");
    for (const std::string& line : split(run.config, '\n')) {
      out += html(line, 2000) + "\n";
      if (out.size() > (1u << 20)) break;
    }
    out += "</pre></details>";
  }
  return out.empty() ? out : "<h2>Settings</h2>" + out;
}

std::string render_page(const ReportContent& content) {
  std::vector<std::string> names;
  for (const ReportRun& run : content.runs) names.push_back(run.name);
  const std::string title = "Training report: " + html(join(names, ", "));
  std::string out = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n";
  // Second line of defence behind the escaping: nothing runs, nothing is fetched, whatever a run directory holds.
  out +=
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; media-src data:; "
      "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n";
  out += "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n";
  out += concat("<title>", title, "</title><style>", kStyle, "</style></head>\n<body><main>\n<h1>", title, "</h1>\n");
  if (!content.written.empty()) out += concat("<p class=\"soft\">written ", html(content.written), "</p>\n");
  for (const auto render : {render_overview, render_milestones, render_charts, render_samples, render_events,
                            render_counts, render_expected, render_settings}) {
    if (const std::string section = render(content); !section.empty())
      out += concat("<section>", section, "</section>\n");
  }
  return out + "</main></body></html>\n";
}

}  // namespace train_gpt_v2
