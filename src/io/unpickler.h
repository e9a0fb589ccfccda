#pragma once
// The machine behind read_pickle(): instructions in (unpickler.cc), a graph of 16-byte nodes, a Value tree out
// (pickle_tree.cc). The graph may share nodes and may be cyclic; the tree is neither.

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "byte_reader.h"
#include "pickle_reader.h"

namespace train_gpt_v2 {

using NodeId = std::uint32_t;

constexpr int kMaxPickleDepth = 100;

struct PickleNode {
  enum class Kind : std::uint8_t {
    kNone,
    kBool,
    kInt,
    kBigInt,
    kFloat,
    kString,
    kBytes,
    kList,
    kTuple,
    kDict,
    kOrderedDict,
    kGlobal,
    kStorage,
    kTensor,
    kOpaque
  };
  Kind kind = Kind::kNone;
  std::uint8_t depth = 0;  // containers: levels that were there when it was made
  union {
    std::int64_t integer = 0;  // kBool, kInt
    double real;               // kFloat
    std::uint64_t index;       // into the table of its kind
  };
};

struct PickleGraph {
  // Of dicts: keys and values in turn. Of opaque nodes: the arguments, then state and items set later.
  struct Container {
    std::string_view class_name;  // opaque nodes only
    std::vector<NodeId> items;
  };
  std::vector<PickleNode> nodes;
  std::vector<std::string_view> texts;  // strings, bytes, big integers, names of globals
  std::vector<Container> containers;    // lists, tuples, dicts, opaque nodes
  std::vector<Tensor> tensors;
  NodeId root = 0;
};

// Decimal text of a little-endian two's complement number (pickle's LONG1, LONG4).
std::string decimal_of_bytes(std::string_view bytes);

class Unpickler {
 public:
  explicit Unpickler(const PickleSource& source) : source_(source), in_(source.stream) {}
  // The graph refers to the stream and to this object.
  const PickleGraph& run();

 private:
  using Kind = PickleNode::Kind;
  struct Storage {
    DType dtype;
    StorageBytes bytes;
  };

  bool step(std::uint8_t code);  // false at STOP
  bool scalar(std::uint8_t code);
  bool container(std::uint8_t code);
  bool object(std::uint8_t code);

  NodeId add(Kind kind, std::uint64_t index = 0);
  void push(NodeId id);
  void push_int(std::int64_t value);
  void push_text(Kind kind, std::uint64_t size);
  void push_long(std::uint64_t size);
  void push_container(Kind kind, std::vector<NodeId> items = {});
  void add_container(Kind kind, std::string_view class_name, std::vector<NodeId> items);
  NodeId top() const;
  NodeId pop();
  std::vector<NodeId> pop_to_mark();
  void tuple_of(std::size_t count);
  void memo_put(std::uint32_t slot);
  void memo_get(std::uint32_t slot);
  void append(NodeId target, const std::vector<NodeId>& items);
  void set_items(NodeId target, const std::vector<NodeId>& items);
  void build(NodeId target, NodeId state);
  void push_global(std::string_view module, std::string_view name);
  void reduce(NodeId callable, NodeId arguments);
  void new_object(NodeId type, NodeId arguments, std::vector<NodeId> more);
  void push_opaque(std::string_view class_name, std::vector<NodeId> parts);
  void persistent_id(NodeId id);
  bool rebuild(std::string_view function, const std::vector<NodeId>& arguments);
  bool rebuild_tensor(const std::vector<NodeId>& arguments);
  bool rebuild_ordered_dict(const std::vector<NodeId>& arguments);
  bool rebuild_bytes(const std::vector<NodeId>& arguments);
  bool rebuild_numpy_scalar(const std::vector<NodeId>& arguments);
  void check_view(const Tensor& tensor, std::int64_t offset, const Storage& storage) const;

  const PickleNode& node(NodeId id) const { return graph_.nodes[id]; }
  bool is(NodeId id, Kind kind) const { return node(id).kind == kind; }
  std::string_view text(NodeId id) const { return graph_.texts[node(id).index]; }
  PickleGraph::Container& contents(NodeId id) { return graph_.containers[node(id).index]; }
  std::string_view keep(std::string text);
  std::vector<std::int64_t> int_tuple(NodeId id, const char* what);
  [[noreturn]] void damaged(std::string what) const;

  const PickleSource& source_;
  ByteReader in_;
  PickleGraph graph_;
  std::vector<NodeId> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint32_t, NodeId> memo_;
  std::vector<Storage> storages_;
  std::deque<std::string> kept_;  // text that is not in the stream
  std::uint64_t kept_bytes_ = 0;
  std::unordered_map<std::string, NodeId> globals_;
};

}  // namespace train_gpt_v2
