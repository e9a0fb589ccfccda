#include "train_gpt_v2/app/cli.h"

#include <CLI/CLI.hpp>
#include <iostream>

#include "train_gpt_v2/app/version.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"

namespace train_gpt_v2 {

int run_command_line(int argc, char** argv) {
  CLI::App app{"Fine-tunes the IndexTTS2 GPT to new languages"};
  app.set_version_flag("--version", version_report);
  try {
    app.parse(argc, argv);
    return static_cast<int>(ExitStatus::kOk);
  } catch (const CLI::ParseError& failure) {
    return app.exit(failure) == 0 ? 0 : static_cast<int>(ExitStatus::kUsage);
  } catch (const Error& failure) {
    log_raw(failure.report());
    return static_cast<int>(failure.status());
  } catch (const std::exception& failure) {
    log_raw(Error("INT001", failure.what()).report());
    return static_cast<int>(ExitStatus::kInternal);
  }
}

}  // namespace train_gpt_v2
