// `fisher` on the fixtures' model: the expectation of the heads' biases in closed form, repeatability, interruption.

#include "train_gpt_v2/app/fisher_command.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/softmax.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "support/error_of.h"
#include "support/test_files.h"
#include "train_gpt_v2/adapt/ewc.h"
#include "train_gpt_v2/app/inspect_command.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/signals.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using testing::TemporaryFolder;

class FisherCommand : public ::testing::Test {
 protected:
  FisherCommand() {
    reset_signal_flags();
    request_.model.checkpoint = data_path("fixtures/model/gpt.pth");
    request_.model.config = data_path("export/fixture.json");
    request_.model.sets = {"data.tokenizer=\"" + data_path("fixtures/tokenizer/extended.model") + "\""};
    request_.manifests = {data_path("fixtures/data/train_pairs.jsonl") + "::am",
                          data_path("fixtures/data/val_pairs.jsonl") + "::en"};
    request_.output = folder_.file("new/fisher.safetensors");
    request_.json = true;
  }

  nlohmann::json run() {
    std::ostringstream out;
    EXPECT_EQ(run_fisher(request_, out), ExitStatus::kOk);
    return nlohmann::json::parse(out.str());
  }

  static at::Tensor find(const Fisher& fisher, const std::string& name) {
    for (const auto& [known, value] : fisher.values) {
      if (known == name) return value;
    }
    return {};
  }

  TemporaryFolder folder_;
  FisherRequest request_;
};

TEST_F(FisherCommand, HeadBiasesMeetTheirExpectation) {
  // ∂ log p(y)/∂ bias = onehot(y) − p, so with y ~ p the entries of F sum to weight²·mean over positions of 1 − Σp².
  request_.batch_size = 1;
  const nlohmann::json printed = run();
  const Fisher fisher = read_fisher(request_.output);
  EXPECT_EQ(printed.at("samples"), 32);
  EXPECT_EQ(fisher.samples, 32);
  EXPECT_EQ(printed.at("tokens"), fisher.tokens);
  EXPECT_EQ(printed.at("bytes"), file_size(request_.output));

  const at::NoGradGuard no_grad;
  const ModelSource source = load_model(request_.model);
  UnifiedVoice& model = *source.model;
  const auto data = open_pairs(source.options, request_.manifests);
  double text = 0, mel = 0;
  std::int64_t tokens = 0;
  for (std::uint32_t i = 0; i < data->epoch_size(); ++i) {
    Batch batch;
    data->load(i, batch);
    const ModelInputs inputs = assemble_inputs(batch, source.options.model, BatchLayout::kPacked, at::kCPU);
    const at::Tensor rows = model.run_blocks(model.embed(inputs), inputs.segments);
    const auto spread = [&](const Dense& head, const at::Tensor& scored) {
      const at::Tensor p =
          at::softmax(head.forward(model.final_states(rows.index_select(0, scored))).to(at::kDouble), 1);
      return (1 - p.square().sum(1)).sum().item<double>();
    };
    text += spread(*model.text_head, inputs.text_scored_rows);
    mel += spread(*model.mel_head, inputs.mel_scored_rows);
    tokens += inputs.text_tokens() + inputs.mel_tokens();
  }
  EXPECT_EQ(fisher.tokens, tokens);
  const double count = static_cast<double>(tokens);
  const auto measured = [&](const char* name) { return find(fisher, name).sum(at::kDouble).item<double>() * count; };
  // 32 squares of sums over some 30 labels each: a few per cent of noise.
  EXPECT_NEAR(measured("text_head.bias") / (0.2 * 0.2 * text), 1, 0.15);
  EXPECT_NEAR(measured("mel_head.bias") / (0.8 * 0.8 * mel), 1, 0.15);
}

TEST_F(FisherCommand, NamesWhatCanTrainAndTheWeightsItWasMeasuredOn) {
  request_.samples = 5;
  EXPECT_EQ(run().at("samples"), 5);
  const Fisher fisher = read_fisher(request_.output);
  const ModelSource source = load_model(request_.model);
  std::vector<std::pair<std::string, at::Tensor>> weights;
  std::size_t expected = 0;
  for (const auto& item : source.model->named_parameters()) {
    const bool measured = find(fisher, item.key()).defined();
    EXPECT_EQ(measured, !UnifiedVoice::is_conditioner(item.key())) << item.key();
    expected += measured;
    if (measured) weights.emplace_back(item.key(), item.value());
  }
  EXPECT_EQ(fisher.values.size(), expected);
  // The run that uses it accepts exactly these weights.
  const EwcOptions options{true, request_.output, 1.0, "penalty"};
  Ewc(options, fisher, weights, nullptr, true).check_anchors();
  at::Tensor table = weights.front().second;
  table[0][0] += 1;
  EXPECT_THROW(Ewc(options, fisher, weights, nullptr, true).check_anchors(), Error);
  for (const char* name :
       {"gpt.h.0.attn.c_attn.weight", "text_embedding.weight", "mel_head.weight", "gpt.ln_f.weight"}) {
    EXPECT_GT(find(fisher, name).sum().item<double>(), 0) << name;
  }
}

