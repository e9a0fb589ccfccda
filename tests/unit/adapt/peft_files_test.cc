#include "train_gpt_v2/adapt/peft_files.h"

#include <ATen/ops/randn.h>

#include "support/golden_peft.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/io/safetensors.h"
#include "train_gpt_v2/model/tensor_bridge.h"

namespace train_gpt_v2 {
namespace {

using testing::largest_difference;
using testing::TemporaryFolder;
using Json = nlohmann::ordered_json;

std::string problem_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code() + " " + error.message();
  }
  return "";
}

// Two layers of one projection each, a linear head and a table.
class PeftFiles : public ::testing::Test {
 protected:
  PeftFiles() {
    targets = {{"gpt.h.0.mlp.c_fc", at::randn({6, 9}), WeightLayout::kInOut, false},
               {"gpt.h.1.mlp.c_fc", at::randn({6, 9}), WeightLayout::kInOut, false},
               {"text_head", at::randn({7, 6}), WeightLayout::kOutIn, false},
               {"text_embedding", at::randn({7, 6}), WeightLayout::kInOut, true}};
  }
  AdapterSet make(AdapterKind kind, std::size_t count = 4) {
    std::vector<AdapterSpec> specs;
    for (std::size_t i = 0; i < count; ++i) {
      const std::int64_t rank = i == 2 ? 2 : 3;
      specs.push_back(
          {targets[i].module, kind, targets[i].layout, targets[i].embedding, rank, i == 2 ? 5.0 : 6.0, false});
    }
    AdapterSet set(specs, targets);
    for (Adapter& adapter : set.adapters()) {
      adapter.initialise(2);
      const std::int64_t rank = adapter.rank();
      adapter.set(at::randn({rank, adapter.inputs()}), at::randn({adapter.outputs(), rank}), at::randn({rank, 1}),
                  adapter.norm().defined() ? adapter.norm() * 1.2 : at::Tensor());
    }
    return set;
  }
  std::string written(const AdapterSet& set, const std::vector<std::pair<std::string, at::Tensor>>& beside = {}) {
    const std::string path = folder.file("adapter");
    write_peft_folder(path, set, 0.05, beside);
    return path;
  }
  void edit_config(const std::string& path, const std::function<void(Json&)>& change) {
    Json config = Json::parse(std::ifstream(path + "/adapter_config.json"));
    change(config);
    std::ofstream(path + "/adapter_config.json") << config.dump();
  }
  void edit_tensors(const std::string& path, const std::function<void(SafetensorsFile&)>& change) {
    const std::string file = path + "/adapter_model.safetensors";
    SafetensorsFile content = read_safetensors(file);
    change(content);
    for (auto& [name, tensor] : content.tensors) tensor = tensor.contiguous();
    write_safetensors(file + ".new", content);
    std::filesystem::rename(file + ".new", file);
  }
  TemporaryFolder folder;
  std::vector<AdapterTarget> targets;
};

TEST_F(PeftFiles, RoundTripOfEveryKindGivesTheSameWeights) {
  for (const AdapterKind kind :
       {AdapterKind::kLora, AdapterKind::kDora, AdapterKind::kAdalora, AdapterKind::kDoraAdalora}) {
    SCOPED_TRACE(adapter_kind_name(kind));
    AdapterSet set = make(kind, is_adaptive(kind) ? 3 : 4);
    if (is_adaptive(kind)) {
      set.adapters()[0].compact({});
      set.adapters()[1].compact({0, 2});
    }
    const std::string path = written(set);
    const PeftFolder content = read_peft_folder(path);
    EXPECT_EQ(has_magnitude(content.kind), has_magnitude(kind));
    EXPECT_FALSE(is_adaptive(content.kind));
    EXPECT_EQ(content.dropout, 0.05);
    const AdapterSet again = make_adapter_set(content, targets);
    for (std::size_t i = 0; i < set.adapters().size(); ++i) {
      EXPECT_EQ(again.adapters()[i].spec().module, set.adapters()[i].spec().module);
      EXPECT_LT(largest_difference(again.adapters()[i].merged(), set.adapters()[i].merged()),
                is_adaptive(kind) ? 2e-5 : 1e-30);
    }
    std::filesystem::remove_all(path);
  }
}

