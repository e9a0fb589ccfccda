#include "train_gpt_v2/data/dataset.h"

#include <algorithm>
#include <atomic>
#include <optional>

#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/parallel.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kExamples = 10;

PairIndex::Settings index_settings(const DataOptions& data, const ModelOptions& model, bool has_tokenizer) {
  PairIndex::Settings settings;
  settings.default_language = data.language;
  settings.needs =
      model.conditioning == "online" ? PairIndex::Settings::Needs::kFeatures : PairIndex::Settings::Needs::kCondition;
  settings.text_needs_ids = !has_tokenizer;
  settings.skip_bad = data.on_bad_sample == "skip";
  return settings;
}

}  // namespace

// A sample that opening decided to leave out.
struct Dataset::Outcome {
  std::uint32_t sample = 0;
  std::string reason;
  bool bad = false;
  std::optional<Error> error;
};

Dataset::Dataset(const std::vector<std::string>& manifests, const std::vector<ReplayOptions>& replay,
                 const DataOptions& data, const ModelOptions& model, std::shared_ptr<const Tokenizer> tokenizer)
    : model_(model),
      on_overlong_(data.on_overlong),
      skip_bad_(data.on_bad_sample == "skip"),
      max_bad_fraction_(data.max_bad_fraction),
      default_language_(data.language),
      tokenizer_(std::move(tokenizer)),
      text_limit_(std::min<std::int64_t>(model.max_text_tokens, PairEntry::kMaxLength - 1)),
      code_limit_(std::min<std::int64_t>(model.mel_positions() - 2, PairEntry::kMaxLength - 1)),
      index_(index_settings(data, model, tokenizer_ != nullptr)) {
  if (tokenizer_) check_vocabulary(*tokenizer_, model_);
  const auto close_group = [&](double share) {
    const std::uint32_t begin = groups_.empty() ? 0 : groups_.back().end;
    groups_.push_back({begin, static_cast<std::uint32_t>(index_.size()), share});
  };
  for (const std::string& manifest : manifests) records_ += index_.add(manifest);
  close_group(0);
  epoch_manifests_ = index_.manifests();
  for (const ReplayOptions& more : replay) {
    records_ += index_.add(more.manifest);
    close_group(more.share);
  }
  for (const DataProblem& problem : index_.problems()) count_dropped("malformed record", true, 1, &problem);
  if (index_.bad_records() > index_.problems().size()) {
    count_dropped("malformed record", true, index_.bad_records() - index_.problems().size(), nullptr);
  }
  std::vector<Outcome> outcomes;
  find_lengths(outcomes);
  drop(outcomes);
  apply_limits(outcomes);
  drop(outcomes);
  check_bad_fraction(bad_at_open());
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    if (groups_[i].begin < groups_[i].end) continue;
    Error error("DAT008", "no usable sample is left");
    if (index_.manifests() > 0) {
      std::move(error).where(i == 0 ? index_.manifest_path(0) : replay[i - 1].manifest);
    }
    for (const DropReason& reason : dropped_) {
      std::move(error).detail(concat(human_count(reason.count), " left out: ", reason.reason));
    }
    throw std::move(error).fix("name a manifest that holds pairs; the reasons above say what happened to its records");
  }
}

void Dataset::count_dropped(const std::string& reason, bool bad, std::uint64_t count, const DataProblem* example) {
  auto found = std::find_if(dropped_.begin(), dropped_.end(), [&](const DropReason& r) { return r.reason == reason; });
  if (found == dropped_.end()) found = dropped_.insert(dropped_.end(), DropReason{reason, 0, bad, {}, {}});
  found->count += count;
  if (!example || found->examples.size() >= kExamples) return;
  found->examples.push_back(example->text());
  found->problems.push_back(*example);
}

