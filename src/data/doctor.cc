#include "train_gpt_v2/data/doctor.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <unordered_map>

#include "doctor_parts.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/normalizer.h"
#include "train_gpt_v2/data/parallel.h"

namespace train_gpt_v2 {
namespace doctor {
namespace {

constexpr std::uint64_t kSampleStream = 0x444F43ULL << 32;  // "DOC"
constexpr std::size_t kChunk = 1024;                        // arrays looked at before findings are noted
constexpr std::size_t kLineBlock = 1 << 20;                 // bytes
constexpr std::size_t kBlock = 1000;                        // neighbouring records, where not all are looked at

}  // namespace

long LineNumbers::line(const PairEntry& entry) {
  const std::string_view bytes = index_.manifest_bytes(entry.manifest());
  const auto lines_in = [](std::string_view part) {
    return static_cast<long>(std::count(part.begin(), part.end(), '\n'));
  };
  std::vector<long>& before = before_[entry.manifest()];
  if (before.empty()) {
    long lines = 0;
    for (std::size_t begin = 0; begin <= bytes.size(); begin += kLineBlock) {
      before.push_back(lines);
      lines += lines_in(bytes.substr(begin, kLineBlock));
    }
  }
  const std::size_t block = entry.offset() / kLineBlock;
  return 1 + before[block] + lines_in(bytes.substr(block * kLineBlock, entry.offset() - block * kLineBlock));
}

bool longer_than_clip(std::int64_t codes, double duration, double per_second) {
  return duration > 0 && static_cast<double>(codes) > duration * per_second * 1.02 + 3;
}

std::string clip_key(const PairIndex& index, const PairEntry& entry, const PairRecord& record) {
  return record.target_id.empty() ? absolute_path(index.resolve(entry, record.target_codes_path))
                                  : std::string(record.target_id);
}

Finding& Findings::entry(std::string_view check, Severity severity, std::string_view summary, std::string_view fix) {
  const auto found = std::find_if(list.begin(), list.end(), [&](const Finding& f) { return f.check == check; });
  if (found != list.end()) {
    found->severity = std::max(found->severity, severity);
    return *found;
  }
  list.push_back({std::string(check), severity, std::string(summary), std::string(fix), 0, {}});
  return list.back();
}

Corpus::Corpus(const Dataset& data, bool is_validation, std::size_t most_records)
    : dataset(data),
      validation(is_validation),
      whole(most_records == 0 || data.size() <= most_records),
      lines_(data.index()) {
  const std::size_t blocks = whole ? 1 : std::max<std::size_t>(most_records / kBlock, 1);
  const std::size_t length = whole ? data.size() : std::min(kBlock, most_records);
  for (std::size_t block = 0; block < blocks; ++block) {
    const std::size_t begin = block * data.size() / blocks;
    for (std::size_t i = begin; i < std::min(begin + length, data.size()); ++i) {
      scanned.push_back(static_cast<std::uint32_t>(i));
    }
  }
}

FindingPlace Corpus::place(std::uint32_t sample, std::string detail) const {
  const PairIndex& index = dataset.index();
  const PairEntry& entry = index[sample];
  return {index.file(entry), lines_.line(entry), index.id(entry), std::move(detail)};
}

// How many words at the end of one text begin the next one; equal texts do not count.
std::size_t shared_words(const std::vector<std::string>& before, const std::vector<std::string>& after) {
  if (before == after) return 0;
  for (std::size_t count = std::min(before.size(), after.size()); count > 0; --count) {
    if (std::equal(before.end() - static_cast<std::ptrdiff_t>(count), before.end(), after.begin())) return count;
  }
  return 0;
}

// Everything that the records alone tell.
void Corpus::scan(Findings& findings) {
  const PairIndex& index = dataset.index();
  RecordParser parser;
  summaries.resize(index.manifests());
  std::vector<std::set<std::uint32_t>> speakers(index.manifests());
  std::unordered_map<std::uint64_t, std::uint32_t> pairs;  // hash of target and prompt -> first sample
  std::vector<std::string> words_before;
  for (const std::uint32_t i : scanned) {
    const PairEntry& entry = index[i];
    const PairRecord record = index.record(entry, parser);
    const std::string target = clip_key(index, entry, record);
    ManifestSummary& summary = summaries[entry.manifest()];
    ++summary.pairs;
    speakers[entry.manifest()].insert(entry.speaker);
    const std::string& language = dataset.languages()[entry.language()];
    if (language != "am" && is_amharic(record.target_text)) {
      findings.note("language", Severity::kWarning, "Ethiopic text under another language",
                    "correct the record's language, or the manifest's ::suffix: texts are normalised by it",
                    [&] { return place(i, concat("language \"", language, "\"")); });
    }
    const auto [twin, new_pair] = pairs.try_emplace(hash_id(concat(target, '\n', record.prompt_id)), i);
    if (!new_pair) {
      findings.note("duplicate_pair", Severity::kWarning, "the same target with the same prompt twice",
                    "remove the doubles, or draw another prompt: such targets weigh more than others",
                    [&, &twin = twin] { return place(i, concat("as in ", where(twin->second))); });
    }
    if (!record.prompt_id.empty() && record.prompt_id == target) {
      findings.note("self_prompt", Severity::kWarning, "the prompt is the target itself",
                    "pair each target with another clip of its speaker: the model copies the prompt's sound otherwise",
                    [&] { return place(i, ""); });
    }
    if (!record.prompt_id.empty()) {
      Clip& prompt = clips[hash_id(record.prompt_id)];
      if (prompt.sample == Clip::kNone) prompt.speaker = entry.speaker;
      prompt.prompt = true;
      if (record.prompt_duration > 0) prompt.duration = static_cast<float>(record.prompt_duration);
    }
    Clip& clip = clips[hash_id(target)];
    if (record.target_duration > 0) clip.duration = static_cast<float>(record.target_duration);
    if (clip.sample != Clip::kNone) continue;
    clip.sample = i;
    clip.speaker = entry.speaker;
    targets.push_back(hash_id(target));
    ++summary.clips;
    const std::string_view text = trim(record.target_text);
    if (text.empty()) continue;
    std::vector<std::string> words = split(text, ' ');
    ++neighbours_;
    const std::size_t shared = shared_words(words_before, words);
    if (shared >= 2 && shared * 10 >= words.size() * 3) overlapping_.push_back(i);
    words_before = std::move(words);
    const auto [first, added] = texts.try_emplace(hash_id(text), i);
    if (!added) {
      findings.note(validation ? "duplicate_text_validation" : "duplicate_text", Severity::kInfo,
                    "several clips have the same text", "fine for read prompts; else remove the doubles",
                    [&, &first = first] { return place(i, concat("as in ", where(first->second))); });
    }
  }
  for (std::size_t m = 0; m < summaries.size(); ++m) {
    summaries[m].path = index.manifest_path(m);
    summaries[m].validation = validation;
    summaries[m].speakers = speakers[m].size();
  }
}

// Subtitles that roll: each line begins with the end of the one before.
void Corpus::find_rolling_texts(Findings& findings) const {
  if (neighbours_ < 50 || overlapping_.size() * 10 < neighbours_) return;
  for (const std::uint32_t sample : overlapping_) {
    findings.note(
        "rolling_text", Severity::kWarning,
        concat("texts that begin with the end of their neighbour's (", overlapping_.size(), " of ", neighbours_, ")"),
        "rolling subtitles: cut the texts so that each word belongs to one clip", [&] { return place(sample, ""); });
  }
}

void Corpus::report_dropped(Findings& findings) const {
  for (const DropReason& reason : dataset.dropped()) {
    const bool malformed = reason.reason == "malformed record";
    const std::string check = malformed ? "malformed" : reason.bad ? "unreadable" : "overlong";
    Finding& finding = findings.entry(
        concat(check, validation ? "_validation" : ""), reason.bad ? Severity::kError : Severity::kWarning,
        reason.bad ? concat("samples that cannot be used: ", reason.reason)
                   : concat("samples longer than the position tables: ", reason.reason),
        reason.bad ? "correct them, set data.on_bad_sample to \"skip\", or let check --repair DIR leave them out"
                   : "they are left out (data.on_overlong); this shifts the spread of durations");
    finding.count += reason.count;
    for (const DataProblem& problem : reason.problems) {
      if (finding.places.size() >= Finding::kPlaces) break;
      finding.places.push_back(
          {problem.file, problem.line, problem.sample,
           problem.details.empty() ? problem.message : concat(problem.message, "; ", join(problem.details, "; "))});
    }
  }
}

// The batch-padding bug: every clip of a preprocessing batch gets the codes of the longest one.
void Corpus::find_padded_codes(Findings& findings, double per_second) const {
  const PairIndex& index = dataset.index();
  constexpr std::string_view kFix =
      "preprocess again with batch size 1, or write trimmed copies: train_gpt_v2 check --repair DIR";
  std::uint64_t known = 0, padded = 0;
  for (const std::uint64_t target : targets) {
    const Clip& clip = clips.at(target);
    if (clip.duration <= 0) continue;
    ++known;
    padded += longer_than_clip(index[clip.sample].code_length, clip.duration, per_second);
  }
  const Severity severity = padded * 20 > known ? Severity::kError : Severity::kWarning;
  for (const std::uint64_t target : targets) {
    const Clip& clip = clips.at(target);
    const std::int64_t codes = index[clip.sample].code_length;
    if (!longer_than_clip(codes, clip.duration, per_second)) continue;
    findings.note(
        "padded_codes", severity,
        concat("more codes than the clip's duration holds (", padded, " of ", known, " clips of known duration)"), kFix,
        [&] {
          return place(clip.sample, concat(codes, " codes, ", fixed(clip.duration, 2), " s hold ",
                                           std::llround(clip.duration * per_second)));
        });
  }
  // Without durations: clips that were one batch stand together and have one length.
  std::map<std::int64_t, std::uint64_t> lengths;
  std::uint64_t equal = 0, neighbours = 0;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const Clip& clip = clips.at(targets[i]);
    ++lengths[index[clip.sample].code_length];
    if (i == 0 || index[clip.sample].manifest() != index[clips.at(targets[i - 1]).sample].manifest()) continue;
    ++neighbours;
    equal += index[clip.sample].code_length == index[clips.at(targets[i - 1]).sample].code_length;
  }
  double chance = 0;
  for (const auto& [length, count] : lengths) {
    const double share = static_cast<double>(count) / static_cast<double>(targets.size());
    chance += share * share;
  }
  const double seen = neighbours == 0 ? 0 : static_cast<double>(equal) / static_cast<double>(neighbours);
  if (neighbours < 50 || seen < 0.1 + 3 * chance) return;
  findings.note("padded_codes_neighbours", Severity::kError,
                concat("neighbouring clips have equally many codes in ", fixed(100 * seen, 1), " % of cases, ",
                       fixed(100 * chance, 1), " % would be chance"),
                kFix,
                [&] { return place(clips.at(targets[0]).sample, concat(equal, " of ", neighbours, " neighbours")); });
}

void Corpus::find_lonely_speakers(Findings& findings) const {
  std::unordered_map<std::uint32_t, std::pair<std::uint64_t, std::uint32_t>> counts;  // clips, a sample
  for (const auto& [hash, clip] : clips) {
    auto& [count, sample] = counts[clip.speaker];
    ++count;
    if (clip.sample != Clip::kNone) sample = clip.sample;
  }
  std::vector<std::uint32_t> lonely;
  for (const auto& [speaker, counted] : counts) {
    if (counted.first == 1) lonely.push_back(counted.second);
  }
  std::sort(lonely.begin(), lonely.end());
  for (const std::uint32_t sample : lonely) {
    findings.note("lonely_speaker", Severity::kWarning, "speakers with a single clip",
                  "without a second clip there is no prompt: leave them out or merge their names",
                  [&] { return place(sample, dataset.speakers()[dataset.info(sample).speaker]); });
  }
}

// Texts far faster or slower than the rest are usually cut wrongly or carry another clip's text.
void Corpus::find_strange_speeds(Findings& findings) const {
  std::vector<double> speeds;
  const auto speed = [&](std::uint32_t sample) {
    const SampleInfo info = dataset.info(sample);
    return std::log(static_cast<double>(info.code_length) / static_cast<double>(info.text_length));
  };
  for (const std::uint64_t target : targets) speeds.push_back(speed(clips.at(target).sample));
  if (speeds.size() < 50) return;
  const auto middle = [](std::vector<double> values) {
    const auto at = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), at, values.end());
    return *at;
  };
  const double median = middle(speeds);
  std::vector<double> distances;
  distances.reserve(speeds.size());
  for (const double value : speeds) distances.push_back(std::abs(value - median));
  const double limit = std::max(6 * 1.4826 * middle(distances), std::log(3.0));
  for (const std::uint64_t target : targets) {
    const std::uint32_t sample = clips.at(target).sample;
    if (std::abs(speed(sample) - median) <= limit) continue;
    const SampleInfo info = dataset.info(sample);
    findings.note("text_speed", Severity::kWarning, "speech far faster or slower than the rest of the corpus",
                  "listen to them: the text often belongs to another clip, or the clip is cut wrongly", [&] {
                    return place(sample, concat(info.text_length, " ids, ", info.code_length,
                                                " codes; usual: ", fixed(std::exp(median), 1), " codes per id"));
                  });
  }
}

