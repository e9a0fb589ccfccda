// One training step taken apart, and the components by themselves.

#include <torch/cuda.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "bench.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/loader.h"
#include "train_gpt_v2/data/packer.h"
#include "train_gpt_v2/model/generation.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/train/checkpoint_content.h"
#include "train_gpt_v2/train/checkpoint_store.h"
#include "train_gpt_v2/train/device.h"
#include "train_gpt_v2/train/engine.h"
#include "train_gpt_v2/train/memory.h"
#include "train_gpt_v2/train/reporter.h"

namespace train_gpt_v2::bench {
namespace {

constexpr double kMega = 1e6;

// What a run builds before its first step.
struct Rig {
  Rig(const Settings& settings, const std::string& precision, bool ema_on, at::Device device = at::kCPU) {
    options.model = bench_model(settings);
    options.train.precision = precision;
    options.train.grad_accumulation = 1;
    options.ema.enabled = ema_on;
    options.checkpoint.keep = 3;
    model = std::make_unique<UnifiedVoice>(options.model);
    initialise(*model, 11);
    model->to(device);
    parameters = build_parameter_set(*model, options, settings.batch);
    optimizer = std::make_unique<AdamW>(parameters, options.optimizer);
    if (ema_on) ema = std::make_unique<Ema>(parameters, options.ema);
    std::string why;
    engine = make_engine(*model, options, resolve_precision(precision, device), why);
    monitors = std::make_unique<Monitors>(options.checkpoint, options.early_stopping);
    guard = std::make_unique<StabilityGuard>(options.stability, /*scaled=*/false);
    adaptation = std::make_unique<Adaptation>(*model, options, nullptr, /*total_steps=*/1000, /*goal_step=*/1000);
  }

  void forward_backward(const Batch& batch, std::uint32_t step) {
    engine->begin_window();
    engine->forward_backward(batch, {1234, step, 0}, 0.2 / static_cast<double>(batch.text_tokens()),
                             0.8 / static_cast<double>(batch.mel_tokens()));
  }
  void update() {
    optimizer->unscale_and_clip(1, 1, false, /*in_place=*/false);
    const JoinedAverages averages = ema ? ema->update_with(*optimizer) : JoinedAverages{};
    optimizer->step(1, averages);
    engine->parameters_changed();
    if (ema && !averages.joined) ema->update();
  }

