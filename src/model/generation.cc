#include "train_gpt_v2/model/generation.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kFirstCodes = 16;  // that the keys and values have room for at first

std::vector<std::int64_t> text_inputs(const GenerationCase& one, const ModelOptions& options) {
  std::vector<std::int64_t> ids{options.start_text_token};
  for (const std::int32_t id : one.text) {
    if (id == options.start_text_token || id == options.stop_text_token) continue;
    if (id < 0 || id >= options.text_rows()) {
      throw Error("DAT042", concat("text id ", id, " lies outside the model's table of ", options.text_rows(), " rows"))
          .fix("use the tokenizer that the model was trained with");
    }
    ids.push_back(id);
  }
  ids.push_back(options.stop_text_token);
  if (static_cast<std::int64_t>(ids.size()) > options.text_positions()) {
    throw Error("DAT043",
                concat("a text of ", ids.size() - 2, " ids is longer than the model's ", options.max_text_tokens))
        .fix("split the text into sentences");
  }
  return ids;
}

at::Tensor embedded(const Table& table, const Table& positions, const std::vector<std::int64_t>& ids) {
  const at::Tensor index = at::tensor(ids).to(table.weight.device());
  return table.forward(index) + positions.weight.slice(0, 0, static_cast<std::int64_t>(ids.size()));
}

}  // namespace

at::Tensor conditioning_rows(const UnifiedVoice& model, const at::Tensor& condition, const at::Tensor& emo_vec) {
  const at::NoGradGuard no_grad;
  const auto options = model.speed_emb->weight.options();
  const at::Tensor& speed = model.speed_emb->weight;
  return at::cat({condition.to(options) + emo_vec.to(options), speed.slice(0, 1, 2), speed.slice(0, 0, 1)});
}

std::int64_t code_limit(const ModelOptions& model, const DecodingOptions& options) {
  const std::int64_t most = model.max_mel_tokens - 1;
  return std::min(options.max_codes.value_or(most), most);
}

Decoder::Decoder(const UnifiedVoice& model, const std::vector<GenerationCase>& cases, std::int64_t beams,
                 std::int64_t limit, bool reference_positions)
    : model_(model),
      beams_(beams),
      heads_(model.options().heads),
      head_size_(model.options().model_dim / model.options().heads),
      rows_(static_cast<std::int64_t>(cases.size()) * beams),
      limit_(limit),
      reference_positions_(reference_positions) {
  const at::NoGradGuard no_grad;
  for (const GenerationCase& one : cases) {
    prefix_ = std::max<std::int64_t>(
        prefix_, one.conditioning.size(0) + static_cast<std::int64_t>(text_inputs(one, model.options()).size()) + 1);
  }
  const auto options = model.mel_head->weight.options().requires_grad(false);
  for (std::int64_t i = 0; i < model.options().layers; ++i) {
    for (auto* cache : {&keys_, &values_}) {
      cache->push_back(at::zeros({rows_, heads_, prefix_ + std::min(limit, kFirstCodes), head_size_}, options));
    }
  }
  prefill(cases);
}

// All prefixes once, end to end without padding; their keys and values then go to every beam, aligned at the right.
void Decoder::prefill(const std::vector<GenerationCase>& cases) {
  std::vector<at::Tensor> parts;
  std::vector<std::int64_t> lengths, last_rows;
  std::int64_t row = 0;
  for (const GenerationCase& one : cases) {
    const auto text = text_inputs(one, model_.options());
    parts.push_back(one.conditioning.to(model_.speed_emb->weight.options()));
    parts.push_back(embedded(*model_.text_embedding, *model_.text_pos_embedding, text));
    parts.push_back(embedded(*model_.mel_embedding, *model_.mel_pos_embedding, {model_.options().start_mel_token}));
    lengths.push_back(one.conditioning.size(0) + static_cast<std::int64_t>(text.size()) + 1);
    row += lengths.back();
    for (std::int64_t b = 0; b < beams_; ++b) last_rows.push_back(row - 1);
  }
  Segments segments = make_segments(lengths);
  const at::Device device = model_.device();
  segments.offsets = segments.offsets.to(device);
  at::Tensor x = at::cat(parts);
  const auto& blocks = model_.gpt->blocks();
  for (std::size_t layer = 0; layer < blocks.size(); ++layer) {
    const at::Tensor qkv = blocks[layer]->project_qkv(x);
    std::int64_t first = 0;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      const auto split =
          qkv.slice(0, first, first + lengths[i]).view({lengths[i], 3, heads_, head_size_}).permute({1, 2, 0, 3});
      const auto begin = static_cast<std::int64_t>(i) * beams_;
      const auto place = [&](at::Tensor& cache) {
        return cache.slice(0, begin, begin + beams_).slice(2, prefix_ - lengths[i], prefix_);
      };
      place(keys_[layer]).copy_(split[1]);
      place(values_[layer]).copy_(split[2]);
      first += lengths[i];
    }
    x = blocks[layer]->finish(x, causal_attention(qkv, heads_, segments, {}, static_cast<std::int64_t>(layer)),
                              segments, {});
  }
  last_ = at::index_select(x, 0, at::tensor(last_rows).to(device));
  if (segments.equal) return;
  hidden_ = at::zeros({rows_, 1, 1, prefix_}, at::TensorOptions(device).dtype(at::kBool));
  for (std::int64_t r = 0; r < rows_; ++r) hidden_[r].slice(-1, 0, prefix_ - lengths[r / beams_]).fill_(true);
}

