#include "train_gpt_v2/app/report_chart.h"

#include <gtest/gtest.h>

#include <cmath>

#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

Curve curve(std::initializer_list<CurvePoint> points) {
  return points;
}

TEST(ReportChart, TextIsEscapedCleanedAndCut) {
  EXPECT_EQ(html("<a href=\"x\" b='y'>&"), "&lt;a href=&quot;x&quot; b=&#39;y&#39;&gt;&amp;");
  EXPECT_EQ(html("ሰላም\n\x01!"), "ሰላም  !");
  EXPECT_EQ(html("a\xff\xfe"
                 "b"),
            "a\xEF\xBF\xBD\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(html("ሰላም", 4), "ሰ…");
}

TEST(ReportChart, AxisNumbersAndTicks) {
  EXPECT_EQ(axis_number(0), "0");
  EXPECT_EQ(axis_number(25000), "25k");
  EXPECT_EQ(axis_number(1.5e6), "1.5M");
  EXPECT_EQ(axis_number(5.3e10), "53G");
  EXPECT_EQ(axis_number(2e-5), "2e-05");
  EXPECT_EQ(axis_number(3.25), "3.25");
  EXPECT_EQ(axis_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(axis_ticks(3.4, 5.2, 4), (std::vector<double>{3.5, 4, 4.5, 5}));
  EXPECT_EQ(axis_ticks(5, 5, 4).size(), 1u);
  EXPECT_LE(axis_ticks(-1e300, 1e300, 5).size(), 50u);
}

// Numbers of the path's points: 582 pixels of x from 58, 248 of y down from 12.
TEST(ReportChart, PointsLieWhereTheyBelong) {
  Chart chart;
  chart.title = "t";
  chart.from_zero = true;
  chart.lines.push_back({"a", 3, LineStyle::kThin, curve({{0, 0}, {50, 0.5}, {100, 1}})});
  const std::string svg = render_chart(chart);
  // The range is 0 to 1.06: the highest value stands 0.06 / 1.06 of the height below the top.
  const double top = 12, bottom = 260, highest = bottom - (bottom - top) / 1.06;
  EXPECT_NE(svg.find(concat("d=\"M58.0 ", fixed(bottom, 1), "L342.0 ", fixed((bottom + highest) / 2, 1), "L626.0 ",
                            fixed(highest, 1), "\"")),
            std::string::npos)
      << svg;
  EXPECT_NE(svg.find("thin c3"), std::string::npos);
}

TEST(ReportChart, GapsStayGapsAndNothingGivesNothing) {
  Chart chart;
  chart.lines.push_back({"a", 0, LineStyle::kThin, curve({{0, 1}, {1, NAN}, {2, 3}, {3, 4}})});
  const std::string svg = render_chart(chart);
  const auto path = svg.substr(svg.find("d=\"M"));
  const std::string data = path.substr(3, path.find('"', 3) - 3);
  EXPECT_EQ(std::count(data.begin(), data.end(), 'M'), 2) << data;
  EXPECT_EQ(data.find("nan"), std::string::npos);
  chart.lines[0].curve = curve({{0, NAN}, {1, INFINITY}});
  EXPECT_EQ(render_chart(chart), "");
  EXPECT_EQ(render_chart({}), "");
}

TEST(ReportChart, ExtremeValuesMakeNoBrokenDrawing) {
  for (const auto& points : {curve({{0, 1e308}, {1, -1e308}}), curve({{5, 0}}), curve({{0, 5e-324}, {1e12, 1e-320}}),
                             curve({{0, 0}, {1, 0}})}) {
    for (const bool log_scale : {false, true}) {
      Chart chart;
      chart.title = "<x>";
      chart.log_scale = log_scale;
      chart.lines.push_back({"\"><script>", 0, LineStyle::kSolid, points});
      const std::string svg = render_chart(chart);
      EXPECT_EQ(svg.find("nan"), std::string::npos) << svg;
      EXPECT_EQ(svg.find("inf"), std::string::npos) << svg;
      EXPECT_EQ(svg.find("<script"), std::string::npos);
      EXPECT_EQ(svg.find("<x>"), std::string::npos);
      EXPECT_LT(svg.size(), 30000u);
    }
  }
}

TEST(ReportChart, ALogarithmicAxisOnlyWhereItHelps) {
  Chart chart;
  chart.log_scale = true;
  chart.lines.push_back({"a", 0, LineStyle::kThin, curve({{0, 1}, {1, 1000}})});
  EXPECT_NE(render_chart(chart).find(">100</text>"), std::string::npos);
  EXPECT_EQ(render_chart(chart).find(">400</text>"), std::string::npos);
  chart.lines[0].curve = curve({{0, 1}, {1, 5}});
  EXPECT_NE(render_chart(chart).find(">4</text>"), std::string::npos);
}

TEST(ReportChart, ThinningKeepsTheExtremes) {
  Curve curve;
  for (int i = 0; i < 100000; ++i) curve.push_back({static_cast<double>(i), std::sin(i * 0.001)});
  curve[77777].value = 50;
  curve[33333].value = -50;
  const Curve thin = thinned(curve, 1500);
  EXPECT_LE(thin.size(), 1500u);
  EXPECT_TRUE(std::any_of(thin.begin(), thin.end(), [](const auto& p) { return p.value == 50 && p.step == 77777; }));
  EXPECT_TRUE(std::any_of(thin.begin(), thin.end(), [](const auto& p) { return p.value == -50; }));
  for (std::size_t i = 1; i < thin.size(); ++i) EXPECT_LT(thin[i - 1].step, thin[i].step);
  EXPECT_EQ(thinned({{1, 1}}, 1500).size(), 1u);
}

}  // namespace
}  // namespace train_gpt_v2
