// Synthetic data of the measurements. Deterministic: the same settings give the same files.

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <random>

#include "bench.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/npy.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/model/tensor_bridge.h"
#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2::bench {
namespace {

// Ids drawn from every fourth row of a table, so that a few steps lower the loss.
std::vector<std::int32_t> drawn_ids(std::mt19937_64& random, std::int64_t length, std::int64_t first,
                                    std::int64_t count) {
  std::uniform_int_distribution<std::int64_t> uniform(0, count / 4 - 1);
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < length; ++i) ids.push_back(static_cast<std::int32_t>(first + 4 * uniform(random)));
  return ids;
}

std::vector<float> small_numbers(std::mt19937_64& random, std::int64_t count) {
  std::uniform_real_distribution<float> uniform(-0.5F, 0.5F);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = uniform(random);
  return values;
}

template <typename T>
void save(const std::string& path, DType dtype, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  write_npy(path, Tensor::copy_of(dtype, std::move(shape), std::as_bytes(std::span(values))));
}

std::string record(const std::string& id, const std::string& speaker, const std::string& condition,
                   const std::string& emotion, const std::string& text, const std::string& codes,
                   const Lengths& lengths) {
  return concat(R"({"id": "prompt__)", id, R"(", "speaker": ")", speaker, R"(", "prompt_id": "prompt_)", speaker,
                R"(", "prompt_audio_path": "/corpus/audio/)", speaker, R"(/prompt.wav", "prompt_condition_path": ")",
                condition, R"(", "prompt_condition_len": 32, "prompt_emo_vec_path": ")", emotion,
                R"(", "prompt_duration": 6.5, )", R"("target_id": ")", id, R"(", "target_audio_path": "/corpus/audio/)",
                speaker, "/", id, R"(.wav", "target_text": "ሰላም ለዓለም", "target_text_ids_path": ")", text,
                R"(", "target_text_len": )", lengths.text, R"(, "target_codes_path": ")", codes,
                R"(", "target_code_len": )", lengths.codes, R"(, "target_emo_vec_path": ")", emotion,
                R"(", "target_language": "am"})", "\n");
}

std::string quoted_ids(const std::vector<std::size_t>& samples) {
  nlohmann::json ids = nlohmann::json::array();
  for (const std::size_t sample : samples) ids.push_back(concat("prompt__u", sample));
  return ids.dump() + "\n";
}

}  // namespace

