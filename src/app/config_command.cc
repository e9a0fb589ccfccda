#include "train_gpt_v2/app/config_command.h"

#include <nlohmann/json.hpp>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/train/checkpoint_content.h"

namespace train_gpt_v2 {
namespace {

LoadedConfig load(const ConfigSource& source) {
  if (!source.file.empty()) return load_config(source.file, source.sets);
  if (source.checkpoint.empty()) return load_config_json("{}", "defaults", source.sets);
  const std::string stored = stored_config(read_tensor_file(source.checkpoint).root);
  if (stored.empty()) {
    throw Error("CFG020", "this file carries no configuration")
        .where(source.checkpoint)
        .fix("name the configuration it was trained with by --config FILE");
  }
  return load_config_json(stored, source.checkpoint, source.sets);
}

}  // namespace

void run_config_show(const ConfigSource& source, ConfigView view, bool json, std::ostream& out) {
  const LoadedConfig loaded = load(source);
  if (view == ConfigView::kEffective) {
    out << effective_json(loaded.options);
    return;
  }
  if (view == ConfigView::kMinimal) {
    out << minimal_json(loaded.options);
    return;
  }
  Json document = Json::object();
  std::vector<std::vector<std::string>> rows{{"key", "value", "from"}};
  for (const OptionRow& row : option_rows()) {
    if (row.accepted_only) continue;
    const Json value = row.get(loaded.options);
    const std::string& from = loaded.provenance.at(row.path);
    document[row.path] = {{"value", value}, {"from", from}};
    rows.push_back({row.path, dump_json(value), from});
  }
  out << (json ? dump_json(document, 2) + "\n" : table(rows));
}

std::size_t run_config_diff(const std::string& a, const std::string& b, bool json, std::ostream& out) {
  const std::vector<OptionDifference> differences = diff_options(load_config(a).options, load_config(b).options);
  Json document = Json::array();
  std::vector<std::vector<std::string>> rows{{"key", a, b, "resume"}};
  for (const OptionDifference& one : differences) {
    const std::string resume(resume_class_name(one.resume));
    document.push_back(
        {{"key", one.key}, {"a", Json::parse(one.saved)}, {"b", Json::parse(one.current)}, {"resume", resume}});
    rows.push_back({one.key, one.saved, one.current, resume});
  }
  if (json) {
    out << dump_json(document, 2) << "\n";
  } else {
    out << (differences.empty() ? std::string("no differences\n") : table(rows));
  }
  return differences.size();
}

void run_config_schema(const std::string& output_folder, std::ostream& out) {
  if (output_folder.empty()) {
    out << json_schema();
    return;
  }
  make_directories(output_folder);
  const std::pair<const char*, std::string> pages[] = {{"schema.json", json_schema()}, {"README.md", reference_page()}};
  for (const auto& [name, text] : pages) {
    const std::string path = path_join(output_folder, name);
    write_file_atomically(path, text);
    out << path << "\n";
  }
}

namespace {

// Words as one shell word list; they hold letters, digits, dashes, dots and underscores only.
std::string word_list(const std::vector<std::string>& words) {
  return join(words, " ");
}

std::vector<std::string> names_of(const std::vector<CommandWords>& commands) {
  std::vector<std::string> names;
  names.reserve(commands.size());
  for (const CommandWords& command : commands) names.push_back(command.name);
  return names;
}

std::string single_quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

void complete_bash(const std::vector<CommandWords>& commands, const std::string& keys, std::ostream& out) {
  out << "# bash completion of train_gpt_v2: source this file\n"
         "_train_gpt_v2() {\n"
         "  local word=\"${COMP_WORDS[COMP_CWORD]}\" before=\"${COMP_WORDS[COMP_CWORD-1]}\" options=\"\" inner=\"\"\n"
         "  if [[ $before == --set ]]; then\n"
         "    compopt -o nospace\n"
         "    mapfile -t COMPREPLY < <(compgen -S = -W \""
      << keys
      << "\" -- \"$word\")\n"
         "    return\n"
         "  fi\n"
         "  if [[ $COMP_CWORD -eq 1 && $word != -* ]]; then\n"
         "    mapfile -t COMPREPLY < <(compgen -W \""
      << word_list(names_of(commands))
      << "\" -- \"$word\")\n"
         "    return\n"
         "  fi\n"
         "  case \"${COMP_WORDS[1]}\" in\n";
  for (const CommandWords& command : commands) {
    out << "    " << command.name << ") options=\"" << word_list(command.options) << "\" inner=\""
        << word_list(command.inner) << "\" ;;\n";
  }
  out << "  esac\n"
         "  if [[ $word == -* ]]; then\n"
         "    mapfile -t COMPREPLY < <(compgen -W \"$options\" -- \"$word\")\n"
         "  elif [[ -n $inner && $COMP_CWORD -eq 2 ]]; then\n"
         "    mapfile -t COMPREPLY < <(compgen -W \"$inner\" -- \"$word\")\n"
         "  else\n"
         "    mapfile -t COMPREPLY < <(compgen -f -- \"$word\")\n"
         "  fi\n"
         "}\n"
         "complete -o filenames -F _train_gpt_v2 train_gpt_v2\n";
}

void complete_zsh(const std::vector<CommandWords>& commands, const std::string& keys, std::ostream& out) {
  out << "#compdef train_gpt_v2\n"
         "_train_gpt_v2() {\n"
         "  local -a commands keys options inner\n"
         "  commands=(\n";
  for (const CommandWords& command : commands) {
    out << "    " << single_quoted(command.name + ":" + command.doc) << "\n";
  }
  out << "  )\n  keys=(" << keys
      << ")\n"
         "  if [[ $words[CURRENT-1] == --set ]]; then\n"
         "    compadd -S = -- $keys\n"
         "  elif (( CURRENT == 2 )) && [[ $words[CURRENT] != -* ]]; then\n"
         "    _describe command commands\n"
         "  else\n"
         "    case $words[2] in\n";
  for (const CommandWords& command : commands) {
    out << "      " << command.name << ") options=(" << word_list(command.options) << ") inner=("
        << word_list(command.inner) << ") ;;\n";
  }
  out << "    esac\n"
         "    if [[ $words[CURRENT] == -* ]]; then compadd -- $options\n"
         "    elif (( CURRENT == 3 && $#inner )); then compadd -- $inner\n"
         "    else _files; fi\n"
         "  fi\n"
         "}\n"
         // Works as a file of $fpath and when it is sourced.
         "if [[ $funcstack[1] == _train_gpt_v2 ]]; then _train_gpt_v2 \"$@\"; else compdef _train_gpt_v2 train_gpt_v2; "
         "fi\n";
}

void complete_fish(const std::vector<CommandWords>& commands, std::ostream& out) {
  out << "# fish completion of train_gpt_v2\n";
  for (const CommandWords& command : commands) {
    out << "complete -c train_gpt_v2 -n __fish_use_subcommand -a " << command.name << " -d "
        << single_quoted(command.doc) << "\n";
    if (!command.inner.empty()) {
      const std::string inner = word_list(command.inner);
      out << "complete -c train_gpt_v2 -n '__fish_seen_subcommand_from " << command.name
          << "; and not __fish_seen_subcommand_from " << inner << "' -f -a " << single_quoted(inner) << "\n";
    }
    for (const std::string& option : command.options) {
      if (!starts_with(option, "--")) continue;
      out << "complete -c train_gpt_v2 -n '__fish_seen_subcommand_from " << command.name << "' -l " << option.substr(2)
          << "\n";
    }
  }
  for (const OptionRow& row : option_rows()) {
    out << "complete -c train_gpt_v2 -n 'test (commandline -opc)[-1] = --set' -f -a " << row.path << "= -d "
        << single_quoted(row.doc) << "\n";
  }
}

}  // namespace

void run_config_completion(const std::string& shell, const std::vector<CommandWords>& commands, std::ostream& out) {
  if (shell == "bash") {
    complete_bash(commands, word_list(completion_keys()), out);
  } else if (shell == "zsh") {
    complete_zsh(commands, word_list(completion_keys()), out);
  } else if (shell == "fish") {
    complete_fish(commands, out);
  } else {
    throw Error("ARG001", concat("no completion for the shell \"", shell, "\"")).fix("bash, zsh or fish");
  }
}

}  // namespace train_gpt_v2
