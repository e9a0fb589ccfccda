#pragma once
// SentencePiece behind the runtime normalisation of the Python tools: text in, the ids that preprocessing would store.
//
// The model file is walked by hand before SentencePiece sees it, because damaged files make it read out of bounds:
// at most 16 MiB, 100,000 pieces, 512 bytes a piece, no zero byte in a piece, a character map of at most 1 MiB.
// Ids must be <s> 0, </s> 1, <unk> 2, no <pad>: other assignments collide with start_text and stop_text.
// Errors: TOK001 (damaged), TOK002 (other ids), TOK003 (text of another kind than the vocabulary), IO001, IO004.
// Threads: encoding is const and thread-safe.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

class Tokenizer {
 public:
  static constexpr std::int32_t kBos = 0, kEos = 1, kUnknown = 2;

  explicit Tokenizer(const std::string& path);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Normalises (normalizer.h; language "" = by script) and splits. Start and stop tokens are not added.
  std::vector<std::int32_t> encode(std::string_view text, std::string_view language) const;
  // Splits text that already went through before_sentencepiece.
  std::vector<std::int32_t> encode_prepared(std::string_view text) const;
  std::vector<std::string> pieces(std::span<const std::int32_t> ids) const;
  std::string decode(std::span<const std::int32_t> ids) const;

  std::int64_t size() const { return size_; }
  std::string piece(std::int32_t id) const;
  std::int32_t piece_id(std::string_view piece) const;  // kUnknown when there is none
  const std::string& path() const { return path_; }
  const std::string& sha256() const { return sha256_; }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  std::string path_, sha256_;
  std::int64_t size_ = 0;
};

// What the walk over a serialised ModelProto finds; throws TOK001 where a limit or the wire format is broken.
struct TokenizerModelFacts {
  std::size_t pieces = 0;
  std::size_t charsmap_bytes = 0;
  int model_type = 1;  // TrainerSpec::ModelType: 1 unigram, 2 BPE
};
TokenizerModelFacts scan_tokenizer_model(std::string_view bytes, const std::string& path);

// Error TOK004 unless `extended` keeps every piece of `base` under its id: a base model's rows would otherwise belong
// to other pieces (algorithms.md §8.2).
void check_extension(const Tokenizer& extended, const Tokenizer& base);

}  // namespace train_gpt_v2
