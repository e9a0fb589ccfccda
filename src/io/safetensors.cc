#include "train_gpt_v2/io/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "byte_reader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMaxHeader = 16 << 20;
constexpr std::size_t kMaxTensors = 20'000, kMaxDimensions = 64;

struct TypeName {
  std::string_view name;
  DType dtype;
};
constexpr auto kTypes = std::to_array<TypeName>({{"F32", DType::kFloat32},
                                                 {"F64", DType::kFloat64},
                                                 {"F16", DType::kFloat16},
                                                 {"BF16", DType::kBFloat16},
                                                 {"I64", DType::kInt64},
                                                 {"I32", DType::kInt32},
                                                 {"I16", DType::kInt16},
                                                 {"I8", DType::kInt8},
                                                 {"U8", DType::kUInt8},
                                                 {"U16", DType::kUInt16},
                                                 {"BOOL", DType::kBool}});

class Reader {
 public:
  explicit Reader(std::shared_ptr<const MappedFile> file) : file_(std::move(file)) {}

  SafetensorsFile run() {
    ByteReader in(file_->bytes());
    const std::uint64_t length = in.u64();
    if (!in.ok()) damaged("it ends inside its header");
    if (length > kMaxHeader) damaged(concat("its header claims ", length, " bytes"));
    const std::string_view header = in.text(length);
    if (!in.ok()) damaged("it ends inside its header");
    data_ = in.take(in.left());
    const Json root = parse(header);
    if (!root.is_object()) damaged("its header is not a JSON object");
    if (root.size() > kMaxTensors + 1) damaged(concat("it claims ", root.size(), " tensors"));
    SafetensorsFile content;
    for (const auto& [name, entry] : root.items()) {
      if (name == "__metadata__") {
        read_metadata(entry, content);
      } else {
        read_tensor(name, entry);
      }
    }
    check_places();
    for (Found& found : found_) content.tensors.emplace_back(std::move(found.name), std::move(found.tensor));
    return content;
  }

 private:
  struct Found {
    std::string name;
    Tensor tensor;
    std::uint64_t begin, end;
  };

  [[noreturn]] void damaged(std::string what) const {
    throw Error("CKP001", concat("the safetensors file is damaged: ", what))
        .where(file_->path())
        .fix("copy it again from where it was written");
  }

