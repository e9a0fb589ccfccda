#include "train_gpt_v2/app/export_command.h"

#include <map>
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

// The types of the file's tensors, by the model's names for them.
std::map<std::string, at::ScalarType> stored_types(const std::string& checkpoint) {
  constexpr std::string_view kBaseLayer = ".base_layer.";
  std::map<std::string, at::ScalarType> types;
  const LoadedFile file = read_tensor_file(checkpoint, /*verify=*/false);
  for (const auto& [key, value] : weights_in(file.root, checkpoint).entries()) {
    if (!key.is_string() || !value.is_tensor()) continue;
    std::string name = key.as_string();
    if (const auto at = name.find(kBaseLayer); at != std::string::npos) name.replace(at, kBaseLayer.size(), ".");
    if (is_floating_point(value.as_tensor().dtype)) types[name] = scalar_type(value.as_tensor().dtype);
  }
  return types;
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
  check_output_file(request.output, request.model.checkpoint);
  ModelRequest wanted = request.model;
  wanted.complete = true;  // fresh values must never reach an inference file
  const ModelSource source = load_model(wanted);
  std::map<std::string, at::ScalarType> types;
  if (request.dtype.empty()) types = stored_types(absolute_path(request.model.checkpoint));
  const at::ScalarType other = request.dtype == "fp16"   ? at::kHalf
                               : request.dtype == "bf16" ? at::kBFloat16
                                                         : at::kFloat;  // position tables need not be stored, either
  SafetensorsFile weights;
  for (const StateEntry& entry : source.model->state()) {
    const auto stored = types.find(entry.name);
    const at::ScalarType type = stored == types.end() ? other : stored->second;
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
