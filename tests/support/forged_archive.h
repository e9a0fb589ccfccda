#pragma once
// Zip archives and pickles made by hand, for tests of readers: every field can be a lie.
//
// Written from the formats' descriptions (APPNOTE.TXT, Lib/pickletools.py), independently of the program's own writers.

#include <zlib.h>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2::testing {

template <typename Number>
std::string little(Number value) {
  std::string raw(sizeof value, '\0');
  std::memcpy(raw.data(), &value, sizeof value);
  return raw;
}
inline std::string u16(std::uint64_t value) {
  return little(static_cast<std::uint16_t>(value));
}
inline std::string u32(std::uint64_t value) {
  return little(static_cast<std::uint32_t>(value));
}
inline std::string u64(std::uint64_t value) {
  return little(value);
}

struct ForgedEntry {
  std::string name;
  std::string content;
  // What the central directory says, where it shall differ from the truth.
  std::optional<std::string> central_name = {};
  std::optional<std::uint64_t> size = {}, stored = {}, offset = {};
  std::optional<std::uint32_t> crc = {};
  std::uint16_t flags = 0x0800, method = 0;
  std::string central_extra = {}, local_extra = {};
};

struct ForgedEnd {
  std::optional<std::uint64_t> count = {}, size = {}, offset = {};
  std::string comment = {};
};

inline std::string forge_zip(const std::vector<ForgedEntry>& entries, const ForgedEnd& end = {}) {
  std::string file, directory;
  for (const ForgedEntry& entry : entries) {
    const std::uint64_t offset = entry.offset.value_or(file.size());
    const auto crc = entry.crc.value_or(static_cast<std::uint32_t>(
        ::crc32(0, reinterpret_cast<const Bytef*>(entry.content.data()), static_cast<uInt>(entry.content.size()))));
    const std::string common = u16(20) + u16(entry.flags) + u16(entry.method) + u16(0) + u16(33) + u32(crc);
    file += "PK\x03\x04" + common + u32(entry.content.size()) + u32(entry.content.size()) + u16(entry.name.size()) +
            u16(entry.local_extra.size()) + entry.name + entry.local_extra + entry.content;
    const std::string name = entry.central_name.value_or(entry.name);
    const std::uint64_t size = entry.size.value_or(entry.content.size());
    directory += "PK\x01\x02" + u16(20) + common + u32(entry.stored.value_or(size)) + u32(size) + u16(name.size()) +
                 u16(entry.central_extra.size()) + u16(0) + u16(0) + u16(0) + u32(0) + u32(offset) + name +
                 entry.central_extra;
  }
  const std::uint64_t count = end.count.value_or(entries.size());
  return file + directory + "PK\x05\x06" + u16(0) + u16(0) + u16(count) + u16(count) +
         u32(end.size.value_or(directory.size())) + u32(end.offset.value_or(file.size())) + u16(end.comment.size()) +
         end.comment;
}

// --- pickle
// -----------------------------------------------------------------------------------------------------------

inline std::string pickle(std::string_view body) {
  return "\x80\x02" + std::string(body) + ".";
}
inline std::string text(std::string_view content) {
  return "X" + u32(content.size()) + std::string(content);
}
inline std::string integer(std::int64_t value) {
  return std::string("\x8a\x08", 2) + little(value);
}
inline std::string integers(const std::vector<std::int64_t>& values) {
  std::string tuple = "(";
  for (const std::int64_t value : values) tuple += integer(value);
  return tuple + "t";
}
inline std::string storage(std::string_view key, std::int64_t elements, std::string_view type = "FloatStorage") {
  return "(" + text("storage") + "ctorch\n" + std::string(type) + "\n" + text(key) + text("cpu") + integer(elements) +
         "tQ";
}
inline std::string tensor(const std::string& storage_code, std::int64_t offset, const std::vector<std::int64_t>& shape,
                          const std::vector<std::int64_t>& strides) {
  return "ctorch._utils\n_rebuild_tensor_v2\n(" + storage_code + integer(offset) + integers(shape) + integers(strides) +
         "\x89" + "ccollections\nOrderedDict\n)RtR";
}

// A torch.save archive around one pickle, with storage "0" of 16 floats.
inline std::string forge_torch_file(const std::string& description, std::vector<ForgedEntry> more = {}) {
  std::vector<ForgedEntry> entries{{"archive/data.pkl", description}, {"archive/data/0", std::string(64, '\x3f')}};
  for (ForgedEntry& entry : more) entries.push_back(std::move(entry));
  entries.push_back({"archive/version", "3\n"});
  return forge_zip(entries);
}

}  // namespace train_gpt_v2::testing