void Corpus::measure(double per_second, std::vector<LengthHistogram>& histograms) {
  std::vector<std::int64_t> text, codes;
  for (const std::uint64_t target : targets) {
    const PairEntry& entry = dataset.index()[clips.at(target).sample];
    text.push_back(entry.text_length);
    codes.push_back(entry.code_length);
    summaries[entry.manifest()].hours += static_cast<double>(entry.code_length) / per_second / 3600;
  }
  const std::string side = validation ? "validation" : "training";
  histograms.push_back(length_histogram(concat("text ids, ", side), std::move(text)));
  histograms.push_back(length_histogram(concat("codes, ", side), std::move(codes)));
}

LengthHistogram length_histogram(std::string name, std::vector<std::int64_t> lengths) {
  LengthHistogram histogram;
  histogram.name = std::move(name);
  if (lengths.empty()) return histogram;
  std::sort(lengths.begin(), lengths.end());
  const auto quantile = [&](std::size_t percent) { return lengths[(lengths.size() - 1) * percent / 100]; };
  histogram.shortest = lengths.front();
  histogram.median = quantile(50);
  histogram.p95 = quantile(95);
  histogram.longest = lengths.back();
  std::size_t at = 0;
  for (std::int64_t limit = 4; at < lengths.size(); limit = limit * 3 / 2) {
    const std::size_t begin = at;
    while (at < lengths.size() && lengths[at] <= limit) ++at;
    if (at == begin && histogram.counts.empty()) continue;  // the axis begins with the first bar that is not empty
    histogram.limits.push_back(limit);
    histogram.counts.push_back(at - begin);
  }
  return histogram;
}

