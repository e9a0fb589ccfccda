#pragma once
// Reduced-precision matmuls as the reference trains: parameters and residual stream stay fp32, matrix products run in
// bf16 or fp16 (torch's autocast). kFloat and kDouble switch it off.
//
// The flags belong to the calling thread; leaving the outermost scope drops the cached casts of the weights, without
// which the next forward would use the weights from before the optimiser step (libtorch.md §2).

#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>

namespace train_gpt_v2 {

class AutocastScope {
 public:
  AutocastScope(c10::DeviceType device, c10::ScalarType compute);
  ~AutocastScope();
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  c10::DeviceType device_;
  bool was_enabled_;
  c10::ScalarType was_type_;
};

// The type that a matrix product of fp32 inputs would use right now on this device and thread.
c10::ScalarType active_compute_type(c10::DeviceType device);

}  // namespace train_gpt_v2
