#pragma once
// A tensor without torch: type, shape and shared read-only bytes. What readers give and writers take, so that
// everything below the model layer builds and is tested without LibTorch.
//
// Ownership: `owner` keeps the bytes alive (a mapped file, a vector, a torch tensor). Copies are cheap and share.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

enum class DType { kFloat32, kFloat64, kFloat16, kBFloat16, kInt64, kInt32, kInt16, kInt8, kUInt8, kUInt16, kBool };

std::size_t dtype_size(DType dtype);       // bytes per element
std::string_view dtype_name(DType dtype);  // "float32", "int64" ...
bool is_floating_point(DType dtype);

struct Tensor {
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  // in elements; may be anything a torch.save file holds
  const std::byte* data = nullptr;    // first element
  std::shared_ptr<const void> owner;

  std::int64_t numel() const;
  std::size_t nbytes() const { return static_cast<std::size_t>(numel()) * dtype_size(dtype); }
  // Row-major without gaps; strides of dimensions of size 1 do not matter.
  bool is_contiguous() const;
  // This tensor when contiguous, else a copy that is.
  Tensor contiguous() const;
  // The bytes in row-major order; the tensor must be contiguous.
  std::span<const std::byte> bytes() const;

  // A contiguous tensor that owns a copy of `bytes`.
  static Tensor copy_of(DType dtype, std::vector<std::int64_t> shape, std::span<const std::byte> bytes);
  // A contiguous, zero-filled tensor; `data` may be written through a const_cast until it is shared.
  static Tensor zeros(DType dtype, std::vector<std::int64_t> shape);
};

std::string shape_text(std::span<const std::int64_t> shape);  // "[32, 64]"

// Elements of a contiguous tensor as float or int64, whatever its type; conversions are exact where they can be.
std::vector<float> to_float_vector(const Tensor& tensor);
std::vector<std::int64_t> to_int_vector(const Tensor& tensor);

}  // namespace train_gpt_v2
