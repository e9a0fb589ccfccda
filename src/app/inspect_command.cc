#include "train_gpt_v2/app/inspect_command.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "adapter_summary.h"
#include "file_summary.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kShownDifferences = 40;  // as text; JSON lists all

struct Opened {
  LoadedFile file;
  Value root;  // with its weights under "model"
  FileSummary summary;
  double seconds = 0;
};

Opened open_file(const std::string& path, bool verify) {
  Opened opened;
  const auto start = std::chrono::steady_clock::now();
  opened.file = read_tensor_file(path, verify);
  opened.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  opened.root = with_model_key(opened.file.root);
  opened.summary = summarise(opened.root);
  if (opened.summary.tensors.empty()) {
    throw Error("CKP004", "the file holds no tensor").where(path).fix("check that this is the file you meant");
  }
  return opened;
}

Json value_json(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::kNone:
      return nullptr;
    case Value::Kind::kBool:
      return value.as_bool();
    case Value::Kind::kInt:
      return value.as_int();
    case Value::Kind::kBigInt:
      return value.big_int_text();
    case Value::Kind::kFloat:
      return std::isfinite(value.as_double()) ? Json(value.as_double()) : Json(exact_number(value.as_double()));
    case Value::Kind::kString:
      return value.as_string();
    case Value::Kind::kBytes:
      return concat(value.as_bytes().size(), " bytes");
    default:
      return concat("<", value.kind_name(), ">");
  }
}

std::string value_text(const Value& value) {
  if (value.is_string()) return printable_text(value.as_string());
  if (value.is_float()) return exact_number(value.as_double());
  if (value.is_opaque()) return concat("<", printable_text(value.class_name()), ">");
  return value.is_none() ? "None" : value_json(value).dump();
}

std::string types_text(const Section& section) {
  std::vector<std::string> types;
  for (const auto& [type, count] : section.types)
    types.push_back(section.types.size() > 1 ? concat(count, " ", type) : type);
  return join(types, ", ");
}

// Checks that were made, in words.
std::string verification(const Opened& opened, bool verify) {
  if (opened.file.format == "safetensors") return "structure checked; the format holds no checksums";
  if (!verify) return "structure checked; --verify also reads and checks every byte";
  return concat("every byte read and checked (", human_bytes(opened.file.bytes), " in ", human_duration(opened.seconds),
                ")");
}

Json summary_json(const std::string& path, const Opened& opened, bool verify) {
  const FileSummary& summary = opened.summary;
  Json document{{"file", path},
                {"bytes", opened.file.bytes},
                {"format", opened.file.format},
                {"kind", kind_name(summary.kind)},
                {"verified", verify && opened.file.format == "torch"}};
  if (!summary.model.empty()) document["model"] = summary.model;
  for (const auto& [name, value] : summary.values) document["values"][name] = value_json(value);
  for (const char* key : {"step", "epoch"}) {
    if (const Value* value = opened.root.find(key); value && value->is_int()) document[key] = value->as_int();
  }
  document["resumable"] = summary.resume_problem.empty();
  if (!summary.resume_problem.empty()) document["resume_problem"] = summary.resume_problem;
  document["resumable_in_python"] = summary.python_problem.empty();
  if (!summary.python_problem.empty()) document["python_problem"] = summary.python_problem;
  if (const auto adapters = summarise_adapters(opened.root)) {
    Json modules = Json::array();
    for (const AdapterModuleSummary& one : adapters->modules) {
      modules.push_back({{"module", one.module},
                         {"rank", one.rank},
                         {"parameters", one.parameters},
                         {"base_elements", one.base_elements}});
    }
    document["adapters"] = {{"method", adapters->method},
                            {"parameters", adapters->parameters()},
                            {"ranks", adapters->rank_total()},
                            {"modules", std::move(modules)}};
  }
  document["ignored"] = opened.file.ignored;
  document["sections"] = Json::array();
  for (const Section& section : summary.sections) {
    document["sections"].push_back({{"name", section.name},
                                    {"tensors", section.tensors},
                                    {"elements", section.elements},
                                    {"bytes", section.bytes},
                                    {"types", section.types}});
  }
  document["tensors"] = Json::array();
  for (const NamedTensor& one : summary.tensors) {
    document["tensors"].push_back({{"name", one.name},
                                   {"dtype", dtype_name(one.tensor->dtype)},
                                   {"shape", one.tensor->shape},
                                   {"bytes", one.tensor->nbytes()}});
  }
  return document;
}

