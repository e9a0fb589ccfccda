#include "train_gpt_v2/app/cli.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iostream>

#include "train_gpt_v2/app/commands.h"
#include "train_gpt_v2/app/version.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/train/device.h"

namespace train_gpt_v2 {
namespace {

// `train_gpt_v2 --config x.json` is the documented short form of `train_gpt_v2 train --config x.json`.
std::vector<std::string> with_default_command(int argc, char** argv) {
  std::vector<std::string> words;
  for (int i = 1; i < argc; ++i) {
    words.emplace_back(argv[i]);
    std::string& word = words.back();
    if (!starts_with(word, "--") || word.find('=') + 1 != word.size()) continue;
    word.pop_back();  // of `--name=` with nothing behind it CLI11 would make `--name` and take the next word as value
    words.emplace_back();
  }
  const bool for_program = !words.empty() && (words[0] == "--version" || words[0] == "--help" || words[0] == "-h");
  if (words.empty() || for_program || words[0].empty() || words[0][0] != '-') return words;
  words.insert(words.begin(), "train");
  return words;
}

// An unset variable ("$FILE") is no value: as a path it would mean some folder, or nothing at all.
void refuse_empty_values(CLI::App& command) {
  for (CLI::Option* option : command.get_options()) {
    option->check(
        [](const std::string& value) { return value.empty() ? std::string("the value is empty") : std::string(); });
  }
  for (CLI::App* inner : command.get_subcommands([](CLI::App*) { return true; })) refuse_empty_values(*inner);
}

int usage_error(const CLI::App& app, const CLI::ParseError& failure, const std::vector<std::string>& words) {
  // Along the commands that were given, down to a word that should be one and is none.
  const CLI::App* command = &app;
  std::string known = "train_gpt_v2 ", unknown, near;
  for (const std::string& word : words) {
    std::vector<std::string> names;
    for (const CLI::App* one : command->get_subcommands([](const CLI::App*) { return true; }))
      names.push_back(one->get_name());
    if (names.empty() || starts_with(word, "-")) break;
    if (std::find(names.begin(), names.end(), word) == names.end()) {
      unknown = word;
      near = nearest_name(word, names);
      break;
    }
    command = command->get_subcommand(word);
    known += word + " ";
  }
  Error error("ARG001", unknown.empty() ? failure.what() : concat("there is no command \"", unknown, "\""));
  if (!near.empty()) std::move(error).detail(concat("did you mean \"", near, "\"?"));
  std::move(error).fix(known + "--help");
  log_raw(error.report());
  return static_cast<int>(ExitStatus::kUsage);
}

// A result that did not arrive is no success. A reader that has left (`| head -1`) has what it wanted.
int deliver_output(int status) {
  errno = 0;
  std::cout.flush();
  if (std::cout || status != 0) return status;
  const int reason = errno;  // 0 where an earlier write failed
  pollfd out{STDOUT_FILENO, POLLOUT, 0};
  if (reason == EPIPE || (::poll(&out, 1, 0) > 0 && (out.revents & (POLLERR | POLLHUP)) != 0)) return status;
  log_raw(Error("IO002", concat("cannot write the result to stdout", reason != 0 ? ": " : "",
                                reason != 0 ? std::strerror(reason) : ""))
              .fix("free space, or send the output elsewhere, then run the same command again")
              .report());
  return static_cast<int>(ExitStatus::kIo);
}

int run(int argc, char** argv) {
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
  refuse_empty_values(app);
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

}  // namespace

int run_command_line(int argc, char** argv) {
  // A write beyond the limit on file sizes fails like one to a full disk, and temporary files are removed.
  ::signal(SIGXFSZ, SIG_IGN);
  return deliver_output(run(argc, argv));
}

}  // namespace train_gpt_v2
