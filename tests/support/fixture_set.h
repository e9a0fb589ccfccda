#pragma once
// The fixtures of the Python reference: its model's sizes, its files, and its pairs as batches.

#include <nlohmann/json.hpp>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "support/model_fill.h"
#include "support/test_files.h"
#include "train_gpt_v2/io/npy.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/tensor_bridge.h"
#include "train_gpt_v2/model/weights.h"

namespace train_gpt_v2::testing {

using Json = nlohmann::json;

inline std::string fixture(const std::string& name) {
  return data_path("fixtures/" + name);
}

inline Json fixture_json(const std::string& name) {
  std::ifstream file(fixture(name));
  return Json::parse(file);
}

inline ModelOptions fixture_options() {
  const Json c = fixture_json("model/config.json").at("constructor");
  ModelOptions o;
  o.model_dim = c.at("model_dim");
  o.layers = c.at("layers");
  o.heads = c.at("heads");
  o.number_text_tokens = c.at("number_text_tokens");
  o.number_mel_codes = c.at("number_mel_codes");
  o.start_mel_token = c.at("start_mel_token");
  o.stop_mel_token = c.at("stop_mel_token");
  o.max_text_tokens = c.at("max_text_tokens");
  o.max_mel_tokens = c.at("max_mel_tokens");
  const auto module = [](const Json& m) {
    return ConditionModuleOptions{m.at("output_size"), m.at("linear_units"), m.at("attention_heads"),
                                  m.at("num_blocks"),  m.at("input_layer"),  m.at("perceiver_mult")};
  };
  o.condition_module = module(c.at("condition_module"));
  o.emo_condition_module = module(c.at("emo_condition_module"));
  o.dropout = 0;
  return o;
}

inline std::shared_ptr<UnifiedVoice> fixture_model(at::ScalarType dtype, const std::string& file = "model/gpt.pth") {
  auto model = std::make_shared<UnifiedVoice>(fixture_options());
  LoadOptions options;
  options.source = fixture(file);
  load_state(*model, read_tensor_file(options.source).root, options);
  model->to(dtype);
  return model;
}

inline at::Tensor fixture_array(const std::string& name) {
  return tensor_to_torch(read_npy(fixture(name)));
}

// The records of a manifest of the fixtures by id.
inline std::map<std::string, Json> fixture_records(const std::string& manifest) {
  std::map<std::string, Json> records;
  std::ifstream file(fixture("data/" + manifest));
  for (std::string line; std::getline(file, line);) {
    Json record = Json::parse(line);
    const std::string id = record.at("id");
    records.emplace(id, std::move(record));
  }
  return records;
}

inline Batch fixture_batch(const std::vector<std::string>& ids) {
  auto pairs = fixture_records("train_pairs.jsonl");
  pairs.merge(fixture_records("val_pairs.jsonl"));
  Batch batch;
  for (const std::string& id : ids) {
    const Json& pair = pairs.at(id);
    const auto file = [&](const char* field) { return read_npy(fixture("data/" + pair.at(field).get<std::string>())); };
    const auto narrow = [](const std::vector<std::int64_t>& v) {
      return std::vector<std::int32_t>(v.begin(), v.end());
    };
    add_sample(batch, narrow(to_int_vector(file("target_text_ids_path"))),
               narrow(to_int_vector(file("target_codes_path"))));
    batch.ids.back() = id;
    const auto condition = to_float_vector(file("prompt_condition_path")),
               emo = to_float_vector(file("prompt_emo_vec_path"));
    batch.condition.insert(batch.condition.end(), condition.begin(), condition.end());
    batch.emo_vec.insert(batch.emo_vec.end(), emo.begin(), emo.end());
  }
  return batch;
}

}  // namespace train_gpt_v2::testing
