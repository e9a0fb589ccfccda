#include "train_gpt_v2/data/manifest.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "names.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/lost_pages.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/normalizer.h"
#include "train_gpt_v2/data/packed_set.h"
#include "train_gpt_v2/data/parallel.h"
#include "train_gpt_v2/io/npy.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kMaxManifestBytes = 1ULL << 40;  // PairEntry::place keeps 40 bits of offset
constexpr std::size_t kMaxManifests = 1 << 16;           // and 16 bits of the manifest's number
constexpr std::uint64_t kMaxLines = 100'000'000;
constexpr std::size_t kChunkBytes = 4 << 20;  // smaller files are read by one thread
constexpr std::size_t kHashPiece = 8 << 20;

std::uint16_t stored_length(std::int64_t length) {
  if (length < 0) return PairEntry::kUnknownLength;
  return static_cast<std::uint16_t>(std::min<std::int64_t>(length, PairEntry::kMaxLength));
}

DataProblem make_problem(const RecordProblem& found, const std::string& file, long line, std::string sample) {
  DataProblem problem;
  problem.code = found.single_sample ? "DAT002" : "DAT001";
  problem.file = file;
  problem.line = line;
  problem.sample = std::move(sample);
  problem.message = found.field.empty() ? found.message : concat("field \"", found.field, "\": ", found.message);
  if (!found.value.empty()) problem.details.push_back(concat("value: ", found.value));
  problem.fix = found.fix;
  return problem;
}

// Cuts [begin, end) into `count` ranges that end behind a newline.
std::vector<std::pair<std::size_t, std::size_t>> cut_at_lines(std::string_view bytes, std::size_t begin,
                                                              std::size_t count) {
  std::vector<std::pair<std::size_t, std::size_t>> ranges;
  std::size_t at = begin;
  for (std::size_t i = 1; i <= count && at < bytes.size(); ++i) {
    std::size_t end = i == count ? bytes.size() : begin + (bytes.size() - begin) / count * i;
    if (end <= at) continue;
    if (end < bytes.size()) {
      const std::size_t newline = bytes.find('\n', end);
      end = newline == std::string_view::npos ? bytes.size() : newline + 1;
    }
    ranges.emplace_back(at, end);
    at = end;
  }
  return ranges;
}

bool blank(std::string_view line) {
  return std::all_of(line.begin(), line.end(), [](char c) { return c == ' ' || c == '\t' || c == '\r'; });
}

bool language_suffix(std::string_view text) {
  return text.size() >= 2 && text.size() <= 8 && !canonical_language(text).empty();
}

constexpr std::string_view kUniqueIds =
    "give every pair of a file its own id; remove the record if it stands there twice";

struct RepeatedId {
  std::size_t at = 0, before = 0;  // numbers of the record and of the first with its id
};

// Hashes that stand there more than once from the record `first` on. They are spread over buckets before they are
// sorted, so that the cost per record hardly grows with their number, and the threads share it.
std::unordered_set<std::uint64_t> repeated_hashes(const PairIndex& index, std::size_t first) {
  constexpr std::size_t kBuckets = 1024;
  const auto bucket = [](std::uint64_t hash) { return hash >> 54; };
  std::vector<std::size_t> end(kBuckets + 1);
  for (std::size_t i = first; i < index.size(); ++i) ++end[bucket(index[i].id_hash) + 1];
  std::partial_sum(end.begin(), end.end(), end.begin());
  std::vector<std::uint64_t> hashes(index.size() - first);
  std::vector<std::size_t> next(end.begin(), end.end() - 1);
  for (std::size_t i = first; i < index.size(); ++i) hashes[next[bucket(index[i].id_hash)]++] = index[i].id_hash;

  std::mutex mutex;
  std::unordered_set<std::uint64_t> repeated;
  in_parallel(kBuckets, 64, [&](std::size_t, std::size_t from, std::size_t to) {
    for (std::size_t b = from; b < to; ++b) {
      std::sort(hashes.begin() + static_cast<std::ptrdiff_t>(end[b]),
                hashes.begin() + static_cast<std::ptrdiff_t>(end[b + 1]));
      for (std::size_t i = end[b] + 1; i < end[b + 1]; ++i) {
        if (hashes[i] != hashes[i - 1]) continue;
        const std::lock_guard<std::mutex> guard(mutex);
        repeated.insert(hashes[i]);
      }
    }
  });
  return repeated;
}

