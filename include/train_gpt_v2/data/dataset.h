#pragma once
// The pairs of one or several manifests, ready to be loaded: what the sampler plans over and the loader reads.
//
// Opening indexes the manifests, finds missing lengths (from .npy headers, or by tokenising the text) and applies
// data.on_overlong; nothing else of the arrays is read. load() reads one sample and checks everything: lengths against
// the manifest, codes inside [0, number_mel_codes) and neither start nor stop, text ids inside the vocabulary,
// condition [latents, D] and emo_vec [D] finite; or features [frames, 1024].
// Samples are numbered 0..size()-1: first those of the epoch, then those of each replay manifest (groups()).
// Limits (architecture.md §2): text <= max_text_tokens, codes <= max_mel_tokens + max_conditioning_inputs.
// Errors: DAT001..DAT009, TOK003, IO001, IO006. Threads: const members may be called from any thread.

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/batch.h"
#include "train_gpt_v2/data/manifest.h"
#include "train_gpt_v2/data/tokenizer.h"

namespace train_gpt_v2 {

struct SampleInfo {
  std::int64_t text_length = 0, code_length = 0;  // after trimming, without start and stop
  std::uint32_t speaker = 0, language = 0;        // numbers into speakers() and languages()
  std::uint32_t manifest = 0;
  std::uint32_t group = 0;  // 0 = the epoch, k = the k-th replay manifest
};

struct SampleGroup {
  std::uint32_t begin = 0, end = 0;  // sample numbers
  double share = 0;                  // of every window; 0 for the epoch's own samples
};

// Why samples are not used, and how many.
struct DropReason {
  std::string reason;  // "text longer than 600 ids", ...
  std::uint64_t count = 0;
  bool bad = false;                   // counts towards data.max_bad_fraction
  std::vector<std::string> examples;  // the first ten, "file:line: id: why"
  std::vector<DataProblem> problems;  // the same ten
};

class Dataset {
 public:
  // `manifests` form the epoch; `replay` adds groups. The tokenizer may be null when every record has ids.
  Dataset(const std::vector<std::string>& manifests, const std::vector<ReplayOptions>& replay, const DataOptions& data,
          const ModelOptions& model, std::shared_ptr<const Tokenizer> tokenizer = nullptr);
  Dataset(const Dataset&) = delete;
  Dataset& operator=(const Dataset&) = delete;

  std::size_t size() const { return index_.size(); }
  std::size_t epoch_size() const { return groups_[0].end; }
  const std::vector<SampleGroup>& groups() const { return groups_; }
  SampleInfo info(std::uint32_t sample) const;
  std::string id(std::uint32_t sample) const { return index_.id(index_[sample]); }
  std::string place(std::uint32_t sample) const;  // "file:line"
  std::string text(std::uint32_t sample) const;   // as recorded, "" where there are ids alone
  const PairIndex& index() const { return index_; }
  const ModelOptions& model() const { return model_; }

  const std::vector<std::string>& speakers() const { return index_.speakers(); }
  const std::vector<std::string>& languages() const { return index_.languages(); }
  // True when at least one sample of the epoch or of a replay manifest is by this speaker.
  bool has_speaker(std::string_view name) const;

  // Appends the sample to the batch. On an Error the batch is unchanged; the Error names id, manifest line and file.
  void load(std::uint32_t sample, Batch& batch) const;
  // The same; where bad samples are skipped (data.on_bad_sample) and this is one, says why instead of throwing.
  std::optional<std::string> load_or_skip(std::uint32_t sample, Batch& batch) const;

  // The sample with this pair id. DAT009 for an unknown one, one that was left out, or one that two files share.
  std::uint32_t find(std::string_view id) const;

  std::uint64_t records() const { return records_; }  // lines of all manifests
  const std::vector<DropReason>& dropped() const { return dropped_; }
  // Error DAT008 when `bad` of records() are more than data.max_bad_fraction.
  void check_bad_fraction(std::uint64_t bad) const;
  std::uint64_t bad_at_open() const;

  // SHA-256 over the manifests' contents and every setting that changes samples; moving the folder leaves it equal.
  // Replay manifests are not in it: they belong to the order of samples.
  const std::string& fingerprint() const;
  // SHA-256 over contents and shares of the replay manifests; "" without any.
  std::string replay_fingerprint() const;

 private:
  struct Outcome;

  void drop(std::vector<Outcome>& outcomes);
  void find_lengths(std::vector<Outcome>& outcomes);
  void find_length(PairEntry& entry, Outcome& outcome, RecordParser& parser) const;
  void apply_limits(std::vector<Outcome>& outcomes);
  void count_dropped(const std::string& reason, bool bad, std::uint64_t count, const DataProblem* example);
  std::vector<std::int32_t> read_text(const PairEntry& entry, const PairRecord& record) const;
  std::vector<std::int32_t> read_codes(const PairEntry& entry, const PairRecord& record) const;
  void append_condition(const PairEntry& entry, const PairRecord& record, Batch& batch) const;
  void append_features(const PairEntry& entry, const PairRecord& record, Batch& batch) const;
  void build_lookup() const;
  std::string manifest_line(std::size_t manifest) const;  // of a fingerprint

  ModelOptions model_;
  std::string on_overlong_;
  bool skip_bad_ = false;
  double max_bad_fraction_ = 0;
  std::string default_language_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool tokenises_ = false;  // some text comes as text
  std::int64_t text_limit_ = 0, code_limit_ = 0;
  PairIndex index_;
  std::vector<SampleGroup> groups_;
  std::size_t epoch_manifests_ = 0;  // the first of the index; the rest are replay manifests
  std::uint64_t records_ = 0;
  std::vector<DropReason> dropped_;
  std::vector<std::pair<std::uint64_t, std::uint32_t>> dropped_ids_;  // id hash, number into dropped_

  mutable std::once_flag lookup_built_, fingerprint_made_;
  mutable std::vector<std::pair<std::uint64_t, std::uint32_t>> lookup_;  // id hash, sample; sorted
  mutable std::string fingerprint_;
};

// Error TOK003 when the vocabulary and model.number_text_tokens differ.
void check_vocabulary(const Tokenizer& tokenizer, const ModelOptions& model);

}  // namespace train_gpt_v2
