#include "train_gpt_v2/train/black_box.h"

#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

template <class Number>
Value array(DType dtype, const std::vector<Number>& numbers, std::vector<std::int64_t> shape = {}) {
  if (shape.empty()) shape = {static_cast<std::int64_t>(numbers.size())};
  return Tensor::copy_of(dtype, std::move(shape), std::as_bytes(std::span(numbers)));
}

// [rows, everything else]; nothing for an absent array.
void set_rows(Value& dict, const char* name, const std::vector<float>& numbers, std::int64_t rows) {
  if (numbers.empty() || rows == 0) return;
  dict.set(name, array(DType::kFloat32, numbers, {rows, static_cast<std::int64_t>(numbers.size()) / rows}));
}

Value batch_value(const Batch& batch) {
  Value ids = Value::list();
  for (const std::string& id : batch.ids) ids.push_back(id);
  Value value = Value::dict();
  value.set("ids", std::move(ids));
  value.set("text", array(DType::kInt32, batch.text));
  value.set("text_begin", array(DType::kInt64, batch.text_begin));
  value.set("codes", array(DType::kInt32, batch.codes));
  value.set("code_begin", array(DType::kInt64, batch.code_begin));
  set_rows(value, "condition", batch.condition, batch.count());
  set_rows(value, "emo_vec", batch.emo_vec, batch.count());
  set_rows(value, "features", batch.features, batch.frame_begin.back());
  set_rows(value, "emo_features", batch.emo_features, batch.emo_frame_begin.back());
  return value;
}

}  // namespace

std::string step_action_name(StepAction action) {
  constexpr const char* kNames[] = {"train", "warn", "skip", "rollback", "stop"};
  return kNames[static_cast<int>(action)];
}

std::string write_black_box(const std::string& run_directory, const BlackBoxEntry& entry) {
  const std::string folder = path_join(run_directory, "black_box");
  try {
    make_directories(folder);
    if (list_directory(folder).size() >= BlackBoxEntry::kMostFiles) return "";
    Value batches = Value::list();
    for (const LoadedBatch& micro : entry.micro_batches) batches.push_back(batch_value(micro.batch));
    Value root = Value::dict();
    root.set("step", entry.step);
    root.set("window", entry.window);
    root.set("action", step_action_name(entry.verdict.action));
    root.set("reason", entry.verdict.reason);
    root.set("loss", entry.loss);
    root.set("grad_norm", entry.grad_norm);
    root.set("loss_z", entry.verdict.loss_z);
    root.set("norm_z", entry.verdict.norm_z);
    root.set("micro_batches", std::move(batches));
    std::string path =
        path_join(folder, concat("window_", entry.window, entry.rank < 0 ? "" : concat("_rank", entry.rank), ".pth"));
    write_torch_file(path, root);
    return path;
  } catch (const Error& failure) {
    log_warning("stability", "the batch could not be written to ", folder, ": ", failure.message());
    return "";
  }
}

}  // namespace train_gpt_v2