TEST_F(FisherCommand, OnlineConditioningMeasuresTheConditionersToo) {
  request_.model.sets.push_back("model.conditioning=online");
  std::string lines;
  std::istringstream pairs(read_file(data_path("fixtures/data/val_pairs.jsonl"), 1 << 20));
  const auto fixture = [](const nlohmann::json& path) { return data_path("fixtures/data/" + path.get<std::string>()); };
  for (std::string line; std::getline(pairs, line);) {
    nlohmann::json pair = nlohmann::json::parse(line);
    for (auto& [key, value] : pair.items()) {
      if (key.ends_with("_path") && value.is_string()) value = fixture(value);
    }
    const std::string features = pair.at("prompt_condition_path").get<std::string>();
    pair["prompt_features_path"] = data_path("fixtures/data/features/" + file_name(features));
    lines += pair.dump() + "\n";
  }
  request_.manifests = {folder_.write("online.jsonl", lines)};
  request_.samples = 4;
  run();
  const Fisher fisher = read_fisher(request_.output);
  std::size_t conditioners = 0;
  for (const auto& [name, value] : fisher.values) {
    conditioners += UnifiedVoice::is_conditioner(name) && value.sum().item<double>() > 0;
  }
  EXPECT_GT(conditioners, 20u);
}

TEST_F(FisherCommand, TheSameCallGivesTheSameBytes) {
  request_.samples = 6;
  request_.batch_size = 4;
  run();
  const std::string first = read_file(request_.output, 1 << 26);
  request_.output = folder_.file("again.safetensors");
  run();
  EXPECT_EQ(first, read_file(request_.output, 1 << 26));
  request_.model.sets.push_back("train.seed=7");
  run();
  EXPECT_NE(first, read_file(request_.output, 1 << 26));
}

TEST_F(FisherCommand, ItsFileIsNoModel) {
  request_.samples = 1;
  run();
  ModelRequest model = request_.model;
  model.checkpoint = request_.output;
  const Error error = testing::error_of([&] { load_model(model); });
  EXPECT_EQ(error.code(), "CKP002");
  EXPECT_NE(error.hint().find("ewc.fisher"), std::string::npos);
  std::ostringstream out;
  run_inspect(request_.output, false, true, out);
  const nlohmann::json shown = nlohmann::json::parse(out.str());
  EXPECT_EQ(shown.at("kind"), "fisher");
  EXPECT_FALSE(shown.contains("model"));
  EXPECT_EQ(shown.at("resumable"), false);
}

TEST_F(FisherCommand, AStopWritesNothing) {
  request_stop(ExitStatus::kSigterm);
  std::ostringstream out;
  EXPECT_EQ(run_fisher(request_, out), ExitStatus::kSigterm);
  EXPECT_FALSE(file_exists(request_.output));
  EXPECT_EQ(out.str(), "");
  reset_signal_flags();
}

TEST_F(FisherCommand, WhatCannotBeMeasuredIsRefused) {
  const auto refused = [&](const FisherRequest& request) -> std::string {
    std::ostringstream out;
    try {
      run_fisher(request, out);
    } catch (const Error& error) {
      EXPECT_FALSE(file_exists(request.output));
      return error.code();
    }
    return "";
  };
  FisherRequest none = request_;
  none.manifests.clear();
  EXPECT_EQ(refused(none), "CFG021");
  FisherRequest lost = request_;
  lost.manifests = {folder_.file("nothing.jsonl")};
  EXPECT_EQ(refused(lost), "IO001");
  FisherRequest empty = request_;
  empty.manifests = {folder_.write("empty.jsonl", "")};
  EXPECT_EQ(refused(empty), "DAT008");
  FisherRequest blocked = request_;
  blocked.output = folder_.write("file", "x") + "/fisher.safetensors";
  EXPECT_EQ(refused(blocked), "IO003");
}

}  // namespace
}  // namespace train_gpt_v2
