#include "train_gpt_v2/app/fisher_command.h"

#include <chrono>
#include <nlohmann/json.hpp>
#include <ostream>

#include "train_gpt_v2/adapt/ewc.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/loader.h"
#include "train_gpt_v2/train/device.h"

namespace train_gpt_v2 {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kLabelStream = 0xF15E;
constexpr double kSecondsBetweenLines = 15;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Everything a gradient reaches; from now on it does.
std::vector<std::pair<std::string, at::Tensor>> measured_parameters(UnifiedVoice& model) {
  const bool online = model.options().conditioning == "online";
  std::vector<std::pair<std::string, at::Tensor>> parameters;
  for (auto& item : model.named_parameters()) {
    if (!online && UnifiedVoice::is_conditioner(item.key())) continue;
    item.value().set_requires_grad(true);
    parameters.emplace_back(item.key(), item.value());
  }
  return parameters;
}

BatchPlan plan_samples(const Dataset& data, const FisherRequest& request) {
  const std::size_t all = data.epoch_size();
  const std::size_t wanted = request.samples ? std::min(all, static_cast<std::size_t>(*request.samples)) : all;
  if (request.samples && wanted < static_cast<std::size_t>(*request.samples)) {
    log_warning("fisher", "the manifests hold ", all, " usable samples, fewer than --samples ", *request.samples);
  }
  const auto size = static_cast<std::size_t>(request.batch_size);
  BatchPlan plan;
  std::vector<std::uint32_t> batch;
  for (std::size_t i = 0; i < wanted; ++i) {
    batch.push_back(static_cast<std::uint32_t>(i * all / wanted));
    if (batch.size() < size && i + 1 < wanted) continue;
    plan.add(batch);
    batch.clear();
  }
  return plan;
}

// A line now and then, and the live line on a terminal.
class Announcer {
 public:
  explicit Announcer(std::size_t batches) : batches_(batches) {}
  ~Announcer() { set_status_line(""); }
  Announcer(const Announcer&) = delete;
  Announcer& operator=(const Announcer&) = delete;

  void batch_done(std::int64_t samples) {
    samples_ += samples;
    ++done_;
    const double left = seconds_since(begin_) / static_cast<double>(done_) * static_cast<double>(batches_ - done_);
    const std::string text =
        concat("batch ", done_, "/", batches_, ", ", samples_, " samples, ", human_duration(left), " left");
    set_status_line("fisher " + text);
    if (seconds_since(printed_) < kSecondsBetweenLines) return;
    printed_ = Clock::now();
    if (!console_is_terminal()) log_info("fisher", text);
  }

 private:
  std::size_t batches_, done_ = 0;
  std::int64_t samples_ = 0;
  Clock::time_point begin_ = Clock::now(), printed_ = begin_;
};

nlohmann::ordered_json summary(const FisherRequest& request, const ModelSource& source, const Fisher& fisher,
                               double seconds) {
  std::int64_t numbers = 0;
  double total = 0;
  for (const auto& [name, value] : fisher.values) {
    numbers += value.numel();
    total += value.sum(at::kDouble).item<double>();
  }
  return {{"output", absolute_path(request.output)},
          {"checkpoint", request.model.checkpoint},
          {"weights", source.weights},
          {"samples", fisher.samples},
          {"tokens", fisher.tokens},
          {"tensors", fisher.values.size()},
          {"numbers", numbers},
          {"mean", total / static_cast<double>(numbers)},
          {"bytes", file_size(request.output)},
          {"seconds", seconds}};
}

}  // namespace

ExitStatus run_fisher(const FisherRequest& request, std::ostream& out) {
  const auto begin = Clock::now();
  check_output_file(request.output, request.model.checkpoint);
  ModelSource source = load_model(request.model);
  const Options& options = source.options;
  configure_compute(options.train, request.model.device);
  if (request.manifests.empty()) {
    throw Error("CFG021", "no manifest to measure on").fix("give --manifest FILE of the languages to protect");
  }
  const std::unique_ptr<Dataset> data = open_pairs(options, request.manifests);
  make_directories(parent_path(absolute_path(request.output)));

  FisherAccumulator accumulator(measured_parameters(*source.model));
  BatchPlan plan = plan_samples(*data, request);
  const std::size_t batches = plan.size();
  log_info("fisher", plan.samples.size(), " of ", data->epoch_size(), " samples in ", batches, " batches; ",
           human_bytes(accumulator.bytes()), " of sums, the same for gradients");
  RandomStream labels(static_cast<std::uint64_t>(options.train.seed), kLabelStream);
  BatchLoader loader(*data, std::make_unique<ListSequence>(std::move(plan)),
                     {options.data.num_workers, options.data.prefetch_batches, 0, 1});
  {
    Announcer announcer(batches);
    while (const auto loaded = loader.next()) {
      if (stop_requested() != ExitStatus::kOk) break;
      const Batch& batch = loaded->batch;
      if (batch.count() > 0) {
        const ModelInputs inputs =
            assemble_inputs(batch, options.model, BatchLayout::kPacked, source.model->device(), source.model->dtype());
        backward_sampled_likelihood(*source.model, inputs, options.train.text_loss_weight,
                                    options.train.mel_loss_weight, labels);
        accumulator.add(inputs.text_tokens() + inputs.mel_tokens(), batch.count());
      }
      announcer.batch_done(batch.count());
    }
  }
  if (stop_requested() != ExitStatus::kOk) {
    log_warning("fisher", "stopped: nothing is written");
    return stop_requested();
  }
  const Fisher fisher = accumulator.finish();
  for (const auto& [name, value] : fisher.values) {
    if (value.isfinite().all().item<bool>()) continue;
    throw Error("NUM020", "the model's gradients are not finite").where(request.model.checkpoint).at(name);
  }
  write_fisher(request.output, fisher);
  const nlohmann::ordered_json result = summary(request, source, fisher, seconds_since(begin));
  if (request.json) {
    out << dump_json(result, 1) << "\n";
  } else {
    out << request.output << ": " << fisher.values.size() << " tensors, " << fisher.samples << " samples, "
        << human_count(static_cast<std::uint64_t>(fisher.tokens)) << " scored tokens, mean "
        << concat(result["mean"].get<double>()) << ", " << human_bytes(result["bytes"].get<std::uint64_t>()) << "\n";
  }
  return ExitStatus::kOk;
}

}  // namespace train_gpt_v2
