// What a run with adapters leaves behind, used by eval, merge, export and fisher as a user would.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "support/fixture_files.h"
#include "support/fixture_run.h"
#include "train_gpt_v2/adapt/ewc.h"
#include "train_gpt_v2/app/eval_command.h"
#include "train_gpt_v2/app/export_command.h"
#include "train_gpt_v2/app/fisher_command.h"
#include "train_gpt_v2/app/inspect_command.h"
#include "train_gpt_v2/app/merge_command.h"
#include "train_gpt_v2/app/sample_command.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using testing::fixture_options;
using testing::TemporaryFolder;
using testing::train_here;
using Json = nlohmann::json;

class AdaptedRun : public ::testing::Test {
 protected:
  AdaptedRun() { at::set_num_threads(1); }

  static Json evaluate(const ModelRequest& model) {
    EvalRequest request;
    request.model = model;
    request.json = true;
    std::ostringstream out;
    run_eval(request, out);
    return Json::parse(out.str());
  }
  // The codes of one pair, greedily decoded.
  std::vector<std::int64_t> spoken(const ModelRequest& model) {
    SampleRequest request;
    request.model = model;
    request.cases = folder_.write("cases.jsonl",
                                  R"({"id": "one", "text_ids": [5, 9, 31], "prompt": "spk000_000006__spk000_000004"})");
    request.manifests = {data_path("fixtures/data/val_pairs.jsonl")};
    request.folder = folder_.file("spoken");
    request.decoding = shipped_decoding();
    request.decoding.greedy = true;
    request.decoding.num_beams = 1;
    request.decoding.max_codes = 12;
    std::ostringstream out;
    EXPECT_EQ(run_sample(request, out), ExitStatus::kOk);
    return Json::parse(read_file(request.folder + "/samples.jsonl", 1 << 20)).at("codes");
  }
  static ModelRequest checkpoint(const std::string& path, const std::string& weights = "") {
    ModelRequest request;
    request.checkpoint = path;
    request.weights = weights;
    return request;
  }
  static void expect_same(const Json& a, const Json& b, double tolerance) {
    for (const char* key : {"text_loss", "mel_loss"})
      EXPECT_NEAR(a[key].get<double>(), b[key].get<double>(), tolerance) << key;
  }

  TemporaryFolder folder_;
};

TEST_F(AdaptedRun, EvalMergeAndExportAgree) {
  const std::vector<std::vector<std::string>> kinds = {
      {"peft.method=dora", "peft.use_rslora=true", R"(peft.rank_pattern={"mlp.c_fc": 3})"},
      {"peft.method=lora", R"(peft.target_modules=["attn.c_attn", "text_embedding"])"},
      {"peft.method=dora_adalora", "peft.pruning_steps=[1,3]", "peft.target_budget=6"}};
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    SCOPED_TRACE(kinds[i][0]);
    std::vector<std::string> sets = kinds[i];
    sets.insert(sets.end(), {"peft.rank=4", R"(trainable.train=["text_head.weight", "mel_embedding"])",
                             "ema.enabled=true", "ema.decay=0.5", "train.max_steps=4", "optimizer.warmup_steps=0",
                             "optimizer.learning_rate=0.02", "validation.interval=2"});
    const std::string run = folder_.file("run" + std::to_string(i));
    ASSERT_EQ(train_here(fixture_options(sets), run), ExitStatus::kOk);
    const Json raw = evaluate(checkpoint(run + "/latest.pt", "raw")),
               ema = evaluate(checkpoint(run + "/latest.pt", "ema"));
    EXPECT_GT(std::abs(raw["mel_loss"].get<double>() - ema["mel_loss"].get<double>()), 1e-3);
    // What validation measured while training is what the file gives.
    for (const Json& line : testing::metrics_of(run, "validation")) {
      if (line["step"] == 4 && line["split"] == "all") expect_same(line, line["weights"] == "ema" ? ema : raw, 1e-6);
    }
    evaluate(checkpoint(run + "/best_model.pth"));
    for (const char* weights : {"raw", "ema"}) {
      SCOPED_TRACE(weights);
      const Json& expected = weights == std::string("raw") ? raw : ema;
      MergeRequest merge;
      merge.model = checkpoint(run + "/latest.pt", weights);
      merge.output = folder_.file("merged.pth");
      std::ostringstream out;
      ASSERT_EQ(run_merge(merge, out), ExitStatus::kOk);
      expect_same(evaluate(checkpoint(merge.output)), expected, 1e-6);
      EXPECT_EQ(read_tensor_file(merge.output).root.at("model").size(), 215u);
      EXPECT_EQ(spoken(merge.model), spoken(checkpoint(merge.output)));

      ExportRequest plain{checkpoint(run + "/latest.pt", weights), folder_.file("gpt.pth"), "gpt.pth", ""};
      run_export(plain);
      ModelRequest exported = checkpoint(plain.output);
      exported.config = run + "/config.effective.json";
      expect_same(evaluate(exported), expected, 1e-6);

      ExportRequest peft{checkpoint(run + "/latest.pt", weights), folder_.file("peft"), "peft", ""};
      run_export(peft);
      ModelRequest on_base = checkpoint(data_path("fixtures/model/gpt.pth"));
      on_base.config = run + "/config.effective.json";
      on_base.sets = {"init.peft_adapter=" + peft.output};
      expect_same(evaluate(on_base), expected, 5e-6);  // the factors were rounded once more
    }
  }
}

