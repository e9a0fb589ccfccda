// Loading: order of values, everything wrong reported at once and at its place, paths, and the way back to JSON.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "support/test_files.h"
#include "train_gpt_v2/config/json_text.h"
#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TemporaryFolder;

// The report of the error that loading gives, or "" when there is none.
std::string failure(const std::string& text, const std::vector<std::string>& sets = {}) {
  try {
    load_config_json(text, "t.json", sets, "/base");
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), ExitStatus::kConfig);
    return error.report();
  }
}

TEST(LoadConfig, DefaultsAreThoseOfTheStructs) {
  const LoadedConfig loaded = load_config_json("{}", "defaults");
  Options expected;
  expected.validation.interval = 0;  // nobody asked for validation, and there is nothing to validate on
  EXPECT_EQ(effective_json(loaded.options), effective_json(expected));
  EXPECT_EQ(loaded.provenance.at("train.batch_size"), "default");
  EXPECT_THAT(loaded.warnings, IsEmpty());
}

TEST(LoadConfig, LaterSourcesWin) {
  const TemporaryFolder folder;
  folder.write("base/one.json",
               R"({"train": {"seed": 1, "batch_size": 1, "grad_accumulation": 1, "log_interval": 1}})");
  folder.write("base/two.json", R"({"train": {"seed": 2, "batch_size": 2, "grad_accumulation": 2}})");
  const std::string file = folder.write("am.json",
                                        "{ \"$schema\": \"x\",\n"
                                        "  \"extends\": [\"base/one.json\", \"base/two.json\"],  // later wins\n"
                                        "  \"train\": {\"seed\": 3,\n"
                                        "    /* two\n lines */ \"batch_size\": 3}}");
  const LoadedConfig loaded = load_config(file, {"train.seed=4", "train.seed=5"});
  EXPECT_EQ(loaded.name, "am");
  EXPECT_EQ(loaded.options.train.seed, 5);
  EXPECT_EQ(loaded.options.train.batch_size, 3);
  EXPECT_EQ(loaded.options.train.grad_accumulation, 2);
  EXPECT_EQ(loaded.options.train.log_interval, 1);
  EXPECT_EQ(loaded.provenance.at("train.seed"), "--set");
  EXPECT_EQ(loaded.provenance.at("train.batch_size"), file + ":5:11");
  EXPECT_EQ(loaded.provenance.at("train.grad_accumulation"), "extends " + folder.file("base/two.json") + ":1:40");
  EXPECT_THAT(loaded.files, ElementsAre(folder.file("base/one.json"), folder.file("base/two.json"), file));
}

TEST(LoadConfig, PathsAreRelativeToWhoStatesThem) {
  const TemporaryFolder folder;
  folder.write("base/one.json", R"({"data": {"tokenizer": "../tok/am.model", "val_manifests": ["v.jsonl::am"]}})");
  const std::string file = folder.write("runs/am.json", R"({"extends": "../base/one.json", "data": {"train_manifests":
        ["../d/a.jsonl::am", "/abs/b.jsonl@en", "c.jsonl=de"]}, "validation": {"interval": 5}})");
  const Options o = load_config(file, {"init.from=w/gpt.pth"}).options;
  EXPECT_EQ(o.data.tokenizer, folder.file("tok/am.model"));
  EXPECT_THAT(o.data.val_manifests, ElementsAre(folder.file("base/v.jsonl::am")));
  EXPECT_THAT(o.data.train_manifests,
              ElementsAre(folder.file("d/a.jsonl::am"), "/abs/b.jsonl@en", folder.file("runs/c.jsonl=de")));
  EXPECT_EQ(o.init.from, absolute_path("w/gpt.pth"));
  EXPECT_EQ(o.validation.interval, 5);
}

