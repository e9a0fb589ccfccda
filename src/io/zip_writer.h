#pragma once
// Writes the ZIP layout of torch.save: STORED entries behind data descriptors, payloads aligned to 64 bytes through an
// "FB" extra field, ZIP64 records where needed. The layout is planned first, so the size is known before a byte is
// written; payloads are streamed from where they lie, with their checksum computed on the way.
// Errors: those of AtomicFile. Threads: none.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace train_gpt_v2 {

class AtomicFile;

class ZipWriter {
 public:
  // Entries in file order; the bytes must stay where they are until write() returns.
  void add(std::string name, std::span<const std::byte> payload);
  // An entry whose content depends on the checksums of all before it; `make` must give exactly `size` bytes.
  void add_late(std::string name, std::uint64_t size, std::function<std::string(std::span<const std::uint32_t>)> make);

  std::uint64_t file_size() const;
  void write(AtomicFile& file);

 private:
  struct Record {
    std::string name;
    std::span<const std::byte> payload;
    std::function<std::string(std::span<const std::uint32_t>)> make;
    std::uint64_t size = 0;
    std::uint64_t header = 0;   // offset of the local header
    std::uint64_t content = 0;  // offset of the payload
    bool large() const;         // sizes or offset need 64 bits
    std::uint64_t end() const;
  };
  void place(Record record);
  std::string local_header(const Record& record) const;
  std::string descriptor(const Record& record, std::uint32_t crc) const;
  std::string central_header(const Record& record, std::uint32_t crc) const;
  std::string end_records(std::uint64_t directory_offset, std::uint64_t directory_size) const;

  std::vector<Record> records_;
};

}  // namespace train_gpt_v2
