#include "train_gpt_v2/model/tensor_bridge.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <array>
#include <utility>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::array<std::pair<DType, at::ScalarType>, 11> kTypes{{{DType::kFloat32, at::kFloat},
                                                                   {DType::kFloat64, at::kDouble},
                                                                   {DType::kFloat16, at::kHalf},
                                                                   {DType::kBFloat16, at::kBFloat16},
                                                                   {DType::kInt64, at::kLong},
                                                                   {DType::kInt32, at::kInt},
                                                                   {DType::kInt16, at::kShort},
                                                                   {DType::kInt8, at::kChar},
                                                                   {DType::kUInt8, at::kByte},
                                                                   {DType::kUInt16, at::kUInt16},
                                                                   {DType::kBool, at::kBool}}};

constexpr std::size_t kWorthPinning = 1 << 20;

// Copies from a GPU run several times faster into page-locked memory, which torch keeps for the next ones.
at::Tensor on_host(const at::Tensor& tensor) {
  if (tensor.is_cuda() && tensor.nbytes() >= kWorthPinning) {
    at::Tensor host = at::empty(tensor.sizes(), tensor.options().device(at::kCPU).pinned_memory(true));
    return host.copy_(tensor.detach());
  }
  return tensor.detach().to(at::kCPU);
}

}  // namespace

at::ScalarType scalar_type(DType dtype) {
  for (const auto& [ours, torch] : kTypes) {
    if (ours == dtype) return torch;
  }
  TGV2_CHECK(!"every DType is listed");
  return at::kFloat;
}

DType dtype_of(at::ScalarType type) {
  for (const auto& [ours, torch] : kTypes) {
    if (torch == type) return ours;
  }
  throw Error("CKP003", concat("a tensor of type ", at::toString(type), " cannot be stored"))
      .fix("convert it to a real type of at most 64 bits first");
}

at::Tensor tensor_to_torch(const Tensor& tensor) {
  const auto options = at::TensorOptions(at::kCPU).dtype(scalar_type(tensor.dtype));
  if (tensor.numel() == 0) return at::empty(tensor.shape, options);
  void* data = const_cast<std::byte*>(tensor.data);
  return at::from_blob(
      data, tensor.shape, tensor.strides, [owner = tensor.owner](void*) {}, options);
}

Tensor torch_to_tensor(const at::Tensor& tensor) {
  auto held = std::make_shared<const at::Tensor>(on_host(tensor));
  Tensor out;
  out.dtype = dtype_of(held->scalar_type());
  out.shape = held->sizes().vec();
  out.strides = held->strides().vec();
  out.data = static_cast<const std::byte*>(held->const_data_ptr());
  out.owner = held;
  return out;
}

}  // namespace train_gpt_v2