TEST(LoadConfig, AllProblemsAtOnceEachAtItsPlace) {
  const std::string report = failure(R"({
  "train": {
    "learning_rte": 1,
    "batch_size": "many",
    "log_interval": -1
  },
  "sampler": {"mode": "buckts", "boundaries": [32, "x"]},
  "checkpoint": {"keep": 2},
  "model": {"heads": 7, "condition_module": {"num_blcks": 1}},
  "oprimizer": {}
})",
                                     {"optimizer.betas=[0.9]", "ema.decay=1"});
  EXPECT_THAT(report, HasSubstr("error[CFG001]: the configuration has 11 problems"));
  EXPECT_THAT(
      report,
      HasSubstr("t.json:3:5: unknown key \"learning_rte\" in \"train\"; did you mean optimizer.learning_rate?"));
  EXPECT_THAT(report,
              HasSubstr("t.json:4:19: train.batch_size: \"many\" is not allowed; \"auto\" or integer is expected"));
  EXPECT_THAT(report, HasSubstr("t.json:5:21: train.log_interval: -1 is outside 0 <= x <= 1000000000"));
  EXPECT_THAT(report, HasSubstr("t.json:7:23: sampler.mode: \"buckts\" is not one of \"mega_batch\", \"buckets\""));
  EXPECT_THAT(report, HasSubstr("did you mean \"buckets\"?"));
  EXPECT_THAT(report, HasSubstr("t.json:7:52: sampler.boundaries: \"x\" is not allowed"));
  EXPECT_THAT(report, HasSubstr("t.json:8:26: checkpoint.keep: 2 is outside 3 <= x"));
  EXPECT_THAT(report, HasSubstr("nothing to go back to"));
  EXPECT_THAT(
      report,
      HasSubstr("t.json:9:46: unknown key \"num_blcks\" in \"model.condition_module\"; did you mean \"num_blocks\"?"));
  EXPECT_THAT(report, HasSubstr("t.json:10:3: unknown key \"oprimizer\"; did you mean \"optimizer\"?"));
  EXPECT_THAT(report, HasSubstr("--set optimizer.betas=[0.9]: optimizer.betas: the list has 1 elements, 2 are needed"));
  EXPECT_THAT(report, HasSubstr("--set ema.decay=1: ema.decay: 1 is outside 0 <= x < 1"));
  EXPECT_THAT(report, HasSubstr("t.json:9:13: model.heads (7) does not divide model.model_dim (1280)"));
}

TEST(LoadConfig, OneProblemIsTheErrorItself) {
  EXPECT_EQ(failure(R"({"train": {"precision": "bf61"}})"),
            "error[CFG001]: train.precision: \"bf61\" is not one of \"auto\", \"fp32\", \"bf16\", \"fp16\"\n"
            "  --> t.json:1:25\n"
            "  fix: did you mean \"bf16\"?\n");
}

struct Case {
  std::string text;
  std::string expected;
};

