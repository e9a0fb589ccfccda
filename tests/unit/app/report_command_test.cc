#include "train_gpt_v2/app/report_command.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "support/test_files.h"
#include "train_gpt_v2/app/report_page.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/png.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/doctor.h"

namespace train_gpt_v2 {
namespace {

std::string train_line(int step, double mel) {
  return concat(
      R"({"v":1,"type":"train","step":)", step, R"(,"epoch":0,"loss":)", mel, R"(,"text_loss":2,"mel_loss":)", mel,
      R"(,"mel_top1":0.3,"lr":[1e-5],"grad_norm":1,"tokens_per_second":1000,"step_seconds":0.5,"peak_memory_bytes":2000000000,"time":)",
      1795000000 + step, "}\n");
}
std::string validation_line(int step, const char* weights, double mel, double top1) {
  return concat(R"({"v":1,"type":"validation","step":)", step, R"(,"weights":")", weights,
                R"(","split":"all","text_loss":2,"mel_loss":)", mel, R"(,"mel_top1":)", top1, "}\n");
}

std::string page_of(const std::vector<std::string>& runs, const std::string& output) {
  write_report({.runs = runs, .output = output});
  return read_file(output, 1 << 28);
}

TEST(Report, AWholeRunShowsItsParts) {
  testing::TemporaryFolder folder;
  std::string metrics = R"({"v":1,"type":"event","step":0,"event":"start","device":"cpu","time":1795000000})"
                        "\n";
  for (int step = 10; step <= 200; step += 10) metrics += train_line(step, 5 - step * 0.01);
  metrics += validation_line(100, "raw", 4.5, 0.25) + validation_line(100, "ema", 4.4, 0.26);
  for (int step = 50; step <= 200; step += 50) {
    metrics +=
        concat(R"({"v":1,"type":"event","step":)", step, R"(,"event":"save","file":"model_step)", step, ".pth\"}\n");
  }
  metrics += R"({"type":"validation","step":150,"weights":"raw","split":"all","mel_loss":4.5,"text_usage_gap":0.3})"
             "\n";
  metrics += R"({"v":1,"type":"event","step":200,"event":"rollback","to":150})"
             "\n";
  folder.write("run/metrics.jsonl", metrics);
  folder.write(
      "run/config.effective.json",
      R"({"train":{"batch_size":64,"max_steps":200},"ema":{"enabled":true},"sampling":{"baseline_step":100}})");
  folder.write("run/DONE", R"({"reason":"max_steps","step":200})");
  folder.write("run/summary.json", R"({"bigram_mel_loss":4.75})");
  folder.write("run/samples/step_100/samples.jsonl",
               R"({"id":"a__b","text":"ሰላም","length":50,"stop":"stop","alignment":{"monotonicity":0.82}})"
               "\n");
  folder.write("run/samples/step_100/a__b.png", encode_png({2, 2, 3, std::vector<std::uint8_t>(12, 200)}));
  folder.write("run/samples/step_100/a__b.wav", "RIFF0000WAVEfmt and some samples");
  folder.write("run/samples/step_100/notes.json", R"({"samples":[{"id":"a__b","pronunciation":4,"comment":"clear"}]})");
  folder.write("run/samples/step_200/samples.jsonl", R"({"id":"a__b","length":40,"stop":"limit"})"
                                                     "\n");
  folder.write("run/samples/step_200/notes.json", R"({"samples":[{"id":"a__b","text":"ደህና","pronunciation":5}]})");
  DoctorReport data;
  data.histograms.push_back({"text length", {16, 32}, {25, 75}, 3, 20, 30, 32});
  data.manifests.push_back({"/corpus/train_pairs.jsonl", false, 1234, 600, 5, 1.5, 0.0275});
  data.findings.push_back({"lonely_speaker", Severity::kWarning, "", "", 17, {}});
  folder.write("run/data_report.json", data.json().dump());

  const std::string page = page_of({folder.file("run")}, folder.file("report.html"));
  for (const char* part : {"<b>200</b><span>steps of 200",
                           "<b>4.400</b><span>best validation mel loss, ema weights, step 100",
                           "0.35 nats</b>",
                           "done</b><span>max_steps at step 200",
                           "Mel loss (nats per code)",
                           "bigram of the codes",
                           "validation, ema",
                           "save ×4",
                           ">rollback</span>",
                           "to 150",
                           "data:image/png;base64,iVBOR",
                           "data:audio/wav;base64,UklGR",
                           "0.82 monotonicity",
                           "ended by itself",
                           "ሰላም",
                           "Listening sheet",
                           "not listened to",
                           "clear",
                           "<p>ደህና</p>",
                           "baseline, step 100:",
                           "5 <span class=\"soft\">(baseline 4)</span>",
                           "25.00%",
                           "up to 16<",
                           "training: train_pairs.jsonl",
                           "2.75%",
                           "warning: lonely_speaker",
                           "0.9 X",
                           "53–63 GB",
                           "not measured",
                           "2.00 GB",
                           "0.500 s"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
  // One file, nothing fetched, nothing executed.
  for (const char* forbidden :
       {"<script", "http://", "https://", "src=\"/", "<link", "@import", "<iframe", "onerror="}) {
    EXPECT_EQ(page.find(forbidden), std::string::npos) << forbidden;
  }
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
  // Whatever is opened is closed.
  for (const std::string tag : {"section", "table", "figure", "details", "div", "tr", "td", "svg", "p", "span"}) {
    std::size_t open = 0, closed = 0;
    for (std::size_t at = 0; (at = page.find("<" + tag, at)) != std::string::npos; ++at) {
      const char next = page[at + tag.size() + 1];
      open += next == '>' || next == ' ';
    }
    for (std::size_t at = 0; (at = page.find("</" + tag + ">", at)) != std::string::npos; ++at) ++closed;
    EXPECT_EQ(open, closed) << tag;
  }
}

TEST(Report, AnEmptyFolderIsAPageAndAMissingOneAnError) {
  testing::TemporaryFolder folder;
  std::filesystem::create_directories(folder.file("empty"));
  const std::string page = page_of({folder.file("empty")}, folder.file("report.html"));
  EXPECT_NE(page.find("no metrics.jsonl"), std::string::npos);
  try {
    write_report({.runs = {folder.file("missing")}, .output = folder.file("x.html")});
    FAIL();
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), "IO001");
  }
  EXPECT_FALSE(file_exists(folder.file("x.html")));
  EXPECT_THROW(write_report({.runs = {}, .output = folder.file("x.html")}), Error);
  EXPECT_THROW(write_report({.runs = {folder.file("empty")}, .output = folder.file("no/such/x.html")}), Error);
}

