#include "train_gpt_v2/io/value.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <unordered_map>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {

struct Value::Sequence {
  Kind kind = Kind::kList;
  std::string class_name;  // opaque nodes only
  std::vector<Value> items;
};

struct Value::Dict {
  static constexpr std::size_t kIndexFrom = 16;  // smaller dicts are searched

  bool ordered = false;
  std::vector<Entry> entries;
  std::unordered_multimap<std::size_t, std::size_t> index;  // hash of a string or int key -> entry

  static bool indexed(const Value& key) { return key.is_string() || key.is_int(); }
  static std::size_t hash(const Value& key) {
    return key.is_int() ? std::hash<std::int64_t>()(key.as_int()) : std::hash<std::string>()(key.as_string());
  }
  static bool same(const Value& a, const Value& b) {
    if (a.kind() != b.kind()) return false;
    return a.is_int() ? a.as_int() == b.as_int() : a.as_string() == b.as_string();
  }
  Entry* find(const Value& key) {
    if (!indexed(key)) return nullptr;
    if (entries.size() < kIndexFrom) {
      const auto found = std::find_if(entries.begin(), entries.end(),
                                      [&](const Entry& entry) { return indexed(entry.key) && same(entry.key, key); });
      return found == entries.end() ? nullptr : &*found;
    }
    const auto [first, last] = index.equal_range(hash(key));
    for (auto it = first; it != last; ++it) {
      if (same(entries[it->second].key, key)) return &entries[it->second];
    }
    return nullptr;
  }
  void append(Entry entry) {
    entries.push_back(std::move(entry));
    if (entries.size() < kIndexFrom) return;
    for (std::size_t i = entries.size() == kIndexFrom ? 0 : entries.size() - 1; i < entries.size(); ++i) {
      if (indexed(entries[i].key)) index.emplace(hash(entries[i].key), i);
    }
  }
};

Value Value::list(std::vector<Value> items) {
  Value value;
  value.data_ = std::make_shared<Sequence>(Sequence{Kind::kList, {}, std::move(items)});
  return value;
}

Value Value::tuple(std::vector<Value> items) {
  Value value;
  value.data_ = std::make_shared<Sequence>(Sequence{Kind::kTuple, {}, std::move(items)});
  return value;
}

Value Value::opaque(std::string class_name, std::vector<Value> parts) {
  Value value;
  value.data_ = std::make_shared<Sequence>(Sequence{Kind::kOpaque, std::move(class_name), std::move(parts)});
  return value;
}

Value Value::dict() {
  Value value;
  value.data_ = std::make_shared<Dict>();
  return value;
}

Value Value::ordered_dict() {
  Value value = dict();
  std::get<DictPtr>(value.data_)->ordered = true;
  return value;
}

Value Value::bytes(std::string bytes) {
  Value value;
  value.data_ = Bytes{std::move(bytes)};
  return value;
}

Value Value::big_int(std::string decimal) {
  std::int64_t small = 0;
  bool fits = decimal.size() <= 20;
  const bool negative = !decimal.empty() && decimal[0] == '-';
  for (std::size_t i = negative ? 1 : 0; i < decimal.size() && fits; ++i) {
    TGV2_CHECK(decimal[i] >= '0' && decimal[i] <= '9');
    const std::int64_t digit = decimal[i] - '0';
    fits = !__builtin_mul_overflow(small, std::int64_t{10}, &small) &&
           !__builtin_add_overflow(small, negative ? -digit : digit, &small);
  }
  if (fits) return Value(small);
  Value value;
  value.data_ = BigInt{std::move(decimal)};
  return value;
}

Value::Kind Value::kind() const {
  struct Visitor {
    Kind operator()(std::monostate) const { return Kind::kNone; }
    Kind operator()(bool) const { return Kind::kBool; }
    Kind operator()(std::int64_t) const { return Kind::kInt; }
    Kind operator()(double) const { return Kind::kFloat; }
    Kind operator()(const std::string&) const { return Kind::kString; }
    Kind operator()(const Bytes&) const { return Kind::kBytes; }
    Kind operator()(const BigInt&) const { return Kind::kBigInt; }
    Kind operator()(const SequencePtr& sequence) const { return sequence->kind; }
    Kind operator()(const DictPtr&) const { return Kind::kDict; }
    Kind operator()(const std::shared_ptr<const Tensor>&) const { return Kind::kTensor; }
  };
  return std::visit(Visitor{}, data_);
}

std::string_view Value::kind_name() const {
  switch (kind()) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
    case Kind::kBigInt:
      return "integer";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "string";
    case Kind::kBytes:
      return "bytes";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kTensor:
      return "tensor";
    case Kind::kOpaque:
      return "object";
  }
  return "?";
}

bool Value::is_ordered_dict() const {
  return is_dict() && std::get<DictPtr>(data_)->ordered;
}

void Value::wrong_kind(std::string_view expected, std::string_view what) const {
  std::string found(kind_name());
  if (is_opaque()) found += concat(" of class ", class_name());
  throw Error("CKP003", concat(what, " has the wrong type")).detail(concat("expected ", expected, ", found ", found));
}

bool Value::as_bool(std::string_view what) const {
  if (const bool* value = std::get_if<bool>(&data_)) return *value;
  wrong_kind("bool", what);
}

std::int64_t Value::as_int(std::string_view what) const {
  if (const auto* value = std::get_if<std::int64_t>(&data_)) return *value;
  wrong_kind(kind() == Kind::kBigInt ? "an integer of at most 64 bits" : "integer", what);
}

