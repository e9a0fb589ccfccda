// Measures what phase 1 promises, on one thread in processor time (user + system), which a busy machine hardly
// disturbs.
//
//   bench_phase1 [--batches N] [--dim D] [--layers L] [--law uniform|lognormal] [--config FILE.json] [PART...]
//   parts: bucketing validation stall adapters (default: all)
//
//   bucketing   scored tokens per second of shuffled batches, buckets and mega-batches of 64 samples whose lengths
//   follow
//               performance.md §2.1, in the padded layout and packed
//   validation  one forward pass beside one training step, and what validation.interval and max_batches make of it
//   stall       the copies of a checkpoint beside one training step; with --config at that model's size and batch
//   adapters    a step of every peft.method, rank 16 and 32, beside a full one, fp32 and bf16: the best of --batches
//
// Batches are invented: lengths from the plan of the real sampler, ids and conditions at random.

#include <ATen/Parallel.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/data/sampler.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/train/checkpoint_content.h"
#include "train_gpt_v2/train/engine.h"

namespace train_gpt_v2 {
namespace {

struct Settings {
  std::int64_t batches = 4, dim = 128, layers = 4;
  std::string law = "uniform", config;
  std::set<std::string> parts;
};

double processor_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double uniform(RandomStream& random) {
  return (static_cast<double>(random.below(1U << 24)) + 0.5) / (1U << 24);
}

// Codes by the law with mean 300; a text id for every 3.5 to 8 codes.
std::pair<int, int> lengths(const Settings& settings, RandomStream& random) {
  double codes = 50 + 500 * uniform(random);
  if (settings.law == "lognormal") {
    const double normal = std::sqrt(-2 * std::log(uniform(random))) * std::cos(2 * M_PI * uniform(random));
    codes = std::clamp(300 * std::exp(0.45 * normal - 0.45 * 0.45 / 2), 50.0, 800.0);
  }
  const double ids_per_code = 0.125 + 0.16 * uniform(random);
  return {std::max(4, static_cast<int>(codes * ids_per_code)), static_cast<int>(codes)};
}

// A manifest of pairs whose files do not exist: only its lengths are read.
std::string write_manifest(const Settings& settings, const std::string& folder, int samples) {
  RandomStream random(2026, 1);
  const std::string path = folder + "/pairs.jsonl";
  std::ofstream out(path);
  for (int i = 0; i < samples; ++i) {
    const auto [text, codes] = lengths(settings, random);
    out << R"({"id":"p)" << i << R"(","speaker":"s)" << i % 97
        << R"(","prompt_condition_path":"c.npy","prompt_emo_vec_path":"e.npy",)"
        << R"("target_text":"x","target_text_ids_path":"t.npy","target_text_len":)" << text
        << R"(,"target_codes_path":"k.npy","target_code_len":)" << codes << "}\n";
  }
  return path;
}

Options make_options(const Settings& settings, const std::string& layout, const std::string& engine) {
  Options options;
  if (!settings.config.empty()) options = load_config(settings.config).options;
  if (settings.config.empty()) {
    options.model.model_dim = settings.dim;
    options.model.layers = settings.layers;
    options.model.heads = settings.dim / 64;
    options.model.number_text_tokens = 2000;
    options.model.condition_module = {64, 128, 2, 1, "conv2d2", 1};
    options.model.emo_condition_module = {64, 128, 2, 1, "conv2d2", 1};
  }
  options.train.layout = layout;
  options.train.engine = engine;
  options.train.precision = "fp32";
  return options;
}

Batch invent(const ModelOptions& model, const std::vector<std::pair<int, int>>& sizes) {
  RandomStream random(7, sizes.size());
  Batch batch;
  for (const auto& [text, codes] : sizes) {
    batch.samples.push_back(0);
    batch.ids.emplace_back("x");
    for (int k = 0; k < text; ++k) {
      batch.text.push_back(
          static_cast<std::int32_t>(2 + random.below(static_cast<std::uint32_t>(model.number_text_tokens - 2))));
    }
    for (int k = 0; k < codes; ++k) batch.codes.push_back(static_cast<std::int32_t>(random.below(8192)));
    batch.text_begin.push_back(static_cast<std::int64_t>(batch.text.size()));
    batch.code_begin.push_back(static_cast<std::int64_t>(batch.codes.size()));
  }
  const auto floats = [&](std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = static_cast<float>(uniform(random) - 0.5);
    return values;
  };
  batch.condition = floats(batch.count() * model.condition_num_latent * model.model_dim);
  batch.emo_vec = floats(batch.count() * model.model_dim);
  return batch;
}

