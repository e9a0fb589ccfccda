#include "train_gpt_v2/app/commands.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>

#include "argument_checks.h"
#include "train_gpt_v2/app/check_command.h"
#include "train_gpt_v2/app/config_command.h"
#include "train_gpt_v2/app/demo_command.h"
#include "train_gpt_v2/app/eval_command.h"
#include "train_gpt_v2/app/explain_command.h"
#include "train_gpt_v2/app/export_command.h"
#include "train_gpt_v2/app/extend_vocab_command.h"
#include "train_gpt_v2/app/fisher_command.h"
#include "train_gpt_v2/app/inspect_command.h"
#include "train_gpt_v2/app/man_page.h"
#include "train_gpt_v2/app/merge_command.h"
#include "train_gpt_v2/app/pack_command.h"
#include "train_gpt_v2/app/report_command.h"
#include "train_gpt_v2/app/sample_command.h"
#include "train_gpt_v2/app/version.h"
#include "train_gpt_v2/app/vocoder.h"
#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/data/packed_set.h"
#include "train_gpt_v2/train/device.h"
#include "train_gpt_v2/train/resume_rules.h"
#include "train_gpt_v2/train/session.h"

namespace train_gpt_v2 {
namespace {

// Headings of `--help`.
constexpr const char* kConfiguration = "Configuration";
constexpr const char* kCommon = "Common";

// Options that every command reading a configuration has (interface.md §1).
struct Common {
  std::string config;
  std::vector<std::string> sets;
  std::string device = "auto";
  int verbose = 0;
  bool quiet = false, no_colour = false, json = false;

