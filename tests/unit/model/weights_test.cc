// Reading and writing the state dict: what must load, what must be refused, and how a vocabulary opens.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fixture_set.h"
#include "support/state_access.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/data/tokenizer.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/model/romanise.h"

namespace train_gpt_v2::testing {
namespace {

using ::testing::HasSubstr;

std::string code_of(UnifiedVoice& model, const Value& root, const LoadOptions& options = {}) {
  try {
    load_state(model, root, options);
  } catch (const Error& error) {
    return error.code();
  }
  return "none";
}

Value root_of(const std::string& file) {
  return read_tensor_file(fixture(file)).root;
}

// The dict of a model with one entry replaced, or left out when `value` is None.
Value with(const Value& dict, const std::string& name, const Value& value) {
  Value out = Value::ordered_dict();
  for (const Value::Entry& entry : dict.entries()) {
    if (entry.key.as_string() != name) out.set(entry.key, entry.value);
  }
  if (!value.is_none()) out.set(name, value);
  return out;
}

Value renamed(const Value& dict, const std::string& from, const std::string& to) {
  return with(with(dict, from, {}), to, dict.at(from));
}

bool same_weights(const UnifiedVoice& a, const UnifiedVoice& b, const std::function<bool(const std::string&)>& of) {
  const auto left = state_map(a), right = state_map(b);
  for (const auto& [name, tensor] : left) {
    if (of(name) && !at::equal(tensor, right.at(name))) return false;
  }
  return true;
}

bool any_name(const std::string&) {
  return true;
}

TEST(LoadState, SafetensorsAndTorchFilesAreEqual) {
  const auto torch = fixture_model(at::kFloat), safe = fixture_model(at::kFloat, "model/gpt.safetensors");
  EXPECT_TRUE(same_weights(*torch, *safe, any_name));
}

TEST(LoadState, ModelKeyWithAdapterLeftovers) {
  UnifiedVoice model(fixture_options());
  initialise(model, 5);
  UnifiedVoice fresh(fixture_options());
  initialise(fresh, 5);
  const LoadReport report = load_state(model, root_of("model/gpt_model_key.pth"), {});
  EXPECT_EQ(report.dropped.size(), 5u);  // gpt.wte.weight, two of inference_model, two deltas
  EXPECT_THAT(report.renamed, ::testing::SizeIs(2));
  EXPECT_TRUE(report.unexpected.empty());
  const auto full = fixture_model(at::kFloat);
  EXPECT_TRUE(same_weights(model, *full, [](const std::string& n) { return !UnifiedVoice::is_conditioner(n); }));
  EXPECT_TRUE(same_weights(
      model, fresh, [](const std::string& n) { return UnifiedVoice::is_conditioner(n) && !n.ends_with(".pe"); }));
  for (const std::string& name : report.missing) EXPECT_TRUE(UnifiedVoice::is_conditioner(name)) << name;
}

TEST(LoadState, TrainerCheckpointsDescendToTheirModel) {
  UnifiedVoice model(fixture_options());
  EXPECT_EQ(load_state(model, root_of("expected/trainer/model_step6.pth"), {}).loaded, 215);
}

TEST(LoadState, WhatIsWrittenReadsBackBitByBit) {
  const auto model = fixture_model(at::kFloat);
  const TemporaryFolder folder;
  write_torch_file(folder.file("gpt.pth"), state_value(*model));
  LoadOptions complete;
  complete.complete = true;
  UnifiedVoice again(fixture_options());
  const Value read = read_tensor_file(folder.file("gpt.pth")).root;
  EXPECT_EQ(load_state(again, read, complete).loaded, 215);
  EXPECT_TRUE(same_weights(*model, again, any_name));
  EXPECT_TRUE(identical(read, state_value(again)));
  // The file of the reference has the same keys in the same order.
  const Value reference = root_of("model/gpt.pth");
  ASSERT_EQ(reference.size(), read.size());
  for (std::size_t i = 0; i < read.size(); ++i) {
    EXPECT_EQ(read.entries()[i].key.as_string(), reference.entries()[i].key.as_string());
    EXPECT_TRUE(identical(read.entries()[i].value, reference.entries()[i].value));
  }
}

TEST(LoadState, HalfPrecisionAndStridesAreConverted) {
  const Value dict = root_of("model/gpt.pth");
  const auto exact = state_map(*fixture_model(at::kFloat));
  const std::string name = "gpt.h.0.attn.c_proj.weight";
  const at::Tensor transposed = exact.at(name).t().contiguous().t();
  UnifiedVoice model(fixture_options());
  load_state(model, with(dict, name, torch_to_tensor(transposed)), {});
  EXPECT_TRUE(at::equal(state_map(model).at(name), exact.at(name)));
  const at::Tensor half = exact.at(name).to(at::kBFloat16);
  load_state(model, with(dict, name, torch_to_tensor(half)), {});
  EXPECT_TRUE(at::equal(state_map(model).at(name), half.to(at::kFloat)));
}

TEST(LoadState, OldBuffersAreLeftOut) {
  Value dict = with(root_of("model/gpt.pth"), "gpt.h.0.attn.bias", Tensor::zeros(DType::kBool, {1, 1, 4, 4}));
  dict = with(dict, "gpt.h.1.attn.masked_bias", Tensor::zeros(DType::kFloat32, {}));
  dict = with(dict, "gpt.wpe.weight", Tensor::zeros(DType::kFloat32, {4, 64}));
  dict = with(dict, "conditioning_encoder.embed.pos_enc.pe", {});
  UnifiedVoice model(fixture_options());
  const LoadReport report = load_state(model, dict, {});
  EXPECT_EQ(report.dropped.size(), 3u);
  EXPECT_TRUE(report.missing.empty());  // the position table follows from its formula
  const auto full = fixture_model(at::kFloat);
  EXPECT_LT((state_map(model).at("conditioning_encoder.embed.pos_enc.pe") -
             state_map(*full).at("conditioning_encoder.embed.pos_enc.pe"))
                .abs()
                .max()
                .item<double>(),
            1e-3);  // sines of up to 5000 in float differ between libraries by the rounding of their argument
}

TEST(LoadState, RefusalsLeaveTheModelAlone) {
  UnifiedVoice model(fixture_options());
  initialise(model, 9);
  UnifiedVoice before(fixture_options());
  initialise(before, 9);
  const Value dict = root_of("model/gpt.pth");
  const Tensor small = Tensor::zeros(DType::kFloat32, {2, 2});
  EXPECT_EQ(code_of(model, with(dict, "mel_head.weight", small)), "CKP020");
  EXPECT_EQ(code_of(model, with(dict, "mel_head.weight", Tensor::zeros(DType::kInt64, {226, 64}))), "CKP020");
  EXPECT_EQ(code_of(model, with(dict, "text_head.bias", Tensor::zeros(DType::kFloat32, {200}))), "CKP020");
  EXPECT_EQ(code_of(model, with(dict, "text_embedding.weight", Tensor::zeros(DType::kFloat32, {361, 32}))), "CKP020");
  EXPECT_EQ(code_of(model, with(dict, "text_embedding.weight", Tensor::zeros(DType::kFloat32, {}))), "CKP020");
  EXPECT_EQ(code_of(model, with(dict, "gpt.ln_f.base_layer.weight", dict.at("gpt.ln_f.weight"))), "CKP020");
  EXPECT_EQ(code_of(model, with(dict, "spk_emb_proj.weight", small)), "CKP021");
  EXPECT_EQ(code_of(model, with(dict, "lang_embedding.weight", small)), "CKP021");
  EXPECT_EQ(code_of(model, root_of("peft/dora/adapter_model.safetensors")), "CKP022");
  EXPECT_EQ(code_of(model, Value::dict().set("base_model", dict).set("adapter", Value::dict())), "CKP022");
  EXPECT_EQ(code_of(model, Value::dict().set("adapter", Value::dict()).set("step", 5)), "CKP022");
  const Value fisher = Value::dict().set("format", "train_gpt_v2 fisher 1");
  EXPECT_EQ(code_of(model, with(dict, "__metadata__", fisher)), "CKP002");
  EXPECT_EQ(code_of(model, Value::dict()), "CKP023");
  EXPECT_EQ(code_of(model, Value::dict().set("weight", small)), "CKP023");
  EXPECT_EQ(code_of(model, Value::list()), "CKP003");
  LoadOptions complete;
  complete.complete = true;
  EXPECT_EQ(code_of(model, with(dict, "speed_emb.weight", {}), complete), "CKP023");
  EXPECT_TRUE(same_weights(model, before, any_name));
}

TEST(LoadState, AnUnknownKeyIsListed) {
  UnifiedVoice model(fixture_options());
  const Value dict = renamed(root_of("model/gpt.pth"), "speed_emb.weight", "sped_emb.weight");
  const LoadReport report = load_state(model, dict, {});
  EXPECT_THAT(report.missing, ::testing::ElementsAre("speed_emb.weight"));
  EXPECT_THAT(report.unexpected, ::testing::ElementsAre("sped_emb.weight"));
}

TEST(LoadState, MismatchesAreNamedWithBothShapes) {
  ModelOptions wide = fixture_options();
  wide.model_dim = 128;
  UnifiedVoice model(wide);
  try {
    load_state(model, root_of("model/gpt.pth"), {});
    FAIL() << "loaded";
  } catch (const Error& error) {
    EXPECT_THAT(error.report(), HasSubstr("perceiver_encoder.latents: file float32 [32, 64], model [32, 128]"));
  }
}

// --- vocabulary ---

TEST(Romanise, SoundsLikeAmharic) {
  EXPECT_EQ(romanise("ሰላም"), "selam");
  EXPECT_EQ(romanise("አማርኛ"), "amarnya");
  EXPECT_EQ(romanise("እንደ ሀገር"), "inde hager");
  EXPECT_EQ(romanise("ቋንቋ"), "qwanqwa");
  EXPECT_EQ(romanise("ጽሑፍ፡"), "tshuf ");
  EXPECT_EQ(romanise("abc 12 é"), "abc 12 é");
  EXPECT_EQ(romanise("\xE1\x88"), "\xE1\x88");  // cut in the middle of a letter
}

TEST(LongestMatch, PrefersLongPiecesAndSkipsTheUnknown) {
  const std::vector<std::string> pieces{"<s>",
                                        "</s>",
                                        "<unk>",
                                        "A",
                                        "B",
                                        "AB",
                                        "\xE2\x96\x81"
                                        "A",
                                        "ABC"};
  using Ids = std::vector<std::int64_t>;
  EXPECT_EQ(longest_match("ABA", pieces, 7), (Ids{5, 3}));
  EXPECT_EQ(longest_match(" AB", pieces, 7), (Ids{6, 4}));
  EXPECT_EQ(longest_match("ABC", pieces, 8), (Ids{7}));
  EXPECT_EQ(longest_match("X", pieces, 8), Ids{});
  EXPECT_EQ(longest_match("", pieces, 8), Ids{});
}

struct Opened {
  VocabularyRows base, model;
  VocabularyReport report;
};

// Six base pieces opened to ten, 4 wide.
Opened open(NewRows method, const std::vector<std::string>& new_pieces) {
  Opened o;
  o.base = {filled("table", {7, 4}, 2), filled("head", {7, 4}, 2), filled("bias", {7}, 2)};
  o.model = {at::full({11, 4}, 9.0), at::full({11, 4}, 9.0), at::full({11}, 9.0)};
  Vocabulary vocabulary;
  vocabulary.pieces = {"<s>", "</s>", "<unk>", "SE", "LA", "M"};
  vocabulary.pieces.insert(vocabulary.pieces.end(), new_pieces.begin(), new_pieces.end());
  vocabulary.segment = [pieces = vocabulary.pieces](std::string_view text) { return longest_match(text, pieces, 6); };
  o.report = open_vocabulary(o.base, o.model, method, vocabulary, 3);
  return o;
}

const std::vector<std::string> kNewPieces{"ሰላ",
                                          "\xE2\x96\x81"
                                          "ም",
                                          "LA", "ጭ"};  // the third is a base piece again

TEST(OpenVocabulary, RomanisedMean) {
  const Opened o = open(NewRows::kRomanisedMean, kNewPieces);
  EXPECT_EQ(o.report.romanised, 3);  // ጭ is "ch", which no base piece spells
  EXPECT_EQ(o.report.subpiece, 0);
  EXPECT_EQ(o.report.mean, 1);
  EXPECT_TRUE(at::equal(o.model.table.slice(0, 0, 6), o.base.table.slice(0, 0, 6)));
  EXPECT_TRUE(at::equal(o.model.head_weight.slice(0, 0, 6), o.base.head_weight.slice(0, 0, 6)));
  const auto head = [&](std::int64_t row, const at::Tensor& weight, const at::Tensor& bias) {
    EXPECT_LT((o.model.head_weight[row] - weight).abs().max().item<double>(), 1e-6) << row;
    EXPECT_NEAR(o.model.head_bias[row].item<double>(), bias.item<double>(), 1e-6) << row;
  };
  head(6, (o.base.head_weight[3] + o.base.head_weight[4]) / 2, (o.base.head_bias[3] + o.base.head_bias[4]) / 2);
  head(7, o.base.head_weight[5], o.base.head_bias[5]);
  head(8, o.base.head_weight[4], o.base.head_bias[4]);
  head(9, o.base.head_weight.slice(0, 0, 6).mean(0), o.base.head_bias.slice(0, 0, 6).mean());
  // Input rows carry small noise, so that equal spellings can be told apart.
  const at::Tensor noise = o.model.table[8] - o.base.table[4];
  EXPECT_GT(noise.abs().max().item<double>(), 0);
  EXPECT_LT(noise.abs().max().item<double>(), 0.1);
  // The spare row moves to the end.
  EXPECT_TRUE(o.report.spare_row_moved);
  EXPECT_TRUE(at::equal(o.model.table[10], o.base.table[6]));
  EXPECT_EQ(o.model.head_bias[10].item<float>(), o.base.head_bias[6].item<float>());
}

TEST(OpenVocabulary, SubpieceMeanFallsBackToTheMean) {
  const Opened o = open(NewRows::kSubpieceMean, kNewPieces);
  EXPECT_EQ(o.report.romanised, 0);
  EXPECT_EQ(o.report.subpiece, 1);
  EXPECT_EQ(o.report.mean, 3);
}

TEST(OpenVocabulary, MeanNoise) {
  const Opened o = open(NewRows::kMeanNoise, kNewPieces);
  EXPECT_EQ(o.report.mean, 4);
  EXPECT_TRUE(at::equal(o.model.head_weight[6], o.model.head_weight[9]));
  EXPECT_FALSE(at::equal(o.model.table[6], o.model.table[9]));
}

TEST(OpenVocabulary, RandomIsThePythonForksWay) {
  const Opened o = open(NewRows::kRandom, kNewPieces);
  EXPECT_EQ(o.report.random, 3);
  EXPECT_FALSE(o.report.spare_row_moved);
  EXPECT_TRUE(at::equal(o.model.table.slice(0, 0, 7), o.base.table));
  EXPECT_EQ(o.model.table.slice(0, 7).min().item<double>(), 9);  // what was there before
}

TEST(OpenVocabulary, WithTheFixturesTokenizers) {
  const Tokenizer extended(fixture("tokenizer/extended.model")), base(fixture("tokenizer/base.model"));
  ASSERT_EQ(base.size(), 160);
  ASSERT_EQ(extended.size(), 360);
  for (const Tokenizer* old : {&base, static_cast<const Tokenizer*>(nullptr)}) {
    Opened o;
    o.base = {filled("table", {161, 4}, 2), filled("head", {161, 4}, 2), filled("bias", {161}, 2)};
    o.model = {at::full({361, 4}, 9.0), at::full({361, 4}, 9.0), at::full({361}, 9.0)};
    const Vocabulary vocabulary = make_vocabulary(extended, old, 160);
    const VocabularyReport report = open_vocabulary(o.base, o.model, NewRows::kRomanisedMean, vocabulary, 1);
    EXPECT_EQ(report.romanised + report.subpiece + report.mean, 200);
    EXPECT_GE(report.romanised, 190) << (old ? "base tokenizer" : "longest match");
    EXPECT_LT(o.model.head_weight.max().item<double>(), 1);
    // A Latin piece of the base spells a new row: what the old tokenizer makes of "እንደ" is "INDE".
    const std::int32_t id = extended.piece_id("\xE2\x96\x81\u12A5\u1295\u12F0");
    ASSERT_GE(id, 160);
    const at::Tensor rows = at::tensor(vocabulary.segment(" INDE"));
    ASSERT_GT(rows.numel(), 0);
    const at::Tensor mean = at::index_select(o.base.head_weight, 0, rows).mean(0);
    EXPECT_LT((o.model.head_weight[id] - mean).abs().max().item<double>(), 1e-6);
  }
}

TEST(OpenVocabulary, ThroughAFile) {
  ModelOptions larger = fixture_options();
  larger.number_text_tokens = 400;
  UnifiedVoice model(larger);
  initialise(model, 1);
  const LoadReport report = load_state(model, root_of("model/gpt.pth"), {});
  ASSERT_TRUE(report.vocabulary);
  EXPECT_EQ(report.vocabulary->base_pieces, 360);
  EXPECT_EQ(report.vocabulary->mean, 40);  // no tokenizer was given
  EXPECT_EQ(report.loaded, 215);
  const auto base = state_map(*fixture_model(at::kFloat)), opened = state_map(model);
  EXPECT_TRUE(at::equal(opened.at("text_head.weight").slice(0, 0, 360), base.at("text_head.weight").slice(0, 0, 360)));
  EXPECT_TRUE(at::equal(opened.at("text_head.bias").slice(0, 400), base.at("text_head.bias").slice(0, 360)));
  ModelOptions smaller = fixture_options();
  smaller.number_text_tokens = 300;
  UnifiedVoice cut(smaller);
  load_state(cut, root_of("model/gpt.pth"), {});
  EXPECT_TRUE(at::equal(state_map(cut).at("text_embedding.weight"), base.at("text_embedding.weight").slice(0, 0, 301)));
}

}  // namespace
}  // namespace train_gpt_v2::testing
