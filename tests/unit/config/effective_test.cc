// The way back to JSON, differences, and the texts made from the table.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <set>

#include "support/test_files.h"
#include "train_gpt_v2/config/json_text.h"
#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const char* const kTexts[] = {"a",        "ሰላም ዓለም",  "sp ace", "q\"uo\\te",  "tab\tnew\nline",      "gpt.h.*.attn",
                              "mel_top1", "mel_loss", "am",     "x=1::am@en", "vocode {codes} {out}"};

// A random value that the spec allows, as JSON.
Json random_value(const ValueSpec& spec, RandomStream& random, bool element = false) {
  if (!element && spec.nullable && random.below(3) == 0) return nullptr;
  if (!element && spec.list) {
    Json list = Json::array();
    const std::uint64_t count = spec.items != 0 ? spec.items : random.below(4);
    for (std::uint64_t i = 0; i < count; ++i) list.push_back(random_value(spec, random, true));
    return list;
  }
  if (!element && spec.map) {
    Json object = Json::object();
    for (const char* pattern : {"mlp.c_fc", "gpt.h.*.attn", "attn"}) {
      if (random.below(2) == 0) object[pattern] = random_value(spec, random, true);
    }
    return object;
  }
  if (!spec.word.empty() && random.below(3) == 0) return spec.word;
  const double low = spec.minimum.value_or(-1e6);
  const double high = spec.maximum.value_or(1e6);
  const double share = random.uniform();
  switch (spec.kind) {
    case ValueKind::kBool:
      return random.below(2) == 1;
    case ValueKind::kInteger:
      return static_cast<std::int64_t>(low + share * std::min(high - low, random.below(2) == 0 ? 20.0 : 1e15));
    case ValueKind::kNumber: {
      const double scaled = random.below(2) == 0 ? share : share * share * share * 1e-5;
      return std::max(low, low + scaled * (high - low)) + (spec.open_minimum ? 1e-9 : 0);
    }
    case ValueKind::kText:
      if (!spec.choices.empty()) return spec.choices[random.below(spec.choices.size())];
      return kTexts[random.below(std::size(kTexts))];
    case ValueKind::kPath:
      return kTexts[random.below(std::size(kTexts))];
    case ValueKind::kObject:
      break;
  }
  Json object = Json::object();
  for (const FieldSpec& field : spec.fields) object[field.name] = random_value(field.value, random);
  return object;
}

Options random_options(RandomStream& random) {
  Options options;
  options.validation.interval = 0;
  std::vector<const OptionRow*> rows;
  for (int round = 0; round < 2; ++round) {  // some values are allowed only once a later key is set
    for (const OptionRow& row : option_rows()) rows.push_back(&row);
  }
  for (const OptionRow* listed : rows) {
    const OptionRow& row = *listed;
    std::vector<ValueProblem> problems;
    const Json value = check_value(row.value, random_value(row.value, random), "/base", problems);
    if (!problems.empty()) continue;  // a text that this key does not allow
    const Options before = options;
    row.set(options, value);
    bool good = true;
    std::vector<std::string> warnings;
    check_cross_fields(
        options, [&good](const auto&, const auto&, const auto&) { good = false; }, warnings);
    if (!good) options = before;
  }
  return options;
}

TEST(EffectiveJson, GivesTheSameOptionsBack) {
  RandomStream random(11, 0);
  std::map<std::string, std::set<std::string>> seen;
  for (int round = 0; round < 300; ++round) {
    const Options options = random_options(random);
    const std::string text = effective_json(options);
    const Options loaded = load_config_json(text, "effective", {}, "/elsewhere").options;
    ASSERT_EQ(effective_json(loaded), text);
    ASSERT_THAT(diff_options(loaded, options), IsEmpty());
    for (const OptionRow& row : option_rows()) seen[row.path].insert(row.get(options).dump());
    Options from_minimal = load_config_json(minimal_json(options), "minimal").options;
    ASSERT_EQ(effective_json(from_minimal), text);
  }
  for (const OptionRow& row : option_rows()) {
    const bool can_vary = row.value.choices.size() != 1 && !row.accepted_only;
    if (can_vary) {
      EXPECT_GT(seen[row.path].size(), 1u) << row.path << " was never varied";
    }
  }
}

