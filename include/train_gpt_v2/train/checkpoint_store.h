#pragma once
// Checkpoint files in a run directory: writing (in the background, one in flight), the latest.* and best names,
// rotation, and finding what to resume from (interface.md §1, §3).
//
// A checkpoint is one file model_step{N}.pth in torch.save format, published whole or not at all: its space is reserved
// before the first byte. An old one is deleted only when `keep` newer ones exist (so never what the run resumed from
// before that) and the newest has been read back and verified; a latest.* that is the only name of another checkpoint
// is replaced only after the same check. Temporary files of a killed process are removed when the next one begins. Best
// files, pinned steps and files that are not ours by name are never touched.
//
// One snapshot at a time: the files of one step share their tensors and are written one after the other; those of the
// next step wait for the last of them, and none is skipped.
//
// Threads: one owner; the writer thread is internal. A failed save is reported, training goes on; the third in a row
// makes submit() throw.

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {

// A file to write: a step checkpoint (latest.* follow it) or a best file.
struct SaveJob {
  std::int64_t step = 0;
  std::string file_name;  // within the run directory
  bool is_step_checkpoint = true;
  Value content;             // owns its memory: nothing in it changes while it is written
  double stall_seconds = 0;  // how long training stood still for it; only carried to the result
};

struct SaveResult {
  std::int64_t step = 0;
  std::string path;
  bool is_step_checkpoint = true;
  std::uint64_t bytes = 0;
  double seconds = 0;  // of writing
  double stall_seconds = 0;
  std::string error;  // empty: done
};

class CheckpointStore {
 public:
  CheckpointStore(std::string directory, const CheckpointOptions& options);
  ~CheckpointStore();  // waits for the save in flight
  CheckpointStore(const CheckpointStore&) = delete;
  CheckpointStore& operator=(const CheckpointStore&) = delete;

  // Returns when no file of another step is left to write; call it before taking a snapshot of `step`.
  void wait_for_other_steps(std::int64_t step);
  // The same, then writes `job`: in the background unless options say otherwise or `wait` is set.
  // Throws IO002 after three failures in a row, or at once when `wait` is set and the save failed.
  void submit(SaveJob job, bool wait);
  void wait();                    // until nothing is in flight
  bool wait_for(double seconds);  // false: something still is
  std::vector<SaveResult> take_results();

  // Steps of the model_step*.pth files here, ascending.
  std::vector<std::int64_t> steps_on_disk() const;
  static std::string step_file_name(std::int64_t step);

 private:
  void remove_leftovers() const;
  void run(SaveJob job);
  void point_latest(const std::string& path);
  void rotate(std::int64_t newest);
  void worker();

  std::string directory_;
  CheckpointOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<SaveJob> queued_;           // all of one step
  std::optional<std::int64_t> writing_;  // its step
  bool closing_ = false;
  int failures_in_a_row_ = 0;
  std::string last_error_;  // of the last save
  std::vector<SaveResult> results_;
  std::thread thread_;
};

struct FoundCheckpoint {
  std::string path;
  LoadedFile file;
  std::int64_t step = 0;
};

// The checkpoint with the highest step inside, at most `last_step`, that verifies; damaged ones are named in the log
// and left alone; at equal steps ours wins over the Python trainer's. Nothing when the folder holds none.
std::optional<FoundCheckpoint> find_newest_checkpoint(const std::string& directory, std::int64_t last_step = INT64_MAX);

// For a run that goes on from `chosen`, of `step`, where later checkpoints stand: those and later best files move to
// set_aside/behind_step_N/, latest.* become names of `chosen` if it lies in the folder. Returns the folder they are in
// now, "" when nothing was later. Throws IO errors; nothing is ever lost.
std::string set_aside_later(const std::string& directory, std::int64_t step, const std::string& chosen);

// True when the folder holds any checkpoint by name.
bool has_checkpoints(const std::string& directory);

}  // namespace train_gpt_v2
