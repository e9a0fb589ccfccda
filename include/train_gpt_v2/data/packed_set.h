#pragma once
// A packed set: everything that pair manifests name, in a few memory-mapped files of one folder (format:
// src/README.md).
//
//   index.bin        header, a row per pair, a row per array, names, checksums
//   manifest_K.jsonl the K-th manifest, byte for byte
//   arrays_K.bin     the arrays, each stored once, from 64-byte boundaries
//
// Opening reads the index and checks it whole (its checksum, every number in it, the size of every file); 1 M pairs
// take some hundredths of a second. Arrays and records are checked against their own checksums when they are first, and
// when they are each time, read; verify() checks all. No file name is taken from the set's content. Errors: DAT030
// damaged, DAT031 of a newer format or without the array asked for, IO001, IO002, IO004. Threads: const members may be
// called from any thread. A Tensor from array() keeps the mapping alive.

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/data/manifest.h"
#include "train_gpt_v2/data/record.h"
#include "train_gpt_v2/io/tensor.h"

namespace train_gpt_v2 {

// Where a pair's language comes from; what stands later may be overruled when the set is named (contract §2).
enum class LanguageSource : std::uint8_t { kRecord, kSuffix, kScript };

// One pair, as it lies in the index. `entry` numbers manifests, speakers and languages within the set.
struct PackedPair {
  static constexpr std::uint32_t kNoArray = UINT32_MAX;

  PairEntry entry;
  std::uint32_t line_bytes = 0, line_crc = 0;
  std::uint32_t arrays[kArrayRoles] = {kNoArray, kNoArray, kNoArray, kNoArray, kNoArray, kNoArray};
  LanguageSource language_source = LanguageSource::kRecord;
  std::uint8_t unused[7] = {};

  std::uint32_t array(ArrayRole role) const { return arrays[static_cast<std::size_t>(role)]; }
};
static_assert(sizeof(PackedPair) == 64);

// One array, as it lies in the index.
struct PackedArray {
  std::uint64_t offset = 0;
  std::uint32_t file = 0, crc = 0;
  std::uint32_t shape[2] = {};
  std::uint8_t type = 0, dimensions = 0;
  std::uint8_t unused[6] = {};
};
static_assert(sizeof(PackedArray) == 32);

class PackedSet : public std::enable_shared_from_this<PackedSet> {
 public:
  struct Manifest {
    std::string path;          // of the copy in the set
    std::string source;        // where it was packed from, for messages only
    std::string language;      // the suffix it was packed with
    std::string content_hash;  // PairIndex::content_hash() of its bytes
    std::uint64_t bytes = 0, pairs = 0;
  };

  static bool is_one(const std::string& path);  // a folder with an index.bin
  static std::shared_ptr<const PackedSet> open(const std::string& folder);

  const std::string& folder() const { return folder_; }
  std::span<const PackedPair> pairs() const { return pairs_; }
  std::span<const PackedArray> arrays() const { return arrays_; }
  const std::vector<Manifest>& manifests() const { return manifests_; }
  const std::vector<std::string>& speakers() const { return speakers_; }
  const std::vector<std::string>& languages() const { return languages_; }
  // "" when every value is as in the source; else the type in which values were rounded: "float16" or "bfloat16".
  const std::string& rounded_to() const { return rounded_to_; }
  std::uint64_t bytes() const;  // of all files

  // The pair whose record begins at this offset of the set's K-th manifest.
  const PackedPair& find(std::uint32_t manifest, std::uint64_t offset) const;
  // DAT030 unless `line` is the pair's record, unchanged.
  void check_record(const PackedPair& pair, std::string_view line) const;

  // Without the data: type and shape alone.
  Tensor array_header(const PackedPair& pair, ArrayRole role) const;
  Tensor array(const PackedPair& pair, ArrayRole role) const;

  // Reads and checks every byte of every file.
  void verify() const;
  // IO008 when a file of arrays was cut short: what was read before this call may have been zeros.
  void check_whole() const;

 private:
  explicit PackedSet(const std::string& folder);
  void read_header();
  void check_arrays() const;
  void check_pairs();
  const PackedArray& row(const PackedPair& pair, ArrayRole role) const;
  std::span<const std::byte> checked_bytes(std::size_t array) const;

  std::string folder_;
  std::unique_ptr<MappedFile> index_;
  std::span<const PackedPair> pairs_;
  std::span<const PackedArray> arrays_;
  std::vector<std::uint64_t> first_pair_;  // of every manifest, and the end
  std::vector<Manifest> manifests_;
  std::vector<std::string> speakers_, languages_;
  std::string rounded_to_;
  std::vector<std::unique_ptr<MappedFile>> files_;                 // arrays_K.bin
  mutable std::unique_ptr<std::atomic<std::uint8_t>[]> verified_;  // per array: its checksum was compared
};

}  // namespace train_gpt_v2
