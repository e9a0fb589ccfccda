// Rows of section model: the keys of `gpt:` in the released config.yaml, and what the constructor has beside them.

#include "option_builder.h"

namespace train_gpt_v2 {

OptionRow accepted_only(std::string path, Json value, std::string only, std::string doc) {
  OptionRow row;
  row.path = std::move(path);
  row.doc = std::move(doc);
  row.accepted_only = true;
  row.value.kind = value.is_boolean() ? ValueKind::kBool : ValueKind::kInteger;
  row.value.only_value = std::move(only);
  row.get = [value = std::move(value)](const Options&) { return value; };
  row.set = [](Options&, const Json&) {};
  return row;
}

namespace {

constexpr double kWidth = 65536;       // widths and head counts
constexpr double kDepth = 1024;        // blocks
constexpr double kTable = 16'777'216;  // rows of a table

// The dotted keys of one conditioner; MEMBER is condition_module or emo_condition_module.
#define TGV2_CONDITIONER_ROWS(MEMBER, WHO)                                                                         \
  TGV2_OPTION(model.MEMBER.output_size, kNever, WHO " conformer: width; even").range(2, kWidth),                   \
      TGV2_OPTION(model.MEMBER.linear_units, kNever, WHO " conformer: feed-forward width").range(1, kWidth),       \
      TGV2_OPTION(model.MEMBER.attention_heads, kNever, WHO " conformer: heads; must divide output_size")          \
          .range(1, kDepth),                                                                                       \
      TGV2_OPTION(model.MEMBER.num_blocks, kNever, WHO " conformer: blocks").range(1, kDepth),                     \
      TGV2_OPTION(model.MEMBER.input_layer, kNever, WHO " conformer: subsampling").choices({"conv2d2"}),           \
      TGV2_OPTION(model.MEMBER.perceiver_mult, kNever, WHO " perceiver: feed-forward width = int(width·mult·2/3)") \
          .above(0)                                                                                                \
          .at_most(1024)

}  // namespace

OptionRows model_rows() {
  return {
      TGV2_OPTION(model.model_dim, kNever, "width of the GPT").range(1, kWidth),
      TGV2_OPTION(model.layers, kNever, "blocks of the GPT").range(1, kDepth),
      TGV2_OPTION(model.heads, kNever, "attention heads; must divide model_dim").range(1, kDepth),
      TGV2_OPTION(model.number_text_tokens, kNever, "text vocabulary; must equal the pieces of data.tokenizer")
          .range(1, kTable)
          .unit("tokens"),
      TGV2_OPTION(model.number_mel_codes, kNever, "semantic codes, start and stop included")
          .range(3, kTable)
          .unit("codes"),
      TGV2_OPTION(model.start_mel_token, kNever, "code that begins a sequence").range(0, kTable),
      TGV2_OPTION(model.stop_mel_token, kNever, "code that ends a sequence, also the padding").range(0, kTable),
      TGV2_OPTION(model.start_text_token, kNever, "text id that begins a text").range(0, kTable),
      TGV2_OPTION(model.stop_text_token, kNever, "text id that ends a text, also the padding").range(0, kTable),
      TGV2_OPTION(model.max_text_tokens, kNever, "longest text; the position table has 2 more rows")
          .range(1, 1'000'000)
          .unit("tokens"),
      TGV2_OPTION(model.max_mel_tokens, kNever,
                  "longest code sequence; the position table has 2 + conditioning more rows")
          .range(1, 1'000'000)
          .unit("codes"),
      TGV2_OPTION(model.condition_type, kNever, "kind of the conditioners").choices({"conformer_perceiver"}),
      TGV2_CONDITIONER_ROWS(condition_module, "speaker"),
      TGV2_CONDITIONER_ROWS(emo_condition_module, "emotion"),
      TGV2_OPTION(model.condition_num_latent, kNever, "conditioning vectors before the text").range(1, 4096),
      TGV2_OPTION(model.max_conditioning_inputs, kNever, "prompts the position table leaves room for").range(1, 64),
      TGV2_OPTION(model.dropout, kLoss, "dropout of embedding, attention, residual and mlp while training")
          .at_least(0)
          .below(1),
      TGV2_OPTION(model.conditioning, kData,
                  "read stored condition vectors, or compute them from features while training")
          .choices({"precomputed", "online"}),
      accepted_only("model.use_mel_codes_as_input", true, "true", "reference's key; only true has a meaning here"),
      accepted_only("model.mel_length_compression", 1024, "1024", "reference's key; unused by training"),
      accepted_only("model.train_solo_embeddings", false, "false", "reference's key; only false is supported"),
      accepted_only("model.types", 1, "1", "reference's key; one kind of text token"),
      accepted_only("model.checkpointing", true, "",
                    "reference's key; does not change results, see train.activation_checkpointing"),
  };
}

}  // namespace train_gpt_v2
