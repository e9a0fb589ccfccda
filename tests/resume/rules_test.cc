// What may differ between a checkpoint and the run that continues it (interface.md §3 "Resume"), row by row.
#include <gmock/gmock.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <map>

#include "support/resume_run.h"
#include "train_gpt_v2/config/option_table.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/train/resume_rules.h"

namespace train_gpt_v2 {
namespace {

using testing::expect_same_checkpoint;
using ::testing::HasSubstr;
using testing::metrics_of;
using testing::small_run;
using testing::TemporaryFolder;
using testing::train_here;

RunFacts facts() {
  RunFacts one;
  one.effective_batch = 8;
  one.total_steps = 10;
  one.data_fingerprint = "data";
  one.tokenizer_sha256 = "tokenizer";
  one.precision = "fp32";
  one.threads = 2;
  one.device = "cpu";
  one.cpu_capability = "AVX2";
  return one;
}

// The message of the refusal, "" when it goes on.
std::string refusal(const Options& now, const RunFacts& now_facts, const std::set<std::string>& allowed = {},
                    ResumeDecision* decision = nullptr) {
  try {
    const ResumeDecision made = compare_for_resume(effective_json(small_run()), facts(), now, now_facts, allowed);
    if (decision) *decision = made;
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "CKP010");
    return error.report();
  }
}

// Class of the contract -> changes that belong to it.
const std::map<std::string, std::vector<std::string>>& changes() {
  static const std::map<std::string, std::vector<std::string>> all = {
      {"never",
       {"model.layers=3", "model.model_dim=128", "model.heads=4", "model.max_mel_tokens=100",
        "model.stop_mel_token=0"}},
      {"order",
       {"train.seed=7", "sampler.mode=buckets", "sampler.boundaries=[8,16]", "sampler.batch_tokens=4000",
        "sampler.pool=3", "sampler.drop_last=true", "train.batch_size=8"}},
      {"batch", {"train.grad_accumulation=3"}},
      {"data", {"data.language=en", "data.on_overlong=trim"}},
      {"groups",
       {"optimizer.weight_decay=0.5", "optimizer.layer_lr_decay=0.9",
        R"(optimizer.groups=[{"name":"a","match":["mel_head"]}])", R"(trainable.freeze=["mel_head"])",
        R"(trainable.train=["mel_head"])", "trainable.base_text_rows=100"}},
      {"schedule",
       {"optimizer.learning_rate=1e-3", "optimizer.lr_scaling=sqrt", "optimizer.schedule=linear",
        "optimizer.warmup_steps=1", "optimizer.min_lr_ratio=0.1", "optimizer.betas=[0.8,0.99]", "optimizer.eps=1e-6",
        "optimizer.reference_batch_size=8"}},
      {"loss",
       {"train.text_loss_weight=0.3", "train.mel_loss_weight=0.5", "train.loss_normalization=micro_batch",
        "train.layout=padded", "model.dropout=0"}},
      {"precision", {"train.tf32=false"}},
      {"free",
       {"data.num_workers=7",
        "data.prefetch_batches=2",
        "data.on_bad_sample=skip",
        "train.grad_clip=0.1",
        "train.clip_per_group=true",
        "train.log_interval=5",
        "train.engine=modules",
        "train.activation_checkpointing=1",
        "train.max_steps=90",
        "train.epochs=3",
        "train.max_hours=2",
        "ema.enabled=true",
        "ema.decay=0.9",
        "ema.warmup=false",
        "ema.update_every=3",
        "ema.device=cpu",
        "early_stopping.enabled=true",
        "early_stopping.patience=9",
        "early_stopping.metric=mel_top1",
        "early_stopping.min_improvement=0.5",
        "validation.interval=9",
        "validation.max_batches=2",
        "validation.batch_size=2",
        R"(validation.by=["speaker"])",
        "validation.text_usage_gap=true",
        "checkpoint.interval=9",
        "checkpoint.keep=9",
        "checkpoint.keep_every=5",
        "checkpoint.pin=[1]",
        "checkpoint.background=false",
        R"(checkpoint.best_metrics=["mel_top1"])",
        "checkpoint.grace_seconds=5",
        "logging.tensorboard=true",
        "logging.progress=lines",
        "init.new_rows=random",
        "data.train_manifests=[\"moved.jsonl\"]",
        "data.tokenizer=moved.model"}}};
  return all;
}

TEST(ResumeRules, EveryClassOfTheContract) {
  for (const auto& [name, list] : changes()) {
    for (const std::string& change : list) {
      SCOPED_TRACE(change);
      RunFacts now = facts();
      if (name == "batch") now.effective_batch = 12;
      const Options options = small_run({change});
      std::string refused = refusal(options, now);
      if (name == "free") {
        EXPECT_EQ(refused, "");
        continue;
      }
      const std::string key = name == "batch" ? "effective batch" : change.substr(0, change.find('='));
      EXPECT_THAT(refused, HasSubstr(key + ": checkpoint "));  // what, with both values
      EXPECT_THAT(refused, HasSubstr(", now "));
      EXPECT_THAT(refused, HasSubstr("[" + name + ": "));  // its class and the reason
      if (name == "never") {
        EXPECT_THAT(refused, HasSubstr("a fresh run"));
        const std::set<std::string> everything = {"batch", "order", "data", "groups", "precision", "schedule", "loss"};
        EXPECT_NE(refusal(options, now, everything), "");
        continue;
      }
      EXPECT_THAT(refused, HasSubstr("--allow-change " + name));
      ResumeDecision decision;
      EXPECT_EQ(refusal(options, now, {name}, &decision), "");
      EXPECT_THAT(decision.notes, ::testing::Contains(HasSubstr("(allowed)")));
      const std::set<std::string> other = {name == "loss" ? "order" : "loss"};
      EXPECT_NE(refusal(options, now, other), "");
    }
  }
}

TEST(ResumeRules, EveryOptionHasAClassTestedHereOrInItsOwnPart) {
  // The classes a key may have; a new key shows up here and belongs into the contract's list.
  std::map<std::string, std::set<std::string>> sections;
  for (const OptionRow& row : option_rows()) {
    sections[std::string(row.section())].insert(std::string(resume_class_name(row.resume)));
  }
  for (const char* section : {"ema", "validation", "early_stopping", "checkpoint", "logging", "init"}) {
    EXPECT_THAT(sections[section], ::testing::ElementsAre("free")) << section;
  }
  EXPECT_THAT(sections["sampler"], ::testing::ElementsAre("order"));
  EXPECT_THAT(sections["optimizer"], ::testing::ElementsAre("groups", "schedule"));
  EXPECT_THAT(sections["trainable"], ::testing::ElementsAre("groups"));
}

TEST(ResumeRules, FactsThatOptionsDoNotTell) {
  const auto with = [](auto change) {
    RunFacts now = facts();
    change(now);
    return refusal(small_run(), now);
  };
  EXPECT_THAT(with([](RunFacts& now) { now.tokenizer_sha256 = "other"; }), HasSubstr("[never: "));
  EXPECT_THAT(with([](RunFacts& now) { now.data_fingerprint = "other"; }), HasSubstr("--allow-change data"));
  EXPECT_THAT(with([](RunFacts& now) { now.replay_fingerprint = "other"; }), HasSubstr("--allow-change order"));
  EXPECT_THAT(with([](RunFacts& now) { now.total_steps = 11; }), HasSubstr("--allow-change schedule"));
  EXPECT_THAT(with([](RunFacts& now) { now.precision = "bf16"; }), HasSubstr("--allow-change precision"));
  EXPECT_EQ(with([](RunFacts& now) { now.order_fingerprint = "file", now.data_fingerprint = "other"; }), "");
  ResumeDecision decision;
  RunFacts now = facts();
  now.threads = 1, now.device = "NVIDIA", now.cpu_capability = "DEFAULT";
  EXPECT_EQ(refusal(small_run({"train.num_threads=1"}), now, {}, &decision), "");
  for (const char* warned :
       {"threads: checkpoint 2, now 1", "device: checkpoint cpu, now NVIDIA", "CPU capability: "}) {
    EXPECT_THAT(decision.notes, ::testing::Contains(HasSubstr(warned)));
  }
}

TEST(ResumeRules, TextRowsBelongToTheGroups) {
  const Options now = small_run({"trainable.text_rows=python_mask", "trainable.base_text_rows=100"});
  EXPECT_THAT(refusal(now, facts()), HasSubstr("trainable.text_rows: checkpoint null, now \"python_mask\"  [groups: "));
}

TEST(ResumeRules, SeveralDifferencesAreToldAtOnce) {
  RunFacts now = facts();
  now.effective_batch = 12;
  const std::string refused = refusal(small_run({"train.seed=7", "train.grad_accumulation=3", "model.dropout=0"}), now);
  EXPECT_THAT(refused, HasSubstr("--allow-change batch --allow-change loss --allow-change order"));
}

// --- whole runs ------------------------------------------------------------------------------------------------------

std::vector<std::string> run_of_six(const std::vector<std::string>& more = {}) {
  std::vector<std::string> sets = {"train.max_steps=6", "validation.interval=0", "train.log_interval=1"};
  sets.insert(sets.end(), more.begin(), more.end());
  return sets;
}

TEST(AllowChange, EachNameLetsItsChangeThroughForThisStart) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"batch", "train.grad_accumulation=1"}, {"order", "train.seed=9"},
      {"data", "data.on_overlong=trim"},      {"groups", "optimizer.weight_decay=0.3"},
      {"precision", "train.precision=bf16"},  {"schedule", "optimizer.learning_rate=1e-5"},
      {"loss", "train.layout=padded"}};
  for (const auto& [name, change] : cases) {
    SCOPED_TRACE(change);
    const TemporaryFolder folder;
    const std::string run = folder.file("run");
    ASSERT_EQ(train_here(small_run(run_of_six()), run, "auto", 2), ExitStatus::kOk);
    EXPECT_THROW(train_here(small_run(run_of_six({change})), run), Error);
    ASSERT_EQ(train_here(small_run(run_of_six({change})), run, "auto", 4, {name}), ExitStatus::kOk);
    // What was allowed is the run's own setting from then on.
    ASSERT_EQ(train_here(small_run(run_of_six({change})), run), ExitStatus::kOk);
    EXPECT_EQ(metrics_of(run, "train").size(), 6u);
    EXPECT_THAT(read_file(run + "/log.txt", 16 << 20), HasSubstr("(allowed)"));
  }
}

