#pragma once
// `train_gpt_v2 config …`: what is in a configuration, what differs, and texts made from the option table. Each
// function does one sub-command with plain arguments and writes its result to `out`; nothing else is printed. Errors:
// those of the loader (CFG001, CFG002, IO…); CFG004 for a config.yaml that cannot be imported; ARG001 for names.

#include <ostream>
#include <string>
#include <vector>

namespace train_gpt_v2 {

enum class ConfigView { kEffective, kMinimal, kProvenance };

// `config show [--minimal | --provenance] [--json]`. Without a file: the defaults; with a checkpoint of ours: what is
// stored in it (CFG020 when nothing is). The first two views are JSON anyway.
struct ConfigSource {
  std::string file, checkpoint;  // at most one of them
  std::vector<std::string> sets;
};
void run_config_show(const ConfigSource& source, ConfigView view, bool json, std::ostream& out);

// `config diff A B [--json]`: two configuration files (an effective one included). Returns the number of differences.
std::size_t run_config_diff(const std::string& a, const std::string& b, bool json, std::ostream& out);

// `config schema [--output FOLDER]`: the JSON schema on `out`, or schema.json and README.md in the folder.
void run_config_schema(const std::string& output_folder, std::ostream& out);

// `config import config.yaml`: a `gpt:` file of the Python trainer as our JSON, comments saying what was left out.
// Paths come out absolute, so that the result may be stored anywhere.
void run_config_import(const std::string& yaml_file, std::ostream& out);

struct CommandWords {
  std::string name;                  // "train"
  std::string doc;                   // one line
  std::vector<std::string> options;  // "--resume", …; those of its own sub-commands included
  std::vector<std::string> inner;    // its sub-commands: "show", …
};

// `config completion bash|zsh|fish`: a completion script for the shell; keys behind --set come from the option table.
void run_config_completion(const std::string& shell, const std::vector<CommandWords>& commands, std::ostream& out);

}  // namespace train_gpt_v2