TEST(LoadConfig, EachProblemSaysWhatIsWrong) {
  const std::vector<Case> cases{
      {R"([])", "a configuration is a JSON object"},
      {R"({"train": 5})", "\"train\" is a section"},
      {R"({"train": null})", "\"train\" is a section"},
      {R"({"train": {"seed": 1, "seed": 2}})", "t.json:1:23\n"},
      {R"({"train": {"seed": 1}, "train": {"seed": 2}})", "\"train\" is given twice"},
      {R"({"train": {"seed": null}})", "null is not allowed; integer is expected"},
      {R"({"train": {"seed": 1.5}})", "1.5 is not allowed; integer is expected"},
      {R"({"train": {"seed": 1e30}})", "is not allowed; integer is expected"},
      {R"({"train": {"tf32": "true"}})", "write it without quotes"},
      {R"({"train": {"tf32": 1}})", "1 is not allowed; true or false is expected"},
      {R"({"train": {"batch_size": "auto"}})", "needs train.effective_batch"},
      {R"({"train": {"batch_size": "auto", "effective_batch": 8, "grad_accumulation": 2}})", "is chosen together"},
      {R"({"train": {"batch_size": "some"}})", "\"some\" is not allowed; \"auto\" or integer is expected"},
      {R"({"train": {"batch_size": "16"}})", "write it without quotes"},
      {R"({"train": {"batch_size": 0}})", "0 is outside 1 <= x"},
      {R"({"train": {"max_hours": 0}})", "0 is outside > 0"},
      {R"({"train": {"num_threads": 2048}})", "2048 is outside 1 <= x <= 2047"},
      {R"({"data": {"train_manifests": "a.jsonl"}})", "write it in brackets: [\"a.jsonl\"]"},
      {R"({"data": {"tokenizer": ""}})", "write null for none"},
      {R"({"data": {"tokenizer": "a\u0000"}})", "zero character"},
      {R"({"data": {"language": "Amharic!"}})", "is not a language code"},
      {R"({"data": {"replay": [{"manifest": "m.jsonl"}]}})", "\"share\" is missing"},
      {R"({"data": {"replay": [{"manifest": "m.jsonl", "share": 0.5, "shre": 1}]}})", "did you mean \"share\"?"},
      {R"({"data": {"replay": [{"manifest": "m.jsonl", "share": 1}]}})", "1 is outside 0 < x < 1"},
      {R"({"data": {"replay": [{"manifest": "m", "share": 0.5}, {"manifest": "n", "share": 0.5}]}})", "add up to 1"},
      {R"({"data": {"order_file": "o", "replay": [{"manifest": "m", "share": 0.5}]}})", "cannot be combined"},
      {R"({"sampler": {"boundaries": [32, 32]}})", "do not rise"},
      {R"({"sampler": {"mode": "buckets", "boundaries": []}})", "needs sampler.boundaries"},
      {R"({"model": {"stop_mel_token": 8192}})", "are both 8192"},
      {R"({"model": {"number_mel_codes": 8193}})",
       "stop_mel_token (8193) is outside the table of model.number_mel_codes (8193)"},
      {R"({"model": {"start_text_token": 1}})", "are both 1"},
      {R"({"model": {"condition_module": {"attention_heads": 7}}})", "does not divide output_size (512)"},
      {R"({"model": {"condition_module": {"output_size": 5, "attention_heads": 1}}})", "is odd"},
      {R"({"model": {"emo_condition_module": {"perceiver_mult": 0.0001}}})", "without a unit"},
      {R"({"model": {"types": 2}})", "accepted with 1 only"},
      {R"({"model": {"use_mel_codes_as_input": false}})", "accepted with true only"},
      {R"({"model": {"checkpointing": "yes"}})", "true or false is expected"},
      {R"({"model": {"dropout": 1}})", "1 is outside 0 <= x < 1"},
      {R"({"optimizer": {"betas": [0.9, 1.0]}})", "1.0 is outside 0 <= x < 1"},
      {R"({"optimizer": {"groups": [{"name": "a", "match": ["x"]}, {"name": "a", "match": ["y"]}]}})", "appears twice"},
      {R"({"optimizer": {"groups": [{"name": "default", "match": ["x"]}]}})", "reserved name"},
      {R"({"optimizer": {"groups": [{"name": "a", "match": []}]}})", "matches nothing"},
      {R"({"optimizer": {"groups": [{"name": "a", "match": ["x"], "learning_rate": 1, "lr_scale": 1}]}})", "has both"},
      {R"({"optimizer": {"groups": [{"name": "a", "match": ["x..y"]}]}})", "has an empty segment"},
      {R"({"trainable": {"freeze": ["conditioning encoder"]}})", "no module name has"},
      {R"({"trainable": {"text_rows": "new_only", "base_text_rows": 12001}})", "leaves no text row to train"},
      {R"({"train": {"epochs": null}})", "the run has no end"},
      {R"({"train": {"text_loss_weight": 0, "mel_loss_weight": 0}})", "nothing would be learned"},
      {R"({"validation": {"interval": 10}})", "data.val_manifests is empty"},
      {R"({"early_stopping": {"enabled": true}})", "needs validation"},
      {R"({"checkpoint": {"best_metrics": ["loss"]}})", "is not a validation metric"},
      {R"({"checkpoint": {"best_metrics": ["mel_loss@language:"]}})", "has a split that is none of"},
      {R"({"checkpoint": {"best_metrics": ["mel_loss@language:am"]}})", "is never measured"},
      {R"({"checkpoint": {"best_metrics": ["mel_loss", "mel_loss"]}})", "twice"},
      {R"({"extends": "x.json"})", "cannot be used here"},
      {R"({"peft": {"method": "qlora"}})", "is not one of \"lora\", \"dora\", \"adalora\", \"dora_adalora\""},
      {R"({"peft": {"rank_pattern": {"mlp..c_fc": 8}}})", "has an empty segment"},
      {R"({"peft": {"rank_pattern": {"mlp.c_fc": 0}}})", "0 is outside 1 <= x"},
      {R"({"peft": {"rank_pattern": [8]}})", "is not an object of module patterns"},
      {R"({"peft": {"method": "dora", "pruning_steps": [5]}})", "which never prunes"},
      {R"({"peft": {"method": "lora", "target_modules": []}})", "peft.target_modules is empty"},
      {R"({"peft": {"tinit": 5}})", "peft.method is null, which never prunes"},
      {R"({"peft": {"method": "adalora", "pruning_steps": [5], "use_rslora": true}})", "has no meaning"},
      {R"({"ewc": {"enabled": true}})", "ewc.fisher names no file"},
      {R"({"ewc": {"lambda": "automatic"}})", "\"auto\" or number is expected"},
      {R"({"ewc": {"enabled": true, "fisher": "f"}, "peft": {"method": "lora", "lora_dropout": 0.1}})",
       "lambda \"auto\" needs"},
      {R"({"": 1})", "unknown key \"\""},
      {R"({"pfet": {"rank": 4}})", "unknown key \"pfet\""},
      {R"({"train": {"peft": [[[[1]]]]}})", "unknown key \"peft\""},
  };
  for (const Case& one : cases) {
    const std::string report = failure(one.text);
    EXPECT_THAT(report, HasSubstr(one.expected)) << one.text;
    EXPECT_THAT(report, HasSubstr("t.json")) << one.text;
    EXPECT_THAT(report, ::testing::Not(HasSubstr("problems"))) << one.text << " should be one problem";
  }
}

