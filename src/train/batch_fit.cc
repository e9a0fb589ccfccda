#include "train_gpt_v2/train/batch_fit.h"

#include <algorithm>
#include <utility>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

class Search {
 public:
  explicit Search(const BatchFitRequest& request) : request_(request) {
    const std::int64_t per_rank = request.effective_batch / request.ranks;
    for (std::int64_t size = 1; size <= per_rank; ++size) {
      if (per_rank % size == 0) sizes_.push_back(size);
    }
    at_ = static_cast<std::size_t>(std::upper_bound(sizes_.begin(), sizes_.end(), request.first_size) - sizes_.begin());
    at_ = at_ == 0 ? 0 : at_ - 1;
    too_large_ = sizes_.size();
  }

  BatchFit run() {
    if (request_.memory == 0) {
      say(sizes_[at_], "from the table: the memory cannot be measured here");
      return result();
    }
    if (const auto known = std::find(sizes_.begin(), sizes_.end(), request_.remembered); known != sizes_.end()) {
      const auto first = std::exchange(at_, static_cast<std::size_t>(known - sizes_.begin()));
      if (fits(at_)) {
        say(sizes_[at_], "found in an earlier run, confirmed by one step");
        return result();
      }
      if (at_ > 0) at_ = std::min(first, next_down());
    }
    while (!fits(at_)) {
      if (at_ == 0) {
        throw Error("MEM001", "not even a micro-batch of one sample fits the memory")
            .detail(concat("usable: ", human_bytes(usable())))
            .fix("set train.activation_checkpointing to 1, or train adapters (peft.method)");
      }
      at_ = next_down();
    }
    while (at_ + 1 < too_large_) {
      const std::size_t next = next_up();
      if (!expected_to_fit(next) || !fits(next)) break;
      at_ = next;
    }
    return result();
  }

 private:
  std::uint64_t usable() const {
    return static_cast<std::uint64_t>(static_cast<double>(request_.memory) * kUsableMemoryShare);
  }

  // Halving and doubling, to the nearest divisor.
  std::size_t next_down() const {
    std::size_t next = at_ - 1;
    while (next > 0 && sizes_[next] > sizes_[at_] / 2) --next;
    return next;
  }
  std::size_t next_up() const {
    std::size_t next = at_ + 1;
    while (next + 1 < too_large_ && sizes_[next + 1] <= sizes_[at_] * 2) ++next;
    return next;
  }

  bool fits(std::size_t index) {
    const std::int64_t size = sizes_[index];
    const std::optional<std::uint64_t> peak = request_.probe(size);
    const bool fits = peak && *peak <= usable();
    if (!fits) too_large_ = index;
    if (!peak) {
      say(size, "out of memory");
      return false;
    }
    measured_.emplace_back(size, *peak);
    say(size, concat(human_bytes(*peak), fits ? " of " : ", more than ", human_bytes(usable()), " usable"));
    return fits;
  }

  // Linear in the size, from the last two measurements; proportional where there is one.
  bool expected_to_fit(std::size_t index) {
    const auto [size, peak] = measured_.back();
    double slope = static_cast<double>(peak) / static_cast<double>(size), base = 0;
    if (measured_.size() > 1) {
      const auto [before, less] = measured_[measured_.size() - 2];
      slope =
          std::max(0.0, (static_cast<double>(peak) - static_cast<double>(less)) / static_cast<double>(size - before));
      base = static_cast<double>(peak) - slope * static_cast<double>(size);
    } else if (size == 1) {
      return true;  // weights and moments dominate: nothing can be told from one sample alone
    }
    const double expected = base + slope * static_cast<double>(sizes_[index]);
    if (expected <= static_cast<double>(usable())) return true;
    say(sizes_[index], concat("would take about ", human_bytes(static_cast<std::uint64_t>(expected)), ", more than ",
                              human_bytes(usable()), " usable: not tried"));
    return false;
  }

  void say(std::int64_t size, const std::string& what) { fit_.reasons.push_back(concat("batch ", size, ": ", what)); }

  BatchFit result() {
    fit_.batch_size = sizes_[at_];
    fit_.grad_accumulation = request_.effective_batch / fit_.batch_size;
    return std::move(fit_);
  }

  const BatchFitRequest& request_;
  std::vector<std::int64_t> sizes_;  // ascending
  std::size_t at_ = 0, too_large_ = 0;
  std::vector<std::pair<std::int64_t, std::uint64_t>> measured_;
  BatchFit fit_;
};

}  // namespace

BatchFit fit_batch(const BatchFitRequest& request) {
  return Search(request).run();
}

std::int64_t table_batch_size(double gib, bool is_gpu, bool adapters) {
  struct Row {
    double gib;
    std::int64_t batch;
  };
  constexpr Row kRows[] = {{75, 64}, {40, 16}, {24, 8}, {16, 6}, {12, 4}, {8, 2}};
  if (!is_gpu) return 1;
  if (adapters && gib >= 75) return 96;
  for (const Row& row : kRows) {
    if (gib >= row.gib) return row.batch;
  }
  return 1;
}

}  // namespace train_gpt_v2
