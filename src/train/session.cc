#include "session_impl.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/data/doctor.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/model/weights.h"
#include "train_gpt_v2/train/adapter_checkpoint.h"
#include "train_gpt_v2/train/batch_fit.h"
#include "train_gpt_v2/train/batch_memory.h"
#include "train_gpt_v2/train/device.h"
#include "train_gpt_v2/train/memory.h"
#include "train_gpt_v2/train/start_weights.h"
#include "train_gpt_v2/train/trainer.h"

namespace train_gpt_v2 {

// --- data ------------------------------------------------------------------------------------------------------------

void Session::open_data() {
  const DataOptions& data = options_.data;
  if (!data.tokenizer.empty()) {
    tokenizer_ = std::make_shared<const Tokenizer>(data.tokenizer);
    check_vocabulary(*tokenizer_, options_.model);
    if (!data.base_tokenizer.empty()) check_extension(*tokenizer_, Tokenizer(data.base_tokenizer));
    facts_.tokenizer_sha256 = tokenizer_->sha256();
  }
  if (data.train_manifests.empty()) {
    throw Error("CFG014", "data.train_manifests is empty: there is nothing to train on")
        .fix("name at least one pair manifest, e.g. \"train_manifests\": [\"train_pairs.jsonl::am\"]");
  }
  train_ = std::make_unique<Dataset>(data.train_manifests, data.replay, data, options_.model, tokenizer_);
  const bool samples_pairs = options_.sampling.interval > 0;
  if ((options_.validation.interval > 0 || samples_pairs) && !data.val_manifests.empty()) {
    validation_ =
        std::make_unique<Dataset>(data.val_manifests, std::vector<ReplayOptions>{}, data, options_.model, tokenizer_);
  }
  facts_.data_fingerprint = train_->fingerprint();
  facts_.replay_fingerprint = train_->replay_fingerprint();
  if (!data.order_file.empty()) {
    order_ = read_order_file(data.order_file, *train_);
    facts_.order_fingerprint = order_->hash;
  }
}

// Several ranks learn of each other's signals only between windows.
bool Session::stopped_alone() const {
  return ranks_.single() && stop_requested() != ExitStatus::kOk;
}

// train.batch_size "auto": what the checkpoint holds, else measured on copies of everything that a step needs. False
// when a signal came before the size was known.
bool Session::choose_batch_size() {
  TrainOptions& train = options_.train;
  if (!train.batch_size_auto) return true;
  const std::int64_t effective = *train.effective_batch;
  train.batch_size_auto = false;
  if (kind_ == CheckpointKind::kOurs) {
    const TrainOptions before =
        load_config_json(stored_config(checkpoint_->file.root), checkpoint_->path).options.train;
    if (before.batch_size * before.grad_accumulation == effective) {
      train.batch_size = before.batch_size;
      train.grad_accumulation = before.grad_accumulation;
      log_info("batch", "as chosen before: ", train.batch_size, " x ", train.grad_accumulation);
      return true;
    }
  }
  if (effective % ranks_.size() != 0) {
    throw Error("NET004",
                concat("train.effective_batch (", effective, ") is no multiple of the ", ranks_.size(), " ranks"))
        .fix("choose a multiple");
  }
  BatchFit chosen;
  if (ranks_.first()) chosen = measure_batch_size(effective / ranks_.size());
  std::vector<double> said{static_cast<double>(chosen.batch_size), static_cast<double>(chosen.grad_accumulation)};
  if (!ranks_.first()) said = {0, 0};
  ranks_.sum(said);
  train.batch_size = static_cast<std::int64_t>(said[0]);
  train.grad_accumulation = static_cast<std::int64_t>(said[1]) * ranks_.size();
  if (stopped_alone()) return false;  // what was not measured must not be kept in a checkpoint
  for (const std::string& reason : chosen.reasons) log_info("batch", reason);
  log_info("batch", "chosen: ", train.batch_size, " x ", train.grad_accumulation, " = ", effective,
           " samples per step; kept when this run is continued");
  return true;
}

BatchFit Session::measure_batch_size(std::int64_t effective) {
  Options smallest = options_;
  smallest.train.batch_size = 1;
  smallest.train.grad_accumulation = effective;
  const bool is_gpu = request_.device.is_cuda();
  const double gib = static_cast<double>(total_memory(request_.device)) / (1 << 30);
  BatchFitRequest fit;
  fit.effective_batch = effective;
  fit.first_size = table_batch_size(gib, is_gpu, !options_.peft.method.empty());
  fit.memory = memory_within_reach(request_.device).value_or(0);
  Ranks alone;
  Session scratch(request_, smallest, alone);
  scratch.open_data();
  scratch.plan_epoch();
  scratch.set_goal({});
  scratch.build_model();
  scratch.build_training();
  scratch.adaptation_->protect(scratch.parameters_, nullptr);
  CheckpointParts parts = scratch.parts();
  const std::vector<std::uint32_t> longest = longest_samples(*scratch.train_, static_cast<std::size_t>(effective));
  fit.probe = [&](std::int64_t size) -> std::optional<std::uint64_t> {
    if (stopped_alone()) return 0;  // the answer no longer matters
    try {
      const Batch batch = load_batch(*scratch.train_, longest, static_cast<std::size_t>(size));
      return probe_step(parts, *scratch.engine_, batch, request_.device).peak_memory;
    } catch (const Error& failure) {
      if (failure.code() != "MEM001") throw;
      return std::nullopt;
    }
  };
  fit.probe(1);  // moments and workspaces appear with the first step
  const SampleInfo longest_one = scratch.train_->info(longest.front());
  const std::string path = batch_memory_path();
  const std::string key = batch_memory_key(options_, describe_device(request_.device),
                                           longest_one.text_length + longest_one.code_length, effective);
  fit.remembered = remembered_batch_size(path, key).value_or(0);
  BatchFit found = fit_batch(fit);
  if (!stopped_alone()) remember_batch_size(path, key, found.batch_size);
  return found;
}

void Session::begin_stage(std::string_view name) const {
  if (request_.stage) request_.stage(name);
}

CheckpointParts Session::parts() {
  return {*model_, parameters_, *optimizer_, ema_.get(), scaler_.get(), *monitors_,
          *guard_, state_,      options_,    facts_,     *adaptation_};
}

void Session::plan_epoch() {
  const TrainOptions& train = options_.train;
  if (order_) {
    batches_per_epoch_ = static_cast<std::int64_t>(order_->plan.size());
  } else {
    sampler_ = std::make_unique<Sampler>(*train_, PlanSettings::from(options_));
    batches_per_epoch_ = static_cast<std::int64_t>(sampler_->plan(0).size());
    if (!train.epochs) return;
  }
  const std::int64_t batches = order_ ? batches_per_epoch_ : *train.epochs * batches_per_epoch_;
  if (batches >= train.grad_accumulation) return;
  throw Error("CFG015",
              concat("the run would have no step: its data make ", batches, " micro-batches, and one step takes ",
                     train.grad_accumulation, " (train.grad_accumulation)"))
      .fix(!order_ && batches == 0 ? "switch sampler.drop_last off, or lower train.batch_size"
                                   : concat("lower train.grad_accumulation, or ",
                                            order_ ? "name a longer data.order_file" : "raise train.epochs"));
}

std::int64_t Session::goal_after(const PlanStart& start) const {
  const TrainOptions& train = options_.train;
  std::int64_t goal = INT64_MAX;
  // An order file ends by itself; counting its lines again after a resume from elsewhere would end too early.
  if (!order_ && train.epochs) {
    const std::int64_t left = *train.epochs * batches_per_epoch_ - start.batches;
    goal = start.step + std::max<std::int64_t>(left, 0) / train.grad_accumulation;
  }
  return train.max_steps ? std::min(goal, *train.max_steps) : goal;
}

// Steps of the schedule and of the run (interface.md §2: optimizer.total_steps, train.max_steps, train.epochs).
void Session::set_goal(const PlanStart& start) {
  goal_step_ = goal_after(start);
  std::int64_t by_data = goal_step_ < INT64_MAX ? goal_step_ : 0;
  if (order_) by_data = batches_per_epoch_ / options_.train.grad_accumulation;
  facts_.total_steps = options_.optimizer.total_steps.value_or(options_.train.max_steps.value_or(by_data));
  facts_.effective_batch = options_.train.batch_size * options_.train.grad_accumulation;
}

std::unique_ptr<BatchSequence> Session::make_sequence() {
  if (order_) return std::make_unique<ListSequence>(order_->plan, state_.cursor.batch);
  return std::make_unique<EpochSequence>(*sampler_, state_.cursor);
}

// Null where sampling is off or there is nothing to say.
std::unique_ptr<TrainingSampler> Session::make_sampler() {
  if (options_.sampling.interval <= 0) return nullptr;
  const Dataset* pairs = validation_ ? validation_.get() : train_.get();
  if (options_.sampling.cases.empty() && !validation_) return nullptr;
  auto sampler = std::make_unique<TrainingSampler>(*model_, options_, directory_,
                                                   TrainingSampler::Sources{pairs, tokenizer_.get(), request_.vocoder});
  for (const SampleCase& one : sampler->cases()) {
    if (one.speaker_features_path.empty() || has_conditioners_) continue;
    throw Error("CKP005", "the sampling cases have features, but the start weights hold no conditioning encoder")
        .where(options_.sampling.cases)
        .at(one.id)
        .fix("use cases with condition_path and emo_vec_path, or with a prompt");
  }
  return sampler;
}

// --- model -----------------------------------------------------------------------------------------------------------

void Session::build_model() {
  torch::NoGradGuard no_grad;
  model_ = std::make_unique<UnifiedVoice>(options_.model);
  initialise(*model_, static_cast<std::uint64_t>(options_.train.seed));
  if (!checkpoint_ && !options_.init.from.empty()) {
    load_base_weights();
  }
  if (checkpoint_ && is_adapter_checkpoint(checkpoint_->file.root)) {
    load_base_model(*model_, checkpoint_->file.root, checkpoint_->path);  // what the adapters go on top of
  }
  model_->to(request_.device);
}

void Session::load_base_weights() {
  const std::string& path = options_.init.from;
  const LoadedFile file = read_tensor_file(path, /*verify=*/true);
  refuse_newer_format(file.root, path);
  const LoadReport report = load_start_weights(*model_, file.root, path, options_, tokenizer_.get());
  rows_were_made_ = report.vocabulary && report.vocabulary->pieces > report.vocabulary->base_pieces;
  LoadOptions how;
  how.source = path;
  log_load_report(report, how);
  has_conditioners_ = std::none_of(report.missing.begin(), report.missing.end(), UnifiedVoice::is_conditioner);
}

void Session::build_training() {
  if (kind_ == CheckpointKind::kPython && !options_.trainable.text_rows &&
      options_.model.text_rows() > options_.trainable.base_text_rows) {
    throw Error("CFG016", "choose trainable.text_rows to continue this run of the Python trainer")
        .detail(concat("the model has ", options_.model.text_rows(),
                       " text rows; the Python trainer masked the gradient of the first ",
                       options_.trainable.base_text_rows))
        .fix(
            "\"python_mask\" goes on as before, \"all\" trains every row, \"new_only\" keeps the base rows "
            "bit-identical");
  }
  if (kind_ == CheckpointKind::kOurs && options_.train.precision == "auto") {
    options_.train.precision = stored_facts(checkpoint_->file.root).precision;
  }
  compute_ = resolve_precision(options_.train.precision, request_.device);
  facts_.precision = precision_name(compute_);
  options_.train.precision = facts_.precision;  // config.effective.json and checkpoints hold what was resolved
  facts_.threads = at::get_num_threads();
  facts_.device = request_.device.is_cuda() ? describe_device(request_.device) : "cpu";
  facts_.cpu_capability = at::get_cpu_capability();
  if (options_.ewc.enabled) facts_.fisher_sha256 = sha256_of_file(options_.ewc.fisher);
  check_resume();
  adaptation_ = std::make_unique<Adaptation>(*model_, options_, checkpoint_ ? &checkpoint_->file.root : nullptr,
                                             facts_.total_steps, goal_step_);
  parameters_ = build_parameter_set(*model_, options_, facts_.effective_batch, adaptation_->adapters());
  check_new_rows();
  if (options_.distributed.shard_optimizer && !ranks_.single()) {
    std::vector<torch::Tensor> values;
    values.reserve(parameters_.tensors.size());
    for (const TrainableTensor& tensor : parameters_.tensors) values.push_back(tensor.value);
    shards_ = std::make_unique<OptimizerShards>(ranks_, values);
  }
  optimizer_ = std::make_unique<AdamW>(parameters_, options_.optimizer, shards_.get());
  if (compute_ == at::kHalf) scaler_ = std::make_unique<GradScaler>();
  if (options_.ema.enabled) {
    const std::uint64_t before = allocated_bytes(request_.device);
    ema_ = std::make_unique<Ema>(parameters_, options_.ema);
    ema_device_bytes_ = allocated_bytes(request_.device) - before;
  }
  monitors_ = std::make_unique<Monitors>(options_.checkpoint, options_.early_stopping);
  guard_ = std::make_unique<StabilityGuard>(options_.stability, scaler_ != nullptr);
  if (options_.optimizer.warmup_steps > facts_.total_steps) {
    log_warning("config", "optimizer.warmup_steps (", options_.optimizer.warmup_steps,
                ") is longer than the whole schedule (", facts_.total_steps,
                " steps): the full learning rate is never reached");
  }
  schedule_ = std::make_unique<LearningRateSchedule>(options_.optimizer, facts_.total_steps);
  engine_ = make_engine(*model_, options_, compute_, engine_reason_, adaptation_->adapters());
}

// The accumulation counts micro-batches over all ranks.
void Session::check_ranks() {
  facts_.ranks = ranks_.size();
  const std::int64_t given = options_.train.grad_accumulation, ranks = ranks_.size();
  if (given % ranks == 0) return;
  const std::int64_t below = given / ranks * ranks;
  throw Error("NET004", concat("train.grad_accumulation (", given, ") is no multiple of the ", ranks, " ranks"))
      .detail("it counts micro-batches over all ranks")
      .fix(concat("set it to ", below > 0 ? concat(below, " or ") : "", below + ranks));
}

// Gradients are summed while backward goes on, unless adapters or EWC add to them afterwards.
void Session::make_sync() {
  std::vector<std::int64_t> stages;
  stages.reserve(parameters_.tensors.size());
  for (const TrainableTensor& tensor : parameters_.tensors) {
    stages.push_back(gradient_stage(options_.model, tensor.name));
  }
  sync_ = std::make_unique<GradientSync>(ranks_, parameters_, stages);
  if (ranks_.single() || adaptation_->adapters() || adaptation_->ewc()) return;
  engine_->on_gradients([this](std::int64_t stage) { sync_->stage_is_final(stage); });
}

// Rows that were just made by averaging must be able to move (algorithms.md §8).
void Session::check_new_rows() const {
  constexpr const char* kTable = "text_embedding.weight";
  const auto trains = [this](const char* name) {
    const std::vector<std::string> beside = parameters_.beside_adapters();
    return std::find(beside.begin(), beside.end(), name) != beside.end();
  };
  if (options_.trainable.text_rows.value_or("all") != "all" && !trains(kTable) && !trains("text_head.weight")) {
    log_warning("config", "trainable.text_rows \"", *options_.trainable.text_rows,
                "\" has no effect: neither the text table nor its head trains (name them in trainable.train)");
  }
  if (!rows_were_made_ || (adaptation_->adapters() && adaptation_->adapters()->adapts(kTable))) return;
  if (trains(kTable)) return;
  throw Error("CFG018", "the text table is frozen, but the tokenizer has tokens that the start weights never saw")
      .detail("their rows are averages of old ones; frozen, the model could never tell the new tokens apart")
      .fix(
          "name it in trainable.train (\"wte\", with trainable.text_rows \"new_only\" to keep the old rows), or in "
          "peft.target_modules");
}

// Everything up to the first step; false when there is nothing left to train, or a stop was asked for.
bool Session::prepare() {
  begin_stage("plan");
  open_data();
  const bool look_early = options_.train.batch_size_auto;                     // a checkpoint may hold the size
  const bool named = request_.resume != "auto" && request_.resume != "none";  // it may be from before DONE
  if (look_early || named) find_checkpoint();
  if (!choose_batch_size()) return false;
  plan_epoch();
  check_ranks();
  const bool may_be_done = request_.resume != "none" && !goes_back_ && !request_.preflight;
  if (ranks_.from_first(ranks_.first() && may_be_done && already_done())) return false;
  if (!look_early && !named) find_checkpoint();
  position_ = find_position();
  set_goal(position_.start);
  begin_stage("weights");
  build_model();
  build_training();
  restore();
  adaptation_->protect(parameters_, checkpoint_ ? stored_ewc(checkpoint_->file.root) : nullptr);
  engine_->parameters_changed();
  if (ranks_.first()) training_sampler_ = make_sampler();
  return true;
}

PreflightResult Session::preflight() {
  const BatchPlan plan = order_ ? order_->plan : sampler_->plan(state_.cursor.epoch);
  CheckpointParts live = parts();
  return run_preflight({live, *engine_, *train_, plan, request_.device, std::max<std::int64_t>(last_step() - state_.step, 0),
                        schedule_->factor(state_.step), directory_, request_.build},
                       request_.stage);
}

ExitStatus Session::run() {
  if (request_.preflight) {
    if (prepare()) *request_.preflight = preflight();
    return ExitStatus::kOk;
  }
  std::optional<RunLock> lock;
  if (ranks_.first()) {
    make_directories(directory_);
    lock.emplace(directory_);
    add_log_file(path_join(directory_, "log.txt"));
  }
  log_info("run", "train_gpt_v2 ", request_.build);
  if (!prepare()) return stop_requested();
  ranks_.check_equal("the program", request_.build);
  ranks_.check_equal("the configuration", sha256(effective_json(options_)));
  ranks_.check_equal("the data", concat(facts_.data_fingerprint, " ", facts_.replay_fingerprint, " ",
                                        facts_.order_fingerprint, " ", facts_.tokenizer_sha256));
  if (!ranks_.single()) ranks_.check_equal("the parameters", bit_fingerprint(parameters_));
  if (!ranks_.first()) return request_.dry_run ? ExitStatus::kOk : train();
  write_file_atomically(path_join(directory_, "config.effective.json"), effective_json(options_));
  banner();
  look_at_data();
  return request_.dry_run ? ExitStatus::kOk : train();
}

ExitStatus Session::train() {
  std::unique_ptr<Evaluator> evaluator;
  if (validation_ && options_.validation.interval > 0) {
    evaluator = std::make_unique<Evaluator>(*validation_, train_.get(), options_);
  }
  const auto ranks = static_cast<std::uint64_t>(ranks_.size());
  BatchLoader loader(
      *train_, make_sequence(),
      {options_.data.num_workers, options_.data.prefetch_batches, static_cast<std::uint64_t>(ranks_.rank()), ranks,
       static_cast<std::uint64_t>(options_.train.grad_accumulation) / ranks},
      state_.cursor);
  if (ranks_.first()) leave_what_was();
  CheckpointStore store(ranks_.first() ? directory_ : "", options_.checkpoint);
  make_sync();
  Reporter reporter(ranks_.first() ? directory_ : "", options_, parameters_, request_.device, state_, goal_step_);
  reporter.lengths(*train_, state_.step);
  PythonExtras extras;
  const auto describe = [](const Dataset& dataset) {
    std::vector<PythonExtras::Manifest> manifests;
    for (std::size_t i = 0; i < dataset.index().manifests(); ++i) {
      PythonExtras::Manifest manifest{dataset.index().manifest_path(i), 0, {}};
      for (const PairEntry& entry : dataset.index().entries()) manifest.count += entry.manifest() == i;
      if (!dataset.index().manifest_language(i).empty())
        manifest.languages.push_back(dataset.index().manifest_language(i));
      manifests.push_back(std::move(manifest));
    }
    return manifests;
  };
  extras.train = describe(*train_);
  if (validation_) extras.validation = describe(*validation_);
  CheckpointParts live = parts();
  reporter.event(state_.step, checkpoint_ ? "resume" : "start",
                 {{"from", checkpoint_ ? checkpoint_->path : options_.init.from}, {"build", request_.build}});
  checkpoint_.reset();  // unmaps the file
  Trainer trainer({live, *schedule_, *engine_, ranks_, *sync_, loader, evaluator.get(), training_sampler_.get(), store,
                   reporter, extras, directory_, request_.build, request_.max_steps, goal_step_,
                   request_.hang_seconds});
  const TrainOutcome outcome = trainer.run();
  const bool done = is_goal(outcome.reason);
  log_info("run", done ? "done at step " : "stopped at step ", state_.step,
           done ? "" : "; continue with the same command", "; newest checkpoint: ", path_join(directory_, "latest.pt"));
  return outcome.status;
}

std::string find_resume_file(const std::string& name, const std::string& run_directory) {
  const bool bare = name.find('/') == std::string::npos;
  std::string here = absolute_path(name), there = path_join(run_directory, name);
  if (!bare || !file_exists(there)) return here;
  if (!file_exists(here)) return there;
  if (sha256_of_file(here) != sha256_of_file(there)) {
    throw Error("CKP013",
                concat("\"", name, "\" exists in the working directory and in the run directory, and they differ"))
        .detail(here)
        .detail(there)
        .fix("name the one you mean with its folder");
  }
  return there;
}

ExitStatus run_training(const SessionRequest& request) {
  Ranks ranks(request.ranks, request.options.distributed.backend, request.device);
  try {
    const ExitStatus status = Session(request, request.options, ranks).run();
    ranks.leave();
    return status;
  } catch (const Error& failure) {
    ranks.report_failure(failure);
    throw;
  } catch (const std::exception& failure) {
    const bool memory = is_out_of_memory(failure);
    ranks.report_failure(Error(memory ? "MEM001" : "INT001", failure.what()));
    throw;
  }
}

}  // namespace train_gpt_v2