TEST(AllowChange, AfterDataTheNextEpochBegins) {
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(small_run(run_of_six()), folder.file("run"), "auto", 1), ExitStatus::kOk);
  ASSERT_EQ(train_here(small_run(run_of_six({"data.on_overlong=trim"})), folder.file("run"), "auto", 2, {"data"}),
            ExitStatus::kOk);
  const LoadedFile file = read_tensor_file(folder.file("run/latest.pt"));
  EXPECT_EQ(file.root.at("epoch").as_int(), 1);
  EXPECT_EQ(file.root.at("batch_idx").as_int(), 2);  // of this epoch
}

// Sums of scored tokens over an epoch are those of the data when every sample came once.
std::int64_t mel_tokens_of_epoch(const std::string& run, std::int64_t epoch = 0) {
  std::int64_t tokens = 0;
  for (const nlohmann::json& line : metrics_of(run, "train")) {
    if (line.at("epoch") == epoch) tokens += line.at("mel_tokens").get<std::int64_t>();
  }
  return tokens;
}

std::int64_t last_step(const std::string& run) {
  return metrics_of(run, "train").back().at("step").get<std::int64_t>();
}

TEST(AllowChange, AfterOrderTheSamplesNotYetUsedFollow) {
  const std::vector<std::string> epoch = {"train.max_steps=null", "train.epochs=1",        "optimizer.total_steps=6",
                                          "train.log_interval=1", "validation.interval=0", "train.grad_accumulation=1"};
  const auto options = [&epoch](std::vector<std::string> more) {
    more.insert(more.begin(), epoch.begin(), epoch.end());
    return small_run(more);
  };
  const TemporaryFolder folder;
  ASSERT_EQ(train_here(options({}), folder.file("whole")), ExitStatus::kOk);
  // A token budget makes the batches depend on the layout, which is no matter of `order`.
  const std::vector<std::pair<std::vector<std::string>, std::set<std::string>>> changes = {
      {{"train.seed=99"}, {"order"}},
      {{"sampler.mode=buckets"}, {"order"}},
      {{"sampler.batch_tokens=360"}, {"order"}},
      {{"sampler.batch_tokens=360", "train.layout=padded"}, {"order", "loss"}}};
  for (std::size_t i = 0; i < changes.size(); ++i) {
    const std::string run = folder.file("run" + std::to_string(i));
    ASSERT_EQ(train_here(options({}), run, "auto", 3), ExitStatus::kOk);
    ASSERT_EQ(train_here(options(changes[i].first), run, "auto", 4, changes[i].second), ExitStatus::kOk);
    if (i == 3) {  // and back: the layout alone changes
      std::vector<std::string> packed = changes[i].first;
      packed.back() = "train.layout=packed";
      ASSERT_EQ(train_here(options(packed), run, "auto", std::nullopt, {"loss"}), ExitStatus::kOk);
    } else {
      ASSERT_EQ(train_here(options(changes[i].first), run), ExitStatus::kOk);
    }
    EXPECT_EQ(mel_tokens_of_epoch(run), mel_tokens_of_epoch(folder.file("whole"))) << i;
  }
}

