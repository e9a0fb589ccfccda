#include "train_gpt_v2/data/packed_set.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "packed_format.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/lost_pages.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/normalizer.h"
#include "train_gpt_v2/data/parallel.h"

namespace train_gpt_v2 {
namespace {

constexpr const char* kPackAgain = "pack the manifests again; inspect DIR --verify tells what else is damaged";

[[noreturn]] void damaged(const std::string& file, std::string what) {
  throw Error("DAT030", std::move(what)).where(file).fix(kPackAgain);
}

std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Takes lines from the front of a text that ends with a newline.
class Lines {
 public:
  Lines(std::string_view text, const std::string& file) : text_(text), file_(file) {}

  std::string_view next() {
    const std::size_t end = text_.find('\n');
    if (end == std::string_view::npos) damaged(file_, "the index lacks names");
    const std::string_view line = text_.substr(0, end);
    text_.remove_prefix(end + 1);
    return line;
  }
  std::uint64_t number() {
    const std::string_view line = next();
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
    if (error != std::errc() || end != line.data() + line.size()) damaged(file_, "the index holds a malformed number");
    return value;
  }
  bool empty() const { return text_.empty(); }

 private:
  std::string_view text_;
  const std::string& file_;
};

std::uint64_t array_bytes(const PackedArray& array) {
  const std::uint64_t columns = array.dimensions == 2 ? array.shape[1] : 1;
  return array.shape[0] * columns * dtype_size(kPackedTypes[array.type - 1]);
}

}  // namespace

std::uint32_t tables_checksum(std::string_view bytes) {
  const std::size_t pieces = (bytes.size() + kCrcPiece - 1) / kCrcPiece;
  std::vector<std::uint32_t> sums(pieces);
  in_parallel(pieces, 1, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) sums[i] = crc32(as_bytes(bytes.substr(i * kCrcPiece, kCrcPiece)));
  });
  return crc32(std::as_bytes(std::span(sums)));
}

std::uint32_t header_checksum(PackedHeader header) {
  header.header_crc = 0;
  return crc32(std::as_bytes(std::span(&header, 1)));
}

bool PackedSet::is_one(const std::string& path) {
  return directory_exists(path) && file_exists(packed_index(path));
}

std::shared_ptr<const PackedSet> PackedSet::open(const std::string& folder) {
  return std::shared_ptr<const PackedSet>(new PackedSet(folder));
}

PackedSet::PackedSet(const std::string& folder) : folder_(absolute_path(folder)) {
  index_ = std::make_unique<MappedFile>(packed_index(folder_));
  read_header();
  check_arrays();
  check_pairs();
  verified_ = std::make_unique<std::atomic<std::uint8_t>[]>(arrays_.size());
}

void PackedSet::read_header() {
  const std::string& path = index_->path();
  const auto bytes = index_->bytes();
  PackedHeader header;
  if (bytes.size() < sizeof header) damaged(path, "the index is shorter than its header");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::string_view(header.magic, sizeof header.magic) != kPackedMagic)
    damaged(path, "this is no index of a packed set");
  if (header_checksum(header) != header.header_crc) damaged(path, "the header's checksum is wrong");
  if (header.version > kPackedVersion) {
    throw Error("DAT031",
                concat("the packed set has format ", header.version, "; this program reads up to ", kPackedVersion))
        .where(path)
        .fix("update train_gpt_v2, or pack the manifests again");
  }
  // Every count is bounded by the size of the file before anything is multiplied or allocated.
  const std::uint64_t body = bytes.size() - sizeof header;
  if (header.index_bytes != bytes.size() || header.pairs > body / sizeof(PackedPair) ||
      header.arrays > body / sizeof(PackedArray) || header.names_bytes > body ||
      header.pairs * sizeof(PackedPair) + header.arrays * sizeof(PackedArray) + header.names_bytes != body) {
    damaged(path, concat("the index has ", bytes.size(), " bytes; its header says ", header.index_bytes));
  }
  if (header.manifests > kMaxPackedFiles || header.array_files > kMaxPackedFiles || header.speakers > kMaxNames ||
      header.languages > 256 || header.arrays > UINT32_MAX - 1 || header.pairs > UINT32_MAX) {
    damaged(path, "a count in the header is beyond its limit");
  }
  const std::string_view tables(reinterpret_cast<const char*>(bytes.data()) + sizeof header, body);
  if (tables_checksum(tables) != header.tables_crc) damaged(path, "the index's checksum is wrong");
  const char* at = tables.data();
  pairs_ = {reinterpret_cast<const PackedPair*>(at), header.pairs};
  at += pairs_.size_bytes();
  arrays_ = {reinterpret_cast<const PackedArray*>(at), header.arrays};
  at += arrays_.size_bytes();

  Lines lines({at, header.names_bytes}, path);
  for (std::uint64_t k = 0; k < header.manifests; ++k) {
    Manifest manifest;
    manifest.path = packed_manifest(folder_, k);
    manifest.content_hash = lines.next();
    manifest.bytes = lines.number();
    manifest.pairs = lines.number();
    manifest.language = lines.next();
    manifest.source = lines.next();
    if (!manifest.language.empty() && canonical_language(manifest.language) != manifest.language) {
      damaged(path, "the index holds a malformed language");
    }
    manifests_.push_back(std::move(manifest));
  }
  for (std::uint64_t k = 0; k < header.array_files; ++k) {
    const std::uint64_t size = lines.number();
    files_.push_back(std::make_unique<MappedFile>(packed_arrays(folder_, k)));
    mark_lost_pages(*files_.back());
    if (files_.back()->bytes().size() != size) {
      damaged(files_.back()->path(),
              concat("the file has ", files_.back()->bytes().size(), " bytes instead of ", size));
    }
  }
  for (std::uint64_t k = 0; k < header.speakers; ++k) speakers_.emplace_back(lines.next());
  for (std::uint64_t k = 0; k < header.languages; ++k) languages_.emplace_back(lines.next());
  rounded_to_ = lines.next();
  if (!lines.empty()) damaged(path, "the index holds more names than it says");
}

