#pragma once
// The part of ZIP that torch.save uses, read strictly: entries STORED, sizes and checksums from the central directory,
// ZIP64, any prefix of names, data descriptors. Refused: compression, encryption, several disks, overlapping entries,
// repeated names, names with "..", anything before the first entry's own header that the directory does not explain.
//
// All sizes are checked against the mapped file before use; nothing is allocated beyond one small record per entry.
// Errors: CKP001 (damaged), CKP002 (a zip of another kind). Threads: const after construction.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace train_gpt_v2 {

class ZipReader {
 public:
  struct Entry {
    std::string_view name;  // in the mapped file
    std::uint64_t header = 0;
    std::span<const std::byte> payload;
    std::uint32_t crc = 0;
  };

  // `file` is the whole archive and must outlive the reader; `path` is for messages.
  ZipReader(std::span<const std::byte> file, std::string path);

  std::span<const Entry> entries() const { return entries_; }
  const Entry* find(std::string_view name) const;  // nullptr when absent

  // Computes the checksum of this entry, or of all (on up to `threads` threads), and throws on the first that differs.
  void verify(const Entry& entry) const;
  void verify_all(unsigned threads) const;

  // torch can be told to write no checksums (set_crc32_options(False)): all are zero then and nothing is verified.
  bool has_checksums() const { return has_checksums_; }

 private:
  struct Directory {
    std::uint64_t offset = 0, size = 0, count = 0;
  };
  Directory find_directory() const;
  void read_directory(const Directory& directory);
  Entry read_entry(class ByteReader& in, const Directory& directory) const;
  void read_local_header(Entry& entry, std::uint64_t size, const Directory& directory) const;
  void check_overlaps() const;
  [[noreturn]] void damaged(std::string what) const;
  [[noreturn]] void unsupported(std::string what) const;

  std::span<const std::byte> file_;
  std::string path_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string_view, std::size_t> by_name_;
  bool has_checksums_ = false;
};

}  // namespace train_gpt_v2