namespace {

void find_leakage(const Corpus& train, const Corpus& validation, Findings& findings) {
  std::set<std::string> shared, all, trained;
  for (const auto& [hash, clip] : train.clips) trained.insert(train.dataset.speakers()[clip.speaker]);
  for (const std::uint64_t target : validation.targets) {
    const Clip& clip = validation.clips.at(target);
    const auto other = train.clips.find(target);
    if (other != train.clips.end() && other->second.sample != Clip::kNone) {
      findings.note(
          "leakage_utterance", Severity::kError, "validation clips that are also trained on",
          "take them out of one side (check --repair DIR does): validation losses mean nothing otherwise",
          [&] { return validation.place(clip.sample, concat("trained at ", train.where(other->second.sample))); });
    } else if (other != train.clips.end()) {
      findings.note("leakage_prompt", Severity::kInfo, "validation clips that serve as prompts in training",
                    "harmless for the losses; keep them apart to judge new voices",
                    [&] { return validation.place(clip.sample, ""); });
    }
    const std::string& speaker = validation.dataset.speakers()[clip.speaker];
    all.insert(speaker);
    if (trained.contains(speaker)) shared.insert(speaker);
  }
  for (const auto& [text, sample] : validation.texts) {
    const auto other = train.texts.find(text);
    if (other == train.texts.end()) continue;
    findings.note("leakage_text", Severity::kWarning, "validation texts that also occur in training",
                  "remove them from one side if the text loss is to mean something", [&, &sample = sample] {
                    return validation.place(sample, concat("trained at ", train.where(other->second)));
                  });
  }
  if (shared.empty()) return;
  Finding& finding =
      findings.entry("leakage_speaker", Severity::kInfo,
                     concat(shared.size(), " of ", all.size(), " validation speakers are also in training"),
                     "the Python tools split by utterance; hold whole speakers out to measure new voices");
  finding.count = shared.size();
}

std::vector<std::uint32_t> samples_to_read(const Dataset& dataset, const DoctorOptions& options, std::size_t sample) {
  const auto size = static_cast<std::uint32_t>(dataset.size());
  RandomStream random(options.seed, kSampleStream);
  std::vector<std::uint32_t> samples = random_permutation(size, random);
  if (!options.full) samples.resize(std::min(samples.size(), sample));
  std::sort(samples.begin(), samples.end());
  return samples;
}

}  // namespace
}  // namespace doctor

