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

// One tensor as the header describes it.
struct Entry {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> offsets;
  unsigned fields = 0;  // bit per field seen
};

// Takes the header apart as it is parsed: no tree of the JSON is built, so its size costs no memory, and repeated keys
// (which a tree would hide) are seen.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
  std::string problem;

  bool key(string_t& name) override {
    if (depth_ == 1) {
      if (!names_.insert(name).second) return refuse(concat("the name \"", name.substr(0, 80), "\" occurs twice"));
      in_metadata_ = name == "__metadata__";
      if (in_metadata_) return true;
      if (entries.size() == kMaxTensors) return refuse(concat("it claims more than ", kMaxTensors, " tensors"));
      entries.emplace_back().name = name;
      return true;
    }
    key_ = name;
    if (in_metadata_) return true;
    field_ = field_of(name);
    if (field_ == 0) return refuse(concat("\"", shown(), "\" does not have exactly dtype, shape and data_offsets"));
    if (entries.back().fields & field_) return refuse(concat("\"", shown(), "\" has a field twice"));
    entries.back().fields |= field_;
    return true;
  }
  bool string(string_t& text) override {
    if (depth_ == 2 && in_metadata_) {
      if (!metadata.emplace(key_, text).second) return refuse("__metadata__ has a key twice");
      return true;
    }
    if (depth_ != 2 || in_list_ || field_ != kType) return unexpected();
    entries.back().dtype = text;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (!in_list_) return unexpected();
    auto& list = field_ == kShape ? entries.back().shape : entries.back().offsets;
    if (value > std::uint64_t{1} << 62 || list.size() == kMaxDimensions) return unexpected();
    list.push_back(static_cast<std::int64_t>(value));
    return true;
  }
  bool start_object(std::size_t) override {
    if (depth_ == 2 || in_list_) return unexpected();
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_ != 2 || in_metadata_ || in_list_ || (field_ != kShape && field_ != kOffsets)) return unexpected();
    in_list_ = true;
    return true;
  }
  bool end_array() override {
    in_list_ = false;
    return true;
  }
  bool null() override { return unexpected(); }
  bool boolean(bool) override { return unexpected(); }
  bool number_integer(number_integer_t) override { return unexpected(); }
  bool number_float(number_float_t, const string_t&) override { return unexpected(); }
  bool binary(binary_t&) override { return unexpected(); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) override {
    return refuse(concat("its header is not valid JSON (at byte ", position, ")"));
  }

 private:
  enum Field : unsigned { kType = 1, kShape = 2, kOffsets = 4 };

  static unsigned field_of(std::string_view name) {
    if (name == "dtype") return kType;
    if (name == "shape") return kShape;
    return name == "data_offsets" ? unsigned{kOffsets} : 0;
  }

  std::string shown() const { return entries.empty() ? "" : entries.back().name.substr(0, 80); }
  bool refuse(std::string what) {
    problem = std::move(what);
    return false;
  }
  bool unexpected() {
    if (in_metadata_) return refuse("__metadata__ holds something that is not text");
    return refuse(depth_ == 0 ? "its header is not a JSON object"
                              : concat("a value of \"", shown(), "\" is not valid"));
  }

  int depth_ = 0;
  bool in_list_ = false;
  bool in_metadata_ = false;
  unsigned field_ = 0;
  std::string key_;
  std::set<std::string> names_;
};

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
    HeaderHandler handler;
    if (!nlohmann::json::sax_parse(header, &handler)) damaged(handler.problem);
    for (Entry& entry : handler.entries) read_tensor(entry);
    check_places();
    SafetensorsFile content;
    content.metadata = std::move(handler.metadata);
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

  void read_tensor(Entry& entry) {
    const std::string shown = entry.name.substr(0, 80);
    if (entry.fields != 7 || entry.offsets.size() != 2) {
      damaged(concat("\"", shown, "\" does not have exactly dtype, shape and data_offsets"));
    }
    const auto known =
        std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeName& type) { return type.name == entry.dtype; });
    if (known == kTypes.end()) damaged(concat("the element type of \"", shown, "\" is not known"));
    std::int64_t count = 1, bytes = 0;
    bool overflow = false, empty = false;
    for (const std::int64_t size : entry.shape) {
      empty = empty || size == 0;
      overflow = overflow || __builtin_mul_overflow(count, std::max<std::int64_t>(size, 1), &count);
    }
    overflow = overflow || __builtin_mul_overflow(count, static_cast<std::int64_t>(dtype_size(known->dtype)), &bytes);
    Found found{std::move(entry.name),
                {},
                static_cast<std::uint64_t>(entry.offsets[0]),
                static_cast<std::uint64_t>(entry.offsets[1])};
    if (overflow || found.begin > found.end || found.end > data_.size() ||
        found.end - found.begin != static_cast<std::uint64_t>(empty ? 0 : bytes)) {
      damaged(concat("shape, type and place of \"", shown, "\" do not agree"));
    }
    found.tensor.dtype = known->dtype;
    found.tensor.shape = std::move(entry.shape);
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
    if (reinterpret_cast<std::uintptr_t>(tensor.data) % dtype_size(tensor.dtype) != 0) {
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
