#pragma once
// An ordered tree of plain values: what a checkpoint file holds once nothing in it is code any more.
//
// Kinds are those of Python's pickles: None, bool, int (64 bits, or larger as decimal text), float, str, bytes, list,
// tuple, dict (insertion order kept; `ordered` = OrderedDict), tensor, and opaque: an object of a class we do not know,
// kept as its name and the inert values it was made of.
// Ownership: copies are cheap (lists, dicts and tensors are shared until one copy changes). Two copies may be used from
// two threads; one Value may not. Errors: CKP003 naming the key or the path given by the caller.

#include <concepts>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "train_gpt_v2/io/tensor.h"

namespace train_gpt_v2 {

class Value {
 public:
  enum class Kind { kNone, kBool, kInt, kBigInt, kFloat, kString, kBytes, kList, kTuple, kDict, kTensor, kOpaque };
  struct Entry;  // {Value key; Value value;}

  Value() = default;  // None
  Value(bool value) : data_(value) {}
  template <std::integral Integer>
  requires(!std::same_as<Integer, bool>) Value(Integer value) {
    if (std::in_range<std::int64_t>(value)) {
      data_ = static_cast<std::int64_t>(value);
    } else {
      data_ = BigInt{std::to_string(value)};
    }
  }
  Value(double value) : data_(value) {}
  Value(std::string text) : data_(std::move(text)) {}
  Value(std::string_view text) : data_(std::string(text)) {}
  Value(const char* text) : data_(std::string(text)) {}
  Value(Tensor tensor) : data_(std::make_shared<const Tensor>(std::move(tensor))) {}
  template <typename T>
  Value(T*) = delete;  // a pointer would become a bool

  static Value list(std::vector<Value> items = {});
  static Value tuple(std::vector<Value> items = {});
  static Value dict();
  static Value ordered_dict();
  static Value bytes(std::string bytes);
  static Value big_int(std::string decimal);  // becomes an int where it fits 64 bits
  static Value opaque(std::string class_name, std::vector<Value> parts = {});

  Kind kind() const;
  std::string_view kind_name() const;  // "dict", "integer" ... for messages
  bool is_none() const { return kind() == Kind::kNone; }
  bool is_int() const { return kind() == Kind::kInt; }
  bool is_float() const { return kind() == Kind::kFloat; }
  bool is_number() const { return is_int() || is_float(); }
  bool is_string() const { return kind() == Kind::kString; }
  bool is_list() const { return kind() == Kind::kList; }
  bool is_tuple() const { return kind() == Kind::kTuple; }
  bool is_sequence() const { return is_list() || is_tuple(); }
  bool is_dict() const { return kind() == Kind::kDict; }
  bool is_ordered_dict() const;
  bool is_tensor() const { return kind() == Kind::kTensor; }
  bool is_opaque() const { return kind() == Kind::kOpaque; }

  // `what` names the value in the error: "optimizer.param_groups[0].lr".
  bool as_bool(std::string_view what = "the value") const;
  std::int64_t as_int(std::string_view what = "the value") const;
  double as_double(std::string_view what = "the value") const;  // an int is converted
  const std::string& as_string(std::string_view what = "the value") const;
  const std::string& as_bytes(std::string_view what = "the value") const;
  const Tensor& as_tensor(std::string_view what = "the value") const;
  const std::string& big_int_text() const;  // the kind must be kBigInt
  const std::string& class_name() const;    // the kind must be kOpaque

  // List, tuple, or the parts of an opaque node; CKP003 for other kinds.
  std::span<const Value> items(std::string_view what = "the value") const;
  void push_back(Value item);  // list or tuple

  // Dict. Keys are strings or ints (others are kept, but only entries() finds them).
  std::span<const Entry> entries(std::string_view what = "the value") const;
  const Value* find(std::string_view key) const;  // nullptr: no such key, or not a dict
  const Value* find(std::int64_t key) const;
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  const Value& at(std::string_view key) const;  // CKP003 listing the keys that are there
  Value& set(Value key, Value value);           // replaces in place or appends; returns *this

  std::size_t size() const;  // of a list, tuple, dict; else 0

 private:
  struct Bytes {
    std::string data;
  };
  struct BigInt {
    std::string decimal;
  };
  struct Sequence;
  struct Dict;
  using SequencePtr = std::shared_ptr<Sequence>;
  using DictPtr = std::shared_ptr<Dict>;
  [[noreturn]] void wrong_kind(std::string_view expected, std::string_view what) const;
  const Value* find_key(const Value& key) const;

  std::variant<std::monostate, bool, std::int64_t, double, std::string, Bytes, BigInt, SequencePtr, DictPtr,
               std::shared_ptr<const Tensor>>
      data_;
};

struct Value::Entry {
  Value key;
  Value value;
};

// Same kinds, keys in the same order, numbers and tensor elements bit by bit (NaN equals the same NaN; strides and
// the way storages are shared do not matter).
bool identical(const Value& a, const Value& b);
bool identical(const Tensor& a, const Tensor& b);

}  // namespace train_gpt_v2
