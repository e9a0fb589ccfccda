#include "zip_reader.h"

#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "byte_reader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint32_t kLocalHeader = 0x04034b50, kCentralHeader = 0x02014b50, kEnd = 0x06054b50;
constexpr std::uint32_t kEnd64 = 0x06064b50, kLocator64 = 0x07064b50;
constexpr std::uint64_t kEndSize = 22, kLocator64Size = 20, kEnd64Size = 56, kMaxComment = 65535;
constexpr std::uint64_t kMaxEntries = 50'000;  // the released model with Adam and EMA has about 3,400
constexpr std::uint64_t kMaxName = 256;
constexpr std::uint16_t kFull16 = 0xFFFF;
constexpr std::uint32_t kFull32 = 0xFFFFFFFF;
constexpr std::uint16_t kRefusedFlags = 1 | 1 << 5 | 1 << 6 | 1 << 13;  // encrypted, patched, masked

bool plain_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxName || !valid_utf8(name) || name.front() == '/') return false;
  if (name.find('\0') != std::string_view::npos || name.find('\\') != std::string_view::npos) return false;
  for (const std::string& part : split(name, '/')) {
    if (part == "..") return false;
  }
  return true;
}

// Names come from outside: only what is safe to print.
std::string printable(std::string_view name) {
  std::string text;
  for (const char c : name.substr(0, 80)) text += c >= ' ' && c < 127 ? c : '?';
  return "\"" + text + "\"";
}

}  // namespace

void ZipReader::damaged(std::string what) const {
  throw Error("CKP001", "the file is damaged: " + what)
      .where(path_)
      .fix("copy it again from where it was written, or use an older checkpoint");
}

void ZipReader::unsupported(std::string what) const {
  throw Error("CKP002", std::move(what)).where(path_).fix("load it in Python and write it again with torch.save");
}

ZipReader::ZipReader(std::span<const std::byte> file, std::string path) : file_(file), path_(std::move(path)) {
  read_directory(find_directory());
  check_overlaps();
}

ZipReader::Directory ZipReader::find_directory() const {
  if (file_.size() < kEndSize) damaged("it ends before its table of contents");
  const std::uint64_t last = file_.size() - kEndSize;
  const std::uint64_t first = last > kMaxComment ? last - kMaxComment : 0;
  std::uint64_t at = last + 1;
  while (at-- > first) {
    ByteReader in(file_, at);
    if (in.u32() == kEnd && (in.take(16), in.u16()) == file_.size() - at - kEndSize) break;
    if (at == first) damaged("it has no table of contents at its end (truncated?)");
  }
  ByteReader in(file_, at + 4);
  const std::uint16_t disk = in.u16(), directory_disk = in.u16(), count_here = in.u16(), count = in.u16();
  const std::uint32_t size = in.u32(), offset = in.u32();
  if (disk != 0 || directory_disk != 0 || count_here != count) damaged("its table of contents spans several disks");
  Directory found{offset, size, count};
  std::uint64_t directory_end = at;
  if (at >= kLocator64Size + kEnd64Size && ByteReader(file_, at - kLocator64Size).u32() == kLocator64) {
    ByteReader locator(file_, at - kLocator64Size + 4);
    const std::uint32_t end_disk = locator.u32();
    const std::uint64_t end_offset = locator.u64();
    const std::uint32_t disks = locator.u32();
    ByteReader end(file_, end_offset);
    const std::uint32_t signature = end.u32();
    const std::uint64_t record = end.u64();
    end.u32();  // versions
    const std::uint32_t disk64 = end.u32(), directory_disk64 = end.u32();
    const std::uint64_t here64 = end.u64(), count64 = end.u64(), size64 = end.u64(), offset64 = end.u64();
    if (!end.ok() || end_disk != 0 || disks > 1 || signature != kEnd64 || disk64 != 0 || directory_disk64 != 0 ||
        here64 != count64 || record != kEnd64Size - 12 || end_offset != at - kLocator64Size - kEnd64Size) {
      damaged("its ZIP64 table of contents does not hold together");
    }
    if ((count != kFull16 && count != count64) || (size != kFull32 && size != size64) ||
        (offset != kFull32 && offset != offset64)) {
      damaged("its two tables of contents disagree");
    }
    found = {offset64, size64, count64};
    directory_end = end_offset;
  }
  if (found.count > kMaxEntries) damaged(concat("it claims ", found.count, " entries, ", kMaxEntries, " are allowed"));
  if (found.size > directory_end || found.offset != directory_end - found.size) {
    damaged("its table of contents lies outside the file");
  }
  return found;
}

void ZipReader::read_directory(const Directory& directory) {
  // 46 bytes are the least an entry takes, so a false count cannot make this reserve much.
  entries_.reserve(std::min(directory.count, directory.size / 46));
  ByteReader in(file_.first(directory.offset + directory.size), directory.offset);
  for (std::uint64_t i = 0; i < directory.count; ++i) {
    entries_.push_back(read_entry(in, directory));
    if (!by_name_.emplace(entries_.back().name, entries_.size() - 1).second) {
      damaged(concat("the name ", printable(entries_.back().name), " occurs twice"));
    }
    has_checksums_ = has_checksums_ || entries_.back().crc != 0;
  }
  if (in.left() != 0) damaged("its table of contents has another length than it says");
}