  // nlohmann's parser keeps the last of repeated keys and nests without limit; the callback refuses both.
  Json parse(std::string_view header) {
    std::vector<std::set<std::string>> keys;
    const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
      if (depth > 8) damaged("its header is nested too deep");
      if (event == Json::parse_event_t::object_start) keys.emplace_back();
      if (event == Json::parse_event_t::object_end) keys.pop_back();
      if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
        damaged(concat("the name \"", parsed.get<std::string>().substr(0, 80), "\" occurs twice"));
      }
      return true;
    };
    try {
      return Json::parse(header, check);
    } catch (const Json::exception&) {
      damaged("its header is not valid JSON");
    }
  }

  void read_metadata(const Json& entry, SafetensorsFile& content) const {
    if (!entry.is_object()) damaged("__metadata__ is not an object");
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) damaged("__metadata__ holds something that is not text");
      content.metadata.emplace(key, value.get<std::string>());
    }
  }

  std::int64_t number(const Json& value, const std::string& name) const {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > std::uint64_t{1} << 62) {
      damaged(concat("a size or offset of \"", name.substr(0, 80), "\" is not valid"));
    }
    return static_cast<std::int64_t>(value.get<std::uint64_t>());
  }

  void read_tensor(const std::string& name, const Json& entry) {
    const std::string shown = name.substr(0, 80);
    if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") ||
        !entry.contains("data_offsets")) {
      damaged(concat("\"", shown, "\" does not have exactly dtype, shape and data_offsets"));
    }
    const Json &dtype = entry["dtype"], &shape = entry["shape"], &offsets = entry["data_offsets"];
    const auto known = std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeName& type) {
      return dtype.is_string() && dtype.get_ref<const std::string&>() == type.name;
    });
    if (known == kTypes.end()) damaged(concat("the element type of \"", shown, "\" is not known"));
    if (!shape.is_array() || shape.size() > kMaxDimensions || !offsets.is_array() || offsets.size() != 2) {
      damaged(concat("the shape or the offsets of \"", shown, "\" are not valid"));
    }
    Found found{name, {}, 0, 0};
    found.tensor.dtype = known->dtype;
    std::int64_t count = 1, bytes = 0;
    bool overflow = false, empty = false;
    for (const Json& size : shape) {
      found.tensor.shape.push_back(number(size, name));
      const std::int64_t n = found.tensor.shape.back();
      empty = empty || n == 0;
      overflow = overflow || __builtin_mul_overflow(count, std::max<std::int64_t>(n, 1), &count);
    }
    overflow = overflow || __builtin_mul_overflow(count, static_cast<std::int64_t>(dtype_size(known->dtype)), &bytes);
    found.begin = static_cast<std::uint64_t>(number(offsets[0], name));
    found.end = static_cast<std::uint64_t>(number(offsets[1], name));
    if (overflow || found.begin > found.end || found.end > data_.size() ||
        found.end - found.begin != static_cast<std::uint64_t>(empty ? 0 : bytes)) {
      damaged(concat("shape, type and place of \"", shown, "\" do not agree"));
    }
    place(found);
    found_.push_back(std::move(found));
  }

  void place(Found& found) const {
    Tensor& tensor = found.tensor;
    tensor.strides.resize(tensor.shape.size());
    std::int64_t stride = 1;
    for (std::size_t i = tensor.shape.size(); i-- > 0;) {
      tensor.strides[i] = stride;
      stride *= std::max<std::int64_t>(tensor.shape[i], 1);
    }
    tensor.data = data_.data() + found.begin;
    tensor.owner = file_;
    // The format does not align elements by itself.
    if (found.end > found.begin && reinterpret_cast<std::uintptr_t>(tensor.data) % dtype_size(tensor.dtype) != 0) {
      tensor = Tensor::copy_of(tensor.dtype, tensor.shape, data_.subspan(found.begin, found.end - found.begin));
    }
  }

  void check_places() {
    std::stable_sort(found_.begin(), found_.end(), [](const Found& a, const Found& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    });
    std::uint64_t end = 0;
    for (const Found& found : found_) {
      if (found.begin != end) damaged(concat("\"", found.name.substr(0, 80), "\" overlaps another or leaves a hole"));
      end = found.end;
    }
    if (end != data_.size()) damaged(concat(data_.size() - end, " bytes belong to no tensor"));
  }

  std::shared_ptr<const MappedFile> file_;
  std::span<const std::byte> data_;
  std::vector<Found> found_;
};

std::string type_name(DType dtype) {
  for (const TypeName& type : kTypes) {
    if (type.dtype == dtype) return std::string(type.name);
  }
  return {};
}

}  // namespace

SafetensorsFile read_safetensors(const std::string& path) {
  return read_safetensors(std::make_shared<const MappedFile>(path));
}

SafetensorsFile read_safetensors(std::shared_ptr<const MappedFile> file) {
  return Reader(std::move(file)).run();
}

void write_safetensors(const std::string& path, const SafetensorsFile& content) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!content.metadata.empty()) header["__metadata__"] = content.metadata;
  std::uint64_t end = 0;
  std::set<std::string_view> names;
  for (const auto& [name, tensor] : content.tensors) {
    if (name == "__metadata__" || !names.insert(name).second || !valid_utf8(name)) {
      throw Error("CKP003", concat("a safetensors file cannot hold a tensor called \"", name, "\" (or two of them)"));
    }
    const std::uint64_t begin = end;
    end += tensor.nbytes();
    header[name] = {{"dtype", type_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t length = text.size();
  AtomicFile file(path, 8 + length + end);
  file.write(&length, sizeof length);
  file.write(text);
  for (const auto& [name, any] : content.tensors) {
    const Tensor tensor = any.contiguous();
    if (tensor.numel() > 0) file.write(tensor.data, tensor.nbytes());
  }
  file.commit();
}

}  // namespace train_gpt_v2