TEST(LoadConfig, OldNamesExplainThemselves) {
  const std::vector<Case> cases{
      {R"({"lr": 1})", "optimizer.learning_rate"},
      {R"({"optimizer": {"lr": 1}})", "optimizer.learning_rate"},
      {R"({"train": {"lr": 1}})", "optimizer.learning_rate"},
      {R"({"train": {"learning_rate": 1}})", "optimizer.learning_rate"},
      {R"({"optimizer": {"grad_clip": 1}})", "train.grad_clip"},
      {R"({"val_interval": 1})", "validation.interval"},
      {R"({"val-interval": 1})", "validation.interval"},
      {R"({"num_workers": 1})", "data.num_workers"},
      {R"({"num-workers": 1})", "data.num_workers"},
      {R"({"grad_accumulation_steps": 1})", "train.grad_accumulation"},
      {R"({"ema_decay": 1})", "ema.decay"},
      {R"({"keep_checkpoints": 2})", "checkpoint.keep"},
      {R"({"amp": true})", "train.precision"},
      {R"({"train": {"bucket_boundaries": []}})", "sampler.boundaries"},
      {R"({"gpt": {"model_dim": 512}})", "config import"},
      {R"({"resume": "auto"})", "--resume"},
  };
  for (const Case& one : cases) EXPECT_THAT(failure(one.text), HasSubstr("fix: ")) << one.text;
  for (const Case& one : cases) EXPECT_THAT(failure(one.text), HasSubstr(one.expected)) << one.text;
}

