#include "train_gpt_v2/train/training_samples.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/train/listening_sheet.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kTogether = 8;  // cases decoded at once: bounds the memory of keys and values
constexpr std::uint64_t kMaxSheet = 16ull << 20;

// Whether someone wrote something into the sheet; what cannot be read may be somebody's work too.
bool is_filled_in(const std::string& path) {
  if (!file_exists(path)) return false;
  try {
    for (const ListeningNote& note : parse_listening_sheet(read_file(path, kMaxSheet))) {
      const bool judged = std::any_of(std::begin(note.judgements), std::end(note.judgements),
                                      [](const std::string& judgement) { return !judgement.empty(); });
      if (judged || !note.comment.empty()) return true;
    }
  } catch (const Error&) {
    return true;
  }
  return false;
}

}  // namespace

std::vector<SampleCase> validation_cases(const Dataset& pairs, std::int64_t count) {
  std::vector<SampleCase> cases;
  std::set<std::string> ids;
  const auto size = static_cast<std::uint32_t>(pairs.epoch_size());
  for (std::uint32_t i = 0; i < size && static_cast<std::int64_t>(cases.size()) < count; ++i) {
    Batch batch;
    if (pairs.load_or_skip(i, batch)) continue;
    SampleCase one;
    one.id = pairs.id(i);
    // A file name, and one of its own: two manifests may share an id.
    if (!id_problem(one.id).empty() || !ids.insert(one.id).second) one.id = concat("pair_", i);
    one.text = pairs.text(i);
    one.text_ids = std::move(batch.text);
    one.pair = i;
    one.speaker = pairs.speakers()[pairs.info(i).speaker];
    if (!batch.codes.empty()) one.reference_length = static_cast<std::int64_t>(batch.codes.size());
    cases.push_back(std::move(one));
  }
  return cases;
}

TrainingSampler::TrainingSampler(UnifiedVoice& model, const Options& options, const std::string& run_directory,
                                 Sources sources)
    : model_(model), options_(options.sampling), run_directory_(run_directory), sources_(std::move(sources)) {
  options_.decoding.max_codes = options_.decoding.max_codes.value_or(kShippedMaxCodes);
  if (options_.cases.empty()) {
    if (sources_.pairs) cases_ = validation_cases(*sources_.pairs, options_.count);
    return;
  }
  cases_ = read_cases(options_.cases, {options.model, sources_.tokenizer, options.data.language, ""});
  for (SampleCase& one : cases_) {
    if (one.prompt.empty()) continue;
    if (!sources_.pairs) {
      throw Error("CFG021", "a case names a prompt, but there is no manifest to find it in")
          .where(options_.cases)
          .at(one.id)
          .fix("name data.val_manifests");
    }
    one.pair = sources_.pairs->find(one.prompt);
    if (one.speaker.empty()) one.speaker = sources_.pairs->speakers()[sources_.pairs->info(*one.pair).speaker];
  }
}

bool TrainingSampler::due(std::int64_t step) const {
  if (options_.interval <= 0 || cases_.empty()) return false;
  return step == options_.baseline_step || (step > 0 && step % options_.interval == 0);
}

bool TrainingSampler::missing(std::int64_t step) const {
  return due(step) && !file_exists(path_join(folder_of(step), "notes.json"));
}

TrainingSamples TrainingSampler::run(std::int64_t step, const std::function<bool()>& stop) {
  const auto begin = std::chrono::steady_clock::now();
  TrainingSamples samples;
  samples.folder = folder_of(step);
  model_.eval();
  try {
    const SamplingResult result = write_samples(model_, cases_, sources_.pairs,
                                                {samples.folder, options_.decoding, kTogether, sources_.vocoder, stop});
    samples.records = result.records;
    for (const Error& error : result.sound_errors) samples.sound_errors.push_back(error.message());
    samples.complete = result.complete;
    if (samples.complete) write_sheet(step, samples.folder);
  } catch (const std::exception& failure) {  // LibTorch's own included, such as a device out of memory
    samples.complete = false;
    samples.error = failure.what();
  }
  samples.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return samples;
}

std::string TrainingSampler::folder_of(std::int64_t step) const {
  return path_join(run_directory_, concat("samples/step_", step));
}

// Last of all: its presence says that the folder is complete. A sheet that a person filled in stays.
void TrainingSampler::write_sheet(std::int64_t step, const std::string& folder) const {
  const std::string path = path_join(folder, "notes.json");
  if (is_filled_in(path)) {
    log_info("sample", path, " has notes in it and is kept");
    return;
  }
  std::vector<ListeningNote> notes;
  notes.reserve(cases_.size());
  for (const SampleCase& one : cases_) notes.push_back({one.id, one.text, one.category, "", {}});
  write_file_atomically(path, empty_listening_sheet(step, notes));
}

}  // namespace train_gpt_v2
