#include "train_gpt_v2/app/eval_command.h"

#include <nlohmann/json.hpp>
#include <ostream>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/loader.h"
#include "train_gpt_v2/train/device.h"
#include "train_gpt_v2/train/engine.h"

namespace train_gpt_v2 {
namespace {

using OrderedJson = nlohmann::ordered_json;

struct Sums {
  double text_loss = 0, mel_loss = 0, top1 = 0;
  std::int64_t text_tokens = 0, mel_tokens = 0;

  void write(OrderedJson& into) const {
    const auto mean = [](double sum, std::int64_t count) {
      return count > 0 ? OrderedJson(sum / static_cast<double>(count)) : OrderedJson(nullptr);
    };
    into["text_loss"] = mean(text_loss, text_tokens);
    into["mel_loss"] = mean(mel_loss, mel_tokens);
    into["mel_top1"] = mean(top1, mel_tokens);
    into["text_tokens"] = text_tokens;
    into["mel_tokens"] = mel_tokens;
  }
};

}  // namespace

void run_eval(const EvalRequest& request, std::ostream& out) {
  ModelSource source = load_model(request.model);
  const Options& options = source.options;
  configure_compute(options.train, request.model.device);
  const std::unique_ptr<Dataset> pairs = open_pairs(options, request.manifests);
  const Dataset& dataset = *pairs;
  const bool ordered = !request.order_file.empty();
  BatchPlan plan = ordered ? read_order_file(request.order_file, dataset).plan
                           : sequential_plan(dataset, options.validation.batch_size.value_or(options.train.batch_size));
  const auto engine =
      make_modules_engine(*source.model, options, resolve_precision(options.train.precision, request.model.device));

  Sums all;
  OrderedJson batches = OrderedJson::array(), samples = OrderedJson::array();
  BatchLoader loader(dataset, std::make_unique<ListSequence>(std::move(plan)),
                     {options.data.num_workers, options.data.prefetch_batches, 0, 1});
  while (const auto loaded = loader.next()) {
    const Batch& batch = loaded->batch;
    if (batch.count() == 0) continue;
    const LossSums losses = engine->evaluate(batch, request.per_sample);
    const torch::Tensor values = losses.values.cpu();
    const double* value = values.const_data_ptr<double>();
    const Sums one{value[0], value[1], value[2], losses.text_tokens, losses.mel_tokens};
    all.text_loss += one.text_loss;
    all.mel_loss += one.mel_loss;
    all.top1 += one.top1;
    all.text_tokens += one.text_tokens;
    all.mel_tokens += one.mel_tokens;
    if (ordered) {
      OrderedJson line = {{"ids", batch.ids}};
      one.write(line);
      batches.push_back(std::move(line));
    }
    for (std::size_t i = 0; i < losses.samples.size(); ++i) {
      const auto at = static_cast<std::int64_t>(i);
      const SampleLoss& loss = losses.samples[i];
      OrderedJson line = {{"id", batch.ids[i]}};
      Sums{loss.text_loss_sum, loss.mel_loss_sum, static_cast<double>(loss.mel_top1), batch.text_length(at) + 1,
           batch.code_length(at) + 1}
          .write(line);
      samples.push_back(std::move(line));
    }
  }
  OrderedJson result = {
      {"checkpoint", request.model.checkpoint}, {"weights", source.weights}, {"layout", options.train.layout}};
  all.write(result);
  if (ordered) result["batches"] = std::move(batches);
  if (request.per_sample) result["samples"] = std::move(samples);
  if (request.json) {
    out << dump_json(result, 1) << "\n";
    return;
  }
  std::vector<std::vector<std::string>> rows{
      {"what", "text_loss", "mel_loss", "mel_top1", "text_tokens", "mel_tokens"}};
  const auto add = [&rows](const std::string& name, const OrderedJson& line) {
    const auto number = [&line](const char* key) {
      return line[key].is_null() ? std::string("-") : fixed(line[key].get<double>(), 6);
    };
    rows.push_back({name, number("text_loss"), number("mel_loss"), number("mel_top1"), line["text_tokens"].dump(),
                    line["mel_tokens"].dump()});
  };
  for (const char* key : {"batches", "samples"}) {
    if (!result.contains(key)) continue;
    for (const auto& line : result[key])
      add(line.contains("id") ? line["id"].get<std::string>() : concat("batch ", rows.size()), line);
  }
  add("all", result);
  out << table(rows);
}

}  // namespace train_gpt_v2