void print_summary(const std::string& path, const Opened& opened, bool verify, std::ostream& out) {
  const FileSummary& summary = opened.summary;
  out << path << ": " << kind_text(summary.kind) << " (" << opened.file.format << ", " << human_bytes(opened.file.bytes)
      << ")\n";
  if (!summary.model.empty()) out << "  model: " << summary.model << "\n";
  for (const auto& [name, value] : summary.values) {
    out << "  " << printable_text(name) << ": " << value_text(value) << "\n";
  }
  out << "  resume with train_gpt_v2: " << (summary.resume_problem.empty() ? "yes" : "no: " + summary.resume_problem)
      << "\n  " << (summary.python_problem.empty() ? "resumable in Python" : "not resumable in Python: ")
      << summary.python_problem << "\n  " << verification(opened, verify) << "\n";
  for (const std::string& line : opened.file.ignored) out << "  ignored: " << printable_text(line) << "\n";
  std::vector<std::vector<std::string>> rows{{"section", "tensors", "elements", "size", "type"}};
  for (const Section& section : summary.sections) {
    rows.push_back({printable_text(section.name), human_count(section.tensors), human_count(section.elements),
                    human_bytes(section.bytes), types_text(section)});
  }
  out << "\n" << table(rows);
  if (const auto adapters = summarise_adapters(opened.root)) out << "\n" << adapter_table(*adapters);
  // The optimizer's tensors repeat the names and shapes of the weights.
  rows = {{"tensor", "type", "shape"}};
  for (const NamedTensor& one : summary.tensors) {
    if (starts_with(one.name, "optimizer.")) continue;
    rows.push_back(
        {printable_text(one.name), std::string(dtype_name(one.tensor->dtype)), shape_text(one.tensor->shape)});
  }
  out << "\n" << table(rows);
}

// --- comparison
// -------------------------------------------------------------------------------------------------------

struct Difference {
  std::string name;
  std::string a, b;                      // "" where the file has none of that name
  std::optional<double> largest;         // of the elements' differences
  std::optional<std::uint64_t> changed;  // number of elements
};

std::string leaf_text(const Value& leaf) {
  if (!leaf.is_tensor()) return value_text(leaf);
  return concat(dtype_name(leaf.as_tensor().dtype), " ", shape_text(leaf.as_tensor().shape));
}

std::vector<double> to_doubles(const Tensor& tensor) {
  if (tensor.dtype == DType::kFloat64) {
    const Tensor flat = tensor.contiguous();
    std::vector<double> values(static_cast<std::size_t>(flat.numel()));
    if (!values.empty()) std::memcpy(values.data(), flat.data, flat.nbytes());
    return values;
  }
  if (is_floating_point(tensor.dtype)) {
    const std::vector<float> values = to_float_vector(tensor);
    return {values.begin(), values.end()};
  }
  const std::vector<std::int64_t> values = to_int_vector(tensor);
  return {values.begin(), values.end()};
}

void compare_elements(const Tensor& a, const Tensor& b, Difference& difference) {
  if (a.shape != b.shape) return;
  const std::vector<double> left = to_doubles(a), right = to_doubles(b);
  double largest = 0;
  std::uint64_t changed = 0;
  for (std::size_t i = 0; i < left.size(); ++i) {
    if (left[i] == right[i] || (std::isnan(left[i]) && std::isnan(right[i]))) continue;
    ++changed;
    const double distance = std::abs(left[i] - right[i]);
    if (!(distance <= largest)) largest = distance;  // a NaN stays
  }
  difference.largest = largest;
  difference.changed = changed;
}

// Leaves by path; a whole section that the other file lacks counts as one difference.
struct Leaves {
  std::vector<std::string> order;
  std::map<std::string, const Value*> by_path;
  std::map<std::string, std::size_t> sections;
};

