// Checking one JSON value against its row, and describing in words what the row allows.

#include <cmath>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/config/json_text.h"
#include "train_gpt_v2/config/option_table.h"
#include "train_gpt_v2/config/patterns.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr double kExactIntegers = 9007199254740992.0;  // 2^53: reals beyond it are not exact integers

std::string element_type(const ValueSpec& spec) {
  if (!spec.only_value.empty()) return concat("the value ", spec.only_value);
  if (!spec.choices.empty()) {
    std::vector<std::string> quoted;
    for (const std::string& choice : spec.choices) quoted.push_back(concat('"', choice, '"'));
    return (quoted.size() > 1 ? "one of " : "") + join(quoted, ", ");
  }
  switch (spec.kind) {
    case ValueKind::kBool:
      return "true or false";
    case ValueKind::kInteger:
      return spec.word.empty() ? "integer" : concat('"', spec.word, "\" or integer");
    case ValueKind::kNumber:
      return spec.word.empty() ? "number" : concat('"', spec.word, "\" or number");
    case ValueKind::kText:
      return "text";
    case ValueKind::kPath:
      return "path";
    case ValueKind::kObject:
      break;
  }
  std::vector<std::string> names;
  for (const FieldSpec& field : spec.fields) names.push_back(field.name);
  return "object {" + join(names, ", ") + "}";
}

// How a value is quoted in a message; long ones are cut.
std::string shown(const Json& value) {
  std::string text = value.dump();
  if (text.size() <= 60) return text;
  std::size_t cut = 57;
  while ((static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut;  // never inside a character
  return text.substr(0, cut) + "...";
}

bool looks_like_a_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789+-.eE") == std::string::npos;
}

class Checker {
 public:
  Checker(const std::string& base_folder, std::vector<ValueProblem>& problems)
      : base_(base_folder), problems_(problems) {}

  Json check(const ValueSpec& spec, const Json& value, const std::string& pointer) {
    if (value.is_null() && spec.nullable) return value;
    if (spec.map) return map(spec, value, pointer);
    if (!spec.list) return element(spec, value, pointer);
    if (!value.is_array()) {
      const bool element_fits = !value.is_object() && !value.is_null();
      complain(pointer, concat(shown(value), " is not a ", describe_type(spec)),
               element_fits ? concat("write it in brackets: [", shown(value), "]") : "");
      return value;
    }
    if (spec.items != 0 && value.size() != spec.items) {
      complain(pointer, concat("the list has ", value.size(), " elements, ", spec.items, " are needed"));
    }
    Json result = Json::array();
    for (std::size_t i = 0; i < value.size(); ++i) {
      result.push_back(element(spec, value[i], json_pointer(pointer, std::to_string(i))));
    }
    return result;
  }

 private:
  Json map(const ValueSpec& spec, const Json& value, const std::string& pointer) {
    if (!value.is_object()) {
      return complain(pointer, concat(shown(value), " is not an ", describe_type(spec))), value;
    }
    Json result = Json::object();
    for (const auto& [pattern, item] : value.items()) {
      const std::string below = json_pointer(pointer, pattern);
      const std::string problem = pattern_problem(pattern);
      if (!problem.empty()) complain(below, concat("the pattern \"", pattern, "\" ", problem));
      result[pattern] = element(spec, item, below);
    }
    return result;
  }

  void complain(const std::string& pointer, std::string message, std::string fix = "") {
    problems_.push_back({pointer, std::move(message), std::move(fix)});
  }

  void wrong_type(const ValueSpec& spec, const Json& value, const std::string& pointer) {
    std::string fix;
    const bool mistaken_word =
        !spec.word.empty() && value.is_string() && !looks_like_a_number(value.get<std::string>());
    if (value.is_string() && spec.kind != ValueKind::kObject && !mistaken_word) fix = "write it without quotes";
    if (spec.kind == ValueKind::kText || spec.kind == ValueKind::kPath) {
      fix = value.is_null() ? "" : "text is written in double quotes";
    }
    complain(
        pointer,
        concat(shown(value), " is not allowed; ", element_type(spec), spec.nullable ? " or null" : "", " is expected"),
        std::move(fix));
  }

  Json element(const ValueSpec& spec, const Json& value, const std::string& pointer) {
    switch (spec.kind) {
      case ValueKind::kBool:
        if (!value.is_boolean()) return wrong_type(spec, value, pointer), value;
        return only(spec, value, pointer);
      case ValueKind::kInteger:
      case ValueKind::kNumber:
        return number(spec, value, pointer);
      case ValueKind::kText:
      case ValueKind::kPath:
        return text(spec, value, pointer);
      case ValueKind::kObject:
        return object(spec, value, pointer);
    }
    return value;
  }

  Json only(const ValueSpec& spec, const Json& value, const std::string& pointer) {
    if (!spec.only_value.empty() && value.dump() != spec.only_value) {
      complain(pointer,
               concat(shown(value), " is not supported; this key of the reference is accepted with ", spec.only_value,
                      " only"),
               "leave the key out");
    }
    return value;
  }

  Json number(const ValueSpec& spec, const Json& value, const std::string& pointer) {
    if (!spec.word.empty() && value == Json(spec.word)) return value;
    if (!value.is_number()) return wrong_type(spec, value, pointer), value;
    const double real = value.get<double>();
    if (!std::isfinite(real)) return complain(pointer, "the number is not finite"), value;
    Json result = value;
    if (spec.kind == ValueKind::kInteger && value.is_number_float()) {
      if (real != std::floor(real) || std::abs(real) > kExactIntegers) return wrong_type(spec, value, pointer), value;
      result = static_cast<std::int64_t>(real);
    }
    if (spec.kind == ValueKind::kNumber) result = real;
    const bool low = spec.minimum && (spec.open_minimum ? real <= *spec.minimum : real < *spec.minimum);
    const bool high = spec.maximum && (spec.open_maximum ? real >= *spec.maximum : real > *spec.maximum);
    if (low || high) {
      complain(pointer, concat(shown(value), " is outside ", describe_limits(spec),
                               spec.reason.empty() ? "" : concat(": ", spec.reason)));
    }
    return only(spec, result, pointer);
  }

  Json text(const ValueSpec& spec, const Json& value, const std::string& pointer) {
    if (!value.is_string()) return wrong_type(spec, value, pointer), value;
    const std::string& written = value.get_ref<const std::string&>();
    if (written.empty()) {
      complain(pointer, "the text is empty", spec.nullable ? "write null for none" : "");
      return value;
    }
    if (!valid_utf8(written)) return complain(pointer, "the text is not valid UTF-8"), Json("?");
    if (!spec.choices.empty() && std::find(spec.choices.begin(), spec.choices.end(), written) == spec.choices.end()) {
      const std::string near = nearest_name(written, spec.choices);
      complain(pointer, concat(shown(value), " is not ", element_type(spec)),
               near.empty() ? "" : concat("did you mean \"", near, "\"?"));
      return value;
    }
    const std::string problem = spec.text_problem ? spec.text_problem(written) : "";
    if (!problem.empty()) complain(pointer, concat(shown(value), " ", problem));
    if (spec.kind != ValueKind::kPath) return value;
    if (written.find('\0') != std::string::npos) return complain(pointer, "a path cannot hold a zero character"), value;
    const std::string resolved = absolute_path(path_join(base_, written));
    if (!valid_utf8(resolved))
      complain(pointer, "the folder that this path is relative to has a name that is not UTF-8");
    return resolved;
  }

  Json object(const ValueSpec& spec, const Json& value, const std::string& pointer) {
    if (!value.is_object()) return wrong_type(spec, value, pointer), value;
    std::vector<std::string> names;
    for (const FieldSpec& field : spec.fields) names.push_back(field.name);
    for (const auto& [name, ignored] : value.items()) {
      if (std::find(names.begin(), names.end(), name) != names.end()) continue;
      const std::string near = nearest_name(name, names);
      complain(json_pointer(pointer, name), concat("unknown key \"", name, "\""),
               near.empty() ? concat("known are ", join(names, ", ")) : concat("did you mean \"", near, "\"?"));
    }
    Json result = Json::object();
    for (const FieldSpec& field : spec.fields) {
      const auto found = value.find(field.name);
      if (found != value.end()) {
        result[field.name] = check(field.value, *found, json_pointer(pointer, field.name));
      } else if (field.value.nullable) {
        result[field.name] = nullptr;
      } else {
        complain(pointer, concat("\"", field.name, "\" is missing (", field.doc, ")"));
      }
    }
    return result;
  }

  const std::string& base_;
  std::vector<ValueProblem>& problems_;
};

}  // namespace

