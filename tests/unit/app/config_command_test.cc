// `config show|diff|schema|import|completion` as functions.
#include "train_gpt_v2/app/config_command.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "support/test_files.h"
#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::TemporaryFolder;

std::string show(const std::string& file, ConfigView view, bool json = false,
                 const std::vector<std::string>& sets = {}) {
  std::ostringstream out;
  run_config_show({file, "", sets}, view, json, out);
  return out.str();
}

TEST(ConfigShow, WhatACheckpointHolds) {
  const TemporaryFolder folder;
  Value ours = Value::dict(), root = Value::dict();
  ours.set("config", R"({"train": {"seed": 77}})");
  root.set("train_gpt_v2", ours);
  const std::string checkpoint = folder.file("model_step1.pth");
  write_torch_file(checkpoint, root);
  std::ostringstream out;
  run_config_show({"", checkpoint, {"train.batch_size=3"}}, ConfigView::kMinimal, false, out);
  EXPECT_EQ(nlohmann::json::parse(out.str()),
            nlohmann::json::parse(R"({"train": {"seed": 77, "batch_size": 3}, "validation": {"interval": 0}})"));
  write_torch_file(checkpoint, Value::dict());
  EXPECT_THROW(run_config_show({"", checkpoint, {}}, ConfigView::kMinimal, false, out), Error);
}

TEST(ConfigShow, TheThreeViews) {
  const TemporaryFolder folder;
  folder.write("base.json", R"({"train": {"seed": 5}})");
  const std::string file = folder.write("am.json", "{\"extends\": \"base.json\",\n \"train\": {\"tf32\": false}}");
  const std::vector<std::string> sets{"train.max_steps=2000"};
  EXPECT_EQ(Json::parse(show(file, ConfigView::kEffective, false, sets))["train"]["max_steps"], 2000);
  EXPECT_EQ(Json::parse(show(file, ConfigView::kMinimal, false, sets)).dump(),
            R"({"train":{"max_steps":2000,"seed":5,"tf32":false},"validation":{"interval":0}})");
  const std::string table = show(file, ConfigView::kProvenance, false, sets);
  EXPECT_THAT(table, HasSubstr("extends " + folder.file("base.json") + ":1:12"));
  EXPECT_THAT(table, HasSubstr(file + ":2:12"));
  const Json document = Json::parse(show(file, ConfigView::kProvenance, true, sets));
  EXPECT_EQ(document["train.max_steps"].dump(), R"({"value":2000,"from":"--set"})");
  EXPECT_EQ(document["train.batch_size"]["from"], "default");
  EXPECT_NO_THROW(load_config_json(show("", ConfigView::kEffective), "defaults"));
}

TEST(ConfigDiff, ListsKeysWithBothValuesAndTheirClass) {
  const TemporaryFolder folder;
  const std::string a = folder.write("a.json", R"({"train": {"seed": 5}})");
  const std::string b = folder.write("b.json", R"({"train": {"seed": 6}, "ema": {"enabled": true}})");
  std::ostringstream text, json, none;
  EXPECT_EQ(run_config_diff(a, b, false, text), 2u);
  EXPECT_THAT(text.str(), HasSubstr("train.seed"));
  EXPECT_EQ(run_config_diff(a, b, true, json), 2u);
  EXPECT_EQ(
      Json::parse(json.str()).dump(),
      R"([{"key":"train.seed","a":5,"b":6,"resume":"order"},{"key":"ema.enabled","a":false,"b":true,"resume":"free"}])");
  EXPECT_EQ(run_config_diff(a, a, false, none), 0u);
  EXPECT_EQ(none.str(), "no differences\n");
}

TEST(ConfigSchema, ToTheStreamOrIntoAFolder) {
  const TemporaryFolder folder;
  std::ostringstream out, names;
  run_config_schema("", out);
  EXPECT_EQ(out.str(), json_schema());
  run_config_schema(folder.file("new/configs"), names);
  EXPECT_EQ(read_file(folder.file("new/configs/schema.json"), 1 << 20), json_schema());
  EXPECT_EQ(read_file(folder.file("new/configs/README.md"), 1 << 20), reference_page());
}

TEST(ConfigImport, TheReferenceFile) {
  std::ostringstream out;
  run_config_import(data_path("fixtures/model/config.yaml"), out);
  EXPECT_THAT(out.str(), HasSubstr("// left out: dataset.sample_rate"));
  EXPECT_THAT(out.str(), HasSubstr("// left out: version"));
  const LoadedConfig loaded = load_config_json(out.str(), "imported");
  const Json expected = Json::parse(read_file(data_path("fixtures/model/config.json"), 1 << 20));
  for (const auto& [name, value] : expected["constructor"].items()) {
    const OptionRow* row = find_option("model." + name);
    if (!row || row->accepted_only) continue;
    EXPECT_EQ(row->get(loaded.options), value) << name;
  }
  EXPECT_EQ(loaded.options.model.emo_condition_module.perceiver_mult, 0.015625);
  EXPECT_EQ(loaded.options.data.tokenizer, absolute_path(data_path("fixtures/tokenizer/extended.model")));
  EXPECT_EQ(loaded.options.init.from, absolute_path(data_path("fixtures/model/gpt.pth")));
}

