// Rows of sections init, data and sampler.

#include "option_builder.h"

namespace train_gpt_v2 {

template <>
const std::vector<Field<ReplayOptions>>& fields_of<ReplayOptions>() {
  static const std::vector<Field<ReplayOptions>> fields{
      TGV2_FIELD(ReplayOptions, manifest, "pair manifest to mix in").path(),
      TGV2_FIELD(ReplayOptions, share, "fraction of the samples of every window").above(0).below(1),
  };
  return fields;
}

namespace {

std::string language_problem(const std::string& language) {
  const bool plain =
      language.size() <= 16 && language.find_first_not_of("abcdefghijklmnopqrstuvwxyz-") == std::string::npos;
  return plain ? "" : "is not a language code such as \"am\"";
}

}  // namespace

OptionRows data_rows() {
  return {
      TGV2_OPTION(init.from, kFree, "weights to start from: gpt.pth, a checkpoint or safetensors; null = fresh")
          .path()
          .or_null(),
      TGV2_OPTION(init.new_rows, kFree, "how text rows that the start weights lack are made")
          .choices({"romanised_mean", "subpiece_mean", "mean_noise", "random"}),
      TGV2_OPTION(init.peft_adapter, kFree, "folder of a peft adapter that goes on top of the weights; null = none")
          .path()
          .or_null(),

      TGV2_OPTION(data.train_manifests, kData, "pair manifests (JSONL), each with an optional ::language").path(),
      TGV2_OPTION(data.val_manifests, kFree, "pair manifests for validation; may be empty when validation is off")
          .path(),
      TGV2_OPTION(data.tokenizer, kNever, "SentencePiece model; null when every record has text ids").path().or_null(),
      TGV2_OPTION(data.base_tokenizer, kFree, "tokenizer of the start weights, for making new text rows")
          .path()
          .or_null(),
      TGV2_OPTION(data.language, kData, "language of records that do not say theirs; null = by script")
          .checked(language_problem)
          .or_null(),
      TGV2_OPTION(data.num_workers, kFree, "threads that read samples; 0 = read in the training thread")
          .range(0, 256)
          .unit("threads"),
      TGV2_OPTION(data.prefetch_batches, kFree, "batches read ahead").range(1, 4096).unit("batches"),
      TGV2_OPTION(data.on_bad_sample, kFree, "what a malformed or unreadable sample does").choices({"stop", "skip"}),
      TGV2_OPTION(data.max_bad_fraction, kFree, "with \"skip\": more bad samples than this stop the run").range(0, 1),
      TGV2_OPTION(data.on_overlong, kData, "what a sample beyond the position tables does")
          .choices({"drop", "trim", "refuse"}),
      TGV2_OPTION(data.order_file, kFree, "JSONL of micro-batches of pair ids, used verbatim").path().or_null(),
      TGV2_OPTION(data.replay, kOrder, "further manifests mixed into every window, outside the epoch count"),

      TGV2_OPTION(sampler.mode, kOrder, "how batches are put together")
          .choices({"mega_batch", "buckets", "shuffle", "sequential"}),
      TGV2_OPTION(sampler.boundaries, kOrder, "bucket = first boundary not below the code length; rising")
          .range(1, 1'000'000)
          .unit("codes"),
      TGV2_OPTION(sampler.batch_tokens, kOrder,
                  "positions per micro-batch (prefix and padding included); null = by count")
          .range(1, 1e9)
          .unit("positions"),
      TGV2_OPTION(sampler.pool, kOrder, "batches per mega-batch, which is sorted by length")
          .range(1, 1'000'000)
          .unit("batches"),
      TGV2_OPTION(sampler.drop_last, kOrder, "leave out the last, smaller batches"),
  };
}

}  // namespace train_gpt_v2
