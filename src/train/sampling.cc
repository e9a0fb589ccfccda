#include "train_gpt_v2/train/sampling.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <set>

#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/png.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/npy.h"
#include "train_gpt_v2/model/alignment.h"
#include "train_gpt_v2/model/generation.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kFeatureSize = 1024;

at::Tensor on_device(const std::vector<float>& values, at::IntArrayRef shape, const UnifiedVoice& model) {
  return at::tensor(values).view(shape).to(model.device(), model.dtype());
}

FeatureBatch features_of(const std::vector<float>& values, const UnifiedVoice& model) {
  const auto frames = static_cast<std::int64_t>(values.size()) / kFeatureSize;
  return {on_device(values, {1, frames, kFeatureSize}, model), at::tensor(std::vector<std::int64_t>{frames})};
}

// [latents,D] and [D], through the model's conditioners where the case has features.
std::pair<at::Tensor, at::Tensor> conditioning_of(const SampleCase& one, const UnifiedVoice& model,
                                                  const Dataset* pairs) {
  const Voice voice = load_voice(one, model.options(), pairs);
  if (!voice.condition.empty()) {
    return {on_device(voice.condition, {model.options().condition_num_latent, model.options().model_dim}, model),
            on_device(voice.emo_vec, {model.options().model_dim}, model)};
  }
  const FeatureBatch speaker = features_of(voice.speaker_features, model);
  const FeatureBatch emotion = voice.emotion_features.empty() ? speaker : features_of(voice.emotion_features, model);
  try {
    return {model.get_conditioning(speaker)[0], model.merge_emovec(speaker, emotion, one.emotion_alpha)[0]};
  } catch (const Error& failure) {
    throw Error(failure).at(concat("case ", one.id));  // the model does not know whose features they are
  }
}

void write_alignment(UnifiedVoice& model, const Utterance& utterance, const std::string& path, SampleRecord& record) {
  if (utterance.codes.empty() || utterance.text.empty()) return;
  const Alignment alignment = text_alignment(model, utterance);
  record.monotonicity = alignment.monotonicity;
  record.coverage = alignment.coverage;
  const at::Tensor upright = alignment.weights.t().contiguous();  // text upwards, codes to the right
  const auto rows = static_cast<std::size_t>(upright.size(0)), columns = static_cast<std::size_t>(upright.size(1));
  const Image picture = heat_map({upright.const_data_ptr<float>(), rows * columns}, rows, columns);
  write_file_atomically(path, encode_png(picture));
}

SampleRecord record_of(const SampleCase& one, const SearchResult& result, double seconds) {
  SampleRecord record;
  record.id = one.id;
  record.codes.assign(result.codes.begin(), result.codes.end());
  record.stopped = result.stopped;
  if (one.reference_length) {
    record.length_ratio = static_cast<double>(record.codes.size()) / static_cast<double>(*one.reference_length);
  }
  record.longest_repeat = longest_repeat(record.codes);
  record.distinct_codes =
      static_cast<std::int64_t>(std::set<std::int32_t>(record.codes.begin(), record.codes.end()).size());
  record.mean_logprob = result.mean_logprob;
  record.seconds = seconds;
  return record;
}

void write_codes(const std::string& path, const std::vector<std::int32_t>& codes) {
  write_npy(path, Tensor::copy_of(DType::kInt32, {static_cast<std::int64_t>(codes.size())},
                                  std::as_bytes(std::span<const std::int32_t>(codes))));
}

}  // namespace

std::int64_t longest_repeat(const std::vector<std::int32_t>& codes) {
  std::int64_t longest = 0, run = 0;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    run = i > 0 && codes[i] == codes[i - 1] ? run + 1 : 1;
    longest = std::max(longest, run);
  }
  return longest;
}

std::string record_json(const SampleRecord& record) {
  nlohmann::ordered_json json{{"id", record.id},
                              {"codes", record.codes},
                              {"length", record.codes.size()},
                              {"stop", record.stopped ? "stop" : "limit"}};
  if (record.length_ratio) json["length_ratio"] = *record.length_ratio;
  json["longest_repeat"] = record.longest_repeat;
  json["distinct_codes"] = record.distinct_codes;
  json["mean_logprob"] = record.mean_logprob;
  json["seconds"] = record.seconds;
  if (record.monotonicity) json["alignment"] = {{"monotonicity", *record.monotonicity}, {"coverage", *record.coverage}};
  return json.dump();
}

SamplingResult write_samples(UnifiedVoice& model, const std::vector<SampleCase>& cases, const Dataset* pairs,
                             const SamplingSetup& setup) {
  const at::NoGradGuard no_grad;
  make_directories(setup.folder);
  const auto step = static_cast<std::size_t>(std::max<std::int64_t>(1, setup.batch_size));
  SamplingResult result;
  std::string lines;
  for (std::size_t begin = 0; begin < cases.size(); begin += step) {
    const auto started = std::chrono::steady_clock::now();
    const std::size_t end = std::min(begin + step, cases.size());
    std::vector<Utterance> utterances;
    std::vector<GenerationCase> inputs;
    for (std::size_t i = begin; i < end; ++i) {
      const auto [condition, emo_vec] = conditioning_of(cases[i], model, pairs);
      inputs.push_back({conditioning_rows(model, condition, emo_vec), cases[i].text_ids, i});
      utterances.push_back({cases[i].text_ids, {}, condition, emo_vec});
    }
    const std::vector<SearchResult> found = generate(model, inputs, setup.decoding, setup.stop);
    if (found.empty()) break;  // stopped
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count() /
                           static_cast<double>(end - begin);
    for (std::size_t i = begin; i < end; ++i) {
      SampleRecord record = record_of(cases[i], found[i - begin], seconds);
      const std::string stem = path_join(setup.folder, cases[i].id);
      write_codes(stem + ".npy", record.codes);
      Utterance& utterance = utterances[i - begin];
      utterance.codes = record.codes;
      remove_file(stem + ".png");
      write_alignment(model, utterance, stem + ".png", record);
      remove_file(stem + ".wav");  // of an earlier run; a vocoder must not write through a link either
      if (setup.vocoder && !record.codes.empty()) {
        try {
          setup.vocoder({cases[i], record.codes, stem + ".npy", setup.stop}, stem + ".wav");
        } catch (const Error& error) {
          result.sound_errors.push_back(error);
        }
      }
      lines += record_json(record) + "\n";
      result.records.push_back(std::move(record));
    }
  }
  write_file_atomically(path_join(setup.folder, "samples.jsonl"), lines);
  result.complete = result.records.size() == cases.size() && !(setup.stop && setup.stop());
  return result;
}

}  // namespace train_gpt_v2
