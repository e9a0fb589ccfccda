#include "train_gpt_v2/model/inputs.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using Ints = std::vector<std::int64_t>;

// The index lists on the host, before they travel in one piece.
struct Lists {
  Ints text_ids, text_positions, mel_ids, mel_positions, gather;
  Ints text_rows, text_targets, text_sample, mel_rows, mel_targets, mel_sample;
};

void check_ids(const Batch& batch, std::int64_t sample, const std::int32_t* ids, std::int64_t count, std::int64_t limit,
               const char* what) {
  for (std::int64_t k = 0; k < count; ++k) {
    if (ids[k] >= 0 && ids[k] < limit) continue;
    throw Error("DAT042", concat(what, " ", ids[k], " lies outside the model's table of ", limit, " rows"))
        .at(concat("sample ", batch.ids[sample], ", position ", k))
        .fix("use the tokenizer and codes that the configured model was made for");
  }
}

void check_sample(const Batch& batch, std::int64_t i, const ModelOptions& options) {
  const std::int64_t text = batch.text_length(i), codes = batch.code_length(i);
  if (text > options.max_text_tokens || codes + 1 > options.mel_positions() - 1) {
    throw Error("DAT043", "a sample is longer than the model's position tables")
        .at("sample " + batch.ids[i])
        .detail(concat(text, " text ids, the model holds ", options.max_text_tokens))
        .detail(concat(codes, " mel codes, the model holds ", options.mel_positions() - 2))
        .fix("set data.on_overlong to \"drop\" or \"trim\"");
  }
  check_ids(batch, i, batch.text.data() + batch.text_begin[i], text, options.text_rows(), "text id");
  check_ids(batch, i, batch.codes.data() + batch.code_begin[i], codes, options.number_mel_codes, "mel code");
}

struct HeadPlan {
  Ints *ids, *positions, *rows, *targets, *sample;
  std::int64_t start, stop;
};

// Start token, ids, stop tokens up to `inputs` of them; ids and one stop are scored. Returns the first input's number.
void append_tokens(const HeadPlan& plan, const std::int32_t* ids, std::int64_t count, std::int64_t inputs,
                   std::int64_t sample, std::int64_t first_row) {
  for (std::int64_t p = 0; p < inputs; ++p) {
    plan.ids->push_back(p == 0 ? plan.start : p <= count ? ids[p - 1] : plan.stop);
    plan.positions->push_back(p);
    if (p > count) continue;
    plan.rows->push_back(first_row + p);
    plan.targets->push_back(p < count ? ids[p] : plan.stop);
    plan.sample->push_back(sample);
  }
}

FeatureBatch pad_features(const std::vector<float>& frames, const Ints& begin, at::Device device,
                          at::ScalarType dtype) {
  constexpr std::int64_t kSize = 1024;
  const auto count = static_cast<std::int64_t>(begin.size()) - 1;
  std::int64_t longest = 0;
  at::Tensor lengths = at::empty({count}, at::kLong);
  for (std::int64_t i = 0; i < count; ++i) {
    lengths.mutable_data_ptr<std::int64_t>()[i] = begin[i + 1] - begin[i];
    longest = std::max(longest, begin[i + 1] - begin[i]);
  }
  at::Tensor padded = at::zeros({count, longest, kSize}, at::kFloat);
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(padded.mutable_data_ptr<float>() + i * longest * kSize, frames.data() + begin[i] * kSize,
                static_cast<std::size_t>((begin[i + 1] - begin[i]) * kSize) * sizeof(float));
  }
  return {padded.to(at::TensorOptions(device).dtype(dtype)), lengths};
}

at::Tensor float_tensor(const std::vector<float>& values, at::IntArrayRef shape, at::Device device,
                        at::ScalarType dtype) {
  at::Tensor host = at::empty(shape, at::kFloat);
  TGV2_CHECK(host.numel() == static_cast<std::int64_t>(values.size()));
  std::memcpy(host.mutable_data_ptr<float>(), values.data(), values.size() * sizeof(float));
  return host.to(at::TensorOptions(device).dtype(dtype));
}

void add_conditioning(ModelInputs& inputs, const Batch& batch, const ModelOptions& options, at::Device device,
                      at::ScalarType dtype) {
  if (!batch.condition.empty()) {
    inputs.condition =
        float_tensor(batch.condition, {inputs.count, options.condition_num_latent, options.model_dim}, device, dtype);
    inputs.emo_vec = float_tensor(batch.emo_vec, {inputs.count, options.model_dim}, device, dtype);
    return;
  }
  inputs.speaker_features = pad_features(batch.features, batch.frame_begin, device, dtype);
  if (!batch.emo_features.empty()) {
    inputs.emo_features = pad_features(batch.emo_features, batch.emo_frame_begin, device, dtype);
  }
}