ZipReader::Entry ZipReader::read_entry(ByteReader& in, const Directory& directory) const {
  const std::uint32_t signature = in.u32();
  in.u32();  // versions
  const std::uint16_t flags = in.u16(), method = in.u16();
  in.u32();  // time and date
  Entry entry;
  entry.crc = in.u32();
  std::uint64_t stored = in.u32(), size = in.u32();
  const std::uint16_t name_size = in.u16(), extra_size = in.u16(), comment_size = in.u16(), disk = in.u16();
  in.take(6);  // attributes
  entry.header = in.u32();
  entry.name = in.text(name_size);
  ByteReader extra(in.take(extra_size));
  in.take(comment_size);
  if (!in.ok() || signature != kCentralHeader) damaged("its table of contents is cut off or overwritten");
  if (!plain_name(entry.name)) damaged(concat("an entry is called ", printable(entry.name)));
  while (extra.left() >= 4) {
    const std::uint16_t id = extra.u16(), length = extra.u16();
    ByteReader field(extra.take(length));
    if (id != 1) continue;
    if (size == kFull32) size = field.u64();
    if (stored == kFull32) stored = field.u64();
    if (entry.header == kFull32) entry.header = field.u64();
    if (!field.ok()) damaged(concat("the ZIP64 sizes of ", printable(entry.name), " are cut off"));
  }
  if (!extra.ok()) damaged(concat("the extra field of ", printable(entry.name), " is cut off"));
  if (flags & kRefusedFlags) unsupported(concat("entry ", printable(entry.name), " is encrypted"));
  if (method != 0) {
    unsupported(concat("entry ", printable(entry.name), " is compressed; torch.save never compresses"));
  }
  if (stored != size || disk != 0) damaged(concat("the sizes of ", printable(entry.name), " disagree"));
  read_local_header(entry, size, directory);
  return entry;
}

void ZipReader::read_local_header(Entry& entry, std::uint64_t size, const Directory& directory) const {
  ByteReader in(file_.first(directory.offset), entry.header);
  const std::uint32_t signature = in.u32();
  in.u16();  // version
  const std::uint16_t flags = in.u16(), method = in.u16();
  in.take(16);  // time, date, checksum, sizes: torch leaves the last three zero here
  const std::uint16_t name_size = in.u16(), extra_size = in.u16();
  const std::string_view name = in.text(name_size);
  in.take(extra_size);
  entry.payload = in.take(size);
  if (!in.ok()) damaged(concat("entry ", printable(entry.name), " reaches beyond the file"));
  if (signature != kLocalHeader || name != entry.name || method != 0 || (flags & kRefusedFlags) != 0) {
    damaged(concat("the header of ", printable(entry.name), " does not match the table of contents"));
  }
}

void ZipReader::check_overlaps() const {
  std::vector<const Entry*> order;
  order.reserve(entries_.size());
  for (const Entry& entry : entries_) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) { return a->header < b->header; });
  const std::byte* end = file_.data();
  for (const Entry* entry : order) {
    if (file_.data() + entry->header < end) damaged(concat("entry ", printable(entry->name), " overlaps another"));
    // Of an empty entry, span::data still points behind its header.
    end = entry->payload.data() + entry->payload.size();
  }
}

const ZipReader::Entry* ZipReader::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &entries_[found->second];
}

void ZipReader::verify(const Entry& entry) const {
  if (has_checksums_ && crc32(entry.payload) != entry.crc) {
    damaged(concat("the content of ", printable(entry.name), " does not match its checksum"));
  }
}

void ZipReader::verify_all(unsigned threads) const {
  if (!has_checksums_) return;
  // Pieces, not entries, are shared out: one embedding table may be a third of the file.
  constexpr std::size_t kPiece = 8 << 20;
  struct Piece {
    std::size_t entry;
    std::size_t offset;
    std::uint32_t crc;
  };
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    std::size_t offset = 0;
    do {
      pieces.push_back({i, offset, 0});
      offset += kPiece;
    } while (offset < entries_[i].payload.size());
  }
  const auto piece_of = [&](const Piece& piece) {
    const auto payload = entries_[piece.entry].payload;
    return payload.subspan(piece.offset, std::min(kPiece, payload.size() - piece.offset));
  };
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < pieces.size(); i = next++) pieces[i].crc = crc32(piece_of(pieces[i]));
  };
  std::vector<std::jthread> helpers;
  const std::size_t useful = std::min<std::size_t>(threads, file_.size() / kPiece);
  for (std::size_t i = 1; i < useful; ++i) helpers.emplace_back(work);
  work();
  helpers.clear();  // joins
  for (std::size_t i = 0; i < pieces.size();) {
    const std::size_t entry = pieces[i].entry;
    std::uint32_t crc = pieces[i].crc;
    for (++i; i < pieces.size() && pieces[i].entry == entry; ++i) {
      crc = static_cast<std::uint32_t>(
          ::crc32_combine(crc, pieces[i].crc, static_cast<z_off_t>(piece_of(pieces[i]).size())));
    }
    if (crc != entries_[entry].crc) {
      damaged(concat("the content of ", printable(entries_[entry].name), " does not match its checksum"));
    }
  }
}

}  // namespace train_gpt_v2
