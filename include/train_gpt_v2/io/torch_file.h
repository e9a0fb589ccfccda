#pragma once
// torch.save files (zip), read without executing anything and written so that torch.load(weights_only=True) and the
// Python trainer read them. Also the one door for reading: read_tensor_file() tells the formats apart by content.
//
// Reading maps the file; tensors are views into the mapping (any strides, shared storages) and keep it alive. All sizes
// are checked against the file before anything is allocated. With `verify` every byte's checksum is computed first
// (several GB/s); without it only the description is, which is meant for looking at names and shapes.
// Writing is deterministic (same tree, same bytes), streams from the tensors' own memory into an AtomicFile, and writes
// memory that several tensors share once. Format: src/README.md.
// Errors: IO001, IO002, IO004; CKP001 damaged; CKP002 a format that is not read; CKP003 a value that cannot be written.

#include <cstdint>
#include <string>
#include <vector>

#include "train_gpt_v2/io/value.h"

namespace train_gpt_v2 {

struct LoadedFile {
  Value root;                        // a dict for every file that holds a model
  std::string format;                // "torch" or "safetensors"
  std::vector<std::string> ignored;  // what was not understood and where, for people
  std::uint64_t bytes = 0;           // size of the file
};

// A torch.save zip or a safetensors file (its tensors as an ordered dict; metadata under "__metadata__").
LoadedFile read_tensor_file(const std::string& path, bool verify = true);

// Exactly the size write_torch_file() will give.
std::uint64_t torch_file_size(const Value& root);

// Opaque nodes, tensors of uint16 and keys other than text and integers cannot be written (CKP003).
void write_torch_file(const std::string& path, const Value& root);

}  // namespace train_gpt_v2