void Dataset::drop(std::vector<Outcome>& outcomes) {
  if (outcomes.empty()) return;
  std::vector<PairEntry>& entries = index_.entries();
  std::size_t next = 0, kept = 0;
  std::vector<SampleGroup> groups = groups_;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    groups[g].begin = static_cast<std::uint32_t>(kept);
    for (std::uint32_t i = groups_[g].begin; i < groups_[g].end; ++i) {
      if (next < outcomes.size() && outcomes[next].sample == i) {
        const Outcome& outcome = outcomes[next++];
        const bool wants_example = std::none_of(dropped_.begin(), dropped_.end(), [&](const DropReason& r) {
          return r.reason == outcome.reason && r.examples.size() >= kExamples;
        });
        DataProblem example;
        if (wants_example) {
          example = {outcome.error ? outcome.error->code() : "DAT003",
                     index_.file(entries[i]),
                     index_.line(entries[i]),
                     id(i),
                     outcome.error ? outcome.error->message() : outcome.reason,
                     {},
                     {}};
          if (outcome.error && !outcome.error->place().empty()) example.details.push_back(outcome.error->place());
        }
        count_dropped(outcome.reason, outcome.bad, 1, wants_example ? &example : nullptr);
        const auto reason = std::find_if(dropped_.begin(), dropped_.end(),
                                         [&](const DropReason& r) { return r.reason == outcome.reason; });
        dropped_ids_.emplace_back(entries[i].id_hash, static_cast<std::uint32_t>(reason - dropped_.begin()));
      } else {
        entries[kept++] = entries[i];
      }
    }
    groups[g].end = static_cast<std::uint32_t>(kept);
  }
  entries.resize(kept);
  groups_ = std::move(groups);
  outcomes.clear();
}

void Dataset::find_length(PairEntry& entry, Outcome& outcome, RecordParser& parser) const {
  try {
    const PairRecord record = index_.record(entry, parser);
    const auto first_dimension = [&](ArrayRole role, std::string_view what) {
      const Tensor header = index_.array_header(entry, record, role);
      if (header.shape.size() != 1) {
        throw Error("DAT006", concat(what, " must be one-dimensional, not ", shape_text(header.shape)))
            .where(index_.array_place(entry, record, role));
      }
      return static_cast<std::uint16_t>(std::min<std::int64_t>(header.shape[0], PairEntry::kMaxLength));
    };
    if (entry.code_length == PairEntry::kUnknownLength) {
      entry.code_length = first_dimension(ArrayRole::kCodes, "codes");
    }
    if (entry.text_length != PairEntry::kUnknownLength) return;
    if (!record.target_text_ids_path.empty()) {
      entry.text_length = first_dimension(ArrayRole::kTextIds, "text ids");
    } else {
      const auto ids = tokenizer_->encode(record.target_text, languages()[entry.language()]);
      entry.text_length = static_cast<std::uint16_t>(std::min<std::size_t>(ids.size(), PairEntry::kMaxLength));
    }
  } catch (const Error& error) {
    outcome.reason = "unreadable array";
    outcome.bad = true;
    outcome.error = error;
  }
}

void Dataset::find_lengths(std::vector<Outcome>& outcomes) {
  std::vector<PairEntry>& entries = index_.entries();
  std::vector<std::vector<Outcome>> found(parallel_threads());
  std::atomic<bool> tokenises = false;
  in_parallel(entries.size(), 4096, [&](std::size_t thread, std::size_t begin, std::size_t end) {
    RecordParser parser;
    for (std::size_t i = begin; i < end; ++i) {
      PairEntry& entry = entries[i];
      const bool text_unknown = entry.text_length == PairEntry::kUnknownLength;
      Outcome outcome;
      outcome.sample = static_cast<std::uint32_t>(i);
      if (text_unknown || entry.code_length == PairEntry::kUnknownLength) {
        find_length(entry, outcome, parser);
        if (text_unknown && !tokenises && index_.record(entry, parser).target_text_ids_path.empty()) tokenises = true;
      }
      if (outcome.reason.empty() && (entry.text_length == 0 || entry.code_length == 0)) {
        outcome.reason = entry.text_length == 0 ? "empty text" : "no codes";
        outcome.bad = true;
        outcome.error = Error("DAT006", entry.text_length == 0 ? "the text has no ids" : "there are no codes")
                            .fix("remove the record");
      }
      if (!outcome.reason.empty()) found[thread].push_back(std::move(outcome));
    }
  });
  tokenises_ = tokenises;
  for (std::vector<Outcome>& part : found) {
    for (Outcome& outcome : part) {
      if (!skip_bad_) {
        const Error& error = *outcome.error;
        throw Error(error.code(), error.message())
            .at(place(outcome.sample))
            .detail(concat("sample: ", id(outcome.sample)))
            .detail(error.place().empty() ? "found while opening" : concat("array: ", error.place()))
            .fix(error.hint().empty() ? "write the file again, or set data.on_bad_sample to \"skip\"" : error.hint());
      }
      outcomes.push_back(std::move(outcome));
    }
  }
}