constexpr std::int64_t kSteps = 1000;  // of the run that the steps belong to; no rank is pruned in those measured

// A model with everything that trains it.
struct Bench {
  Options options;
  UnifiedVoice model;
  Adaptation adaptation;
  ParameterSet parameters;
  AdamW optimizer;
  std::string why;
  std::unique_ptr<Engine> engine;

  explicit Bench(Options how)
      : options(std::move(how)),
        model(options.model),
        adaptation((initialise(model, 1), model), options, nullptr, kSteps, kSteps),
        parameters(build_parameter_set(model, options, options.train.batch_size, adaptation.adapters())),
        optimizer(parameters, options.optimizer),
        engine(make_engine(model, options, resolve_precision(options.train.precision, at::kCPU), why,
                           adaptation.adapters())) {
    engine->parameters_changed();
  }

  double step(const Batch& batch) {
    const double begin = processor_seconds();
    engine->begin_window();
    adaptation.begin_window(parameters);
    engine->forward_backward(batch, {1, 0, 0}, 0.2 / static_cast<double>(batch.text_tokens()),
                             0.8 / static_cast<double>(batch.mel_tokens()));
    adaptation.complete_gradients(1);
    optimizer.unscale_and_clip(1, 1, false, /*in_place=*/adaptation.reads_clipped_gradients());
    optimizer.step(1e-3);
    adaptation.after_step(1, 1e-3, parameters, optimizer, nullptr);
    engine->parameters_changed();
    return processor_seconds() - begin;
  }
  double evaluate(const Batch& batch) {
    const double begin = processor_seconds();
    engine->evaluate(batch, false).values.cpu();
    return processor_seconds() - begin;
  }
};

void bucketing(const Settings& settings) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "bench_phase1";
  std::filesystem::create_directories(folder);
  const std::string manifest = write_manifest(settings, folder.string(), 64 * 150);
  std::printf("bucketing: lengths %s, batches of 64, dim %lld, layers %lld\n", settings.law.c_str(),
              static_cast<long long>(settings.dim), static_cast<long long>(settings.layers));
  std::printf("%-8s %-8s %-11s %8s %14s %8s\n", "layout", "engine", "sampler", "padding", "scored/s", "gain");
  const std::pair<const char*, const char*> variants[] = {
      {"padded", "modules"}, {"padded", "fused"}, {"packed", "fused"}};
  for (const auto& [layout, engine] : variants) {
    Settings plain = settings;
    plain.config.clear();
    Bench bench(make_options(plain, layout, engine));
    const Dataset dataset({manifest}, {}, bench.options.data, bench.options.model);
    double shuffled = 0;
    for (const char* mode : {"shuffle", "buckets", "mega_batch"}) {
      PlanSettings how;
      how.mode = mode;
      how.boundaries = bench.options.sampler.boundaries;
      how.batch_size = 64;
      const BatchPlan plan = Sampler(dataset, how).plan(0);
      const BatchPlan chosen = spread(plan, static_cast<std::size_t>(settings.batches));
      std::int64_t scored = 0;
      double seconds = 0;
      for (std::size_t i = 0; i < chosen.size(); ++i) {
        std::vector<std::pair<int, int>> sizes;
        for (const std::uint32_t sample : chosen.batch(i)) {
          sizes.emplace_back(dataset.index()[sample].text_length, dataset.index()[sample].code_length);
        }
        const Batch batch = invent(bench.options.model, sizes);
        scored += batch.text_tokens() + batch.mel_tokens();
        seconds += bench.step(batch);
      }
      const double rate = static_cast<double>(scored) / seconds;
      if (std::string(mode) == "shuffle") shuffled = rate;
      std::printf("%-8s %-8s %-11s %6.1f %% %14.0f %+6.1f %%\n", layout, engine, mode,
                  100 * plan_statistics(dataset, plan).padding_share, rate, 100 * (rate / shuffled - 1));
      std::fflush(stdout);
    }
  }
  std::filesystem::remove_all(folder);
}

// Samples of middling length; what matters is the ratio of two times on the same batch.
Batch middling(const Options& options, std::int64_t count) {
  const auto limit = [](std::int64_t wanted, std::int64_t most) { return static_cast<int>(std::min(wanted, most)); };
  const int text = limit(60, options.model.max_text_tokens), codes = limit(300, options.model.max_mel_tokens - 1);
  return invent(options.model, std::vector<std::pair<int, int>>(static_cast<std::size_t>(count), {text, codes}));
}