  void add_logging(CLI::App& command) {
    command.add_flag("-v,--verbose", verbose, "more log")->group(kCommon);
    command.add_flag("-q,--quiet", quiet, "warnings and errors only")->group(kCommon);
    command.add_flag("--no-color", no_colour, "no colours")->group(kCommon);
  }
  void add_config(CLI::App& command, bool required) {
    auto* option = command.add_option("--config", config, "configuration file (JSON with comments)");
    option->required(required)->group(kConfiguration);
    command.add_option("--set", sets, "section.key=VALUE over the file; repeatable")
        ->allow_extra_args(false)
        ->group(kConfiguration);
  }
  void add_device(CLI::App& command) {
    command.add_option("--device", device, "auto, cpu, cuda or cuda:N")->capture_default_str()->group(kCommon);
  }
  void add_json(CLI::App& command) {
    command.add_flag("--json", json, "one JSON document on stdout, nothing else")->group(kCommon);
  }
  void apply_logging() const {
    configure_logging({quiet ? LogLevel::kWarning : verbose > 0 ? LogLevel::kDebug : LogLevel::kInfo, !no_colour});
  }
};

// Sound for the samples while training. A folder that only looks like the demo's codebook is no reason not to train.
Vocoder training_vocoder(const Options& options) {
  if (options.sampling.interval <= 0) return {};
  const std::string& command = options.sampling.vocoder_command;
  try {
    return make_vocoder(command,
                        options.data.val_manifests.empty() ? options.data.train_manifests : options.data.val_manifests);
  } catch (const Error& failure) {
    if (!command.empty()) throw;
    log_warning("sample", "the samples will have no sound: ", failure.message());
    return {};
  }
}

void add_train(CLI::App& app, ExitStatus& status) {
  struct Arguments : Common {
    std::string resume = "auto", output_dir;
    std::vector<std::string> allow;
    std::optional<std::int64_t> max_steps;
    double hang_seconds = 1800;
    bool dry_run = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("train", "train; the same command again continues");
  arguments->add_config(*command, true);
  command->add_option("--resume", arguments->resume, "auto, none, or a checkpoint file")->capture_default_str();
  command->add_option("--output-dir", arguments->output_dir, "run directory (default runs/<config name>)");
  command->add_option("--max-steps", arguments->max_steps, "this process stops at step N; the schedule is not changed")
      ->check(not_negative, "NONNEGATIVE");
  command
      ->add_option("--allow-change", arguments->allow,
                   "let this differ from the checkpoint: batch, order, data, groups, precision, schedule, loss")
      ->allow_extra_args(false);
  command
      ->add_option(
          "--hang-seconds", arguments->hang_seconds,
          "leave with status 83 when nothing moved for so long (no micro-batch, no sample, no save); 0 = never")
      ->check(not_negative, "NONNEGATIVE")
      ->capture_default_str();
  command->add_flag("--dry-run", arguments->dry_run, "everything up to the first step, then stop");
  arguments->add_device(*command);
  arguments->add_logging(*command);
  command->footer(
      "Example: train_gpt_v2 train --config amharic.json --set train.batch_size=32 --output-dir runs/am32\n"
      "Signals: INT, TERM, HUP save and stop; USR1 saves and goes on; USR2 prints a status line. A file named\n"
      "`save` or `stop` in the run directory does the same.");
  command->callback([arguments, &status] {
    arguments->apply_logging();
    install_signal_handlers();
    const LoadedConfig config = load_config(arguments->config, arguments->sets);
    for (const std::string& warning : config.warnings) log_warning("config", warning);
    SessionRequest request;
    request.options = config.options;
    request.run_directory =
        absolute_path(arguments->output_dir.empty() ? "runs/" + config.name : arguments->output_dir);
    request.resume = arguments->resume;
    request.allowed_changes = parse_allowed_changes(arguments->allow);
    request.max_steps = arguments->max_steps;
    request.dry_run = arguments->dry_run;
    request.hang_seconds = arguments->hang_seconds;
    request.ranks = read_rank_environment();
    if (request.ranks.rank > 0) configure_logging({LogLevel::kWarning, !arguments->no_colour});
    request.device = choose_device(arguments->device, request.ranks.local_rank);
    request.build = build_id();
    request.vocoder = training_vocoder(config.options);
    configure_compute(config.options.train, request.device);
    status = run_training(request);
  });
}

void add_check(CLI::App& app, ExitStatus& status) {
  struct Arguments : Common {
    CheckRequest request;
  };
  auto arguments = std::make_shared<Arguments>();
  CheckRequest& request = arguments->request;
  CLI::App* command = app.add_subcommand("check", "everything that can spoil a run, before it begins");
  arguments->add_config(*command, true);
  command->add_option("--output-dir", request.output_dir,
                      "run directory of the run to come (default runs/<config name>)");
  command->add_flag("--full", request.full, "read every array, not a sample of 2,000 pairs");
  command->add_flag("--data-only", request.data_only, "stop after configuration, tokenizer and data");
  command->add_option("--repair", request.repair,
                      "write manifests into this folder without what cannot be used and with padded codes trimmed");
  arguments->add_device(*command);
  arguments->add_json(*command);
  arguments->add_logging(*command);
  command->footer(
      "Example: train_gpt_v2 check --config amharic.json\n"
      "         train_gpt_v2 check --config amharic.json --data-only --full --repair repaired");
  command->callback([arguments, &status] {
    arguments->apply_logging();
    CheckRequest& asked = arguments->request;
    asked.config = arguments->config;
    asked.sets = arguments->sets;
    asked.device = arguments->device;
    asked.json = arguments->json;
    asked.build = build_id();
    status = run_check(asked, std::cout);
  });
}

// Options of commands that use a checkpoint's weights.
void add_model_options(CLI::App& command, Common& common, ModelRequest& request) {
  command.add_option("--checkpoint", request.checkpoint, "checkpoint or weight file")->required();
  command.add_option("--weights", request.weights, "raw or ema (default: what best_model.pth records, else raw)")
      ->check(CLI::IsMember({"raw", "ema"}));
  common.add_config(command, false);
}

void finish(const Common& common, ModelRequest& request) {
  common.apply_logging();
  request.config = common.config;
  request.sets = common.sets;
  request.device = choose_device(common.device);
}

void add_eval(CLI::App& app, ExitStatus&) {
  struct Arguments : Common {
    EvalRequest request;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("eval", "losses of a checkpoint on manifests");
  add_model_options(*command, *arguments, arguments->request.model);
  command
      ->add_option("--manifest", arguments->request.manifests,
                   "pair manifest (default: data.val_manifests); repeatable")
      ->allow_extra_args(false);
  command->add_option("--order", arguments->request.order_file, "order file: losses per micro-batch");
  command->add_flag("--per-sample", arguments->request.per_sample, "losses of every sample");
  arguments->add_device(*command);
  arguments->add_json(*command);
  arguments->add_logging(*command);
  command->footer("Example: train_gpt_v2 eval --checkpoint runs/am/best_model.pth --manifest val_pairs.jsonl --json");
  command->callback([arguments] {
    finish(*arguments, arguments->request.model);
    arguments->request.json = arguments->json;
    for (std::string& manifest : arguments->request.manifests) manifest = absolute_path(manifest);
    run_eval(arguments->request, std::cout);
  });
}

void add_merge(CLI::App& app, ExitStatus& status) {
  struct Arguments : Common {
    MergeRequest request;
  };
  auto arguments = std::make_shared<Arguments>();
  MergeRequest& request = arguments->request;
  CLI::App* command = app.add_subcommand("merge", "fold adapters into their base: one file of plain weights");
  add_model_options(*command, *arguments, request.model);
  command->add_option("--output", request.output, "the file to write, e.g. merged_final.pth")->required();
  command->add_option("--scale", request.scale, "share of what the adapters changed: 1 all of it, 0 the base")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--manifest", request.manifests, "pairs for the proof (default: data.val_manifests); repeatable")
      ->allow_extra_args(false);
  command->add_option("--tolerance", request.tolerance, "largest difference between both forms, relative to the logits")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  arguments->device = "cpu";
  arguments->add_device(*command);
  arguments->add_json(*command);
  arguments->add_logging(*command);
  command->footer("Example: train_gpt_v2 merge --checkpoint runs/phase2/best_model.pth --output merged_final.pth");
  command->callback([arguments, &status] {
    install_signal_handlers();
    MergeRequest& asked = arguments->request;
    finish(*arguments, asked.model);
    asked.json = arguments->json;
    for (std::string& manifest : asked.manifests) manifest = absolute_path(manifest);
    status = run_merge(asked, std::cout);
  });
}

void add_fisher(CLI::App& app, ExitStatus& status) {
  struct Arguments : Common {
    FisherRequest request;
  };
  auto arguments = std::make_shared<Arguments>();
  FisherRequest& request = arguments->request;
  CLI::App* command =
      app.add_subcommand("fisher", "Fisher information for ewc.fisher: which weights old languages need");
  add_model_options(*command, *arguments, request.model);
  command->add_option("--manifest", request.manifests, "pairs of the languages to protect; repeatable")->required();
  command->add_option("--output", request.output, "the file to write (safetensors)")->required();
  command->add_option("--samples", request.samples, "so many, spread evenly over the manifests (default: all)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 32));
  command->add_option("--batch-size", request.batch_size, "samples per backward pass; smaller is more accurate, slower")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  arguments->add_device(*command);
  arguments->add_json(*command);
  arguments->add_logging(*command);
  command->footer(
      "Example: train_gpt_v2 fisher --checkpoint gpt.pth --config phase2.json --manifest en_pairs.jsonl::en\n"
      "         --manifest zh_pairs.jsonl::zh --output fisher_en_zh.safetensors --samples 2000");
  command->callback([arguments, &status] {
    install_signal_handlers();
    FisherRequest& asked = arguments->request;
    finish(*arguments, asked.model);
    asked.json = arguments->json;
    for (std::string& manifest : asked.manifests) manifest = absolute_path(manifest);
    status = run_fisher(asked, std::cout);
  });
}

void add_config_commands(CLI::App& app) {
  CLI::App* config = app.add_subcommand("config", "look at, compare and make configurations");
  config->require_subcommand(1);
  auto common = std::make_shared<Common>();

  auto view = std::make_shared<std::pair<bool, bool>>();
  CLI::App* show = config->add_subcommand("show", "every setting");
  common->add_config(*show, false);
  auto checkpoint = std::make_shared<std::string>();
  show->add_option("--checkpoint", *checkpoint, "the configuration stored in a checkpoint")->excludes("--config");
  common->add_json(*show);
  show->add_flag("--provenance", view->first, "where each value comes from");
  show->add_flag("--minimal", view->second, "only what differs from the defaults");
  show->footer("Example: train_gpt_v2 config show --config amharic.json --provenance");
  show->callback([common, view, checkpoint] {
    const ConfigView which = view->first    ? ConfigView::kProvenance
                             : view->second ? ConfigView::kMinimal
                                            : ConfigView::kEffective;
    run_config_show({common->config, *checkpoint, common->sets}, which, common->json, std::cout);
  });

  auto files = std::make_shared<std::pair<std::string, std::string>>();
  CLI::App* diff = config->add_subcommand("diff", "differences between two configurations");
  diff->add_option("A", files->first)->required();
  diff->add_option("B", files->second)->required();
  common->add_json(*diff);
  diff->footer("Example: train_gpt_v2 config diff phase1.json runs/am/config.effective.json");
  diff->callback([common, files] { run_config_diff(files->first, files->second, common->json, std::cout); });

  auto folder = std::make_shared<std::string>();
  CLI::App* schema = config->add_subcommand("schema", "the JSON schema (completion in editors)");
  schema->add_option("--output", *folder, "write schema.json and README.md into this folder");
  schema->footer("Example: train_gpt_v2 config schema --output configs");
  schema->callback([folder] { run_config_schema(*folder, std::cout); });

  auto yaml = std::make_shared<std::string>();
  CLI::App* converter = config->add_subcommand("import", "a config.yaml of the Python trainer as our JSON");
  converter->add_option("FILE", *yaml)->required();
  converter->footer("Example: train_gpt_v2 config import checkpoints/config.yaml > amharic.json");
  converter->callback([yaml] { run_config_import(*yaml, std::cout); });

  auto shell = std::make_shared<std::string>();
  CLI::App* completion = config->add_subcommand("completion", "completion script for bash, zsh or fish");
  completion->add_option("SHELL", *shell)->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  completion->footer(
      "Example: train_gpt_v2 config completion bash > ~/.local/share/bash-completion/completions/train_gpt_v2");
  completion->callback([shell, &app] {
    std::vector<CommandWords> commands;
    for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
      CommandWords words{command->get_name(), command->get_description(), {}, {}};
      const auto add_options = [&words](const CLI::App* one) {
        for (const CLI::Option* option : one->get_options()) {
          for (const std::string& name : option->get_lnames()) {
            const std::string word = "--" + name;
            const bool known = std::find(words.options.begin(), words.options.end(), word) != words.options.end();
            if (!known) words.options.push_back(word);
          }
        }
      };
      add_options(command);
      for (const CLI::App* inner : command->get_subcommands([](const CLI::App*) { return true; })) {
        words.inner.push_back(inner->get_name());
        add_options(inner);
      }
      commands.push_back(std::move(words));
    }
    run_config_completion(*shell, commands, std::cout);
  });

  CLI::App* manual = config->add_subcommand("man", "the manual page (troff)");
  manual->footer("Example: train_gpt_v2 config man | man -l -");
  manual->callback([&app] { std::cout << man_page(app, build_id()); });
}

void add_export(CLI::App& app) {
  struct Arguments : Common {
    ExportRequest request;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("export", "weights for inference, or adapters for peft");
  add_model_options(*command, *arguments, arguments->request.model);
  command->add_option("--output", arguments->request.output, "the file to write; a folder for peft")->required();
  command->add_option("--format", arguments->request.format, "gpt.pth, safetensors or peft")
      ->check(CLI::IsMember({"gpt.pth", "safetensors", "peft"}))
      ->capture_default_str();
  command->add_option("--dtype", arguments->request.dtype, "fp32, fp16 or bf16 (default: as stored)")
      ->check(CLI::IsMember({"fp32", "fp16", "bf16"}));
  arguments->device = "cpu";
  arguments->add_device(*command);
  arguments->add_logging(*command);
  command->footer("Example: train_gpt_v2 export --checkpoint runs/am/best_model.pth --output gpt_am.pth");
  command->callback([arguments] {
    finish(*arguments, arguments->request.model);
    std::cout << run_export(arguments->request);
  });
}

void add_decoding(CLI::App& command, DecodingOptions& decoding) {
  command.add_flag("--greedy", decoding.greedy, "no sampling; with --num-beams N plain beam search");
  command.add_option("--num-beams", decoding.num_beams, "1 = no beams (default 3; 1 with --greedy)")
      ->check(CLI::Range(1, 64));
  command.add_option("--temperature", decoding.temperature)->check(CLI::Range(0.01, 100.0))->capture_default_str();
  command.add_option("--top-k", decoding.top_k, "0 = off")->check(CLI::Range(0, 1'000'000))->capture_default_str();
  command.add_option("--top-p", decoding.top_p, "1 = off")->check(CLI::Range(0.0, 1.0))->capture_default_str();
  command.add_option("--typical-p", decoding.typical_p, "typical sampling (default: off)")->check(CLI::Range(0.0, 1.0));
  command.add_option("--repetition-penalty", decoding.repetition_penalty, "1 = off")
      ->check(CLI::Range(0.01, 1000.0))
      ->capture_default_str();
  command.add_option("--length-penalty", decoding.length_penalty, "of beams")
      ->check(CLI::Range(-100.0, 100.0))
      ->capture_default_str();
  command
      .add_option("--max-codes", decoding.max_codes,
                  "most codes, the stop included (default 1500); never above max_mel_tokens - 1")
      ->check(CLI::Range(1, 1'000'000));
  command
      .add_option("--mel-position", decoding.mel_position, "training, or reference_inference (off by one, as there)")
      ->check(CLI::IsMember({"training", "reference_inference"}))
      ->capture_default_str();
  command.add_option("--seed", decoding.seed, "of the random numbers")
      ->check(not_negative, "NONNEGATIVE")
      ->capture_default_str();
}

void add_sample(CLI::App& app, ExitStatus& status) {
  struct Arguments : Common {
    SampleRequest request;
  };
  auto arguments = std::make_shared<Arguments>();
  SampleRequest& request = arguments->request;
  request.decoding = shipped_decoding();
  CLI::App* command = app.add_subcommand("sample", "speech codes for a file of cases");
  add_model_options(*command, *arguments, request.model);
  command->add_option("--cases", request.cases, "JSONL of cases")->required();
  command->add_option("--out", request.folder, "folder for codes, pictures and sound")->required();
  command
      ->add_option("--manifest", request.manifests,
                   "where prompts are found (default: the configuration's); repeatable")
      ->allow_extra_args(false);
  command->add_option("--prompt", request.prompt, "pair id for cases that name no voice");
  command->add_option("--vocoder-command", request.vocoder_command, "codes to sound: \"PROGRAM {codes} {out}\"");
  command->add_option("--batch-size", request.batch_size, "cases decoded together")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  add_decoding(*command, request.decoding);
  arguments->add_device(*command);
  arguments->add_json(*command);
  arguments->add_logging(*command);
  command->footer("Example: train_gpt_v2 sample --checkpoint runs/am/best_model.pth --cases cases.jsonl --out spoken");
  command->callback([arguments, command, &status] {
    install_signal_handlers();
    SampleRequest& asked = arguments->request;
    finish(*arguments, asked.model);
    asked.json = arguments->json;
    for (std::string& manifest : asked.manifests) manifest = absolute_path(manifest);
    if (asked.decoding.greedy && command->count("--num-beams") == 0) asked.decoding.num_beams = 1;
    status = run_sample(asked, std::cout);
  });
}

void add_extend_vocab(CLI::App& app) {
  struct Arguments : Common {
    ExtensionRequest request;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("extend-vocab", "append pieces for a new language to a tokenizer");
  command->add_option("--base", arguments->request.base, "SentencePiece BPE model to extend")->required();
  command
      ->add_option("--text", arguments->request.texts, "texts, one utterance a line, or manifests (*.jsonl); FILE::am")
      ->required();
  command->add_option("--size", arguments->request.size, "pieces of the result, e.g. 24000")->required();
  command->add_option("--output", arguments->request.output, "the model to write")->required();
  arguments->add_json(*command);
  arguments->add_logging(*command);
  command->footer(
      "Example: train_gpt_v2 extend-vocab --base bpe.model --text train_pairs.jsonl --size 24000 --output am.model\n"
      "Every Ethiopic character, digit, capital letter and punctuation mark gets a piece, the rest are merges of\n"
      "the texts. Ids and splits of the base stay as they are; nothing is written unless that is proven.");
  command->callback([arguments] {
    arguments->apply_logging();
    run_extend_vocab(arguments->request, arguments->json, std::cout);
  });
}

void add_inspect(CLI::App& app) {
  struct Arguments : Common {
    std::vector<std::string> files;
    bool verify = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("inspect", "what is in a checkpoint, weight file or packed set; with two files: differences");
  command->add_option("FILE", arguments->files, "one file or packed set, or two files to compare")
      ->required()
      ->expected(1, 2);
  command->add_flag("--verify", arguments->verify, "read and check every byte");
  arguments->add_json(*command);
  arguments->add_logging(*command);
  command->footer(
      "Example: train_gpt_v2 inspect runs/am/latest.pt --verify\n"
      "         train_gpt_v2 inspect runs/am/model_step1000.pth runs/am/model_step2000.pth");
  command->callback([arguments] {
    arguments->apply_logging();
    if (arguments->files.size() == 1 && PackedSet::is_one(arguments->files[0])) {
      run_inspect_packed(arguments->files[0], arguments->verify, arguments->json, std::cout);
    } else if (arguments->files.size() == 1) {
      run_inspect(arguments->files[0], arguments->verify, arguments->json, std::cout);
    } else {
      run_inspect_compare(arguments->files[0], arguments->files[1], arguments->verify, arguments->json, std::cout);
    }
  });
}

void add_report(CLI::App& app) {
  struct Arguments : Common {
    ReportOptions report;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("report", "one self-contained HTML page about one or several runs");
  command->add_option("RUN_DIR", arguments->report.runs)->required();
  command->add_option("--output", arguments->report.output, "the HTML file")->required();
  command
      ->add_option("--milestone", arguments->report.milestones, "STEP:MEL_LOW-MEL_HIGH:TOP1_LOW-TOP1_HIGH; repeatable")
      ->allow_extra_args(false);
  command->add_option("--phase", arguments->report.phases, "before|phase1|phase2=RUN_DIR; repeatable")
      ->allow_extra_args(false);
  arguments->add_json(*command);
  arguments->add_logging(*command);
  command->footer("Example: train_gpt_v2 report runs/am --output am.html");
  command->callback([arguments] {
    arguments->apply_logging();
    arguments->report.json = arguments->json;
    std::cout << write_report(arguments->report);
  });
}

void add_explain(CLI::App& app) {
  struct Arguments : Common {
    std::string code;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("explain", "what an error code means and what to do");
  command->add_option("CODE", arguments->code, "e.g. CKP010; without it: all codes");
  arguments->add_json(*command);
  command->footer("Example: train_gpt_v2 explain CKP010");
  command->callback([arguments] { std::cout << explain_text(arguments->code, arguments->json); });
}

}  // namespace

void add_commands(CLI::App& app, ExitStatus& status) {
  add_train(app, status);
  add_check(app, status);
  add_eval(app, status);
  add_sample(app, status);
  add_inspect(app);
  add_export(app);
  add_extend_vocab(app);
  add_merge(app, status);
  add_fisher(app, status);
  add_report(app);
  add_config_commands(app);
  add_explain(app);
  add_pack_command(app);
  add_demo_commands(app);
}

}  // namespace train_gpt_v2
