#pragma once
// Line charts as SVG text: no script, colours and fonts come from the page's style sheet (classes), so that one drawing
// serves a light and a dark page. Everything drawn is clipped to the plot; texts are escaped. Pure functions.

#include <string>
#include <string_view>
#include <vector>

#include "train_gpt_v2/app/report_data.h"

namespace train_gpt_v2 {

// `text` for HTML content and quoted attributes: the five special characters escaped, cleaned, at most `bytes` long.
std::string html(std::string_view text, std::size_t bytes = 300);

// Numbers as people write them on an axis: 0, 25k, 1.5M, 3.25, 2e-05.
std::string axis_number(double value);

// About `wanted` round values that cover [low, high]: steps of 1, 2 or 5 times a power of ten.
std::vector<double> axis_ticks(double low, double high, int wanted);

enum class LineStyle { kThin, kSolid, kDashed };  // kThin without markers, the others with them while they are few

struct ChartLine {
  std::string label;  // "" = not in the legend
  int colour = 0;     // class c0 .. c7
  LineStyle style = LineStyle::kThin;
  Curve curve;
};

struct ChartBand {  // a target: from `step` on the value should lie between low and high
  double step = 0, low = 0, high = 0;
  std::string label;
};

struct ChartMark {  // an event, drawn as a vertical line with a tooltip
  double step = 0;
  std::string label;
};

struct Chart {
  std::string title;
  std::string note;  // what a healthy curve looks like, one sentence
  std::vector<ChartLine> lines;
  std::vector<ChartBand> bands;
  std::vector<ChartMark> marks;
  double reference = 0;  // a horizontal line where `reference_label` is not ""
  std::string reference_label;
  bool percent = false;    // values are shares, shown in percent
  bool log_scale = false;  // positive values only; used where they span more than a factor of 30
  bool from_zero = false;
  bool hide_start = false;  // the first twentieth may run out of the picture (the fall from random weights)
};

// A <figure> with the title, the drawing, the legend and the note; "" when there is no point to draw.
std::string render_chart(const Chart& chart);

}  // namespace train_gpt_v2
