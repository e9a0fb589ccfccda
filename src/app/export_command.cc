#include "train_gpt_v2/app/export_command.h"

#include <set>

#include "train_gpt_v2/adapt/peft_files.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/safetensors.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/tensor_bridge.h"
#include "train_gpt_v2/model/weights.h"

namespace train_gpt_v2 {
namespace {

// The type most of the file's floating tensors have.
at::ScalarType stored_type(const std::string& checkpoint) {
  const LoadedFile file = read_tensor_file(checkpoint, /*verify=*/false);
  for (const auto& [key, value] : weights_in(file.root, checkpoint).entries()) {
    if (value.is_tensor() && is_floating_point(value.as_tensor().dtype)) return scalar_type(value.as_tensor().dtype);
  }
  return at::kFloat;
}

// Everything that a module holds: peft saves modules whole.
std::vector<std::pair<std::string, at::Tensor>> modules_of(const ModelSource& source) {
  const auto module_of = [](const std::string& name) { return name.substr(0, name.rfind('.')); };
  std::set<std::string> modules;
  for (const std::string& name : source.beside) modules.insert(module_of(name));
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const StateEntry& entry : source.model->state()) {
    if (!entry.buffer && modules.contains(module_of(entry.name))) tensors.emplace_back(entry.name, entry.tensor);
  }
  return tensors;
}

std::string export_peft(const ExportRequest& request) {
  if (!request.dtype.empty() && request.dtype != "fp32") {
    throw Error("ARG001", "--dtype " + request.dtype + " with --format peft")
        .fix("adapters are kept in fp32: leave --dtype out");
  }
  const ModelSource source = load_model(request.model);
  require_adapters(source, request.model.checkpoint);
  const auto beside = modules_of(source);
  write_peft_folder(request.output, *source.adapters, source.adapter_dropout, beside);
  return concat(request.output, ": ", source.adapters->adapters().size(), " adapters (",
                adapter_kind_name(source.adapters->kind()),
                is_adaptive(source.adapters->kind()) ? ", as plain ones of their kept ranks" : "", "), ", beside.size(),
                " tensors beside them, ", source.weights, " weights, ",
                human_bytes(file_size(path_join(request.output, "adapter_model.safetensors"))), "\n");
}

}  // namespace

std::string run_export(const ExportRequest& request) {
  if (request.format == "peft") return export_peft(request);
  ModelRequest wanted = request.model;
  wanted.complete = true;  // fresh values must never reach an inference file
  const ModelSource source = load_model(wanted);
  at::ScalarType type = at::kFloat;
  if (request.dtype == "fp16") {
    type = at::kHalf;
  } else if (request.dtype == "bf16") {
    type = at::kBFloat16;
  } else if (request.dtype.empty()) {
    type = stored_type(absolute_path(request.model.checkpoint));
  }
  SafetensorsFile weights;
  for (const StateEntry& entry : source.model->state()) {
    weights.tensors.emplace_back(entry.name, torch_to_tensor(entry.tensor.detach().to(at::kCPU, type).contiguous()));
  }
  make_directories(parent_path(absolute_path(request.output)));
  if (request.format == "safetensors") {
    weights.metadata["format"] = "pt";
    write_safetensors(request.output, weights);
  } else {
    Value state = Value::ordered_dict();
    for (const auto& [name, tensor] : weights.tensors) state.set(name, tensor);
    write_torch_file(request.output, state);
  }
  return concat(request.output, ": ", weights.tensors.size(), " tensors, ", source.weights, " weights, ",
                human_bytes(file_size(request.output)), "\n");
}

}  // namespace train_gpt_v2
