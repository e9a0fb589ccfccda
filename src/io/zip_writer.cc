#include "zip_writer.h"

#include <algorithm>
#include <cstring>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/hash.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kFull32 = 0xFFFFFFFF;
constexpr std::uint64_t kAlignment = 64;
constexpr std::uint64_t kLocalSize = 30, kEndSize = 22, kEnd64Size = 56, kLocator64Size = 20;
constexpr std::uint16_t kFlags = 0x0808;  // data descriptor, UTF-8 names
constexpr std::uint16_t kDate = 0x0021;   // 1 January 1980: equal content gives equal bytes
constexpr std::size_t kChunk = 1 << 20;   // checksummed, then written while still in the cache

template <typename Number>
void put(std::string& out, Number value) {
  char raw[sizeof value];
  std::memcpy(raw, &value, sizeof value);
  out.append(raw, sizeof value);
}

void put16(std::string& out, std::uint64_t value) {
  put(out, static_cast<std::uint16_t>(value));
}
void put32(std::string& out, std::uint64_t value) {
  put(out, static_cast<std::uint32_t>(std::min(value, kFull32)));
}
void put64(std::string& out, std::uint64_t value) {
  put(out, value);
}

// torch puts a ZIP64 field into a local header when the sizes or the offset of that header do not fit 32 bits, and its
// offset calculation (config.load.calculate_storage_offsets) counts on it.
std::uint64_t local_zip64_size(std::uint64_t size, std::uint64_t header) {
  if (size < kFull32 && header < kFull32) return 0;
  return 4 + (size >= kFull32 ? 16 : 0) + (header >= kFull32 ? 8 : 0);
}

}  // namespace

bool ZipWriter::Record::large() const {
  return size >= kFull32 || header >= kFull32;
}
std::uint64_t ZipWriter::Record::end() const {
  return content + size + (large() ? 24 : 16);
}

void ZipWriter::add(std::string name, std::span<const std::byte> payload) {
  Record record;
  record.name = std::move(name);
  record.payload = payload;
  record.size = payload.size();
  place(std::move(record));
}

void ZipWriter::add_late(std::string name, std::uint64_t size,
                         std::function<std::string(std::span<const std::uint32_t>)> make) {
  Record record;
  record.name = std::move(name);
  record.make = std::move(make);
  record.size = size;
  place(std::move(record));
}

void ZipWriter::place(Record record) {
  record.header = records_.empty() ? 0 : records_.back().end();
  const std::uint64_t unpadded =
      record.header + kLocalSize + record.name.size() + 4 + local_zip64_size(record.size, record.header);
  record.content = (unpadded + kAlignment - 1) / kAlignment * kAlignment;
  records_.push_back(std::move(record));
}

std::uint64_t ZipWriter::file_size() const {
  std::uint64_t size = records_.empty() ? 0 : records_.back().end();
  for (const Record& record : records_) size += central_header(record, 0).size();
  return size + kEnd64Size + kLocator64Size + kEndSize;
}

std::string ZipWriter::local_header(const Record& record) const {
  std::string out;
  const std::uint64_t zip64 = local_zip64_size(record.size, record.header);
  const std::uint64_t extra = record.content - record.header - kLocalSize - record.name.size();
  put32(out, 0x04034b50);
  put16(out, record.large() ? 45 : 20);
  put16(out, kFlags);
  put16(out, 0);  // stored
  put16(out, 0);
  put16(out, kDate);
  put32(out, 0);  // checksum and sizes follow in the descriptor
  put32(out, record.size >= kFull32 ? kFull32 : 0);
  put32(out, record.size >= kFull32 ? kFull32 : 0);
  put16(out, record.name.size());
  put16(out, extra);
  out += record.name;
  if (zip64 > 0) {
    put16(out, 1);
    put16(out, zip64 - 4);
    for (std::uint64_t i = 4; i < zip64; i += 8) put64(out, 0);
  }
  const std::uint64_t padding = extra - zip64 - 4;
  out += "FB";
  put16(out, padding);
  return out.append(padding, 'Z');
}

std::string ZipWriter::descriptor(const Record& record, std::uint32_t crc) const {
  std::string out;
  put32(out, 0x08074b50);
  put32(out, crc);
  for (int i = 0; i < 2; ++i) {
    if (record.large()) {
      put64(out, record.size);
    } else {
      put32(out, record.size);
    }
  }
  return out;
}

std::string ZipWriter::central_header(const Record& record, std::uint32_t crc) const {
  std::string extra;
  if (record.large()) {
    std::string fields;
    if (record.size >= kFull32) {
      put64(fields, record.size);
      put64(fields, record.size);
    }
    if (record.header >= kFull32) put64(fields, record.header);
    put16(extra, 1);
    put16(extra, fields.size());
    extra += fields;
  }
  std::string out;
  put32(out, 0x02014b50);
  put16(out, record.large() ? 45 : 20);
  put16(out, record.large() ? 45 : 20);
  put16(out, kFlags);
  put16(out, 0);
  put16(out, 0);
  put16(out, kDate);
  put32(out, crc);
  put32(out, record.size);
  put32(out, record.size);
  put16(out, record.name.size());
  put16(out, extra.size());
  put16(out, 0);  // comment
  put16(out, 0);  // disk
  put16(out, 0);  // attributes
  put32(out, 0);
  put32(out, record.header);
  return out + record.name + extra;
}

std::string ZipWriter::end_records(std::uint64_t directory_offset, std::uint64_t directory_size) const {
  const std::uint64_t count = records_.size();
  std::string out;
  put32(out, 0x06064b50);
  put64(out, kEnd64Size - 12);
  put16(out, 45);
  put16(out, 45);
  put32(out, 0);
  put32(out, 0);
  put64(out, count);
  put64(out, count);
  put64(out, directory_size);
  put64(out, directory_offset);
  put32(out, 0x07064b50);
  put32(out, 0);
  put64(out, directory_offset + directory_size);
  put32(out, 1);
  put32(out, 0x06054b50);
  put16(out, 0);
  put16(out, 0);
  put16(out, std::min<std::uint64_t>(count, 0xFFFF));
  put16(out, std::min<std::uint64_t>(count, 0xFFFF));
  put32(out, directory_size);
  put32(out, directory_offset);
  put16(out, 0);
  return out;
}

void ZipWriter::write(AtomicFile& file) {
  std::vector<std::uint32_t> checksums;
  for (const Record& record : records_) {
    TGV2_CHECK(file.size() == record.header);
    file.write(local_header(record));
    TGV2_CHECK(file.size() == record.content);
    std::string made;
    std::span<const std::byte> payload = record.payload;
    if (record.make) {
      made = record.make(checksums);
      TGV2_CHECK(made.size() == record.size);
      payload = std::as_bytes(std::span(made));
    }
    std::uint32_t crc = 0;
    for (std::size_t at = 0; at < payload.size(); at += kChunk) {
      const auto chunk = payload.subspan(at, std::min(kChunk, payload.size() - at));
      crc = crc32(chunk, crc);
      file.write(chunk.data(), chunk.size());
    }
    file.write(descriptor(record, crc));
    checksums.push_back(crc);
  }
  std::string directory;
  for (std::size_t i = 0; i < records_.size(); ++i) directory += central_header(records_[i], checksums[i]);
  const std::uint64_t offset = file.size();
  file.write(directory);
  file.write(end_records(offset, directory.size()));
}

}  // namespace train_gpt_v2
