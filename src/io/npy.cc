#include "train_gpt_v2/io/npy.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kMaxHeader = 4096;      // numpy itself: 10,000
constexpr std::size_t kMaxDimensions = 32;    // numpy 1
constexpr std::size_t kReadBelow = 64 << 10;  // a read costs less than a mapping up to about here
constexpr std::string_view kMagic = "\x93NUMPY";

struct TypeName {
  std::string_view npy;
  DType dtype;
};
constexpr auto kTypes = std::to_array<TypeName>({{"<f4", DType::kFloat32},
                                                 {"<f8", DType::kFloat64},
                                                 {"<f2", DType::kFloat16},
                                                 {"<i8", DType::kInt64},
                                                 {"<i4", DType::kInt32},
                                                 {"<i2", DType::kInt16},
                                                 {"|u1", DType::kUInt8},
                                                 {"<u2", DType::kUInt16}});

[[noreturn]] void refuse(const std::string& path, std::string why, std::string fix = {}) {
  Error error("IO006", std::move(why));
  std::move(error).where(path);
  if (!fix.empty()) std::move(error).fix(std::move(fix));
  throw error;
}

// The header is one Python dict of three known keys; this reads exactly that and nothing more.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  void parse(Tensor& tensor) {
    bool seen_type = false, seen_order = false, seen_shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string_view key = string();
      expect(':');
      if (key == "descr" && !std::exchange(seen_type, true)) {
        tensor.dtype = type();
      } else if (key == "fortran_order" && !std::exchange(seen_order, true)) {
        order();
      } else if (key == "shape" && !std::exchange(seen_shape, true)) {
        shape(tensor.shape);
      } else {
        refuse(path_, concat("the header has an unknown or repeated key \"", key, "\""));
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (at_ != text_.size()) refuse(path_, "text follows the header's closing brace");
    if (!seen_type || !seen_order || !seen_shape) refuse(path_, "the header lacks descr, fortran_order or shape");
  }

 private:
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool accept(char wanted) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  void expect(char wanted) {
    if (!accept(wanted))
      refuse(path_, concat("the header is malformed at character ", at_, ": expected '", wanted, "'"));
  }
  bool accept_word(std::string_view word) {
    skip_space();
    if (!starts_with(text_.substr(at_), word)) return false;
    at_ += word.size();
    return true;
  }
  std::string_view string() {
    skip_space();
    const char quote = at_ < text_.size() ? text_[at_] : '\0';
    if (quote != '\'' && quote != '"') refuse(path_, concat("the header is malformed at character ", at_));
    const std::size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) refuse(path_, "the header holds an unfinished string");
    const std::string_view content = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return content;
  }
  DType type() {
    skip_space();
    if (at_ < text_.size() && text_[at_] == '[') refuse(path_, "structured arrays are not read", "save a plain array");
    const std::string_view name = string();
    for (const TypeName& known : kTypes) {
      if (name == known.npy || (known.dtype == DType::kUInt8 && name == "<u1")) return known.dtype;
    }
    std::string why = concat("element type \"", name, "\" is not read");
    if (name.find('O') != std::string_view::npos) why = "an object array holds Python code and is never read";
    if (starts_with(name, ">")) why = concat("big-endian element type \"", name, "\" is not read");
    refuse(path_, why, "save it as int32, int64, float16, float32 or float64 (array.astype(...))");
  }
  void order() {
    if (accept_word("False")) return;
    if (!accept_word("True")) refuse(path_, "fortran_order is neither True nor False");
    refuse(path_, "the array is stored in Fortran order", "save numpy.ascontiguousarray(array)");
  }
  void shape(std::vector<std::int64_t>& sizes) {
    expect('(');
    while (!accept(')')) {
      sizes.push_back(number());
      if (sizes.size() > kMaxDimensions) refuse(path_, concat("more than ", kMaxDimensions, " dimensions"));
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
  }
  std::int64_t number() {
    skip_space();
    std::int64_t value = 0;
    const std::size_t first = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      if (__builtin_mul_overflow(value, std::int64_t{10}, &value) ||
          __builtin_add_overflow(value, std::int64_t{text_[at_] - '0'}, &value)) {
        refuse(path_, "a dimension does not fit 64 bits");
      }
    }
    if (at_ == first) refuse(path_, "a dimension is not a plain non-negative number");
    return value;
  }

  std::string_view text_;
  const std::string& path_;
  std::size_t at_ = 0;
};

