#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "session_impl.h"
#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"

namespace train_gpt_v2 {
namespace {

struct DoneMark {
  std::int64_t goal = 0;
  std::optional<std::int64_t> patience;  // of a run that was stopped early
  PlanStart start;
  std::string order;  // fingerprint of the order file
};

// Nothing where the file holds no such mark.
std::optional<DoneMark> read_done(const std::string& path) {
  try {
    const auto done = nlohmann::json::parse(read_file(path, 1 << 16));
    DoneMark mark{done.at("goal").get<std::int64_t>(), std::nullopt,
                  PlanStart::load_state(done.value("plan_start", nlohmann::json::object())), done.value("order", "")};
    if (done.value("reason", "") == "early_stop") mark.patience = done.at("patience").get<std::int64_t>();
    return mark;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace

void Session::find_checkpoint() {
  if (request_.resume == "none") {
    if (has_checkpoints(directory_)) {
      throw Error("CKP011", "the run directory already holds checkpoints")
          .where(directory_)
          .fix("continue with --resume auto, or start anew in another --output-dir");
    }
    return;
  }
  if (ranks_.first()) {
    checkpoint_ = request_.resume == "auto" ? find_newest_checkpoint(directory_) : named_checkpoint();
  }
  const std::string path = ranks_.from_first(checkpoint_ ? checkpoint_->path : "");
  if (!ranks_.first() && !path.empty())
    checkpoint_ = FoundCheckpoint{path, read_tensor_file(path, /*verify=*/true), 0};
  if (!checkpoint_) {
    if (!has_checkpoints(directory_)) return;
    throw Error("CKP012", "no checkpoint in the run directory can be used")
        .where(directory_)
        .fix("see the warnings above; restore one from a copy, or start anew in another --output-dir");
  }
  refuse_newer_format(checkpoint_->file.root, checkpoint_->path);
  kind_ = checkpoint_kind(checkpoint_->file.root);
  if (kind_ == CheckpointKind::kWeights) {
    throw Error("CKP002", "this file holds weights, not a training state")
        .where(checkpoint_->path)
        .fix("start from it with --set init.from=" + checkpoint_->path);
  }
  checkpoint_->step = checkpoint_->file.root.at("step").as_int("step");
  log_info("resume", "continuing from ", checkpoint_->path, ", step ", checkpoint_->step,
           kind_ == CheckpointKind::kPython ? " (written by the Python trainer)" : "");
}

// The file that --resume names. A run that began from it and has come further goes on where it is: a restart runs the
// same command again. A damaged file is never replaced by another.
FoundCheckpoint Session::named_checkpoint() {
  const std::string path = find_resume_file(request_.resume, directory_);
  FoundCheckpoint named{path, read_tensor_file(path, /*verify=*/true), 0};
  std::optional<FoundCheckpoint> newest = find_newest_checkpoint(directory_);
  goes_back_ = newest && !std::filesystem::equivalent(newest->path, path);
  if (!goes_back_ || checkpoint_kind(newest->file.root) != CheckpointKind::kOurs ||
      stored_state(newest->file.root, options_).origin != path) {
    return named;
  }
  goes_back_ = false;
  log_info("resume", "this run began from ", path, " and has come to step ", newest->step,
           "; to begin there once more, take another --output-dir");
  return std::move(*newest);
}

bool Session::already_done() {
  const std::string path = path_join(directory_, "DONE");
  if (!file_exists(path)) return false;
  const EarlyStoppingOptions& stopping = options_.early_stopping;
  const std::optional<DoneMark> done = read_done(path);
  if (!done) {
    log_warning("train", path, " cannot be read: the checkpoint tells how far the run came");
  } else if (const std::int64_t now = goal_after(done->start); now > done->goal) {
    log_info("train", "DONE says the run ended at step ", done->goal, "; the goal is now ",
             now < INT64_MAX ? concat("step ", now) : "further on", ", so it goes on");
  } else if (done->order != facts_.order_fingerprint) {
    log_info("train", "DONE is of another order of samples: the checkpoint tells how far the run came");
  } else if (done->patience && (!stopping.enabled || stopping.patience > *done->patience)) {
    log_info("train", "DONE says the run was stopped early; it has more patience now, so it goes on");
  } else {
    log_info("train", "nothing to do: ", path, " says that this run ",
             done->patience ? "was stopped early" : "reached its goal");
    return true;
  }
  return false;
}

// Before anything is built on the options: adapters of other settings would not even have the checkpoint's shapes.
void Session::check_resume() {
  if (!checkpoint_) return;
  if (kind_ == CheckpointKind::kOurs) {
    decision_ = compare_for_resume(stored_config(checkpoint_->file.root), stored_facts(checkpoint_->file.root),
                                   options_, facts_, request_.allowed_changes);
    for (const std::string& note : decision_.notes) log_info("resume", note);
    return;
  }
  if (!options_.peft.enabled()) return;
  throw Error("CKP010", "a run of the Python trainer cannot be continued with adapters")
      .where(checkpoint_->path)
      .detail(concat("peft.method: checkpoint none, now \"", options_.peft.method, "\""))
      .detail("keys: the checkpoint holds model (whole weights), this run needs base_model and adapter")
      .fix("start fresh from it as a base: init.from = this file, and another --output-dir");
}

// The place in the data and the goal's reckoning as the checkpoint has them, carried over to another plan.
Session::Position Session::find_position() const {
  if (!checkpoint_) return {};
  const Value& root = checkpoint_->file.root;
  if (kind_ == CheckpointKind::kPython) {
    if (order_) return {};
    Position place{mended(plain_position(root, options_)), {}, ""};
    place.start = start_at(root.at("step").as_int("step"), place.cursor);
    return place;
  }
  const RunFacts saved = stored_facts(root);
  const TrainState state = stored_state(root, options_);
  Position found{mended(state.cursor), state.plan_start, ""};
  if (order_) {
    // The same file goes on behind the lines consumed; another one starts at its first line.
    if (saved.order_fingerprint != facts_.order_fingerprint) found.cursor = BatchCursor{};
    return found;
  }
  const std::string config = stored_config(root);
  const Options before = load_config_json(config, checkpoint_->path).options;
  const PlanSettings previous = PlanSettings::from(before);
  if (!saved.order_fingerprint.empty() || data_differs(config, saved, options_, facts_)) {
    const bool begun = found.cursor.batch > 0 || !found.cursor.earlier.empty();
    found.cursor = BatchCursor{found.cursor.epoch + (begun ? 1 : 0), 0, found.cursor.consumed};
    found.note = concat("the data changed: epoch ", found.cursor.epoch, " begins");
  } else if (previous != sampler_->settings()) {
    // Not only after --allow-change order: with a token budget the layout decides how many samples a batch takes.
    found.cursor = sampler_->carry_over(found.cursor, previous);
    found.note = "the order changed: the epoch's samples that were not consumed follow in the new order";
  } else if (before.train.grad_accumulation == options_.train.grad_accumulation) {
    return found;
  }
  found.start = start_at(state.step, found.cursor);
  return found;
}

// From `cursor` on, at `step`, epochs have the length of our plan.
PlanStart Session::start_at(std::int64_t step, const BatchCursor& cursor) const {
  const auto length = static_cast<std::int64_t>(sampler_->plan(cursor.epoch, cursor.earlier).size());
  const std::int64_t left = std::max<std::int64_t>(length - static_cast<std::int64_t>(cursor.batch), 0);
  return {step, (static_cast<std::int64_t>(cursor.epoch) + 1) * batches_per_epoch_ - left};
}

// A position counted in samples may lie beyond our plan of the epoch, which leaves out what does not fit the model.
BatchCursor Session::mended(const BatchCursor& cursor) const {
  if (!sampler_ || cursor.consumed > 0 || cursor.batch == 0) return cursor;  // ours count what was consumed
  return cursor.batch < sampler_->plan(cursor.epoch).size() ? cursor : BatchCursor{cursor.epoch + 1, 0, 0, {}};
}

void Session::restore() {
  if (!checkpoint_) return;
  const Value& root = checkpoint_->file.root;
  CheckpointParts live = parts();
  if (kind_ == CheckpointKind::kPython) {
    restore_python_state(root, live);
    log_info("resume", "the Python trainer's order of samples is not in its checkpoint: epoch ", state_.epoch,
             " goes on in our own order from batch ", state_.cursor.batch, " and may repeat or miss samples");
  } else {
    restore_training_state(root, live, decision_.groups_changed);
  }
  if (!std::filesystem::equivalent(parent_path(checkpoint_->path), directory_)) state_.origin = checkpoint_->path;
  state_.cursor = position_.cursor;
  state_.plan_start = position_.start;
  if (!position_.note.empty()) log_info("resume", position_.note);
}

// The run goes on: it is not done any more, and what a branch of it left later than here is no part of it.
void Session::leave_what_was() const {
  const std::string done = path_join(directory_, "DONE");
  if (file_exists(done)) remove_file(done);
  if (!goes_back_) return;
  const std::string folder = set_aside_later(directory_, checkpoint_->step, checkpoint_->path);
  if (!folder.empty()) log_warning("resume", "later checkpoints of this run are in ", folder, " now");
}

}  // namespace train_gpt_v2
