#include "train_gpt_v2/model/dropout.h"

#include <ATen/Context.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>

#include <mutex>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/random.h"

#ifdef TGV2_OWN_CUDA_KERNELS
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/from_blob.h>

#include "train_gpt_v2/kernels/cuda.h"
#endif

namespace train_gpt_v2 {
namespace {

at::Tensor cuda_dropout(const at::Tensor& x, const Dropout& dropout, std::uint32_t site, const Segments& segments) {
#ifdef TGV2_OWN_CUDA_KERNELS
  if (at::globalContext().deterministicAlgorithms()) {
    // The CPU's masks; the row names travel to the device at every call, which a deterministic run can afford.
    const at::Tensor rows = at::from_blob(const_cast<std::uint32_t*>(segments.dropout_rows.data()),
                                          {static_cast<std::int64_t>(segments.dropout_rows.size())}, at::kInt)
                                .to(x.device());
    at::Tensor scale = at::empty(x.sizes(), x.options().dtype(at::kFloat));
    const int failed =
        launch_dropout_scale(dropout, site, static_cast<const std::uint32_t*>(rows.const_data_ptr()), x.size(0),
                             x.size(1), scale.mutable_data_ptr<float>(), at::cuda::getCurrentCUDAStream().stream());
    TGV2_CHECK(failed == 0);
    return x * scale.to(x.scalar_type());
  }
#endif
  (void)site;
  (void)segments;
  return at::dropout(x, dropout_rate(dropout), true);
}

}  // namespace

double dropout_rate(const Dropout& dropout) {
  return dropout.threshold / 65536.0;
}

at::Tensor apply_dropout(const at::Tensor& x, const Dropout& dropout, std::uint32_t site, const Segments& segments) {
  if (!dropout.active()) return x;
  if (x.is_cuda()) return cuda_dropout(x, dropout, site, segments);
  at::Tensor scale = at::empty(x.sizes(), at::kFloat);
  fill_dropout_scale(dropout, site, segments.dropout_rows.data(), x.size(0), x.size(1),
                     scale.mutable_data_ptr<float>());
  return x * scale.to(x.scalar_type());
}

at::Tensor apply_attention_dropout(const at::Tensor& probabilities, const Dropout& dropout, std::int64_t layer,
                                   std::int64_t sequence) {
  if (!dropout.active()) return probabilities;
  const std::int64_t heads = probabilities.size(0), rows = probabilities.size(1);
  at::Tensor scale = at::empty({heads, rows, rows}, at::kFloat);
  for (std::int64_t head = 0; head < heads; ++head) {
    fill_attention_dropout_scale(dropout, static_cast<std::uint32_t>(layer), static_cast<std::uint32_t>(head),
                                 static_cast<std::uint32_t>(sequence), 0, rows, rows,
                                 scale.mutable_data_ptr<float>() + head * rows * rows);
  }
  return probabilities * scale.to(probabilities.scalar_type());
}

void seed_cuda_dropout(at::Device device, const Dropout& dropout, std::int64_t layer) {
  if (!device.is_cuda() || !dropout.active()) return;
  const auto words =
      philox4x32({dropout.key.step, dropout.key.micro, static_cast<std::uint32_t>(layer + 1), 0x43554441},
                 {static_cast<std::uint32_t>(dropout.key.seed), static_cast<std::uint32_t>(dropout.key.seed >> 32)});
  at::Generator generator = at::globalContext().defaultGenerator(device);
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_current_seed(static_cast<std::uint64_t>(words[0]) << 32 | words[1]);
}

}  // namespace train_gpt_v2
