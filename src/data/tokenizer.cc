#include "train_gpt_v2/data/tokenizer.h"

#include <sentencepiece_processor.h>

#include <cstring>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/normalizer.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kMaxModelBytes = 16 << 20;
constexpr std::size_t kMaxPieces = 100'000;
constexpr std::size_t kMaxPieceBytes = 512;
constexpr std::size_t kMaxCharsmapBytes = 1 << 20;
constexpr std::size_t kMaxEncodedIds = 1 << 20;

[[noreturn]] void damaged(const std::string& path, std::string why) {
  throw Error("TOK001", concat("this is no sound SentencePiece model: ", why))
      .where(path)
      .fix("copy the .model file again from where it was trained");
}

// The wire format of protocol buffers, as far as a ModelProto needs it; every read is bounded.
class WireReader {
 public:
  WireReader(std::string_view bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  struct Field {
    std::uint32_t number = 0;
    std::uint32_t wire = 0;
    std::string_view bytes;  // wire type 2
    std::uint64_t value = 0;
  };

  bool next(Field& field) {
    if (at_ == bytes_.size()) return false;
    const std::uint64_t key = varint();
    field = {static_cast<std::uint32_t>(key >> 3), static_cast<std::uint32_t>(key & 7), {}, 0};
    if (field.number == 0 || key >> 32) damaged(path_, "a field has number 0 or too large a number");
    switch (field.wire) {
      case 0:
        field.value = varint();
        return true;
      case 1:
        field.bytes = take(8);
        return true;
      case 2:
        field.bytes = take(varint());
        return true;
      case 5:
        field.bytes = take(4);
        return true;
      default:
        damaged(path_, concat("unknown wire type ", field.wire, " at byte ", at_));
    }
  }

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (at_ >= bytes_.size()) damaged(path_, "the file ends inside a number");
      const auto byte = static_cast<unsigned char>(bytes_[at_++]);
      value |= std::uint64_t{byte & 0x7FU} << shift;
      if (!(byte & 0x80)) return value;
    }
    damaged(path_, "a number is longer than 64 bits");
  }
  std::string_view take(std::uint64_t size) {
    if (size > bytes_.size() - at_) damaged(path_, concat("a field of ", size, " bytes reaches beyond the file"));
    const std::string_view taken = bytes_.substr(at_, size);
    at_ += size;
    return taken;
  }

  std::string_view bytes_;
  const std::string& path_;
  std::size_t at_ = 0;
};

void scan_piece(std::string_view bytes, std::size_t number, const std::string& path) {
  WireReader reader(bytes, path);
  WireReader::Field field;
  bool has_text = false;
  while (reader.next(field)) {
    if (field.number != 1) continue;
    if (field.wire != 2) damaged(path, concat("piece ", number, " has no text"));
    if (field.bytes.empty() || field.bytes.size() > kMaxPieceBytes) {
      damaged(path, concat("piece ", number, " has ", field.bytes.size(), " bytes; 1 to 512 are allowed"));
    }
    if (field.bytes.find('\0') != std::string_view::npos) damaged(path, concat("piece ", number, " holds a zero byte"));
    if (!valid_utf8(field.bytes)) damaged(path, concat("piece ", number, " is not UTF-8"));
    has_text = true;
  }
  if (!has_text) damaged(path, concat("piece ", number, " has no text"));
}

// The trie inside a character map, as SentencePiece (darts-clone) walks it: nothing it can reach may lie outside, and
// every value must point into the strings behind it. SentencePiece itself checks none of this.
void scan_trie(std::string_view trie, std::size_t strings, const std::string& path) {
  const std::size_t units = trie.size() / 4;
  const auto unit = [&](std::size_t i) {
    std::uint32_t word = 0;
    std::memcpy(&word, trie.data() + 4 * i, 4);
    return word;
  };
  const auto offset = [](std::uint32_t word) { return std::size_t{word >> 10} << ((word & (1U << 9)) >> 6); };
  std::vector<bool> seen(units, false);
  std::vector<std::size_t> bases{offset(unit(0))};
  while (!bases.empty()) {
    const std::size_t base = bases.back();
    bases.pop_back();
    if ((base | 255) >= units) damaged(path, "its character map points outside itself");
    if (seen[base]) continue;
    seen[base] = true;
    for (std::uint32_t c = 0; c < 256; ++c) {
      const std::uint32_t word = unit(base ^ c);
      if ((word & (1U << 31 | 0xFF)) != c) continue;
      const std::size_t next = (base ^ c) ^ offset(word);
      if (((word >> 8) & 1) && ((next | 255) >= units || (unit(next) & ~(1U << 31)) >= strings)) {
        damaged(path, "its character map names a replacement that does not exist");
      }
      bases.push_back(next);
    }
  }
}

// A character map is the size of a trie, the trie, and zero-ended strings.
void scan_charsmap(std::string_view map, const std::string& path) {
  if (map.size() > kMaxCharsmapBytes) {
    damaged(path, concat("its character map has ", map.size(), " bytes; 1,048,576 are allowed"));
  }
  if (map.empty()) return;
  std::uint32_t size = 0;
  if (map.size() > 4) std::memcpy(&size, map.data(), 4);
  if (map.size() <= 4 || size >= map.size() - 4 || size % 1024 != 0 || size == 0) {
    damaged(path, concat("its character map of ", map.size(), " bytes states a trie of ", size));
  }
  if (map.back() != '\0') damaged(path, "its character map has no end mark");
  scan_trie(map.substr(4, size), map.size() - 4 - size, path);
}

}  // namespace

