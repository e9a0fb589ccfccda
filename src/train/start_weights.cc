#include "train_gpt_v2/train/start_weights.h"

#include <memory>

namespace train_gpt_v2 {

LoadReport load_start_weights(UnifiedVoice& model, const Value& root, const std::string& source, const Options& options,
                              const Tokenizer* tokenizer) {
  LoadOptions how;
  how.source = source;
  how.new_rows = parse_new_rows(options.init.new_rows);
  how.seed = static_cast<std::uint64_t>(options.train.seed);
  std::unique_ptr<Tokenizer> base;  // the vocabulary asks it while rows are made
  const Value* table = find_model_dict(root, source).find("text_embedding.weight");
  if (tokenizer && table) {
    const auto& shape = table->as_tensor("text_embedding.weight").shape;
    const std::int64_t base_pieces = shape.empty() ? 0 : shape[0] - 1;  // the last row is spare
    if (!options.data.base_tokenizer.empty()) base = std::make_unique<Tokenizer>(options.data.base_tokenizer);
    how.vocabulary = make_vocabulary(*tokenizer, base.get(), base_pieces);
  }
  return load_state(model, root, how);
}

}  // namespace train_gpt_v2
