#pragma once
// What is in a checkpoint file: from the live objects to a tree of values and back (interface.md §3,
// architecture.md §7.1). The tree owns its memory, so it can be written while training goes on; tensors that do not
// train are shared, not copied.

#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/unified_voice.h"
#include "train_gpt_v2/train/adaptation.h"
#include "train_gpt_v2/train/ema.h"
#include "train_gpt_v2/train/grad_scaler.h"
#include "train_gpt_v2/train/monitors.h"
#include "train_gpt_v2/train/optimizer.h"
#include "train_gpt_v2/train/resume_rules.h"
#include "train_gpt_v2/train/stability.h"
#include "train_gpt_v2/train/train_state.h"

namespace train_gpt_v2 {

inline constexpr int kCheckpointFormatVersion = 1;

// The live objects of a run, by reference.
struct CheckpointParts {
  UnifiedVoice& model;
  ParameterSet& parameters;
  AdamW& optimizer;
  Ema* ema;
  GradScaler* scaler;
  Monitors& monitors;
  StabilityGuard& guard;
  TrainState& state;
  const Options& options;
  const RunFacts& facts;
  Adaptation& adaptation;
};

// Facts for the reader in Python; nothing of ours depends on them.
struct PythonExtras {
  std::vector<std::string> recent_checkpoints;
  struct Manifest {
    std::string path;
    std::int64_t count = 0;
    std::vector<std::string> languages;
  };
  std::vector<Manifest> train, validation;
};

// Copies of the training state. Files of one moment share them: what the first of them copied serves the others until
// forget_copies(), which must come before the weights change. Not thread-safe; what was made may go to another thread.
class SnapshotMaker {
 public:
  // Everything a resume needs. `next_factor` is the schedule's multiplier for the step that follows.
  Value training_checkpoint(const CheckpointParts& parts, const PythonExtras& extras, const std::string& build,
                            double next_factor);
  // {model (raw), ema_state, epoch, step, val_mel_loss, weights} (+ the metric's own name and value).
  Value best_checkpoint(const CheckpointParts& parts, const Improvement& improvement, double val_mel_loss,
                        const std::string& build);
  void forget_copies();

 private:
  // "model", or "base_model" and "adapter" (train/adapter_checkpoint.h), into `root`.
  void add_weights(Value& root, const CheckpointParts& parts);
  const Value& model_state(const CheckpointParts& parts);
  const Value& ema_state(const CheckpointParts& parts);
  Value frozen_host_copies_ = Value::dict();      // tensors that never change, copied from the device once
  std::optional<Value> model_state_, ema_state_;  // of this moment
};

enum class CheckpointKind { kOurs, kPython, kWeights };
CheckpointKind checkpoint_kind(const Value& root);

// CKP006 for a checkpoint of ours with a newer format. Comes first: its configuration may have keys that nobody here
// knows.
void refuse_newer_format(const Value& root, const std::string& path);

// The stored configuration of one of our checkpoints, "" for others.
std::string stored_config(const Value& root);
RunFacts stored_facts(const Value& root);
// The place that epoch, batch_idx and batch_size of the Python trainer mean in batches of ours. CKP007 for numbers that
// no run has.
BatchCursor plain_position(const Value& root, const Options& options);
const Value* stored_ewc(const Value& root);  // null: the run had none

// The counters of one of our checkpoints. Where they lack a position, it is the one that the Python trainer's keys
// name.
TrainState stored_state(const Value& root, const Options& options);

// Restores one of our checkpoints into the parts (weights, moments, EMA, scaler, monitors, counters). `groups_changed`
// lets tensors without saved moments start anew. Throws CKP errors before anything is changed where it can.
void restore_training_state(const Value& root, CheckpointParts& parts, bool groups_changed);

// The same from a checkpoint of the Python trainer; its order of samples is lost, so the cursor points at its
// epoch and the matching place of our own plan (interface.md §3).
void restore_python_state(const Value& root, CheckpointParts& parts);

}  // namespace train_gpt_v2
