#include "adapter_summary.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kDelta = ".lora_";

bool is_number(const std::string& segment) {
  return !segment.empty() && segment.find_first_not_of("0123456789") == std::string::npos;
}

// "gpt.h.3.attn.c_attn" -> "gpt.h.*.attn.c_attn"
std::string without_numbers(const std::string& module) {
  std::vector<std::string> segments = split(module, '.');
  for (std::string& segment : segments) {
    if (is_number(segment)) segment = "*";
  }
  return join(segments, ".");
}

std::string range(std::int64_t low, std::int64_t high) {
  return low == high ? std::to_string(low) : concat(low, "-", high);
}

}  // namespace

std::uint64_t AdapterSummary::parameters() const {
  return std::accumulate(modules.begin(), modules.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const AdapterModuleSummary& one) { return sum + one.parameters; });
}

std::int64_t AdapterSummary::rank_total() const {
  return std::accumulate(modules.begin(), modules.end(), std::int64_t{0},
                         [](std::int64_t sum, const AdapterModuleSummary& one) { return sum + one.rank; });
}

std::optional<AdapterSummary> summarise_adapters(const Value& root) {
  const Value* dict = root.find("adapter");
  if (!dict) dict = root.find("model");
  if (!dict || !dict->is_dict()) return std::nullopt;
  const Value* base = root.find("base_model");
  AdapterSummary summary;
  std::map<std::string, std::size_t> place;
  bool magnitude = false, adaptive = false;
  for (const auto& [key, value] : dict->entries()) {
    if (!key.is_string() || !value.is_tensor()) continue;
    std::string_view name = key.as_string();
    if (starts_with(name, kPrefix)) name.remove_prefix(kPrefix.size());
    const std::size_t at = name.find(kDelta);
    if (at == std::string_view::npos) continue;
    const std::string module(name.substr(0, at));
    const std::string part = split(name.substr(at + 1), '.').front();
    const auto [found, is_new] = place.try_emplace(module, summary.modules.size());
    if (is_new) {
      summary.modules.emplace_back().module = module;
      const Value* matrix = base && base->is_dict() ? base->find(module + ".weight") : nullptr;
      if (matrix && matrix->is_tensor()) {
        summary.modules.back().base_elements = static_cast<std::uint64_t>(matrix->as_tensor().numel());
      }
    }
    AdapterModuleSummary& one = summary.modules[found->second];
    const Tensor& tensor = value.as_tensor();
    one.parameters += static_cast<std::uint64_t>(tensor.numel());
    if ((part == "lora_A" || part == "lora_embedding_A") && !tensor.shape.empty()) one.rank = tensor.shape[0];
    magnitude = magnitude || part == "lora_magnitude_vector";
    adaptive = adaptive || part == "lora_E";
  }
  if (summary.modules.empty()) return std::nullopt;
  summary.method = magnitude ? (adaptive ? "dora_adalora" : "dora") : (adaptive ? "adalora" : "lora");
  return summary;
}

std::string adapter_table(const AdapterSummary& summary) {
  struct Kind {
    std::int64_t low = std::numeric_limits<std::int64_t>::max(), high = 0;
    std::uint64_t matrices = 0, parameters = 0;
  };
  std::map<std::string, Kind> kinds;
  std::set<std::string> layers;
  std::uint64_t in_layers = 0, of_layers = 0;
  for (const AdapterModuleSummary& one : summary.modules) {
    Kind& kind = kinds[without_numbers(one.module)];
    kind.low = std::min(kind.low, one.rank);
    kind.high = std::max(kind.high, one.rank);
    ++kind.matrices;
    kind.parameters += one.parameters;
    if (!starts_with(one.module, "gpt.h.")) continue;
    layers.insert(split(one.module, '.')[2]);
    in_layers += one.parameters;
    of_layers += one.base_elements;
  }
  std::vector<std::vector<std::string>> rows{{"adapters", "rank", "matrices", "parameters"}};
  for (const auto& [name, kind] : kinds) {
    rows.push_back({printable_text(name), range(kind.low, kind.high), std::to_string(kind.matrices),
                    human_count(kind.parameters)});
  }
  std::string text = table(rows);
  text += concat(summary.method, ": ", human_count(summary.parameters()), " parameters, ", summary.rank_total(),
                 " ranks in ", summary.modules.size(), " matrices");
  if (!layers.empty()) text += concat(", ", human_count(in_layers / layers.size()), " per layer");
  if (of_layers > 0 && in_layers > 0) {
    text += concat(" of ", human_count(of_layers / layers.size()), " (",
                   fixed(static_cast<double>(of_layers) / static_cast<double>(in_layers), 1), "x fewer)");
  }
  return text + "\n";
}

}  // namespace train_gpt_v2
