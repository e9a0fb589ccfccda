#include "train_gpt_v2/config/loader.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "train_gpt_v2/config/json_text.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kMaxChain = 8;   // files that extend one another
constexpr std::size_t kMaxFiles = 32;  // in all
constexpr std::size_t kMaxListed = 100;

struct Problem {
  std::string place;
  std::string message;
  std::string fix;
};

// One source of values: a file, a stored text, or one --set.
struct Layer {
  std::string name;         // as shown in messages
  std::string base_folder;  // what relative paths are relative to
  std::string prefix;       // "extends " in the provenance of inherited files
  bool command_line = false;
  LocatedJson json;
};

class Loader {
 public:
  void add_file(const std::string& path, const std::string& shown, const std::string& prefix) {
    const std::string absolute = absolute_path(path);
    if (std::find(open_files_.begin(), open_files_.end(), absolute) != open_files_.end()) {
      throw Error("CFG001", "\"extends\" goes round in a circle")
          .at(shown)
          .detail(concat(join(open_files_, " -> "), " -> ", absolute))
          .fix("remove one of these \"extends\"");
    }
    if (open_files_.size() >= kMaxChain || result_.files.size() >= kMaxFiles) {
      throw Error("CFG001", concat("too many files extend one another: at most ", kMaxChain, " in a chain, ", kMaxFiles,
                                   " in all"))
          .at(shown);
    }
    open_files_.push_back(absolute);
    Layer layer{shown, parent_path(absolute), prefix, false,
                parse_json_text(read_file(absolute, kMaxConfigBytes), shown)};
    for (const std::string& base : extended_files(layer)) {
      const std::string base_shown = path_join(parent_path(shown), base);
      add_file(path_join(layer.base_folder, base), base_shown, "extends ");
    }
    open_files_.pop_back();
    result_.files.push_back(absolute);
    apply(layer);
  }

  void add_text(std::string_view text, const std::string& origin, const std::string& base_folder) {
    Layer layer{origin, absolute_path(base_folder), "", false, parse_json_text(text, origin)};
    if (layer.json.value.is_object() && layer.json.value.contains("extends")) {
      complain(place(layer, "/extends"), "\"extends\" cannot be used here",
               "only a configuration file may extend another");
    }
    apply(layer);
  }

  void add_set(const std::string& assignment) {
    const std::size_t equals = assignment.find('=');
    const std::string shown = concat("--set ", valid_utf8(assignment) ? assignment : "?");
    if (equals == std::string::npos || equals == 0) {
      return complain(shown, "this is not section.key=VALUE", "for example --set train.batch_size=32");
    }
    const std::vector<std::string> path = split(trim(assignment.substr(0, equals)), '.');
    if (!valid_utf8(assignment)) return complain(shown, "the text is not valid UTF-8");
    if (path.size() > static_cast<std::size_t>(kMaxConfigDepth)) return complain(shown, "the key has too many parts");
    std::string text = assignment.substr(equals + 1);
    if (!looks_like_json(text)) text = Json(text).dump();
    std::string wrapped = text;
    for (auto part = path.rbegin(); part != path.rend(); ++part)
      wrapped = concat("{", Json(*part).dump(), ":", wrapped, "}");
    try {
      apply({shown, absolute_path("."), "", true, parse_json_text(wrapped, shown)});
    } catch (const Error& error) {
      complain(shown, concat("the value is not JSON: ", error.message()), error.hint());
    }
  }

  LoadedConfig finish() {
    for (const OptionRow& row : option_rows()) result_.provenance.try_emplace(row.path, "default");
    settle_defaults();
    check_cross_fields(
        result_.options,
        [this](const std::vector<std::string>& keys, const std::string& message, const std::string& fix) {
          const bool known_bad =
              std::any_of(keys.begin(), keys.end(), [this](const auto& key) { return bad_.contains(key); });
          if (!known_bad) complain(blame(keys), message, fix);
        },
        result_.warnings);
    if (!problems_.empty()) throw_problems();
    return std::move(result_);
  }

  void set_name(std::string name) { result_.name = std::move(name); }

