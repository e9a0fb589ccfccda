#include "train_gpt_v2/app/report_chart.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr double kWidth = 640, kHeight = 300, kLeft = 58, kRight = 14, kTop = 12, kBottom = 40;
constexpr std::size_t kMarkersUpTo = 15;
constexpr std::size_t kMaxMarks = 60;

std::string coordinate(double value) {
  return fixed(std::clamp(value, -1e5, 1e5), 1);
}

struct Range {
  double low = 0, high = 1;
};

// The plot's coordinates; with a logarithmic axis `y` holds logarithms.
struct Plane {
  Range x, y;
  bool log_scale = false;
  bool percent = false;

  double at_x(double step) const { return kLeft + (step - x.low) / (x.high - x.low) * (kWidth - kLeft - kRight); }
  double at_y(double value) const {
    const double v = log_scale ? std::log10(std::max(value, 1e-300)) : value;
    return kHeight - kBottom - (v - y.low) / (y.high - y.low) * (kHeight - kTop - kBottom);
  }
};

// Beyond these sizes a number is an accident, and the arithmetic of the axes would overflow.
bool drawable(const Chart& chart, double value) {
  return std::fabs(value) <= 1e30 && (!chart.log_scale || value >= 1e-30);
}

Range spread(double low, double high, double margin) {
  if (!(low < high)) {
    const double around = low == 0 ? 1 : std::fabs(low) * 0.1;
    return {low - around, low + around};
  }
  return {low - (high - low) * margin, high + (high - low) * margin};
}

Range steps_of(const Chart& chart) {
  double low = INFINITY, high = -INFINITY;
  for (const ChartLine& line : chart.lines) {
    for (const CurvePoint& point : line.curve) {
      if (!drawable(chart, point.value)) continue;
      low = std::min(low, point.step);
      high = std::max(high, point.step);
    }
  }
  return low <= high ? (low < high ? Range{low, high} : Range{low - 1, high + 1}) : Range{0, 0};
}

// The values to show. With hide_start what lies before a twentieth of the run does not widen the range.
Range values_of(const Chart& chart, const Range& steps) {
  double low = INFINITY, high = -INFINITY;
  const bool long_enough = std::any_of(chart.lines.begin(), chart.lines.end(), [&](const ChartLine& line) {
    return line.curve.size() > 10 && std::isfinite(line.curve.back().value);
  });
  const double from = chart.hide_start && long_enough ? steps.low + (steps.high - steps.low) / 20 : steps.low;
  for (const ChartLine& line : chart.lines) {
    for (const CurvePoint& point : line.curve) {
      if (!drawable(chart, point.value) || point.step < from) continue;
      low = std::min(low, point.value);
      high = std::max(high, point.value);
    }
  }
  if (!(low <= high)) return {0, 1};
  if (!chart.reference_label.empty()) low = std::min(low, chart.reference), high = std::max(high, chart.reference);
  for (const ChartBand& band : chart.bands) {
    if (band.step <= steps.high) low = std::min(low, band.low), high = std::max(high, band.high);
  }
  if (chart.from_zero) low = std::min(low, 0.0);
  return {low, high};
}

std::string value_text(const Plane& plane, double value) {
  return plane.percent ? axis_number(value * 100) + "%" : axis_number(value);
}

// Powers of ten between two logarithms; with less than three of them also their doubles and fives.
std::vector<double> decade_ticks(double low, double high) {
  std::vector<double> ticks;
  const bool fine = high - low < 3;
  const int every = std::max(1, static_cast<int>((high - low) / 6));
  for (int power = static_cast<int>(std::floor(low)); power <= high && ticks.size() < 40; power += every) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double value = factor * std::pow(10.0, power);
      const bool inside = std::log10(value) >= low && std::log10(value) <= high;
      if (inside && (fine || factor == 1.0)) ticks.push_back(value);
    }
  }
  return ticks;
}