TEST(EffectiveJson, EveryRowReadsWhatItWrites) {
  for (const OptionRow& row : option_rows()) {
    std::vector<ValueProblem> problems;
    const Json value = check_value(row.value, default_value(row), "/", problems);
    EXPECT_THAT(problems, IsEmpty()) << row.path;
    EXPECT_EQ(value, default_value(row)) << row.path;
  }
}

TEST(OptionTable, IsWellFormed) {
  std::set<std::string> paths;
  std::set<std::string> sections;
  for (const OptionSection& section : option_sections()) sections.insert(section.name);
  for (const OptionRow& row : option_rows()) {
    EXPECT_TRUE(paths.insert(row.path).second) << row.path;
    EXPECT_TRUE(sections.contains(std::string(row.section()))) << row.path;
    EXPECT_FALSE(row.doc.empty()) << row.path;
    EXPECT_EQ(find_option(row.path), &row);
    EXPECT_EQ(find_resume_class(resume_class_name(row.resume)), row.resume);
  }
  EXPECT_EQ(find_option("train"), nullptr);
  EXPECT_EQ(find_resume_class("nothing"), std::nullopt);
}

// Interface.md §2: the defaults that people rely on.
TEST(OptionTable, DefaultsOfTheContract) {
  const std::pair<const char*, const char*> expected[] = {{"model.model_dim", "1280"},
                                                          {"model.number_text_tokens", "12000"},
                                                          {"model.max_mel_tokens", "1815"},
                                                          {"model.dropout", "0.1"},
                                                          {"init.from", "null"},
                                                          {"data.train_manifests", "[]"},
                                                          {"data.num_workers", "2"},
                                                          {"data.max_bad_fraction", "0.01"},
                                                          {"sampler.mode", "\"mega_batch\""},
                                                          {"sampler.boundaries", "[32,64,128,256,512]"},
                                                          {"sampler.pool", "50"},
                                                          {"train.batch_size", "64"},
                                                          {"train.max_steps", "null"},
                                                          {"train.epochs", "10"},
                                                          {"train.seed", "1234"},
                                                          {"train.text_loss_weight", "0.2"},
                                                          {"train.grad_clip", "1.0"},
                                                          {"optimizer.learning_rate", "2e-05"},
                                                          {"optimizer.betas", "[0.9,0.999]"},
                                                          {"optimizer.warmup_steps", "1000"},
                                                          {"trainable.base_text_rows", "12000"},
                                                          {"ema.decay", "0.9999"},
                                                          {"validation.interval", "2000"},
                                                          {"validation.gap_alarm", "0.02"},
                                                          {"early_stopping.patience", "5"},
                                                          {"early_stopping.min_improvement", "0.01"},
                                                          {"checkpoint.interval", "1000"},
                                                          {"checkpoint.keep", "3"},
                                                          {"checkpoint.best_metrics", "[\"mel_loss\"]"},
                                                          {"checkpoint.grace_seconds", "120.0"},
                                                          {"logging.progress", "\"auto\""},
                                                          {"logging.tensorboard", "true"}};
  for (const auto& [path, value] : expected) {
    ASSERT_NE(find_option(path), nullptr) << path;
    EXPECT_EQ(default_value(*find_option(path)).dump(), value) << path;
  }
}

std::vector<std::string> keys_of(const std::vector<OptionDifference>& differences) {
  std::vector<std::string> keys;
  for (const OptionDifference& one : differences) keys.push_back(concat(one.key, ":", resume_class_name(one.resume)));
  return keys;
}

TEST(DiffForResume, TellsWhatMatters) {
  Options saved;
  saved.validation.interval = 0;
  saved.train.precision = "bf16";
  const std::string stored = effective_json(saved);
  Options now = saved;
  EXPECT_THAT(diff_for_resume(stored, now), IsEmpty());
  now.train.precision = "auto";   // the stored one is kept
  now.optimizer.total_steps = 7;  // resolved totals are compared elsewhere
  EXPECT_THAT(diff_for_resume(stored, now), IsEmpty());
  now.train.batch_size = 32;
  now.train.grad_accumulation = 2;
  EXPECT_THAT(keys_of(diff_for_resume(stored, now)), ElementsAre("train.batch_size:order"));
  now.train.grad_accumulation = 4;
  const auto differences = diff_for_resume(stored, now);
  EXPECT_THAT(keys_of(differences), ElementsAre("train.batch_size:order", "effective batch:batch"));
  EXPECT_EQ(differences[0].saved, "64");
  EXPECT_EQ(differences[0].current, "32");
  EXPECT_EQ(differences[1].current, "128");
}