// 24 samples: 8 micro-batches of 3 or 4 of 6 are an epoch.
TEST(AllowChange, EpochsAreReachedWhateverTheirLengthBecomes) {
  const auto options = [](std::vector<std::string> more) {
    more.insert(more.begin(), {"train.max_steps=null", "optimizer.total_steps=null", "validation.interval=0",
                               "train.log_interval=1", "train.grad_accumulation=1", "train.batch_size=3"});
    return small_run(more);
  };
  const std::vector<std::string> two = {"train.epochs=2"}, larger = {"train.epochs=2", "train.batch_size=6"};
  const std::set<std::string> allowed = {"batch", "order", "schedule"};
  const TemporaryFolder folder;
  const std::string whole = folder.file("whole"), run = folder.file("run");
  ASSERT_EQ(train_here(options(two), whole), ExitStatus::kOk);
  ASSERT_EQ(last_step(whole), 16);

  // In the middle of an epoch, 12 samples before its end, and back in the next one, 18 before its end.
  ASSERT_EQ(train_here(options(two), run, "auto", 4), ExitStatus::kOk);
  ASSERT_EQ(train_here(options(larger), run, "auto", 7, allowed), ExitStatus::kOk);
  EXPECT_THAT(read_file(run + "/log.txt", 16 << 20), HasSubstr("schedule over 10; starting at step 4"));
  ASSERT_EQ(train_here(options(two), run, "auto", std::nullopt, allowed), ExitStatus::kOk);
  EXPECT_EQ(last_step(run), 7 + 6);
  for (const std::int64_t epoch : {0, 1}) {
    EXPECT_EQ(mel_tokens_of_epoch(run, epoch), mel_tokens_of_epoch(whole, epoch)) << epoch;
  }

  // DONE knows the reckoning, and so does a run that goes on.
  ASSERT_EQ(train_here(options(two), run), ExitStatus::kOk);
  EXPECT_EQ(last_step(run), 13);
  ASSERT_EQ(train_here(options({"train.epochs=3"}), run, "auto", std::nullopt, {"schedule"}), ExitStatus::kOk);
  EXPECT_EQ(last_step(run), 21);
  EXPECT_EQ(mel_tokens_of_epoch(run, 2), mel_tokens_of_epoch(whole, 0));
}

