#pragma once
// The layout of index.bin that reader and writer share. Little-endian; sizes and offsets in bytes.
//
//   PackedHeader | PackedPair x pairs | PackedArray x arrays | names
//
// The names are lines: those of every manifest (content hash, bytes, pairs, language, source), the bytes of every
// arrays_K.bin, the speakers, the languages, the rounding. Control characters cannot occur in any of them.

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>

#include "train_gpt_v2/io/tensor.h"

namespace train_gpt_v2 {

static_assert(std::endian::native == std::endian::little);

inline constexpr std::string_view kPackedMagic = "TGPTPACK";
inline constexpr std::uint32_t kPackedVersion = 1;
inline constexpr std::uint64_t kPackedAlignment = 64;
inline constexpr std::uint32_t kMaxArrayRows = 1 << 24, kMaxArrayColumns = 1 << 20;
inline constexpr std::uint64_t kMaxPackedFiles = 1 << 16;  // manifests, and files of arrays
inline constexpr std::uint64_t kMaxNames = 10'000'000;     // speakers

struct PackedHeader {
  char magic[8] = {};
  std::uint32_t version = 0;
  std::uint32_t header_crc = 0;  // of the header with this number zero
  std::uint64_t index_bytes = 0, pairs = 0, arrays = 0, names_bytes = 0;
  std::uint64_t manifests = 0, array_files = 0, speakers = 0, languages = 0;
  std::uint32_t tables_crc = 0;  // CRC-32 of the CRC-32s of every kCrcPiece of what follows the header
  std::uint8_t unused[44] = {};
};
static_assert(sizeof(PackedHeader) == 128);

inline constexpr std::size_t kCrcPiece = std::size_t{4} << 20;

std::uint32_t tables_checksum(std::string_view bytes);  // on all cores
std::uint32_t header_checksum(PackedHeader header);

inline std::string packed_index(const std::string& folder) {
  return folder + "/index.bin";
}
inline std::string packed_manifest(const std::string& folder, std::uint64_t k) {
  return folder + "/manifest_" + std::to_string(k) + ".jsonl";
}
inline std::string packed_arrays(const std::string& folder, std::uint64_t k) {
  return folder + "/arrays_" + std::to_string(k) + ".bin";
}

// The types an array may have; the number is its place here plus one.
inline constexpr DType kPackedTypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16,
                                         DType::kInt64,   DType::kInt32,   DType::kInt16,   DType::kInt8,
                                         DType::kUInt16,  DType::kUInt8};

}  // namespace train_gpt_v2
