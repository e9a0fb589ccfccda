#include "train_gpt_v2/model/fused_gpt.h"

#include <algorithm>
#include <utility>

#include "fused_gpt_impl.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/inputs.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kTokenStep = 256;  // the arena grows in such steps

// What one block holds, under gpt.h.<i>: key, field, rows and columns in units of D, and whether a GEMM multiplies by
// it.
struct BlockKey {
  const char* key;
  FusedWeight FusedBlock::*field;
  std::int64_t in, out;
  bool multiplied;
};
const BlockKey kBlockKeys[] = {
    {"ln_1.weight", &FusedBlock::ln_1_weight, 0, 1, false},
    {"ln_1.bias", &FusedBlock::ln_1_bias, 0, 1, false},
    {"attn.c_attn.weight", &FusedBlock::attn_weight, 1, 3, true},
    {"attn.c_attn.bias", &FusedBlock::attn_bias, 0, 3, false},
    {"attn.c_proj.weight", &FusedBlock::proj_weight, 1, 1, true},
    {"attn.c_proj.bias", &FusedBlock::proj_bias, 0, 1, false},
    {"ln_2.weight", &FusedBlock::ln_2_weight, 0, 1, false},
    {"ln_2.bias", &FusedBlock::ln_2_bias, 0, 1, false},
    {"mlp.c_fc.weight", &FusedBlock::fc_weight, 1, 4, true},
    {"mlp.c_fc.bias", &FusedBlock::fc_bias, 0, 4, false},
    {"mlp.c_proj.weight", &FusedBlock::out_weight, 4, 1, true},
    {"mlp.c_proj.bias", &FusedBlock::out_bias, 0, 1, false},
};

std::int64_t copy_elements(std::int64_t numel) {
  return (numel + 31) / 32 * 32;
}  // whole cache lines

std::int64_t whole_steps(std::int64_t tokens) {
  return (tokens + kTokenStep - 1) / kTokenStep * kTokenStep;
}

std::string block_key(std::int64_t i, const char* key) {
  return concat("gpt.h.", i, ".", key);
}

}  // namespace

std::map<std::string, std::int64_t> FusedGpt::required_parameters(const ModelOptions& options) {
  const std::int64_t d = options.model_dim;
  std::map<std::string, std::int64_t> sizes{{"text_embedding.weight", options.text_rows() * d},
                                            {"text_pos_embedding.emb.weight", options.text_positions() * d},
                                            {"mel_embedding.weight", options.number_mel_codes * d},
                                            {"mel_pos_embedding.emb.weight", options.mel_positions() * d},
                                            {"speed_emb.weight", 2 * d},
                                            {"gpt.ln_f.weight", d},
                                            {"gpt.ln_f.bias", d},
                                            {"final_norm.weight", d},
                                            {"final_norm.bias", d},
                                            {"text_head.weight", options.text_rows() * d},
                                            {"text_head.bias", options.text_rows()},
                                            {"mel_head.weight", options.number_mel_codes * d},
                                            {"mel_head.bias", options.number_mel_codes}};
  for (std::int64_t i = 0; i < options.layers; ++i) {
    for (const BlockKey& b : kBlockKeys) sizes[block_key(i, b.key)] = (b.in ? b.in * d : 1) * b.out * d;
  }
  return sizes;
}

FusedWeight FusedGpt::Impl::weight(const FusedParameters& parameters, const std::string& key) {
  const std::int64_t numel = required_parameters(options).at(key);
  const auto found = parameters.find(key);
  if (found == parameters.end() || !found->second.value) {
    throw Error("INT001", "the fused step was not given the parameter " + key);
  }
  if (found->second.numel != numel) {
    throw Error("INT001", concat("the fused step expects ", numel, " numbers in ", key, ", not ", found->second.numel));
  }
  return {.value = found->second.value, .grad = found->second.grad, .numel = numel, .thin = found->second.thin};
}

