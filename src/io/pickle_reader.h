#pragma once
// Reads the pickle inside a torch.save file as data. Nothing is called, imported or looked up: an instruction that
// would run code builds an inert node instead (class name and arguments), except for the few constructors that only
// hold data (tensors, OrderedDict, torch.Size, TorchVersion, bytes, numpy scalars), which are rebuilt here by hand.
//
// Limits: 64 MiB of stream, 1 million instructions, 100,000 stack slots, nesting 100, 100,000 tensors; text that
// is referred to many times may grow to 16 times the stream. Cycles are refused. Every write into a container checks
// what the target is (CVE-2026-24747 was a missing check of this kind), every tensor view its storage's bounds.
// Errors: CKP001 with the byte position. Threads: no shared state.

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train_gpt_v2/io/value.h"

namespace train_gpt_v2 {

struct StorageBytes {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

struct PickleSource {
  std::span<const std::byte> stream;
  std::string path;                    // for messages
  std::uint64_t max_tensor_bytes = 0;  // a tensor may claim at most this much (the size of the file)
  // The raw bytes of storage `key`, or nothing when the archive holds none of that name.
  std::function<std::optional<StorageBytes>(std::string_view key)> storage;
};

// The object; what became opaque is appended to `ignored` with the place where it was found.
Value read_pickle(const PickleSource& source, std::vector<std::string>& ignored);

}  // namespace train_gpt_v2
