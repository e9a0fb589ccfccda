#include "pickle_writer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr int kMaxDepth = 90;  // the reader's limit is 100

std::string_view storage_class(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "FloatStorage";
    case DType::kFloat64:
      return "DoubleStorage";
    case DType::kFloat16:
      return "HalfStorage";
    case DType::kBFloat16:
      return "BFloat16Storage";
    case DType::kInt64:
      return "LongStorage";
    case DType::kInt32:
      return "IntStorage";
    case DType::kInt16:
      return "ShortStorage";
    case DType::kInt8:
      return "CharStorage";
    case DType::kUInt8:
      return "ByteStorage";
    case DType::kBool:
      return "BoolStorage";
    case DType::kUInt16:
      return {};  // torch has no storage class for it
  }
  return {};
}

// Little-endian two's complement of a decimal number, as short as Python writes it.
std::string bytes_of_decimal(std::string_view decimal) {
  const bool negative = starts_with(decimal, "-");
  std::string bytes;
  for (const char digit : decimal.substr(negative ? 1 : 0)) {
    unsigned carry = static_cast<unsigned>(digit - '0');
    for (char& byte : bytes) {
      carry += static_cast<unsigned>(static_cast<unsigned char>(byte)) * 10;
      byte = static_cast<char>(carry & 0xFF);
      carry >>= 8;
    }
    if (carry > 0) bytes += static_cast<char>(carry);
  }
  bytes += '\0';  // room for the sign
  if (negative) {
    unsigned carry = 1;
    for (char& byte : bytes) {
      carry += static_cast<unsigned char>(~byte);
      byte = static_cast<char>(carry & 0xFF);
      carry >>= 8;
    }
  }
  const auto redundant = [&] {
    const auto last = static_cast<unsigned char>(bytes.back());
    const bool sign = bytes.size() > 1 && (bytes[bytes.size() - 2] & 0x80) != 0;
    return bytes.size() > 1 && ((last == 0 && !sign) || (last == 0xFF && sign));
  };
  while (redundant()) bytes.pop_back();
  return bytes;
}

class PickleWriter {
 public:
  explicit PickleWriter(const std::function<StoragePlace(const Tensor&)>& place) : place_(place) {}

  std::string run(const Value& root) {
    out_ = "\x80\x02";
    save(root);
    out_ += '.';
    return std::move(out_);
  }

