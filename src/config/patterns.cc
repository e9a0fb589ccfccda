#include "train_gpt_v2/config/patterns.h"

#include <algorithm>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using Segments = std::vector<std::string>;

// The plan's names (Hugging Face GPT-2) and what they are here. Longer ones first.
struct Alias {
  Segments written;
  std::vector<Segments> meanings;
};

const std::vector<Alias>& aliases() {
  static const std::vector<Alias> known{
      {{"transformer", "wte"}, {{"text_embedding"}}},
      {{"transformer", "wpe"}, {{"text_pos_embedding"}, {"mel_pos_embedding"}}},
      {{"transformer", "h"}, {{"gpt", "h"}}},
      {{"transformer", "ln_f"}, {{"gpt", "ln_f"}, {"final_norm"}}},
      {{"wte"}, {{"text_embedding"}}},
      {{"wpe"}, {{"text_pos_embedding"}, {"mel_pos_embedding"}}},
      {{"lm_head"}, {{"text_head"}}},
      {{"ln_f"}, {{"gpt", "ln_f"}, {"final_norm"}}},
  };
  return known;
}

// `*` within one segment; the classic two-pointer match, linear in practice and never exponential.
bool segment_matches(std::string_view glob, std::string_view segment) {
  std::size_t g = 0, s = 0, star = std::string_view::npos, resume = 0;
  while (s < segment.size()) {
    if (g < glob.size() && glob[g] == '*') {
      star = g++;
      resume = s;
    } else if (g < glob.size() && glob[g] == segment[s]) {
      ++g;
      ++s;
    } else if (star != std::string_view::npos) {
      g = star + 1;
      s = ++resume;
    } else {
      return false;
    }
  }
  while (g < glob.size() && glob[g] == '*') ++g;
  return g == glob.size();
}

bool run_matches(const Segments& glob, const Segments& name) {
  if (glob.size() > name.size()) return false;
  for (std::size_t start = 0; start + glob.size() <= name.size(); ++start) {
    bool all = true;
    for (std::size_t i = 0; all && i < glob.size(); ++i) all = segment_matches(glob[i], name[start + i]);
    if (all) return true;
  }
  return false;
}

// A pattern made ready for many names.
struct Compiled {
  explicit Compiled(std::string_view pattern) {
    for (const std::string& alternative : expand_pattern(pattern)) alternatives.push_back(split(alternative, '.'));
  }
  bool matches(const Segments& name) const {
    return std::any_of(alternatives.begin(), alternatives.end(),
                       [&](const Segments& a) { return run_matches(a, name); });
  }
  std::vector<Segments> alternatives;
};

std::vector<Segments> split_all(const std::vector<std::string>& names) {
  std::vector<Segments> result;
  result.reserve(names.size());
  for (const std::string& name : names) result.push_back(split(name, '.'));
  return result;
}

Compiled compile(std::string_view pattern, std::string_view key) {
  const std::string problem = pattern_problem(pattern);
  if (!problem.empty()) {
    throw Error("CFG003", concat(key, ": the module pattern \"", pattern, "\" ", problem))
        .fix("patterns are dotted names, * stands for any characters within a segment: attn.c_attn, gpt.h.*.ln_1");
  }
  return Compiled(pattern);
}

[[noreturn]] void fail_without_match(std::string_view pattern, const std::vector<Segments>& names,
                                     std::string_view key) {
  std::vector<std::string> known;
  for (const Segments& name : names) known.insert(known.end(), name.begin(), name.end());
  std::sort(known.begin(), known.end());
  known.erase(std::unique(known.begin(), known.end()), known.end());
  std::string hint = "list the names with: train_gpt_v2 inspect FILE";
  for (const std::string& segment : split(pattern, '.')) {
    if (segment.find('*') != std::string::npos || std::binary_search(known.begin(), known.end(), segment)) continue;
    const std::string near = nearest_name(segment, known);
    if (!near.empty()) hint = concat("did you mean \"", near, "\" for \"", segment, "\"? ", hint);
    break;
  }
  throw Error("CFG003", concat(key, ": the module pattern \"", pattern, "\" matches nothing in this model")).fix(hint);
}

}  // namespace

std::string pattern_problem(std::string_view pattern) {
  if (pattern.empty()) return "is empty";
  if (pattern.size() > 256) return "is longer than 256 characters";
  for (const std::string& segment : split(pattern, '.')) {
    if (segment.empty()) return "has an empty segment";
  }
  for (const char c : pattern) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!plain && c != '_' && c != '-' && c != '.' && c != '*') return "has a character that no module name has";
  }
  return "";
}

std::vector<std::string> expand_pattern(std::string_view pattern) {
  std::vector<std::string> result{std::string(pattern)};
  const Segments segments = split(pattern, '.');
  for (std::size_t start = 0; start < segments.size(); ++start) {
    for (const Alias& alias : aliases()) {
      if (start + alias.written.size() > segments.size()) continue;
      const auto first = segments.begin() + static_cast<std::ptrdiff_t>(start);
      if (!std::equal(alias.written.begin(), alias.written.end(), first)) continue;
      for (const Segments& meaning : alias.meanings) {
        Segments replaced(segments.begin(), first);
        replaced.insert(replaced.end(), meaning.begin(), meaning.end());
        replaced.insert(replaced.end(), first + static_cast<std::ptrdiff_t>(alias.written.size()), segments.end());
        result.push_back(join(replaced, "."));
      }
      return result;  // a name holds at most one of them
    }
  }
  return result;
}

bool pattern_matches(std::string_view pattern, std::string_view name) {
  return Compiled(pattern).matches(split(name, '.'));
}

std::vector<bool> select_names(const std::vector<std::string>& patterns, const std::vector<std::string>& names,
                               std::string_view key) {
  const std::vector<Segments> segments = split_all(names);
  std::vector<bool> selected(names.size(), false);
  for (const std::string& pattern : patterns) {
    const Compiled compiled = compile(pattern, key);
    bool any = false;
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!compiled.matches(segments[i])) continue;
      any = true;
      selected[i] = true;
    }
    if (!any) fail_without_match(pattern, segments, key);
  }
  return selected;
}

std::vector<int> assign_groups(const std::vector<PatternGroup>& groups, const std::vector<std::string>& names,
                               std::string_view key) {
  std::vector<int> owner(names.size(), -1);
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const std::vector<bool> mine = select_names(groups[g].patterns, names, key);
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!mine[i]) continue;
      if (owner[i] >= 0) {
        throw Error("CFG003", concat(key, ": the tensor ", names[i], " falls into two groups"))
            .detail(
                concat("groups \"", groups[static_cast<std::size_t>(owner[i])].name, "\" and \"", groups[g].name, "\""))
            .fix("make one of the patterns narrower");
      }
      owner[i] = static_cast<int>(g);
    }
  }
  return owner;
}

}  // namespace train_gpt_v2