void Dataset::apply_limits(std::vector<Outcome>& outcomes) {
  std::vector<PairEntry>& entries = index_.entries();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    PairEntry& entry = entries[i];
    const bool long_text = entry.text_length > text_limit_, long_codes = entry.code_length > code_limit_;
    if (!long_text && !long_codes) continue;
    if (on_overlong_ == "trim") {
      entry.text_length = static_cast<std::uint16_t>(std::min<std::int64_t>(entry.text_length, text_limit_));
      entry.code_length = static_cast<std::uint16_t>(std::min<std::int64_t>(entry.code_length, code_limit_));
      continue;
    }
    const std::string reason =
        long_text ? concat("text longer than ", text_limit_, " ids") : concat("more than ", code_limit_, " codes");
    if (on_overlong_ == "refuse") {
      throw Error("DAT003", concat("a sample is longer than the model's position tables: ", reason))
          .at(place(static_cast<std::uint32_t>(i)))
          .detail(concat("sample: ", id(static_cast<std::uint32_t>(i))))
          .detail(concat("text ", entry.text_length, " ids, ", entry.code_length, " codes"))
          .fix("set data.on_overlong to \"drop\" or \"trim\", or raise model.max_text_tokens or max_mel_tokens");
    }
    Outcome outcome;
    outcome.sample = static_cast<std::uint32_t>(i);
    outcome.reason = reason;
    outcomes.push_back(std::move(outcome));
  }
}

SampleInfo Dataset::info(std::uint32_t sample) const {
  const PairEntry& entry = index_[sample];
  std::uint32_t group = 0;
  while (sample >= groups_[group].end) ++group;
  return {entry.text_length, entry.code_length, entry.speaker, entry.language(), entry.manifest(), group};
}

std::optional<std::string> Dataset::load_or_skip(std::uint32_t sample, Batch& batch) const {
  try {
    load(sample, batch);
    return std::nullopt;
  } catch (const Error& error) {
    // IO008: a manifest or a packed set was cut while in use; that is no bad sample, everything behind it is gone.
    if (!skip_bad_ || error.status() == ExitStatus::kInternal || error.code() == "IO008") throw;
    return concat(error.place(), ": ", error.message(), " (", join(error.details(), "; "), ")");
  }
}

std::string Dataset::place(std::uint32_t sample) const {
  const long line = index_.line(index_[sample]);
  return line > 0 ? concat(index_.file(index_[sample]), ":", line) : index_.file(index_[sample]);
}

std::string Dataset::text(std::uint32_t sample) const {
  RecordParser parser;
  return std::string(index_.record(index_[sample], parser).target_text);
}

bool Dataset::has_speaker(std::string_view name) const {
  const auto& names = speakers();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return false;
  const auto number = static_cast<std::uint32_t>(found - names.begin());
  const auto& entries = index_.entries();
  return std::any_of(entries.begin(), entries.end(), [&](const PairEntry& entry) { return entry.speaker == number; });
}

std::uint64_t Dataset::bad_at_open() const {
  std::uint64_t bad = 0;
  for (const DropReason& reason : dropped_) bad += reason.bad ? reason.count : 0;
  return bad;
}