TEST(DiffForResume, EachClassOfTheContract) {
  Options saved;
  saved.validation.interval = 0;
  const std::string stored = effective_json(saved);
  const std::pair<const char*, const char*> expected[] = {{"model.layers=23", "never"},
                                                          {"data.tokenizer=t", "never"},
                                                          {"train.grad_accumulation=2", "batch"},
                                                          {"train.seed=1", "order"},
                                                          {"sampler.mode=shuffle", "order"},
                                                          {"sampler.pool=3", "order"},
                                                          {"data.train_manifests=[\"a\"]", "data"},
                                                          {"optimizer.weight_decay=0.5", "groups"},
                                                          {"trainable.freeze=[\"gpt\"]", "groups"},
                                                          {"optimizer.layer_lr_decay=0.9", "groups"},
                                                          {"train.precision=fp32", "precision"},
                                                          {"optimizer.learning_rate=0.5", "schedule"},
                                                          {"optimizer.betas=[0.8,0.9]", "schedule"},
                                                          {"optimizer.warmup_steps=1", "schedule"},
                                                          {"optimizer.eps=1e-6", "schedule"},
                                                          {"train.layout=padded", "loss"},
                                                          {"model.dropout=0", "loss"},
                                                          {"train.mel_loss_weight=1", "loss"},
                                                          {"train.num_threads=1", "warn"},
                                                          {"train.grad_clip=2", "free"},
                                                          {"ema.enabled=true", "free"},
                                                          {"checkpoint.keep=9", "free"},
                                                          {"data.num_workers=9", "free"},
                                                          {"train.max_steps=5000", "free"}};
  for (const auto& [assignment, name] : expected) {
    const Options now = load_config_json(stored, "stored", {assignment}).options;
    const auto differences = diff_for_resume(stored, now);
    ASSERT_EQ(differences.size(), 1u) << assignment;
    EXPECT_EQ(resume_class_name(differences[0].resume), name) << assignment;
    EXPECT_EQ(differences[0].is_path, starts_with(assignment, "data.t")) << assignment;
  }
}

// --- texts
// ------------------------------------------------------------------------------------------------------------

std::string shipped(const std::string& name) {
  return testing::data_path("../../configs/" + name);
}

TEST(Reference, GeneratedFilesAreFresh) {
  const char* how = "run: train_gpt_v2 config schema --output configs";
  EXPECT_TRUE(read_file(shipped("schema.json"), 1 << 20) == json_schema()) << how;
  EXPECT_TRUE(read_file(shipped("README.md"), 1 << 20) == reference_page()) << how;
}

// As much of draft-07 as the schema uses.
bool fits(const Json& schema, const Json& value, std::string& why, const std::string& at = "") {
  const auto bad = [&](const std::string& what) { return why = concat(at, ": ", what, " ", value.dump()), false; };
  if (schema.contains("anyOf")) {
    for (const Json& one : schema["anyOf"]) {
      if (fits(one, value, why, at)) return true;
    }
    return bad("anyOf");
  }
  const auto is = [&value](const std::string& type) {
    if (type == "integer") return value.is_number_integer();
    if (type == "number") return value.is_number();
    return std::string(value.type_name()) == type;
  };
  const Json types = schema["type"].is_array() ? schema["type"] : Json::array({schema["type"]});
  if (std::none_of(types.begin(), types.end(), [&](const Json& t) { return is(t.get<std::string>()); }))
    return bad("type");
  if (schema.contains("const") && value != schema["const"]) return bad("const");
  if (schema.contains("enum") && std::find(schema["enum"].begin(), schema["enum"].end(), value) == schema["enum"].end())
    return bad("enum");
  if (value.is_number()) {
    const double x = value.get<double>();
    if (schema.contains("minimum") && x < schema["minimum"].get<double>()) return bad("minimum");
    if (schema.contains("maximum") && x > schema["maximum"].get<double>()) return bad("maximum");
    if (schema.contains("exclusiveMinimum") && x <= schema["exclusiveMinimum"].get<double>()) return bad("minimum");
    if (schema.contains("exclusiveMaximum") && x >= schema["exclusiveMaximum"].get<double>()) return bad("maximum");
  }
  if (value.is_array()) {
    for (const Json& item : value) {
      if (!fits(schema["items"], item, why, at + "[]")) return false;
    }
  }
  if (value.is_object()) {
    for (const auto& [name, member] : value.items()) {
      if (schema["additionalProperties"].is_object()) {
        if (!fits(schema["additionalProperties"], member, why, at + "." + name)) return false;
        continue;
      }
      if (!schema["properties"].contains(name)) return bad("unknown " + name + " in");
      if (!fits(schema["properties"][name], member, why, at + "." + name)) return false;
    }
  }
  return true;
}

