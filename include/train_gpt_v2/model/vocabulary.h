#pragma once
// Opening a trained vocabulary to more rows (algorithms.md §8.1): values for the rows that a base model does not have.
//
// A new row becomes the mean of base rows: those of the old tokenizer's pieces of the romanised piece, of the piece
// itself, or of all (with small noise in the input table, because equal inputs cannot be told apart). Head weight and
// bias take the same mean without noise, which bounds the change of every old probability. kRandom is what the Python
// fork does: rows keep their fresh values, and the base's spare row becomes the row of the first new token.
// The base's spare row (id = its piece count, never trained as a token) moves to the new spare row otherwise.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

class Tokenizer;

enum class NewRows { kRomanisedMean, kSubpieceMean, kMeanNoise, kRandom };

NewRows parse_new_rows(std::string_view name);  // the values of init.new_rows

// What is known about the pieces; both parts may be empty.
struct Vocabulary {
  std::vector<std::string> pieces;  // by id, of the extended tokenizer
  // Upper-case Latin text -> ids of the base vocabulary, unknowns left out.
  std::function<std::vector<std::int64_t>(std::string_view)> segment;
};

// `base` may be null: then the longest known pieces among the first `base_rows` ones are matched from the left.
Vocabulary make_vocabulary(const Tokenizer& extended, const Tokenizer* base, std::int64_t base_pieces);
std::vector<std::int64_t> longest_match(std::string_view text, const std::vector<std::string>& pieces,
                                        std::int64_t base_pieces);

struct VocabularyRows {
  at::Tensor table, head_weight, head_bias;  // [rows,D], [rows,D], [rows]
};

struct VocabularyReport {
  std::int64_t base_pieces = 0, pieces = 0;
  std::int64_t romanised = 0, subpiece = 0, mean = 0, random = 0;  // new rows by the way they were made
  bool spare_row_moved = false;                                    // else it is the row of the first new token
};

// Writes all rows of `model` from `base`, which has fewer. Both on the CPU; `model` holds fresh values before.
VocabularyReport open_vocabulary(const VocabularyRows& base, const VocabularyRows& model, NewRows method,
                                 const Vocabulary& vocabulary, std::uint64_t seed);

}  // namespace train_gpt_v2