TEST(AllowChange, EpochsAreReachedWithOtherDataOrAnotherAccumulation) {
  const auto options = [](std::vector<std::string> more) {
    more.insert(more.begin(), {"train.max_steps=null", "train.epochs=3", "optimizer.total_steps=null",
                               "validation.interval=0", "train.log_interval=1", "train.grad_accumulation=1"});
    return small_run(more);
  };
  const TemporaryFolder folder;
  const std::string data = folder.file("data"), windows = folder.file("windows");
  const std::string more = "data.train_manifests=[\"" + testing::data_path("fixtures/data/train_pairs.jsonl") +
                           "\",\"" + testing::data_path("fixtures/data/val_pairs.jsonl") + "\"]";
  ASSERT_EQ(train_here(options({}), data, "auto", 10), ExitStatus::kOk);  // the second epoch has begun
  ASSERT_EQ(train_here(options({more}), data, "auto", std::nullopt, {"data", "schedule"}), ExitStatus::kOk);
  EXPECT_EQ(last_step(data), 10 + 8);  // the third has 32 samples

  ASSERT_EQ(train_here(options({}), windows, "auto", 10), ExitStatus::kOk);
  ASSERT_EQ(train_here(options({"train.grad_accumulation=2"}), windows, "auto", std::nullopt, {"batch", "schedule"}),
            ExitStatus::kOk);
  EXPECT_EQ(last_step(windows), 10 + 4);  // 8 of 18 micro-batches were left
}