TEST(Reference, ShippedConfigurationsLoadAndFitTheSchema) {
  const Json schema = Json::parse(json_schema());
  int count = 0;
  for (const std::string& name : list_directory(shipped(""))) {
    if (!ends_with(name, ".json") || name == "schema.json") continue;
    ++count;
    const LoadedConfig loaded = load_config(shipped(name));
    EXPECT_THAT(loaded.warnings, IsEmpty()) << name;
    const std::string page = reference_page(), row = concat("\n| ", name, " |");
    EXPECT_NE(page.find(row), std::string::npos) << name;
    EXPECT_EQ(page.find(row), page.rfind(row)) << name << " is listed twice";
    std::string why;
    EXPECT_TRUE(fits(schema, parse_json_text(read_file(shipped(name), 1 << 20), name).value, why)) << name << why;
    EXPECT_TRUE(fits(schema, Json::parse(effective_json(loaded.options)), why)) << name << why;
  }
  EXPECT_GE(count, 3);
}

TEST(Reference, SchemaRefusesWhatTheLoaderRefuses) {
  const Json schema = Json::parse(json_schema());
  std::string why;
  for (const char* text :
       {R"({"trian": {}})", R"({"train": {"sed": 1}})", R"({"train": {"seed": "1"}})", R"({"checkpoint": {"keep": 2}})",
        R"({"train": {"precision": "fp8"}})", R"({"optimizer": {"betas": [1.0, 0.9]}})", R"({"model": {"types": 2}})",
        R"({"model": {"condition_module": {"x": 1}}})", R"({"data": {"replay": [{"x": 1}]}})",
        R"({"peft": {"rank_pattern": {"mlp": 0}}})", R"({"peft": {"rank_pattern": [8]}})",
        R"({"ewc": {"lambda": "x"}})"}) {
    EXPECT_FALSE(fits(schema, Json::parse(text), why)) << text;
  }
}

TEST(Reference, PlanValuesOfTheShippedFiles) {
  const Options amharic = load_config(shipped("amharic.json")).options;
  EXPECT_EQ(amharic.model.model_dim, 512);
  EXPECT_EQ(amharic.model.layers, 12);
  EXPECT_EQ(amharic.model.heads, 8);
  EXPECT_EQ(amharic.model.number_text_tokens, 24000);
  EXPECT_EQ(amharic.model.number_mel_codes, 8194);
  EXPECT_FALSE(amharic.early_stopping.enabled);
  const Options released = load_config(shipped("amharic_indextts2.json")).options;
  EXPECT_EQ(released.model.model_dim, 1280);
  EXPECT_EQ(released.model.layers, 24);
  EXPECT_EQ(released.model.heads, 20);
  EXPECT_EQ(released.model.number_text_tokens, 24000);
  const Options phase1 = load_config(shipped("phase1.json")).options;
  EXPECT_EQ(phase1.model.model_dim, 512);
  EXPECT_EQ(phase1.train.batch_size * phase1.train.grad_accumulation, 64);
  EXPECT_EQ(phase1.data.num_workers, 12);
  EXPECT_EQ(phase1.optimizer.learning_rate, 2e-5);
  EXPECT_EQ(phase1.train.grad_clip, 1.0);
  EXPECT_TRUE(phase1.ema.enabled);
  EXPECT_EQ(phase1.ema.decay, 0.9999);
  EXPECT_EQ(phase1.sampler.mode, "buckets");
  EXPECT_EQ(phase1.validation.interval, 2000);
  EXPECT_FALSE(phase1.early_stopping.enabled);
  EXPECT_EQ(phase1.checkpoint.keep, 3);
}

