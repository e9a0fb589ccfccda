#pragma once
// What a weight or checkpoint file is, judged by its content: kind, model, sections, who can resume it.

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {

enum class FileKind {
  kWeights,            // a state dict, bare or under "model", and nothing to resume from
  kPythonCheckpoint,   // of the Python trainer
  kCheckpoint,         // ours
  kAdapterCheckpoint,  // ours with adapters apart from the base model
  kBest,               // our best_*.pth
  kAdapters,           // deltas without the weights they change
  kFisher,             // of `train_gpt_v2 fisher`: a model's names and shapes, but no weights
  kOther,              // tensors of no model we know
};

// One top-level entry that holds tensors.
struct Section {
  std::string name;
  std::size_t tensors = 0;
  std::uint64_t elements = 0;
  std::uint64_t bytes = 0;
  std::map<std::string, std::size_t> types;  // dtype -> tensors
};

struct NamedTensor {
  std::string name;  // with its section: "model.gpt.ln_f.weight"
  const Tensor* tensor;
};

struct FileSummary {
  FileKind kind = FileKind::kOther;
  std::string model;  // "UnifiedVoice, width 64, ..." or why it is another network; may be empty
  std::vector<Section> sections;
  std::vector<NamedTensor> tensors;
  std::vector<std::pair<std::string, Value>> values;  // numbers and texts at the top level
  std::string python_problem;                         // why the Python trainer cannot resume it; empty: it can
  std::string resume_problem;                         // the same for train_gpt_v2
};

// `root` must outlive the summary. A bare state dict is treated as {"model": dict}, a Fisher file as {"fisher": dict}.
FileSummary summarise(const Value& root);
Value with_model_key(const Value& root);

std::string kind_text(FileKind kind);       // "checkpoint of the Python trainer"
std::string_view kind_name(FileKind kind);  // "python_checkpoint", for JSON

// Calls visit(path, leaf) for every value that is not a container, in order; "optimizer.state.12.exp_avg".
void visit_leaves(const Value& value, const std::string& path,
                  const std::function<void(const std::string&, const Value&)>& visit);

}  // namespace train_gpt_v2
