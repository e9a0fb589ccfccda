#include "train_gpt_v2/app/demo_summary.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/bigram.h"
#include "train_gpt_v2/data/dataset.h"
#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kMaxMetricsBytes = std::uint64_t{1} << 30, kMaxConfigBytes = 1u << 20;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// The codes of a manifest's samples, in its order. `unique`: each target once, however many pairs share it.
std::vector<CodeSequence> codes_of(const std::vector<std::string>& manifests, const Options& options, bool unique) {
  const auto tokenizer = options.data.tokenizer.empty() ? nullptr : std::make_shared<Tokenizer>(options.data.tokenizer);
  const Dataset dataset(manifests, {}, options.data, options.model, tokenizer);
  std::set<std::string> seen;
  RecordParser parser;
  std::vector<CodeSequence> sequences;
  for (std::uint32_t sample = 0; sample < dataset.size(); ++sample) {
    const PairEntry& entry = dataset.index()[sample];
    const PairRecord record = dataset.index().record(entry, parser);
    if (unique && !seen.insert(dataset.index().resolve(entry, record.target_codes_path)).second) continue;
    Batch batch;
    dataset.load(sample, batch);
    sequences.push_back(std::move(batch.codes));
  }
  return sequences;
}

std::int64_t parameter_count(const ModelOptions& model) {
  const UnifiedVoice voice(model, at::TensorOptions(at::kMeta).dtype(at::kFloat));
  std::int64_t count = 0;
  for (const at::Tensor& parameter : voice.parameters()) count += parameter.numel();
  return count;
}

// What metrics.jsonl says about the whole run and about its last validation.
void read_metrics(const std::string& path, DemoSummary& summary) {
  const std::string content = read_file(path, kMaxMetricsBytes);
  std::int64_t validated_at = -1, last_train_step = 0, number = 0;
  double loss = kNone, gap = kNone;
  for (const std::string& line : split(content, '\n')) {
    ++number;
    if (line.empty()) continue;
    try {
      const auto record = nlohmann::json::parse(line);
      const std::int64_t step = record.at("step").get<std::int64_t>();
      const std::string type = record.at("type").get<std::string>();
      summary.steps = std::max(summary.steps, step);
      if (type == "train") {
        summary.train_seconds += record.at("step_seconds").get<double>() * static_cast<double>(step - last_train_step);
        last_train_step = step;
      } else if (type == "validation") {
        if (record.at("split") != "all") continue;  // the parts' lines repeat the seconds of the whole pass
        summary.train_seconds += record.at("seconds").get<double>();
        if (!record.value("complete", true)) continue;
        const double mel_loss = record.at("mel_loss").get<double>();
        if (step == validated_at && mel_loss >= loss) continue;
        if (step != validated_at) gap = kNone;
        validated_at = step;
        loss = mel_loss;
        if (record.contains("text_usage_gap")) gap = record.at("text_usage_gap").get<double>();
      }
    } catch (const nlohmann::json::exception& failure) {
      throw Error("DAT001", "a line of the metrics is damaged").where(path, number).detail(failure.what());
    }
  }
  if (std::isnan(loss) || std::isnan(gap)) {
    throw Error("DEM004",
                std::isnan(loss) ? "this run has not validated" : "the validations measured no text-usage gap")
        .where(path)
        .fix("set data.val_manifests and validation.text_usage_gap, and train past one validation");
  }
  summary.val_mel_loss = loss;
  summary.text_usage_gap = gap;
}

}  // namespace

DemoSummary summarise_demo_run(const std::string& run_directory) {
  const std::string config_path = path_join(run_directory, "config.effective.json");
  const Options options =
      load_config_json(read_file(config_path, kMaxConfigBytes), config_path, {}, run_directory).options;
  DemoSummary summary;
  read_metrics(path_join(run_directory, "metrics.jsonl"), summary);
  const std::vector<CodeSequence> training = codes_of(options.data.train_manifests, options, true);
  const std::vector<CodeSequence> validation = codes_of(options.data.val_manifests, options, false);
  const ModelOptions& model = options.model;
  const BigramModel bigram(training, static_cast<std::int32_t>(model.number_mel_codes),
                           static_cast<std::int32_t>(model.start_mel_token),
                           static_cast<std::int32_t>(model.stop_mel_token));
  summary.bigram_mel_loss = bigram.bigram_loss(validation);
  summary.unigram_mel_loss = bigram.unigram_loss(validation);
  summary.parameters = parameter_count(model);
  return summary;
}

std::string summary_json(const DemoSummary& summary) {
  const nlohmann::ordered_json json = {{"bigram_mel_loss", summary.bigram_mel_loss},
                                       {"val_mel_loss", summary.val_mel_loss},
                                       {"text_usage_gap", summary.text_usage_gap},
                                       {"train_seconds", summary.train_seconds},
                                       {"steps", summary.steps},
                                       {"parameters", summary.parameters},
                                       {"unigram_mel_loss", summary.unigram_mel_loss}};
  return json.dump(2) + "\n";
}

std::string summary_table(const DemoSummary& summary) {
  const double below = summary.bigram_mel_loss - summary.val_mel_loss;
  return table({{"what", "nats per code", "aim of the full demo"},
                {"unigram of the codes", fixed(summary.unigram_mel_loss, 3), ""},
                {"bigram of the codes", fixed(summary.bigram_mel_loss, 3), ""},
                {"validation mel loss", fixed(summary.val_mel_loss, 3), ""},
                {"below the bigram", fixed(below, 3), "at least 0.4"},
                {"text-usage gap", fixed(summary.text_usage_gap, 3), "at least 0.2"}}) +
         concat(human_count(static_cast<std::uint64_t>(summary.parameters)), " parameters, ", summary.steps,
                " steps in ", human_duration(summary.train_seconds), "\n");
}

}  // namespace train_gpt_v2