TEST(Reference, PlanValuesOfPhase2) {
  const auto group_of = [](const Options& o, const std::string& name) {
    for (const ParameterGroupOptions& group : o.optimizer.groups) {
      if (group.name == name) return group;
    }
    ADD_FAILURE() << "no group " << name;
    return ParameterGroupOptions{};
  };
  const Options phase1 = load_config(shipped("phase1.json")).options;
  for (const char* name : {"phase2_dora.json", "phase2_adalora.json", "phase2_full.json"}) {
    SCOPED_TRACE(name);
    const Options o = load_config(shipped(name)).options;
    EXPECT_EQ(o.model.model_dim, phase1.model.model_dim);
    EXPECT_EQ(o.train.batch_size * o.train.grad_accumulation, 96);
    EXPECT_EQ(o.data.num_workers, 16);
    EXPECT_FALSE(o.init.from.empty());
    // Phase 1's improvements stay.
    EXPECT_EQ(o.train.grad_clip, 1.0);
    EXPECT_TRUE(o.ema.enabled);
    EXPECT_EQ(o.sampler.mode, "buckets");
    EXPECT_EQ(o.sampler.boundaries, phase1.sampler.boundaries);
    EXPECT_EQ(o.validation.interval, 2000);
    EXPECT_EQ(o.checkpoint.best_metrics, std::vector<std::string>{"mel_loss"});
    EXPECT_THAT(o.trainable.freeze, ElementsAre("wpe", "ln_*", "ln_f"));
    EXPECT_EQ(group_of(o, "text_embedding").learning_rate, 1e-5);
    EXPECT_EQ(group_of(o, "text_embedding").weight_decay, 0.01);
    EXPECT_EQ(group_of(o, "heads").weight_decay, 0.0);
    if (o.peft.method.empty()) {
      EXPECT_EQ(o.optimizer.learning_rate, 1e-4);
      EXPECT_EQ(o.optimizer.layer_lr_decay, 0.95);
      EXPECT_EQ(o.optimizer.weight_decay, 0.05);
      EXPECT_EQ(group_of(o, "heads").lr_scale, 1.0);
      continue;
    }
    EXPECT_THAT(o.trainable.train, ElementsAre("wte", "lm_head", "mel_head"));
    EXPECT_EQ(o.peft.rank, 32);
    EXPECT_EQ(o.peft.rank_pattern,
              (std::vector<std::pair<std::string, std::int64_t>>{{"mlp.c_fc", 16}, {"mlp.c_proj", 16}}));
    EXPECT_EQ(o.peft.lora_dropout, 0.05);
    EXPECT_EQ(group_of(o, "adapters").learning_rate, 2e-5);
    EXPECT_EQ(group_of(o, "adapters").weight_decay, 0.05);
    EXPECT_EQ(group_of(o, "heads").learning_rate, 3e-5);
    EXPECT_FALSE(o.optimizer.layer_lr_decay);
  }
  EXPECT_EQ(load_config(shipped("phase2_dora.json")).options.peft.method, "dora");
  const PeftOptions adalora = load_config(shipped("phase2_adalora.json")).options.peft;
  EXPECT_EQ(adalora.method, "dora_adalora");
  EXPECT_EQ(adalora.pruning_steps, (std::vector<std::int64_t>{10000, 20000, 30000}));
  EXPECT_EQ(adalora.min_rank, 8);
}

TEST(Reference, HelpListsTheKeysOfASection) {
  const std::string help = option_help("ema");
  EXPECT_THAT(help, HasSubstr("ema.decay"));
  EXPECT_THAT(help, HasSubstr("same | cpu"));
  EXPECT_THAT(help, ::testing::Not(HasSubstr("train.seed")));
  EXPECT_THAT(option_help(""), HasSubstr("train.seed"));
}

}  // namespace
}  // namespace train_gpt_v2
