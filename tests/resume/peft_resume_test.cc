// Runs with adapters and EWC that are stopped and continued, what they leave alone, and what is refused.

#include <algorithm>

#include "support/fixture_files.h"
#include "support/resume_run.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using testing::expect_resumes;
using testing::metrics_of;
using testing::small_run;
using testing::TemporaryFolder;
using testing::train_here;

constexpr const char* kBaseWeights = "fixtures/model/gpt.pth";

std::vector<std::string> with(std::vector<std::string> sets, const std::vector<std::string>& more) {
  sets.insert(sets.end(), more.begin(), more.end());
  return sets;
}

// Ten steps at a rate at which ranks differ soon.
Options adapted_run(const std::vector<std::string>& sets) {
  return small_run(
      with({"peft.rank=6", "optimizer.learning_rate=5e-3", "optimizer.warmup_steps=0", "validation.interval=0"}, sets));
}

std::string refusal(const Options& options, const std::string& directory, const std::string& resume = "auto",
                    std::set<std::string> allowed = {}) {
  try {
    train_here(options, directory, resume, 2, std::move(allowed));
  } catch (const Error& error) {
    return error.report();
  }
  return "accepted";
}

class Engines : public ::testing::TestWithParam<const char*> {
 protected:
  Options run(const std::vector<std::string>& sets) const {
    return adapted_run(with(sets, {concat("train.engine=", GetParam())}));
  }
};
INSTANTIATE_TEST_SUITE_P(Peft, Engines, ::testing::Values("modules", "fused"),
                         [](const auto& engine) { return std::string(engine.param); });

TEST_P(Engines, PrunedRunsResumeBeforeAtAndAfterEachEvent) {
  expect_resumes(run({"peft.method=dora_adalora", "peft.pruning_steps=[3,7]", "peft.target_budget=20",
                      "ema.enabled=true", "validation.interval=4"}),
                 {2, 3, 4, 6, 7, 8});
}

TEST_P(Engines, SoftMasksAndPeftsScheduleResume) {
  expect_resumes(run({"peft.method=adalora", "peft.compaction=soft", "peft.tinit=2", "peft.tfinal=3", "peft.delta_t=2",
                      "peft.target_rank=3", "ema.enabled=true"}),
                 {3, 4, 5, 7, 8});
}

TEST_P(Engines, MagnitudeImportanceByParametersResumes) {
  expect_resumes(run({"peft.method=adalora", "peft.importance=magnitude", "peft.budget_unit=params",
                      "peft.pruning_steps=[4]", "peft.min_rank=1"}),
                 {4});
}

TEST_P(Engines, DoraBesideTrainedTablesWithEwcResumes) {
  const TemporaryFolder folder;
  const std::string fisher = testing::write_fixture_fisher(folder.file("fisher.pth"), 1);
  for (const char* mode : {"penalty", "proximal"}) {
    expect_resumes(run({"peft.method=dora", "trainable.train=[\"wte\",\"lm_head\",\"mel_head\"]", "train.max_steps=24",
                        "ewc.enabled=true", concat("ewc.fisher=", fisher), concat("ewc.mode=", mode)}),
                   {5, 19, 20, 22});
  }
}

TEST(PeftResume, AdapterDropoutRepeatsItsMasks) {
  expect_resumes(adapted_run({"peft.method=dora", "peft.lora_dropout=0.2", "validation.interval=4"}), {3, 5});
}

TEST(PeftResume, AdapterOnTheTextTable) {
  expect_resumes(adapted_run({"peft.method=dora", "peft.target_modules=[\"attn.c_attn\",\"wte\"]"}), {3});
}