TEST(LoadConfig, HintsOfOldNamesPointAtKeysThatExist) {
  for (const char* old_name : {"lr", "val_interval", "save_interval", "ema_decay", "min_delta", "llrd", "n_head", "amp",
                               "base_checkpoint", "bpe_model", "epochs_total"}) {
    const std::string hint = renamed_key_hint(old_name);
    if (hint.empty()) continue;
    const std::size_t start = hint.find("key is ") + 7;
    EXPECT_NE(find_option(hint.substr(start, hint.find_first_of(" ,", start) - start)), nullptr) << hint;
  }
  for (const OptionRow& row : option_rows()) EXPECT_EQ(renamed_key_hint(row.path), "") << row.path;
}

TEST(LoadConfig, SetTakesJsonAndBareWords) {
  const Options o =
      load_config_json("{}", "t",
                       {"train.precision=bf16", "train.max_steps=null", "train.epochs=3", "sampler.boundaries=[1, 2]",
                        "train={\"seed\": 9, \"tf32\": false}", "optimizer.learning_rate=2e-4", "data.language=\"am\"",
                        " train.batch_size = 7", "model.condition_module.num_blocks=2", "train.grad_accumulation=2.0"})
          .options;
  EXPECT_EQ(o.train.precision, "bf16");
  EXPECT_EQ(o.train.epochs, 3);
  EXPECT_EQ(o.train.seed, 9);
  EXPECT_FALSE(o.train.tf32);
  EXPECT_EQ(o.optimizer.learning_rate, 2e-4);
  EXPECT_EQ(o.data.language, "am");
  EXPECT_EQ(o.train.batch_size, 7);
  EXPECT_EQ(o.train.grad_accumulation, 2);
  EXPECT_EQ(o.model.condition_module.num_blocks, 2);
  EXPECT_THAT(o.sampler.boundaries, ElementsAre(1, 2));
}

TEST(LoadConfig, ZeroAndNullSwitchAnIntervalOff) {
  for (const char* off : {"0", "null", "0.0"}) {
    SCOPED_TRACE(off);
    std::vector<std::string> sets;
    for (const char* key : {"validation.interval", "sampling.interval", "train.log_interval", "checkpoint.interval",
                            "checkpoint.interval_minutes", "checkpoint.keep_every"}) {
      sets.push_back(concat(key, "=", off));
    }
    const Options o = load_config_json("{}", "t", sets).options;
    EXPECT_EQ(o.validation.interval, 0);
    EXPECT_EQ(o.sampling.interval, 0);
    EXPECT_EQ(o.train.log_interval, 0);
    EXPECT_EQ(o.checkpoint.interval, 0);
    EXPECT_EQ(o.checkpoint.interval_minutes, std::nullopt);
    EXPECT_EQ(o.checkpoint.keep_every, std::nullopt);
  }
}

TEST(LoadConfig, BadSetsAreAllReported) {
  const std::string report = failure("{}", {"train.seed", "=3", "trian.seed=3", "train.seed=[", "train..seed=1",
                                            "train.seed=\xff", "extends=x.json", "train.seed=3x"});
  EXPECT_THAT(report, HasSubstr("8 problems"));
  EXPECT_THAT(report, HasSubstr("--set train.seed: this is not section.key=VALUE"));
  EXPECT_THAT(report, HasSubstr("--set trian.seed=3: unknown key \"trian\"; did you mean \"train\"?"));
  EXPECT_THAT(report, HasSubstr("--set train.seed=[: the value is not JSON"));
  EXPECT_THAT(report, HasSubstr("--set train.seed=3x: train.seed: \"3x\" is not allowed; integer is expected"));
  EXPECT_THAT(report, HasSubstr("UTF-8"));
}

TEST(LoadConfig, ARefusedValueCausesNoFollowUpComplaint) {
  const std::string report = failure(R"({"model": {"model_dim": "512", "heads": 7}})");
  EXPECT_THAT(report, HasSubstr("model.model_dim: \"512\" is not allowed"));
  EXPECT_THAT(report, ::testing::Not(HasSubstr("does not divide")));
}

