#include "train_gpt_v2/app/demo_tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/normalizer.h"

namespace train_gpt_v2 {
namespace {

constexpr int kUnknownId = 2;

class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return next_ == lines_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  std::size_t next_ = 0;
};

void require(const sentencepiece::util::Status& status, std::string_view what) {
  if (!status.ok()) throw Error("DEM002", concat(what, ": ", status.ToString()));
}

}  // namespace

struct DemoTokenizer::Processor {
  sentencepiece::SentencePieceProcessor value;
};

DemoTokenizer::DemoTokenizer(const std::vector<std::string>& texts, std::size_t pieces)
    : processor_(std::make_unique<Processor>()) {
  std::vector<std::string> lines;
  lines.reserve(texts.size());
  for (const std::string& text : texts) lines.push_back(before_sentencepiece(text, "am"));
  Lines iterator(lines);
  require(sentencepiece::SentencePieceTrainer::Train({{"model_type", "bpe"},
                                                      {"vocab_size", std::to_string(pieces)},
                                                      {"character_coverage", "1.0"},
                                                      {"bos_id", "0"},
                                                      {"eos_id", "1"},
                                                      {"unk_id", "2"},
                                                      {"pad_id", "-1"},
                                                      {"num_threads", "1"},

                                                      {"minloglevel", "2"}},
                                                     &iterator, &model_),
          "the tokenizer cannot be trained");
  require(processor_->value.LoadFromSerializedProto(model_), "the tokenizer cannot be loaded");
  TGV2_CHECK(static_cast<std::size_t>(processor_->value.GetPieceSize()) == pieces);
}

DemoTokenizer::~DemoTokenizer() = default;

std::string DemoTokenizer::vocabulary() const {
  std::string out;
  for (int id = 0; id < processor_->value.GetPieceSize(); ++id) {
    out += concat(processor_->value.IdToPiece(id), '\t', processor_->value.GetScore(id), '\n');
  }
  return out;
}

std::vector<std::int32_t> DemoTokenizer::encode(const std::string& text) const {
  std::vector<int> ids;
  require(processor_->value.Encode(before_sentencepiece(text, "am"), &ids), "a sentence cannot be tokenised");
  if (std::find(ids.begin(), ids.end(), kUnknownId) != ids.end()) {
    throw Error("DEM002", "the demo tokenizer does not cover a sentence").detail(text);
  }
  return {ids.begin(), ids.end()};
}

}  // namespace train_gpt_v2
