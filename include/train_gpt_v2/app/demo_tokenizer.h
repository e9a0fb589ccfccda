#pragma once
// The SentencePiece tokenizer of the demo corpus: BPE over text as the run time hands it to SentencePiece, every
// character of it covered, ids <s> 0, </s> 1, <unk> 2, no padding, as the released tokenizers have them.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace train_gpt_v2 {

class DemoTokenizer {
 public:
  // Trains on `texts` (raw; normalised here). The same texts give the same bytes.
  DemoTokenizer(const std::vector<std::string>& texts, std::size_t pieces);
  ~DemoTokenizer();
  DemoTokenizer(const DemoTokenizer&) = delete;
  DemoTokenizer& operator=(const DemoTokenizer&) = delete;

  const std::string& model() const { return model_; }  // content of the .model file
  std::string vocabulary() const;                      // content of the .vocab file: piece, tab, score
  // Ids of raw text, without start and stop. May be called from any thread. DEM002 if a piece is unknown.
  std::vector<std::int32_t> encode(const std::string& text) const;

 private:
  struct Processor;
  std::string model_;
  std::unique_ptr<Processor> processor_;
};

}  // namespace train_gpt_v2