namespace {

using doctor::Corpus;
using doctor::Findings;

// What the records tell, of one side.
void examine_records(Corpus& corpus, const DoctorOptions& options, Findings& findings, DoctorReport& report) {
  corpus.report_dropped(findings);
  corpus.scan(findings);
  corpus.find_rolling_texts(findings);
  corpus.find_padded_codes(findings, options.codes_per_second);
  if (corpus.whole) corpus.find_lonely_speakers(findings);
  corpus.find_strange_speeds(findings);
  corpus.measure(options.codes_per_second, report.histograms);
  report.records += corpus.dataset.records();
  report.records_looked_at += corpus.scanned.size();
}

void examine_arrays(Corpus& corpus, const Tokenizer* tokenizer, const DoctorOptions& options, std::size_t sample,
                    Findings& findings, DoctorReport& report) {
  doctor::ArrayExamination arrays(corpus, tokenizer, options, findings);
  const std::vector<std::uint32_t> samples = doctor::samples_to_read(corpus.dataset, options, sample);
  std::size_t read = 0;
  while (read < samples.size() && !arrays.hopeless()) {
    const std::size_t chunk = read == 0 ? doctor::ArrayExamination::kFirstChunk : doctor::kChunk;
    const std::size_t count = std::min(chunk, samples.size() - read);
    arrays.read({samples.data() + read, count});
    read += count;
  }
  arrays.conclude();
  report.arrays_read += read;
}

void conclude(const std::vector<std::unique_ptr<Corpus>>& corpora, Findings& findings, DoctorReport& report) {
  if (corpora.size() == 2) doctor::find_leakage(*corpora[0], *corpora[1], findings);
  for (const auto& corpus : corpora) {
    report.manifests.insert(report.manifests.end(), corpus->summaries.begin(), corpus->summaries.end());
  }
  report.findings = std::move(findings.list);
  std::stable_sort(report.findings.begin(), report.findings.end(),
                   [](const Finding& a, const Finding& b) { return a.severity > b.severity; });
}

}  // namespace

