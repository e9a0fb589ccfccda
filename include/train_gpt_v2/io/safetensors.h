#pragma once
// The safetensors format: a JSON header (name -> dtype, shape, offsets) and the tensors behind it, nothing else.
//
// Reading maps the file and returns views into it. Refused: headers over 16 MiB, more than 20,000 tensors, repeated
// keys, unknown dtypes, offsets that leave a hole, overlap or do not equal shape x element size.
// Writing: tensors in the given order, header padded with spaces so that the data is 8-byte aligned, as the reference
// implementation does; atomically. Errors: IO001, IO002, IO004, CKP001, CKP003. Threads: no shared state.

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/io/tensor.h"

namespace train_gpt_v2 {

struct SafetensorsFile {
  std::vector<std::pair<std::string, Tensor>> tensors;  // by their place in the file
  std::map<std::string, std::string> metadata;
};

SafetensorsFile read_safetensors(const std::string& path);
SafetensorsFile read_safetensors(std::shared_ptr<const MappedFile> file);

void write_safetensors(const std::string& path, const SafetensorsFile& content);

}  // namespace train_gpt_v2