void validation(const Settings& settings) {
  Settings plain = settings;
  plain.config.clear();
  Bench bench(make_options(plain, "packed", "auto"));
  const Batch batch = middling(bench.options, 16);
  bench.step(batch), bench.evaluate(batch);
  double step = 0, forward = 0;
  for (int i = 0; i < 3; ++i) step += bench.step(batch), forward += bench.evaluate(batch);
  const double ratio = forward / step;
  std::printf("validation: forward %.3f s, step %.3f s, ratio %.3f (engine %s)\n", forward / 3, step / 3, ratio,
              bench.engine->name().c_str());
  for (const int weights : {1, 2}) {
    std::printf("  50 batches every 2000 steps, %s: %.2f %% of the time\n",
                weights == 1 ? "raw weights" : "raw and EMA",
                100 * ratio * 50 * weights / (2000 + ratio * 50 * weights));
  }
}

void stall(const Settings& settings) {
  Bench bench(make_options(settings, "packed", "auto"));
  bench.options.ema.enabled = true;
  Ema ema(bench.parameters, bench.options.ema);
  Monitors monitors(bench.options.checkpoint, bench.options.early_stopping);
  TrainState state;
  RunFacts facts;
  StabilityGuard guard(bench.options.stability, /*scaled=*/false);
  const CheckpointParts parts{
      bench.model, bench.parameters, bench.optimizer, &ema, nullptr, monitors, guard, state, bench.options,
      facts,       bench.adaptation};
  const Batch batch = middling(bench.options, std::min<std::int64_t>(bench.options.train.batch_size, 64));
  bench.step(batch);
  SnapshotMaker snapshots;
  double step = 0, copies = 0;
  for (int i = 0; i < 3; ++i) {
    step += bench.step(batch);
    const double begin = processor_seconds();
    const Value snapshot = snapshots.training_checkpoint(parts, {}, "bench", 1);
    copies += processor_seconds() - begin;
    snapshots.forget_copies();
  }
  std::printf("stall: %lld trainable numbers; copies %.4f s, step of %lld samples %.3f s: %.1f %% of a step\n",
              static_cast<long long>(bench.parameters.trainable_count()), copies / 3,
              static_cast<long long>(batch.count()), step / 3, 100 * copies / step);
}

void adapters(const Settings& settings) {
  Settings plain = settings;
  plain.config.clear();
  for (const char* precision : {"fp32", "bf16"}) {
    for (const char* method : {"", "lora", "dora", "adalora", "dora_adalora"}) {
      for (const std::int64_t rank : {16, 32}) {
        Options options = make_options(plain, "packed", "fused");
        options.train.precision = precision;
        options.peft.method = method;
        options.peft.rank = rank;
        if (options.peft.adaptive()) options.peft.pruning_steps = {kSteps - 1};
        if (!options.peft.enabled() && rank != 16) continue;
        Bench bench(options);
        const Batch batch = middling(bench.options, 4);
        bench.step(batch);
        double best = bench.step(batch);
        for (std::int64_t i = 1; i < settings.batches; ++i) best = std::min(best, bench.step(batch));
        std::printf("adapters: %s, %-12s rank %2lld: %.3f s\n", precision, *method ? method : "none",
                    static_cast<long long>(*method ? rank : 0), best);
        std::fflush(stdout);
      }
    }
  }
}

int run(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (word == "--batches")
      settings.batches = std::atoll(value), ++i;
    else if (word == "--dim")
      settings.dim = std::atoll(value), ++i;
    else if (word == "--layers")
      settings.layers = std::atoll(value), ++i;
    else if (word == "--law")
      settings.law = value, ++i;
    else if (word == "--config")
      settings.config = value, ++i;
    else
      settings.parts.insert(word);
  }
  at::set_num_threads(1);
  const auto wanted = [&settings](const char* part) { return settings.parts.empty() || settings.parts.contains(part); };
  if (wanted("bucketing")) bucketing(settings);
  if (wanted("validation")) validation(settings);
  if (wanted("stall")) stall(settings);
  if (wanted("adapters")) adapters(settings);
  return 0;
}

}  // namespace
}  // namespace train_gpt_v2

int main(int argc, char** argv) {
  return train_gpt_v2::run(argc, argv);
}
