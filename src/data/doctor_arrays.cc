// What the data doctor finds in the arrays themselves.
#include <algorithm>
#include <cmath>

#include "doctor_parts.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/normalizer.h"
#include "train_gpt_v2/data/parallel.h"

namespace train_gpt_v2::doctor {
namespace {

constexpr std::int64_t kConstantTail = 25;  // codes: half a second of one and the same
constexpr std::int64_t kPeriodicTail = 50;  // one second of a pattern of at most kLongestPeriod
constexpr std::int64_t kLongestPeriod = 4;

// How many codes at the end repeat with the given period.
std::int64_t repeated_tail(std::span<const std::int32_t> codes, std::int64_t period) {
  const auto size = static_cast<std::int64_t>(codes.size());
  std::int64_t at = size - 1;
  while (at - period >= 0 && codes[static_cast<std::size_t>(at)] == codes[static_cast<std::size_t>(at - period)]) --at;
  return at == size - 1 ? 0 : size - 1 - at + period;
}

std::vector<std::string> characters_of(std::string_view text) {
  std::vector<std::string> characters;
  for (const char c : text) {
    if ((static_cast<unsigned char>(c) & 0xC0) != 0x80 || characters.empty()) characters.emplace_back();
    characters.back() += c;
  }
  return characters;
}

bool constant(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [&](float value) { return value == values[0]; });
}

}  // namespace

ArrayExamination::ArrayExamination(Corpus& corpus, const Tokenizer* tokenizer, const DoctorOptions& options,
                                   Findings& findings)
    : corpus_(corpus),
      tokenizer_(tokenizer),
      options_(options),
      findings_(findings),
      ids_(corpus.summaries.size()),
      unknown_(corpus.summaries.size()) {}

FindingPlace ArrayExamination::place(const ArrayLook& look, std::string detail) const {
  return corpus_.place(look.sample, std::move(detail));
}

std::string ArrayExamination::check_name(std::string_view check) const {
  return concat(check, corpus_.validation ? "_validation" : "");
}

std::string ArrayLook::unusable() const {
  if (error)
    return error->details().empty() ? error->message() : concat(error->message(), "; ", error->details().back());
  if (special >= 0) return concat("a start or stop id inside the text, element ", special);
  if (empty_condition) return "the condition holds one value only";
  return empty_emotion ? "the emotion vector holds one value only" : "";
}

ArrayLook look_at_arrays(const Dataset& dataset, const Tokenizer* tokenizer, std::uint32_t sample) {
  ArrayLook look;
  look.sample = sample;
  Batch batch;
  try {
    dataset.load(sample, batch);
  } catch (const Error& error) {
    look.error = error;
    return look;
  }
  look.ids = batch.text.size();
  for (std::size_t i = 0; i < batch.text.size(); ++i) {
    look.unknown += batch.text[i] == Tokenizer::kUnknown;
    const bool special =
        batch.text[i] == dataset.model().start_text_token || batch.text[i] == dataset.model().stop_text_token;
    if (special && look.special < 0) look.special = static_cast<std::int64_t>(i);
  }
  for (std::int64_t period = 1; period <= kLongestPeriod && look.tail == 0; ++period) {
    const std::int64_t tail = repeated_tail(batch.codes, period);
    if (tail < (period == 1 ? kConstantTail : kPeriodicTail)) continue;
    look.tail = tail;
    look.period = period;
  }
  look.codes_hash =
      hash_id({reinterpret_cast<const char*>(batch.codes.data()), batch.codes.size() * sizeof(std::int32_t)});
  const std::vector<float>& condition = batch.features.empty() ? batch.condition : batch.features;
  look.empty_condition = constant(condition);
  look.empty_emotion = batch.features.empty() && constant(batch.emo_vec);
  if (!tokenizer) return look;

  thread_local RecordParser parser;
  const PairEntry& entry = dataset.index()[sample];
  const PairRecord record = dataset.index().record(entry, parser);
  const std::string& language = dataset.languages()[entry.language()];
  if (record.target_text.empty()) return look;
  const std::string prepared = before_sentencepiece(record.target_text, language);
  // Other languages go through further normalisers in Python, so their ids may rightly differ.
  if (language == "am" && !record.target_text_ids_path.empty()) {
    look.compared = true;
    const auto expected = tokenizer->encode_prepared(prepared);
    look.differs = expected != batch.text;
    if (look.differs) look.first_difference = concat("stored ", batch.text.size(), " ids, now ", expected.size());
  }
  if (look.unknown == 0) return look;
  for (std::string& character : characters_of(prepared)) {
    if (character != " " && tokenizer->piece_id(character) == Tokenizer::kUnknown) {
      look.uncovered.push_back(std::move(character));
    }
  }
  return look;
}