FusedGpt::Impl::Impl(const ModelOptions& options_, const FusedParameters& parameters, const FusedOptions& fused_,
                     std::unique_ptr<Kernels> kernels_)
    : options(options_),
      fused(fused_),
      type(fused_.bf16 ? Num::kBf16 : Num::kFloat),
      width(options_.model_dim),
      kernels(kernels_ ? std::move(kernels_) : make_cpu_kernels(fused_.threads, fused_.isa)) {
  TGV2_CHECK(fused.head_rows > 0 && options.layers > 0 && width > 0 && options.heads > 0 && width % options.heads == 0);
  blocks.resize(static_cast<std::size_t>(options.layers));
  std::vector<FusedWeight*> multiplied;
  const auto place_weight = [&](FusedWeight& w, const std::string& key, bool is_multiplied) {
    w = weight(parameters, key);
    by_key[key] = &w;
    if (is_multiplied) multiplied.push_back(&w);
  };
  for (std::int64_t i = 0; i < options.layers; ++i) {
    FusedBlock& block = blocks[static_cast<std::size_t>(i)];
    for (const BlockKey& b : kBlockKeys) {
      place_weight(block.*b.field, block_key(i, b.key), b.multiplied);
      FusedWeight& w = block.*b.field;
      block.trainable |= w.grad || w.thin;
      if (!w.thin) continue;
      w.in = b.in * width;
      w.out = b.out * width;
      w.most_ranks = w.thin->rank;
      TGV2_CHECK(b.multiplied && !w.grad && w.most_ranks <= width);
      keep_outputs |= w.thin->columns != nullptr;
    }
  }
  place_weight(text_table, "text_embedding.weight", false);
  place_weight(text_positions, "text_pos_embedding.emb.weight", false);
  place_weight(mel_table, "mel_embedding.weight", false);
  place_weight(mel_positions, "mel_pos_embedding.emb.weight", false);
  place_weight(speed_table, "speed_emb.weight", false);
  place_weight(ln_f_weight, "gpt.ln_f.weight", false);
  place_weight(ln_f_bias, "gpt.ln_f.bias", false);
  place_weight(final_weight, "final_norm.weight", false);
  place_weight(final_bias, "final_norm.bias", false);
  place_weight(text_head.weight, "text_head.weight", true);
  place_weight(text_head.bias, "text_head.bias", false);
  place_weight(mel_head.weight, "mel_head.weight", true);
  place_weight(mel_head.bias, "mel_head.bias", false);
  text_head.classes = text_head.columns = options.text_rows();
  mel_head.classes = mel_head.columns = options.number_mel_codes;
  text_touched.assign(static_cast<std::size_t>(options.text_rows()), 0);
  mel_touched.assign(static_cast<std::size_t>(options.number_mel_codes), 0);

  embedding_trainable =
      text_table.grad || text_positions.grad || mel_table.grad || mel_positions.grad || speed_table.grad;
  if (!embedding_trainable) {
    while (lowest_block < options.layers && !blocks[static_cast<std::size_t>(lowest_block)].trainable) ++lowest_block;
  }
  if (type == Num::kBf16) {
    std::vector<Bf16**> copied;
    std::vector<std::int64_t> places{0};
    const auto copy = [&](Bf16*& to, std::int64_t numel) {
      copied.push_back(&to);
      places.push_back(places.back() + copy_elements(numel));
    };
    for (FusedWeight* w : multiplied) {
      std::int64_t numel = w->numel;
      for (FusedHead* head : {&text_head, &mel_head}) {
        if (w != &head->weight || !fused.whole_classes) continue;
        head->columns = whole_classes(head->classes);
        numel = head->columns * width;  // the rows added stay zero
      }
      copy(w->copy, numel);
      if (!w->thin) continue;
      copy(w->a_copy, w->most_ranks * w->in);
      copy(w->b_copy, w->most_ranks * w->out);
    }
    copies_bytes = static_cast<std::size_t>(places.back()) * sizeof(Bf16);
    copies = kernels->allocate(copies_bytes);
    for (std::size_t i = 0; i < copied.size(); ++i) *copied[i] = static_cast<Bf16*>(copies) + places[i];
  }
  if (fused.max_tokens > 0) {
    reserve(fused.max_tokens);
    kernels->zero(arena, arena_size);  // no page faults in the steps
  }
}

FusedGpt::Impl::~Impl() {
  kernels->release(arena, arena_size);
  kernels->release(copies, copies_bytes);
}

void FusedGpt::Impl::reserve(std::int64_t tokens) {
  if (tokens <= capacity) return;
  tokens = whole_steps(std::max(tokens, static_cast<std::int64_t>(static_cast<double>(capacity) * fused.growth)));
  std::vector<FusedActivations*> kept;
  kept.reserve(blocks.size());
  for (FusedBlock& block : blocks) kept.push_back(&block);
  kernels->release(arena, arena_size);
  arena = nullptr;
  capacity = 0;
  arena_size = lay_out(nullptr, tokens, options, type, fused.head_rows, keep_outputs, kept);
  arena = kernels->allocate(arena_size);
  capacity = tokens;
  lay_out(static_cast<char*>(arena), tokens, options, type, fused.head_rows, keep_outputs, kept);
}

