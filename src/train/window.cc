#include "train_gpt_v2/train/window.h"

#include <algorithm>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/train/device.h"

namespace train_gpt_v2 {
namespace {

// Rows first .. first + count of an array that holds the same number of elements for each of `all` samples.
template <typename T>
std::vector<T> equal_rows(const std::vector<T>& values, std::int64_t all, std::int64_t first, std::int64_t count) {
  const auto width = static_cast<std::int64_t>(values.size()) / all;
  return {values.begin() + first * width, values.begin() + (first + count) * width};
}

// The same for rows that end where the next begin; `part_begin` counts from zero. `width` elements per unit of `begin`.
template <typename T>
std::vector<T> ragged_rows(const std::vector<T>& values, const std::vector<std::int64_t>& begin, std::int64_t first,
                           std::int64_t count, std::int64_t width, std::vector<std::int64_t>& part_begin) {
  const auto from = static_cast<std::size_t>(first), to = static_cast<std::size_t>(first + count);
  part_begin.clear();
  for (std::size_t i = from; i <= to; ++i) part_begin.push_back(begin[i] - begin[from]);
  return {values.begin() + begin[from] * width, values.begin() + begin[to] * width};
}

struct TryAgain {};  // with a lower limit

// Calls `run`; where memory is too small for `batch`, remembers it and throws TryAgain, if that may be.
template <typename Run>
LossSums within_memory(const Batch& batch, const ModelOptions& model, MemoryLimit& limit, const Run& run,
                       const std::function<bool()>& may_try_again) {
  const std::int64_t positions = real_positions(batch, model);
  std::string reason;
  try {
    LossSums sums = run(batch);
    sums.values = sums.values.cpu();  // a GPU is through only now
    if (!limit.first_window) limit.fits = std::max(limit.fits, positions);
    return sums;
  } catch (const std::exception& failure) {
    if (!is_out_of_memory(failure)) throw;
    reason = std::string(failure.what()).substr(0, 300);
  }
  release_cached_memory();
  const bool alone = may_try_again();
  if (batch.count() < 2 || !alone) {
    throw Error("MEM001", concat("out of memory with ", batch.count(), " samples of ", positions, " positions in all"))
        .at(concat("sample ", join(batch.ids, " ")))
        .detail(alone ? reason : "gradients were sent to the other ranks already; " + reason)
        .fix(batch.count() < 2 ? "set train.activation_checkpointing to 1, or use a device with more memory"
                               : "lower train.batch_size and raise train.grad_accumulation by the same factor");
  }
  limit.too_many = positions;
  limit.fits = 0;  // whatever fitted before may not any more
  log_warning("memory", "out of memory with ", batch.count(), " samples (", positions,
              " positions): micro-batches of that size run in halves from now on. The effective batch stays; a smaller "
              "train.batch_size with more train.grad_accumulation would be faster");
  throw TryAgain{};
}

// Calls `run(part, its first sample)` for the batch, or for halves of it that are small enough.
template <typename Run>
void in_parts(const Batch& batch, std::int64_t first, const ModelOptions& model, const MemoryLimit& limit,
              const Run& run) {
  if (batch.count() < 2 || real_positions(batch, model) < limit.too_many) {
    run(batch, first);
    return;
  }
  const std::int64_t half = (batch.count() + 1) / 2;
  in_parts(slice(batch, 0, half), first, model, limit, run);
  in_parts(slice(batch, half, batch.count() - half), first + half, model, limit, run);
}

WindowLosses try_window(Engine& engine, const std::vector<WindowPart>& parts, double loss_scale,
                        const ModelOptions& model, MemoryLimit& limit, const WindowEvents& events) {
  WindowLosses losses;
  engine.begin_window();
  events.begin();
  std::size_t last = parts.size();
  while (last > 0 && parts[last - 1].batch->count() == 0) --last;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const WindowPart& part = parts[i];
    if (part.batch->count() == 0) continue;  // every sample of it was bad and is skipped
    in_parts(*part.batch, 0, model, limit, [&](const Batch& batch, std::int64_t first) {
      DropoutKey key = part.key;
      key.seed += static_cast<std::uint64_t>(first)
                  << 32;  // rows are counted within the part; the first keeps its masks
      const bool is_last = i + 1 == last && first + batch.count() == part.batch->count();
      if (is_last && real_positions(batch, model) <= limit.fits) events.last_pass();
      const auto run = [&](const Batch& it) {
        return engine.forward_backward(it, key, part.text_scale * loss_scale, part.mel_scale * loss_scale);
      };
      const LossSums sums = within_memory(batch, model, limit, run, events.may_begin_anew);
      losses.loss += part.text_scale * sums.values[0].item<double>() + part.mel_scale * sums.values[1].item<double>();
      losses.sums = losses.sums.defined() ? losses.sums + sums.values : sums.values;
      losses.positions += sums.positions;
      losses.padded_positions += sums.padded_positions;
    });
    if (i + 1 < parts.size() && events.stop()) {
      losses.stopped = true;
      break;
    }
  }
  return losses;
}

}  // namespace