void ArrayExamination::read(std::span<const std::uint32_t> samples) {
  std::vector<ArrayLook> looks(samples.size());
  in_parallel(samples.size(), 16, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) looks[i] = look_at_arrays(corpus_.dataset, tokenizer_, samples[i]);
  });
  for (const ArrayLook& look : looks) note(look);
}

void ArrayExamination::note(const ArrayLook& look) {
  ++looked_;
  if (look.error) {
    ++failed_;
    std::vector<std::string> details = look.error->details();
    if (!details.empty()) details.erase(details.begin());  // the sample's id
    findings_.note(check_name(concat("array_", look.error->code())), Severity::kError, look.error->message(),
                   look.error->hint(), [&] { return place(look, join(details, "; ")); });
    return;
  }
  note_text(look);
  if (look.tail > 0) {
    findings_.note(check_name("padded_codes_tail"), Severity::kWarning, "codes that end in a long repetition",
                   "codes of padding: preprocess with batch size 1, or cut the clips' silence", [&] {
                     return place(look, concat("the last ", look.tail, " codes repeat with period ", look.period));
                   });
  }
  if (look.empty_condition || look.empty_emotion) {
    findings_.note(check_name("empty_features"), Severity::kError, "a condition or emotion vector holds one value only",
                   "compute it again: the prompt says nothing about the voice",
                   [&] { return place(look, look.empty_condition ? "condition" : "emotion vector"); });
  }
  // Pairs of one target share their codes; only another target with equal codes is a double.
  const Dataset& dataset = corpus_.dataset;
  const auto [first, added] = contents_.try_emplace(look.codes_hash, look.sample);
  if (added || dataset.info(look.sample).code_length < 10) return;
  RecordParser one, two;
  const auto target = [&](std::uint32_t sample, RecordParser& parser) {
    return dataset.index().record(dataset.index()[sample], parser).target_codes_path;
  };
  if (target(look.sample, one) == target(first->second, two)) return;
  findings_.note(check_name("duplicate_codes"), Severity::kWarning, "different clips with the same codes",
                 "the same recording twice: keep one of them",
                 [&, &first = first] { return place(look, concat("as ", corpus_.where(first->second))); });
}

void ArrayExamination::note_text(const ArrayLook& look) {
  const std::uint32_t manifest = corpus_.dataset.info(look.sample).manifest;
  ids_[manifest] += look.ids;
  unknown_[manifest] += look.unknown;
  for (const std::string& character : look.uncovered) ++uncovered_[character];
  if (look.special >= 0) {
    findings_.note(check_name("special_ids"), Severity::kError, "start or stop ids inside a text",
                   "texts are stored without them; a tokenizer with other special ids makes them, too",
                   [&] { return place(look, concat("element ", look.special)); });
  }
  compared_ += look.compared;
  differing_ += look.differs;
  if (!look.differs) return;
  findings_.note(check_name("other_tokenizer"), Severity::kWarning,
                 "stored ids differ from what data.tokenizer gives for the text",
                 "use the tokenizer the data was made with; check --repair lets the texts be tokenised anew",
                 [&] { return place(look, look.first_difference); });
}

void ArrayExamination::conclude() {
  if (differing_ * 20 > compared_) {
    findings_.entry(check_name("other_tokenizer"), Severity::kError, "", "").summary +=
        concat(" (", differing_, " of ", compared_, " looked at)");
  }
  std::vector<std::pair<std::uint64_t, std::string>> worst;
  for (const auto& [character, count] : uncovered_) worst.emplace_back(count, character);
  std::sort(worst.begin(), worst.end(),
            [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
  std::string named;
  for (std::size_t i = 0; i < std::min<std::size_t>(worst.size(), 20); ++i) {
    named += concat(i > 0 ? " " : "", worst[i].second, "×", worst[i].first);
  }
  for (std::size_t m = 0; m < ids_.size(); ++m) {
    if (ids_[m] == 0) continue;
    const double share = static_cast<double>(unknown_[m]) / static_cast<double>(ids_[m]);
    corpus_.summaries[m].unknown_share = share;
    if (share <= options_.unknown_warning) continue;
    findings_.note(check_name("unknown_pieces"), share > options_.unknown_error ? Severity::kError : Severity::kWarning,
                   "texts hold characters the tokenizer does not know",
                   "extend the vocabulary (train_gpt_v2 extend-vocab), or leave this manifest out: every <unk> is a "
                   "sound that cannot "
                   "be learned",
                   [&] {
                     return FindingPlace{corpus_.summaries[m].path, 0, "",
                                         concat(fixed(100 * share, 2), " % of the ids are <unk>",
                                                named.empty() ? "" : "; without a piece: ", named)};
                   });
  }
}

}  // namespace train_gpt_v2::doctor