// One copy to the device for all index lists.
void upload(ModelInputs& inputs, const Lists& lists, at::Device device) {
  const std::array<std::pair<const Ints*, at::Tensor*>, 11> parts{{{&lists.text_ids, &inputs.text_ids},
                                                                   {&lists.text_positions, &inputs.text_positions},
                                                                   {&lists.mel_ids, &inputs.mel_ids},
                                                                   {&lists.mel_positions, &inputs.mel_positions},
                                                                   {&lists.gather, &inputs.gather},
                                                                   {&lists.text_rows, &inputs.text_scored_rows},
                                                                   {&lists.text_targets, &inputs.text_targets},
                                                                   {&lists.text_sample, &inputs.text_sample},
                                                                   {&lists.mel_rows, &inputs.mel_scored_rows},
                                                                   {&lists.mel_targets, &inputs.mel_targets},
                                                                   {&lists.mel_sample, &inputs.mel_sample}}};
  std::int64_t total = 0;
  for (const auto& part : parts) total += static_cast<std::int64_t>(part.first->size());
  at::Tensor host = at::empty({total}, at::kLong);
  std::int64_t* out = host.mutable_data_ptr<std::int64_t>();
  for (const auto& part : parts) out = std::copy(part.first->begin(), part.first->end(), out);
  const at::Tensor all = host.to(device);
  std::int64_t at = 0;
  for (const auto& part : parts) {
    const auto size = static_cast<std::int64_t>(part.first->size());
    *part.second = all.narrow(0, at, size);
    at += size;
  }
  inputs.segments.offsets = inputs.segments.offsets.to(device);
}

}  // namespace

BatchLayout parse_layout(std::string_view name) {
  TGV2_CHECK(name == "packed" || name == "padded");
  return name == "packed" ? BatchLayout::kPacked : BatchLayout::kPadded;
}

void check_batch(const Batch& batch, const ModelOptions& options) {
  TGV2_CHECK(batch.count() > 0);
  for (std::int64_t i = 0; i < batch.count(); ++i) check_sample(batch, i, options);
}

ModelInputs assemble_inputs(const Batch& batch, const ModelOptions& options, BatchLayout layout, at::Device device,
                            at::ScalarType dtype) {
  check_batch(batch, options);
  ModelInputs inputs;
  inputs.layout = layout;
  inputs.count = batch.count();
  std::int64_t longest_text = 0, longest_codes = 0;
  for (std::int64_t i = 0; i < inputs.count; ++i) {
    longest_text = std::max(longest_text, batch.text_length(i));
    longest_codes = std::max(longest_codes, batch.code_length(i));
  }
  Lists lists;
  const HeadPlan text_plan{&lists.text_ids,    &lists.text_positions,    &lists.text_rows,       &lists.text_targets,
                           &lists.text_sample, options.start_text_token, options.stop_text_token};
  const HeadPlan mel_plan{&lists.mel_ids,    &lists.mel_positions,    &lists.mel_rows,       &lists.mel_targets,
                          &lists.mel_sample, options.start_mel_token, options.stop_mel_token};
  Ints lengths;
  std::int64_t row = 0;
  for (std::int64_t i = 0; i < inputs.count; ++i) {
    const std::int64_t text = batch.text_length(i), codes = batch.code_length(i);
    const std::int64_t text_inputs = (layout == BatchLayout::kPacked ? text : longest_text) + 2;
    const std::int64_t mel_inputs = layout == BatchLayout::kPadded ? longest_codes + 2 : codes + 1;
    inputs.text_begin.push_back(row + options.prefix_length());
    inputs.mel_begin.push_back(inputs.text_begin.back() + text_inputs);
    append_tokens(text_plan, batch.text.data() + batch.text_begin[i], text, text_inputs, i, inputs.text_begin.back());
    append_tokens(mel_plan, batch.codes.data() + batch.code_begin[i], codes, mel_inputs, i, inputs.mel_begin.back());
    lengths.push_back(options.prefix_length() + text_inputs + mel_inputs);
    row += lengths.back();
  }
  // Source rows: conditioning, then one speed row of each kind per sample, then all text, then all mel inputs.
  const std::int64_t latents = options.condition_num_latent, speed = inputs.count * latents;
  std::int64_t text_source = speed + 2 * inputs.count;
  std::int64_t mel_source = text_source + static_cast<std::int64_t>(lists.text_ids.size());
  lists.gather.reserve(static_cast<std::size_t>(row));
  for (std::int64_t i = 0; i < inputs.count; ++i) {
    for (std::int64_t k = 0; k < latents; ++k) lists.gather.push_back(i * latents + k);
    lists.gather.push_back(speed + i);
    lists.gather.push_back(speed + inputs.count + i);
    const std::int64_t text_inputs = inputs.mel_begin[i] - inputs.text_begin[i];
    for (std::int64_t k = 0; k < text_inputs; ++k) lists.gather.push_back(text_source++);
    const std::int64_t mel_inputs = lengths[i] - options.prefix_length() - text_inputs;
    for (std::int64_t k = 0; k < mel_inputs; ++k) lists.gather.push_back(mel_source++);
  }
  inputs.segments = make_segments(std::move(lengths));
  upload(inputs, lists, device);
  add_conditioning(inputs, batch, options, device, dtype);
  return inputs;
}

}  // namespace train_gpt_v2
