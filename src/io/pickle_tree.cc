// From the unpickler's graph to a tree of values: shared nodes are shared, cycles and exponential growth refused.

#include <limits>
#include <map>

#include "pickle_reader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "unpickler.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kMaxTreeNodes = 20'000'000;  // as if nothing were shared: what a walk over the tree visits
constexpr std::uint64_t kTextGrowth = 16;            // a text may be referred to many times
constexpr std::size_t kMaxListed = 50;

class TreeBuilder {
 public:
  TreeBuilder(const PickleGraph& graph, const PickleSource& source)
      : graph_(graph), path_(source.path), text_left_(kTextGrowth * source.stream.size() + (1 << 20)) {
    done_.resize(graph.containers.size());
  }

  Value run(std::vector<std::string>& ignored) {
    Value root = build(graph_.root, 0).value;
    for (const auto& [name, found] : opaque_) {
      if (ignored.size() >= kMaxListed) break;
      ignored.push_back(concat(found.first_place.empty() ? "the whole content" : found.first_place,
                               ": object of class ", name,
                               found.count > 1 ? concat(" (", found.count, " of them)") : ""));
    }
    return root;
  }

 private:
  using Kind = PickleNode::Kind;
  struct Built {
    Value value;
    std::uint64_t weight = 1;  // nodes of the tree under it
  };
  struct Found {
    std::string first_place;
    std::size_t count = 0;
  };

  [[noreturn]] void damaged(std::string what) const {
    throw Error("CKP001", "the file is damaged: its description of the content (data.pkl) is not valid")
        .where(path_)
        .detail(std::move(what))
        .fix("copy it again from where it was written, or use an older checkpoint");
  }

  std::string text(const PickleNode& node) {
    const std::string_view content = graph_.texts[node.index];
    if (content.size() > text_left_) damaged("the same texts are repeated without end");
    text_left_ -= content.size();
    return std::string(content);
  }

  Built build(NodeId id, int depth) {
    const PickleNode& node = graph_.nodes[id];
    switch (node.kind) {
      case Kind::kNone:
        return {};
      case Kind::kBool:
        return {Value(node.integer != 0)};
      case Kind::kInt:
        return {Value(node.integer)};
      case Kind::kBigInt:
        return {Value::big_int(text(node))};
      case Kind::kFloat:
        return {Value(node.real)};
      case Kind::kString:
        return {Value(text(node))};
      case Kind::kBytes:
        return {Value::bytes(text(node))};
      case Kind::kTensor:
        return {Value(graph_.tensors[node.index])};
      case Kind::kGlobal:
        return {opaque(text(node), {})};
      case Kind::kStorage:
        return {opaque("torch storage", {})};
      case Kind::kList:
      case Kind::kTuple:
      case Kind::kDict:
      case Kind::kOrderedDict:
      case Kind::kOpaque:
        return shared(node, depth);
    }
    return {};
  }

  Built shared(const PickleNode& node, int depth) {
    if (depth > kMaxPickleDepth) damaged(concat("it is nested deeper than ", kMaxPickleDepth));
    std::uint32_t& slot = done_[node.index];
    if (slot == kInProgress) damaged("a container contains itself");
    if (slot > 0) return built_[slot - 1];
    slot = kInProgress;
    Built built = is_dict(node) ? dict(node, depth) : sequence(node, depth);
    built_.push_back(built);
    slot = static_cast<std::uint32_t>(built_.size());
    return built;
  }

  static bool is_dict(const PickleNode& node) { return node.kind == Kind::kDict || node.kind == Kind::kOrderedDict; }

  void add_weight(Built& built, const Built& child) const {
    built.weight += child.weight;
    if (built.weight > kMaxTreeNodes) damaged("its parts refer to each other so often that the whole has no end");
  }

  Built sequence(const PickleNode& node, int depth) {
    const PickleGraph::Container& container = graph_.containers[node.index];
    const bool is_opaque = node.kind == Kind::kOpaque;
    if (is_opaque) note_opaque(std::string(container.class_name));
    opaque_depth_ += is_opaque;
    Built built;
    std::vector<Value> items;
    items.reserve(container.items.size());
    const std::size_t here = place_.size();
    for (std::size_t i = 0; i < container.items.size(); ++i) {
      place_.append("[").append(std::to_string(i)).append("]");
      Built child = build(container.items[i], depth + 1);
      place_.resize(here);
      add_weight(built, child);
      items.push_back(std::move(child.value));
    }
    opaque_depth_ -= is_opaque;
    if (is_opaque) {
      built.value = Value::opaque(std::string(container.class_name), std::move(items));
    } else {
      built.value = node.kind == Kind::kTuple ? Value::tuple(std::move(items)) : Value::list(std::move(items));
    }
    return built;
  }

  Built dict(const PickleNode& node, int depth) {
    const std::vector<NodeId>& items = graph_.containers[node.index].items;
    Built built{node.kind == Kind::kOrderedDict ? Value::ordered_dict() : Value::dict()};
    const std::size_t here = place_.size();
    for (std::size_t i = 0; i < items.size(); i += 2) {
      Built key = build(items[i], depth + 1);
      append_key(key.value);
      Built value = build(items[i + 1], depth + 1);
      place_.resize(here);
      add_weight(built, key);
      add_weight(built, value);
      built.value.set(std::move(key.value), std::move(value.value));
    }
    return built;
  }

  void append_key(const Value& key) {
    if (key.is_string()) {
      if (!place_.empty()) place_ += '.';
      place_.append(key.as_string(), 0, 200);
    } else {
      place_.append("[").append(key.is_int() ? std::to_string(key.as_int()) : std::string(key.kind_name())).append("]");
    }
  }

  Value opaque(std::string name, std::vector<Value> parts) {
    note_opaque(name);
    return Value::opaque(std::move(name), std::move(parts));
  }

  void note_opaque(const std::string& name) {
    if (opaque_depth_ > 0) return;  // what an ignored object is made of
    Found& found = opaque_[name];
    if (found.count++ == 0) found.first_place = place_;
  }

  static constexpr std::uint32_t kInProgress = std::numeric_limits<std::uint32_t>::max();

  const PickleGraph& graph_;
  const std::string& path_;
  std::uint64_t text_left_;
  std::vector<std::uint32_t> done_;  // by container: 0 not reached, kInProgress, else its place in built_ plus one
  std::vector<Built> built_;
  std::map<std::string, Found> opaque_;
  std::string place_;
  int opaque_depth_ = 0;
};

}  // namespace

Value read_pickle(const PickleSource& source, std::vector<std::string>& ignored) {
  Unpickler unpickler(source);
  return TreeBuilder(unpickler.run(), source).run(ignored);
}

}  // namespace train_gpt_v2
