#include "train_gpt_v2/app/explain_command.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <vector>

#include "train_gpt_v2/core/error_codes.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kWidth = 96;
constexpr std::size_t kLongestCode = 32;  // nothing longer is compared with the known codes

// "error[ckp001]:" -> "CKP001"
std::string normalised(std::string_view code) {
  code = trim(code);
  if (const auto open = code.find('['); open != std::string_view::npos) {
    code = code.substr(open + 1, code.find(']', open) - open - 1);
  }
  std::string out(code);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](char c) { return static_cast<char>(std::toupper(static_cast<unsigned char>(c))); });
  return out;
}

std::string wrapped(std::string_view text, std::string_view indent) {
  std::string out, line;
  for (const std::string& word : split(text, ' ')) {
    if (!line.empty() && indent.size() + line.size() + 1 + word.size() > kWidth) {
      out += concat(indent, line, "\n");
      line.clear();
    }
    if (!line.empty()) line += ' ';
    line += word;
  }
  return out + concat(indent, line, "\n");
}

nlohmann::ordered_json to_json(const ErrorCode& code) {
  return {
      {"code", code.code}, {"status", static_cast<int>(code.status)}, {"title", code.title}, {"explain", code.explain}};
}

std::string list_of_codes(bool json) {
  if (json) {
    auto all = nlohmann::ordered_json::array();
    for (const ErrorCode& code : error_codes()) all.push_back(to_json(code));
    return all.dump(2) + "\n";
  }
  std::vector<std::vector<std::string>> rows{{"code", "exit", "meaning"}};
  for (const ErrorCode& code : error_codes()) {
    rows.push_back({std::string(code.code), std::to_string(static_cast<int>(code.status)), std::string(code.title)});
  }
  return table(rows) + "\nMore about one of them: train_gpt_v2 explain CODE\n";
}

}  // namespace

std::string exit_status_text(ExitStatus status) {
  const auto number = static_cast<int>(status);
  switch (status) {
    case ExitStatus::kOk:
      return "0: done; go on";
    case ExitStatus::kUsage:
      return "64: wrong use of the command line; stop and fix the command";
    case ExitStatus::kBadData:
      return "65: bad data or a damaged checkpoint; stop and fix";
    case ExitStatus::kMissingInput:
      return "66: a named input is missing; stop and fix";
    case ExitStatus::kInternal:
      return "70: internal error; stop and report it";
    case ExitStatus::kCannotCreate:
      return "73: an output cannot be created; make room or change the path, then rerun";
    case ExitStatus::kIo:
      return "74: input-output error or full disk; free space, then rerun";
    case ExitStatus::kTemporary:
      return "75: temporary failure; rerun the same command";
    case ExitStatus::kConfig:
      return "78: configuration or a refused resume; stop and fix";
    case ExitStatus::kDiverged:
      return "80: training diverged; stop and look at it";
    case ExitStatus::kOutOfMemory:
      return "82: out of memory; a smaller micro-batch, then rerun";
    case ExitStatus::kHang:
      return "83: no progress for too long; rerun the same command";
    case ExitStatus::kSighup:
      return "129: SIGHUP, checkpoint saved; rerun to continue";
    case ExitStatus::kSigint:
      return "130: SIGINT or a stop file, checkpoint saved; rerun to continue";
    case ExitStatus::kSigterm:
      return "143: SIGTERM, checkpoint saved; rerun to continue";
  }
  return concat(number, ": not a status of this program");
}

std::string explain_text(std::string_view asked, bool json) {
  const std::string code = normalised(asked);
  if (code.empty()) return list_of_codes(json);
  if (const ErrorCode* known = find_error_code(code)) {
    if (json) return to_json(*known).dump(2) + "\n";
    return concat(known->code, ": ", known->title, "\n\n", wrapped(known->explain, "  "), "\n  exit status ",
                  exit_status_text(known->status), "\n");
  }
  std::vector<std::string> candidates;
  for (const ErrorCode& known : error_codes()) candidates.emplace_back(known.code);
  const bool too_long = code.size() > kLongestCode;
  const std::string nearest = too_long ? "" : nearest_name(code, candidates);
  const std::string shown = too_long ? "that long text" : concat("\"", code, "\"");
  throw Error("ARG001", concat("there is no error code ", shown))
      .fix(nearest.empty() ? "train_gpt_v2 explain lists all codes"
                           : concat("did you mean ", nearest, "?  train_gpt_v2 explain ", nearest));
}

}  // namespace train_gpt_v2