TEST(PeftResume, ConformerAttentionWithOnlineConditioning) {
  const TemporaryFolder folder;
  const std::string manifest = testing::write_online_pairs(folder.file("online.jsonl"));
  for (const char* dropout : {"0", "0.2"}) {  // through the weights; beside them
    const Options options =
        adapted_run({"model.conditioning=online", concat("data.train_manifests=[\"", manifest, "\"]"),
                     "data.val_manifests=[]", "peft.method=dora", "peft.rank=2",
                     "peft.target_modules=[\"attn.c_attn\",\"conditioning_encoder.encoders.*.self_attn.linear_*\"]",
                     "peft.conformer_budget_share=0.5", concat("peft.lora_dropout=", dropout), "train.max_steps=4"});
    expect_resumes(options, {2});
    ASSERT_EQ(train_here(options, folder.file(dropout)), ExitStatus::kOk);
    const LoadedFile saved = read_tensor_file(folder.file(concat(dropout, "/latest.pt")));
    const auto b = to_float_vector(
        saved.root.at("adapter").at("conditioning_encoder.encoders.0.self_attn.linear_q.lora_B.weight").as_tensor());
    EXPECT_TRUE(std::any_of(b.begin(), b.end(), [](float x) { return x != 0; })) << "the conformer got no gradient";
  }
}

TEST(PeftRun, BothEnginesTrainTheSame) {
  const TemporaryFolder folder;
  for (const char* engine : {"modules", "fused"}) {
    const Options options = adapted_run({"peft.method=dora_adalora", "peft.pruning_steps=[4]", "model.dropout=0",
                                         "train.log_interval=1", concat("train.engine=", engine)});
    ASSERT_EQ(train_here(options, folder.file(engine)), ExitStatus::kOk);
  }
  const auto a = metrics_of(folder.file("modules"), "train"), b = metrics_of(folder.file("fused"), "train");
  ASSERT_EQ(a.size(), 10u);
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_NEAR(a[i].at("loss").get<double>(), b[i].at("loss").get<double>(), 2e-4) << i;
    EXPECT_NEAR(a[i].at("orthogonality").get<double>(), b[i].at("orthogonality").get<double>(), 1e-3) << i;
  }
  EXPECT_LT(a.back().at("loss").get<double>(), a.front().at("loss").get<double>());
}

TEST(PeftRun, AdaptersStayFp32WhateverComputes) {
  const TemporaryFolder folder;
  for (const char* engine : {"modules", "fused"}) {
    const Options options = adapted_run(
        {"peft.method=dora", "train.precision=bf16", "train.log_interval=1", concat("train.engine=", engine)});
    ASSERT_EQ(train_here(options, folder.file(engine)), ExitStatus::kOk);
    const LoadedFile saved = read_tensor_file(folder.file(std::string(engine) + "/latest.pt"));
    for (const auto& [key, value] : saved.root.at("adapter").entries()) {
      EXPECT_EQ(value.as_tensor().dtype, DType::kFloat32) << key.as_string();
    }
    const auto lines = metrics_of(folder.file(engine), "train");
    EXPECT_LT(lines.back().at("loss").get<double>(), lines.front().at("loss").get<double>() - 0.1) << engine;
  }
}

TEST(PeftRun, CompactionReachesMomentsAveragesAndTheFile) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(adapted_run({"peft.method=dora_adalora", "peft.pruning_steps=[3,6]", "peft.target_budget=13",
                                    "ema.enabled=true"}),
                       folder.file("run")),
            ExitStatus::kOk);
  const LoadedFile saved = read_tensor_file(folder.file("run/latest.pt"));
  const Value& state = saved.root.at("optimizer").at("state");
  std::int64_t ranks = 0;
  for (const auto& [key, value] : saved.root.at("adapter").entries()) {
    const std::string& name = key.as_string();
    const auto& shape = value.as_tensor().shape;
    EXPECT_EQ(state.at(name).at("exp_avg").as_tensor().shape, shape) << name;
    EXPECT_EQ(state.at(name).at("exp_avg_sq").as_tensor().shape, shape) << name;
    EXPECT_EQ(saved.root.at("ema_state").at(name).as_tensor().shape, shape) << name;
    if (ends_with(name, ".lora_E")) ranks += shape[0];
  }
  EXPECT_EQ(ranks, 13);
  std::vector<std::pair<std::int64_t, std::int64_t>> pruned;
  for (const auto& event : metrics_of(folder.file("run"), "event")) {
    if (event.at("event") == "prune") pruned.emplace_back(event.at("step"), event.at("ranks_after"));
  }
  EXPECT_EQ(pruned, (std::vector<std::pair<std::int64_t, std::int64_t>>{{3, 31}, {6, 13}}));  // 48 -> (48+13)/2 -> 13
}

