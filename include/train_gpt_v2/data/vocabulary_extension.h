#pragma once
// A SentencePiece BPE model with more pieces: what `extend-vocab` does (data_and_peers.md §6 point 3).
//
// The output is the base file byte for byte, followed by the new pieces, so base ids cannot move. New are
//   1. every character that texts can hold and the base has no piece for: all assigned Ethiopic characters (1200-137F,
//      1380-139F, 2D80-2DDF, AB00-AB2F), digits, capital letters, punctuation, and every character of the given texts;
//   2. merges that SentencePiece's BPE trainer finds in the texts, each with at least one character that no base piece
//      holds, ranked behind all base merges.
// Texts go through the runtime's own normalisation first. By 2. no new piece can match inside a text that the base
// splits without <unk>: its segmentation stays what it was. That is also tried out on the base's own pieces, on random
// chains of them and on the texts' words. Nothing is written unless that holds and no text has an <unk> left.
//
// Errors: TOK001, TOK002 (the base model), TOK010 (a kind of model that cannot be extended), TOK011 (the size), TOK012
// (a text; file and line), TOK013 (an <unk> is left), IO001, IO004. Limits: 100,000 pieces, 64 KiB a line, 16 GiB of
// text, 8 million different words. Same input, same bytes.

#include <cstdint>
#include <string>
#include <vector>

namespace train_gpt_v2 {

struct ExtensionRequest {
  std::string base;  // .model
  std::vector<std::string>
      texts;              // text, one utterance a line; *.jsonl: fields target_text or text; optional ::language
  std::int64_t size = 0;  // pieces of the result
  std::string output;
};

struct ExtensionReport {
  std::int64_t base_pieces = 0, characters = 0, merges = 0;  // characters and merges are the new pieces
  std::uint64_t lines = 0, words = 0, distinct_words = 0;
  std::uint64_t tokens_before = 0, unknown_before = 0, tokens_after = 0;  // of all words
  std::int64_t ethiopic = 0;                 // assigned characters of the ranges, all covered
  std::vector<std::string> unexpected;       // characters of the texts outside the planned ones
  std::uint64_t segmentations_compared = 0;  // texts that both models split alike
};

ExtensionReport extend_vocabulary(const ExtensionRequest& request);

}  // namespace train_gpt_v2