// Fills dtype, shape and strides; returns where the data begins. `file` may be only the beginning of the file.
std::size_t parse_header(std::string_view file, std::uint64_t size, const std::string& path, Tensor& tensor) {
  if (file.size() < 10 || !starts_with(file, kMagic)) refuse(path, "not a .npy file (its first bytes are not NUMPY's)");
  const auto byte = [&](std::size_t i) { return static_cast<std::size_t>(static_cast<unsigned char>(file[i])); };
  const std::size_t version = byte(6);
  if (version < 1 || version > 3) refuse(path, concat("unknown .npy version ", version));
  const std::size_t prefix = version == 1 ? 10 : 12;
  if (file.size() < prefix) refuse(path, "the file ends inside its header");
  std::size_t length = byte(8) | byte(9) << 8;
  if (version > 1) length |= byte(10) << 16 | byte(11) << 24;
  if (length > kMaxHeader) refuse(path, concat("the header is ", length, " bytes long, ", kMaxHeader, " are allowed"));
  if (file.size() < prefix + length) refuse(path, "the file ends inside its header");
  HeaderParser(file.substr(prefix, length), path).parse(tensor);

  std::int64_t elements = 1, bytes = 0;
  tensor.strides.resize(tensor.shape.size());
  bool overflow = false, empty = false;
  for (const std::int64_t n : tensor.shape) empty = empty || n == 0;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    tensor.strides[i] = elements;
    // As numpy counts: an extent of 0 does not make room for extents whose product nobody could hold.
    overflow = overflow || __builtin_mul_overflow(elements, std::max<std::int64_t>(tensor.shape[i], 1), &elements);
  }
  overflow = overflow || __builtin_mul_overflow(elements, static_cast<std::int64_t>(dtype_size(tensor.dtype)), &bytes);
  if (empty) bytes = 0;
  const std::uint64_t present = size - prefix - length;
  if (overflow || static_cast<std::uint64_t>(bytes) != present) {
    throw Error("IO006", "the shape does not fit the size of the file")
        .where(path)
        .detail(concat("shape ", shape_text(tensor.shape), " of ", dtype_name(tensor.dtype), " needs ",
                       overflow ? "more than 2^63" : std::to_string(bytes), " bytes, the file holds ", present))
        .fix("the file is truncated or damaged; write it again");
  }
  return prefix + length;
}

}  // namespace

Tensor read_npy(const std::string& path) {
  Tensor tensor;
  const std::byte* base = nullptr;
  std::size_t size = 0;
  if (file_size(path) < kReadBelow) {
    auto content = std::make_shared<std::string>(read_file(path, kReadBelow));
    base = reinterpret_cast<const std::byte*>(content->data());
    size = content->size();
    tensor.owner = std::move(content);
  } else {
    auto mapped = std::make_shared<const MappedFile>(path);
    base = mapped->bytes().data();
    size = mapped->bytes().size();
    tensor.owner = std::move(mapped);
  }
  tensor.data = base + parse_header({reinterpret_cast<const char*>(base), size}, size, path, tensor);
  // Headers of other writers need not be padded; unaligned elements would be undefined behaviour for users.
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % dtype_size(tensor.dtype) != 0) {
    return Tensor::copy_of(tensor.dtype, tensor.shape, {tensor.data, tensor.nbytes()});
  }
  return tensor;
}

Tensor read_npy_header(const std::string& path) {
  const MappedFile mapped(path);
  Tensor tensor;
  parse_header({reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size()}, mapped.bytes().size(),
               path, tensor);
  return tensor;
}

void write_npy(const std::string& path, const Tensor& any) {
  const Tensor tensor = any.contiguous();
  std::string_view type;
  for (const TypeName& known : kTypes) {
    if (known.dtype == tensor.dtype) type = known.npy;
  }
  if (type.empty()) throw Error("IO006", concat("a .npy file cannot hold ", dtype_name(tensor.dtype))).where(path);
  std::string sizes;
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) sizes += (i > 0 ? ", " : "") + std::to_string(tensor.shape[i]);
  if (tensor.shape.size() == 1) sizes += ",";
  std::string header = concat("{'descr': '", type, "', 'fortran_order': False, 'shape': (", sizes, "), }");
  // numpy leaves room for the first dimension to grow to 20 digits, then pads by 1 to 64 spaces to a multiple of 64.
  if (!tensor.shape.empty()) header.append(21 - std::to_string(tensor.shape[0]).size(), ' ');
  const std::size_t unpadded = 10 + header.size() + 1;
  header.append(64 - unpadded % 64, ' ');
  header += '\n';
  std::string start(kMagic);
  start += '\x01';
  start += '\0';
  start += static_cast<char>(header.size() & 0xFF);
  start += static_cast<char>(header.size() >> 8);
  AtomicFile file(path, start.size() + header.size() + tensor.nbytes());
  file.write(start + header);
  if (tensor.numel() > 0) file.write(tensor.data, tensor.nbytes());
  file.commit();
}

}  // namespace train_gpt_v2
