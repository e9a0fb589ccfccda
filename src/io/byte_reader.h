#pragma once
// Little-endian numbers from a bounded piece of memory; running past the end is an answer, never a read.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

namespace train_gpt_v2 {

class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes, std::uint64_t at = 0) : bytes_(bytes), at_(at) {
    ok_ = at <= bytes.size();
  }

  // 0 after the end was passed; ok() tells.
  template <typename Number>
  Number get() {
    Number value{};
    const std::span<const std::byte> raw = take(sizeof value);
    if (ok_) std::memcpy(&value, raw.data(), sizeof value);
    return value;
  }
  std::uint8_t u8() { return get<std::uint8_t>(); }
  std::uint16_t u16() { return get<std::uint16_t>(); }
  std::uint32_t u32() { return get<std::uint32_t>(); }
  std::uint64_t u64() { return get<std::uint64_t>(); }

  std::span<const std::byte> take(std::uint64_t size) {
    if (!ok_ || size > bytes_.size() - at_) {
      ok_ = false;
      return {};
    }
    const auto part = bytes_.subspan(at_, size);
    at_ += size;
    return part;
  }
  std::string_view text(std::uint64_t size) {
    const auto raw = take(size);
    return {reinterpret_cast<const char*>(raw.data()), raw.size()};
  }

  bool ok() const { return ok_; }
  std::uint64_t position() const { return at_; }
  std::uint64_t left() const { return ok_ ? bytes_.size() - at_ : 0; }

 private:
  std::span<const std::byte> bytes_;
  std::uint64_t at_ = 0;
  bool ok_ = true;
};

}  // namespace train_gpt_v2