std::string grid(const Plane& plane) {
  std::string out;
  const auto horizontal = [&](double value) {
    const std::string y = coordinate(plane.at_y(value));
    out += concat("<line class=\"grid\" x1=\"", kLeft, "\" x2=\"", kWidth - kRight, "\" y1=\"", y, "\" y2=\"", y,
                  "\"/><text class=\"tick\" text-anchor=\"end\" x=\"", kLeft - 6, "\" y=\"",
                  coordinate(plane.at_y(value) + 4), "\">", value_text(plane, value), "</text>");
  };
  if (plane.log_scale) {
    for (const double value : decade_ticks(plane.y.low, plane.y.high)) horizontal(value);
  } else {
    for (const double value : axis_ticks(plane.y.low, plane.y.high, 5)) horizontal(value);
  }
  for (const double step : axis_ticks(plane.x.low, plane.x.high, 6)) {
    const std::string x = coordinate(plane.at_x(step));
    out += concat("<line class=\"grid\" y1=\"", kTop, "\" y2=\"", kHeight - kBottom, "\" x1=\"", x, "\" x2=\"", x,
                  "\"/><text class=\"tick\" text-anchor=\"middle\" x=\"", x, "\" y=\"", kHeight - kBottom + 16, "\">",
                  axis_number(step), "</text>");
  }
  return out + concat("<text class=\"tick\" text-anchor=\"end\" x=\"", kWidth - kRight, "\" y=\"", kHeight - 3,
                      "\">step</text>");
}

std::string bands(const Chart& chart, const Plane& plane) {
  std::string out;
  for (const ChartBand& band : chart.bands) {
    if (band.step > plane.x.high) continue;
    const double left = std::max(plane.at_x(band.step), kLeft);
    out += concat("<rect class=\"band\" x=\"", coordinate(left), "\" width=\"", coordinate(kWidth - kRight - left),
                  "\" y=\"", coordinate(plane.at_y(band.high)), "\" height=\"",
                  coordinate(plane.at_y(band.low) - plane.at_y(band.high)), "\"><title>", html(band.label),
                  "</title></rect>");
  }
  return out;
}

std::string marks(const Chart& chart, const Plane& plane) {
  std::string out;
  for (std::size_t i = 0; i < std::min(chart.marks.size(), kMaxMarks); ++i) {
    const std::string x = coordinate(plane.at_x(chart.marks[i].step));
    out += concat("<line class=\"mark\" x1=\"", x, "\" x2=\"", x, "\" y1=\"", kTop, "\" y2=\"", kHeight - kBottom,
                  "\"><title>", html(chart.marks[i].label), "</title></line>");
  }
  return out;
}

std::string polyline(const Chart& chart, const ChartLine& line, const Plane& plane) {
  std::string path, dots;
  std::size_t drawn = 0;
  bool pen_down = false;
  for (const CurvePoint& point : line.curve) {
    if (!drawable(chart, point.value)) {
      pen_down = false;  // a gap shows where a value was not a number
      continue;
    }
    const std::string x = coordinate(plane.at_x(point.step)), y = coordinate(plane.at_y(point.value));
    path += concat(pen_down ? "L" : "M", x, " ", y);
    pen_down = true;
    ++drawn;
    if (line.style == LineStyle::kThin && line.curve.size() > 1) continue;
    dots += concat("<circle class=\"dot f", line.colour, "\" r=\"3\" cx=\"", x, "\" cy=\"", y, "\"><title>",
                   html(line.label), " ", value_text(plane, point.value), " at step ", axis_number(point.step),
                   "</title></circle>");
  }
  const char* style = line.style == LineStyle::kThin ? "thin" : line.style == LineStyle::kDashed ? "dashed" : "solid";
  std::string out = concat("<path class=\"line ", style, " c", line.colour, "\" d=\"", path, "\"/>");
  return drawn <= kMarkersUpTo ? out + dots : out;
}