DoctorReport examine_data(DataOptions data, const ModelOptions& model,
                          const std::shared_ptr<const Tokenizer>& tokenizer, const DoctorOptions& options) {
  using namespace doctor;
  data.on_bad_sample = "skip";
  data.max_bad_fraction = 1;
  data.on_overlong = "drop";
  DoctorReport report;
  Findings findings;
  std::vector<std::unique_ptr<Dataset>> datasets;
  std::vector<std::unique_ptr<Corpus>> corpora;
  for (const std::vector<std::string>* manifests : {&data.train_manifests, &data.val_manifests}) {
    const bool validation = manifests == &data.val_manifests;
    if (validation && manifests->empty()) continue;
    datasets.push_back(std::make_unique<Dataset>(*manifests, std::vector<ReplayOptions>{}, data, model, tokenizer));
    corpora.push_back(std::make_unique<Corpus>(*datasets.back(), validation, 0));
  }
  for (const auto& corpus : corpora) {
    examine_records(*corpus, options, findings, report);
    examine_arrays(*corpus, tokenizer.get(), options, options.sample, findings, report);
  }
  conclude(corpora, findings, report);
  return report;
}

DoctorReport examine_quickly(const Dataset& train, const Dataset* validation, const Tokenizer* tokenizer,
                             const DoctorOptions& options) {
  DoctorReport report;
  Findings findings;
  std::vector<std::unique_ptr<Corpus>> corpora;
  corpora.push_back(std::make_unique<Corpus>(train, false, options.quick_records));
  if (validation) corpora.push_back(std::make_unique<Corpus>(*validation, true, options.quick_records));
  for (const auto& corpus : corpora) {
    examine_records(*corpus, options, findings, report);
    examine_arrays(*corpus, tokenizer, options, options.quick_sample, findings, report);
  }
  conclude(corpora, findings, report);
  return report;
}

}  // namespace train_gpt_v2
