#include "unpickler.h"

#include <algorithm>
#include <bit>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kMaxStream = 64 << 20;
constexpr std::size_t kMaxOperations = 1'000'000;  // the released model with Adam and EMA needs about 150,000
constexpr std::size_t kMaxStack = 100'000;
constexpr std::size_t kMaxMarks = 1'000;  // open at once: as deep as containers lie in each other
constexpr std::uint64_t kMaxLong = 1024;  // bytes of one integer; a generator state's words take 5

// Opcodes of pickle protocols 2 to 5 (Lib/pickle.py). INST, OBJ, EXT*, and the text forms of protocols 0 and 1 are not
// among them: torch.save writes none, and each is one more way to name a callable.
enum Code : std::uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kDict = 'd',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kList = 'l',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyDict = '}',
  kEmptyList = ']',
  kEmptyTuple = ')',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kEmptySet = 0x8f,
  kAddItems = 0x90,
  kFrozenSet = 0x91,
  kNewObjEx = 0x92,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

}  // namespace

std::string decimal_of_bytes(std::string_view bytes) {
  const bool negative = !bytes.empty() && (static_cast<unsigned char>(bytes.back()) & 0x80) != 0;
  std::vector<std::uint32_t> digits{0};  // base 10^9, lowest first
  constexpr std::uint64_t kBase = 1'000'000'000;
  for (std::size_t i = bytes.size(); i-- > 0;) {
    // The magnitude of a negative number is the complement plus one.
    const auto byte = static_cast<unsigned char>(bytes[i]);
    std::uint64_t carry = negative ? static_cast<unsigned char>(~byte) : byte;
    if (i == 0 && negative) ++carry;
    for (std::uint32_t& digit : digits) {
      carry += std::uint64_t{digit} << 8;
      digit = static_cast<std::uint32_t>(carry % kBase);
      carry /= kBase;
    }
    if (carry > 0) digits.push_back(static_cast<std::uint32_t>(carry));
  }
  std::string text = negative ? "-" : "";
  text += std::to_string(digits.back());
  for (std::size_t i = digits.size() - 1; i-- > 0;) {
    const std::string part = std::to_string(digits[i]);
    text.append(9 - part.size(), '0').append(part);
  }
  return text;
}

void Unpickler::damaged(std::string what) const {
  throw Error("CKP001", "the file is damaged: its description of the content (data.pkl) is not valid")
      .where(source_.path)
      .detail(concat(what, ", at byte ", in_.position()))
      .fix("copy it again from where it was written, or use an older checkpoint");
}

const PickleGraph& Unpickler::run() {
  if (source_.stream.size() > kMaxStream) damaged(concat("it is larger than ", human_bytes(kMaxStream)));
  for (std::size_t count = 0;; ++count) {
    if (count == kMaxOperations) damaged(concat("more than ", human_count(kMaxOperations), " instructions"));
    const std::uint8_t code = in_.u8();
    if (!in_.ok()) damaged("it ends without STOP");
    if (!step(code)) break;
    if (!in_.ok()) damaged("it ends inside an instruction");
  }
  if (!marks_.empty() || stack_.size() != 1) damaged("values are left over at STOP");
  graph_.root = stack_.back();
  return graph_;
}

bool Unpickler::step(std::uint8_t code) {
  if (code == kStop) return false;
  if (!scalar(code) && !container(code) && !object(code)) {
    damaged(concat("instruction ", static_cast<int>(code), " is not one that a checkpoint needs"));
  }
  return true;
}

