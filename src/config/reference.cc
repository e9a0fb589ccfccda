// Texts made from the option table: JSON schema, reference page, help.

#include <nlohmann/json.hpp>

#include "train_gpt_v2/config/option_table.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

const char* json_type(ValueKind kind) {
  switch (kind) {
    case ValueKind::kBool:
      return "boolean";
    case ValueKind::kInteger:
      return "integer";
    case ValueKind::kNumber:
      return "number";
    case ValueKind::kText:
    case ValueKind::kPath:
      return "string";
    case ValueKind::kObject:
      return "object";
  }
  TGV2_CHECK(false);
}

Json schema_of(const ValueSpec& spec);

Json object_schema(const ValueSpec& spec) {
  Json properties = Json::object();
  Json required = Json::array();
  for (const FieldSpec& field : spec.fields) {
    properties[field.name] = schema_of(field.value);
    properties[field.name]["description"] = field.doc;
    if (!field.value.nullable) required.push_back(field.name);
  }
  return {{"type", "object"}, {"properties", properties}, {"required", required}, {"additionalProperties", false}};
}

// The schema of one element; `list` is dealt with by the caller.
Json element_schema(const ValueSpec& spec) {
  if (spec.kind == ValueKind::kObject) return object_schema(spec);
  Json schema{{"type", json_type(spec.kind)}};
  if (!spec.only_value.empty()) schema["const"] = Json::parse(spec.only_value);
  if (!spec.choices.empty()) schema["enum"] = spec.choices;
  const auto limit = [&spec](double value) {
    return spec.kind == ValueKind::kInteger ? Json(static_cast<std::int64_t>(value)) : Json(value);
  };
  if (spec.minimum) schema[spec.open_minimum ? "exclusiveMinimum" : "minimum"] = limit(*spec.minimum);
  if (spec.maximum) schema[spec.open_maximum ? "exclusiveMaximum" : "maximum"] = limit(*spec.maximum);
  if (spec.kind == ValueKind::kText || spec.kind == ValueKind::kPath) schema["minLength"] = 1;
  if (!spec.word.empty()) return {{"anyOf", Json::array({schema, {{"type", "string"}, {"const", spec.word}}})}};
  return schema;
}

Json schema_of(const ValueSpec& spec) {
  Json schema = element_schema(spec);
  if (spec.map) schema = {{"type", "object"}, {"additionalProperties", schema}};
  if (spec.list) {
    schema = {{"type", "array"}, {"items", schema}};
    if (spec.items != 0) schema["minItems"] = schema["maxItems"] = spec.items;
  }
  if (spec.nullable) {
    schema["type"] = Json::array({schema["type"], "null"});
    if (schema.contains("enum")) schema["enum"].push_back(nullptr);
  }
  return schema;
}

std::string full_doc(const OptionRow& row) {
  std::string doc = row.doc;
  if (!row.unit.empty()) doc += concat(" [", row.unit, "]");
  if (!row.value.reason.empty()) doc += concat(" (", row.value.reason, ")");
  return doc;
}

std::string cell(std::string text) {
  for (std::size_t at = text.find('|'); at != std::string::npos; at = text.find('|', at + 2)) text.insert(at, 1, '\\');
  return text;
}

constexpr std::string_view kPageHead = R"(# Configuration

This page and `schema.json` are made by the program from its option table: `train_gpt_v2 config schema --output configs`.
A test fails when they are stale, so do not edit them.

| file | what it is |
|---|---|
| amharic.json | the plan's size: width 512, 12 blocks, 24,000 text tokens, from fresh weights |
| amharic_indextts2.json | the released size: width 1280, 24 blocks, starting from the released gpt.pth |
| phase1.json | amharic.json with the plan's phase 1 values |
| phase2_dora.json | DoRA adapters on the model of phase 1; scripts/phase2.sh runs the whole cycle |
| phase2_adalora.json | the same with ranks pruned where they matter least (DoRA and AdaLoRA together) |
| phase2_full.json | phase 2 without adapters: layer-wise learning rates |
| demo.json | a small model for the corpus of `train_gpt_v2 demo-data`; scripts/quickstart.sh trains it |
| schema.json | `"$schema": "schema.json"` in a configuration gives completion and checks in editors |