TEST(AllowChange, ADamagedDoneMarkIsTakenForNone) {
  for (const char* text :
       {"", "[]", "{\"goal\": \"x\"}", "{\"goal\": 6, \"plan_start\": {\"step\": []}}",
        "{\"goal\": 6, \"plan_start\": {\"step\": -1}}", "{\"goal\": 6, \"reason\": \"early_stop\"}"}) {
    SCOPED_TRACE(text);
    const TemporaryFolder folder;
    const std::string run = folder.file("run");
    ASSERT_EQ(train_here(small_run(run_of_six()), run, "auto", 2), ExitStatus::kOk);
    write_file_atomically(run + "/DONE", text);
    ASSERT_EQ(train_here(small_run(run_of_six()), run), ExitStatus::kOk);
    EXPECT_EQ(last_step(run), 6);
  }
}

// --- checkpoints of other times --------------------------------------------------------------------------------------

// The run's newest checkpoint, changed by `edit`, as the only one.
template <class Edit>
void rewrite(const std::string& run, std::int64_t step, Edit edit) {
  const std::string path = path_join(run, "model_step" + std::to_string(step) + ".pth");
  Value root = Value::dict();
  const LoadedFile file = read_tensor_file(path);
  for (const auto& [key, value] : file.root.entries()) root.set(key, value);
  edit(root);
  write_torch_file(path, root);
  for (const char* name : {"latest.pt", "latest.pth"}) remove_file(path_join(run, name));
}