 private:
  static bool looks_like_json(const std::string& text) {
    const std::string_view value = trim(text);
    if (value.empty()) return false;
    if (value.front() == '{' || value.front() == '[' || value.front() == '"') return true;
    return Json::accept(value);  // a number, true, false or null
  }

  void complain(std::string place, std::string message, std::string fix = "") {
    problems_.push_back({std::move(place), std::move(message), std::move(fix)});
  }

  static std::string place(const Layer& layer, const std::string& pointer, bool of_value = false) {
    if (layer.command_line) return layer.name;
    const auto& wanted = of_value ? layer.json.values : layer.json.keys;
    auto found = wanted.find(pointer);
    if (found == wanted.end()) {
      found = layer.json.values.find(pointer);
      if (found == layer.json.values.end()) return layer.name;
    }
    return concat(layer.name, ":", found->second.line, ":", found->second.column);
  }

  std::vector<std::string> extended_files(const Layer& layer) {
    if (!layer.json.value.is_object() || !layer.json.value.contains("extends")) return {};
    const Json& given = layer.json.value.at("extends");
    std::vector<std::string> files;
    bool good = given.is_string() || given.is_array();
    for (const Json& one : given.is_array() ? given : Json::array({given})) {
      good = good && one.is_string() && !one.get_ref<const std::string&>().empty();
      if (good) files.push_back(one.get<std::string>());
    }
    if (good) return files;
    complain(place(layer, "/extends", true), "\"extends\" is a file name or a list of file names");
    return {};
  }

  void apply(const Layer& layer) {
    for (std::size_t i = 0; i < layer.json.repeated_keys.size(); ++i) {
      const TextPosition at = layer.json.repeated_at[i];
      std::string key = layer.json.repeated_keys[i].substr(1);
      std::replace(key.begin(), key.end(), '/', '.');
      complain(concat(layer.name, ":", at.line, ":", at.column), concat("\"", key, "\" is given twice"),
               "remove one of them");
    }
    if (!layer.json.value.is_object()) {
      return complain(place(layer, "", true), "a configuration is a JSON object { … }");
    }
    walk(layer, layer.json.value, "", "");
  }

  void walk(const Layer& layer, const Json& object, const std::string& path, const std::string& pointer) {
    for (const auto& [name, value] : object.items()) {
      const std::string below = json_pointer(pointer, name);
      if (path.empty() && (name == "$schema" || name == "extends") && !layer.command_line) continue;
      const std::string key = path.empty() ? name : path + "." + name;
      if (const OptionRow* row = find_option(key)) {
        take(layer, *row, value, below);
      } else if (!is_section(key)) {
        unknown(layer, path, name, below);
      } else if (value.is_object()) {
        walk(layer, value, key, below);
      } else {
        complain(place(layer, below, true), concat("\"", key, "\" is a section: an object { … } is expected"));
      }
    }
  }

  static bool is_section(const std::string& key) {
    const auto below = [&key](const OptionRow& row) { return starts_with(row.path, key + "."); };
    return std::any_of(option_rows().begin(), option_rows().end(), below);
  }

  void take(const Layer& layer, const OptionRow& row, const Json& value, const std::string& pointer) {
    std::vector<ValueProblem> found;
    const Json checked = check_value(row.value, value, layer.base_folder, found);
    for (const ValueProblem& problem : found) {
      complain(place(layer, pointer + problem.pointer, true), concat(row.path, ": ", problem.message), problem.fix);
    }
    const std::string from = layer.command_line ? "--set" : layer.prefix + place(layer, pointer);
    if (found.empty()) {
      row.set(result_.options, checked);
      bad_.erase(row.path);
    } else {
      bad_.insert(row.path);
    }
    result_.provenance[row.path] = from;
    places_[row.path] = layer.command_line ? layer.name : place(layer, pointer);
  }

  void unknown(const Layer& layer, const std::string& path, const std::string& name, const std::string& pointer) {
    const std::string key = path.empty() ? name : path + "." + name;
    complain(
        place(layer, pointer),
        path.empty() ? concat("unknown key \"", name, "\"") : concat("unknown key \"", name, "\" in \"", path, "\""),
        suggestion(path, name, key));
  }

