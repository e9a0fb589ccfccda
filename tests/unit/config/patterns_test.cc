// Module patterns on names of the real model.
#include "train_gpt_v2/config/patterns.h"

#include <gmock/gmock.h>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Patterns, MatchWholeSegmentsAnywhereAndBeneath) {
  EXPECT_TRUE(pattern_matches("attn.c_attn", "gpt.h.3.attn.c_attn.weight"));
  EXPECT_TRUE(pattern_matches("attn", "gpt.h.3.attn.c_attn.weight"));
  EXPECT_TRUE(pattern_matches("gpt.h.3", "gpt.h.3.attn.c_attn.weight"));
  EXPECT_FALSE(pattern_matches("gpt.h.3", "gpt.h.33.attn.c_attn.weight"));
  EXPECT_FALSE(pattern_matches("c_att", "gpt.h.3.attn.c_attn.weight"));
  EXPECT_FALSE(pattern_matches("attn.weight", "gpt.h.3.attn.c_attn.weight"));
  EXPECT_TRUE(pattern_matches("gpt.h.3.attn.c_attn.weight", "gpt.h.3.attn.c_attn.weight"));
  EXPECT_FALSE(pattern_matches("gpt.h.3.attn.c_attn.weight.x", "gpt.h.3.attn.c_attn.weight"));
  EXPECT_TRUE(pattern_matches("weight", "gpt.h.3.attn.c_attn.weight"));
  EXPECT_TRUE(pattern_matches("mel_head", "mel_head.bias"));
  EXPECT_FALSE(pattern_matches("conditioning_encoder", "emo_conditioning_encoder.embed.conv.0.weight"));
}

TEST(Patterns, StarStaysWithinASegment) {
  EXPECT_TRUE(pattern_matches("ln_*", "gpt.h.0.ln_1.bias"));
  EXPECT_TRUE(pattern_matches("gpt.h.*.ln_1", "gpt.h.11.ln_1.bias"));
  EXPECT_FALSE(pattern_matches("gpt.*.ln_1", "gpt.h.11.ln_1.bias"));
  EXPECT_TRUE(pattern_matches("gpt.*.*.ln_1", "gpt.h.11.ln_1.bias"));
  EXPECT_TRUE(pattern_matches("*conditioning_encoder", "emo_conditioning_encoder.embed.conv.0.weight"));
  EXPECT_TRUE(pattern_matches("*", "anything"));
  EXPECT_TRUE(pattern_matches("*.*", "a.b"));
  EXPECT_FALSE(pattern_matches("*.*", "a"));
  EXPECT_TRUE(pattern_matches("c_*", "gpt.h.0.mlp.c_fc.weight"));
  EXPECT_TRUE(pattern_matches("*_*_*", "mel_pos_embedding.emb.weight"));
  EXPECT_FALSE(pattern_matches("a*b*c", "axxbxx"));
  EXPECT_TRUE(pattern_matches("a*b*c", "abbbc"));
  EXPECT_FALSE(pattern_matches("*a*a*a*a*a*a*a*b", std::string(200, 'a')));  // and in no time
}

TEST(Patterns, NamesOfThePlanAreAliases) {
  EXPECT_THAT(expand_pattern("wte"), ElementsAre("wte", "text_embedding"));
  EXPECT_THAT(expand_pattern("transformer.wte.weight"), ElementsAre("transformer.wte.weight", "text_embedding.weight"));
  EXPECT_THAT(expand_pattern("wpe"), ElementsAre("wpe", "text_pos_embedding", "mel_pos_embedding"));
  EXPECT_THAT(expand_pattern("transformer.h.*.attn"), ElementsAre("transformer.h.*.attn", "gpt.h.*.attn"));
  EXPECT_THAT(expand_pattern("ln_f"), ElementsAre("ln_f", "gpt.ln_f", "final_norm"));
  EXPECT_THAT(expand_pattern("lm_head"), ElementsAre("lm_head", "text_head"));
  EXPECT_THAT(expand_pattern("mlp.c_fc"), ElementsAre("mlp.c_fc"));
  EXPECT_TRUE(pattern_matches("wte", "text_embedding.weight"));
  EXPECT_TRUE(pattern_matches("lm_head", "text_head.bias"));
  EXPECT_TRUE(pattern_matches("wpe", "mel_pos_embedding.emb.weight"));
  EXPECT_TRUE(pattern_matches("wpe", "text_pos_embedding.emb.weight"));
  EXPECT_TRUE(pattern_matches("ln_f", "gpt.ln_f.weight"));
  EXPECT_TRUE(pattern_matches("ln_f", "final_norm.weight"));
  EXPECT_TRUE(pattern_matches("gpt.ln_f", "gpt.ln_f.weight"));
  EXPECT_FALSE(pattern_matches("gpt.ln_f", "final_norm.weight"));
  EXPECT_FALSE(pattern_matches("wte", "mel_embedding.weight"));
}

TEST(Patterns, MalformedOnesAreNamed) {
  for (const char* bad : {"", ".", "a.", ".a", "a..b", "a b", "a/b", "[ab]", "a?", "ሀ"})
    EXPECT_NE(pattern_problem(bad), "") << bad;
  EXPECT_NE(pattern_problem(std::string(300, 'a')), "");
  for (const char* good : {"a", "*", "a.*.b", "gpt.h.0", "c_attn", "lora-a"})
    EXPECT_EQ(pattern_problem(good), "") << good;
}

const std::vector<std::string> kNames{"text_embedding.weight", "gpt.h.0.attn.c_attn.weight", "gpt.h.0.ln_1.weight",
                                      "gpt.h.1.attn.c_attn.weight", "mel_head.weight"};

TEST(Patterns, SelectNames) {
  EXPECT_THAT(select_names({"wte", "c_attn"}, kNames, "trainable.train"), ElementsAre(true, true, false, true, false));
  EXPECT_THAT(select_names({}, kNames, "trainable.train"), ElementsAre(false, false, false, false, false));
}

std::string report(const std::function<void()>& action) {
  try {
    action();
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "CFG003");
    return error.report();
  }
}

TEST(Patterns, MatchingNothingIsAnError) {
  const std::string text = report([] { select_names({"c_attn", "mel_haed"}, kNames, "trainable.freeze"); });
  EXPECT_THAT(text, HasSubstr("trainable.freeze: the module pattern \"mel_haed\" matches nothing in this model"));
  EXPECT_THAT(text, HasSubstr("did you mean \"mel_head\" for \"mel_haed\"?"));
  EXPECT_THAT(report([] { select_names({"a..b"}, kNames, "k"); }), HasSubstr("has an empty segment"));
}

TEST(Patterns, AssignGroups) {
  EXPECT_THAT(assign_groups({{"blocks", {"gpt.h"}}, {"ends", {"wte", "mel_head"}}}, kNames, "optimizer.groups"),
              ElementsAre(1, 0, 0, 0, 1));
  EXPECT_THAT(assign_groups({{"one", {"gpt.h.1"}}}, kNames, "optimizer.groups"), ElementsAre(-1, -1, -1, 0, -1));
  const std::string text = report([] {
    assign_groups({{"a", {"gpt.h"}}, {"b", {"ln_*"}}}, kNames, "optimizer.groups");
  });
  EXPECT_THAT(text, HasSubstr("the tensor gpt.h.0.ln_1.weight falls into two groups"));
  EXPECT_THAT(text, HasSubstr("groups \"a\" and \"b\""));
}

}  // namespace
}  // namespace train_gpt_v2
