#include "train_gpt_v2/train/checkpoint_store.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"

namespace train_gpt_v2 {
namespace {

constexpr int kFailuresAllowed = 3;

std::optional<std::int64_t> step_of_name(const std::string& name) {
  constexpr std::string_view kPrefix = "model_step", kSuffix = ".pth";
  if (!starts_with(name, kPrefix) || !ends_with(name, kSuffix)) return std::nullopt;
  const char* begin = name.data() + kPrefix.size();
  const char* end = name.data() + name.size() - kSuffix.size();
  std::int64_t step = 0;
  const auto parsed = std::from_chars(begin, end, step);
  if (begin == end || parsed.ptr != end || parsed.ec != std::errc{} || step < 0) return std::nullopt;
  return step;
}

bool is_checkpoint_name(const std::string& name) {
  return step_of_name(name) || name == "latest.pt" || name == "latest.pth";
}

// A temporary file of ours (AtomicFile, publish_link) whose process was killed: NAME.tmp.PID or NAME.tmp.PID.SERIAL.
bool is_leftover(const std::string& name) {
  constexpr std::string_view kMark = ".tmp.";
  const std::size_t at = name.rfind(kMark);
  if (at == std::string::npos || at + kMark.size() == name.size()) return false;
  if (name.find_first_not_of("0123456789.", at + kMark.size()) != std::string::npos) return false;
  const std::string base = name.substr(0, at);
  return is_checkpoint_name(base) || (starts_with(base, "best_") && ends_with(base, ".pth")) ||
         base == "config.effective.json" || base == "metrics.jsonl" || base == "data_report.json" || base == "DONE";
}

bool same_file(const std::string& a, const std::string& b) {
  struct stat x {
  }, y{};
  return ::stat(a.c_str(), &x) == 0 && ::stat(b.c_str(), &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

std::int64_t step_inside(const Value& root) {
  const Value* step = root.find("step");
  if (!step || !step->is_int()) throw Error("CKP002", "not a training checkpoint: it has no step");
  return step->as_int();
}

bool is_ours(const Value& root) {
  return root.find("train_gpt_v2") != nullptr;
}

}  // namespace

CheckpointStore::CheckpointStore(std::string directory, const CheckpointOptions& options)
    : directory_(std::move(directory)), options_(options) {
  remove_leftovers();
  thread_ = std::thread([this] { worker(); });
}

void CheckpointStore::remove_leftovers() const {
  if (!directory_exists(directory_)) return;
  for (const std::string& name : list_directory(directory_)) {
    if (!is_leftover(name)) continue;
    log_info("checkpoint", "removing what a process that was killed left half written: ", name);
    try {
      remove_file(path_join(directory_, name));
    } catch (const Error& failure) {
      log_warning("checkpoint", failure.message(), " ", failure.place());
    }
  }
}

CheckpointStore::~CheckpointStore() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::string CheckpointStore::step_file_name(std::int64_t step) {
  return concat("model_step", step, ".pth");
}

void CheckpointStore::submit(SaveJob job, bool wait_for_it) {
  wait_for_other_steps(job.step);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queued_.push_back(std::move(job));
    changed_.notify_all();
  }
  if (wait_for_it || !options_.background) wait();
  std::lock_guard<std::mutex> lock(mutex_);
  if (failures_in_a_row_ >= kFailuresAllowed || (wait_for_it && !last_error_.empty())) {
    throw Error("IO002", concat("the checkpoint could not be saved",
                                failures_in_a_row_ >= kFailuresAllowed ? ", three times in a row" : ""))
        .where(directory_)
        .detail(last_error_)
        .fix("free space on that disk, then run the same command again; the checkpoints already there are intact");
  }
}

void CheckpointStore::wait_for_other_steps(std::int64_t step) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this, step] {
    return (queued_.empty() || queued_.front().step == step) && writing_.value_or(step) == step;
  });
}

void CheckpointStore::wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return queued_.empty() && !writing_; });
}

bool CheckpointStore::wait_for(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                           [this] { return queued_.empty() && !writing_; });
}

std::vector<SaveResult> CheckpointStore::take_results() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(results_, {});
}

void CheckpointStore::worker() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return !queued_.empty() || closing_; });
    if (queued_.empty()) return;
    SaveJob job = std::move(queued_.front());
    queued_.pop_front();
    writing_ = job.step;
    lock.unlock();
    run(std::move(job));
    lock.lock();
    writing_.reset();
    changed_.notify_all();
  }
}