TEST(PeftRun, TrainsNothingBesideWhatWasNamed) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(adapted_run({"peft.method=lora", "trainable.train=[\"wte\",\"text_head\"]",
                                    "trainable.text_rows=new_only", "trainable.base_text_rows=160",
                                    "optimizer.weight_decay=0.5"}),
                       folder.file("run")),
            ExitStatus::kOk);
  const LoadedFile before = read_tensor_file(data_path(kBaseWeights)),
                   after = read_tensor_file(folder.file("run/latest.pt"));
  for (const auto& [key, value] : after.root.at("base_model").entries()) {
    const std::string& name = key.as_string();
    const bool table = starts_with(name, "text_embedding.") || starts_with(name, "text_head.");
    EXPECT_EQ(identical(value, before.root.at(name)), !table) << name;
    if (!table) continue;
    const auto a = to_float_vector(before.root.at(name).as_tensor()), b = to_float_vector(value.as_tensor());
    const auto base_rows = static_cast<std::ptrdiff_t>(160 * a.size() / 361);
    EXPECT_TRUE(std::equal(a.begin(), a.begin() + base_rows, b.begin())) << name;
    EXPECT_FALSE(std::equal(a.begin() + base_rows, a.end(), b.begin() + base_rows)) << name;
  }
  const auto description = nlohmann::json::parse(after.root.at("train_gpt_v2").at("adapters").as_string());
  EXPECT_EQ(description.at("beside"), (nlohmann::json{"text_embedding.weight", "text_head.weight", "text_head.bias"}));
  EXPECT_EQ(description.at("modules").size(), 8u);
}

TEST(PeftRun, AverageIsValidatedAsTheModelItDescribes) {
  const TemporaryFolder folder;
  // Without warm-up and with decay 0 the average is the last state, so both validations must agree.
  ASSERT_EQ(train_here(adapted_run({"peft.method=dora", "ema.enabled=true", "ema.decay=0", "ema.warmup=false",
                                    "validation.interval=5"}),
                       folder.file("run")),
            ExitStatus::kOk);
  const auto lines = metrics_of(folder.file("run"), "validation");
  ASSERT_EQ(lines.size(), 4u);
  for (std::size_t i = 0; i < lines.size(); i += 2) {
    EXPECT_EQ(lines[i].at("weights"), "raw");
    EXPECT_EQ(lines[i + 1].at("weights"), "ema");
    EXPECT_NEAR(lines[i].at("mel_loss").get<double>(), lines[i + 1].at("mel_loss").get<double>(), 1e-6);
  }
  EXPECT_NE(lines[0].at("mel_loss"), lines[2].at("mel_loss"));
}

TEST(PeftSettings, TextRowsWithoutATextTableThatTrainsAreWarnedOf) {
  const TemporaryFolder folder;
  const auto warned = [&](const char* name, const std::string& train) {
    const Options options = adapted_run({"peft.method=dora", "trainable.text_rows=new_only",
                                         "trainable.base_text_rows=160", concat("trainable.train=", train)});
    EXPECT_EQ(train_here(options, folder.file(name), "auto", 1), ExitStatus::kOk);
    return read_file(folder.file(concat(name, "/log.txt")), 1 << 20).find("has no effect") != std::string::npos;
  };
  EXPECT_TRUE(warned("frozen", "[]"));
  EXPECT_FALSE(warned("training", R"(["wte","lm_head"])"));
}

