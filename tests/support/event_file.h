#pragma once
// An independent reading of TensorBoard's event files: TFRecord with checksums, and the protobuf wire format.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "train_gpt_v2/core/filesystem.h"

namespace train_gpt_v2::testing {

inline std::uint32_t bitwise_crc32c(std::string_view data) {
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const unsigned char byte : data) {
    crc ^= byte;
    for (int i = 0; i < 8; ++i) crc = (crc & 1) ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
  }
  return crc ^ 0xFFFFFFFFu;
}

template <typename T>
T read_as(std::string_view bytes) {
  EXPECT_GE(bytes.size(), sizeof(T));
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

inline std::vector<std::string> records(const std::string& path) {
  const std::string file = read_file(path, 1 << 26);
  std::vector<std::string> found;
  const auto mask = [](std::uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; };
  for (std::size_t at = 0; at < file.size();) {
    if (file.size() - at < 16) {
      ADD_FAILURE() << "half a record at " << at;
      return found;
    }
    const auto size = read_as<std::uint64_t>(file.substr(at, 8));
    EXPECT_EQ(read_as<std::uint32_t>(file.substr(at + 8, 4)), mask(bitwise_crc32c(file.substr(at, 8))));
    if (file.size() - at - 16 < size) {
      ADD_FAILURE() << "half a record at " << at;
      return found;
    }
    found.push_back(file.substr(at + 12, size));
    EXPECT_EQ(read_as<std::uint32_t>(file.substr(at + 12 + size, 4)), mask(bitwise_crc32c(found.back())));
    at += 16 + size;
  }
  return found;
}

// Field number -> contents in order: varints and fixed fields as numbers' raw bytes, the rest as bytes.
using Message = std::multimap<int, std::string>;

inline Message parse(std::string_view data) {
  Message message;
  std::size_t at = 0;
  const auto varint = [&] {
    std::uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(data.at(at++));
      value |= std::uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < data.size()) {
    const std::uint64_t key = varint();
    std::string content;
    std::size_t size = 0;
    switch (key & 7) {
      case 0: {
        const std::uint64_t value = varint();
        content.assign(reinterpret_cast<const char*>(&value), 8);
        break;
      }
      case 1:
        size = 8;
        break;
      case 5:
        size = 4;
        break;
      case 2:
        size = varint();
        break;
      default:
        ADD_FAILURE() << "wire type " << (key & 7);
    }
    if ((key & 7) != 0) content = std::string(data.substr(at, size)), at += size;
    message.emplace(static_cast<int>(key >> 3), content);
  }
  return message;
}

inline std::string field(const Message& message, int number) {
  EXPECT_EQ(message.count(number), 1u) << "field " << number;
  const auto found = message.find(number);
  return found == message.end() ? std::string(8, '\0') : found->second;
}
inline std::int64_t integer(const Message& message, int number) {
  return read_as<std::int64_t>(field(message, number));
}
inline double real(const Message& message, int number) {
  return read_as<double>(field(message, number));
}
inline Message value_of(const Message& event) {
  return parse(field(parse(field(event, 5)), 1));
}
inline std::vector<double> doubles(const std::string& packed) {
  std::vector<double> values(packed.size() / 8);
  std::memcpy(values.data(), packed.data(), packed.size());
  return values;
}

}  // namespace train_gpt_v2::testing
