#include "train_gpt_v2/app/cli.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>

#include "train_gpt_v2/app/commands.h"
#include "train_gpt_v2/app/version.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/train/device.h"

namespace train_gpt_v2 {
namespace {

// `train_gpt_v2 --config x.json` is the documented short form of `train_gpt_v2 train --config x.json`.
std::vector<std::string> with_default_command(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  const bool for_program = !words.empty() && (words[0] == "--version" || words[0] == "--help" || words[0] == "-h");
  if (words.empty() || for_program || words[0].empty() || words[0][0] != '-') return words;
  words.insert(words.begin(), "train");
  return words;
}

int usage_error(const CLI::App& app, const CLI::ParseError& failure, const std::vector<std::string>& words) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  Error error("ARG001", failure.what());
  if (!words.empty() && std::find(names.begin(), names.end(), words[0]) == names.end()) {
    const std::string near = nearest_name(words[0], names);
    if (!near.empty()) std::move(error).detail(concat("did you mean \"", near, "\"?"));
  }
  const bool known = !words.empty() && std::find(names.begin(), names.end(), words[0]) != names.end();
  std::move(error).fix(concat("train_gpt_v2 ", known ? words[0] + " " : "", "--help"));
  log_raw(error.report());
  return static_cast<int>(ExitStatus::kUsage);
}

}  // namespace

int run_command_line(int argc, char** argv) {
  CLI::App app{
      "Fine-tunes the IndexTTS2 text-to-speech GPT to new languages.\n\n"
      "  train_gpt_v2 --config amharic.json                  train; the same command again continues\n"
      "  train_gpt_v2 inspect runs/amharic/latest.pt         what is in a checkpoint\n"
      "  train_gpt_v2 config show --config amharic.json      every setting and where it comes from\n",
      "train_gpt_v2"};
  app.set_version_flag("--version", version_report);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  app.footer(
      "Exit status: 0 done, 64 usage, 65 bad data, 66 missing input, 70 internal, 73/74 cannot write, 75 run again,\n"
      "78 configuration, 80 diverged, 82 out of memory, 83 hang, 129/130/143 stopped by a signal and saved.\n"
      "train_gpt_v2 explain CODE explains an error code.");
  ExitStatus status = ExitStatus::kOk;
  add_commands(app, status);
  std::vector<std::string> words;
  try {
    words = with_default_command(argc, argv);
    std::vector<std::string> reversed(words.rbegin(), words.rend());  // CLI11 takes them from the back
    app.parse(reversed);
    return static_cast<int>(status);
  } catch (const CLI::Success& success) {  // --help, --version
    return app.exit(success);
  } catch (const CLI::ParseError& failure) {
    return usage_error(app, failure, words);
  } catch (const Error& failure) {
    log_raw(failure.report());
    return static_cast<int>(failure.status());
  } catch (const std::exception& failure) {
    if (is_out_of_memory(failure)) {
      log_raw(Error("MEM001", "out of memory").detail(std::string(failure.what()).substr(0, 300)).report());
      return static_cast<int>(ExitStatus::kOutOfMemory);
    }
    log_raw(Error("INT001", failure.what()).report());
    return static_cast<int>(ExitStatus::kInternal);
  }
}

}  // namespace train_gpt_v2