// The records from `first` on whose id stood before, in order.
std::vector<RepeatedId> repeated_ids(const PairIndex& index, std::size_t first) {
  const std::unordered_set<std::uint64_t> suspects = repeated_hashes(index, first);
  std::vector<RepeatedId> repeated;
  if (suspects.empty()) return repeated;
  // Equal hashes are nearly always equal ids, but only the ids themselves prove it.
  std::unordered_map<std::string, std::size_t> seen;
  for (std::size_t i = first; i < index.size(); ++i) {
    if (!suspects.contains(index[i].id_hash)) continue;
    const auto [known, added] = seen.try_emplace(index.id(index[i]), i);
    if (!added) repeated.push_back({i, known->second});
  }
  return repeated;
}

}  // namespace

ManifestSpec parse_manifest_spec(std::string_view spec) {
  const std::string whole(spec);
  if (file_exists(whole) || directory_exists(whole)) return {whole, ""};
  for (const std::string_view mark : {"::", "@", "="}) {
    const std::size_t at = spec.rfind(mark);
    if (at == std::string_view::npos || at == 0) continue;
    const std::string_view suffix = spec.substr(at + mark.size());
    if (language_suffix(suffix)) return {std::string(spec.substr(0, at)), canonical_language(suffix)};
  }
  return {whole, ""};
}

std::uint64_t hash_id(std::string_view id) {
  std::uint64_t hash = 0xCBF29CE484222325ULL;  // FNV-1a, then a finaliser that spreads the low bits
  for (const char c : id) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  hash = (hash ^ (hash >> 32)) * 0xD6E8FEB86659FD93ULL;
  return hash ^ (hash >> 32);
}

std::string content_hash(std::string_view bytes) {
  const std::size_t pieces = (bytes.size() + kHashPiece - 1) / kHashPiece;
  std::vector<std::string> hashes(pieces);
  in_parallel(pieces, 1, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) hashes[i] = sha256(bytes.substr(i * kHashPiece, kHashPiece));
  });
  return sha256(join(hashes, "\n"));
}

Error DataProblem::error() const {
  Error error(code, message);
  std::move(error).where(file, line);
  if (!sample.empty()) std::move(error).detail(concat("sample: ", sample));
  for (const std::string& line_of_detail : details) std::move(error).detail(line_of_detail);
  return std::move(error).fix(fix);
}

std::string DataProblem::text() const {
  std::string text = line > 0 ? concat(file, ":", line, ": ") : concat(file, ": ");
  if (!sample.empty()) text += concat(sample, ": ");
  text += message;
  for (const std::string& detail : details) text += concat("; ", detail);
  return text;
}

// What one thread found in its part of a file; names are numbered within the chunk until merged.
struct PairIndex::Chunk {
  std::size_t begin = 0, end = 0;
  std::vector<PairEntry> entries;
  Names speakers, languages;
  std::uint64_t lines = 0, records = 0, bad = 0;  // lines counts blank ones too
  std::vector<DataProblem> problems;              // line counted within the chunk
  bool single_sample = false;
  std::exception_ptr failure;
};

PairIndex::PairIndex(Settings settings) : settings_(std::move(settings)) {
  if (settings_.threads == 0) settings_.threads = std::clamp(std::thread::hardware_concurrency(), 1U, 8U);
  settings_.default_language = canonical_language(settings_.default_language);
}

bool PairIndex::usable(const PairRecord& record, RecordProblem& problem) const {
  const auto lacks = [&](std::string_view field, std::string message, std::string fix) {
    problem = {std::string(field), "", std::move(message), std::move(fix), false};
    return false;
  };
  using Needs = Settings::Needs;
  if (settings_.needs == Needs::kCondition) {
    if (record.prompt_condition_path.empty()) {
      return lacks("prompt_condition_path", "the record names no condition file",
                   "add it, or set model.conditioning to \"online\" and give prompt_features_path");
    }
    if (record.emo_vec_path().empty()) {
      return lacks("prompt_emo_vec_path", "the record names no emotion vector (target_emo_vec_path would do)",
                   "add it");
    }
  } else if (settings_.needs == Needs::kFeatures && record.prompt_features_path.empty()) {
    return lacks("prompt_features_path", "online conditioning needs the prompt's features",
                 "add it, or set model.conditioning to \"precomputed\"");
  }
  if (record.target_text_ids_path.empty()) {
    if (record.target_text.empty()) {
      return lacks("target_text_ids_path", "the record has neither text ids nor text",
                   "add target_text_ids_path or target_text");
    }
    if (settings_.text_needs_ids) {
      return lacks("target_text", "the text must be tokenised, and no tokenizer is configured",
                   "set data.tokenizer, or give target_text_ids_path");
    }
  }
  if (!record.stated_language().empty() && canonical_language(record.stated_language()).empty()) {
    problem = {"language", shown_value(record.stated_language()), "this is no language name",
               "use a short name such as \"am\" or \"en\"", false};
    return false;
  }
  return true;
}