  Options options;
  std::unique_ptr<UnifiedVoice> model;
  ParameterSet parameters;
  std::unique_ptr<AdamW> optimizer;
  std::unique_ptr<Ema> ema;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Monitors> monitors;
  std::unique_ptr<StabilityGuard> guard;
  std::unique_ptr<Adaptation> adaptation;
  TrainState state;
  RunFacts facts;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// Floating-point operations that the model itself asks for (performance.md §3.1): blocks, causal attention, scored
// heads.
double model_flops(const ModelOptions& model, const Batch& batch) {
  const auto d = static_cast<double>(model.model_dim), layers = static_cast<double>(model.layers);
  double flops = 6 * d *
                 (static_cast<double>(model.text_rows()) * static_cast<double>(batch.text_tokens()) +
                  static_cast<double>(model.number_mel_codes) * static_cast<double>(batch.mel_tokens()));
  for (std::int64_t i = 0; i < batch.count(); ++i) {
    const auto positions =
        static_cast<double>(model.prefix_length() + batch.text_length(i) + 2 + batch.code_length(i) + 2);
    flops += 72 * d * d * layers * positions + 6 * positions * positions * d * layers;
  }
  return flops;
}

// Padded positions of the batches against the real ones.
double padding_share(const ModelOptions& model, const std::vector<Batch>& batches) {
  double real = 0, padded = 0;
  for (const Batch& batch : batches) {
    std::int64_t text = 0, codes = 0;
    for (std::int64_t i = 0; i < batch.count(); ++i) {
      text = std::max(text, batch.text_length(i));
      codes = std::max(codes, batch.code_length(i));
    }
    real += static_cast<double>(real_positions(batch, model));
    padded += static_cast<double>(batch.count() * (model.prefix_length() + text + 2 + codes + 2));
  }
  return 1 - real / padded;
}

void step_in(const Settings& settings, const std::string& precision, const std::vector<Batch>& batches) {
  const at::Device device = choose_device(settings.device);
  Rig rig(settings, precision, /*ema_on=*/true, device);
  const auto time = [&] {
    if (device.is_cuda()) torch::cuda::synchronize(device.index());
    return now(settings);
  };
  std::vector<double> forward, whole, update, rate, flops;
  for (std::size_t i = 0; i <= batches.size(); ++i) {
    const Batch& batch = batches[i % batches.size()];
    const double begin = time();
    rig.engine->evaluate(batch, false);
    const double middle = time();
    rig.forward_backward(batch, static_cast<std::uint32_t>(i));
    const double end = time();
    rig.update();
    const double last = time();
    if (i == 0) continue;  // touches the memory
    forward.push_back(middle - begin);
    whole.push_back(end - middle);
    update.push_back(last - end);
    rate.push_back(static_cast<double>(batch.text_tokens() + batch.mel_tokens()) / (last - middle));
    flops.push_back(model_flops(rig.options.model, batch) / (last - middle) * 1e-9);
  }
  const std::string group = concat("step ", precision, ", ", rig.engine->name());
  emit(group, "scored tokens per second", median(rate), "tokens/s");
  emit(group, "forward (without dropout)", median(forward), "s");
  emit(group, "forward and backward", median(whole), "s");
  emit(group, "norm, clip, AdamW, EMA", median(update), "s",
       settings.dim == 512 && settings.layers == 12 && device.is_cpu() ? nlohmann::ordered_json{{"limit", 0.08}}
                                                                       : nlohmann::ordered_json::object());
  emit(group, "model operations per second", median(flops), "GFLOP/s");
  emit(group, "peak memory", static_cast<double>(peak_memory_bytes(device)) / kMega, "MB");
}

void bench_checkpoint(const Settings& settings) {
  Rig rig(settings, "fp32", /*ema_on=*/true);
  const std::string folder = path_join(settings.folder, "checkpoints");
  make_directories(folder);
  CheckpointStore store(folder, rig.options.checkpoint);
  SnapshotMaker snapshots;
  CheckpointParts parts{*rig.model, rig.parameters, *rig.optimizer, rig.ema.get(), nullptr,        *rig.monitors,
                        *rig.guard, rig.state,      rig.options,    rig.facts,     *rig.adaptation};
  std::vector<double> stalls, writes;
  double bytes = 0;
  for (int i = 1; i <= 3; ++i) {
    rig.state.step = i;
    const double begin = now(settings);
    SaveJob job;
    job.step = i;
    job.file_name = CheckpointStore::step_file_name(i);
    job.content = snapshots.training_checkpoint(parts, {}, "bench", 1);
    store.submit(std::move(job), /*wait=*/false);
    stalls.push_back(now(settings) - begin);
    store.wait();
    for (const SaveResult& result : store.take_results()) {
      writes.push_back(result.seconds);
      bytes = static_cast<double>(result.bytes);
    }
  }
  emit("checkpoint", "training stands still", median(stalls), "s", {{"limit", 0.5}});
  emit("checkpoint", "written in the background", median(writes), "s");
  emit("checkpoint", "size", bytes / kMega, "MB");
  std::filesystem::remove_all(folder);
}

void bench_generation(const Settings& settings) {
  const ModelOptions options = bench_model(settings);
  torch::NoGradGuard no_grad;
  UnifiedVoice model(options);
  initialise(model, 11);
  model.eval();
  DecodingOptions decoding;
  decoding.greedy = true;
  decoding.num_beams = 1;
  decoding.max_codes = settings.quick ? 24 : 100;
  for (const std::int64_t count : {1, 8}) {
    std::vector<GenerationCase> cases;
    for (std::int64_t i = 0; i < count; ++i) {
      GenerationCase one;
      one.conditioning = conditioning_rows(model, torch::zeros({options.condition_num_latent, options.model_dim}),
                                           torch::zeros({options.model_dim}));
      for (std::int32_t id = 0; id < 30; ++id) one.text.push_back(10 + 7 * id);
      one.stream = static_cast<std::uint64_t>(i);
      cases.push_back(std::move(one));
    }
    std::size_t codes = 0;
    const double seconds = median_seconds(settings, 3, [&] {
      codes = 0;
      for (const SearchResult& result : generate(model, cases, decoding)) codes += result.codes.size() + 1;
    });
    emit("generation", concat("greedy, ", count, count == 1 ? " case" : " cases together"),
         static_cast<double>(codes) / seconds, "codes/s");
  }
}

// What a run spends on being watched. Everything is on, and each step is the dearest there is: it draws the live line
// and ends with a line in metrics.jsonl, log.txt and TensorBoard (log_interval 1), beside the two ticks a second.
void bench_live_view(const Settings& settings) {
  Rig rig(settings, "fp32", /*ema_on=*/false);
  const std::string folder = path_join(settings.folder, "live");
  make_directories(folder);
  add_log_file(path_join(folder, "log.txt"));
  Reporter reporter(folder, rig.options, rig.parameters, at::kCPU, TrainState{}, /*goal_step=*/100'000);
  const int calls = settings.quick ? 200 : 2000;
  const auto mean_seconds = [&](const std::function<void()>& call) {  // of many: a flush now and then counts
    return median_seconds(settings, 5,
                          [&] {
                            for (int i = 0; i < calls; ++i) call();
                          }) /
           calls;
  };
  const double drawn = mean_seconds([&] { reporter.progress().tick(); });
  const double line = mean_seconds([&] {
    ++rig.state.step;
    rig.state.meters.steps = 1;
    rig.state.meters.step_seconds = rig.state.meters.loss_sum = 1;
    rig.state.meters.text_tokens = rig.state.meters.mel_tokens = rig.state.meters.positions = 1000;
    rig.state.meters.padded_positions = 1100;
    reporter.step_done(rig.state);
    reporter.train_line(rig.state, nlohmann::ordered_json::object());
  });
  const Batch batch = make_batch(rig.options.model, draw_lengths(static_cast<std::size_t>(settings.batch), 5), 1);
  const double step = median_seconds(settings, 3, [&] {
    rig.forward_backward(batch, 1);
    rig.update();
  });
  const auto share = [&](double seconds) { return (drawn + line) / seconds + 2 * drawn; };
  emit("live view", concat("live line drawn (", console_is_terminal() ? "terminal" : "no terminal: not drawn", ")"),
       drawn * kMega, "us");
  emit("live view", "a step with its line in metrics.jsonl, log and TensorBoard", line * kMega, "us");
  emit("live view", "share of the step above", share(step), "of the time", {{"limit", 0.01}});
  emit("live view", "share of a step of 50 ms", share(0.05), "of the time", {{"limit", 0.01}});
}

// Samples per second of one thread at the released model's width, where a record is 170 KB.
void bench_loader(const Settings& settings) {
  Settings wide = settings;
  wide.dim = 1280;
  wide.folder = path_join(settings.folder, "wide");
  const std::size_t pairs = settings.quick ? 64 : 256;
  write_corpus(wide, pairs, 1, /*weights=*/false);
  PackRequest pack;
  pack.manifests = {path_join(wide.folder, "manifest.jsonl")};
  pack.output = path_join(wide.folder, "packed");
  pack_manifests(pack);
  for (const std::string& source : {pack.manifests[0], pack.output}) {
    const Dataset dataset({source}, {}, {}, bench_model(wide));
    const double seconds = median_seconds(settings, 5, [&] {
      Batch batch;
      for (std::uint32_t i = 0; i < dataset.size(); ++i) {
        if (i % 16 == 0) batch = Batch{};
        dataset.load(i, batch);
      }
    });
    emit("loader", concat("one thread, D = 1280, ", source == pack.output ? "packed set" : "manifest and .npy"),
         seconds / static_cast<double>(dataset.size()) * 1e6, "us/sample", {{"limit", 60}});
  }
}

}  // namespace

void bench_step(const Settings& settings) {
  const ModelOptions model = bench_model(settings);
  std::vector<Batch> batches;
  const std::size_t count = settings.quick ? 3 : 9;
  const auto lengths = draw_lengths(count * static_cast<std::size_t>(settings.batch), 5);
  for (std::size_t i = 0; i < count; ++i) {
    const auto begin = lengths.begin() + static_cast<std::ptrdiff_t>(i * static_cast<std::size_t>(settings.batch));
    batches.push_back(make_batch(model, {begin, begin + settings.batch}, i));
  }
  emit("data", "padding a padded layout would add", padding_share(model, batches), "share of positions");
  step_in(settings, "fp32", batches);
  step_in(settings, "bf16", batches);
}

void bench_parts(const Settings& settings) {
  bench_loader(settings);
  bench_checkpoint(settings);
  bench_generation(settings);
  bench_live_view(settings);
}

}  // namespace train_gpt_v2::bench
