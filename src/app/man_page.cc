#include "train_gpt_v2/app/man_page.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/app/explain_command.h"
#include "train_gpt_v2/config/option_table.h"
#include "train_gpt_v2/core/error_codes.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

// Text as troff shows it: no escapes, no requests.
std::string plain(std::string_view text) {
  std::string out;
  bool line_begins = true;
  for (const char c : text) {
    if (line_begins && (c == '.' || c == '\'')) out += "\\&";
    line_begins = c == '\n';
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else {
      out += c;
    }
  }
  return out;
}

std::string item(const std::string& head, std::string_view text) {
  return concat(".TP\n\\fB", plain(head), "\\fR\n", plain(text), "\n");
}

std::string command_section(const CLI::App& command, const std::string& path) {
  const std::string name = path.empty() ? command.get_name() : concat(path, " ", command.get_name());
  std::string page = concat(".SS ", plain(name), "\n", plain(command.get_description()), "\n");
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_name() == "--help" || option->get_name().empty()) continue;
    page += item(option->get_name(false, true), option->get_description());
  }
  if (!command.get_footer().empty()) page += concat(".PP\n.nf\n", plain(command.get_footer()), "\n.fi\n");
  for (const CLI::App* below : command.get_subcommands([](const CLI::App*) { return true; })) {
    page += command_section(*below, name);
  }
  return page;
}

std::string configuration() {
  std::string page;
  for (const OptionSection& section : option_sections()) {
    page += concat(".SS ", plain(section.name), "\n", plain(section.doc), "\n");
    for (const OptionRow& row : option_rows()) {
      if (row.section() != section.name || row.accepted_only) continue;
      const std::string limits = describe_limits(row.value);
      page += item(row.path, concat(row.doc, " (", describe_type(row.value), limits.empty() ? "" : ", " + limits,
                                    "; default ", default_value(row).dump(), ")"));
    }
  }
  return page;
}

std::string exit_statuses() {
  using enum ExitStatus;
  std::string page;
  for (const ExitStatus status : {kOk, kUsage, kBadData, kMissingInput, kInternal, kCannotCreate, kIo, kTemporary,
                                  kConfig, kDiverged, kOutOfMemory, kHang, kSighup, kSigint, kSigterm}) {
    const std::string text = exit_status_text(status);
    const std::size_t colon = text.find(": ");
    page += item(text.substr(0, colon), text.substr(colon + 2));
  }
  return page;
}

}  // namespace

std::string man_page(const CLI::App& app, const std::string& version) {
  std::string page =
      concat(".TH TRAIN_GPT_V2 1 \"\" \"train_gpt_v2 ", plain(version), "\"\n",
             ".SH NAME\ntrain_gpt_v2 \\- fine\\-tunes the IndexTTS2 text\\-to\\-speech GPT to new languages\n",
             ".SH SYNOPSIS\n\\fBtrain_gpt_v2\\fR \\-\\-config \\fIFILE\\fR [\\-\\-resume latest.pt]\n.br\n",
             "\\fBtrain_gpt_v2\\fR \\fICOMMAND\\fR [\\fIOPTIONS\\fR]\n.SH DESCRIPTION\n.nf\n",
             plain(app.get_description()), "\n.fi\n.SH COMMANDS\n");
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    page += command_section(*command, "");
  page += ".SH CONFIGURATION\nJSON with comments; every key can be set with \\-\\-set section.key=VALUE, too.\n" +
          configuration();
  page += ".SH EXIT STATUS\n" + exit_statuses();
  page += ".SH ERRORS\n";
  for (const ErrorCode& code : error_codes()) page += item(concat(code.code, "  ", code.title), code.explain);
  return page;
}

}  // namespace train_gpt_v2