TEST(LoadConfig, WarmUpBeyondTheTotalIsAWarning) {
  EXPECT_THAT(load_config_json(R"({"train": {"max_steps": 10}})", "t").warnings,
              ElementsAre(HasSubstr("optimizer.warmup_steps (1000) lies beyond the schedule's total of 10 steps")));
  EXPECT_THAT(load_config_json(R"({"train": {"max_steps": 10}, "optimizer": {"total_steps": 1000}})", "t").warnings,
              IsEmpty());
}

TEST(LoadConfig, ExtendsIsBounded) {
  const TemporaryFolder folder;
  const std::string loop = folder.write("a.json", R"({"extends": "b.json"})");
  folder.write("b.json", R"({"extends": ["./a.json"]})");
  const auto report = [](const std::string& file) {
    try {
      load_config(file);
      return std::string();
    } catch (const Error& error) {
      return error.report();
    }
  };
  EXPECT_THAT(report(loop), HasSubstr("goes round in a circle"));
  for (int i = 0; i < 12; ++i) {
    folder.write(concat("c", i, ".json"), concat("{\"extends\": \"c", i + 1, ".json\"}"));
  }
  EXPECT_THAT(report(folder.file("c0.json")), HasSubstr("too many files extend one another"));
  EXPECT_THAT(report(folder.write("d.json", R"({"extends": 3})")), HasSubstr("is a file name or a list"));
  EXPECT_THAT(report(folder.write("e.json", R"({"extends": ["x.json", 3]})")), HasSubstr("is a file name or a list"));
  EXPECT_THAT(report(folder.write("f.json", R"({"extends": "none.json"})")), HasSubstr("error[IO001]"));
  EXPECT_THAT(report(folder.write("g.json", std::string(kMaxConfigBytes + 1, ' '))), HasSubstr("error[IO004]"));
  EXPECT_THAT(report(folder.file("missing.json")), HasSubstr("error[IO001]"));
  EXPECT_THAT(report(folder.path()), HasSubstr("error[IO"));
}

TEST(LoadConfig, ProblemsOfInheritedFilesNameThatFile) {
  const TemporaryFolder folder;
  folder.write("base.json", "{\"train\":\n {\"sed\": 1}}");
  const std::string file = folder.write("a.json", R"({"extends": "base.json", "train": {"sead": 1}})");
  try {
    load_config(file);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.report(), HasSubstr(folder.file("base.json") + ":2:3: unknown key \"sed\""));
    EXPECT_THAT(error.report(), HasSubstr(file + ":1:36: unknown key \"sead\""));
  }
}

// U3: one wrong letter in any key still leads to the right one.
TEST(LoadConfig, TyposAreRecognised) {
  int tried = 0, right = 0;
  for (const OptionRow& row : option_rows()) {
    const std::string leaf = row.path.substr(row.path.rfind('.') + 1);
    const std::string above = row.path.substr(0, row.path.rfind('.'));
    std::vector<std::string> typos{leaf.substr(0, leaf.size() / 2) + leaf.substr(leaf.size() / 2 + 1), leaf + "s"};
    std::string swapped = leaf;
    std::swap(swapped[1], swapped[2 % leaf.size()]);
    typos.push_back(swapped);
    for (const std::string& typo : typos) {
      if (typo == leaf || typo.size() < 3 || find_option(above + "." + typo)) continue;
      const std::string report = failure("{}", {above + "." + typo + "=1"});
      ++tried;
      if (report.find("\"" + leaf + "\"") != std::string::npos || report.find(row.path) != std::string::npos) ++right;
    }
  }
  EXPECT_GE(tried, 200);
  EXPECT_GE(right, tried * 95 / 100) << right << " of " << tried;
}

}  // namespace
}  // namespace train_gpt_v2
