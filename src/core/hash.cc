#include "train_gpt_v2/core/hash.h"

#include <openssl/evp.h>
#include <zlib.h>

#include <algorithm>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"

namespace train_gpt_v2 {

std::uint32_t crc32(std::span<const std::byte> data, std::uint32_t crc) {
  uLong value = crc;
  while (!data.empty()) {
    const std::size_t part = std::min<std::size_t>(data.size(), std::size_t{1} << 30);
    value = ::crc32(value, reinterpret_cast<const Bytef*>(data.data()), static_cast<uInt>(part));
    data = data.subspan(part);
  }
  return static_cast<std::uint32_t>(value);
}

struct Sha256::Context {
  EVP_MD_CTX* digest = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(digest); }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  TGV2_CHECK(EVP_DigestInit_ex(context_->digest, EVP_sha256(), nullptr) == 1);
}

Sha256::~Sha256() = default;

void Sha256::update(const void* data, std::size_t size) {
  TGV2_CHECK(EVP_DigestUpdate(context_->digest, data, size) == 1);
}

std::string Sha256::hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  TGV2_CHECK(EVP_DigestFinal_ex(context_->digest, digest, &size) == 1);
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += kDigits[digest[i] >> 4];
    text += kDigits[digest[i] & 15];
  }
  return text;
}

std::string sha256(std::string_view text) {
  Sha256 hash;
  hash.update(text);
  return hash.hex();
}

std::string sha256_of_file(const std::string& path) {
  const MappedFile file(path);
  Sha256 hash;
  hash.update(file.bytes().data(), file.bytes().size());
  return hash.hex();
}

}  // namespace train_gpt_v2
