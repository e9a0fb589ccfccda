#pragma once
// THE option table: one row per configuration key. Parser, cross-checks, `config show`, JSON schema, configs/README.md,
// shell completion and the resume comparison all read it, so that they cannot disagree.
//
// To add a key: put a member with its default into options.h and ONE row into src/config/options_*.cc, e.g.
//   TGV2_OPTION(train.max_hours, kFree, "stop and save after this much time").above(0).unit("hours"),
// Name, type and default come from the member; then run `train_gpt_v2 config schema --output configs`.
// A key exists only when something reads it. Rows are immutable after start; any thread may read them.

#include <cstddef>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train_gpt_v2/config/options.h"

namespace train_gpt_v2 {

using Json = nlohmann::ordered_json;

// What a difference between the stored configuration and the present one means on resume (interface.md §3). All but
// kNever, kWarn and kFree are also the NAMEs of `--allow-change`.
enum class ResumeClass { kNever, kBatch, kOrder, kData, kGroups, kPrecision, kSchedule, kLoss, kWarn, kFree };
std::string_view resume_class_name(ResumeClass resume);
std::optional<ResumeClass> find_resume_class(std::string_view name);

enum class ValueKind { kBool, kInteger, kNumber, kText, kPath, kObject };  // kPath is text that is made absolute

struct FieldSpec;

// What a JSON value must look like. With `list`, kind, choices and limits speak of the elements.
struct ValueSpec {
  ValueKind kind = ValueKind::kText;
  bool list = false;
  bool map = false;  // an object {module pattern: element}, in the order of the file
  bool nullable = false;
  std::vector<std::string> choices;  // text only; empty = any
  std::optional<double> minimum, maximum;
  bool open_minimum = false, open_maximum = false;  // the limit itself is not allowed
  std::size_t items = 0;                            // exact length of a list; 0 = any
  std::string only_value;                           // JSON text of the one accepted value; "" = no such limit
  std::string word;                                 // a text that may stand instead of a number: "auto"
  std::string reason;                               // why the limits are as they are, for the error message
  std::function<std::string(const std::string&)> text_problem;  // "" = fine
  std::vector<FieldSpec> fields;                                // kObject
};

struct FieldSpec {
  std::string name;
  std::string doc;
  std::string unit;
  ValueSpec value;
};

struct OptionRow {
  std::string path;  // "train.batch_size"
  std::string doc;   // one line
  std::string unit;  // "" = none
  ResumeClass resume = ResumeClass::kFree;
  ValueSpec value;
  bool accepted_only = false;  // checked and then ignored: a key of the reference that has one possible meaning here
  std::function<Json(const Options&)> get;
  std::function<void(Options&, const Json&)> set;  // the value has passed check_value

  std::string_view section() const { return std::string_view(path).substr(0, path.find('.')); }
  std::string_view key() const { return std::string_view(path).substr(path.find('.') + 1); }
};

struct OptionSection {
  std::string name;
  std::string doc;
};

std::span<const OptionRow> option_rows();  // sections in order, keys in the order of the contract
std::span<const OptionSection> option_sections();
const OptionRow* find_option(std::string_view path);  // nullptr when there is none
Json default_value(const OptionRow& row);             // from a default-constructed Options

// "integer", "list of text", "one of \"am\", \"en\""; and the limits as text: ">= 1", "0 < x <= 1", "" when none.
std::string describe_type(const ValueSpec& spec);
std::string describe_limits(const ValueSpec& spec);

// One complaint about a value; `pointer` is the JSON pointer below the value ("" = the value itself).
struct ValueProblem {
  std::string pointer;
  std::string message;
  std::string fix;
};

// Checks `value` against `spec` and returns it normalised: integral reals as integers, paths absolute (relative ones
// are below `base_folder`), missing list-object fields filled in. Complaints are appended to `problems`.
Json check_value(const ValueSpec& spec, const Json& value, const std::string& base_folder,
                 std::vector<ValueProblem>& problems);

// --- texts made from the table
// ----------------------------------------------------------------------------------------
std::string json_schema();                          // configs/schema.json (draft-07)
std::string reference_page();                       // configs/README.md
std::string option_help(std::string_view section);  // aligned text for `--help`; "" = all sections
std::vector<std::string> completion_keys();         // "train.batch_size" …, for --set

}  // namespace train_gpt_v2
