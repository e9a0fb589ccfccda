// Measures the trainer from inside; scripts/bench.sh runs it and makes the table. One JSON object per line on stdout.
//
//   bench_train corpus --folder DIR [--pairs N] [--micro-batches N] [--dim D] [--layers L] [--batch B]
//   bench_train step|parts|growth --folder DIR [--quick] [--threads N] [--clock wall|cpu] [--dim D] [--layers L]
//   [--batch B]
//               [--device cpu|cuda]
//
// step: one training step and what it is made of (the only part that --device moves); parts: the components by
// themselves; growth: what grows with what.

#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "bench.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/train/device.h"

int main(int argc, char** argv) {
  using namespace train_gpt_v2;
  bench::Settings settings;
  std::string clock = "wall";
  std::size_t pairs = 400, micro_batches = 64;
  CLI::App app{"Measurements of train_gpt_v2."};
  app.require_subcommand(1);
  const auto add = [&](const char* name, const char* what) {
    CLI::App* command = app.add_subcommand(name, what);
    command->add_option("--folder", settings.folder, "folder for data")->required();
    command->add_option("--dim", settings.dim)->check(CLI::Range(64, 8192));
    command->add_option("--layers", settings.layers)->check(CLI::Range(1, 128));
    command->add_option("--batch", settings.batch)->check(CLI::Range(1, 1024));
    command->add_option("--threads", settings.threads)->check(CLI::Range(1, 1024));
    command->add_option("--clock", clock)->check(CLI::IsMember({"wall", "cpu"}));
    command->add_option("--device", settings.device)->check(CLI::IsMember({"cpu", "cuda"}));
    command->add_flag("--quick", settings.quick);
    return command;
  };
  CLI::App* corpus = add("corpus", "data, order files and weights for a comparison");
  corpus->add_option("--pairs", pairs)->check(CLI::Range(1, 10'000'000));
  corpus->add_option("--micro-batches", micro_batches)->check(CLI::Range(1, 1'000'000));
  CLI::App* step = add("step", "one training step");
  CLI::App* parts = add("parts", "the components");
  CLI::App* growth = add("growth", "what grows with what");
  CLI11_PARSE(app, argc, argv);
  try {
    settings.processor = clock == "cpu";
    TrainOptions train;
    train.num_threads = settings.threads;
    configure_compute(train, at::kCPU);
    if (corpus->parsed()) bench::write_corpus(settings, pairs, micro_batches, /*weights=*/true);
    if (step->parsed()) bench::bench_step(settings);
    if (parts->parsed()) bench::bench_parts(settings);
    if (growth->parsed()) bench::bench_growth(settings);
  } catch (const Error& error) {
    std::fputs(error.report().c_str(), stderr);
    return static_cast<int>(error.status());
  }
  return 0;
}