FusedPlan FusedGpt::Impl::plan(const Batch& batch) const {
  check_batch(batch, options);
  const std::int64_t latents = options.condition_num_latent, count = batch.count();
  if (batch.condition.size() != static_cast<std::size_t>(count * latents * width) ||
      batch.emo_vec.size() != static_cast<std::size_t>(count * width)) {
    throw Error("INT001", "the fused step takes precomputed conditioning only");
  }
  std::int64_t longest_text = 0;
  for (std::int64_t i = 0; i < count; ++i) longest_text = std::max(longest_text, batch.text_length(i));
  FusedPlan p;
  const std::size_t rows = batch.text.size() + batch.codes.size() +
                           static_cast<std::size_t>(count * (options.prefix_length() + 3));  // without text padding
  p.source.reserve(rows);
  p.dropout_rows.reserve(rows);
  std::vector<std::int32_t> mel_rows, mel_targets, mel_samples;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto sample = static_cast<std::int32_t>(i), begin = static_cast<std::int32_t>(p.rows());
    const auto put = [&](EmbedKind kind, std::int64_t id, std::int64_t position) {
      const auto at = static_cast<std::uint32_t>(p.rows() - begin);
      p.source.push_back({kind, static_cast<std::int32_t>(id), static_cast<std::int32_t>(position)});
      p.dropout_rows.push_back(dropout_row(static_cast<std::uint32_t>(i), at));
    };
    for (std::int64_t k = 0; k < latents; ++k) put(kConditionRow, i * latents + k, i);
    put(kSpeedRow, 1, 0);
    put(kSpeedRow, 0, 0);
    const std::int32_t* text = batch.text.data() + batch.text_begin[i];
    const std::int64_t text_length = batch.text_length(i),
                       text_inputs = (fused.text_padding ? longest_text : text_length) + 2;
    for (std::int64_t k = 0; k < text_inputs; ++k) {
      if (k <= text_length) {
        p.scored.push_back(static_cast<std::int32_t>(p.rows()));
        p.targets.push_back(k < text_length ? text[k] : static_cast<std::int32_t>(options.stop_text_token));
        p.sample.push_back(sample);
      }
      put(kTextRow, k == 0 ? options.start_text_token : k <= text_length ? text[k - 1] : options.stop_text_token, k);
    }
    const std::int32_t* codes = batch.codes.data() + batch.code_begin[i];
    const std::int64_t code_length = batch.code_length(i);
    for (std::int64_t k = 0; k <= code_length; ++k) {
      mel_rows.push_back(static_cast<std::int32_t>(p.rows()));
      mel_targets.push_back(k < code_length ? codes[k] : static_cast<std::int32_t>(options.stop_mel_token));
      mel_samples.push_back(sample);
      put(kMelRow, k == 0 ? options.start_mel_token : codes[k - 1], k);
    }
    p.segments.push_back({begin, static_cast<std::int32_t>(p.rows() - begin)});
  }
  p.text_tokens = p.scored_rows();
  p.scored.insert(p.scored.end(), mel_rows.begin(), mel_rows.end());
  p.targets.insert(p.targets.end(), mel_targets.begin(), mel_targets.end());
  p.sample.insert(p.sample.end(), mel_samples.begin(), mel_samples.end());
  return p;
}

void FusedGpt::Impl::load(const FusedPlan& p, const Batch& batch) {
  reserve(p.rows());
  const auto send = [&](auto* to, const auto& from) {
    kernels->upload(to, from.data(), from.size() * sizeof(from[0]));
  };
  send(rows_source, p.source);
  send(rows_dropout, p.dropout_rows);
  send(rows_scored, p.scored);
  send(rows_target, p.targets);
  send(condition, batch.condition);
  send(emotion, batch.emo_vec);
  segments = p.segments.data();
  segment_count = static_cast<std::int64_t>(p.segments.size());
}

