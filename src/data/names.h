#pragma once
// Numbers for names, in order of first appearance.

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace train_gpt_v2 {

class Names {
 public:
  std::uint32_t number(std::string_view name) {
    if (last_ < names_.size() && names_[last_] == name) return last_;  // records come speaker by speaker
    const auto [found, added] = numbers_.try_emplace(std::string(name), static_cast<std::uint32_t>(names_.size()));
    if (added) names_.emplace_back(name);
    return last_ = found->second;
  }
  const std::vector<std::string>& names() const { return names_; }

 private:
  std::vector<std::string> names_;
  std::unordered_map<std::string, std::uint32_t> numbers_;
  std::uint32_t last_ = UINT32_MAX;
};

}  // namespace train_gpt_v2