bool Unpickler::scalar(std::uint8_t code) {
  switch (code) {
    case kProto: {
      const int version = in_.u8();
      if (version < 2 || version > 5) damaged(concat("pickle protocol ", version));
      return true;
    }
    case kFrame:
      in_.u64();
      return true;
    case kNone:
      push(add(Kind::kNone));
      return true;
    case kNewTrue:
      push(add(Kind::kBool, 1));
      return true;
    case kNewFalse:
      push(add(Kind::kBool, 0));
      return true;
    case kBinInt:
      push_int(in_.get<std::int32_t>());
      return true;
    case kBinInt1:
      push_int(in_.u8());
      return true;
    case kBinInt2:
      push_int(in_.u16());
      return true;
    case kLong1:
      push_long(in_.u8());
      return true;
    case kLong4:
      push_long(in_.u32());
      return true;
    case kBinFloat: {
      const NodeId id = add(Kind::kFloat);
      graph_.nodes[id].real = std::bit_cast<double>(__builtin_bswap64(in_.u64()));
      push(id);
      return true;
    }
    case kBinUnicode:
      push_text(Kind::kString, in_.u32());
      return true;
    case kShortBinUnicode:
      push_text(Kind::kString, in_.u8());
      return true;
    case kBinUnicode8:
      push_text(Kind::kString, in_.u64());
      return true;
    case kBinString:
      push_text(Kind::kString, in_.u32());
      return true;
    case kShortBinString:
      push_text(Kind::kString, in_.u8());
      return true;
    case kBinBytes:
      push_text(Kind::kBytes, in_.u32());
      return true;
    case kShortBinBytes:
      push_text(Kind::kBytes, in_.u8());
      return true;
    case kBinBytes8:
      push_text(Kind::kBytes, in_.u64());
      return true;
    default:
      return false;
  }
}

bool Unpickler::container(std::uint8_t code) {
  switch (code) {
    case kMark:
      if (marks_.size() == kMaxMarks) damaged(concat("more than ", human_count(kMaxMarks), " open containers"));
      marks_.push_back(stack_.size());
      return true;
    case kPopMark:
      pop_to_mark();
      return true;
    case kDup:
      push(top());
      return true;
    case kPop: {
      const bool mark = !marks_.empty() && marks_.back() == stack_.size();
      if (mark)
        marks_.pop_back();
      else
        pop();
      return true;
    }
    case kEmptyTuple:
      push_container(Kind::kTuple);
      return true;
    case kEmptyList:
      push_container(Kind::kList);
      return true;
    case kEmptyDict:
      push_container(Kind::kDict);
      return true;
    case kEmptySet:
      push_opaque("builtins.set", {});
      return true;
    case kTuple:
      push_container(Kind::kTuple, pop_to_mark());
      return true;
    case kList:
      push_container(Kind::kList, pop_to_mark());
      return true;
    case kFrozenSet:
      push_opaque("builtins.frozenset", pop_to_mark());
      return true;
    case kDict: {
      const std::vector<NodeId> items = pop_to_mark();
      push_container(Kind::kDict);
      set_items(stack_.back(), items);
      return true;
    }
    case kTuple1:
      tuple_of(1);
      return true;
    case kTuple2:
      tuple_of(2);
      return true;
    case kTuple3:
      tuple_of(3);
      return true;
    case kAppend: {
      const NodeId item = pop();
      append(top(), {item});
      return true;
    }
    case kAppends:
    case kAddItems: {
      const std::vector<NodeId> items = pop_to_mark();
      append(top(), items);
      return true;
    }
    case kSetItem: {
      const NodeId value = pop(), key = pop();
      set_items(top(), {key, value});
      return true;
    }
    case kSetItems: {
      const std::vector<NodeId> items = pop_to_mark();
      set_items(top(), items);
      return true;
    }
    case kBinPut:
      memo_put(in_.u8());
      return true;
    case kLongBinPut:
      memo_put(in_.u32());
      return true;
    case kMemoize:
      memo_put(static_cast<std::uint32_t>(memo_.size()));
      return true;
    case kBinGet:
      memo_get(in_.u8());
      return true;
    case kLongBinGet:
      memo_get(in_.u32());
      return true;
    default:
      return false;
  }
}

bool Unpickler::object(std::uint8_t code) {
  switch (code) {
    case kGlobal: {
      const auto line = [this] {
        const std::uint64_t first = in_.position();
        while (in_.ok() && in_.u8() != '\n') {
        }
        if (!in_.ok()) damaged("a name is cut off");
        return ByteReader(source_.stream, first).text(in_.position() - first - 1);
      };
      const std::string_view module = line();
      push_global(module, line());
      return true;
    }
    case kStackGlobal: {
      const NodeId name = pop(), module = pop();
      if (!is(name, Kind::kString) || !is(module, Kind::kString)) damaged("the name of a class is not text");
      push_global(text(module), text(name));
      return true;
    }
    case kReduce: {
      const NodeId arguments = pop();
      reduce(pop(), arguments);
      return true;
    }
    case kNewObj: {
      const NodeId arguments = pop();
      new_object(pop(), arguments, {});
      return true;
    }
    case kNewObjEx: {
      const NodeId keywords = pop(), arguments = pop();
      new_object(pop(), arguments, {keywords});
      return true;
    }
    case kBuild: {
      const NodeId state = pop();
      build(top(), state);
      return true;
    }
    case kBinPersId:
      persistent_id(pop());
      return true;
    default:
      return false;
  }
}

