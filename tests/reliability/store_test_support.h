#pragma once
// Checkpoints whose content follows from their step, and how many cases a test tries.

#include <cstdlib>
#include <iostream>
#include <string>

#include "support/test_files.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/train/checkpoint_store.h"

namespace train_gpt_v2::testing {

// The full counts of issue and specification with TGV2_RELIABILITY=full, else a tenth to keep the default set short.
inline bool full_counts() {
  const char* wanted = std::getenv("TGV2_RELIABILITY");
  return wanted && std::string(wanted) == "full";
}
inline std::int64_t cases(std::int64_t full, std::int64_t part) {
  return full_counts() ? full : part;
}

// One line of the table that scripts/reliability.sh prints.
inline void figure(const std::string& what, std::int64_t tried, std::int64_t lost, std::int64_t undetected) {
  std::cout << "FIGURE\t" << what << "\t" << tried << "\t" << lost << "\t" << undetected << std::endl;
}

inline Tensor random_tensor(std::int64_t elements, std::uint64_t seed, std::uint64_t stream) {
  Tensor tensor = Tensor::zeros(DType::kFloat32, {elements});
  auto* out = reinterpret_cast<float*>(const_cast<std::byte*>(tensor.data));
  RandomStream random(seed, stream);
  for (std::int64_t i = 0; i < elements; ++i) out[i] = static_cast<float>(random.uniform());
  return tensor;
}

// A small training checkpoint of `floats` numbers in four tensors.
inline Value checkpoint_of(std::int64_t step, std::int64_t floats = 4096) {
  Value model = Value::ordered_dict();
  for (std::uint64_t i = 0; i < 4; ++i) {
    model.set(concat("layer.", i, ".weight"), random_tensor(floats / 4, static_cast<std::uint64_t>(step), i));
  }
  Value root = Value::dict();
  root.set("model", std::move(model));
  root.set("step", step);
  root.set("train_gpt_v2", Value::dict());
  return root;
}

inline SaveJob job_of(std::int64_t step, std::int64_t floats = 4096) {
  SaveJob job;
  job.step = step;
  job.file_name = CheckpointStore::step_file_name(step);
  job.content = checkpoint_of(step, floats);
  return job;
}

// The step of the newest checkpoint that verifies, -1 for none, -2 when its content is not what was saved.
inline std::int64_t newest_sound_step(const std::string& folder, std::int64_t floats = 4096) {
  const auto found = find_newest_checkpoint(folder);
  if (!found) return -1;
  return identical(found->file.root, checkpoint_of(found->step, floats)) ? found->step : -2;
}

inline std::int64_t leftovers(const std::string& folder) {
  std::int64_t count = 0;
  for (const std::string& name : list_directory(folder)) count += name.find(".tmp.") != std::string::npos;
  return count;
}

}  // namespace train_gpt_v2::testing