void PairIndex::index_chunk(const File& file, std::uint32_t number, Chunk& chunk) const {
  const auto all = file.map->bytes();
  const std::string_view bytes(reinterpret_cast<const char*>(all.data()), all.size());
  RecordParser parser;
  PairRecord record;
  RecordProblem problem;
  chunk.entries.reserve((chunk.end - chunk.begin) / 256);  // records are longer; what is not used costs no memory
  std::size_t at = chunk.begin;
  while (at < chunk.end) {
    const void* newline = std::memchr(bytes.data() + at, '\n', chunk.end - at);
    const std::size_t end =
        newline ? static_cast<std::size_t>(static_cast<const char*>(newline) - bytes.data()) : chunk.end;
    const std::string_view line = bytes.substr(at, end - at);
    ++chunk.lines;
    if (!blank(line)) {
      ++chunk.records;
      if (parser.parse(line, bytes.size() - at, record, problem) && usable(record, problem)) {
        std::string_view language = record.stated_language();
        const std::string canonical = !language.empty()                     ? canonical_language(language)
                                      : !file.language.empty()              ? file.language
                                      : !settings_.default_language.empty() ? settings_.default_language
                                                                            : language_of_script(record.target_text);
        const std::uint64_t language_number = chunk.languages.number(canonical);
        PairEntry entry;
        entry.place = at | std::uint64_t{number} << 40 | std::min<std::uint64_t>(language_number, 255) << 56;
        entry.id_hash = hash_id(record.id);
        entry.speaker = chunk.speakers.number(record.speaker);
        entry.text_length = stored_length(record.target_text_ids_path.empty() ? -1 : record.target_text_len);
        entry.code_length = stored_length(record.target_code_len);
        chunk.entries.push_back(entry);
      } else {
        ++chunk.bad;
        chunk.single_sample |= problem.single_sample;
        if (chunk.problems.size() < kProblemsKept) {
          chunk.problems.push_back(
              make_problem(problem, file.path, static_cast<long>(chunk.lines), std::string(record.id)));
        }
      }
    }
    at = end + 1;
  }
}

void PairIndex::merge(std::vector<Chunk>& chunks, const File& file) {
  std::size_t total = entries_.size();
  for (const Chunk& chunk : chunks) total += chunk.entries.size();
  if (total > UINT32_MAX) throw Error("DAT001", "more than 4,294,967,295 pairs in all").where(file.path);
  entries_.reserve(total);

  Names speakers, languages;
  for (const std::string& name : speakers_) speakers.number(name);
  for (const std::string& name : languages_) languages.number(name);
  std::uint64_t lines_before = 0, lines = 0;
  for (Chunk& chunk : chunks) {
    std::vector<std::uint32_t> speaker_numbers, language_numbers;
    for (const std::string& name : chunk.speakers.names()) speaker_numbers.push_back(speakers.number(name));
    for (const std::string& name : chunk.languages.names()) language_numbers.push_back(languages.number(name));
    for (PairEntry& entry : chunk.entries) {
      entry.speaker = speaker_numbers[entry.speaker];
      entry.place = (entry.place & ~(0xFFULL << 56)) | std::uint64_t{language_numbers[entry.language()]} << 56;
    }
    entries_.insert(entries_.end(), chunk.entries.begin(), chunk.entries.end());
    std::vector<PairEntry>().swap(chunk.entries);
    for (DataProblem& problem : chunk.problems) {
      problem.line += static_cast<long>(lines_before);
      if (problems_.size() < kProblemsKept) problems_.push_back(std::move(problem));
    }
    lines_before += chunk.lines;
    lines += chunk.lines;
    bad_records_ += chunk.bad;
  }
  if (lines > kMaxLines) throw Error("DAT001", concat("the manifest has ", lines, " lines; 100,000,000 are allowed"));
  if (languages.names().size() > 255) {
    throw Error("DAT001", "more than 255 different languages are named")
        .where(file.path)
        .fix("check the fields target_language and language");
  }
  speakers_ = speakers.names();
  languages_ = languages.names();
}