TEST_F(PeftFiles, KeysAndPatternsAreThoseOfPeft) {
  const std::string path = written(make(AdapterKind::kDora));
  std::set<std::string> names;
  for (const auto& [name, tensor] : read_safetensors(path + "/adapter_model.safetensors").tensors) names.insert(name);
  EXPECT_TRUE(names.contains("base_model.model.gpt.h.0.mlp.c_fc.lora_A.weight"));
  EXPECT_TRUE(names.contains("base_model.model.gpt.h.0.mlp.c_fc.lora_magnitude_vector"));
  EXPECT_TRUE(names.contains("base_model.model.text_embedding.lora_embedding_A"));
  const Json config = Json::parse(std::ifstream(path + "/adapter_config.json"));
  EXPECT_EQ(config["r"], 3);
  EXPECT_EQ(config["rank_pattern"], Json({{"text_head", 2}}));
  EXPECT_EQ(config["alpha_pattern"], Json({{"text_head", 5}}));
  EXPECT_EQ(config["use_dora"], true);
  EXPECT_EQ(config["fan_in_fan_out"], true);
}

TEST_F(PeftFiles, ReadsOtherSpellings) {
  AdapterSet set = make(AdapterKind::kDora, 2);
  const std::string path = written(set);
  edit_tensors(path, [](SafetensorsFile& file) {
    for (auto& [name, tensor] : file.tensors) {
      name = name.substr(17);
      const auto place = name.find(".lora_") + 7;
      const auto end = name.find('.', place);
      if (end != std::string::npos) name.insert(end, ".default");
      if (name.ends_with("lora_magnitude_vector")) name += ".default.weight";
    }
  });
  const AdapterSet again = make_adapter_set(read_peft_folder(path), targets);
  EXPECT_EQ(largest_difference(again.adapters()[1].merged(), set.adapters()[1].merged()), 0);
}

TEST_F(PeftFiles, FirstPatternInTheFileWins) {
  const std::string path = written(make(AdapterKind::kLora, 2));
  edit_config(path, [](Json& config) {
    config["r"] = 8;
    config["rank_pattern"] = Json({{"mlp\\.c_\\w+", 3}, {"c_fc", 5}});
    config["alpha_pattern"] = Json({{"^gpt\\.h\\.1\\.mlp\\.c_fc", 24}, {"c_fc", 12}});
  });
  const PeftFolder content = read_peft_folder(path);
  EXPECT_EQ(content.modules[0].alpha, 12);
  EXPECT_EQ(content.modules[1].alpha, 24);
  EXPECT_EQ(content.modules[1].rank, 3);
}

TEST_F(PeftFiles, TrainedModulesTravelAlong) {
  AdapterSet set = make(AdapterKind::kDora, 2);
  const at::Tensor head = at::randn({7, 6}), bias = at::randn({7});
  const std::string path = written(set, {{"text_head.weight", head}, {"text_head.bias", bias}});
  const PeftFolder content = read_peft_folder(path);
  ASSERT_EQ(content.saved.size(), 2u);
  for (const auto& [name, tensor] : content.saved) {
    EXPECT_EQ(largest_difference(tensor_to_torch(tensor), name == "text_head.bias" ? bias : head), 0);
  }
  EXPECT_EQ(Json::parse(std::ifstream(path + "/adapter_config.json"))["modules_to_save"], Json({"text_head"}));
  EXPECT_EQ(problem_of([&] { written(set, {{"gpt.h.0.mlp.c_fc.bias", bias}}); }).substr(0, 6), "PFT001");
}

