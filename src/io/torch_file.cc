#include "train_gpt_v2/io/torch_file.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <optional>
#include <thread>
#include <unordered_map>

#include "pickle_reader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/safetensors.h"
#include "zip_reader.h"

namespace train_gpt_v2 {
namespace {

static_assert(std::endian::native == std::endian::little, "storages are little-endian and read in place");

// torch.save before 1.6: a pickle of this number, then more pickles, then raw storages.
constexpr std::string_view kLegacyMagic("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 12);

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

[[noreturn]] void unsupported(const std::string& path, std::string what, std::string fix) {
  throw Error("CKP002", std::move(what)).where(path).fix(std::move(fix));
}

// The folder inside the archive: "archive", "gpt", "latest" ... whatever the writer's file was called.
std::string find_prefix(const ZipReader& zip, const std::string& path) {
  std::string prefix;
  bool found = false;
  for (const ZipReader::Entry& entry : zip.entries()) {
    const bool bare = entry.name == "data.pkl";
    if (!bare && !ends_with(entry.name, "/data.pkl")) continue;
    if (found)
      unsupported(path, "the archive holds several data.pkl", "unpack it and give one file written by torch.save");
    prefix = entry.name.substr(0, entry.name.size() - std::string_view("data.pkl").size());
    found = true;
  }
  if (!found) {
    unsupported(path, "a zip archive, but not one that torch.save wrote (no data.pkl in it)",
                "give a .pth file or a safetensors file");
  }
  if (zip.find(prefix + "constants.pkl")) {
    unsupported(path, "a TorchScript archive (it holds a program, not only weights)",
                "in Python: torch.save(torch.jit.load(FILE).state_dict(), \"weights.pth\")");
  }
  return prefix;
}

// Raw bytes of one storage, aligned for its elements; archives that were zipped again need not align them.
StorageBytes storage_bytes(const ZipReader::Entry& entry, const std::shared_ptr<const MappedFile>& file) {
  if (reinterpret_cast<std::uintptr_t>(entry.payload.data()) % 8 == 0) return {entry.payload, file};
  auto copy = std::make_shared<std::vector<std::byte>>(entry.payload.begin(), entry.payload.end());
  const std::span<const std::byte> bytes(*copy);
  return {bytes, std::move(copy)};
}

LoadedFile read_torch_zip(const std::shared_ptr<const MappedFile>& file, bool verify) {
  const ZipReader zip(file->bytes(), file->path());
  const std::string prefix = find_prefix(zip, file->path());
  const ZipReader::Entry& description = *zip.find(prefix + "data.pkl");
  LoadedFile loaded;
  loaded.format = "torch";
  loaded.bytes = file->bytes().size();
  zip.verify(description);
  if (const ZipReader::Entry* order = zip.find(prefix + "byteorder")) {
    zip.verify(*order);
    if (text_of(order->payload) != "little") {
      unsupported(file->path(), "written on a big-endian machine", "load and save it again on a little-endian one");
    }
  }
  std::unordered_map<std::string_view, StorageBytes> storages;
  PickleSource source;
  source.stream = description.payload;
  source.path = file->path();
  source.max_tensor_bytes = loaded.bytes;
  source.storage = [&](std::string_view key) -> std::optional<StorageBytes> {
    const ZipReader::Entry* entry = zip.find(concat(prefix, "data/", key));
    if (!entry) return std::nullopt;
    auto [known, added] = storages.try_emplace(entry->name);
    if (added) known->second = storage_bytes(*entry, file);
    return known->second;
  };
  loaded.root = read_pickle(source, loaded.ignored);
  if (!zip.has_checksums()) {
    loaded.ignored.push_back("checksums: the file was written without any, so damage cannot be noticed");
  }
  std::size_t unused = 0;
  for (const ZipReader::Entry& entry : zip.entries()) {
    unused += starts_with(entry.name, prefix + "data/") && !storages.contains(entry.name);
  }
  if (unused > 0) loaded.ignored.push_back(concat(unused, " storages that nothing refers to"));
  if (verify) zip.verify_all(std::max(1u, std::thread::hardware_concurrency()));
  return loaded;
}

LoadedFile read_safetensors_tree(const std::shared_ptr<const MappedFile>& file) {
  SafetensorsFile content = read_safetensors(file);
  LoadedFile loaded;
  loaded.format = "safetensors";
  loaded.bytes = file->bytes().size();
  loaded.root = Value::ordered_dict();
  for (auto& [name, tensor] : content.tensors) loaded.root.set(name, std::move(tensor));
  if (!content.metadata.empty()) {
    Value metadata = Value::dict();
    for (const auto& [key, text] : content.metadata) metadata.set(key, text);
    loaded.root.set("__metadata__", std::move(metadata));
  }
  return loaded;
}

}  // namespace

LoadedFile read_tensor_file(const std::string& path, bool verify) {
  const auto file = std::make_shared<const MappedFile>(path);
  const std::span<const std::byte> bytes = file->bytes();
  const std::string_view start = text_of(bytes.first(std::min<std::size_t>(bytes.size(), 16)));
  if (bytes.empty()) throw Error("CKP001", "the file is empty").where(path).fix("copy it again, or use an older one");
  if (starts_with(start, "PK\x03\x04")) return read_torch_zip(file, verify);
  if (start.size() >= 14 && start[0] == '\x80' && start.substr(2, 12) == kLegacyMagic) {
    unsupported(path, "written by torch.save before version 1.6 (or with _use_new_zipfile_serialization=False)",
                "in Python: torch.save(torch.load(FILE, weights_only=True), \"new.pth\")");
  }
  if (start.size() > 8 && start[8] == '{') return read_safetensors_tree(file);
  if (start[0] == '\x80') {
    unsupported(path, "a bare pickle, which only Python can read", "load it in Python and write it with torch.save");
  }
  unsupported(path, "neither a torch.save file nor a safetensors file",
              "check the path; a failed download is often HTML");
}

}  // namespace train_gpt_v2