void Dataset::check_bad_fraction(std::uint64_t bad) const {
  if (static_cast<double>(bad) <= max_bad_fraction_ * static_cast<double>(records_)) return;
  Error error("DAT008", concat(human_count(bad), " of ", human_count(records_),
                               " samples cannot be used, more than "
                               "data.max_bad_fraction (",
                               exact_number(max_bad_fraction_), ") allows"));
  for (const DropReason& reason : dropped_) {
    if (!reason.bad) continue;
    std::move(error).detail(concat(human_count(reason.count), ": ", reason.reason));
    for (const std::string& example : reason.examples) std::move(error).detail(concat("  ", example));
  }
  throw std::move(error).fix("repair them, or raise data.max_bad_fraction if these samples may be left out");
}

void Dataset::build_lookup() const {
  lookup_.reserve(size());
  for (std::uint32_t i = 0; i < size(); ++i) lookup_.emplace_back(index_[i].id_hash, i);
  std::sort(lookup_.begin(), lookup_.end());
}

std::uint32_t Dataset::find(std::string_view wanted) const {
  std::call_once(lookup_built_, [this] { build_lookup(); });
  const std::uint64_t hash = hash_id(wanted);
  std::optional<std::uint32_t> match;
  for (auto at = std::lower_bound(lookup_.begin(), lookup_.end(), std::pair{hash, std::uint32_t{0}});
       at != lookup_.end() && at->first == hash; ++at) {
    if (id(at->second) != wanted) continue;
    if (match) {
      throw Error("DAT009", concat("two manifests have a pair \"", shown_value(wanted), "\""))
          .detail(place(*match))
          .detail(place(at->second))
          .fix("name only one of the manifests, or give the pairs different ids");
    }
    match = at->second;
  }
  if (match) return *match;
  Error error("DAT009", concat("no pair has the id \"", shown_value(wanted), "\""));
  for (const auto& [dropped, reason] : dropped_ids_) {
    if (dropped == hash) std::move(error).detail(concat("it was left out: ", dropped_[reason].reason));
  }
  throw std::move(error).fix("ids are those of the manifests' field \"id\"");
}

std::string Dataset::manifest_line(std::size_t manifest) const {
  return concat("manifest ", index_.manifest_identity(manifest), " ",
                tokenises_ ? index_.manifest_language(manifest) : "", "\n");
}

std::string Dataset::replay_fingerprint() const {
  if (epoch_manifests_ == index_.manifests()) return "";
  std::string text;
  for (std::size_t i = epoch_manifests_; i < index_.manifests(); ++i) text += manifest_line(i);
  for (std::size_t group = 1; group < groups_.size(); ++group) {
    text +=
        concat("share ", exact_number(groups_[group].share), " of ", groups_[group].end - groups_[group].begin, "\n");
  }
  return sha256(text);
}

const std::string& Dataset::fingerprint() const {
  std::call_once(fingerprint_made_, [this] {
    std::string text = concat("data 1\nlimits ", on_overlong_, " ", text_limit_, " ", code_limit_, "\nconditioning ",
                              model_.conditioning, "\n");
    if (tokenises_) text += concat("tokenizer ", tokenizer_->sha256(), " ", default_language_, "\n");
    for (std::size_t i = 0; i < epoch_manifests_; ++i) text += manifest_line(i);
    Sha256 lengths;
    for (std::size_t i = 0; i < epoch_size(); ++i) {
      const std::uint16_t pair[2] = {index_[i].text_length, index_[i].code_length};
      lengths.update(pair, sizeof pair);
    }
    fingerprint_ = sha256(text + lengths.hex());
  });
  return fingerprint_;
}

void check_vocabulary(const Tokenizer& tokenizer, const ModelOptions& model) {
  if (tokenizer.size() == model.number_text_tokens) return;
  throw Error("TOK003", "the tokenizer and the model have vocabularies of different sizes")
      .where(tokenizer.path())
      .detail(concat("tokenizer                  ", tokenizer.size(), " pieces"))
      .detail(concat("model.number_text_tokens   ", model.number_text_tokens))
      .fix(concat("set model.number_text_tokens to ", tokenizer.size(), ", or name the tokenizer of this model"));
}

}  // namespace train_gpt_v2
