// Keys, shapes, order and parameter counts: architecture.md §6 for three sizes (on the meta device, no memory) and the
// fixtures' keys.txt line by line.

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <string>

#include "support/model_fill.h"
#include "support/test_files.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/tensor.h"

namespace train_gpt_v2::testing {
namespace {

std::vector<StateEntry> state_of(const ModelOptions& options) {
  return UnifiedVoice(options, at::TensorOptions(at::kMeta).dtype(at::kFloat)).state();
}

ModelOptions fixture_options() {
  ModelOptions options;
  options.model_dim = 64;
  options.layers = 2;
  options.heads = 2;
  options.number_text_tokens = 360;
  options.number_mel_codes = 226;
  options.start_mel_token = 224;
  options.stop_mel_token = 225;
  options.max_text_tokens = 60;
  options.max_mel_tokens = 120;
  options.condition_module = {6, 16, 2, 2, "conv2d2", 1};
  options.emo_condition_module = {4, 12, 1, 2, "conv2d2", 0.015625};
  return options;
}

TEST(ModelKeys, EqualTheFixturesInOrder) {
  std::ifstream file(data_path("fixtures/model/keys.txt"));
  const auto state = state_of(fixture_options());
  std::string line;
  std::size_t i = 0;
  for (; std::getline(file, line); ++i) {
    ASSERT_LT(i, state.size()) << "missing: " << line;
    EXPECT_EQ(concat(state[i].name, "\t", shape_text(state[i].tensor.sizes()), "\tfloat32\t",
                     state[i].buffer ? "buffer" : "parameter"),
              line);
  }
  EXPECT_EQ(i, 215u);
  EXPECT_EQ(i, state.size());
}

TEST(ModelKeys, OptimiserIndicesAreStateOrderWithoutBuffers) {
  const UnifiedVoice model(fixture_options(), at::TensorOptions(at::kMeta).dtype(at::kFloat));
  const auto parameters = model.named_parameters();
  std::size_t index = 0;
  for (const StateEntry& entry : model.state()) {
    if (entry.buffer) continue;
    ASSERT_LT(index, parameters.size());
    EXPECT_EQ(parameters[index++].key(), entry.name);
  }
  EXPECT_EQ(index, 213u);
}

struct Counts {
  std::map<std::string, std::int64_t> part;  // first segment of the name -> parameters
  std::int64_t all = 0, loss_path = 0, with_buffers = 0, keys = 0, parameters = 0;
};

Counts count(const ModelOptions& options) {
  Counts counts;
  for (const StateEntry& entry : state_of(options)) {
    ++counts.keys;
    counts.with_buffers += entry.tensor.numel();
    if (entry.buffer) continue;
    ++counts.parameters;
    counts.part[entry.name.substr(0, entry.name.find('.'))] += entry.tensor.numel();
    counts.all += entry.tensor.numel();
    if (!UnifiedVoice::is_conditioner(entry.name)) counts.loss_path += entry.tensor.numel();
  }
  return counts;
}

TEST(ModelCounts, Released) {
  const Counts counts = count(ModelOptions{});
  const std::map<std::string, std::int64_t> expected{{"conditioning_encoder", 159250944},
                                                     {"perceiver_encoder", 19053224},
                                                     {"emo_conditioning_encoder", 146622976},
                                                     {"emo_perceiver_encoder", 11018580},
                                                     {"text_embedding", 15361280},
                                                     {"emo_layer", 1639680},
                                                     {"emovec_layer", 1312000},
                                                     {"mel_embedding", 10488320},
                                                     {"gpt", 472261120},
                                                     {"mel_pos_embedding", 2327040},
                                                     {"text_pos_embedding", 770560},
                                                     {"final_norm", 2560},
                                                     {"text_head", 15373281},
                                                     {"mel_head", 10496514},
                                                     {"speed_emb", 2560}};
  EXPECT_EQ(counts.part, expected);
  EXPECT_EQ(counts.all, 865980639);
  EXPECT_EQ(counts.loss_path, 527083235);
  EXPECT_EQ(counts.with_buffers, 871100639);
  EXPECT_EQ(counts.keys, 665);
  EXPECT_EQ(counts.parameters, 663);
}

TEST(ModelCounts, ReleasedWith24000Pieces) {
  ModelOptions options;
  options.number_text_tokens = 24000;
  const Counts counts = count(options);
  EXPECT_EQ(counts.part.at("text_embedding"), 30721280);
  EXPECT_EQ(counts.part.at("text_head"), 30745281);
  EXPECT_EQ(counts.all, 896712639);
  EXPECT_EQ(counts.loss_path, 557815235);
  EXPECT_EQ(counts.with_buffers, 901832639);
  EXPECT_EQ(counts.keys, 665);
}

TEST(ModelCounts, Amharic) {
  ModelOptions options;
  options.model_dim = 512;
  options.layers = 12;
  options.heads = 8;
  options.number_text_tokens = 24000;
  const Counts counts = count(options);
  const std::map<std::string, std::int64_t> expected{{"conditioning_encoder", 159250944},
                                                     {"perceiver_encoder", 4212904},
                                                     {"emo_conditioning_encoder", 146622976},
                                                     {"emo_perceiver_encoder", 11018580},
                                                     {"text_embedding", 12288512},
                                                     {"emo_layer", 262656},
                                                     {"emovec_layer", 524800},
                                                     {"mel_embedding", 4195328},
                                                     {"gpt", 37829632},
                                                     {"mel_pos_embedding", 930816},
                                                     {"text_pos_embedding", 308224},
                                                     {"final_norm", 1024},
                                                     {"text_head", 12312513},
                                                     {"mel_head", 4203522},
                                                     {"speed_emb", 1024}};
  EXPECT_EQ(counts.part, expected);
  EXPECT_EQ(counts.all, 393963455);
  EXPECT_EQ(counts.loss_path, 72070595);
  EXPECT_EQ(counts.with_buffers, 399083455);
  EXPECT_EQ(counts.keys, 519);
  EXPECT_EQ(counts.parameters, 517);
}

TEST(ModelKeys, ReleasedParameterIndices) {  // architecture.md §1.5
  std::vector<std::string> names;
  for (const StateEntry& entry : state_of(ModelOptions{})) {
    if (!entry.buffer) names.push_back(entry.name);
  }
  EXPECT_TRUE(names.at(191).starts_with("conditioning_encoder."));
  EXPECT_EQ(names.at(192), "perceiver_encoder.latents");
  EXPECT_TRUE(names.at(210).starts_with("emo_conditioning_encoder.embed.conv.0.weight"));
  EXPECT_EQ(names.at(340), "emo_perceiver_encoder.latents");
  EXPECT_EQ(names.at(358), "text_embedding.weight");
  EXPECT_EQ(names.at(359), "emo_layer.weight");
  EXPECT_EQ(names.at(361), "emovec_layer.weight");
  EXPECT_EQ(names.at(363), "mel_embedding.weight");
  EXPECT_EQ(names.at(364), "gpt.h.0.ln_1.weight");
  EXPECT_EQ(names.at(364 + 12 * 5 + 11), "gpt.h.5.mlp.c_proj.bias");
  EXPECT_EQ(names.at(653), "gpt.ln_f.bias");
  EXPECT_EQ(names.at(654), "mel_pos_embedding.emb.weight");
  EXPECT_EQ(names.at(655), "text_pos_embedding.emb.weight");
  EXPECT_EQ(names.at(658), "text_head.weight");
  EXPECT_EQ(names.at(660), "mel_head.weight");
  EXPECT_EQ(names.at(662), "speed_emb.weight");
}

}  // namespace
}  // namespace train_gpt_v2::testing
