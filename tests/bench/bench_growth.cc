// How cost grows: with the sequence at fixed tokens, with the batch, with the data, and with the number of steps. Each
// line has the limit of performance.md §5 point 7 and §6.

#include <filesystem>
#include <memory>
#include <vector>

#include "bench.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/packer.h"
#include "train_gpt_v2/data/sampler.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/train/ema.h"
#include "train_gpt_v2/train/engine.h"
#include "train_gpt_v2/train/optimizer.h"

namespace train_gpt_v2::bench {
namespace {

// A model, its optimizer and its engine, for steps on any batch.
struct Trainer {
  Trainer(const Settings& settings, const ModelOptions& model_options) {
    options.model = model_options;
    options.train.precision = "fp32";
    model = std::make_unique<UnifiedVoice>(options.model);
    initialise(*model, 11);
    parameters = build_parameter_set(*model, options, settings.batch);
    optimizer = std::make_unique<AdamW>(parameters, options.optimizer);
    ema = std::make_unique<Ema>(parameters, options.ema);
    std::string why;
    engine = make_engine(*model, options, at::kFloat, why);
  }
  void step(const Batch& batch) {
    engine->begin_window();
    engine->forward_backward(batch, {1234, number++, 0}, 1e-3, 1e-3);
    optimizer->unscale_and_clip(1, 1, false, /*in_place=*/false);
    const JoinedAverages averages = ema->update_with(*optimizer);
    optimizer->step(1, averages);
    engine->parameters_changed();
    if (!averages.joined) ema->update();
  }
  Options options;
  std::unique_ptr<UnifiedVoice> model;
  ParameterSet parameters;
  std::unique_ptr<AdamW> optimizer;
  std::unique_ptr<Ema> ema;
  std::unique_ptr<Engine> engine;
  std::uint32_t number = 0;
};

std::vector<Lengths> equal_samples(std::int64_t count, std::int64_t positions, const ModelOptions& model) {
  const std::int64_t codes = (positions - model.prefix_length() - 4) * 8 / 9;
  return std::vector<Lengths>(static_cast<std::size_t>(count), {positions - model.prefix_length() - 4 - codes, codes});
}

void grow_sequence(const Settings& settings, Trainer& trainer) {
  const std::int64_t tokens = settings.quick ? 1600 : 3200;
  const int repeat = settings.quick ? 2 : 5;
  double before = 0;
  for (const std::int64_t positions : {200, 400, 800}) {
    const Batch batch =
        make_batch(trainer.options.model, equal_samples(tokens / positions, positions, trainer.options.model), 1);
    const double seconds = median_seconds(settings, repeat, [&] { trainer.step(batch); });
    const double scored = static_cast<double>(batch.text_tokens() + batch.mel_tokens());
    if (before > 0) {
      // Longer samples have fewer prefix rows among the same tokens; what is compared is the step of equal rows.
      emit("growth", concat("step, sequence ", positions / 2, " -> ", positions, " at ", tokens, " tokens"),
           seconds / before, "times",
           {{"limit", settings.dim >= 1280 ? 1.06 : 1.12}, {"tokens_per_second", scored / seconds}});
    }
    before = seconds;
  }
}

void grow_batch(const Settings& settings, Trainer& trainer) {
  const std::int64_t small = settings.quick ? 2 : 4;
  const int repeat = settings.quick ? 1 : 3;
  double seconds[2];
  for (int i = 0; i < 2; ++i) {
    const Batch batch =
        make_batch(trainer.options.model, equal_samples(small * (i ? 8 : 1), 300, trainer.options.model), 1);
    seconds[i] = median_seconds(settings, repeat, [&] { trainer.step(batch); });
  }
  emit("growth", concat("step, batch ", small, " -> ", 8 * small), seconds[1] / seconds[0], "times", {{"limit", 8}});
}

// Opening manifests and packed sets of ten times the size, again and again.
void grow_data(const Settings& settings) {
  double manifest_before = 0;
  for (std::size_t pairs = 10'000; pairs <= (settings.quick ? 100'000U : 10'000'000U); pairs *= 10) {
    const std::string path = write_large_manifest(settings, pairs);
    const double each = 1e6 / static_cast<double>(pairs), bytes = static_cast<double>(std::filesystem::file_size(path));
    PairIndex::Settings index_settings;
    index_settings.needs = PairIndex::Settings::Needs::kCondition;
    double seconds = 0, kept = 0;
    {
      PairIndex(index_settings).add(path);  // the file is in memory from here on
      const std::uint64_t resident = resident_bytes();
      const double begin = now(settings);
      PairIndex index(index_settings);
      index.add(path);
      seconds = now(settings) - begin;
      kept = static_cast<double>(resident_bytes()) - static_cast<double>(resident);
      kept -= std::min(kept, bytes);  // pages of the mapped file are the system's
    }
    const std::string number = human_count(pairs);
    emit("manifest", concat("index ", number, " pairs of JSONL"), seconds, "s",
         {{"us_per_pair", seconds * each}, {"limit", 1e-6 * static_cast<double>(pairs)}});
    emit("manifest", concat("memory of the index, ", number, " pairs"), static_cast<double>(sizeof(PairEntry)),
         "bytes/pair", {{"limit", 32}, {"measured_resident_bytes_per_pair", kept / static_cast<double>(pairs)}});
    if (manifest_before > 0)
      emit("growth", concat("index, ", human_count(pairs / 10), " -> ", number, " pairs"), seconds / manifest_before,
           "times", {{"limit", 11}});
    manifest_before = seconds;

    if (pairs <= 1'000'000) {
      PackRequest pack;
      pack.manifests = {path};
      pack.output = path_join(settings.folder, concat("packed_", pairs));
      const double pack_begin = now(settings);
      pack_manifests(pack);
      emit("packed set", concat("pack ", number, " pairs"), now(settings) - pack_begin, "s");
      const double open = median_seconds(settings, 5, [&] {
        PairIndex index(index_settings);
        index.add(pack.output);
      });
      emit("packed set", concat("open ", number, " pairs"), open, "s", {{"limit", 1e-7 * static_cast<double>(pairs)}});
      std::filesystem::remove_all(pack.output);
    }
    const Dataset dataset({path}, {}, {}, bench_model(settings));
    PlanSettings plan;
    const Sampler sampler(dataset, plan);
    const double planned = median_seconds(settings, 3, [&] { sampler.plan(1); });
    emit("sampler", concat("plan of an epoch of ", number, " pairs"), planned, "s",
         {{"limit", 1e-7 * static_cast<double>(pairs)}});
    std::filesystem::remove(path);
  }
}

void grow_steps(const Settings& settings) {
  ModelOptions tiny = bench_model(settings);
  tiny.model_dim = 64;
  tiny.layers = 2;
  tiny.heads = 1;
  tiny.number_text_tokens = 300;
  tiny.number_mel_codes = 226;
  tiny.start_mel_token = 224;
  tiny.stop_mel_token = 225;
  Trainer trainer(settings, tiny);
  const std::int64_t steps = settings.quick ? 1000 : 10'000;
  const auto lengths = draw_lengths(64, 3);
  double at_fifth = 0;
  for (std::int64_t i = 0; i < steps; ++i) {
    const Lengths& sample = lengths[static_cast<std::size_t>(i) % lengths.size()];
    trainer.step(make_batch(tiny, {sample, lengths[static_cast<std::size_t>(i * 7) % lengths.size()]},
                            static_cast<std::uint64_t>(i)));
    if (i == steps / 5) at_fifth = static_cast<double>(resident_bytes());
  }
  emit("growth", concat("resident memory, steps ", steps / 5, " -> ", steps),
       (static_cast<double>(resident_bytes()) - at_fifth) / 1e6, "MB", {{"limit", 2}});
}

}  // namespace

void bench_growth(const Settings& settings) {
  {
    Trainer trainer(settings, bench_model(settings));
    grow_sequence(settings, trainer);
    grow_batch(settings, trainer);
  }
  grow_data(settings);
  grow_steps(settings);
}

}  // namespace train_gpt_v2::bench