double Value::as_double(std::string_view what) const {
  if (const auto* value = std::get_if<double>(&data_)) return *value;
  if (const auto* value = std::get_if<std::int64_t>(&data_)) return static_cast<double>(*value);
  wrong_kind("a number", what);
}

const std::string& Value::as_string(std::string_view what) const {
  if (const auto* value = std::get_if<std::string>(&data_)) return *value;
  wrong_kind("string", what);
}

const std::string& Value::as_bytes(std::string_view what) const {
  if (const auto* value = std::get_if<Bytes>(&data_)) return value->data;
  wrong_kind("bytes", what);
}

const Tensor& Value::as_tensor(std::string_view what) const {
  if (const auto* value = std::get_if<std::shared_ptr<const Tensor>>(&data_)) return **value;
  wrong_kind("tensor", what);
}

const std::string& Value::big_int_text() const {
  return std::get<BigInt>(data_).decimal;
}

const std::string& Value::class_name() const {
  TGV2_CHECK(is_opaque());
  return std::get<SequencePtr>(data_)->class_name;
}

std::span<const Value> Value::items(std::string_view what) const {
  if (const auto* value = std::get_if<SequencePtr>(&data_)) return (*value)->items;
  wrong_kind("list or tuple", what);
}

void Value::push_back(Value item) {
  auto* sequence = std::get_if<SequencePtr>(&data_);
  TGV2_CHECK(sequence != nullptr);
  if (sequence->use_count() > 1) *sequence = std::make_shared<Sequence>(**sequence);
  (*sequence)->items.push_back(std::move(item));
}

std::span<const Value::Entry> Value::entries(std::string_view what) const {
  if (const auto* value = std::get_if<DictPtr>(&data_)) return (*value)->entries;
  wrong_kind("dict", what);
}

const Value* Value::find_key(const Value& key) const {
  const auto* dict = std::get_if<DictPtr>(&data_);
  if (!dict) return nullptr;
  const Entry* entry = (*dict)->find(key);
  return entry ? &entry->value : nullptr;
}

const Value* Value::find(std::string_view key) const {
  return find_key(Value(key));
}
const Value* Value::find(std::int64_t key) const {
  return find_key(Value(key));
}

const Value& Value::at(std::string_view key) const {
  if (const Value* value = find(key)) return *value;
  if (!is_dict()) wrong_kind(concat("a dict with the key \"", key, "\""), "the value");
  std::vector<std::string> keys;
  for (const Entry& entry : entries()) {
    if (entry.key.is_string()) keys.push_back(entry.key.as_string());
  }
  const std::string nearest = nearest_name(key, keys);
  const std::size_t count = keys.size();
  if (count > 12) keys.resize(12);
  Error error("CKP003", concat("there is no key \"", key, "\""));
  std::move(error).detail(concat("keys there (", count, "): ", join(keys, ", "), count > keys.size() ? ", ..." : ""));
  if (!nearest.empty()) std::move(error).detail(concat("the nearest is \"", nearest, "\""));
  throw error;
}

Value& Value::set(Value key, Value value) {
  auto* dict = std::get_if<DictPtr>(&data_);
  TGV2_CHECK(dict != nullptr);
  if (dict->use_count() > 1) *dict = std::make_shared<Dict>(**dict);
  if (Entry* entry = (*dict)->find(key)) {
    entry->value = std::move(value);
  } else {
    (*dict)->append({std::move(key), std::move(value)});
  }
  return *this;
}

std::size_t Value::size() const {
  if (const auto* sequence = std::get_if<SequencePtr>(&data_)) return (*sequence)->items.size();
  if (const auto* dict = std::get_if<DictPtr>(&data_)) return (*dict)->entries.size();
  return 0;
}

bool identical(const Tensor& a, const Tensor& b) {
  if (a.dtype != b.dtype || a.shape != b.shape) return false;
  if (a.numel() == 0) return true;
  const Tensor left = a.contiguous(), right = b.contiguous();
  return left.data == right.data || std::memcmp(left.data, right.data, left.nbytes()) == 0;
}

bool identical(const Value& a, const Value& b) {
  using Kind = Value::Kind;
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kNone:
      return true;
    case Kind::kBool:
      return a.as_bool() == b.as_bool();
    case Kind::kInt:
      return a.as_int() == b.as_int();
    case Kind::kBigInt:
      return a.big_int_text() == b.big_int_text();
    case Kind::kFloat:
      return std::bit_cast<std::uint64_t>(a.as_double()) == std::bit_cast<std::uint64_t>(b.as_double());
    case Kind::kString:
      return a.as_string() == b.as_string();
    case Kind::kBytes:
      return a.as_bytes() == b.as_bytes();
    case Kind::kTensor:
      return identical(a.as_tensor(), b.as_tensor());
    case Kind::kOpaque:
      if (a.class_name() != b.class_name()) return false;
      [[fallthrough]];
    case Kind::kList:
    case Kind::kTuple: {
      const auto left = a.items(), right = b.items();
      return std::equal(left.begin(), left.end(), right.begin(), right.end(),
                        [](const Value& x, const Value& y) { return identical(x, y); });
    }
    case Kind::kDict: {
      const auto left = a.entries(), right = b.entries();
      return a.is_ordered_dict() == b.is_ordered_dict() &&
             std::equal(left.begin(), left.end(), right.begin(), right.end(),
                        [](const Value::Entry& x, const Value::Entry& y) {
                          return identical(x.key, y.key) && identical(x.value, y.value);
                        });
    }
  }
  return false;
}

}  // namespace train_gpt_v2