 private:
  template <typename Number>
  void raw(Number value) {
    char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);
    out_.append(bytes, sizeof value);
  }

  void save_int(std::int64_t value) {
    if (value >= 0 && value < 256) {
      out_ += 'K';
      raw(static_cast<std::uint8_t>(value));
    } else if (value >= 0 && value < 65536) {
      out_ += 'M';
      raw(static_cast<std::uint16_t>(value));
    } else if (value == static_cast<std::int32_t>(value)) {
      out_ += 'J';
      raw(static_cast<std::int32_t>(value));
    } else {
      save_long(std::to_string(value));
    }
  }

  void save_long(std::string_view decimal) {
    const std::string bytes = bytes_of_decimal(decimal);
    if (bytes.size() > 255) refuse("an integer of more than 255 bytes");
    out_ += '\x8a';
    out_ += static_cast<char>(bytes.size());
    out_ += bytes;
  }

  // Writes `code` the first time and remembers it under its own text; later only the number.
  bool remembered(const std::string& code) {
    const auto [known, added] = memo_.try_emplace(code, memo_.size());
    if (added) return false;
    const std::size_t slot = known->second;
    if (slot < 256) {
      out_ += 'h';
      raw(static_cast<std::uint8_t>(slot));
    } else {
      out_ += 'j';
      raw(static_cast<std::uint32_t>(slot));
    }
    return true;
  }
  void remember() {
    const std::size_t slot = memo_.size() - 1;
    if (slot < 256) {
      out_ += 'q';
      raw(static_cast<std::uint8_t>(slot));
    } else {
      out_ += 'r';
      raw(static_cast<std::uint32_t>(slot));
    }
  }

  void save_text(std::string_view text) {
    if (!valid_utf8(text)) refuse("a text that is not UTF-8");
    if (text.size() > 0xFFFFFFFF) refuse("a text of more than 4 GiB");
    if (remembered(concat('X', text))) return;
    out_ += 'X';
    raw(static_cast<std::uint32_t>(text.size()));
    out_ += text;
    remember();
  }

  void save_global(std::string_view module, std::string_view name) {
    const std::string code = concat('c', module, '\n', name, '\n');
    if (remembered(code)) return;
    out_ += code;
    remember();
  }

  // Protocol 2 has no bytes; Python 3 writes them as text of the same code points.
  void save_bytes(const std::string& bytes) {
    std::string text;
    for (const char c : bytes) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte < 0x80) {
        text += c;
      } else {
        text += static_cast<char>(0xC0 | byte >> 6);
        text += static_cast<char>(0x80 | (byte & 0x3F));
      }
    }
    save_global("_codecs", "encode");
    save_text(text);
    save_text("latin1");
    out_ += "\x86R";
  }

  template <typename Range, typename SaveItem>
  void save_tuple(const Range& items, SaveItem save_item) {
    constexpr const char* kShort[] = {")", "\x85", "\x86", "\x87"};
    if (items.size() > 3) out_ += '(';
    for (const auto& item : items) save_item(item);
    out_ += items.size() > 3 ? "t" : kShort[items.size()];
  }

  void save_ordered_dict() {
    save_global("collections", "OrderedDict");
    out_ += ")R";
  }

  void save_tensor(const Tensor& tensor) {
    const std::string_view storage = storage_class(tensor.dtype);
    if (storage.empty()) refuse(concat("a tensor of ", dtype_name(tensor.dtype)));
    const StoragePlace place = place_(tensor);
    const auto save_size = [this](std::int64_t size) { save_int(size); };
    save_global("torch._utils", "_rebuild_tensor_v2");
    out_ += "((";
    save_text("storage");
    save_global("torch", storage);
    save_text(std::to_string(place.key));
    save_text("cpu");
    save_int(place.elements);
    out_ += "tQ";
    save_int(place.offset);
    save_tuple(tensor.shape, save_size);
    save_tuple(tensor.strides, save_size);
    out_ += '\x89';       // requires_grad
    save_ordered_dict();  // no hooks
    out_ += "tR";
  }

  void save_dict(const Value& dict) {
    if (dict.is_ordered_dict()) {
      save_ordered_dict();
    } else {
      out_ += '}';
    }
    if (dict.size() == 0) return;
    out_ += '(';
    for (const Value::Entry& entry : dict.entries()) {
      if (!entry.key.is_string() && !entry.key.is_int()) refuse(concat("a dict key of type ", entry.key.kind_name()));
      save(entry.key);
      path_.push_back(entry.key.is_string() ? entry.key.as_string() : std::to_string(entry.key.as_int()));
      save(entry.value);
      path_.pop_back();
    }
    out_ += 'u';
  }

  void save(const Value& value) {
    if (path_.size() > kMaxDepth) refuse(concat("values nested deeper than ", kMaxDepth));
    switch (value.kind()) {
      case Value::Kind::kNone:
        out_ += 'N';
        break;
      case Value::Kind::kBool:
        out_ += value.as_bool() ? '\x88' : '\x89';
        break;
      case Value::Kind::kInt:
        save_int(value.as_int());
        break;
      case Value::Kind::kBigInt:
        save_long(value.big_int_text());
        break;
      case Value::Kind::kFloat:
        out_ += 'G';
        raw(__builtin_bswap64(std::bit_cast<std::uint64_t>(value.as_double())));
        break;
      case Value::Kind::kString:
        save_text(value.as_string());
        break;
      case Value::Kind::kBytes:
        save_bytes(value.as_bytes());
        break;
      case Value::Kind::kTensor:
        save_tensor(value.as_tensor());
        break;
      case Value::Kind::kDict:
        save_dict(value);
        break;
      case Value::Kind::kTuple:
        save_tuple(value.items(), [this](const Value& item) { save_item(item); });
        break;
      case Value::Kind::kList:
        out_ += ']';
        if (value.size() == 0) break;
        out_ += '(';
        for (const Value& item : value.items()) save_item(item);
        out_ += 'e';
        break;
      case Value::Kind::kOpaque:
        refuse(concat("an object of class ", value.class_name()));
    }
  }

  void save_item(const Value& item) {
    path_.push_back("[]");
    save(item);
    path_.pop_back();
  }

  [[noreturn]] void refuse(std::string what) const {
    throw Error("CKP003", concat("a checkpoint cannot hold ", what)).at(join(path_, "."));
  }

  const std::function<StoragePlace(const Tensor&)>& place_;
  std::string out_;
  std::unordered_map<std::string, std::size_t> memo_;
  std::vector<std::string> path_;
};

}  // namespace

void visit_tensors(const Value& root, const std::function<void(const Tensor&)>& visit) {
  if (root.is_tensor()) {
    visit(root.as_tensor());
  } else if (root.is_dict()) {
    for (const Value::Entry& entry : root.entries()) visit_tensors(entry.value, visit);
  } else if (root.is_sequence()) {
    for (const Value& item : root.items()) visit_tensors(item, visit);
  }
}

std::string write_pickle(const Value& root, const std::function<StoragePlace(const Tensor&)>& place) {
  return PickleWriter(place).run(root);
}

}  // namespace train_gpt_v2