FusedLosses FusedGpt::Impl::collect(const FusedPlan& p, std::vector<FusedLosses>* samples, std::int64_t count) const {
  const auto scored = static_cast<std::size_t>(p.scored_rows());
  std::vector<float> losses(scored);
  std::vector<std::int32_t> ranks(scored);
  kernels->download(losses.data(), loss, scored * sizeof(float));
  kernels->download(ranks.data(), rank, scored * sizeof(std::int32_t));
  if (samples) samples->assign(static_cast<std::size_t>(count), {});
  FusedLosses total;
  const auto add = [&](FusedLosses& to, std::size_t i) {
    const bool is_text = static_cast<std::int64_t>(i) < p.text_tokens;
    (is_text ? to.text_loss_sum : to.mel_loss_sum) += static_cast<double>(losses[i]);
    (is_text ? to.text_tokens : to.mel_tokens) += 1;
    if (!is_text) {
      to.mel_top1 += ranks[i] == 0;
      to.mel_top5 += ranks[i] < 5;
    }
  };
  for (std::size_t i = 0; i < scored; ++i) {
    add(total, i);
    if (samples) add((*samples)[static_cast<std::size_t>(p.sample[i])], i);
  }
  return total;
}

FusedGpt::FusedGpt(const ModelOptions& options, const FusedParameters& parameters, const FusedOptions& fused,
                   std::unique_ptr<Kernels> kernels)
    : impl_(std::make_unique<Impl>(options, parameters, fused, std::move(kernels))) {
  refresh_weights();
}
FusedGpt::~FusedGpt() = default;

std::int64_t FusedGpt::arena_bytes(const ModelOptions& options, const FusedOptions& fused, std::int64_t tokens) {
  std::vector<FusedActivations> blocks(static_cast<std::size_t>(options.layers));
  std::vector<FusedActivations*> kept;
  kept.reserve(blocks.size());
  for (FusedActivations& block : blocks) kept.push_back(&block);
  const Num type = fused.bf16 ? Num::kBf16 : Num::kFloat;
  return static_cast<std::int64_t>(
      FusedBuffers{}.lay_out(nullptr, whole_steps(tokens), options, type, fused.head_rows, false, kept));
}

void FusedGpt::begin_window() {
  Impl& s = *impl_;
  const auto clear_rows = [&](const FusedWeight& w, std::vector<std::uint8_t>& touched) {
    if (w.grad) s.kernels->zero_rows(w.grad, static_cast<std::int64_t>(touched.size()), s.width, touched.data());
    std::fill(touched.begin(), touched.end(), std::uint8_t{0});
  };
  clear_rows(s.text_table, s.text_touched);
  clear_rows(s.mel_table, s.mel_touched);
  for (const FusedWeight* w : {&s.text_positions, &s.mel_positions, &s.speed_table}) {
    if (w->grad) s.kernels->zero(w->grad, static_cast<std::size_t>(w->numel) * sizeof(float));
  }
  s.overwrite = true;
}

FusedLosses FusedGpt::forward_backward(const Batch& batch, const DropoutKey& key, double text_scale, double mel_scale) {
  Impl& s = *impl_;
  const FusedPlan plan = s.plan(batch);
  s.load(plan, batch);
  s.text_head.scale = text_scale;
  s.mel_head.scale = mel_scale;
  const Dropout dropout = make_dropout(key, s.options.dropout);
  s.forward(plan, dropout);
  s.score(plan, true);
  s.backward(plan, dropout);
  s.overwrite = false;
  return s.collect(plan, nullptr, batch.count());
}

FusedLosses FusedGpt::evaluate(const Batch& batch, std::vector<FusedLosses>* samples) {
  Impl& s = *impl_;
  const FusedPlan plan = s.plan(batch);
  s.load(plan, batch);
  s.forward(plan, Dropout{});
  s.score(plan, false);
  return s.collect(plan, samples, batch.count());
}

void FusedGpt::on_gradients(StageListener listener) {
  impl_->listener = std::move(listener);
}

void FusedGpt::refresh_weights() {
  for (const auto& [key, w] : impl_->by_key) {
    if (w->copy) impl_->kernels->convert(w->copy, w->value, w->numel);
    if (!w->thin) continue;
    TGV2_CHECK(w->thin->rank <= w->most_ranks);
    if (w->a_copy) impl_->kernels->convert(w->a_copy, w->thin->a, w->thin->rank * w->in);
    if (w->b_copy) impl_->kernels->convert(w->b_copy, w->thin->b, w->thin->rank * w->out);
  }
}

Bf16* FusedGpt::bf16_copy(const std::string& key) {
  const auto found = impl_->by_key.find(key);
  return found == impl_->by_key.end() ? nullptr : found->second->copy;
}

const std::uint8_t* FusedGpt::touched_rows(const std::string& key) const {
  if (key == "text_embedding.weight") return impl_->text_touched.data();
  if (key == "mel_embedding.weight") return impl_->mel_touched.data();
  return nullptr;
}

Kernels& FusedGpt::kernels() {
  return *impl_->kernels;
}

}  // namespace train_gpt_v2
