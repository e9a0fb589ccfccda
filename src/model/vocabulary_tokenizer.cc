// The part of opening a vocabulary that asks tokenizers.
#include "train_gpt_v2/data/tokenizer.h"
#include "train_gpt_v2/model/vocabulary.h"

namespace train_gpt_v2 {

Vocabulary make_vocabulary(const Tokenizer& extended, const Tokenizer* base, std::int64_t base_pieces) {
  Vocabulary vocabulary;
  for (std::int64_t id = 0; id < extended.size(); ++id) vocabulary.pieces.push_back(extended.piece(static_cast<std::int32_t>(id)));
  if (base) {
    vocabulary.segment = [base](std::string_view text) {
      std::vector<std::int64_t> known;
      for (const std::int32_t id : base->encode_prepared(text)) {
        if (id != Tokenizer::kUnknown) known.push_back(id);
      }
      return known;
    };
  } else {
    vocabulary.segment = [pieces = vocabulary.pieces, base_pieces](std::string_view text) {
      return longest_match(text, pieces, base_pieces);
    };
  }
  return vocabulary;
}

}  // namespace train_gpt_v2
