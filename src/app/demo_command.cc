#include "train_gpt_v2/app/demo_command.h"

#include <signal.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "argument_checks.h"
#include "train_gpt_v2/app/demo_data.h"
#include "train_gpt_v2/app/demo_summary.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {

void add_demo_commands(CLI::App& app) {
  auto options = std::make_shared<DemoOptions>();
  CLI::App* data = app.add_subcommand("demo-data", "make the demo corpus from installed packages");
  data->add_option("--out", options->out, "folder to make")->required();
  data->add_option("--utterances", options->utterances, "number of clips")->capture_default_str();
  data->add_option("--seed", options->seed, "the same seed gives the same files")
      ->check(not_negative, "NONNEGATIVE")
      ->capture_default_str();
  data->add_option("--voices", options->voices, "first, second (other speakers, same codes and tokenizer) or all")
      ->capture_default_str();
  data->footer(
      "Example: train_gpt_v2 demo-data --out data/demo\n"
      "Amharic text comes from libreoffice-l10n-am and aspell-am, speech from espeak-ng: good to watch a model\n"
      "learn, no basis for a voice.");
  data->callback([options] {
    // A speech program that dies early must be an Error, not our end. Ctrl-C ends us as usual: nothing is half made.
    ::signal(SIGPIPE, SIG_IGN);
    const DemoCorpus corpus = make_demo_corpus(*options);
    std::cout << corpus.folder << (corpus.already_there ? " is already there: " : ": ") << corpus.train_pairs
              << " training and " << corpus.val_pairs << " validation pairs, " << fixed(corpus.hours, 2)
              << " hours of speech\nconfiguration: " << corpus.config << "\n";
  });

  auto run = std::make_shared<std::string>();
  CLI::App* summary = app.add_subcommand("demo-summary", "compare a demo run with a bigram; writes RUN/summary.json");
  summary->add_option("RUN", *run, "run directory")->required();
  summary->footer("Example: train_gpt_v2 demo-summary runs/demo");
  summary->callback([run] {
    const DemoSummary result = summarise_demo_run(*run);
    write_file_atomically(path_join(*run, "summary.json"), summary_json(result));
    std::cout << summary_table(result);
  });
}

}  // namespace train_gpt_v2