TEST(Report, HostileLinesAreCountedAndShownHarmless) {
  testing::TemporaryFolder folder;
  std::string metrics;
  EXPECT_EQ(clean_text("a\x1b"
                       "b\xC2\x9B"
                       "c\xC2\xA0"),
            "a b c\xC2\xA0");
  metrics +=
      R"({"v":1,"type":"event","step":1,"event":"<script>alert(1)</script>","<img src=x onerror=alert(2)>":"</td><script>"})"
      "\n";
  metrics += R"({"v":1,"type":"train","step":1,"loss":1,"<b>evil</b>":3,"mel_loss":"text","lr":"x"})"
             "\n";
  metrics += R"({"v":1,"type":"validation","step":1,"weights":"<i>","split":"</svg><script>","mel_loss":1})"
             "\n";
  const std::size_t good = 3;
  metrics += "not json\n[1,2]\n{}\n{\"type\":\"train\",\"step\":-5}\n{\"type\":\"train\",\"step\":1e300}\n";
  metrics += "{\"type\":\"train\",\"step\":\"7\"}\n\xff\xfe\n{\"type\":\"train\",\"step\":1,\"loss\":1e999}\n";
  metrics += std::string(60000, '[') + "\n" + std::string(1 << 20, 'x') + "\n" + std::string(70000, ' ') + "\n";
  metrics += std::string("{\"type\":\"train\",\"step\":2,\"loss\":1") + '\0' + "}\n{\"half";
  folder.write("run/metrics.jsonl", metrics);
  folder.write("run/config.effective.json",
               R"({"train":{"batch_size":"<script>"},"x":[1],"sampling":{"baseline_step":{}}})");
  folder.write("run/DONE", "not json either");
  folder.write(
      "run/data_report.json",
      R"({"histograms":[{"name":"<script>","limits":[1],"counts":[-1e308]},{"limits":["x"],"counts":[1]},5,{"limits":7}],)"
      R"("manifests":[{"path":"a/<script>","side":"<script>","pairs":3,"unk_share":1e308},[]],)"
      R"("findings":[{"check":"<script>","count":"x"},{"count":{}}]})");
  const std::string page = page_of({folder.file("run")}, folder.file("report.html"));
  EXPECT_EQ(page.find("<script"), std::string::npos);
  EXPECT_EQ(page.find("<img src=x"), std::string::npos);
  EXPECT_EQ(page.find("<b>evil"), std::string::npos);
  EXPECT_NE(page.find("&lt;script&gt;alert(1)"), std::string::npos);
  const auto lines = static_cast<std::size_t>(std::count(metrics.begin(), metrics.end(), '\n')) + 1;
  EXPECT_NE(page.find(concat(lines - good, " lines could not be read")), std::string::npos);
  EXPECT_NE(page.find("the first is line 4"), std::string::npos);
  EXPECT_NE(page.find("DONE is not a JSON object"), std::string::npos);
}