// Arrays lie one behind the other, each from the next aligned place, in one file after another.
void PackedSet::check_arrays() const {
  std::uint64_t file = 0, next = 0, end = 0;
  for (const PackedArray& array : arrays_) {
    if (file < files_.size() && array.file == file + 1 && end == files_[file]->bytes().size()) {
      ++file;
      next = 0;
    }
    const bool known = array.type >= 1 && array.type <= std::size(kPackedTypes) &&
                       (array.dimensions == 1 || array.dimensions == 2) && array.shape[0] <= kMaxArrayRows &&
                       array.shape[1] <= kMaxArrayColumns && file < files_.size() && array.file == file &&
                       array.offset == next;
    end = known ? next + array_bytes(array) : 0;
    if (!known || end > files_[file]->bytes().size()) {
      damaged(index_->path(), concat("row ", &array - arrays_.data(), " of the arrays is malformed"));
    }
    next = (end + kPackedAlignment - 1) / kPackedAlignment * kPackedAlignment;
  }
  if (files_.size() != (arrays_.empty() ? 0 : file + 1) || (!files_.empty() && files_[file]->bytes().size() != end)) {
    damaged(index_->path(), "the files of arrays hold more than the index lists");
  }
}

// Pairs lie manifest by manifest, in the order of their records; find() and the reader of records rely on it.
void PackedSet::check_pairs() {
  const std::size_t manifests = manifests_.size();
  std::vector<std::uint64_t>& first = first_pair_;
  first.push_back(0);
  for (const Manifest& manifest : manifests_)
    first.push_back(first.back() + std::min<std::uint64_t>(manifest.pairs, UINT32_MAX));
  if (first.back() != pairs_.size()) damaged(index_->path(), "the manifests' counts do not add up to the pairs");
  for (std::size_t m = 0; m < manifests; ++m) {
    if (file_size(manifests_[m].path) != manifests_[m].bytes) {
      damaged(manifests_[m].path,
              concat("the file does not have the ", manifests_[m].bytes, " bytes it was packed with"));
    }
    const std::size_t begin = first[m], count = first[m + 1] - begin;
    in_parallel(count, 65536, [&](std::size_t, std::size_t from, std::size_t to) {
      for (std::size_t i = begin + from; i < begin + to; ++i) {
        const PackedPair& pair = pairs_[i];
        const PairEntry& entry = pair.entry;
        const std::uint64_t end = entry.offset() + pair.line_bytes;
        bool good = entry.manifest() == m && pair.line_bytes <= kMaxRecordBytes && end <= manifests_[m].bytes &&
                    (i == begin || entry.offset() > pairs_[i - 1].entry.offset()) && entry.speaker < speakers_.size() &&
                    entry.language() < languages_.size() && pair.language_source <= LanguageSource::kScript &&
                    pair.array(ArrayRole::kCodes) != PackedPair::kNoArray;
        for (const std::uint32_t array : pair.arrays) good &= array == PackedPair::kNoArray || array < arrays_.size();
        if (!good) damaged(index_->path(), concat("row ", i, " of the pairs is malformed"));
      }
    });
  }
}