void CheckpointStore::run(SaveJob job) {
  const auto begin = std::chrono::steady_clock::now();
  SaveResult result;
  result.step = job.step;
  result.path = path_join(directory_, job.file_name);
  result.stall_seconds = job.stall_seconds;
  result.is_step_checkpoint = job.is_step_checkpoint;
  try {
    result.bytes = torch_file_size(job.content);
    write_torch_file(result.path, job.content);
    if (job.is_step_checkpoint) {
      point_latest(result.path);
      rotate(job.step);
    }
  } catch (const std::exception& failure) {
    const auto* known = dynamic_cast<const Error*>(&failure);
    result.error = known ? concat("error[", known->code(), "]: ", known->message()) : failure.what();
    log_warning("checkpoint", "step ", job.step, " was not saved: ", result.error, ". Training goes on.");
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::lock_guard<std::mutex> lock(mutex_);
  failures_in_a_row_ = result.error.empty() ? 0 : failures_in_a_row_ + 1;
  last_error_ = result.error;
  results_.push_back(std::move(result));
}

std::vector<std::int64_t> CheckpointStore::steps_on_disk() const {
  std::vector<std::int64_t> steps;
  for (const std::string& name : list_directory(directory_)) {
    if (const auto step = step_of_name(name)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void CheckpointStore::point_latest(const std::string& path) {
  for (const char* name : {"latest.pt", "latest.pth"}) {
    const std::string latest = path_join(directory_, name);
    struct stat old {};
    // A file under this name alone (copied here from a run of the Python trainer) may be what this run resumed from.
    if (::lstat(latest.c_str(), &old) == 0 && S_ISREG(old.st_mode) && old.st_nlink == 1) {
      read_tensor_file(path, /*verify=*/true);  // throws: then the old one stays
    }
    publish_link(path, latest);
  }
}

void CheckpointStore::rotate(std::int64_t newest) {
  std::vector<std::int64_t> steps = steps_on_disk();
  // Later steps are another branch of this run (a resume from an older file); they are not ours to judge or delete.
  std::erase_if(steps, [newest](std::int64_t step) { return step > newest; });
  const auto keep = static_cast<std::size_t>(options_.keep);
  if (steps.size() <= keep) return;
  read_tensor_file(path_join(directory_, step_file_name(newest)), /*verify=*/true);  // throws: then nothing is deleted
  for (std::size_t i = 0; i + keep < steps.size(); ++i) {
    const std::int64_t step = steps[i];
    if (options_.keep_every && *options_.keep_every > 0 && step % *options_.keep_every == 0) continue;
    if (std::find(options_.pin.begin(), options_.pin.end(), step) != options_.pin.end()) continue;
    remove_file(path_join(directory_, step_file_name(step)));
  }
}

std::optional<FoundCheckpoint> find_newest_checkpoint(const std::string& directory, std::int64_t last_step) {
  if (!directory_exists(directory)) return std::nullopt;
  struct Candidate {
    std::string path;
    std::int64_t step;
    bool ours;
  };
  std::vector<Candidate> candidates;
  for (const std::string& name : list_directory(directory)) {
    if (!is_checkpoint_name(name)) continue;
    const std::string path = path_join(directory, name);
    const auto known = [&path](const Candidate& candidate) { return same_file(candidate.path, path); };
    if (std::any_of(candidates.begin(), candidates.end(), known)) continue;
    try {
      const LoadedFile file = read_tensor_file(path, /*verify=*/false);
      const std::int64_t step = step_inside(file.root);
      if (step <= last_step) candidates.push_back({path, step, is_ours(file.root)});
    } catch (const Error& failure) {
      log_warning("resume", "left alone, cannot be used: ", path, ": ", failure.message());
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return a.step != b.step ? a.step > b.step : a.ours && !b.ours;
  });
  for (const Candidate& candidate : candidates) {
    try {
      return FoundCheckpoint{candidate.path, read_tensor_file(candidate.path, /*verify=*/true), candidate.step};
    } catch (const Error& failure) {
      log_warning("resume", "damaged, left alone: ", candidate.path, ": ", failure.message(),
                  "; falling back to the next older checkpoint");
    }
  }
  return std::nullopt;
}

std::string set_aside_later(const std::string& directory, std::int64_t step, const std::string& chosen) {
  std::vector<std::string> later;
  for (const std::string& name : list_directory(directory)) {
    const bool best = starts_with(name, "best_") && ends_with(name, ".pth");
    if (!best && !is_checkpoint_name(name)) continue;
    try {
      if (step_inside(read_tensor_file(path_join(directory, name), /*verify=*/false).root) > step)
        later.push_back(name);
    } catch (const Error&) {  // of no known step: it stays where it is
    }
  }
  if (later.empty()) return "";
  std::string folder = path_join(directory, concat("set_aside/behind_step_", step));
  while (directory_exists(folder)) folder += "_";
  make_directories(folder);
  for (const std::string& name : later) move_file(path_join(directory, name), path_join(folder, name));
  if (std::filesystem::equivalent(parent_path(chosen), directory)) {
    for (const char* latest : {"latest.pt", "latest.pth"}) publish_link(chosen, path_join(directory, latest));
  }
  return folder;
}

bool has_checkpoints(const std::string& directory) {
  if (!directory_exists(directory)) return false;
  const auto names = list_directory(directory);
  return std::any_of(names.begin(), names.end(), is_checkpoint_name);
}

}  // namespace train_gpt_v2