TokenizerModelFacts scan_tokenizer_model(std::string_view bytes, const std::string& path) {
  TokenizerModelFacts facts;
  WireReader reader(bytes, path);
  WireReader::Field field;
  while (reader.next(field)) {
    if (field.number == 1) {
      if (field.wire != 2) damaged(path, "its list of pieces is malformed");
      if (++facts.pieces > kMaxPieces) damaged(path, "it has more than 100,000 pieces");
      scan_piece(field.bytes, facts.pieces - 1, path);
    } else if (field.number == 2 && field.wire == 2) {  // trainer_spec
      WireReader spec(field.bytes, path);
      WireReader::Field entry;
      while (spec.next(entry)) {
        if (entry.number == 3 && entry.wire == 0) facts.model_type = static_cast<int>(entry.value & 0xFF);
      }
    } else if (field.number == 3 || field.number == 5) {  // normalizer_spec, denormalizer_spec
      if (field.wire != 2) damaged(path, "its normaliser settings are malformed");
      WireReader spec(field.bytes, path);
      WireReader::Field entry;
      while (spec.next(entry)) {
        if (entry.number != 2) continue;
        if (entry.wire != 2) damaged(path, "its character map is malformed");
        scan_charsmap(entry.bytes, path);
        facts.charsmap_bytes += entry.bytes.size();
      }
    }
  }
  if (facts.pieces == 0) damaged(path, "it has no pieces");
  return facts;
}

struct Tokenizer::Impl {
  sentencepiece::SentencePieceProcessor processor;
};

Tokenizer::Tokenizer(const std::string& path) : impl_(std::make_unique<Impl>()), path_(path) {
  const std::string bytes = read_file(path, kMaxModelBytes);
  const TokenizerModelFacts facts = scan_tokenizer_model(bytes, path);
  sha256_ = train_gpt_v2::sha256(bytes);
  auto& processor = impl_->processor;
  const auto status = processor.LoadFromSerializedProto(bytes);
  if (!status.ok()) damaged(path, status.message());
  size_ = processor.GetPieceSize();
  if (size_ != static_cast<std::int64_t>(facts.pieces))
    damaged(path, "SentencePiece counts other pieces than the file holds");
  if (processor.bos_id() != kBos || processor.eos_id() != kEos || processor.unk_id() != kUnknown ||
      processor.pad_id() >= 0) {
    throw Error("TOK002", "the tokenizer numbers its special pieces in another way than IndexTTS2")
        .where(path)
        .detail(concat("found   <s> ", processor.bos_id(), ", </s> ", processor.eos_id(), ", <unk> ",
                       processor.unk_id(), ", <pad> ", processor.pad_id()))
        .detail("needed  <s> 0, </s> 1, <unk> 2, <pad> none (-1)")
        .fix("train it with bos_id 0, eos_id 1, unk_id 2, pad_id -1, or extend the released one (extend-vocab)");
  }
}

Tokenizer::~Tokenizer() = default;

std::vector<std::int32_t> Tokenizer::encode_prepared(std::string_view text) const {
  std::vector<int> ids;
  const auto status = impl_->processor.Encode(text, &ids);
  if (!status.ok()) throw Error("TOK001", concat("SentencePiece failed: ", status.message())).where(path_);
  if (ids.size() > kMaxEncodedIds) throw Error("TOK001", "a text gave more than 1,048,576 pieces").where(path_);
  return {ids.begin(), ids.end()};
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, std::string_view language) const {
  if (text.empty()) return {};
  return encode_prepared(before_sentencepiece(text, language));
}

std::vector<std::string> Tokenizer::pieces(std::span<const std::int32_t> ids) const {
  std::vector<std::string> texts;
  texts.reserve(ids.size());
  for (const std::int32_t id : ids) texts.push_back(piece(id));
  return texts;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  const std::vector<int> copy(ids.begin(), ids.end());
  for (const std::int32_t id : ids) static_cast<void>(piece(id));  // SentencePiece does not check them
  std::string text;
  const auto status = impl_->processor.Decode(copy, &text);
  if (!status.ok()) throw Error("TOK001", concat("SentencePiece failed: ", status.message())).where(path_);
  return text;
}

std::string Tokenizer::piece(std::int32_t id) const {
  if (id < 0 || id >= size_) {
    throw Error("DAT005", concat("text id ", id, " is outside the vocabulary of ", size_, " pieces")).where(path_);
  }
  return impl_->processor.IdToPiece(id);
}

std::int32_t Tokenizer::piece_id(std::string_view piece) const {
  return impl_->processor.PieceToId(piece);
}

void check_extension(const Tokenizer& extended, const Tokenizer& base) {
  if (extended.size() < base.size()) {
    throw Error("TOK004", concat("data.tokenizer has ", extended.size(), " pieces, data.base_tokenizer ", base.size()))
        .where(extended.path())
        .fix("name the extended model under data.tokenizer and the one it extends under data.base_tokenizer");
  }
  std::int64_t differing = 0;
  std::int32_t first = 0;
  for (std::int32_t id = 0; id < base.size(); ++id) {
    if (extended.piece(id) == base.piece(id)) continue;
    if (differing++ == 0) first = id;
  }
  if (differing == 0) return;
  throw Error("TOK004", concat(differing, " of the base tokenizer's ", base.size(), " pieces have another id"))
      .where(extended.path())
      .detail(concat("first: id ", first, " is \"", printable_text(base.piece(first)), "\" there and \"",
                     printable_text(extended.piece(first)), "\" here"))
      .fix("extend the base model by appending pieces, or name the tokenizer the base model was trained with");
}

}  // namespace train_gpt_v2
