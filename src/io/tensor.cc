#include "train_gpt_v2/io/tensor.h"

#include <bit>
#include <cstring>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {

std::size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64:
      return 8;
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kInt16:
    case DType::kUInt16:
      return 2;
    case DType::kInt8:
    case DType::kUInt8:
    case DType::kBool:
      return 1;
  }
  return 0;
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kInt64:
      return "int64";
    case DType::kInt32:
      return "int32";
    case DType::kInt16:
      return "int16";
    case DType::kInt8:
      return "int8";
    case DType::kUInt8:
      return "uint8";
    case DType::kUInt16:
      return "uint16";
    case DType::kBool:
      return "bool";
  }
  return "?";
}

bool is_floating_point(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kFloat16 || dtype == DType::kBFloat16;
}

std::int64_t Tensor::numel() const {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  return count;
}

bool Tensor::is_contiguous() const {
  std::int64_t expected = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

std::span<const std::byte> Tensor::bytes() const {
  TGV2_CHECK(is_contiguous() || numel() == 0);
  return {data, nbytes()};
}

Tensor Tensor::zeros(DType dtype, std::vector<std::int64_t> shape) {
  Tensor tensor;
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.strides.resize(tensor.shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    tensor.strides[i] = stride;
    stride *= tensor.shape[i];
  }
  auto storage = std::make_shared<std::vector<std::byte>>(tensor.nbytes());
  tensor.data = storage->data();
  tensor.owner = std::move(storage);
  return tensor;
}

Tensor Tensor::copy_of(DType dtype, std::vector<std::int64_t> shape, std::span<const std::byte> bytes) {
  Tensor tensor = zeros(dtype, std::move(shape));
  TGV2_CHECK(bytes.size() == tensor.nbytes());
  if (!bytes.empty()) std::memcpy(const_cast<std::byte*>(tensor.data), bytes.data(), bytes.size());
  return tensor;
}

Tensor Tensor::contiguous() const {
  if (is_contiguous()) return *this;
  Tensor copy = zeros(dtype, shape);
  const std::size_t item = dtype_size(dtype);
  auto* out = const_cast<std::byte*>(copy.data);
  std::vector<std::int64_t> index(shape.size(), 0);
  for (std::int64_t n = numel(); n > 0; --n) {
    std::int64_t offset = 0;
    for (std::size_t d = 0; d < shape.size(); ++d) offset += index[d] * strides[d];
    std::memcpy(out, data + static_cast<std::ptrdiff_t>(offset) * static_cast<std::ptrdiff_t>(item), item);
    out += item;
    for (std::size_t d = shape.size(); d-- > 0;) {
      if (++index[d] < shape[d]) break;
      index[d] = 0;
    }
  }
  return copy;
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

namespace {

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16;
  std::uint32_t exponent = (half >> 10) & 31, mantissa = half & 0x3FFu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

template <typename Stored, typename Out, typename Convert>
void convert(const Tensor& tensor, std::vector<Out>& out, Convert convert_one) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored value;
    std::memcpy(&value, tensor.data + i * sizeof(Stored), sizeof value);
    out[i] = convert_one(value);
  }
}

template <typename Out>
std::vector<Out> to_vector(const Tensor& any) {
  const Tensor tensor = any.contiguous();
  std::vector<Out> out(static_cast<std::size_t>(tensor.numel()));
  const auto plain = [](auto value) { return static_cast<Out>(value); };
  switch (tensor.dtype) {
    case DType::kFloat32:
      convert<float>(tensor, out, plain);
      break;
    case DType::kFloat64:
      convert<double>(tensor, out, plain);
      break;
    case DType::kInt64:
      convert<std::int64_t>(tensor, out, plain);
      break;
    case DType::kInt32:
      convert<std::int32_t>(tensor, out, plain);
      break;
    case DType::kInt16:
      convert<std::int16_t>(tensor, out, plain);
      break;
    case DType::kUInt16:
      convert<std::uint16_t>(tensor, out, plain);
      break;
    case DType::kInt8:
      convert<std::int8_t>(tensor, out, plain);
      break;
    case DType::kUInt8:
    case DType::kBool:
      convert<std::uint8_t>(tensor, out, plain);
      break;
    case DType::kFloat16:
      convert<std::uint16_t>(tensor, out, [](std::uint16_t half) { return static_cast<Out>(half_to_float(half)); });
      break;
    case DType::kBFloat16:
      convert<std::uint16_t>(tensor, out, [](std::uint16_t upper) {
        return static_cast<Out>(std::bit_cast<float>(static_cast<std::uint32_t>(upper) << 16));
      });
      break;
  }
  return out;
}

}  // namespace

std::vector<float> to_float_vector(const Tensor& tensor) {
  return to_vector<float>(tensor);
}
std::vector<std::int64_t> to_int_vector(const Tensor& tensor) {
  return to_vector<std::int64_t>(tensor);
}

}  // namespace train_gpt_v2