A configuration is JSON with `//` and `/* */` comments. `"extends": "other.json"` (or a list, later wins) takes over the
values of other files. Order: built-in default < `extends` < file < `--set section.key=VALUE` (JSON; a bare word is text).
Relative paths in a file are relative to that file, on the command line to the working directory. A manifest may end in
`::am`, `@am` or `=am`: the language of its records. Unknown keys, wrong types and values out of range are all reported at
once. `train_gpt_v2 config show --provenance --config FILE` tells where each value comes from.

Every interval counts optimiser steps; 0 or null switches that thing off.

The column *resume* says what a changed value means for a run that is continued: *never* possible; allowed for this start
with `--allow-change NAME` (*batch, order, data, groups, precision, schedule, loss*); *warn* only warned about; *free*.
)";

}  // namespace

std::string json_schema() {
  Json properties = Json::object();
  properties["$schema"] = {{"type", "string"}};
  properties["extends"] = {
      {"description", "file or files whose values are taken over; later wins, this file wins over all"},
      {"anyOf", Json::array({{{"type", "string"}}, {{"type", "array"}, {"items", {{"type", "string"}}}}})}};
  for (const OptionSection& section : option_sections()) {
    properties[section.name] = {{"type", "object"},
                                {"description", section.doc},
                                {"additionalProperties", false},
                                {"properties", Json::object()}};
  }
  for (const OptionRow& row : option_rows()) {
    const std::vector<std::string> parts = split(row.path, '.');
    Json* place = &properties[parts.front()];
    for (std::size_t i = 1; i + 1 < parts.size(); ++i) {
      place = &(*place)["properties"][parts[i]];
      if (place->is_null())
        *place = {{"type", "object"}, {"additionalProperties", false}, {"properties", Json::object()}};
    }
    Json schema = schema_of(row.value);
    schema["description"] = full_doc(row);
    schema["default"] = default_value(row);
    (*place)["properties"][parts.back()] = std::move(schema);
  }
  const Json root{{"$schema", "http://json-schema.org/draft-07/schema#"},
                  {"title", "Configuration of train_gpt_v2"},
                  {"type", "object"},
                  {"additionalProperties", false},
                  {"properties", std::move(properties)}};
  return root.dump(2) + "\n";
}

std::string reference_page() {
  std::string page(kPageHead);
  for (const OptionSection& section : option_sections()) {
    page += concat("\n## ", section.name, "\n\n", section.doc, "\n\n");
    page += "| key | default | type and limits | resume | meaning |\n|---|---|---|---|---|\n";
    for (const OptionRow& row : option_rows()) {
      if (row.section() != section.name) continue;
      const std::string limits = describe_limits(row.value);
      page += concat("| `", row.key(), "` | `", cell(default_value(row).dump()), "` | ", cell(describe_type(row.value)),
                     limits.empty() ? "" : concat(", ", limits), " | ",
                     row.accepted_only ? "" : resume_class_name(row.resume), " | ", cell(full_doc(row)), " |\n");
      for (const FieldSpec& field : row.value.fields) {
        const std::string field_limits = describe_limits(field.value);
        page += concat("| `", row.key(), "[].", field.name, "` | ", field.value.nullable ? "`null`" : "", " | ",
                       cell(describe_type(field.value)), field_limits.empty() ? "" : concat(", ", field_limits),
                       " | | ", cell(field.doc), " |\n");
      }
    }
  }
  return page;
}

std::string option_help(std::string_view section) {
  std::vector<std::vector<std::string>> rows{{"key", "default", "meaning"}};
  for (const OptionRow& row : option_rows()) {
    if (row.accepted_only || (!section.empty() && row.section() != section)) continue;
    std::string meaning = full_doc(row);
    if (!row.value.choices.empty()) meaning += concat(" (", join(row.value.choices, " | "), ")");
    rows.push_back({row.path, default_value(row).dump(), std::move(meaning)});
  }
  return table(rows);
}

}  // namespace train_gpt_v2