TEST(PeftRefusals, AFullCheckpointWithAdaptersAndTheOtherWayRound) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(adapted_run({}), folder.file("full"), "auto", 1), ExitStatus::kOk);
  std::string report = refusal(adapted_run({"peft.method=dora"}), folder.file("full"));
  for (const char* part : {"error[CKP010]", "peft.method", "null", "\"dora\"", "base_model and adapter", "init.from"}) {
    EXPECT_NE(report.find(part), std::string::npos) << part << "\n" << report;
  }
  ASSERT_EQ(train_here(adapted_run({"peft.method=dora"}), folder.file("dora"), "auto", 1), ExitStatus::kOk);
  report = refusal(adapted_run({}), folder.file("dora"));
  for (const char* part : {"error[CKP010]", "peft.method", "base_model and adapter", "merge", "init.from"}) {
    EXPECT_NE(report.find(part), std::string::npos) << part << "\n" << report;
  }
  report = refusal(adapted_run({"peft.method=lora"}), folder.file("python"),
                   data_path("fixtures/expected/trainer/latest.pth"));
  EXPECT_NE(report.find("cannot be continued with adapters"), std::string::npos) << report;
}

TEST(PeftRefusals, OtherAdapterSettingsAlwaysOtherGroupsUnlessAllowed) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(adapted_run({"peft.method=dora"}), folder.file("run"), "auto", 1), ExitStatus::kOk);
  for (const char* change :
       {"peft.rank=4", "peft.lora_alpha=3", "peft.rank_pattern={\"attn.c_attn\":2}", "peft.lora_dropout=0.1",
        "peft.target_modules=[\"attn.c_attn\"]", "peft.use_rslora=true", "peft.lora_plus_ratio=4"}) {
    const std::string report = refusal(adapted_run({"peft.method=dora", change}), folder.file("run"), "auto",
                                       {"groups", "loss", "schedule", "batch"});
    const std::string key = std::string(change).substr(0, std::string(change).find('='));
    EXPECT_NE(report.find("error[CKP010]"), std::string::npos) << report;
    EXPECT_NE(report.find(key + ": checkpoint"), std::string::npos) << report;
  }
  const Options regrouped =
      adapted_run({"peft.method=dora", "trainable.train=[\"mel_head\"]",
                   R"(optimizer.groups=[{"name":"m","match":["lora_magnitude_vector"],"weight_decay":0}])"});
  const std::string report = refusal(regrouped, folder.file("run"));
  for (const char* part : {"optimizer.groups", "trainable.train", "--allow-change groups"}) {
    EXPECT_NE(report.find(part), std::string::npos) << report;
  }
  EXPECT_EQ(train_here(regrouped, folder.file("run"), "auto", 2, {"groups"}), ExitStatus::kOk);
  EXPECT_NE(refusal(adapted_run({"peft.method=dora", "train.batch_size=6"}), folder.file("run")).find("--allow-change"),
            std::string::npos);
}

