#pragma once
// Small corpora made for one test: manifests of any size, and arrays where a test loads them.

#include <cstdint>
#include <string>
#include <vector>

#include "support/test_files.h"
#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/dataset.h"
#include "train_gpt_v2/io/npy.h"

namespace train_gpt_v2::testing {

inline ModelOptions fixture_model() {
  ModelOptions model;
  model.model_dim = 64;
  model.number_text_tokens = 360;
  model.number_mel_codes = 226;
  model.start_mel_token = 224;
  model.stop_mel_token = 225;
  return model;
}

template <typename T>
Tensor array_of(DType dtype, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  return Tensor::copy_of(dtype, std::move(shape), std::as_bytes(std::span(values)));
}

struct PairLengths {
  std::int64_t text = 0, codes = 0;
  std::string speaker = "spk0";
};

// numpy.save's format, without the fsync that makes hundreds of small files slow.
inline void write_array(const std::string& path, const Tensor& tensor) {
  std::string shape;
  for (const std::int64_t size : tensor.shape) shape += concat(size, ",");
  const std::string type = tensor.dtype == DType::kFloat32   ? "<f4"
                           : tensor.dtype == DType::kFloat16 ? "<f2"
                           : tensor.dtype == DType::kInt64   ? "<i8"
                                                             : "<i4";
  std::string header = concat("{'descr': '", type, "', 'fortran_order': False, 'shape': (", shape, "), }");
  header.append(64 - (10 + header.size() + 1) % 64, ' ');
  header += '\n';
  std::ofstream file(path, std::ios::binary);
  file << "\x93NUMPY" << '\x01' << '\0' << static_cast<char>(header.size() & 0xFF)
       << static_cast<char>(header.size() >> 8) << header;
  file.write(reinterpret_cast<const char*>(tensor.data), static_cast<std::streamsize>(tensor.nbytes()));
}

// A line as the Python tools write it; every pair has its own text and code files, conditions are shared.
inline std::string pair_line(const std::string& id, const PairLengths& pair) {
  return concat(
      R"({"id": ")", id, R"(", "speaker": ")", pair.speaker, R"(", "prompt_id": "p", "prompt_audio_path": "a.wav", )",
      R"("prompt_condition_path": "condition.npy", "prompt_condition_len": 4, "prompt_emo_vec_path": "emo.npy", )",
      R"("prompt_duration": 1.5, "target_id": ")", id, R"(", "target_audio_path": "b.wav", "target_text": "x", )",
      R"("target_text_ids_path": "text_)", id, R"(.npy", "target_text_len": )", pair.text,
      R"(, "target_codes_path": "codes_)", id, R"(.npy", "target_code_len": )", pair.codes, "}\n");
}

inline std::string write_manifest(const TemporaryFolder& folder, const std::string& name,
                                  const std::vector<PairLengths>& pairs, const std::string& prefix = "u") {
  std::string text;
  for (std::size_t i = 0; i < pairs.size(); ++i) text += pair_line(concat(prefix, i), pairs[i]);
  return folder.write(name, text);
}

inline ModelOptions tiny_model() {
  ModelOptions model = fixture_model();
  model.model_dim = 3;
  model.condition_num_latent = 4;
  return model;
}

// Arrays for all pairs of write_manifest, fitting tiny_model(); values depend on the pair.
inline void write_arrays(const TemporaryFolder& folder, const std::vector<PairLengths>& pairs,
                         const std::string& prefix = "u") {
  write_array(folder.file("condition.npy"), array_of<float>(DType::kFloat32, {4, 3}, std::vector<float>(12, 0.5F)));
  write_array(folder.file("emo.npy"), array_of<float>(DType::kFloat32, {3}, std::vector<float>(3, 0.25F)));
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const std::vector<std::int32_t> text(static_cast<std::size_t>(pairs[i].text),
                                         static_cast<std::int32_t>(i % 300 + 3));
    const std::vector<std::int32_t> codes(static_cast<std::size_t>(pairs[i].codes), static_cast<std::int32_t>(i % 200));
    write_array(folder.file(concat("text_", prefix, i, ".npy")), array_of(DType::kInt32, {pairs[i].text}, text));
    write_array(folder.file(concat("codes_", prefix, i, ".npy")), array_of(DType::kInt32, {pairs[i].codes}, codes));
  }
}

}  // namespace train_gpt_v2::testing