std::string legend(const Chart& chart) {
  std::string out;
  for (const ChartLine& line : chart.lines) {
    if (line.label.empty() || line.curve.empty()) continue;
    const char* style = line.style == LineStyle::kThin ? "thin" : line.style == LineStyle::kDashed ? "dashed" : "solid";
    out += concat("<span><svg width=\"26\" height=\"10\"><path class=\"line ", style, " c", line.colour,
                  "\" d=\"M1 5L25 5\"/></svg>", html(line.label), "</span>");
  }
  if (!chart.bands.empty()) out += "<span><i class=\"swatch\"></i>target range</span>";
  if (!chart.reference_label.empty()) {
    out += concat("<span><svg width=\"26\" height=\"10\"><path class=\"reference\" d=\"M1 5L25 5\"/></svg>",
                  html(chart.reference_label), "</span>");
  }
  if (!chart.marks.empty()) out += "<span><i class=\"tickmark\"></i>resume, rollback, skip</span>";
  return out;
}

}  // namespace

std::string html(std::string_view text, std::size_t bytes) {
  std::string out;
  for (const char c : clean_text(text, bytes)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string axis_number(double value) {
  char text[40];
  const double size = std::fabs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-3)) {
    std::snprintf(text, sizeof text, "%.2g", value);
  } else if (size >= 1e9) {
    std::snprintf(text, sizeof text, "%.4gG", value / 1e9);
  } else if (size >= 1e6) {
    std::snprintf(text, sizeof text, "%.4gM", value / 1e6);
  } else if (size >= 1e4) {
    std::snprintf(text, sizeof text, "%.5gk", value / 1e3);
  } else {
    std::snprintf(text, sizeof text, "%.4g", value);
  }
  return text;
}

std::vector<double> axis_ticks(double low, double high, int wanted) {
  if (!(low < high) || !std::isfinite(high - low)) return {low};
  const double rough = (high - low) / std::max(wanted, 1);
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  const double factor = rough / power <= 1.5 ? 1 : rough / power <= 3.5 ? 2 : rough / power <= 7.5 ? 5 : 10;
  const double step = factor * power;
  std::vector<double> ticks;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + step * 1e-9 && ticks.size() < 50; ++i) {
    ticks.push_back(i * step + 0.0);
  }
  return ticks;
}

std::string render_chart(const Chart& chart) {
  Chart drawn = chart;
  Plane plane;
  plane.x = steps_of(drawn);
  if (!(plane.x.low < plane.x.high)) return {};
  Range values = values_of(drawn, plane.x);
  drawn.log_scale = drawn.log_scale && values.low > 0 && values.high / values.low > 30;
  if (chart.log_scale && !drawn.log_scale) plane.x = steps_of(drawn), values = values_of(drawn, plane.x);
  plane.log_scale = drawn.log_scale;
  plane.percent = drawn.percent;
  plane.y = plane.log_scale ? spread(std::log10(values.low), std::log10(values.high), 0.05)
                            : spread(values.low, values.high, 0.06);
  if (drawn.from_zero && values.low >= 0 && !plane.log_scale) plane.y.low = 0;

  const double plot_width = kWidth - kLeft - kRight, plot_height = kHeight - kTop - kBottom;
  std::string out = concat("<figure><figcaption>", html(drawn.title), "</figcaption><svg viewBox=\"0 0 ", kWidth, " ",
                           kHeight, "\" role=\"img\" aria-label=\"", html(drawn.title), "\">", grid(plane));
  // The inner drawing has the same coordinates and clips what runs out of the plot.
  out += concat("<svg x=\"", kLeft, "\" y=\"", kTop, "\" width=\"", plot_width, "\" height=\"", plot_height,
                "\" viewBox=\"", kLeft, " ", kTop, " ", plot_width, " ", plot_height, "\">", bands(drawn, plane),
                marks(drawn, plane));
  if (!drawn.reference_label.empty()) {
    const std::string y = coordinate(plane.at_y(drawn.reference));
    out += concat("<path class=\"reference\" d=\"M", kLeft, " ", y, "L", kWidth - kRight, " ", y, "\"/>");
  }
  for (const ChartLine& line : drawn.lines) out += polyline(drawn, line, plane);
  out += concat("</svg></svg><div class=\"legend\">", legend(drawn), "</div>");
  if (!drawn.note.empty()) out += concat("<p class=\"note\">", html(drawn.note), "</p>");
  return out + "</figure>\n";
}

}  // namespace train_gpt_v2
