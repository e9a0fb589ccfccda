#pragma once
// Checksums: CRC-32 (zip records), SHA-256 (identity of files and settings).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace train_gpt_v2 {

// CRC-32 as in zip; `crc` continues an earlier value. About 4 GB/s.
std::uint32_t crc32(std::span<const std::byte> data, std::uint32_t crc = 0);

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void update(const void* data, std::size_t size);
  void update(std::string_view text) { update(text.data(), text.size()); }
  std::string hex();  // ends the computation

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string sha256(std::string_view text);  // 64 hexadecimal digits
std::string sha256_of_file(const std::string& path);

}  // namespace train_gpt_v2
