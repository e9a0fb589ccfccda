// The part of opening a vocabulary that asks tokenizers.
#include "train_gpt_v2/data/tokenizer.h"
#include "train_gpt_v2/model/vocabulary.h"

namespace train_gpt_v2 {
namespace {

constexpr std::string_view kWordStart = "\xE2\x96\x81";  // a space in SentencePiece, U+2581

}  // namespace

Vocabulary make_vocabulary(const Tokenizer& extended, const Tokenizer* base, std::int64_t base_pieces) {
  Vocabulary vocabulary;
  for (std::int32_t id = 0; id < extended.size(); ++id) vocabulary.pieces.push_back(extended.piece(id));
  if (base) {
    vocabulary.segment = [base, base_pieces](std::string_view text) {
      std::vector<std::int64_t> ids;
      const bool word_start = text.substr(0, 1) == " ";
      for (const std::int32_t id : base->encode_prepared(text)) {
        // SentencePiece puts a word start before every text; without one in the piece a lone mark means nothing.
        const bool lone_mark = ids.empty() && !word_start && base->piece(id) == kWordStart;
        if (id > Tokenizer::kUnknown && id < base_pieces && !lone_mark) ids.push_back(id);
      }
      return ids;
    };
  } else {
    vocabulary.segment = [pieces = vocabulary.pieces, base_pieces](std::string_view text) {
      return longest_match(text, pieces, base_pieces);
    };
  }
  return vocabulary;
}

}  // namespace train_gpt_v2