std::string import_failure(const std::string& yaml) {
  const TemporaryFolder folder;
  std::ostringstream out;
  try {
    run_config_import(folder.write("config.yaml", yaml), out);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "CFG004") << error.report();
    return error.report();
  }
}

TEST(ConfigImport, RefusesWhatItCannotRead) {
  EXPECT_THAT(import_failure("gpt: [1,"), HasSubstr("config.yaml:"));
  EXPECT_THAT(import_failure("- 1\n- 2\n"), HasSubstr("not a YAML mapping"));
  EXPECT_THAT(import_failure(""), HasSubstr("not a YAML mapping"));
  EXPECT_THAT(import_failure("model: 3\n"), HasSubstr("no gpt: section"));
  EXPECT_THAT(import_failure("gpt: 3\n"), HasSubstr("no gpt: section"));
  EXPECT_THAT(import_failure("gpt:\n  types: 2\n"), HasSubstr("config.yaml:2:10"));
  EXPECT_THAT(import_failure("gpt:\n  model_dim: wide\n"), HasSubstr("\"wide\" is not allowed"));
  EXPECT_THAT(import_failure("gpt:\n  model_dim: 512\n  heads: 7\n"), HasSubstr("does not divide"));
  EXPECT_THAT(import_failure("gpt:\n  condition_type: campplus\n"), HasSubstr("condition_type"));
  EXPECT_THAT(import_failure("gpt:\n  heads: [2]\n"), HasSubstr("gpt.heads is not a single value"));
  EXPECT_THAT(import_failure("gpt:\n  condition_module: 3\n"), HasSubstr("gpt.condition_module is not a mapping"));
  EXPECT_THAT(import_failure("gpt: {}\ndataset:\n  bpe_model: [1]\n"), HasSubstr("dataset.bpe_model is not a path"));
  EXPECT_THAT(import_failure("? [1]\n: 2\ngpt: {}\n"), HasSubstr("not a plain name"));
  EXPECT_THAT(import_failure("gpt: {}\n\xff: 1\n"), HasSubstr("UTF-8"));
  EXPECT_THAT(import_failure("&a gpt: *b\n"), HasSubstr("error[CFG004]"));
  EXPECT_THAT(import_failure(std::string(100000, '[')), HasSubstr("error[CFG004]"));
}

TEST(ConfigImport, NotesStayComments) {
  const TemporaryFolder folder;
  std::ostringstream out;
  run_config_import(folder.write("config.yaml", "gpt:\n  \"a\\n{}\": 1\n  heads: 20\n\"x\\ny\": 2\n"), out);
  EXPECT_NO_THROW(load_config_json(out.str(), "imported"));
  EXPECT_THAT(out.str(), HasSubstr("// left out: gpt.a {}"));
}

TEST(ConfigCompletion, EachShellGetsCommandsAndKeys) {
  const std::vector<CommandWords> commands{{"train", "trains the user's model", {"--resume", "--output-dir"}, {}},
                                           {"eval", "losses", {"--checkpoint"}, {}}};
  for (const char* shell : {"bash", "zsh", "fish"}) {
    std::ostringstream out;
    run_config_completion(shell, commands, out);
    for (const char* word : {"train", "eval", "output-dir", "optimizer.learning_rate"}) {
      EXPECT_THAT(out.str(), HasSubstr(word)) << shell;
    }
  }
  std::ostringstream out;
  EXPECT_THROW(run_config_completion("csh", commands, out), Error);
}

// The bash script is run by a real bash.
TEST(ConfigCompletion, BashCompletes) {
  const TemporaryFolder folder;
  std::ostringstream script;
  const CommandWords train{"train", "t", {"--resume", "--output-dir"}, {}}, eval{"eval", "e", {}, {}};
  run_config_completion("bash", {train, eval, {"config", "c", {"--json"}, {"show", "schema"}}}, script);
  const std::string file = folder.write("completion.bash", script.str());
  const auto completed = [&](const std::string& words, int index) {
    const std::string result = folder.file("result");
    const std::string command =
        concat("bash -c 'compopt() { :; }; source ", file, "; COMP_WORDS=(", words, "); COMP_CWORD=", index,
               "; _train_gpt_v2; echo \"${COMPREPLY[*]}\"' > ", result);
    EXPECT_EQ(std::system(command.c_str()), 0);
    return std::string(trim(read_file(result, 1 << 20)));
  };
  EXPECT_EQ(completed("train_gpt_v2 tr", 1), "train");
  EXPECT_EQ(completed("train_gpt_v2 train --re", 2), "--resume");
  EXPECT_EQ(completed("train_gpt_v2 train --set train.ba", 3), "train.batch_size=");
  EXPECT_EQ(completed("train_gpt_v2 config s", 2), "show schema");
  EXPECT_EQ(completed("train_gpt_v2 config show --j", 3), "--json");
}

}  // namespace
}  // namespace train_gpt_v2