std::string describe_type(const ValueSpec& spec) {
  std::string type = element_type(spec);
  if (spec.map) type = "object of module patterns, each with one " + type;
  if (spec.list)
    type = concat("list of ", spec.items != 0 ? concat(spec.items, " ") : "", type,
                  spec.choices.empty() && spec.kind != ValueKind::kText ? "s" : "");
  return spec.nullable ? type + " or null" : type;
}

std::string describe_limits(const ValueSpec& spec) {
  const auto number = [](double value) {
    const auto whole = static_cast<std::int64_t>(value);
    return static_cast<double>(whole) == value ? std::to_string(whole) : exact_number(value);
  };
  if (spec.minimum && spec.maximum) {
    return concat(number(*spec.minimum), spec.open_minimum ? " < x " : " <= x ",
                  spec.open_maximum ? "< " : "<= ", number(*spec.maximum));
  }
  if (spec.minimum) return concat(spec.open_minimum ? "> " : ">= ", number(*spec.minimum));
  if (spec.maximum) return concat(spec.open_maximum ? "< " : "<= ", number(*spec.maximum));
  return "";
}

Json check_value(const ValueSpec& spec, const Json& value, const std::string& base_folder,
                 std::vector<ValueProblem>& problems) {
  return Checker(base_folder, problems).check(spec, value, "");
}

}  // namespace train_gpt_v2
