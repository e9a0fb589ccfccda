#include "train_gpt_v2/data/vocabulary_extension.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <set>
#include <unordered_set>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/normalizer.h"
#include "train_gpt_v2/data/tokenizer.h"
#include "word_counts.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kMaxModelBytes = 16 << 20;
constexpr std::int64_t kMaxPieces = 100'000;
constexpr std::size_t kLongestTrainedWord = 64;  // characters; longer ones are no words to learn merges from
constexpr int kBpe = 2;                          // TrainerSpec::ModelType
constexpr std::string_view kWordStart = "\xE2\x96\x81";

struct CharacterRange {
  char32_t first, last;
};
constexpr CharacterRange kEthiopic[] = {{0x1200, 0x137F}, {0x1380, 0x139F}, {0x2D80, 0x2DDF}, {0xAB00, 0xAB2F}};

bool is_assigned(char32_t c) {
  return u_charType(static_cast<UChar32>(c)) != U_UNASSIGNED;
}

void require(const sentencepiece::util::Status& status, const char* what) {
  if (!status.ok()) throw Error("TOK010", concat(what, ": ", status.ToString()));
}

// A SentencePiece model in memory.
class Model {
 public:
  explicit Model(const std::string& bytes) { require(processor_.LoadFromSerializedProto(bytes), "SentencePiece"); }