Batch slice(const Batch& batch, std::int64_t first, std::int64_t count) {
  const std::int64_t all = batch.count();
  TGV2_CHECK(first >= 0 && count > 0 && first + count <= all);
  Batch part;
  part.samples = equal_rows(batch.samples, all, first, count);
  part.ids = equal_rows(batch.ids, all, first, count);
  part.text = ragged_rows(batch.text, batch.text_begin, first, count, 1, part.text_begin);
  part.codes = ragged_rows(batch.codes, batch.code_begin, first, count, 1, part.code_begin);
  part.condition = equal_rows(batch.condition, all, first, count);
  part.emo_vec = equal_rows(batch.emo_vec, all, first, count);
  const auto frames = [&](const std::vector<float>& values, const std::vector<std::int64_t>& begin,
                          std::vector<std::int64_t>& part_begin) {
    if (values.empty()) return std::vector<float>{};
    const std::int64_t width = static_cast<std::int64_t>(values.size()) / begin.back();
    return ragged_rows(values, begin, first, count, width, part_begin);
  };
  part.features = frames(batch.features, batch.frame_begin, part.frame_begin);
  part.emo_features = frames(batch.emo_features, batch.emo_frame_begin, part.emo_frame_begin);
  return part;
}

WindowLosses run_window(Engine& engine, const std::vector<WindowPart>& parts, double loss_scale,
                        const ModelOptions& model, MemoryLimit& limit, const WindowEvents& events) {
  for (std::int64_t retries = 0;; ++retries) {
    try {
      WindowLosses losses = try_window(engine, parts, loss_scale, model, limit, events);
      losses.retries = retries;
      limit.first_window = false;
      return losses;
    } catch (const TryAgain&) {
      // Gradients may hold a part of what did not fit: the window begins anew.
    }
  }
}

bool sum_losses(WindowLosses& losses, bool failed, Ranks& ranks) {
  if (ranks.single()) return true;
  constexpr std::size_t kPositions = 8;  // of every rank, from here on
  std::vector<double> all(kPositions + static_cast<std::size_t>(ranks.size()), 0.0);
  if (losses.sums.defined()) std::copy_n(losses.sums.const_data_ptr<double>(), 4, all.begin());
  all[4] = losses.loss;
  all[5] = static_cast<double>(losses.positions);
  all[6] = static_cast<double>(losses.padded_positions);
  all[7] = failed ? 1 : 0;
  all[kPositions + static_cast<std::size_t>(ranks.rank())] = all[5];
  ranks.sum(all);
  losses.sums = torch::tensor(std::vector<double>(all.begin(), all.begin() + 4), torch::kFloat64);
  losses.loss = all[4];
  losses.positions = static_cast<std::int64_t>(all[5]);
  losses.padded_positions = static_cast<std::int64_t>(all[6]);
  losses.most_positions = static_cast<std::int64_t>(*std::max_element(all.begin() + kPositions, all.end()));
  return all[7] == 0;
}

LossSums evaluate_in_memory(Engine& engine, const Batch& batch, bool per_sample, const ModelOptions& model,
                            MemoryLimit& limit) {
  while (true) {
    try {
      LossSums all;
      in_parts(batch, 0, model, limit, [&](const Batch& part, std::int64_t) {
        const auto run = [&](const Batch& it) { return engine.evaluate(it, per_sample); };
        LossSums sums = within_memory(part, model, limit, run, [] { return true; });
        all.values = all.values.defined() ? all.values + sums.values : sums.values;
        all.text_tokens += sums.text_tokens;
        all.mel_tokens += sums.mel_tokens;
        all.positions += sums.positions;
        all.padded_positions += sums.padded_positions;
        all.samples.insert(all.samples.end(), sums.samples.begin(), sums.samples.end());
      });
      return all;
    } catch (const TryAgain&) {
    }
  }
}

}  // namespace train_gpt_v2