void edit_state(Value& root, const std::function<void(nlohmann::json&)>& edit) {
  Value ours = Value::dict();
  for (const auto& [key, value] : root.at("train_gpt_v2").entries()) ours.set(key, value);
  nlohmann::json state = nlohmann::json::parse(ours.at("state").as_string());
  edit(state);
  ours.set("state", state.dump());
  root.set("train_gpt_v2", ours);
}

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(OldCheckpoints, WithoutEmaEarlyStoppingOrSamplerStateLoadEachWithOneLine) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  ASSERT_EQ(train_here(small_run(), run, "auto", 2), ExitStatus::kOk);
  rewrite(run, 2, [](Value& root) {
    for (const char* key : {"best_val_mel_loss", "early_stopping_reference", "patience_counter"})
      root.set(key, Value());
    edit_state(root, [](nlohmann::json& state) {
      state.erase("monitors");
      state.erase("cursor");
    });
  });
  const Options options = small_run({"ema.enabled=true", "early_stopping.enabled=true"});
  ASSERT_EQ(train_here(options, run), ExitStatus::kOk);
  const std::string log = read_file(run + "/log.txt", 16 << 20);
  for (const char* line : {"the checkpoint has no EMA", "the checkpoint has no best values",
                           "the checkpoint has no early-stopping state", "the checkpoint has no sampler state"}) {
    EXPECT_EQ(count(log, line), 1) << line;
  }
  const LoadedFile file = read_tensor_file(run + "/latest.pt");
  EXPECT_EQ(file.root.at("step").as_int(), 10);
  EXPECT_EQ(file.root.at("ema_updates").as_int(), 8);  // counted from the resume
  // The place of the plain keys was the right one: nothing else was lost.
  ASSERT_EQ(train_here(small_run(), folder.file("whole")), ExitStatus::kOk);
  EXPECT_TRUE(identical(file.root.at("model"), read_tensor_file(folder.file("whole/latest.pt")).root.at("model")));
}

std::size_t validations_at(const std::string& run, std::int64_t step) {
  std::size_t found = 0;
  for (const nlohmann::json& line : metrics_of(run, "validation")) found += line.at("step") == step;
  return found;
}

TEST(InterruptedValidation, IsToldOnceWhateverFollowsIt) {
  const Options options = small_run({"validation.interval=2", "validation.by=[\"speaker\"]", "ema.enabled=true"});
  const auto interrupted = [](Value& root) {
    edit_state(root, [](nlohmann::json& state) { state["validation_due"] = true; });
  };
  const TemporaryFolder folder;
  const std::string run = folder.file("run"), whole = folder.file("whole");
  ASSERT_EQ(train_here(options, whole), ExitStatus::kOk);
  const std::size_t lines = validations_at(whole, 2);
  ASSERT_GT(lines, 2u);
  ASSERT_EQ(train_here(options, run, "auto", 2), ExitStatus::kOk);
  // Killed behind its lines, before a checkpoint knows of it: done again, the lines of the first time are gone.
  rewrite(run, 2, interrupted);
  ASSERT_EQ(train_here(options, run, "auto", 2), ExitStatus::kOk);
  EXPECT_EQ(validations_at(run, 2), lines);
  // Stopped behind it: the checkpoint of the step is written anew and knows.
  const LoadedFile file = read_tensor_file(run + "/latest.pt");
  EXPECT_FALSE(nlohmann::json::parse(file.root.at("train_gpt_v2").at("state").as_string()).at("validation_due"));
  ASSERT_EQ(train_here(options, run), ExitStatus::kOk);
  EXPECT_EQ(metrics_of(run, "validation").size(), metrics_of(whole, "validation").size());
  expect_same_checkpoint(run + "/latest.pt", whole + "/latest.pt");
}

TEST(OldCheckpoints, APositionBeyondTheEpochIsTheNextOne) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  ASSERT_EQ(train_here(small_run(), run, "auto", 1), ExitStatus::kOk);
  rewrite(run, 1, [](Value& root) {
    root.set("batch_idx", 1000);
    edit_state(root, [](nlohmann::json& state) { state.erase("cursor"); });
  });
  ASSERT_EQ(train_here(small_run(), run, "auto", 2), ExitStatus::kOk);
  const LoadedFile file = read_tensor_file(run + "/latest.pt");
  EXPECT_EQ(file.root.at("epoch").as_int(), 1);
  EXPECT_EQ(file.root.at("batch_idx").as_int(), 2);
}