  std::int32_t size() const { return processor_.GetPieceSize(); }
  std::string piece(std::int32_t id) const { return processor_.IdToPiece(id); }
  double score(std::int32_t id) const { return processor_.GetScore(id); }
  bool has(const std::string& piece) const { return processor_.PieceToId(piece) != Tokenizer::kUnknown; }
  bool is_text(std::int32_t id) const {
    return !processor_.IsControl(id) && !processor_.IsUnknown(id) && !processor_.IsByte(id) && !processor_.IsUnused(id);
  }
  bool is_byte(std::int32_t id) const { return processor_.IsByte(id); }
  std::vector<int> ids(const std::string& text) const {
    std::vector<int> ids;
    require(processor_.Encode(text, &ids), "SentencePiece");
    return ids;
  }
  // Whether a text gets a word start in front.
  bool marks_first_word() const {
    std::vector<std::string> pieces;
    require(processor_.Encode("1", &pieces), "SentencePiece");
    return starts_with(pieces.front(), kWordStart);
  }
  // The text as the model's own normaliser leaves it: what the pieces spell, word starts as spaces.
  std::string normalised(const std::string& text) const {
    std::vector<std::string> pieces;
    require(processor_.Encode(text, &pieces), "SentencePiece");
    std::string joined;
    for (const std::string& piece : pieces) joined += piece;
    std::string plain;
    for (std::size_t i = 0; i < joined.size();) {
      const bool mark = std::string_view(joined).substr(i, kWordStart.size()) == kWordStart;
      plain += mark ? ' ' : joined[i];
      i += mark ? kWordStart.size() : 1;
    }
    return plain;
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

class TsvLines final : public sentencepiece::SentenceIterator {
 public:
  explicit TsvLines(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return next_ == lines_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  std::size_t next_ = 0;
};

class Extension {
 public:
  explicit Extension(const ExtensionRequest& request)
      : request_(request), bytes_(checked_base(request)), base_(bytes_), words_(read_word_counts(request.texts)) {}

  ExtensionReport run() {
    look_at_base();
    normalise_words();
    choose_characters();
    choose_merges();
    const std::string bytes = serialised();
    check_and_count(Model(bytes));
    write_file_atomically(request_.output, bytes);
    return report_;
  }

 private:
  // The bytes of a sound base file that leaves room for new pieces.
  static std::string checked_base(const ExtensionRequest& request) {
    const Tokenizer base(request.base);
    if (request.size <= base.size() || request.size > kMaxPieces) {
      throw Error("TOK011", concat("a size of ", request.size, " pieces cannot be reached"))
          .where(request.base)
          .detail(concat("the base model has ", base.size(), ", at most ", kMaxPieces, " are allowed"))
          .fix("--size is the number of pieces of the result, the base's included");
    }
    return read_file(request.base, kMaxModelBytes);
  }

  [[noreturn]] void refuse_base(const std::string& why) const {
    throw Error("TOK010", concat("this model cannot be extended: ", why))
        .where(request_.base)
        .fix("extend a BPE model without byte pieces, such as the released bpe.model");
  }

  void look_at_base() {
    if (scan_tokenizer_model(bytes_, request_.base).model_type != kBpe) refuse_base("it is not a BPE model");
    lowest_score_ = 0;
    for (std::int32_t id = 0; id < base_.size(); ++id) {
      if (base_.is_byte(id)) refuse_base("it has byte pieces");
      if (!base_.is_text(id)) continue;
      const std::string piece = base_.piece(id);
      known_.insert(piece);
      for (const char32_t c : characters_of(piece)) base_characters_.insert(c);
      lowest_score_ = std::min(lowest_score_, base_.score(id));
    }
    if (known_.empty()) refuse_base("it has no text pieces");
    // Scores of the new pieces are whole numbers below it, which float holds exactly up to 2^24.
    if (!(lowest_score_ > -8e6)) refuse_base("its scores are no ranks");
    lowest_score_ = std::floor(lowest_score_);
    report_.base_pieces = base_.size();
  }

  void normalise_words() {
    report_.lines = words_.lines;
    for (const auto& [word, count] : words_.counts) {
      report_.words += count;
      for (const std::string& part : split(base_.normalised(word), ' ')) {
        if (part.empty()) continue;
        normal_words_[part] += count;
        for (const char32_t c : characters_of(part)) corpus_characters_[c] += count;
      }
    }
    report_.distinct_words = normal_words_.size();
  }

  // The characters that `text` can turn into on its way to the pieces.
  void add_characters(const std::string& text, std::set<char32_t>& out) const {
    for (const char32_t c : characters_of(base_.normalised(text))) {
      if (c != U' ') out.insert(c);
    }
  }

  void choose_characters() {
    std::set<char32_t> planned;
    // Alone, a character reaches SentencePiece as it is; within a text it is normalised first.
    const auto plan = [&](char32_t c, bool alone) {
      const std::string text = utf8(c);
      if (alone) add_characters(text, planned);
      add_characters(before_sentencepiece(text + text, ""), planned);
      add_characters(before_sentencepiece(text + text, "am"), planned);
    };
    for (const CharacterRange& range : kEthiopic) {
      for (char32_t c = range.first; c <= range.last; ++c) {
        if (!is_assigned(c)) continue;
        ++report_.ethiopic;
        plan(c, true);
      }
    }
    for (char32_t c = 0x21; c < 0x7F; ++c) plan(c, u_isalpha(static_cast<UChar32>(c)) == 0);
    for (const char32_t c : std::u32string_view(U"«»‹›–—‘’“”…•")) plan(c, true);
    for (const auto& [c, count] : corpus_characters_) {
      if (planned.insert(c).second && !base_.has(utf8(c))) report_.unexpected.push_back(utf8(c));
    }
    for (const char32_t c : planned) {
      if (base_.has(utf8(c))) continue;
      added_.push_back(utf8(c));
      known_.insert(utf8(c));
    }
    report_.characters = static_cast<std::int64_t>(added_.size());
    if (report_.base_pieces + report_.characters <= request_.size) return;
    throw Error("TOK011", concat("the characters alone need ", report_.base_pieces + report_.characters, " pieces"))
        .detail(concat(report_.base_pieces, " of the base, ", report_.characters, " new characters, ",
                       report_.unexpected.size(), " of them only because the texts hold them"))
        .detail(concat("--size  ", request_.size))
        .fix("raise --size, or clean the texts");
  }

  bool is_foreign(char32_t c) const { return !base_characters_.contains(c); }

  // SentencePiece builds a piece from two parts that are pieces or single characters.
  static bool can_be_built(std::u32string_view piece, const std::unordered_set<std::string>& known) {
    const auto part_known = [&](std::u32string_view part) { return part.size() == 1 || known.contains(utf8(part)); };
    for (std::size_t i = 1; i < piece.size(); ++i) {
      if (part_known(piece.substr(0, i)) && part_known(piece.substr(i))) return true;
    }
    return false;
  }

  void choose_merges() {
    const auto wanted = static_cast<std::size_t>(request_.size - report_.base_pieces - report_.characters);
    if (wanted == 0) return;
    std::vector<std::string> lines;
    std::set<char32_t> alphabet;
    for (const auto& [word, count] : normal_words_) {
      const std::u32string characters = characters_of(word);
      const bool useful =
          characters.size() <= kLongestTrainedWord &&
          std::any_of(characters.begin(), characters.end(), [this](char32_t c) { return is_foreign(c); });
      if (!useful) continue;
      alphabet.insert(characters.begin(), characters.end());
      lines.push_back(concat(word, '\t', std::min<std::uint64_t>(count, 1'000'000'000)));
    }
    std::vector<std::string> merges;
    // Some of what the trainer finds is of no use here, so it is asked for more until that is enough or all there is.
    for (std::size_t asked = wanted + wanted / 10 + 64; !lines.empty(); asked *= 2) {
      const std::size_t vocabulary = 3 + alphabet.size() + 1 + asked;
      const Model candidate(train(lines, vocabulary));
      merges = useful_merges(candidate, wanted);
      if (merges.size() == wanted || static_cast<std::size_t>(candidate.size()) < vocabulary) break;
    }
    if (merges.size() < wanted) {
      throw Error("TOK011", concat("the texts give too few pieces for --size ", request_.size))
          .detail(
              concat("possible  ", report_.base_pieces + report_.characters + static_cast<std::int64_t>(merges.size())))
          .fix("lower --size to that, or give more text");
    }
    report_.merges = static_cast<std::int64_t>(merges.size());
    added_.insert(added_.end(), merges.begin(), merges.end());
  }

  std::string train(const std::vector<std::string>& lines, std::size_t vocabulary) const {
    TsvLines iterator(lines);
    std::string model;
    require(
        sentencepiece::SentencePieceTrainer::Train({{"model_type", "bpe"},
                                                    {"vocab_size", std::to_string(vocabulary)},
                                                    {"hard_vocab_limit", "false"},
                                                    {"character_coverage", "1.0"},
                                                    {"normalization_rule_name", "identity"},
                                                    {"add_dummy_prefix", base_.marks_first_word() ? "true" : "false"},
                                                    {"input_format", "tsv"},
                                                    {"bos_id", "0"},
                                                    {"eos_id", "1"},
                                                    {"unk_id", "2"},
                                                    {"pad_id", "-1"},
                                                    {"num_threads", "1"},
                                                    {"minloglevel", "2"}},
                                                   &iterator, &model),
        "SentencePiece's trainer");
    return model;
  }

  // In the trainer's order, the most frequent first.
  std::vector<std::string> useful_merges(const Model& candidate, std::size_t wanted) const {
    std::vector<std::string> merges;
    std::unordered_set<std::string> known = known_;
    for (std::int32_t id = 0; id < candidate.size() && merges.size() < wanted; ++id) {
      const std::string piece = candidate.piece(id);
      const std::u32string characters = characters_of(piece);
      if (!candidate.is_text(id) || characters.size() < 2 || known.contains(piece)) continue;
      const bool foreign =
          std::any_of(characters.begin(), characters.end(), [this](char32_t c) { return is_foreign(c); });
      if (!foreign || !can_be_built(characters, known)) continue;
      merges.push_back(piece);
      known.insert(piece);
    }
    return merges;
  }

  // The base file, new pieces (ModelProto field 1), and the new size for the record (trainer_spec.vocab_size; fields
  // of a message that occurs twice are merged).
  std::string serialised() const {
    std::string out = bytes_;
    double score = lowest_score_;
    for (const std::string& piece : added_) {
      score -= 1;
      std::string entry = "\x0A";
      entry += varint(piece.size()) + piece + "\x15";
      const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(score));
      for (int shift = 0; shift < 32; shift += 8) entry += static_cast<char>(bits >> shift & 0xFF);
      out += "\x0A" + varint(entry.size()) + entry;
    }
    const std::string size = "\x20" + varint(static_cast<std::uint64_t>(request_.size));
    return out + "\x12" + varint(size.size()) + size;
  }

  static std::string varint(std::uint64_t value) {
    std::string out;
    for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
    return out + static_cast<char>(value);
  }

  void check_and_count(const Model& model) {
    TGV2_CHECK(model.size() == request_.size);
    for (std::int32_t id = 0; id < base_.size(); ++id) TGV2_CHECK(model.piece(id) == base_.piece(id));
    for (std::size_t i = 0; i < added_.size(); ++i)
      TGV2_CHECK(model.piece(base_.size() + static_cast<int>(i)) == added_[i]);
    std::vector<std::string> left;
    for (const auto& [word, count] : normal_words_) {
      const std::vector<int> before = base_.ids(word), after = model.ids(word);
      const auto unknown = static_cast<std::uint64_t>(std::count(before.begin(), before.end(), Tokenizer::kUnknown));
      report_.tokens_before += before.size() * count;
      report_.unknown_before += unknown * count;
      report_.tokens_after += after.size() * count;
      if (unknown == 0) expect_equal(word, before, after);
      if (std::find(after.begin(), after.end(), Tokenizer::kUnknown) != after.end()) left.push_back(word);
    }
    if (!left.empty()) {
      Error error("TOK013", concat(left.size(), " words would still hold an unknown piece"));
      for (std::size_t i = 0; i < std::min<std::size_t>(left.size(), 5); ++i) std::move(error).detail(left[i]);
      throw std::move(error).fix("clean these words from the texts");
    }
    compare_base_texts(model);
  }

  void expect_equal(const std::string& text, const std::vector<int>& before, const std::vector<int>& after) {
    if (before != after) throw Error("INT001", "the extension changes how the base model splits a text").detail(text);
    ++report_.segmentations_compared;
  }

  // Every base piece, and chains of up to twelve of them with and without spaces.
  void compare_base_texts(const Model& model) {
    std::vector<std::string> pieces;
    for (std::int32_t id = 0; id < base_.size(); ++id) {
      if (base_.is_text(id)) pieces.push_back(base_.normalised(base_.piece(id)));
    }
    const auto compare = [&](const std::string& text) {
      const std::vector<int> before = base_.ids(text);
      if (std::find(before.begin(), before.end(), Tokenizer::kUnknown) == before.end()) {
        expect_equal(text, before, model.ids(text));
      }
    };
    for (const std::string& piece : pieces) compare(piece);
    RandomStream random(0, 0);
    for (int chain = 0; chain < 20'000; ++chain) {
      std::string text;
      for (std::uint64_t left = 1 + random.below(12); left > 0; --left) {
        if (random.below(4) == 0) text += ' ';
        text += pieces[random.below(pieces.size())];
      }
      compare(text);
    }
  }

  const ExtensionRequest& request_;
  std::string bytes_;
  Model base_;
  WordCounts words_;
  std::map<std::string, std::uint64_t> normal_words_;
  std::map<char32_t, std::uint64_t> corpus_characters_;
  std::set<char32_t> base_characters_;
  std::unordered_set<std::string> known_;
  std::vector<std::string> added_;
  double lowest_score_ = 0;
  ExtensionReport report_;
};

}  // namespace

ExtensionReport extend_vocabulary(const ExtensionRequest& request) {
  return Extension(request).run();
}

}  // namespace train_gpt_v2
