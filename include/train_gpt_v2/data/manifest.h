#pragma once
// The index over pair manifests: 24 bytes per pair plus interned speaker and language names. Everything else (ids,
// paths, text) is read again from the mapped file when a sample is loaded.
//
// A manifest is named as PATH, PATH::LANG, PATH@LANG or PATH=LANG; the language applies to records that state none.
// PATH may be the folder of a packed set (packed_set.h), which stands for the manifests it was packed from. A pair's
// language: record > suffix > the default given > script of its text (contract §2). Errors: DAT001 (a malformed record,
// with file, line, field and value), DAT002 (single-sample manifest), DAT030/DAT031 (packed sets), IO001/IO002/IO004.
// With skip_bad, malformed records are left out and kept as problems instead. A single-sample manifest always throws.
// Threads: adding is for one thread (it uses several itself); all const members may be called from any thread.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/data/record.h"
#include "train_gpt_v2/io/tensor.h"

namespace train_gpt_v2 {

class PackedSet;

struct ManifestSpec {
  std::string path;
  std::string language;  // canonical, "" when the spec has no suffix
};

// A file or folder that exists under the whole text wins over a suffix.
ManifestSpec parse_manifest_spec(std::string_view spec);

struct PairEntry {
  static constexpr std::uint16_t kUnknownLength = 0xFFFF;
  static constexpr std::uint16_t kMaxLength = 0xFFFE;  // longer ones are stored as this: no model takes them

  std::uint64_t place = 0;  // offset of the line (40 bits), manifest (16 bits), language (8 bits)
  std::uint64_t id_hash = 0;
  std::uint32_t speaker = 0;
  std::uint16_t text_length = kUnknownLength;
  std::uint16_t code_length = kUnknownLength;

  std::uint64_t offset() const { return place & ((1ULL << 40) - 1); }
  std::uint32_t manifest() const { return static_cast<std::uint32_t>(place >> 40) & 0xFFFF; }
  std::uint32_t language() const { return static_cast<std::uint32_t>(place >> 56); }
};
static_assert(sizeof(PairEntry) == 24);

std::uint64_t hash_id(std::string_view id);

// Identifies a manifest's content: SHA-256 of the SHA-256 of every 8 MiB, so that all cores can take part.
std::string content_hash(std::string_view bytes);

// A record or sample that cannot be used.
struct DataProblem {
  std::string code;  // the error code it would be thrown with
  std::string file;
  long line = 0;       // 0 = unknown
  std::string sample;  // pair id, "" when unreadable
  std::string message;
  std::vector<std::string> details;
  std::string fix;

  Error error() const;
  std::string text() const;  // one line for the log: "file:line: sample: message"
};

class PairIndex {
 public:
  static constexpr std::size_t kProblemsKept = 100;

  struct Settings {
    enum class Needs { kNothing, kCondition, kFeatures };
    std::string default_language;
    Needs needs = Needs::kNothing;  // which conditioning files a record must name
    bool text_needs_ids = false;    // no tokenizer: a record without target_text_ids_path is malformed
    bool skip_bad = false;
    unsigned threads = 0;  // 0 = as many as there are cores, at most 8
  };

  explicit PairIndex(Settings settings);

  // Appends the records of one manifest or packed set; returns how many lines it holds (blank ones not counted).
  std::uint64_t add(const std::string& spec);

  std::size_t size() const { return entries_.size(); }
  const PairEntry& operator[](std::size_t i) const { return entries_[i]; }
  std::vector<PairEntry>& entries() { return entries_; }
  const std::vector<PairEntry>& entries() const { return entries_; }

  // Reads the record again. `parser` owns the views of the result.
  PairRecord record(const PairEntry& entry, RecordParser& parser) const;
  std::string id(const PairEntry& entry) const;
  const std::string& file(const PairEntry& entry) const { return files_[entry.manifest()].path; }
  long line(const PairEntry& entry) const;  // 1-based, 0 when the file was cut short; counts newlines
  // A path of a record, resolved against its manifest's folder. In a packed set only a name.
  std::string resolve(const PairEntry& entry, std::string_view path) const;
  // One array of the record, from its .npy file or from the packed set; and the same with type and shape alone.
  Tensor array(const PairEntry& entry, const PairRecord& record, ArrayRole role) const;
  Tensor array_header(const PairEntry& entry, const PairRecord& record, ArrayRole role) const;
  // After the use of what record() and array() gave: IO008 when the files behind it were cut short meanwhile.
  void check_whole(const PairEntry& entry) const;
  // For messages: where that array lies.
  std::string array_place(const PairEntry& entry, const PairRecord& record, ArrayRole role) const;

  std::size_t manifests() const { return files_.size(); }
  const std::string& manifest_path(std::size_t i) const { return files_[i].path; }
  const std::string& manifest_language(std::size_t i) const { return files_[i].language; }
  std::string_view manifest_bytes(std::size_t i) const;
  bool is_packed(std::size_t i) const { return files_[i].set != nullptr; }
  // content_hash() of the manifest, with what a packed set changed in the arrays' values.
  std::string manifest_identity(std::size_t i) const;
  const std::vector<std::string>& speakers() const { return speakers_; }
  const std::vector<std::string>& languages() const { return languages_; }

  std::uint64_t bad_records() const { return bad_records_; }
  const std::vector<DataProblem>& problems() const { return problems_; }  // the first kProblemsKept

 private:
  struct File {
    std::string path, folder, language;
    std::unique_ptr<MappedFile> map;
    std::shared_ptr<const PackedSet> set;  // null for a manifest of its own
    std::uint32_t number_in_set = 0;
  };
  struct Chunk;

  bool usable(const PairRecord& record, RecordProblem& problem) const;
  void index_chunk(const File& file, std::uint32_t number, Chunk& chunk) const;
  void merge(std::vector<Chunk>& chunks, const File& file);
  std::uint64_t add_packed(const ManifestSpec& spec);
  bool serves(const PackedSet& set, std::size_t pair, RecordProblem& problem) const;
  void stop_at_bad_records(std::size_t first_problem, std::uint64_t bad_before, bool single_sample) const;
  void refuse_duplicates(std::size_t first) const;
  std::string_view line_at(const PairEntry& entry, std::size_t& readable) const;

  Settings settings_;
  std::vector<File> files_;
  std::vector<PairEntry> entries_;
  std::vector<std::string> speakers_, languages_;
  std::vector<DataProblem> problems_;
  std::uint64_t bad_records_ = 0;
};

}  // namespace train_gpt_v2