std::uint64_t PackedSet::bytes() const {
  std::uint64_t total = index_->bytes().size();
  for (const Manifest& manifest : manifests_) total += manifest.bytes;
  for (const auto& file : files_) total += file->bytes().size();
  return total;
}

const PackedPair& PackedSet::find(std::uint32_t manifest, std::uint64_t offset) const {
  const auto begin = pairs_.begin() + static_cast<std::ptrdiff_t>(first_pair_[manifest]);
  const auto end = pairs_.begin() + static_cast<std::ptrdiff_t>(first_pair_[manifest + 1]);
  const auto found =
      std::partition_point(begin, end, [&](const PackedPair& pair) { return pair.entry.offset() < offset; });
  TGV2_CHECK(found != end && found->entry.offset() == offset);
  return *found;
}

void PackedSet::check_record(const PackedPair& pair, std::string_view line) const {
  if (line.size() == pair.line_bytes && crc32(as_bytes(line)) == pair.line_crc) return;
  damaged(manifests_[pair.entry.manifest()].path,
          concat("the record at byte ", pair.entry.offset(), " is not the one that was packed"));
}

const PackedArray& PackedSet::row(const PackedPair& pair, ArrayRole role) const {
  const std::uint32_t number = pair.array(role);
  if (number == PackedPair::kNoArray) {
    throw Error("DAT031", "the packed set was made without this array")
        .where(folder_)
        .fix("pack again with --conditioning both, or name the manifests themselves");
  }
  return arrays_[number];
}

std::span<const std::byte> PackedSet::checked_bytes(std::size_t number) const {
  const PackedArray& array = arrays_[number];
  const MappedFile& file = *files_[array.file];
  const auto bytes = file.bytes().subspan(array.offset, array_bytes(array));
  check_not_cut(file);
  if (verified_[number].load(std::memory_order_relaxed) == 0) {
    const bool whole = crc32(bytes) == array.crc;
    check_lost_pages(file);
    if (!whole) {
      damaged(file.path(),
              concat("the checksum of array ", number, " (", bytes.size(), " bytes at ", array.offset, ") is wrong"));
    }
    verified_[number].store(1, std::memory_order_relaxed);
  }
  return bytes;
}

Tensor PackedSet::array_header(const PackedPair& pair, ArrayRole role) const {
  const PackedArray& array = row(pair, role);
  Tensor tensor;
  tensor.dtype = kPackedTypes[array.type - 1];
  tensor.shape.assign(array.shape, array.shape + array.dimensions);
  tensor.strides = array.dimensions == 2 ? std::vector<std::int64_t>{array.shape[1], 1} : std::vector<std::int64_t>{1};
  return tensor;
}

Tensor PackedSet::array(const PackedPair& pair, ArrayRole role) const {
  Tensor tensor = array_header(pair, role);
  tensor.data = checked_bytes(pair.array(role)).data();
  tensor.owner = shared_from_this();
  return tensor;
}

void PackedSet::check_whole() const {
  for (const auto& file : files_) check_lost_pages(*file);
}

void PackedSet::verify() const {
  in_parallel(arrays_.size(), 64, [&](std::size_t, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const auto bytes = checked_bytes(i);
      const std::span<const std::byte> file = files_[arrays_[i].file]->bytes();
      const std::size_t at = static_cast<std::size_t>(bytes.data() - file.data()) + bytes.size();
      const auto gap = file.subspan(at, std::min<std::size_t>(-at % kPackedAlignment, file.size() - at));
      if (std::any_of(gap.begin(), gap.end(), [](std::byte b) { return b != std::byte{0}; })) {
        damaged(files_[arrays_[i].file]->path(), concat("the bytes behind array ", i, " are not zero"));
      }
    }
  });
  for (std::size_t m = 0; m < manifests_.size(); ++m) {
    const MappedFile file(manifests_[m].path);
    const std::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    for (std::uint64_t i = first_pair_[m]; i < first_pair_[m + 1]; ++i) {
      check_record(pairs_[i], bytes.substr(pairs_[i].entry.offset(), pairs_[i].line_bytes));
    }
    if (content_hash(bytes) != manifests_[m].content_hash)
      damaged(file.path(), "the manifest is not the one that was packed");
  }
}

}  // namespace train_gpt_v2