std::vector<Scores> Decoder::logits() const {
  const at::NoGradGuard no_grad;
  const at::Tensor all = model_.mel_head->forward(model_.final_states(last_))
                             .to(at::TensorOptions(at::kCPU).dtype(at::kDouble))
                             .contiguous();
  std::vector<Scores> rows;
  for (std::int64_t r = 0; r < rows_; ++r) {
    const double* begin = all.const_data_ptr<double>() + r * all.size(1);
    rows.emplace_back(begin, begin + all.size(1));
    if (std::all_of(rows.back().begin(), rows.back().end(), [](double s) { return std::isfinite(s); })) continue;
    throw Error("NUM020", "the model's scores are not finite")
        .fix("inspect the checkpoint; its weights may have diverged");
  }
  return rows;
}

at::Tensor Decoder::attend(std::size_t layer, const at::Tensor& qkv) {
  const std::int64_t position = prefix_ + fed_, total = position + 1;
  const auto parts = qkv.view({rows_, 3, heads_, head_size_}).unbind(1);  // [rows,H,d]
  keys_[layer].select(2, position).copy_(parts[1]);
  values_[layer].select(2, position).copy_(parts[2]);
  const at::Tensor k = keys_[layer].slice(2, 0, total), v = values_[layer].slice(2, 0, total);
  at::Tensor scores =
      at::matmul((parts[0] / std::sqrt(static_cast<double>(head_size_))).unsqueeze(2), k.transpose(2, 3));
  if (hidden_.defined()) {
    scores.slice(-1, 0, prefix_).masked_fill_(hidden_, -std::numeric_limits<double>::infinity());
  }
  return at::matmul(at::softmax(scores, -1), v).reshape({rows_, heads_ * head_size_});
}

void Decoder::reorder(const std::vector<std::int64_t>& source) {
  bool moved = false;
  for (std::size_t r = 0; r < source.size(); ++r) moved = moved || source[r] != static_cast<std::int64_t>(r);
  if (!moved || fed_ == 0) return;
  // Rows move within a case only, so their prefixes are equal already.
  const at::Tensor index = at::tensor(source).to(model_.device());
  for (auto* cache : {&keys_, &values_}) {
    for (at::Tensor& tensor : *cache) {
      at::Tensor written = tensor.slice(2, prefix_, prefix_ + fed_);
      written.copy_(at::index_select(written, 0, index));
    }
  }
}

// Most utterances end long before the limit: room doubles when it is used up.
void Decoder::make_room() {
  const std::int64_t room = keys_.front().size(2) - prefix_;
  if (fed_ < room) return;
  const std::int64_t more = std::min(2 * room, limit_) - room;
  for (auto* cache : {&keys_, &values_}) {
    for (at::Tensor& tensor : *cache) {
      tensor = at::cat({tensor, at::zeros({rows_, heads_, more, head_size_}, tensor.options())}, 2);
    }
  }
}

void Decoder::step(const std::vector<std::int64_t>& source, const std::vector<std::int64_t>& codes) {
  const at::NoGradGuard no_grad;
  TGV2_CHECK(static_cast<std::int64_t>(codes.size()) == rows_ && fed_ < limit_);
  make_room();
  reorder(source);
  const std::int64_t position = fed_ + (reference_positions_ ? 2 : 1);
  at::Tensor x =
      model_.mel_embedding->forward(at::tensor(codes).to(model_.device())) + model_.mel_pos_embedding->weight[position];
  const auto& blocks = model_.gpt->blocks();
  for (std::size_t layer = 0; layer < blocks.size(); ++layer) {
    x = blocks[layer]->finish(x, attend(layer, blocks[layer]->project_qkv(x)), {}, {});
  }
  last_ = x;
  ++fed_;
}

std::vector<SearchResult> generate(const UnifiedVoice& model, const std::vector<GenerationCase>& cases,
                                   const DecodingOptions& options, const std::function<bool()>& stop) {
  const ModelOptions& sizes = model.options();
  const std::int64_t limit = code_limit(sizes, options);
  TGV2_CHECK(!cases.empty() && limit >= 1 && options.num_beams >= 1);
  std::vector<std::unique_ptr<Search>> searches;
  searches.reserve(cases.size());
  for (const GenerationCase& one : cases) {
    // The reference's id row holds ones in place of the prefix, then the start code.
    searches.push_back(make_search({options, sizes.stop_mel_token, limit, {1, sizes.start_mel_token}, one.stream}));
  }
  Decoder decoder(model, cases, options.num_beams, limit, options.mel_position == "reference_inference");
  const auto beams = static_cast<std::size_t>(options.num_beams);
  for (;;) {
    if (stop && stop()) return {};
    std::vector<Scores> logits = decoder.logits();
    std::vector<std::int64_t> source(logits.size()), codes(logits.size(), sizes.stop_mel_token);
    bool open = false;
    for (std::size_t i = 0; i < searches.size(); ++i) {
      for (std::size_t b = 0; b < beams; ++b) source[i * beams + b] = static_cast<std::int64_t>(i * beams + b);
      if (searches[i]->done()) continue;
      const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(i * beams);
      const SearchStep step = searches[i]->advance({begin, begin + static_cast<std::ptrdiff_t>(beams)});
      if (searches[i]->done()) continue;
      open = true;
      for (std::size_t b = 0; b < beams; ++b) {
        source[i * beams + b] = static_cast<std::int64_t>(i * beams) + step.source[b];
        codes[i * beams + b] = step.codes[b];
      }
    }
    if (!open) break;
    decoder.step(source, codes);
  }
  std::vector<SearchResult> results;
  results.reserve(searches.size());
  for (const auto& search : searches) results.push_back(search->result());
  return results;
}

}  // namespace train_gpt_v2