TEST(OldCheckpoints, AnAverageStartsFromTheWeightsOfTheMoment) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  ASSERT_EQ(train_here(small_run(), run, "auto", 4), ExitStatus::kOk);
  // A decay of almost 1 without warm-up keeps the average where it began.
  ASSERT_EQ(train_here(small_run({"ema.enabled=true", "ema.decay=0.9999999", "ema.warmup=false"}), run),
            ExitStatus::kOk);
  const auto vector = [](const Value& tensor) { return to_float_vector(tensor.as_tensor()); };
  const auto begin = vector(read_tensor_file(run + "/model_step4.pth").root.at("model").at("mel_head.weight"));
  const LoadedFile end = read_tensor_file(run + "/latest.pt");
  const auto average = vector(end.root.at("ema_state").at("mel_head.weight"));
  const auto raw = vector(end.root.at("model").at("mel_head.weight"));
  double from_begin = 0, from_raw = 0;
  for (std::size_t i = 0; i < begin.size(); ++i) {
    from_begin = std::max(from_begin, std::abs(static_cast<double>(average[i]) - begin[i]));
    from_raw = std::max(from_raw, std::abs(static_cast<double>(average[i]) - raw[i]));
  }
  EXPECT_LT(from_begin, 1e-6);
  EXPECT_GT(from_raw, 1e-5);
}

TEST(OldCheckpoints, StrangeStateIsAnErrorWithAPlace) {
  const std::vector<std::function<void(nlohmann::json&)>> edits = {
      [](nlohmann::json& state) { state["monitors"]["patience_counter"] = "many"; },
      [](nlohmann::json& state) { state["monitors"]["best"] = 3; },
      [](nlohmann::json& state) { state["cursor"]["batch"] = "first"; },
      [](nlohmann::json& state) { state["step"] = nullptr; }};
  for (std::size_t i = 0; i < edits.size(); ++i) {
    const TemporaryFolder folder;
    const std::string run = folder.file("run");
    ASSERT_EQ(train_here(small_run(), run, "auto", 1), ExitStatus::kOk);
    rewrite(run, 1, [&](Value& root) { edit_state(root, edits[i]); });
    try {
      train_here(small_run(), run);
      FAIL() << "edit " << i << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), ExitStatus::kBadData) << error.report();
    }
  }
}

TEST(CorruptLatest, AutoFallsBackToTheNewestThatVerifiesAndSaysSo) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  const Options options = small_run({"checkpoint.interval=2"});
  ASSERT_EQ(train_here(options, run, "auto", 6), ExitStatus::kOk);
  // In place, so under all three names.
  std::fstream file(run + "/latest.pt", std::ios::in | std::ios::out | std::ios::binary);
  const auto middle = static_cast<std::streamoff>(file_size(run + "/latest.pt") / 2);
  file.seekg(middle);
  const char old = static_cast<char>(file.get());
  file.seekp(middle);
  file.put(static_cast<char>(old ^ 1));
  file.close();
  EXPECT_THROW(train_here(options, run, run + "/latest.pt"), Error);  // a named file is never replaced by another
  ASSERT_EQ(train_here(options, run), ExitStatus::kOk);
  const std::string log = read_file(run + "/log.txt", 16 << 20);
  EXPECT_EQ(count(log, "damaged, left alone"), 1);
  EXPECT_THAT(log, HasSubstr("model_step4.pth, step 4"));
  ASSERT_EQ(train_here(options, folder.file("whole")), ExitStatus::kOk);
  expect_same_checkpoint(run + "/latest.pt", folder.file("whole/latest.pt"));
}

TEST(BestModel, IsNeverRemovedByRotation) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  // Only the first validation can be the best: nothing learns.
  ASSERT_EQ(train_here(small_run({"optimizer.learning_rate=0", "validation.interval=1", "checkpoint.interval=1"}), run),
            ExitStatus::kOk);
  EXPECT_EQ(read_tensor_file(run + "/best_model.pth").root.at("step").as_int(), 1);
  EXPECT_FALSE(file_exists(run + "/model_step1.pth"));
}

}  // namespace
}  // namespace train_gpt_v2
