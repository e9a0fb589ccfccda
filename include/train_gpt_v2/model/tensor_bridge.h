#pragma once
// Between torch tensors and the torch-free tensors of files, without copying where memory can be shared.
//
// tensor_to_torch: the result views the same bytes (often a read-only mapped file: never write to it) and keeps their
// owner alive; strides are kept. torch_to_tensor: a CPU tensor is shared, so later in-place changes are seen; a tensor
// on another device is copied to the host first (page-locked memory for large ones on a GPU). Errors: CKP003 for types
// that files cannot hold.

#include <ATen/core/Tensor.h>

#include "train_gpt_v2/io/tensor.h"

namespace train_gpt_v2 {

at::Tensor tensor_to_torch(const Tensor& tensor);
Tensor torch_to_tensor(const at::Tensor& tensor);

at::ScalarType scalar_type(DType dtype);
DType dtype_of(at::ScalarType type);

}  // namespace train_gpt_v2
