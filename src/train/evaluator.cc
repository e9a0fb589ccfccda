#include "train_gpt_v2/train/evaluator.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <map>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/train/window.h"

namespace train_gpt_v2 {
namespace {

struct Sums {
  double text_loss = 0, mel_loss = 0, top1 = 0, top5 = 0;
  std::int64_t text_tokens = 0, mel_tokens = 0;
};

void sum_over_ranks(std::vector<Sums*> parts, double& other_text_loss, bool& complete, Ranks& ranks) {
  if (ranks.single()) return;
  std::vector<double> numbers{other_text_loss, complete ? 0.0 : 1.0};
  for (const Sums* part : parts) {
    numbers.insert(numbers.end(), {part->text_loss, part->mel_loss, part->top1, part->top5,
                                   static_cast<double>(part->text_tokens), static_cast<double>(part->mel_tokens)});
  }
  ranks.sum(numbers);
  other_text_loss = numbers[0];
  complete = numbers[1] == 0;
  auto next = numbers.begin() + 2;
  for (Sums* part : parts) {
    for (double* sum : {&part->text_loss, &part->mel_loss, &part->top1, &part->top5}) *sum = *next++;
    part->text_tokens = static_cast<std::int64_t>(*next++);
    part->mel_tokens = static_cast<std::int64_t>(*next++);
  }
}

struct Loaded {
  Batch batch;
  std::vector<std::pair<std::uint32_t, std::string>> skipped;  // and why
};

Loaded load_usable(const Dataset& dataset, std::span<const std::uint32_t> samples) {
  Loaded loaded;
  for (const std::uint32_t sample : samples) {
    if (auto why = dataset.load_or_skip(sample, loaded.batch)) loaded.skipped.emplace_back(sample, std::move(*why));
  }
  return loaded;
}

// The batch with every sample's text replaced by that of the sample after it; `after` follows the last one.
Batch with_next_text(const Batch& batch, const Batch& after) {
  Batch other = batch;
  other.text.clear();
  other.text_begin.assign(1, 0);
  const auto append = [&other](const Batch& from, std::int64_t i) {
    other.text.insert(other.text.end(), from.text.begin() + from.text_begin[static_cast<std::size_t>(i)],
                      from.text.begin() + from.text_begin[static_cast<std::size_t>(i) + 1]);
    other.text_begin.push_back(static_cast<std::int64_t>(other.text.size()));
  };
  for (std::int64_t i = 1; i < batch.count(); ++i) append(batch, i);
  append(after, 0);
  return other;
}

ValidationResult to_result(const Sums& sums, const std::string& weights, const std::string& split, double seconds) {
  ValidationResult result;
  result.weights = weights;
  result.split = split;
  result.text_tokens = sums.text_tokens;
  result.mel_tokens = sums.mel_tokens;
  const auto mean = [](double sum, std::int64_t count) { return count > 0 ? sum / static_cast<double>(count) : 0.0; };
  result.text_loss = mean(sums.text_loss, sums.text_tokens);
  result.mel_loss = mean(sums.mel_loss, sums.mel_tokens);
  result.mel_top1 = mean(sums.top1, sums.mel_tokens);
  result.mel_top5 = mean(sums.top5, sums.mel_tokens);
  result.seconds = seconds;
  return result;
}

}  // namespace

Evaluator::Evaluator(const Dataset& validation, const Dataset* train, const Options& options)
    : validation_(validation), train_(train), options_(options) {
  plan_ = sequential_plan(validation, options.validation.batch_size.value_or(options.train.batch_size));
  if (options.validation.max_batches) plan_ = spread(plan_, static_cast<std::size_t>(*options.validation.max_batches));
  if (options.validation.by.empty()) return;
  for (std::size_t i = 0; i < plan_.size(); ++i) {
    for (const std::uint32_t sample : plan_.batch(i)) {
      for (const std::string& split : splits_of(sample)) splits_.insert(split);
    }
  }
}

std::vector<std::string> Evaluator::splits_of(std::uint32_t sample) const {
  std::vector<std::string> splits;
  const SampleInfo info = validation_.info(sample);
  for (const std::string& by : options_.validation.by) {
    if (by == "language") {
      splits.push_back("language:" + validation_.languages()[info.language]);
    } else if (train_) {
      splits.push_back(train_->has_speaker(validation_.speakers()[info.speaker]) ? "speaker:seen" : "speaker:held_out");
    }
  }
  return splits;
}

// The first sample behind batch `i`, going round.
Batch Evaluator::first_usable_after(std::size_t i) const {
  Batch one;
  for (std::size_t k = 1; k <= plan_.size() && one.count() == 0; ++k) {
    for (const std::uint32_t sample : plan_.batch((i + k) % plan_.size())) {
      if (!validation_.load_or_skip(sample, one)) break;
    }
  }
  return one;
}

EvaluatorOutput Evaluator::run(Engine& engine, const std::string& weights, const std::function<bool()>& stop,
                               Ranks& ranks) {
  const auto begin = std::chrono::steady_clock::now();
  Sums all;
  std::map<std::string, Sums> by_split;
  for (const std::string& split : splits_) by_split[split];
  double other_text_loss = 0;
  bool complete = true;
  MemoryLimit limit;
  const bool splits = !options_.validation.by.empty();
  const auto load = [this](std::size_t i) { return load_usable(validation_, plan_.batch(i)); };
  std::future<Loaded> next;
  const auto first = static_cast<std::size_t>(ranks.rank()), stride = static_cast<std::size_t>(ranks.size());
  if (first < plan_.size()) next = std::async(std::launch::async, load, first);
  const auto measure = [&] {
    for (std::size_t i = first; i < plan_.size(); i += stride) {
      const Loaded loaded = next.get();
      const Batch& batch = loaded.batch;
      if (stop()) {
        complete = false;
        break;
      }
      if (i + stride < plan_.size()) next = std::async(std::launch::async, load, i + stride);
      for (const auto& [sample, why] : loaded.skipped) {
        if (!bad_.insert(sample).second) continue;
        log_warning("data", "validation leaves out: ", why);
        validation_.check_bad_fraction(validation_.bad_at_open() + bad_.size());
      }
      if (batch.count() == 0) continue;
      const LossSums sums = evaluate_in_memory(engine, batch, splits, options_.model, limit);
      const double* value = sums.values.const_data_ptr<double>();
      all.text_loss += value[0];
      all.mel_loss += value[1];
      all.top1 += value[2];
      all.top5 += value[3];
      all.text_tokens += sums.text_tokens;
      all.mel_tokens += sums.mel_tokens;
      for (std::size_t s = 0; s < sums.samples.size(); ++s) {
        for (const std::string& split : splits_of(batch.samples[s])) {
          Sums& part = by_split[split];
          const auto at = static_cast<std::int64_t>(s);
          part.text_loss += sums.samples[s].text_loss_sum;
          part.mel_loss += sums.samples[s].mel_loss_sum;
          part.top1 += static_cast<double>(sums.samples[s].mel_top1);
          part.text_tokens += batch.text_length(at) + 1;
          part.mel_tokens += batch.code_length(at) + 1;
        }
      }
      if (options_.validation.text_usage_gap) {
        const Batch after = first_usable_after(i);
        other_text_loss += evaluate_in_memory(engine, with_next_text(batch, after), false, options_.model, limit)
                               .values[1]
                               .item<double>();
      }
    }
  };
  std::optional<Error> failure;
  try {
    measure();
  } catch (const Error& problem) {
    failure = problem;
  }
  ranks.agree(failure);
  std::vector<Sums*> parts{&all};
  for (auto& [split, sums] : by_split) parts.push_back(&sums);
  sum_over_ranks(parts, other_text_loss, complete, ranks);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  EvaluatorOutput output;
  output.results.push_back(to_result(all, weights, "all", seconds));
  for (const auto& [split, sums] : by_split) output.results.push_back(to_result(sums, weights, split, seconds));
  for (ValidationResult& result : output.results) result.complete = complete;
  if (options_.validation.text_usage_gap && complete && all.mel_tokens > 0) {
    output.text_usage_gap = (other_text_loss - all.mel_loss) / static_cast<double>(all.mel_tokens);
  }
  return output;
}

}  // namespace train_gpt_v2
