// The object half of the Unpickler: containers, classes, tensors and their storages.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "unpickler.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kMaxGlobals = 1000, kMaxGlobalName = 256;
constexpr std::size_t kMaxTensors = 100'000, kMaxDimensions = 64;

struct StorageClass {
  std::string_view name;
  DType dtype;
};
constexpr auto kStorageClasses = std::to_array<StorageClass>({{"FloatStorage", DType::kFloat32},
                                                              {"DoubleStorage", DType::kFloat64},
                                                              {"HalfStorage", DType::kFloat16},
                                                              {"BFloat16Storage", DType::kBFloat16},
                                                              {"LongStorage", DType::kInt64},
                                                              {"IntStorage", DType::kInt32},
                                                              {"ShortStorage", DType::kInt16},
                                                              {"CharStorage", DType::kInt8},
                                                              {"ByteStorage", DType::kUInt8},
                                                              {"BoolStorage", DType::kBool}});

const DType* storage_type(std::string_view global) {
  for (const std::string_view module : {std::string_view("torch."), std::string_view("torch.cuda.")}) {
    for (const StorageClass& known : kStorageClasses) {
      if (starts_with(global, module) && global.substr(module.size()) == known.name) return &known.dtype;
    }
  }
  return nullptr;
}

// Text of code points below 256 back to the bytes it stands for (Python's latin-1); false when it holds others.
bool latin1_bytes(std::string_view utf8, std::string& bytes) {
  for (std::size_t i = 0; i < utf8.size(); ++i) {
    const auto lead = static_cast<unsigned char>(utf8[i]);
    if (lead < 0x80) {
      bytes += utf8[i];
    } else if ((lead == 0xC2 || lead == 0xC3) && i + 1 < utf8.size()) {
      bytes += static_cast<char>((lead & 3) << 6 | (utf8[++i] & 0x3F));
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace

void Unpickler::append(NodeId target, const std::vector<NodeId>& items) {
  if (!is(target, Kind::kList) && !is(target, Kind::kOpaque))
    damaged("an item is appended to something that is no list");
  auto& list = contents(target).items;
  list.insert(list.end(), items.begin(), items.end());
}

void Unpickler::set_items(NodeId target, const std::vector<NodeId>& items) {
  if (!is(target, Kind::kDict) && !is(target, Kind::kOrderedDict) && !is(target, Kind::kOpaque)) {
    damaged("an item is set in something that is no dict");
  }
  if (items.size() % 2 != 0) damaged("a dict has a key without a value");
  for (std::size_t i = 0; i < items.size(); i += 2) {
    const Kind key = node(items[i]).kind;
    if (key == Kind::kList || key == Kind::kDict || key == Kind::kOrderedDict || key == Kind::kStorage ||
        key == Kind::kTensor) {
      damaged("a dict has a key that cannot be one");
    }
  }
  auto& dict = contents(target).items;
  dict.insert(dict.end(), items.begin(), items.end());
}

void Unpickler::build(NodeId target, NodeId state) {
  switch (node(target).kind) {
    case Kind::kOpaque:
      contents(target).items.push_back(state);
      return;
    case Kind::kDict:
    case Kind::kOrderedDict:  // state_dict()._metadata
    case Kind::kTensor:       // attributes somebody hung on
    case Kind::kString:
      return;
    default:
      damaged("attributes are set on something that has none");
  }
}

void Unpickler::push_global(std::string_view module, std::string_view name) {
  if (module.empty() || name.empty() || module.size() + name.size() > kMaxGlobalName) {
    damaged("the name of a class is empty or too long");
  }
  if (!valid_utf8(module) || !valid_utf8(name)) damaged("the name of a class is not UTF-8");
  const auto [known, added] = globals_.try_emplace(concat(module, ".", name), 0);
  if (added) {
    if (globals_.size() > kMaxGlobals) damaged(concat("more than ", kMaxGlobals, " classes"));
    graph_.texts.push_back(known->first);  // a map's keys stay where they are
    known->second = add(Kind::kGlobal, graph_.texts.size() - 1);
  }
  push(known->second);
}

void Unpickler::reduce(NodeId callable, NodeId arguments) {
  if (!is(arguments, Kind::kTuple)) damaged("the arguments of an object are not a tuple");
  if (is(callable, Kind::kOpaque)) return push_opaque(contents(callable).class_name, {callable, arguments});
  if (!is(callable, Kind::kGlobal)) damaged("an object is made by something that is no class");
  if (rebuild(text(callable), std::vector<NodeId>(contents(arguments).items))) return;
  push_opaque(text(callable), {arguments});
}

void Unpickler::new_object(NodeId type, NodeId arguments, std::vector<NodeId> more) {
  if (!is(type, Kind::kGlobal)) damaged("an object is made of something that is no class");
  if (!is(arguments, Kind::kTuple)) damaged("the arguments of an object are not a tuple");
  const auto& list = contents(arguments).items;
  if (text(type) == "torch.torch_version.TorchVersion" && list.size() == 1 && is(list[0], Kind::kString)) {
    return push(list[0]);
  }
  more.insert(more.begin(), arguments);
  push_opaque(text(type), std::move(more));
}

// The constructors that hold data and do nothing. False: not one of them, or not with arguments it can have.
bool Unpickler::rebuild(std::string_view function, const std::vector<NodeId>& arguments) {
  if (function == "torch._utils._rebuild_tensor_v2") return rebuild_tensor(arguments);
  if (function == "collections.OrderedDict") return rebuild_ordered_dict(arguments);
  if (function == "_codecs.encode") return rebuild_bytes(arguments);
  if (function == "numpy.core.multiarray.scalar" || function == "numpy._core.multiarray.scalar") {
    return rebuild_numpy_scalar(arguments);
  }
  if (function == "torch._utils._rebuild_parameter" || function == "torch._utils._rebuild_parameter_with_state") {
    if (arguments.empty() || !is(arguments[0], Kind::kTensor)) return false;
    push(arguments[0]);
    return true;
  }
  if (function == "torch.Size" && arguments.size() == 1 && is(arguments[0], Kind::kTuple)) {
    push(arguments[0]);
    return true;
  }
  if (function == "collections.defaultdict") {
    push_container(Kind::kDict);
    return true;
  }
  return false;
}

bool Unpickler::rebuild_ordered_dict(const std::vector<NodeId>& arguments) {
  if (arguments.size() > 1 || (arguments.size() == 1 && !is(arguments[0], Kind::kList))) return false;
  std::vector<NodeId> items;
  if (arguments.size() == 1) {  // Python 2: a list of pairs
    for (const NodeId pair : contents(arguments[0]).items) {
      if (!is(pair, Kind::kTuple) && !is(pair, Kind::kList)) return false;
      const auto& both = contents(pair).items;
      if (both.size() != 2) return false;
      items.insert(items.end(), both.begin(), both.end());
    }
  }
  push_container(Kind::kOrderedDict);
  set_items(stack_.back(), items);
  return true;
}

bool Unpickler::rebuild_bytes(const std::vector<NodeId>& arguments) {
  if (arguments.size() != 2 || !is(arguments[0], Kind::kString) || !is(arguments[1], Kind::kString)) return false;
  const std::string_view encoding = text(arguments[1]);
  std::string bytes;
  if ((encoding != "latin1" && encoding != "latin-1") || !latin1_bytes(text(arguments[0]), bytes)) return false;
  // Repeated references could multiply one long text; in the tree they are charged, here once per instruction.
  kept_bytes_ += bytes.size();
  if (kept_bytes_ > 2 * source_.stream.size()) damaged("the same bytes are made again and again");
  graph_.texts.push_back(keep(std::move(bytes)));
  push(add(Kind::kBytes, graph_.texts.size() - 1));
  return true;
}

// numpy's dtype is an opaque node (arguments, state); a scalar is (dtype, bytes).
bool Unpickler::rebuild_numpy_scalar(const std::vector<NodeId>& arguments) {
  if (arguments.size() != 2 || !is(arguments[0], Kind::kOpaque) || !is(arguments[1], Kind::kBytes)) return false;
  const auto& type = contents(arguments[0]);
  if (type.class_name != "numpy.dtype" || type.items.empty() || !is(type.items[0], Kind::kTuple)) return false;
  const auto& names = contents(type.items[0]).items;
  if (names.empty() || !is(names[0], Kind::kString)) return false;
  const std::string_view name = text(names[0]), bytes = text(arguments[1]);
  const auto read = [&]<typename Number>(Number value) {
    if (bytes.size() != sizeof value) return false;
    std::memcpy(&value, bytes.data(), sizeof value);
    const NodeId id = add(std::is_floating_point_v<Number> ? Kind::kFloat : Kind::kInt);
    if constexpr (std::is_floating_point_v<Number>) {
      graph_.nodes[id].real = value;
    } else {
      graph_.nodes[id].integer = value;
    }
    push(id);
    return true;
  };
  if (name == "f8") return read(double{});
  if (name == "f4") return read(float{});
  if (name == "i8") return read(std::int64_t{});
  if (name == "i4") return read(std::int32_t{});
  if (name == "b1") return read(std::uint8_t{});
  return false;
}

std::vector<std::int64_t> Unpickler::int_tuple(NodeId id, const char* what) {
  if (!is(id, Kind::kTuple)) damaged(concat("the ", what, " of a tensor is not a tuple"));
  const auto& items = contents(id).items;
  if (items.size() > kMaxDimensions) damaged(concat("a tensor has ", items.size(), " dimensions"));
  std::vector<std::int64_t> values;
  for (const NodeId item : items) {
    if (!is(item, Kind::kInt) || node(item).integer < 0) damaged(concat("the ", what, " of a tensor is not valid"));
    values.push_back(node(item).integer);
  }
  return values;
}

// (storage, offset, size, stride, requires_grad, hooks[, metadata]), offset and strides in elements.
bool Unpickler::rebuild_tensor(const std::vector<NodeId>& arguments) {
  if (arguments.size() < 4 || arguments.size() > 8) damaged("a tensor has the wrong number of arguments");
  if (is(arguments[0], Kind::kOpaque)) return false;  // of a type we do not know
  if (!is(arguments[0], Kind::kStorage)) damaged("a tensor has no storage");
  if (!is(arguments[1], Kind::kInt)) damaged("the offset of a tensor is not a number");
  if (graph_.tensors.size() == kMaxTensors) damaged(concat("more than ", human_count(kMaxTensors), " tensors"));
  const Storage& storage = storages_[node(arguments[0]).index];
  Tensor tensor;
  tensor.dtype = storage.dtype;
  tensor.shape = int_tuple(arguments[2], "size");
  tensor.strides = int_tuple(arguments[3], "stride");
  const std::int64_t offset = node(arguments[1]).integer;
  check_view(tensor, offset, storage);
  tensor.owner = storage.bytes.owner;
  tensor.data = storage.bytes.bytes.data();
  if (tensor.numel() > 0) tensor.data += static_cast<std::size_t>(offset) * dtype_size(tensor.dtype);
  graph_.tensors.push_back(std::move(tensor));
  push(add(Kind::kTensor, graph_.tensors.size() - 1));
  return true;
}

void Unpickler::check_view(const Tensor& tensor, std::int64_t offset, const Storage& storage) const {
  if (tensor.shape.size() != tensor.strides.size()) damaged("a tensor has another number of sizes than strides");
  if (offset < 0) damaged("a tensor begins before its storage");
  // Sizes beside a zero count too: consumers multiply them in any order.
  std::int64_t count = 1, last = offset;
  bool overflow = false, empty = false;
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    const std::int64_t size = tensor.shape[i];
    std::int64_t reach = 0;
    empty = empty || size == 0;
    overflow = overflow || __builtin_mul_overflow(count, std::max<std::int64_t>(size, 1), &count) ||
               __builtin_mul_overflow(std::max<std::int64_t>(size - 1, 0), tensor.strides[i], &reach) ||
               __builtin_add_overflow(last, reach, &last);
  }
  const auto item = static_cast<std::int64_t>(dtype_size(tensor.dtype));
  std::int64_t bytes = 0;
  overflow = overflow || __builtin_mul_overflow(count, item, &bytes);
  if (overflow) damaged("a tensor is larger than 2^63 bytes");
  const auto available = static_cast<std::int64_t>(storage.bytes.bytes.size()) / item;
  if (!empty && last >= available) {
    damaged(concat("a tensor of shape ", shape_text(tensor.shape), " reaches beyond its storage of ", available,
                   " elements"));
  }
  if (!empty && static_cast<std::uint64_t>(bytes) > source_.max_tensor_bytes) {
    damaged(concat("a tensor of shape ", shape_text(tensor.shape), " would be larger than the file"));
  }
}

// ("storage", class, key, location, number of elements); the location (cpu, cuda:0) says nothing about the bytes.
void Unpickler::persistent_id(NodeId id) {
  if (!is(id, Kind::kTuple)) damaged("a storage is not described by a tuple");
  const auto& parts = contents(id).items;
  if (parts.size() != 5 || !is(parts[0], Kind::kString) || text(parts[0]) != "storage" ||
      !is(parts[1], Kind::kGlobal) || !is(parts[2], Kind::kString) || !is(parts[4], Kind::kInt)) {
    damaged("a storage is not described as torch describes it");
  }
  const std::string_view key = text(parts[2]), name = text(parts[1]);
  const DType* dtype = storage_type(name);
  if (!dtype) return push_opaque(name, {id});
  std::optional<StorageBytes> bytes = source_.storage(key);
  if (!bytes) damaged(concat("storage \"", key.substr(0, 40), "\" is missing in the file"));
  const std::int64_t count = node(parts[4]).integer;
  std::int64_t size = 0;
  if (count < 0 || __builtin_mul_overflow(count, static_cast<std::int64_t>(dtype_size(*dtype)), &size) ||
      static_cast<std::uint64_t>(size) != bytes->bytes.size()) {
    damaged(concat("storage \"", key.substr(0, 40), "\" of ", count, " elements of ", dtype_name(*dtype), " has ",
                   bytes->bytes.size(), " bytes in the file"));
  }
  storages_.push_back({*dtype, std::move(*bytes)});
  push(add(Kind::kStorage, storages_.size() - 1));
}

}  // namespace train_gpt_v2
