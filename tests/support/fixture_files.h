#pragma once
// Files made from the fixtures' model: Fisher information over its GPT part, and the model with fewer text rows.

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "support/test_files.h"
#include "train_gpt_v2/adapt/ewc.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/tensor_bridge.h"

namespace train_gpt_v2::testing {

// Squares of the numbers 0.1, 0.2 … 0.9 in turn as Fisher information of every weight, times `factor` squared, said to
// be measured at `weight_scale` times the weights of a file.
inline std::string write_fixture_fisher(const std::string& path, double weight_scale, double factor = 1,
                                        const std::string& weights = data_path("fixtures/model/gpt.pth")) {
  const LoadedFile file = read_tensor_file(weights);
  std::vector<std::pair<std::string, at::Tensor>> parameters;
  for (const auto& [key, value] : file.root.entries()) {
    const std::string& name = key.as_string();
    if (name.find("conditioning_encoder") != std::string::npos || name.find("perceiver") != std::string::npos) continue;
    at::Tensor weight = tensor_to_torch(value.as_tensor()).to(at::kFloat, false, /*copy=*/true).mul_(weight_scale);
    weight.set_requires_grad(true);
    const at::Tensor ninths = at::arange(weight.numel(), at::kFloat).remainder(9).add(1).div(10).mul(factor);
    weight.mutable_grad() = ninths.view(weight.sizes()).clone();
    parameters.emplace_back(name, weight);
  }
  FisherAccumulator accumulator(std::move(parameters));
  accumulator.add(1, 1);
  write_fisher(path, accumulator.finish());
  return path;
}

// The fixtures' training pairs with the features of their prompts, for online conditioning; all paths absolute.
inline std::string write_online_pairs(const std::string& path) {
  const std::string folder = data_path("fixtures/data/");
  std::ifstream in(folder + "train_pairs.jsonl");
  std::ofstream out(path);
  for (std::string line; std::getline(in, line);) {
    nlohmann::json pair = nlohmann::json::parse(line);
    pair["prompt_features_path"] = "features/" + pair.at("prompt_id").get<std::string>() + ".npy";
    for (auto& [key, value] : pair.items()) {
      if (key.ends_with("_path")) value = folder + value.get<std::string>();
    }
    out << pair.dump() << "\n";
  }
  return path;
}

// The fixtures' weights with the first `rows` text rows only.
inline std::string write_smaller_vocabulary(const std::string& path, std::int64_t rows) {
  const LoadedFile file = read_tensor_file(data_path("fixtures/model/gpt.pth"));
  Value root = Value::ordered_dict();
  for (const auto& [key, value] : file.root.entries()) {
    const std::string& name = key.as_string();
    const bool table = name == "text_embedding.weight" || name == "text_head.weight" || name == "text_head.bias";
    root.set(name,
             table ? Value(torch_to_tensor(tensor_to_torch(value.as_tensor()).narrow(0, 0, rows).clone())) : value);
  }
  write_torch_file(path, root);
  return path;
}

}  // namespace train_gpt_v2::testing