TEST_F(PeftFiles, WhatWouldLoadAsAnotherModelIsRefused) {
  const AdapterSet set = make(AdapterKind::kDora, 2);
  const auto refused = [&](const std::function<void(const std::string&)>& damage) {
    const std::string path = written(set);
    damage(path);
    const std::string problem = problem_of([&] { make_adapter_set(read_peft_folder(path), targets); });
    std::filesystem::remove_all(path);
    return problem.substr(0, 6);
  };
  const auto config = [&](const std::function<void(Json&)>& change) {
    return refused([&](const std::string& path) { edit_config(path, change); });
  };
  const auto tensors = [&](const std::function<void(SafetensorsFile&)>& change) {
    return refused([&](const std::string& path) { edit_tensors(path, change); });
  };
  EXPECT_EQ(refused([](const std::string&) {}), "");
  EXPECT_EQ(config([](Json& c) { c["use_dora"] = false; }), "PFT002");  // magnitudes would be dropped
  EXPECT_EQ(config([](Json& c) { c["r"] = 4; }), "PFT002");             // ranks disagree
  EXPECT_EQ(config([](Json& c) { c["r"] = 0; }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["r"] = 1e300; }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["r"] = -3; }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["lora_alpha"] = "16"; }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["lora_bias"] = true; }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["bias"] = "all"; }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["some_new_maths"] = 3; }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["init_lora_weights"] = "pissa"; }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["peft_type"] = "LOHA"; }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["lora_dropout"] = 1.5; }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["rank_pattern"] = Json({{"(((", 3}}); }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["rank_pattern"] = Json({{"a{99999}{99999}", 3}}); }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c["rank_pattern"] = Json({{std::string(600, 'a'), 3}}); }), "PFT002");
  EXPECT_EQ(config([](Json& c) { c = Json::array(); }), "PFT002");
  EXPECT_EQ(refused([](const std::string& p) { std::ofstream(p + "/adapter_config.json") << "{\"r\": "; }), "PFT002");
  EXPECT_EQ(refused([](const std::string& p) { std::filesystem::remove(p + "/adapter_config.json"); }), "IO001 ");
  EXPECT_EQ(refused([](const std::string& p) { std::filesystem::resize_file(p + "/adapter_model.safetensors", 40); }),
            "CKP001");
  EXPECT_EQ(tensors([](SafetensorsFile& f) {
              std::erase_if(f.tensors, [](auto& t) { return t.first.ends_with("0.mlp.c_fc.lora_magnitude_vector"); });
            }),
            "PFT002");
  EXPECT_EQ(tensors([](SafetensorsFile& f) {
              std::erase_if(f.tensors, [](auto& t) { return t.first.ends_with("0.mlp.c_fc.lora_B.weight"); });
            }),
            "PFT002");
  EXPECT_EQ(tensors([](SafetensorsFile& f) { f.tensors[0].first = "base_model.model.text_head.weight"; }), "PFT002");
  EXPECT_EQ(tensors([](SafetensorsFile& f) {
              f.tensors.emplace_back("gpt.h.0.mlp.c_fc.lora_A.default.weight", f.tensors[0].second);
            }),
            "PFT002");
  EXPECT_EQ(tensors([](SafetensorsFile& f) {
              for (auto& [name, tensor] : f.tensors) {
                if (const auto place = name.find(".h.1."); place != std::string::npos) name[place + 3] = '7';
              }
            }),
            "PFT002");
  EXPECT_EQ(tensors([](SafetensorsFile& f) { f.tensors.clear(); }), "PFT002");
  EXPECT_EQ(tensors([](SafetensorsFile& f) { f.tensors[0].second = torch_to_tensor(at::randn({3, 8})); }), "PFT002");
  EXPECT_EQ(tensors([](SafetensorsFile& f) {
              f.tensors[0].second = torch_to_tensor(at::ones({3, 6}, at::kLong));
            }),
            "PFT002");
}

TEST_F(PeftFiles, APatternCannotStallTheReader) {
  const std::string path = written(make(AdapterKind::kLora, 2));
  edit_config(path, [](Json& config) { config["rank_pattern"] = Json({{"(([a-z.0-9_]*)*)*!", 3}}); });
  const auto start = std::chrono::steady_clock::now();
  read_peft_folder(path);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
}

}  // namespace
}  // namespace train_gpt_v2