TEST(PeftRefusals, WhatCannotTakeEffect) {
  const TemporaryFolder folder;
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"peft.method=adalora"}, "PFT003"},
      {{"peft.method=adalora", "peft.pruning_steps=[3,10]"}, "PFT003"},
      {{"peft.method=adalora", "peft.pruning_steps=[5,5]"}, "PFT003"},
      {{"peft.method=adalora", "peft.pruning_steps=[50]", "optimizer.total_steps=100"}, "the run ends at step 10"},
      {{"peft.method=adalora", "peft.pruning_steps=[5]", "peft.target_budget=49"}, "out of reach"},
      {{"peft.method=adalora", "peft.tinit=9", "peft.tfinal=3", "peft.delta_t=1", "peft.target_rank=2"},
       "tfinal is a duration"},
      {{"peft.method=dora", "trainable.train=[\"attn.c_attn\"]"}, "which carries an adapter"},
      {{"peft.method=dora", "peft.target_modules=[\"conditioning_encoder\"]"}, "precomputed conditioning"},
      {{"peft.method=dora", "peft.rank_pattern={\"nothing\":3}"}, "matches none of the adapted modules"},
      {{"peft.method=dora", "peft.lora_dropout=0.1", "train.engine=fused"}, "CFG017"},
      {{"peft.method=lora", concat("init.peft_adapter=", data_path("fixtures/peft/dora"))}, "holds dora adapters"},
      {{concat("init.peft_adapter=", data_path("fixtures/peft/dora"))}, "peft.method is null"},
      {{"peft.method=adalora", "peft.pruning_steps=[5]",
        concat("init.peft_adapter=", data_path("fixtures/peft/adalora"))},
       "allocated already"}};
  for (const auto& [sets, expected] : cases) {
    const std::string report = refusal(adapted_run(sets), folder.file("run"));
    EXPECT_NE(report.find(expected), std::string::npos) << join(sets, " ") << "\n" << report;
  }
}

TEST(PeftRefusals, AFrozenTextTableWithTokensTheBaseNeverSaw) {
  const TemporaryFolder folder;
  const std::string base = testing::write_smaller_vocabulary(folder.file("base.pth"), 161);
  const std::vector<std::string> sets = {"peft.method=dora", concat("init.from=", base),
                                         concat("data.base_tokenizer=", data_path("fixtures/tokenizer/base.model"))};
  const std::string report = refusal(adapted_run(sets), folder.file("frozen"));
  for (const char* part : {"error[CFG018]", "never saw", "trainable.train"}) {
    EXPECT_NE(report.find(part), std::string::npos) << report;
  }
  EXPECT_EQ(train_here(adapted_run(with(sets, {"trainable.train=[\"wte\"]"})), folder.file("a"), "auto", 1),
            ExitStatus::kOk);
  EXPECT_EQ(train_here(adapted_run(with(sets, {"peft.target_modules=[\"wte\"]"})), folder.file("b"), "auto", 1),
            ExitStatus::kOk);
}

TEST(Ewc, KeepsTheWeightsNearTheirStart) {
  const TemporaryFolder folder;
  const std::string fisher = testing::write_fixture_fisher(folder.file("fisher.pth"), 1);
  double drift[3];
  int i = 0;
  for (const char* lambda : {"0", "1", "100"}) {
    const std::string directory = folder.file(concat("lambda", lambda));
    ASSERT_EQ(train_here(adapted_run({"peft.method=dora", "ewc.enabled=true", concat("ewc.fisher=", fisher),
                                      concat("ewc.lambda=", lambda), "train.log_interval=10", "train.grad_clip=0"}),
                         directory),
              ExitStatus::kOk);
    drift[i++] = metrics_of(directory, "train").back().at("ewc_drift");
  }
  EXPECT_LT(drift[1], drift[0]);
  EXPECT_LT(drift[2], drift[1]);
}

TEST(Ewc, AveragesSeeWhatTheProximalStepLeft) {
  // With decay 0 the average is the last state; the optimizer's own pass would average what the step before left.
  const TemporaryFolder folder;
  const std::string fisher = testing::write_fixture_fisher(folder.file("fisher.pth"), 1);
  ASSERT_EQ(
      train_here(small_run({"ewc.enabled=true", concat("ewc.fisher=", fisher), "ewc.lambda=100", "ewc.mode=proximal",
                            "ema.enabled=true", "ema.decay=0", "ema.warmup=false", "train.max_steps=4"}),
                 folder.file("run")),
      ExitStatus::kOk);
  const LoadedFile saved = read_tensor_file(folder.file("run/latest.pt"));
  for (const auto& [key, value] : saved.root.at("ema_state").entries()) {
    EXPECT_TRUE(identical(value, saved.root.at("model").at(key.as_string()))) << key.as_string();
  }
}