double now(const Settings& settings) {
  if (settings.processor) {
    timespec t{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::uint64_t resident_bytes() {
  std::ifstream in("/proc/self/statm");
  std::uint64_t all = 0, resident = 0;
  in >> all >> resident;
  return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

void emit(const std::string& group, const std::string& name, double value, const std::string& unit,
          nlohmann::ordered_json more) {
  nlohmann::ordered_json line{{"group", group}, {"name", name}, {"value", value}, {"unit", unit}};
  line.update(more);
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

double median_seconds(const Settings& settings, int repeat, const std::function<void()>& call) {
  call();
  std::vector<double> times;
  for (int i = 0; i < repeat; ++i) {
    const double begin = now(settings);
    call();
    times.push_back(now(settings) - begin);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

ModelOptions bench_model(const Settings& settings) {
  ModelOptions model;
  model.model_dim = settings.dim;
  model.layers = settings.layers;
  model.heads = std::max<std::int64_t>(1, settings.dim / 64);
  model.number_text_tokens = 24000;
  return model;
}

std::vector<Lengths> draw_lengths(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::lognormal_distribution<double> codes(std::log(230.0), 0.5);
  std::uniform_real_distribution<double> rate(6.5, 9.5);
  std::vector<Lengths> all;
  for (std::size_t i = 0; i < count; ++i) {
    const auto length = std::clamp<std::int64_t>(std::llround(codes(random)), 50, 800);
    all.push_back({std::max<std::int64_t>(4, std::llround(static_cast<double>(length) / rate(random))), length});
  }
  return all;
}

Batch make_batch(const ModelOptions& model, const std::vector<Lengths>& lengths, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Batch batch;
  for (const Lengths& sample : lengths) {
    batch.ids.push_back("bench");
    const auto text = drawn_ids(random, sample.text, 2, model.number_text_tokens - 2);
    const auto codes = drawn_ids(random, sample.codes, 0, model.start_mel_token);
    batch.text.insert(batch.text.end(), text.begin(), text.end());
    batch.codes.insert(batch.codes.end(), codes.begin(), codes.end());
    batch.text_begin.push_back(static_cast<std::int64_t>(batch.text.size()));
    batch.code_begin.push_back(static_cast<std::int64_t>(batch.codes.size()));
  }
  batch.condition = small_numbers(random, batch.count() * model.condition_num_latent * model.model_dim);
  batch.emo_vec = small_numbers(random, batch.count() * model.model_dim);
  return batch;
}

void write_corpus(const Settings& settings, std::size_t pairs, std::size_t micro_batches, bool weights) {
  const ModelOptions model = bench_model(settings);
  const std::string& folder = settings.folder;
  const auto batch = static_cast<std::size_t>(settings.batch);
  make_directories(path_join(folder, "arrays"));
  std::mt19937_64 random(20240607);
  const auto lengths = draw_lengths(pairs, 5);
  std::ofstream manifest(path_join(folder, "manifest.jsonl"));
  std::map<std::int64_t, std::vector<std::size_t>> by_text;
  for (std::size_t i = 0; i < pairs; ++i) {
    const std::string id = concat("u", i), speaker = concat("spk", i % 7), voice = concat("arrays/", speaker);
    if (i < 7) {
      save(path_join(folder, voice + "_condition.npy"), DType::kFloat32, {model.condition_num_latent, model.model_dim},
           small_numbers(random, model.condition_num_latent * model.model_dim));
      save(path_join(folder, voice + "_emotion.npy"), DType::kFloat32, {model.model_dim},
           small_numbers(random, model.model_dim));
    }
    const std::string text = concat("arrays/text_", i, ".npy"), codes = concat("arrays/codes_", i, ".npy");
    save(path_join(folder, text), DType::kInt32, {lengths[i].text},
         drawn_ids(random, lengths[i].text, 2, model.number_text_tokens - 2));
    save(path_join(folder, codes), DType::kInt32, {lengths[i].codes},
         drawn_ids(random, lengths[i].codes, 0, model.start_mel_token));
    manifest << record(id, speaker, voice + "_condition.npy", voice + "_emotion.npy", text, codes, lengths[i]);
    by_text[lengths[i].text].push_back(i);
  }
  std::ofstream order(path_join(folder, "order.jsonl")), equal(path_join(folder, "equal_text.jsonl"));
  std::vector<std::vector<std::size_t>> groups;
  for (const auto& [length, samples] : by_text) {
    for (std::size_t at = 0; at + batch <= samples.size(); at += batch) {
      groups.emplace_back(samples.begin() + static_cast<std::ptrdiff_t>(at),
                          samples.begin() + static_cast<std::ptrdiff_t>(at + batch));
    }
  }
  if (groups.empty()) {
    throw Error("DAT008", concat("no ", batch, " of the ", pairs, " samples have equal text length"))
        .fix("raise --pairs");
  }
  std::shuffle(groups.begin(), groups.end(), random);
  for (std::size_t k = 0; k < micro_batches; ++k) {
    std::vector<std::size_t> samples;
    for (std::size_t i = 0; i < batch; ++i) samples.push_back((k * batch + i) % pairs);
    order << quoted_ids(samples);
    equal << quoted_ids(groups[k % groups.size()]);
  }
  write_file_atomically(path_join(folder, "model.json"),
                        nlohmann::ordered_json{{"model_dim", model.model_dim},
                                               {"layers", model.layers},
                                               {"heads", model.heads},
                                               {"number_text_tokens", model.number_text_tokens},
                                               {"number_mel_codes", model.number_mel_codes},
                                               {"start_mel_token", model.start_mel_token},
                                               {"stop_mel_token", model.stop_mel_token},
                                               {"start_text_token", model.start_text_token},
                                               {"stop_text_token", model.stop_text_token},
                                               {"max_text_tokens", model.max_text_tokens},
                                               {"max_mel_tokens", model.max_mel_tokens}}
                                .dump(2) +
                            "\n");
  if (!weights) return;
  UnifiedVoice voice(model);
  initialise(voice, 11);
  Value state = Value::ordered_dict();
  for (const StateEntry& entry : voice.state())
    state.set(entry.name, torch_to_tensor(entry.tensor.detach().contiguous()));
  Value root = Value::dict();
  root.set("model", std::move(state));
  write_torch_file(path_join(folder, "init.pth"), root);
}

std::string write_large_manifest(const Settings& settings, std::size_t pairs) {
  make_directories(path_join(settings.folder, "arrays"));
  const ModelOptions model = bench_model(settings);
  std::mt19937_64 random(3);
  save(path_join(settings.folder, "arrays/condition.npy"), DType::kFloat32,
       {model.condition_num_latent, model.model_dim},
       small_numbers(random, model.condition_num_latent * model.model_dim));
  save(path_join(settings.folder, "arrays/emotion.npy"), DType::kFloat32, {model.model_dim},
       small_numbers(random, model.model_dim));
  std::vector<Lengths> kinds = draw_lengths(64, 9);
  for (std::size_t k = 0; k < kinds.size(); ++k) {
    save(path_join(settings.folder, concat("arrays/text_", k, ".npy")), DType::kInt32, {kinds[k].text},
         drawn_ids(random, kinds[k].text, 2, model.number_text_tokens - 2));
    save(path_join(settings.folder, concat("arrays/codes_", k, ".npy")), DType::kInt32, {kinds[k].codes},
         drawn_ids(random, kinds[k].codes, 0, model.start_mel_token));
  }
  const std::string path = path_join(settings.folder, concat("pairs_", pairs, ".jsonl"));
  std::ofstream manifest(path);
  for (std::size_t i = 0; i < pairs; ++i) {
    const std::size_t k = i % kinds.size();
    manifest << record(concat("utterance_", i), concat("speaker_", i / 100 % 500), "arrays/condition.npy",
                       "arrays/emotion.npy", concat("arrays/text_", k, ".npy"), concat("arrays/codes_", k, ".npy"),
                       kinds[k]);
  }
  if (!manifest.flush()) throw Error("IO002", "cannot write the manifest").where(path);
  return path;
}

}  // namespace train_gpt_v2::bench
