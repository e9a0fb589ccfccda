// A packed set whose index was changed and its checksums made right again: the input is a list of changes, four bytes
// each (place, how, value), to the index of a small sound set.
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <string>

#include "../../src/data/packed_format.h"
#include "fuzz_targets.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/dataset.h"
#include "train_gpt_v2/data/packed_set.h"
#include "train_gpt_v2/data/packer.h"
#include "train_gpt_v2/io/npy.h"

namespace train_gpt_v2::fuzz {
namespace {

struct SoundSet {
  std::string folder, index;
  ModelOptions model;

  SoundSet() {
    std::string pattern = std::filesystem::exists("/dev/shm") ? "/dev/shm/tgv2.fuzz.XXXXXX" : "/tmp/tgv2.fuzz.XXXXXX";
    if (!::mkdtemp(pattern.data())) std::abort();
    folder = pattern;
    const auto numbers = [&](const std::string& name, std::vector<std::int64_t> shape, DType type) {
      write_npy(path_join(folder, name), Tensor::zeros(type, std::move(shape)));
    };
    numbers("condition.npy", {4, 3}, DType::kFloat32);
    numbers("emo.npy", {3}, DType::kFloat32);
    std::string lines;
    for (int i = 0; i < 3; ++i) {
      numbers(concat("text", i, ".npy"), {2 + i}, DType::kInt32);
      numbers(concat("codes", i, ".npy"), {5 + i}, DType::kInt32);
      lines +=
          concat(R"({"id": "p)", i, R"(", "speaker": "s)", i % 2, R"(", "prompt_condition_path": "condition.npy", )",
                 R"("prompt_emo_vec_path": "emo.npy", "target_text": "x", "target_text_ids_path": "text)", i,
                 R"(.npy", "target_text_len": )", 2 + i, R"(, "target_codes_path": "codes)", i,
                 R"(.npy", "target_code_len": )", 5 + i, "}\n");
    }
    write_file_atomically(path_join(folder, "pairs.jsonl"), lines);
    PackRequest request;
    request.manifests = {path_join(folder, "pairs.jsonl")};
    request.output = path_join(folder, "set");
    pack_manifests(request);
    index = read_file(packed_index(request.output), 1 << 20);
    model.model_dim = 3;
    model.condition_num_latent = 4;
  }
  ~SoundSet() {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }
};

}  // namespace

void fuzz_packed(std::span<const std::uint8_t> input) {
  static const SoundSet sound;
  std::string bytes = sound.index;
  for (std::size_t i = 0; i + 4 <= input.size() && i < 64; i += 4) {
    const std::size_t at = (input[i] | std::size_t{input[i + 1]} << 8) % bytes.size();
    const std::uint8_t value = input[i + 3];
    switch (input[i + 2] % 4) {
      case 0:
        bytes[at] = static_cast<char>(value);
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ value);
        break;
      case 2:
        bytes[at] = static_cast<char>(bytes[at] + value);
        break;
      default:
        std::memset(bytes.data() + at, value, std::min<std::size_t>(8, bytes.size() - at));
    }
  }
  PackedHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  header.tables_crc = tables_checksum(std::string_view(bytes).substr(sizeof header));
  header.header_crc = header_checksum(header);
  std::memcpy(bytes.data(), &header, sizeof header);
  const std::string set = path_join(sound.folder, "set");
  std::FILE* file = std::fopen(packed_index(set).c_str(), "wb");
  if (!file || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size() || std::fclose(file) != 0) std::abort();
  const Dataset dataset({set}, {}, {}, sound.model);
  Batch batch;
  for (std::uint32_t i = 0; i < dataset.size(); ++i) dataset.load(i, batch);
}

}  // namespace train_gpt_v2::fuzz