TEST(Ewc, ATableOfTheFusedEngineForgetsThePullOfTheWindowBefore) {
  // Rows that no batch touched get the pull alone; both engines must agree on it over several steps.
  const TemporaryFolder folder;
  const std::string fisher = testing::write_fixture_fisher(folder.file("fisher.pth"), 1);
  std::vector<std::vector<float>> tables;
  for (const char* engine : {"modules", "fused"}) {
    ASSERT_EQ(
        train_here(small_run({"ewc.enabled=true", concat("ewc.fisher=", fisher), "ewc.lambda=10", "model.dropout=0",
                              "train.max_steps=6", "validation.interval=0", "optimizer.learning_rate=1e-3",
                              "optimizer.warmup_steps=0", concat("train.engine=", engine)}),
                   folder.file(engine)),
        ExitStatus::kOk);
    const LoadedFile saved = read_tensor_file(folder.file(std::string(engine) + "/latest.pt"));
    tables.push_back(to_float_vector(saved.root.at("model").at("text_embedding.weight").as_tensor()));
  }
  double largest = 0;
  for (std::size_t i = 0; i < tables[0].size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(tables[0][i]) - tables[1][i]));
  }
  EXPECT_LT(largest, 1e-4);
}

TEST(Ewc, AFisherFileOfOtherWeightsIsRefused) {
  const TemporaryFolder folder;
  const std::string fisher = testing::write_fixture_fisher(folder.file("fisher.pth"), 1.001);
  const std::string report =
      refusal(adapted_run({"peft.method=dora", "ewc.enabled=true", concat("ewc.fisher=", fisher)}), folder.file("run"));
  EXPECT_NE(report.find("error[EWC001]"), std::string::npos) << report;
  EXPECT_NE(report.find("other weights"), std::string::npos) << report;
}

TEST(Ewc, ABaseWithFewerTokensProtectsTheRowsItHas) {
  const TemporaryFolder folder;
  const std::string base = testing::write_smaller_vocabulary(folder.file("base.pth"), 161);
  const std::string fisher = testing::write_fixture_fisher(folder.file("fisher.pth"), 1, 1, base);
  for (const char* rows : {"romanised_mean", "random"}) {  // the base's spare row moves to the end; it stays
    const Options options = adapted_run({"peft.method=dora", "trainable.train=[\"wte\",\"lm_head\"]",
                                         concat("init.from=", base), concat("init.new_rows=", rows),
                                         concat("data.base_tokenizer=", data_path("fixtures/tokenizer/base.model")),
                                         "ewc.enabled=true", concat("ewc.fisher=", fisher), "ewc.lambda=1"});
    ASSERT_EQ(train_here(options, folder.file(rows), "auto", 2), ExitStatus::kOk) << rows;
    EXPECT_EQ(train_here(options, folder.file(rows), "auto", 3), ExitStatus::kOk) << rows;
  }
}

TEST(Ewc, AnotherFisherFileCountsAsAnotherLoss) {
  const TemporaryFolder folder;
  const auto options = [&](const std::string& fisher) {
    return adapted_run({"peft.method=dora", "ewc.enabled=true", concat("ewc.fisher=", fisher)});
  };
  const std::string first = testing::write_fixture_fisher(folder.file("first.pth"), 1, 1);
  const std::string copy = testing::write_fixture_fisher(folder.file("copy.pth"), 1, 1);
  const std::string other = testing::write_fixture_fisher(folder.file("other.pth"), 1, 2);
  ASSERT_EQ(train_here(options(first), folder.file("run"), "auto", 1), ExitStatus::kOk);
  EXPECT_NE(refusal(options(other), folder.file("run")).find("--allow-change loss"), std::string::npos);
  EXPECT_EQ(train_here(options(copy), folder.file("run"), "auto", 2), ExitStatus::kOk);
  EXPECT_EQ(train_here(options(other), folder.file("run"), "auto", 3, {"loss"}), ExitStatus::kOk);
}

}  // namespace
}  // namespace train_gpt_v2