TEST(Report, DeeplyNestedJsonIsLeftOut) {
  testing::TemporaryFolder folder;
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + "1" + std::string(depth, ']'); };
  folder.write("run/config.effective.json", R"({"train":{"batch_size":64},"x":)" + nested(200'000) + "}");
  folder.write("run/data_report.json", R"({"findings":[{"check":"deep","x":)" + nested(200'000) + "}]}");
  folder.write("run/metrics.jsonl", train_line(10, 4) + R"({"type":"event","step":11,"event":"start","x":)" +
                                        nested(30'000) + "}\n" + R"({"type":"event","step":12,"event":"fine","x":)" +
                                        nested(60) + "}\n");
  const std::string page = page_of({folder.file("run")}, folder.file("report.html"));
  EXPECT_NE(page.find("config.effective.json is not a JSON object, or nested too deeply"), std::string::npos);
  EXPECT_NE(page.find("data_report.json is not a JSON object, or nested too deeply"), std::string::npos);
  EXPECT_NE(page.find("1 line could not be read"), std::string::npos);
  EXPECT_NE(page.find("fine"), std::string::npos);
}

TEST(Report, LinkedFilesAndFoldersAreLeftOut) {
  testing::TemporaryFolder folder;
  const std::string png = encode_png({1, 1, 3, {1, 2, 3}});
  folder.write("elsewhere/secret.json", R"({"aws":{"key":"SECRET"}})");
  folder.write("elsewhere/step_5/a.png", png);
  folder.write("run/metrics.jsonl", train_line(10, 4));
  std::filesystem::create_symlink(folder.file("elsewhere/secret.json"), folder.file("run/config.effective.json"));
  std::filesystem::create_symlink(folder.file("elsewhere"), folder.file("run/samples"));
  std::string page = page_of({folder.file("run")}, folder.file("report.html"));
  EXPECT_EQ(page.find("SECRET"), std::string::npos);
  EXPECT_EQ(page.find("data:image"), std::string::npos);
  EXPECT_NE(page.find("config.effective.json is a link"), std::string::npos);
  EXPECT_NE(page.find("samples is a link"), std::string::npos);
  std::filesystem::remove(folder.file("run/samples"));
  std::filesystem::create_directories(folder.file("run/samples"));
  std::filesystem::create_symlink(folder.file("elsewhere/step_5"), folder.file("run/samples/step_5"));
  page = page_of({folder.file("run")}, folder.file("report.html"));
  EXPECT_EQ(page.find("data:image"), std::string::npos);
  EXPECT_NE(page.find("samples/step_5 is a link"), std::string::npos);
}

TEST(Report, AnOddSampleFolderHidesNoOther) {
  testing::TemporaryFolder folder;
  for (const char* name : {"step_5", "step_007"}) {
    folder.write(concat("run/samples/", name, "/samples.jsonl"), concat(R"({"id":"of_)", name, "\"}\n"));
  }
  folder.write("run/samples/step_9/samples.jsonl", std::string((16u << 20) + 1, ' '));  // beyond the limit
  std::uint64_t media = 0;
  const ReportRun run = load_run(folder.file("run"), media);
  ASSERT_EQ(run.samples.size(), 2u);
  EXPECT_EQ(run.samples[0].samples.at(0).id, "of_step_5");
  EXPECT_EQ(run.samples[1].samples.at(0).id, "of_step_007");
  EXPECT_EQ(std::count_if(run.problems.begin(), run.problems.end(),
                          [](const std::string& text) { return starts_with(text, "samples/step_9: "); }),
            1);
}

TEST(Report, SamplesCannotLeadOutOfTheirFolder) {
  testing::TemporaryFolder folder;
  const std::string png = encode_png({1, 1, 3, {1, 2, 3}});
  folder.write("secret.png", png);
  folder.write("run/samples/step_5/samples.jsonl", R"({"id":"../../../secret"})"
                                                   "\n"
                                                   R"({"id":"linked"})"
                                                   "\n"
                                                   R"({"id":"fake"})"
                                                   "\n"
                                                   R"({"id":7})"
                                                   "\nx\n");
  std::filesystem::create_symlink(folder.file("secret.png"), folder.file("run/samples/step_5/linked.png"));
  folder.write("run/samples/step_5/fake.png", "<svg onload=alert(1)> this is no picture");
  folder.write("run/samples/step_5/notes.json", "{broken");
  folder.write("run/samples/step_x/a.png", png);
  const std::string page = page_of({folder.file("run")}, folder.file("report.html"));
  EXPECT_EQ(page.find("data:image"), std::string::npos);
  EXPECT_NE(page.find("listening sheet cannot be read"), std::string::npos);
  // The same picture inside the folder is shown, without an index too, but not beyond the limit for the page.
  folder.write("run/samples/step_6/a.png", png);
  EXPECT_NE(page_of({folder.file("run")}, folder.file("report.html")).find("data:image"), std::string::npos);
  write_report({.runs = {folder.file("run")}, .output = folder.file("report.html"), .max_media_bytes = 20});
  EXPECT_EQ(read_file(folder.file("report.html"), 1 << 24).find("data:image"), std::string::npos);
}

ReportRun run_with(std::initializer_list<std::tuple<double, double, double>> validations) {
  ReportRun run;
  for (const auto& [step, mel, top1] : validations) {
    run.validation[{"all", "raw", "mel_loss"}].push_back({step, mel});
    run.validation[{"all", "raw", "mel_top1"}].push_back({step, top1});
  }
  return run;
}

TEST(Report, MilestonesAreJudgedByThePlan) {
  const auto milestones = default_milestones();
  const auto verdict = [&](std::size_t i, const ReportRun& run) { return judge_milestone(milestones, i, run).verdict; };
  EXPECT_EQ(verdict(0, run_with({{48000, 4.0, 0.33}})), "not measured");
  EXPECT_EQ(verdict(0, run_with({{50000, 4.0, 0.33}, {60000, 3.0, 0.5}})), "reached");
  EXPECT_EQ(verdict(0, run_with({{50000, 4.3, 0.33}})), "not reached");
  EXPECT_EQ(verdict(0, run_with({{50000, 4.0, 0.29}})), "not reached");
  EXPECT_EQ(verdict(0, run_with({{52000, 3.7, 0.34}})), "better than the target");
  EXPECT_EQ(verdict(0, run_with({{80000, 3.7, 0.34}})), "not measured");
  EXPECT_EQ(verdict(1, run_with({{80000, 3.9, 0.34}, {100000, 3.6, 0.36}})), "reached");
  EXPECT_EQ(verdict(1, run_with({{80000, 3.6, 0.36}, {100000, 3.9, 0.34}})), "not reached");
  EXPECT_EQ(verdict(0, run_with({{50000, 4.0, NAN}})), "not measured");
  EXPECT_EQ(verdict(0, run_with({{50000, 4.3, NAN}})), "not reached");
  ReportRun ema = run_with({{50000, 4.3, 0.28}});
  ema.validation[{"all", "ema", "mel_loss"}] = {{50000, 4.0}};
  ema.validation[{"all", "ema", "mel_top1"}] = {{50000, 0.31}};
  EXPECT_EQ(verdict(0, ema), "reached");
}

TEST(Report, MilestonesOfOnesOwn) {
  const Milestone milestone = parse_milestone("1000:2.0-2.5:0.4-0.5");
  EXPECT_EQ(milestone.step, 1000);
  EXPECT_EQ(milestone.mel_low, 2.0);
  EXPECT_EQ(milestone.mel_high, 2.5);
  EXPECT_EQ(milestone.top1_low, 0.4);
  for (const char* text :
       {"", "1000", "1000:2", "x:2-3:0.1-0.2", "1000:2-3:nan-1", "1:2:3:4", "1000:2-:0.1", "-5:1-2:0-1"}) {
    try {
      parse_milestone(text);
      ADD_FAILURE() << text;
    } catch (const Error& failure) {
      EXPECT_EQ(failure.code(), "ARG001");
    }
  }
}

TEST(Report, RunsAreComparedAndPutIntoPhases) {
  testing::TemporaryFolder folder;
  for (const char* name : {"a/run", "b/run"}) {
    folder.write(concat(name, "/metrics.jsonl"),
                 train_line(10, 4) + train_line(20, 3.5) + validation_line(20, "raw", 3.6, 0.3));
  }
  folder.write("a/run/config.effective.json",
               R"({"ema":{"enabled":false},"sampler":{"mode":"shuffle"},"train":{"batch_size":48}})");
  folder.write("b/run/config.effective.json", R"({"peft":{"method":"dora"},"train":{"batch_size":96}})");
  ReportOptions options{.runs = {folder.file("a/run"), folder.file("b/run")}, .output = folder.file("r.html")};
  write_report(options);
  std::string page = read_file(options.output, 1 << 24);
  EXPECT_NE(page.find("<h2>Comparison</h2>"), std::string::npos);
  EXPECT_NE(page.find(folder.file("b/run") + ": validation, raw"), std::string::npos) << "equal names need their paths";
  EXPECT_NE(page.find("0.500 s = 1.00 X"), std::string::npos) << "phase 2 measured beside X";
  options.phases = {"phase1=" + folder.file("b/run")};
  write_report(options);
  page = read_file(options.output, 1 << 24);
  const auto heading = page.find("phase 1: target");
  EXPECT_NE(page.find("measured (" + folder.file("b/run"), heading), std::string::npos);
  for (const char* phase : {"phase3=x", "phase1", "phase1=", "phase1=/nowhere"}) {
    options.phases = {phase};
    EXPECT_THROW(write_report(options), Error) << phase;
  }
}

TEST(Report, ASlashAtTheEndTakesNoNameAway) {
  testing::TemporaryFolder folder;
  folder.write("run/metrics.jsonl", train_line(10, 5));
  for (const char* end : {"/", "/."}) {
    const std::string text = write_report({.runs = {folder.file("run") + end}, .output = folder.file("report.html")});
    EXPECT_NE(text.find("  run: 10 steps"), std::string::npos) << text;
  }
}

TEST(Report, AnInterruptedValidationIsNoResult) {
  testing::TemporaryFolder folder;
  folder.write("run/metrics.jsonl",
               validation_line(20, "raw", 3.6, 0.3) +
                   R"({"type":"validation","step":30,"weights":"raw","split":"all","mel_loss":0.0,"complete":false})"
                   "\n" +
                   R"({"type":"validation","step":40,"weights":"raw","split":"all","mel_loss":0.0,"mel_tokens":0})"
                   "\n");
  const auto json = nlohmann::json::parse(
      write_report({.runs = {folder.file("run")}, .output = folder.file("r.html"), .json = true}));
  EXPECT_EQ(json["runs"][0]["best_mel_loss"], 3.6);
  EXPECT_EQ(json["runs"][0]["last_step"], 40);
}

TEST(Report, JsonSaysWhatWasFound) {
  testing::TemporaryFolder folder;
  folder.write("run/metrics.jsonl", train_line(10, 4) + validation_line(20, "raw", 3.6, 0.3) + "x\n");
  const auto json = nlohmann::json::parse(
      write_report({.runs = {folder.file("run")}, .output = folder.file("r.html"), .json = true}));
  EXPECT_EQ(json["runs"][0]["last_step"], 20);
  EXPECT_EQ(json["runs"][0]["best_mel_loss"], 3.6);
  EXPECT_EQ(json["runs"][0]["problems"].size(), 1u);
  EXPECT_EQ(json["bytes"], file_size(folder.file("r.html")));
}

}  // namespace
}  // namespace train_gpt_v2