  static std::string suggestion(const std::string& path, const std::string& name, const std::string& key) {
    std::string renamed = renamed_key_hint(key);
    if (!renamed.empty()) return renamed;
    std::vector<std::string> siblings;
    std::vector<std::string> elsewhere;
    const std::string prefix = path.empty() ? "" : path + ".";
    for (const OptionRow& row : option_rows()) {
      if (starts_with(row.path, prefix)) {
        const std::string rest = row.path.substr(prefix.size());
        siblings.push_back(rest.substr(0, rest.find('.')));
      }
      if (row.path.substr(row.path.rfind('.') + 1) == name) elsewhere.push_back(row.path);
    }
    if (!elsewhere.empty()) return concat("this key is ", join(elsewhere, " or "));
    const std::string near = nearest_name(name, siblings);
    if (!near.empty()) return concat("did you mean \"", near, "\"?");
    std::vector<std::string> leaves;
    for (const OptionRow& row : option_rows()) leaves.push_back(row.path.substr(row.path.rfind('.') + 1));
    const std::string leaf = nearest_name(name, leaves);
    for (const OptionRow& row : option_rows()) {
      if (!leaf.empty() && ends_with(row.path, "." + leaf)) return concat("did you mean ", row.path, "?");
    }
    siblings.erase(std::unique(siblings.begin(), siblings.end()), siblings.end());
    return concat(path.empty() ? "the sections are " : "known here are ", join(siblings, ", "));
  }

  // A validation interval nobody asked for is no reason to refuse a run without validation data.
  void settle_defaults() {
    Options& o = result_.options;
    std::string& from = result_.provenance["validation.interval"];
    if (!o.data.val_manifests.empty() || o.validation.interval == 0 || from != "default") return;
    o.validation.interval = 0;
    from = "off without data.val_manifests";
  }

  // Where the first of the keys that somebody wrote stands.
  std::string blame(const std::vector<std::string>& keys) const {
    for (const std::string& key : keys) {
      const auto found = places_.find(key);
      if (found != places_.end()) return found->second;
    }
    return concat("default of ", keys.front());
  }

  [[noreturn]] void throw_problems() const {
    if (problems_.size() == 1) {
      const Problem& only = problems_.front();
      Error error = Error("CFG001", only.message).at(only.place);
      if (only.fix.empty()) throw error;
      throw std::move(error).fix(only.fix);
    }
    Error error("CFG001", concat("the configuration has ", problems_.size(), " problems"));
    for (std::size_t i = 0; i < std::min(problems_.size(), kMaxListed); ++i) {
      const Problem& problem = problems_[i];
      std::move(error).detail(
          concat("--> ", problem.place, ": ", problem.message, problem.fix.empty() ? "" : concat("; ", problem.fix)));
    }
    if (problems_.size() > kMaxListed) {
      std::move(error).detail(concat("and ", problems_.size() - kMaxListed, " more"));
    }
    throw std::move(error).fix("correct them all; configs/README.md lists every key");
  }

  LoadedConfig result_;
  std::vector<Problem> problems_;
  std::set<std::string> bad_;                  // keys whose last value was refused
  std::map<std::string, std::string> places_;  // key -> file:line:column of the value that won
  std::vector<std::string> open_files_;        // the chain of "extends" being read
};

std::string config_name(const std::string& origin) {
  std::string name = file_name(origin);
  if (ends_with(name, ".json")) name.resize(name.size() - 5);
  return name.empty() ? "config" : name;
}

}  // namespace

LoadedConfig load_config(const std::string& file, const std::vector<std::string>& sets) {
  Loader loader;
  loader.set_name(config_name(file));
  loader.add_file(file, file, "");
  for (const std::string& assignment : sets) loader.add_set(assignment);
  return loader.finish();
}

LoadedConfig load_config_json(std::string_view text, const std::string& origin, const std::vector<std::string>& sets,
                              const std::string& base_folder) {
  Loader loader;
  loader.set_name(config_name(origin));
  loader.add_text(text, origin, base_folder);
  for (const std::string& assignment : sets) loader.add_set(assignment);
  return loader.finish();
}

}  // namespace train_gpt_v2