std::uint64_t PairIndex::add(const std::string& spec) {
  const ManifestSpec parsed = parse_manifest_spec(spec);
  if (PackedSet::is_one(parsed.path)) return add_packed(parsed);
  if (files_.size() >= kMaxManifests) throw Error("DAT001", "more than 65,536 manifests are named");
  File file{absolute_path(parsed.path), parent_path(absolute_path(parsed.path)), parsed.language, nullptr, nullptr};
  file.map = std::make_unique<MappedFile>(file.path, kMaxManifestBytes - 1);
  mark_lost_pages(*file.map);
  const auto all = file.map->bytes();
  const std::string_view bytes(reinterpret_cast<const char*>(all.data()), all.size());
  const std::size_t start = starts_with(bytes, "\xEF\xBB\xBF") ? 3 : 0;  // a byte order mark is no content

  const std::size_t pieces = std::min<std::size_t>(settings_.threads, bytes.size() / kChunkBytes + 1);
  const auto ranges = cut_at_lines(bytes, start, pieces);
  std::vector<Chunk> chunks(ranges.size());
  const auto number = static_cast<std::uint32_t>(files_.size());
  const auto run = [&](std::size_t i) {
    try {
      chunks[i].begin = ranges[i].first;
      chunks[i].end = ranges[i].second;
      index_chunk(file, number, chunks[i]);
    } catch (...) {
      chunks[i].failure = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < chunks.size(); ++i) threads.emplace_back(run, i);
  if (!chunks.empty()) run(0);
  for (std::thread& thread : threads) thread.join();
  for (const Chunk& chunk : chunks) {
    if (chunk.failure) std::rethrow_exception(chunk.failure);
  }
  check_not_cut(*file.map);

  const std::size_t first = entries_.size(), first_problem = problems_.size();
  const std::uint64_t bad_before = bad_records_;
  std::uint64_t records = 0;
  bool single_sample = false;
  for (const Chunk& chunk : chunks) {
    records += chunk.records;
    single_sample |= chunk.single_sample;
  }
  merge(chunks, file);
  files_.push_back(std::move(file));
  stop_at_bad_records(first_problem, bad_before, single_sample);
  if (!settings_.skip_bad) {
    refuse_duplicates(first);
    return records;
  }
  const std::vector<RepeatedId> repeated = repeated_ids(*this, first);
  for (const RepeatedId& one : repeated) {
    ++bad_records_;
    if (problems_.size() >= kProblemsKept) continue;
    const PairEntry& entry = entries_[one.at];
    problems_.push_back({"DAT001",
                         this->file(entry),
                         line(entry),
                         id(entry),
                         "two records of one manifest have the same id",
                         {concat("first at line ", line(entries_[one.before]))},
                         std::string(kUniqueIds)});
  }
  std::size_t kept = first, next = 0;
  for (std::size_t i = first; i < entries_.size(); ++i) {
    if (next < repeated.size() && repeated[next].at == i) {
      ++next;
    } else {
      entries_[kept++] = entries_[i];
    }
  }
  entries_.resize(kept);
  return records;
}

void PairIndex::stop_at_bad_records(std::size_t first_problem, std::uint64_t bad_before, bool single_sample) const {
  const std::uint64_t bad = bad_records_ - bad_before;
  if (bad == 0 || (settings_.skip_bad && !single_sample)) return;
  const auto worst = std::find_if(problems_.begin() + static_cast<std::ptrdiff_t>(first_problem), problems_.end(),
                                  [&](const DataProblem& p) { return !single_sample || p.code == "DAT002"; });
  DataProblem shown = worst == problems_.end() ? problems_.back() : *worst;
  if (bad > 1) shown.details.push_back(concat(bad - 1, " more records of this file cannot be used"));
  throw shown.error();
}

// False with `problem` filled when the set lacks what settings_.needs asks for; as usable() for records.
bool PairIndex::serves(const PackedSet& set, std::size_t number, RecordProblem& problem) const {
  const PackedPair& pair = set.pairs()[number];
  const auto lacks = [&](ArrayRole role, std::string_view field, std::string_view what, std::string_view fix) {
    if (pair.array(role) != PackedPair::kNoArray) return false;
    problem = {std::string(field), "", concat("the packed set holds no ", what, " of this pair"), std::string(fix),
               false};
    return true;
  };
  using Needs = Settings::Needs;
  constexpr std::string_view kName = "set model.conditioning to \"online\", or pack again from records that name it";
  if (settings_.needs == Needs::kCondition &&
      (lacks(ArrayRole::kCondition, "prompt_condition_path", "condition", kName) ||
       lacks(ArrayRole::kEmoVec, "prompt_emo_vec_path", "emotion vector", kName))) {
    return false;
  }
  if (settings_.needs == Needs::kFeatures &&
      lacks(ArrayRole::kFeatures, "prompt_features_path", "features", "pack again with --conditioning online")) {
    return false;
  }
  return !settings_.text_needs_ids ||
         !lacks(ArrayRole::kTextIds, "target_text_ids_path", "text ids",
                "set data.tokenizer, or pack again from records with target_text_ids_path");
}

std::uint64_t PairIndex::add_packed(const ManifestSpec& spec) {
  const std::shared_ptr<const PackedSet> set = PackedSet::open(spec.path);
  const std::size_t first_file = files_.size(), first_problem = problems_.size();
  const std::uint64_t bad_before = bad_records_;
  if (first_file + set->manifests().size() > kMaxManifests)
    throw Error("DAT001", "more than 65,536 manifests are named");
  if (entries_.size() + set->pairs().size() > UINT32_MAX) {
    throw Error("DAT001", "more than 4,294,967,295 pairs in all").where(set->folder());
  }
  for (const PackedSet::Manifest& manifest : set->manifests()) {
    File file{manifest.path,
              set->folder(),
              spec.language.empty() ? manifest.language : spec.language,
              std::make_unique<MappedFile>(manifest.path),
              set,
              static_cast<std::uint32_t>(files_.size() - first_file)};
    mark_lost_pages(*file.map);
    if (file.map->bytes().size() != manifest.bytes) {
      throw Error("DAT030", "the manifest's copy has another size than it was packed with").where(file.path);
    }
    files_.push_back(std::move(file));
  }
  Names speakers, languages;
  for (const std::string& name : speakers_) speakers.number(name);
  for (const std::string& name : languages_) languages.number(name);
  // Names get their numbers in the order in which usable pairs bring them, as with manifests.
  constexpr std::uint32_t kUnset = UINT32_MAX;
  std::vector<std::uint32_t> speaker_numbers(set->speakers().size(), kUnset);
  std::vector<std::uint32_t> language_numbers(3 * set->languages().size(), kUnset);
  entries_.reserve(entries_.size() + set->pairs().size());
  for (std::size_t i = 0; i < set->pairs().size(); ++i) {
    const PackedPair& pair = set->pairs()[i];
    PairEntry entry = pair.entry;
    const std::uint64_t manifest = first_file + entry.manifest();
    RecordProblem problem;
    if (!serves(*set, i, problem)) {
      ++bad_records_;
      if (problems_.size() < kProblemsKept) {
        entry.place = entry.offset() | manifest << 40;
        problems_.push_back(make_problem(problem, files_[manifest].path, line(entry), id(entry)));
      }
      continue;
    }
    std::uint32_t& speaker = speaker_numbers[entry.speaker];
    if (speaker == kUnset) speaker = speakers.number(set->speakers()[entry.speaker]);
    entry.speaker = speaker;
    std::uint32_t& language = language_numbers[3 * entry.language() + static_cast<std::size_t>(pair.language_source)];
    if (language == kUnset) {
      std::string name = set->languages()[entry.language()];
      if (pair.language_source != LanguageSource::kRecord && !spec.language.empty()) {
        name = spec.language;
      } else if (pair.language_source == LanguageSource::kScript && !settings_.default_language.empty()) {
        name = settings_.default_language;
      }
      language = languages.number(name);
    }
    entry.place = entry.offset() | manifest << 40 | std::uint64_t{language} << 56;
    entries_.push_back(entry);
  }
  if (languages.names().size() > 255)
    throw Error("DAT001", "more than 255 different languages are named").where(set->folder());
  speakers_ = speakers.names();
  languages_ = languages.names();
  stop_at_bad_records(first_problem, bad_before, /*single_sample=*/false);
  return set->pairs().size();
}

void PairIndex::refuse_duplicates(std::size_t first) const {
  for (const RepeatedId& repeated : repeated_ids(*this, first)) {
    throw Error("DAT001", "two records of one manifest have the same id")
        .where(file(entries_[repeated.at]), line(entries_[repeated.at]))
        .detail(concat("id: ", id(entries_[repeated.at])))
        .detail(concat("first at line ", line(entries_[repeated.before])))
        .fix(std::string(kUniqueIds));
  }
}

std::string_view PairIndex::manifest_bytes(std::size_t i) const {
  const auto all = files_[i].map->bytes();
  return {reinterpret_cast<const char*>(all.data()), all.size()};
}

std::string PairIndex::manifest_identity(std::size_t i) const {
  const File& file = files_[i];
  if (!file.set) return content_hash(manifest_bytes(i));
  const std::string& hash = file.set->manifests()[file.number_in_set].content_hash;
  return file.set->rounded_to().empty() ? hash : concat(hash, " as ", file.set->rounded_to());
}

std::string_view PairIndex::line_at(const PairEntry& entry, std::size_t& readable) const {
  const std::string_view bytes = manifest_bytes(entry.manifest());
  const std::size_t begin = entry.offset();
  const std::size_t newline = bytes.find('\n', begin);
  readable = bytes.size() - begin;
  return bytes.substr(begin, newline == std::string_view::npos ? std::string_view::npos : newline - begin);
}

PairRecord PairIndex::record(const PairEntry& entry, RecordParser& parser) const {
  const File& from = files_[entry.manifest()];
  check_not_cut(*from.map);
  std::size_t readable = 0;
  const std::string_view text = line_at(entry, readable);
  if (from.set) from.set->check_record(from.set->find(from.number_in_set, entry.offset()), text);
  PairRecord record;
  RecordProblem problem;
  const bool parsed = parser.parse(text, readable, record, problem);
  check_lost_pages(*from.map);
  if (!parsed) {
    throw make_problem(problem, file(entry), line(entry), "")
        .error()
        .detail("the manifest changed while it was in use");
  }
  if (hash_id(record.id) != entry.id_hash) {
    throw Error("DAT001", "the manifest changed while it was in use")
        .where(file(entry), line(entry))
        .detail(concat("another pair stands there now: ", record.id))
        .fix("run the same command again; replace manifests by renaming a new file over the old one");
  }
  return record;
}

std::string PairIndex::id(const PairEntry& entry) const {
  thread_local RecordParser parser;
  return std::string(record(entry, parser).id);
}

long PairIndex::line(const PairEntry& entry) const {
  const std::string_view before = manifest_bytes(entry.manifest()).substr(0, entry.offset());
  return 1 + static_cast<long>(std::count(before.begin(), before.end(), '\n'));
}

std::string PairIndex::resolve(const PairEntry& entry, std::string_view path) const {
  // Not normalised: behind a symbolic link, "a/.." is not always "a"'s folder.
  return starts_with(path, "/") ? std::string(path) : concat(files_[entry.manifest()].folder, "/", path);
}

Tensor PairIndex::array(const PairEntry& entry, const PairRecord& record, ArrayRole role) const {
  const File& from = files_[entry.manifest()];
  if (from.set) return from.set->array(from.set->find(from.number_in_set, entry.offset()), role);
  return read_npy(resolve(entry, record.array_path(role)));
}

void PairIndex::check_whole(const PairEntry& entry) const {
  const File& from = files_[entry.manifest()];
  check_lost_pages(*from.map);
  if (from.set) from.set->check_whole();
}

Tensor PairIndex::array_header(const PairEntry& entry, const PairRecord& record, ArrayRole role) const {
  const File& from = files_[entry.manifest()];
  if (from.set) return from.set->array_header(from.set->find(from.number_in_set, entry.offset()), role);
  return read_npy_header(resolve(entry, record.array_path(role)));
}

std::string PairIndex::array_place(const PairEntry& entry, const PairRecord& record, ArrayRole role) const {
  const File& from = files_[entry.manifest()];
  if (from.set) return concat(from.set->folder(), " (packed from ", record.array_path(role), ")");
  return resolve(entry, record.array_path(role));
}

}  // namespace train_gpt_v2
