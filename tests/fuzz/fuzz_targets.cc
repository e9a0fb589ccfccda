#include "fuzz_targets.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string>

#include "support/forged_archive.h"
#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/data/record.h"
#include "train_gpt_v2/data/tokenizer.h"
#include "train_gpt_v2/io/npy.h"
#include "train_gpt_v2/io/safetensors.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/train/listening_sheet.h"
#include "train_gpt_v2/train/sample_cases.h"

namespace train_gpt_v2::fuzz {
namespace {

using Input = std::span<const std::uint8_t>;

std::string_view text_of(Input input) {
  return {reinterpret_cast<const char*>(input.data()), input.size()};
}

// A file in memory that holds the input: readers take paths. One for all inputs, rewritten each time.
const std::string& as_file(std::string_view bytes) {
  static const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(fd);
  if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    std::abort();
  }
  return path;
}

// Reads every element, so that a tensor that points outside its file is noticed by a sanitizer.
void touch(const Tensor& tensor) {
  if (tensor.numel() > 0 && tensor.numel() < (1 << 20)) {
    const Tensor whole = tensor.contiguous();
    volatile unsigned sum = 0;
    for (const std::byte byte : whole.bytes()) sum = sum + static_cast<unsigned>(byte);
  }
}

void touch(const Value& value) {
  switch (value.kind()) {
    case Value::Kind::kTensor:
      touch(value.as_tensor());
      break;
    case Value::Kind::kDict:
      for (const Value::Entry& entry : value.entries()) touch(entry.value);
      break;
    case Value::Kind::kList:
    case Value::Kind::kTuple:
    case Value::Kind::kOpaque:
      for (const Value& item : value.items()) touch(item);
      break;
    default:
      break;
  }
}

void read_archive(std::string_view bytes) {
  const std::string& path = as_file(bytes);
  try {
    touch(read_tensor_file(path, /*verify=*/false).root);
  } catch (const Error&) {
  }
  try {
    touch(read_tensor_file(path, /*verify=*/true).root);
  } catch (const Error&) {
  }
}

void fuzz_npy(Input input) {
  touch(read_npy(as_file(text_of(input))));
}

void fuzz_manifest(Input input) {
  static RecordParser parser;
  PairRecord record;
  RecordProblem problem;
  const std::string bytes(text_of(input));
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    if (parser.parse(line, rest.size(), record, problem)) {
      volatile std::size_t sum = record.id.size() + record.target_codes_path.size() + record.emo_vec_path().size() +
                                 record.stated_language().size();
      (void)sum;
    }
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
  }
}

void fuzz_config(Input input) {
  const LoadedConfig loaded = load_config_json(text_of(input), "fuzz.json");
  // What was accepted must survive its own effective form.
  const std::string effective = effective_json(loaded.options);
  if (effective_json(load_config_json(effective, "effective.json").options) != effective) std::abort();
}

void fuzz_zip(Input input) {
  read_archive(text_of(input));
}

// The input is data.pkl of an archive without checksums, so that mutations reach the pickle machine.
void fuzz_pickle(Input input) {
  std::vector<testing::ForgedEntry> entries{{"archive/data.pkl", std::string(text_of(input))},
                                            {"archive/data/0", std::string(64, '\x3f')},
                                            {"archive/version", "3\n"}};
  for (testing::ForgedEntry& entry : entries) entry.crc = 0;
  read_archive(testing::forge_zip(entries));
}

void fuzz_safetensors(Input input) {
  for (const auto& [name, tensor] : read_safetensors(as_file(text_of(input))).tensors) touch(tensor);
}

void fuzz_tokenizer(Input input) {
  scan_tokenizer_model(std::string(text_of(input)), "fuzz.model");
}

void fuzz_cases(Input input) {
  static const ModelOptions model;
  read_cases(as_file(text_of(input)), {model, nullptr, "", "pair"});
}

void fuzz_sheet(Input input) {
  parse_listening_sheet(text_of(input));
}

constexpr auto kTargets = std::to_array<Target>({
    {"npy", fuzz_npy},
    {"manifest", fuzz_manifest},
    {"config", fuzz_config},
    {"zip", fuzz_zip},
    {"pickle", fuzz_pickle},
    {"safetensors", fuzz_safetensors},
    {"tokenizer", fuzz_tokenizer},
    {"cases", fuzz_cases},
    {"sheet", fuzz_sheet},
    {"packed", fuzz_packed},
});

}  // namespace

std::span<const Target> targets() {
  return kTargets;
}

const Target* find_target(std::string_view name) {
  for (const Target& target : kTargets) {
    if (target.name == name) return &target;
  }
  return nullptr;
}

}  // namespace train_gpt_v2::fuzz
