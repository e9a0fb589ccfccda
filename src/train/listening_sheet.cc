#include "train_gpt_v2/train/listening_sheet.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxEntries = 1000;
constexpr std::size_t kMaxText = 2000;  // bytes kept of a field

Error bad_sheet(const std::string& reason) {
  return Error("DAT090", concat("the listening sheet cannot be read: ", reason));
}

// The first bytes of a text, not ending within a character.
std::string shortened(std::string text) {
  if (text.size() <= kMaxText) return text;
  std::size_t end = kMaxText;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "…";
}

std::string text_of(const Json& entry, std::string_view field) {
  const auto found = entry.find(field);
  if (found == entry.end()) return {};
  if (found->is_string()) return shortened(found->get<std::string>());
  if (found->is_boolean()) return found->get<bool>() ? "yes" : "no";
  if (found->is_number()) return found->dump();
  return {};
}

}  // namespace

std::string empty_listening_sheet(std::int64_t step, const std::vector<ListeningNote>& samples) {
  Json sheet{{"step", step}, {"samples", Json::array()}};
  for (const ListeningNote& sample : samples) {
    Json entry{{"id", sample.id}, {"text", sample.text}};
    if (!sample.category.empty()) entry["category"] = sample.category;
    for (const ListeningCriterion& criterion : kListeningCriteria) entry[std::string(criterion.field)] = nullptr;
    entry["comment"] = "";
    sheet["samples"].push_back(std::move(entry));
  }
  return sheet.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::vector<ListeningNote> parse_listening_sheet(std::string_view json) {
  const Json sheet = Json::parse(json, nullptr, false, true);
  if (sheet.is_discarded()) throw bad_sheet("it is not JSON");
  const Json& entries = sheet.is_object() && sheet.contains("samples") ? sheet["samples"] : sheet;
  if (!entries.is_array()) throw bad_sheet("there is no list \"samples\"");
  if (entries.size() > kMaxEntries) throw bad_sheet(concat("more than ", kMaxEntries, " samples"));
  std::vector<ListeningNote> notes;
  for (const Json& entry : entries) {
    if (!entry.is_object()) throw bad_sheet(concat("entry ", notes.size() + 1, " is not an object"));
    ListeningNote note{
        text_of(entry, "id"), text_of(entry, "text"), text_of(entry, "category"), text_of(entry, "comment"), {}};
    for (std::size_t i = 0; i < std::size(kListeningCriteria); ++i) {
      note.judgements[i] = text_of(entry, kListeningCriteria[i].field);
    }
    notes.push_back(std::move(note));
  }
  return notes;
}

}  // namespace train_gpt_v2
