#include "report_samples.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kMaxIndex = 16ull << 20;
constexpr std::uint64_t kMaxMedia = 4ull << 20;
constexpr std::size_t kMaxSamples = 20;   // per step
constexpr std::size_t kMaxFolders = 500;  // with figures
constexpr std::size_t kShownFolders = 3;  // with pictures and sounds
constexpr std::size_t kMaxProblems = 40;

std::int64_t step_of_name(const std::string& name) {
  if (!starts_with(name, "step_")) return -1;
  std::int64_t step = -1;
  const char* end = name.data() + name.size();
  const auto result = std::from_chars(name.data() + 5, end, step);
  return result.ec == std::errc() && result.ptr == end ? step : -1;
}

bool is_plain_folder(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

void add_problem(std::vector<std::string>& problems, std::string text) {
  if (problems.size() < kMaxProblems) problems.push_back(std::move(text));
}

std::string media(const std::string& folder, const std::set<std::string>& names, const std::string& name,
                  std::string_view first, std::string_view at8, std::uint64_t& budget) {
  if (!names.contains(name)) return {};
  const std::string path = path_join(folder, name);
  if (!is_plain_file(path)) return {};
  const std::uint64_t size = file_size(path);
  if (size > kMaxMedia || size > budget || size < 16) return {};
  std::string content = read_file(path, kMaxMedia);
  if (!starts_with(content, first) || content.substr(8, at8.size()) != at8) return {};
  budget -= size;
  return content;
}

SampleFolder::Sample parse_sample(const Json& line) {
  SampleFolder::Sample sample;
  const auto text = [&line](const char* field) {
    const auto found = line.find(field);
    return found != line.end() && found->is_string() ? clean_text(found->get<std::string>()) : std::string();
  };
  sample.id = text("id");
  sample.text = text("text");
  sample.stop = text("stop");
  for (const char* field : {"length", "length_ratio", "longest_repeat", "distinct_codes", "mean_logprob", "seconds"}) {
    const auto found = line.find(field);
    if (found != line.end() && found->is_number()) sample.figures[field] = found->get<double>();
  }
  if (const auto alignment = line.find("alignment"); alignment != line.end() && alignment->is_object()) {
    for (const char* field : {"monotonicity", "coverage"}) {
      const auto found = alignment->find(field);
      if (found != alignment->end() && found->is_number()) sample.figures[field] = found->get<double>();
    }
  }
  return sample;
}

void read_index(const std::string& folder, SampleFolder& out) {
  const std::string path = path_join(folder, "samples.jsonl");
  if (!is_plain_file(path)) return;
  const std::string text = read_file(path, kMaxIndex);
  for (const std::string& line : split(text, '\n')) {
    if (out.samples.size() >= kMaxSamples) return;
    const Json parsed = Json::parse(line, nullptr, false);
    if (parsed.is_object()) out.samples.push_back(parse_sample(parsed));
  }
}

void read_notes(const std::string& folder, SampleFolder& out, std::vector<std::string>& problems) {
  const std::string path = path_join(folder, "notes.json");
  if (!is_plain_file(path)) return;
  try {
    out.notes = parse_listening_sheet(read_file(path, kMaxIndex));
    for (SampleFolder::Sample& sample : out.samples) {  // what was said stands in the sheet alone
      const auto note = std::find_if(out.notes.begin(), out.notes.end(),
                                     [&sample](const ListeningNote& one) { return one.id == sample.id; });
      if (sample.text.empty() && note != out.notes.end()) sample.text = clean_text(note->text);
    }
  } catch (const Error& failure) {
    add_problem(problems, concat("samples/step_", out.step, ": ", clean_text(failure.message())));
  }
}

SampleFolder read_folder(const std::string& folder, std::int64_t step, bool with_media, std::uint64_t& budget,
                         std::vector<std::string>& problems) {
  SampleFolder out;
  out.step = step;
  read_index(folder, out);
  read_notes(folder, out, problems);
  const std::vector<std::string> listed = list_directory(folder);
  const std::set<std::string> names(listed.begin(), listed.end());
  if (out.samples.empty()) {  // pictures or sounds without an index are shown all the same
    for (const std::string& name : listed) {
      const bool shown = ends_with(name, ".png") || ends_with(name, ".wav");
      const std::string id = name.substr(0, name.rfind('.'));
      const bool known = !out.samples.empty() && out.samples.back().id == id;
      if (shown && !known && out.samples.size() < kMaxSamples) out.samples.push_back({id, "", "", {}, "", ""});
    }
  }
  for (SampleFolder::Sample& sample : out.samples) {
    if (!with_media) break;
    sample.picture = media(folder, names, sample.id + ".png", "\x89PNG\r\n\x1a\n", "", budget);
    sample.sound = media(folder, names, sample.id + ".wav", "RIFF", "WAVE", budget);
  }
  return out;
}

}  // namespace

bool is_plain_file(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

std::vector<SampleFolder> load_sample_folders(const std::string& run_directory, const std::string& baseline_step,
                                              std::uint64_t& media_bytes, std::vector<std::string>& problems) {
  const std::string root = path_join(run_directory, "samples");
  if (!directory_exists(root)) return {};
  if (!is_plain_folder(root)) {
    add_problem(problems, "samples is a link; it is left out");
    return {};
  }
  std::vector<std::pair<std::int64_t, std::string>> steps;  // with the folder's name: 7 may be written step_007
  std::vector<SampleFolder> folders;
  const auto guarded = [&problems](const std::string& what, const auto& work) {
    try {
      work();
    } catch (const Error& failure) {
      add_problem(problems, concat(what, ": ", clean_text(failure.message())));
    }
  };
  guarded("samples", [&] {
    for (const std::string& name : list_directory(root)) {
      const std::int64_t step = step_of_name(name);
      if (step < 0 || !directory_exists(path_join(root, name))) continue;
      if (is_plain_folder(path_join(root, name))) {
        steps.emplace_back(step, name);
      } else {
        add_problem(problems, concat("samples/", name, " is a link; it is left out"));
      }
    }
  });
  std::sort(steps.begin(), steps.end());
  if (steps.size() > kMaxFolders) steps.erase(steps.begin(), steps.end() - kMaxFolders);
  for (std::size_t i = steps.size(); i-- > 0;) {  // newest first: they get the pictures
    const auto& [step, name] = steps[i];
    const bool shown = steps.size() - i <= kShownFolders || std::to_string(step) == baseline_step;
    guarded("samples/" + name, [&, &step = step, &name = name] {
      folders.push_back(read_folder(path_join(root, name), step, shown, media_bytes, problems));
    });
  }
  std::reverse(folders.begin(), folders.end());
  return folders;
}

}  // namespace train_gpt_v2
