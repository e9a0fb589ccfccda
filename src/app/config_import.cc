// `config import`: the Python trainer's config.yaml. Only scalars of known places are read; nothing is executed.

#include <yaml-cpp/yaml.h>

#include <nlohmann/json.hpp>

#include "train_gpt_v2/app/config_command.h"
#include "train_gpt_v2/config/json_text.h"
#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

class Import {
 public:
  explicit Import(std::string file) : file_(std::move(file)) {
    const std::string text = read_file(file_, kMaxConfigBytes);
    if (!valid_utf8(text)) fail("the file is not valid UTF-8");
    try {
      root_ = YAML::Load(text);
    } catch (const YAML::Exception& error) {
      fail(error.msg, error.mark);
    }
    if (!root_.IsMap()) fail("the file is not a YAML mapping");
  }

  // Our JSON, checked by our own loader.
  std::string convert() {
    const YAML::Node gpt = member(root_, "gpt");
    if (!gpt.IsMap()) fail("there is no gpt: section, so this is not a configuration of the Python trainer");
    take_module(gpt, "model");
    for (const auto& entry : root_) take_top(entry.first, entry.second);
    const std::string body = result_.dump(2) + "\n";
    try {
      load_config_json(body, "the imported values");
    } catch (const Error& error) {
      Error failure = Error("CFG004", "the values cannot be used here").where(file_);
      for (const std::string& line : split(error.report(), '\n')) {
        if (!trim(line).empty()) std::move(failure).detail(std::string(trim(line)));
      }
      throw failure;
    }
    if (find_member("number_text_tokens")) {
      notes_.push_back(
          "number_text_tokens must equal the pieces of data.tokenizer (the Python trainer replaced it silently)");
    }
    std::string text = concat("// Made by `train_gpt_v2 config import` from ", one_line(file_), "\n");
    for (const std::string& note : notes_) text += concat("// ", one_line(note), "\n");
    text += "// Still to be said: data.train_manifests, data.val_manifests, and train.max_steps or train.epochs.\n";
    return text + body;
  }

 private:
  [[noreturn]] void fail(const std::string& what, const YAML::Mark& mark = YAML::Mark::null_mark()) const {
    throw Error("CFG004", what)
        .where(file_, mark.is_null() ? 0 : mark.line + 1, mark.is_null() ? 0 : mark.column + 1)
        .fix("give the config.yaml that the Python trainer reads");
  }

  bool find_member(const std::string& name) const {
    return result_.contains("model") && result_.at("model").contains(name);
  }

  // Text that stays within its comment line.
  static std::string one_line(std::string text) {
    for (char& c : text) c = static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    return text;
  }

  static YAML::Node member(const YAML::Node& map, const std::string& name) {
    for (const auto& entry : map) {
      if (entry.first.IsScalar() && entry.first.Scalar() == name) return entry.second;
    }
    return YAML::Node(YAML::NodeType::Null);
  }

  std::string name_of(const YAML::Node& key) const {
    if (!key.IsScalar() || key.Scalar().size() > 256) fail("a key is not a plain name", key.Mark());
    return key.Scalar();
  }

  // A YAML scalar as JSON: quoted is text, else bool, null, integer, real, text.
  Json scalar(const YAML::Node& node) const {
    const std::string& text = node.Scalar();
    if (node.Tag() == "!") return text;  // quoted
    bool flag = false;
    if (YAML::convert<bool>::decode(node, flag)) return flag;
    if (text == "~" || text == "null" || text == "Null" || text == "NULL" || text.empty()) return nullptr;
    try {
      Json value = parse_json_text(text, file_).value;
      if (value.is_number()) return value;
    } catch (const Error&) {
      return text;  // not a JSON number, so a word
    }
    return text;
  }

  void put(const std::string& path, Json value) {
    Json* place = &result_;
    for (const std::string& part : split(path, '.')) place = &(*place)[part];
    *place = std::move(value);
  }

  void take_module(const YAML::Node& map, const std::string& prefix) {
    for (const auto& entry : map) {
      const std::string path = prefix + "." + name_of(entry.first);
      const OptionRow* row = find_option(path);
      const bool section = path == "model.condition_module" || path == "model.emo_condition_module";
      if (section && entry.second.IsMap()) {
        take_module(entry.second, path);
      } else if ((row || section) && !entry.second.IsNull() && (section || !entry.second.IsScalar())) {
        fail(concat("gpt.", path.substr(6), section ? " is not a mapping" : " is not a single value"),
             entry.second.Mark());
      } else if (!row || !entry.second.IsScalar()) {
        notes_.push_back(concat("left out: gpt.", path.substr(6), " (has no counterpart)"));
      } else if (!row->accepted_only) {
        put(path, scalar(entry.second));
      } else {
        check_accepted(*row, scalar(entry.second), entry.second.Mark());
      }
    }
  }

  void check_accepted(const OptionRow& row, const Json& value, const YAML::Mark& mark) const {
    std::vector<ValueProblem> problems;
    check_value(row.value, value, ".", problems);
    if (!problems.empty()) fail(concat("gpt.", row.key(), ": ", problems.front().message), mark);
  }

  void take_path(const std::string& path, const YAML::Node& node, const std::string& written) {
    if (!node.IsScalar() || node.Scalar().empty()) fail(concat(written, " is not a path"), node.Mark());
    put(path, absolute_path(path_join(parent_path(file_), node.Scalar())));
  }

  void take_top(const YAML::Node& key, const YAML::Node& value) {
    const std::string name = name_of(key);
    if (name == "gpt") return;
    if (name == "gpt_checkpoint") return take_path("init.from", value, name);
    if (name != "dataset" || !value.IsMap()) {
      notes_.push_back(concat("left out: ", name, " (not used in training the GPT)"));
      return;
    }
    for (const auto& entry : value) {
      const std::string inner = name_of(entry.first);
      if (inner == "bpe_model") {
        take_path("data.tokenizer", entry.second, "dataset.bpe_model");
      } else {
        notes_.push_back(concat("left out: dataset.", inner, " (not used in training the GPT)"));
      }
    }
  }

  std::string file_;
  YAML::Node root_;
  Json result_ = Json::object();
  std::vector<std::string> notes_;
};

}  // namespace

void run_config_import(const std::string& yaml_file, std::ostream& out) {
  try {
    out << Import(yaml_file).convert();
  } catch (const YAML::Exception& error) {
    throw Error("CFG004", error.msg).where(yaml_file);
  }
}

}  // namespace train_gpt_v2