TEST_F(AdaptedRun, TwoOfItsCheckpointsAreCompared) {
  const std::string run = folder_.file("run");
  ASSERT_EQ(train_here(fixture_options({"peft.method=dora", "peft.rank=4", "train.max_steps=4",
                                        "optimizer.warmup_steps=0", "validation.interval=0", "checkpoint.interval=2"}),
                       run),
            ExitStatus::kOk);
  const auto compare = [&](const std::string& a, const std::string& b) {
    std::ostringstream out;
    const std::size_t count = run_inspect_compare(run + a, run + b, true, true, out);
    const Json document = Json::parse(out.str());
    EXPECT_EQ(document["differences"].size(), count);
    return document;
  };
  EXPECT_EQ(compare("/model_step4.pth", "/latest.pt")["differences"].size(), 0u);
  const Json steps = compare("/model_step2.pth", "/model_step4.pth");
  std::map<std::string, int> differing;
  for (const Json& one : steps["differences"])
    ++differing[one["name"].get<std::string>().substr(0, one["name"].get<std::string>().find('.'))];
  EXPECT_EQ(differing["base_model"], 0) << steps.dump(1).substr(0, 2000);
  EXPECT_EQ(differing["adapter"], 2 * 4 * 3);  // A, B and magnitudes of four projections in two blocks
}

TEST_F(AdaptedRun, AFisherFileFitsTheRunItIsFor) {
  // A base with fewer text rows than the tokenizer: the rows that are made for the run are those it was measured on.
  testing::write_smaller_vocabulary(folder_.file("base.pth"), 161);
  const std::vector<std::string> sets = {"init.from=" + folder_.file("base.pth"),
                                         "data.base_tokenizer=" + data_path("fixtures/tokenizer/base.model"),
                                         "peft.method=dora",
                                         "peft.rank=4",
                                         R"(trainable.train=["wte", "lm_head"])",
                                         "train.max_steps=3",
                                         "validation.interval=0"};
  FisherRequest request;
  request.model = checkpoint(folder_.file("base.pth"));
  request.model.config = folder_.write("run.json", effective_json(fixture_options(sets)));
  request.manifests = {data_path("fixtures/data/val_pairs.jsonl")};
  request.output = folder_.file("fisher.safetensors");
  std::ostringstream out;
  ASSERT_EQ(run_fisher(request, out), ExitStatus::kOk);
  std::vector<std::string> guarded = sets;
  guarded.insert(guarded.end(), {"ewc.enabled=true", "ewc.fisher=" + request.output, "ewc.lambda=1000"});
  EXPECT_EQ(train_here(fixture_options(guarded), folder_.file("run")), ExitStatus::kOk);
  // Other start weights are refused: the same file, but rows made in another way.
  guarded.push_back("init.new_rows=mean_noise");
  try {
    train_here(fixture_options(guarded), folder_.file("other"));
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "EWC001") << error.report();
  }
}

}  // namespace
}  // namespace train_gpt_v2