Leaves leaves_of(const Value& root) {
  Leaves leaves;
  visit_leaves(root, "", [&](const std::string& path, const Value& leaf) {
    if (leaves.by_path.emplace(path, &leaf).second) leaves.order.push_back(path);
    ++leaves.sections[path.substr(0, path.find('.'))];
  });
  return leaves;
}

void add_missing(const Leaves& here, const Leaves& there, bool here_is_a, std::vector<Difference>& differences) {
  std::string last_section;
  for (const std::string& path : here.order) {
    if (there.by_path.contains(path)) continue;
    const std::string section = path.substr(0, path.find('.'));
    Difference difference{path, {}, {}, {}, {}};
    std::string text = leaf_text(*here.by_path.at(path));
    if (!there.sections.contains(section)) {
      if (section == last_section) continue;
      last_section = section;
      const std::size_t count = here.sections.at(section);
      if (count > 1) {
        difference.name = section;
        text = concat(count, " values");
      }
    }
    (here_is_a ? difference.a : difference.b) = text;
    differences.push_back(std::move(difference));
  }
}

std::vector<Difference> compare(const Value& a, const Value& b, std::size_t& equal) {
  const Leaves left = leaves_of(a), right = leaves_of(b);
  std::vector<Difference> differences;
  for (const std::string& path : left.order) {
    const auto other = right.by_path.find(path);
    if (other == right.by_path.end()) continue;
    const Value &x = *left.by_path.at(path), &y = *other->second;
    if (identical(x, y)) {
      ++equal;
      continue;
    }
    Difference difference{path, leaf_text(x), leaf_text(y), {}, {}};
    if (x.is_tensor() && y.is_tensor()) compare_elements(x.as_tensor(), y.as_tensor(), difference);
    differences.push_back(std::move(difference));
  }
  add_missing(left, right, true, differences);
  add_missing(right, left, false, differences);
  return differences;
}

}  // namespace

void run_inspect(const std::string& file, bool verify, bool json, std::ostream& out) {
  const Opened opened = open_file(file, verify);
  if (json) {
    out << dump_json(summary_json(file, opened, verify), 2) << "\n";
  } else {
    print_summary(file, opened, verify, out);
  }
}

std::size_t run_inspect_compare(const std::string& a, const std::string& b, bool verify, bool json, std::ostream& out) {
  const Opened left = open_file(a, verify), right = open_file(b, verify);
  std::size_t equal = 0;
  const std::vector<Difference> differences = compare(left.root, right.root, equal);
  if (json) {
    Json document{{"a", a},
                  {"b", b},
                  {"kind_a", kind_name(left.summary.kind)},
                  {"kind_b", kind_name(right.summary.kind)},
                  {"equal", equal},
                  {"differences", Json::array()}};
    for (const Difference& one : differences) {
      Json entry{{"name", one.name}};
      entry["a"] = one.a.empty() ? Json() : Json(one.a);
      entry["b"] = one.b.empty() ? Json() : Json(one.b);
      if (one.changed) entry["changed_elements"] = *one.changed;
      if (one.largest) entry["largest_difference"] = std::isfinite(*one.largest) ? Json(*one.largest) : Json("NaN");
      document["differences"].push_back(std::move(entry));
    }
    out << dump_json(document, 2) << "\n";
    return differences.size();
  }
  out << a << ": " << kind_text(left.summary.kind) << "\n" << b << ": " << kind_text(right.summary.kind) << "\n";
  out << human_count(equal) << " values are identical bit by bit, " << human_count(differences.size()) << " differ\n";
  if (differences.empty()) return 0;
  std::vector<std::vector<std::string>> rows{{"name", "a", "b", "elements", "largest"}};
  for (std::size_t i = 0; i < std::min(kShownDifferences, differences.size()); ++i) {
    const Difference& one = differences[i];
    rows.push_back({printable_text(one.name), one.a.empty() ? "-" : one.a, one.b.empty() ? "-" : one.b,
                    one.changed ? human_count(*one.changed) : "", one.largest ? concat(*one.largest) : ""});
  }
  out << "\n" << table(rows);
  if (differences.size() > kShownDifferences) {
    out << "... and " << differences.size() - kShownDifferences << " more (--json lists all)\n";
  }
  return differences.size();
}

}  // namespace train_gpt_v2
