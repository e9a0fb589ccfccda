#pragma once
// From files and --set to Options, and back.
//
// Order of values: built-in default < `extends` < the file < `--set`. A file is JSON with comments; "extends" names one
// file or a list (later wins), relative to the file that states it. Relative paths in a file are relative to that file,
// on --set to the working directory; suffixes of manifests (::am, @am, =am) are kept.
// Errors: CFG001 with ALL problems of all sources at once, each with file:line:column and the nearest known name;
// CFG002 where a text is not JSON; IO001/IO004 for a file that is missing or too large.

#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train_gpt_v2/config/option_table.h"
#include "train_gpt_v2/config/options.h"

namespace train_gpt_v2 {

struct LoadedConfig {
  Options options;
  std::string name;                               // the file's name without .json; the default run is runs/<name>
  std::vector<std::string> files;                 // all that were read, absolute, the named one last
  std::map<std::string, std::string> provenance;  // key -> "am.json:14:5", "extends base.json:3:5", "--set", "default"
  std::vector<std::string> warnings;              // worth a line in the log, no reason to stop
};

// `sets` are the "section.key=VALUE" of the command line: VALUE is JSON, a bare word is a string.
LoadedConfig load_config(const std::string& file, const std::vector<std::string>& sets = {});

// The same from a text (a configuration stored in a checkpoint, or "{}" for defaults). `origin` names it in messages;
// relative paths in it are relative to `base_folder`; "extends" is refused. The name is that of `origin`.
LoadedConfig load_config_json(std::string_view text, const std::string& origin,
                              const std::vector<std::string>& sets = {}, const std::string& base_folder = ".");

// Every key with its value, paths absolute: config.effective.json. load_config_json gives the same Options back.
std::string effective_json(const Options& options);

// Only what differs from the defaults.
std::string minimal_json(const Options& options);

struct OptionDifference {
  std::string key;      // a row's path, or "effective batch" (micro-batch × accumulation)
  std::string saved;    // JSON text
  std::string current;  // JSON text
  ResumeClass resume = ResumeClass::kFree;
  bool is_path = false;  // equal content is no difference: the caller compares fingerprints
};

// Differences between two configurations, in the table's order.
std::vector<OptionDifference> diff_options(const Options& saved, const Options& current);

// The same for a resume, `saved_json` being what effective_json gave when the checkpoint was written. Left out is what
// the trainer must decide from resolved values: "auto" precision now (the stored one is kept), the accumulation where
// the effective batch stays, and optimizer.total_steps (compare the resolved totals; a saved null may equal a number).
std::vector<OptionDifference> diff_for_resume(std::string_view saved_json, const Options& current);

// Checks that involve several keys. `report(keys, message, fix)` is called per problem; keys[0] is the one to blame.
using CrossProblem = std::function<void(const std::vector<std::string>&, const std::string&, const std::string&)>;
void check_cross_fields(const Options& options, const CrossProblem& report, std::vector<std::string>& warnings);

// What became of a key of the Python trainer, of the plan, or of an earlier version; "" when it was never one.
std::string renamed_key_hint(std::string_view path);

}  // namespace train_gpt_v2
