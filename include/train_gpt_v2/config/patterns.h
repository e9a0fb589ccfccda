#pragma once
// Module patterns (interface.md §2): globs over dotted parameter names. `*` stands for any characters within a segment;
// a pattern matches a run of whole segments anywhere in the name and everything beneath it: "attn.c_attn" matches
// gpt.h.3.attn.c_attn.weight, "ln_*" matches gpt.h.0.ln_1.bias. The plan's names are aliases: wte, wpe, lm_head,
// transformer.h, ln_f (also as transformer.wte …). Pure functions over strings, thread-safe.
// Errors: CFG003 when a pattern is malformed or matches nothing, or a name falls into two groups.

#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

// "" when the pattern is well-formed, else what is wrong with it.
std::string pattern_problem(std::string_view pattern);

// The pattern itself first, then what its aliases stand for: "wpe" -> wpe, text_pos_embedding, mel_pos_embedding.
std::vector<std::string> expand_pattern(std::string_view pattern);

// Aliases included.
bool pattern_matches(std::string_view pattern, std::string_view name);

// For each name whether any pattern matches it. `key` ("trainable.freeze") is for the message.
std::vector<bool> select_names(const std::vector<std::string>& patterns, const std::vector<std::string>& names,
                               std::string_view key);

struct PatternGroup {
  std::string name;
  std::vector<std::string> patterns;
};

// For each name the index of its group, -1 for none.
std::vector<int> assign_groups(const std::vector<PatternGroup>& groups, const std::vector<std::string>& names,
                               std::string_view key);

}  // namespace train_gpt_v2