NodeId Unpickler::add(Kind kind, std::uint64_t index) {
  PickleNode& added = graph_.nodes.emplace_back();
  added.kind = kind;
  added.index = index;
  return static_cast<NodeId>(graph_.nodes.size() - 1);
}

void Unpickler::push(NodeId id) {
  if (stack_.size() == kMaxStack) damaged(concat("more than ", human_count(kMaxStack), " values on the stack"));
  stack_.push_back(id);
}

void Unpickler::push_int(std::int64_t value) {
  const NodeId id = add(Kind::kInt);
  graph_.nodes[id].integer = value;
  push(id);
}

void Unpickler::push_text(Kind kind, std::uint64_t size) {
  const std::string_view content = in_.text(size);
  if (!in_.ok()) damaged(concat("a text of ", size, " bytes reaches beyond the end"));
  if (kind == Kind::kString && !valid_utf8(content)) damaged("a text is not UTF-8");
  graph_.texts.push_back(content);
  push(add(kind, graph_.texts.size() - 1));
}

void Unpickler::push_long(std::uint64_t size) {
  if (size > kMaxLong) damaged(concat("an integer of ", size, " bytes"));
  const std::string_view bytes = in_.text(size);
  if (!in_.ok()) damaged("an integer is cut off");
  if (size <= 8) {
    std::uint64_t value = !bytes.empty() && (bytes.back() & 0x80) != 0 ? ~std::uint64_t{0} : 0;
    std::memcpy(&value, bytes.data(), size);
    return push_int(static_cast<std::int64_t>(value));
  }
  graph_.texts.push_back(keep(decimal_of_bytes(bytes)));
  push(add(Kind::kBigInt, graph_.texts.size() - 1));
}

void Unpickler::push_container(Kind kind, std::vector<NodeId> items) {
  add_container(kind, {}, std::move(items));
}

void Unpickler::push_opaque(std::string_view class_name, std::vector<NodeId> parts) {
  add_container(Kind::kOpaque, class_name, std::move(parts));
}

// The tree's builder refuses deep nesting too; half a million tuples around each other need not be kept until then.
void Unpickler::add_container(Kind kind, std::string_view class_name, std::vector<NodeId> items) {
  std::uint8_t depth = 0;
  for (const NodeId item : items) depth = std::max(depth, node(item).depth);
  if (depth > kMaxPickleDepth) damaged(concat("it is nested deeper than ", kMaxPickleDepth));
  graph_.containers.push_back({class_name, std::move(items)});
  const NodeId id = add(kind, graph_.containers.size() - 1);
  graph_.nodes[id].depth = static_cast<std::uint8_t>(depth + 1);
  push(id);
}

NodeId Unpickler::top() const {
  const std::size_t floor = marks_.empty() ? 0 : marks_.back();
  if (stack_.size() <= floor) damaged("an instruction finds nothing on the stack");
  return stack_.back();
}

NodeId Unpickler::pop() {
  const NodeId id = top();
  stack_.pop_back();
  return id;
}

std::vector<NodeId> Unpickler::pop_to_mark() {
  if (marks_.empty()) damaged("an instruction finds no mark on the stack");
  const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
  std::vector<NodeId> items(first, stack_.end());
  stack_.erase(first, stack_.end());
  marks_.pop_back();
  return items;
}

void Unpickler::tuple_of(std::size_t count) {
  std::vector<NodeId> items(count);
  for (std::size_t i = count; i-- > 0;) items[i] = pop();
  push_container(Kind::kTuple, std::move(items));
}

void Unpickler::memo_put(std::uint32_t slot) {
  memo_[slot] = top();
}

void Unpickler::memo_get(std::uint32_t slot) {
  const auto found = memo_.find(slot);
  if (found == memo_.end()) damaged(concat("nothing is remembered under number ", slot));
  push(found->second);
}

std::string_view Unpickler::keep(std::string content) {
  return kept_.emplace_back(std::move(content));
}

}  // namespace train_gpt_v2
