#include "train_gpt_v2/model/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_set>

namespace train_gpt_v2 {
namespace {

constexpr double kRemoved = -std::numeric_limits<double>::infinity();

double log_sum(const Scores& scores) {
  const double top = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double s : scores) sum += std::exp(s - top);
  return top + std::log(sum);
}

std::vector<std::int64_t> all_indices(std::size_t size) {
  std::vector<std::int64_t> indices(size);
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

}  // namespace

void to_log_softmax(Scores& scores) {
  const double total = log_sum(scores);
  for (double& s : scores) s -= total;
}

void penalise_repetition(Scores& scores, std::span<const std::int64_t> seen, double penalty) {
  if (penalty == 1) return;
  for (const std::int64_t code : std::unordered_set<std::int64_t>(seen.begin(), seen.end())) {
    if (code < 0 || code >= static_cast<std::int64_t>(scores.size())) continue;
    scores[code] = scores[code] < 0 ? scores[code] * penalty : scores[code] / penalty;
  }
}

void keep_typical(Scores& scores, double mass, std::int64_t keep) {
  Scores logs = scores;
  to_log_softmax(logs);
  double entropy = 0;
  for (const double l : logs) {
    if (l != kRemoved) entropy -= l * std::exp(l);
  }
  // Nearest to the expected surprise first.
  const auto distance = [&](std::int64_t i) { return std::abs(-logs[i] - entropy); };
  auto order = all_indices(scores.size());
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return distance(a) < distance(b); });
  double cumulative = 0;
  std::size_t last = 0;
  for (; last + 1 < order.size(); ++last) {
    cumulative += std::exp(logs[order[last]]);
    if (cumulative >= mass) break;
  }
  const double limit = distance(order[last]);
  for (std::size_t i = static_cast<std::size_t>(keep); i < order.size(); ++i) {
    if (distance(order[i]) > limit) scores[order[i]] = kRemoved;
  }
}

void keep_top_k(Scores& scores, std::int64_t k, std::int64_t keep) {
  const auto count = static_cast<std::size_t>(std::max(k, keep));
  if (k <= 0 || count >= scores.size()) return;
  Scores sorted = scores;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(count) - 1, sorted.end(),
                   std::greater<>());
  const double threshold = sorted[count - 1];
  for (double& s : scores) {
    if (s < threshold) s = kRemoved;
  }
}

void keep_top_p(Scores& scores, double p, std::int64_t keep) {
  if (p >= 1) return;
  const double total = log_sum(scores);
  std::vector<std::int64_t> order;  // candidates only, worst first
  for (const std::int64_t i : all_indices(scores.size())) {
    if (scores[i] != kRemoved) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] < scores[b]; });
  double cumulative = 0;
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < order.size(); ++i) {
    cumulative += std::exp(scores[order[i]] - total);
    if (cumulative > 1 - p) break;
    scores[order[i]] = kRemoved;
  }
}

void warp(Scores& scores, const DecodingOptions& options, std::int64_t keep) {
  if (options.typical_p) keep_typical(scores, *options.typical_p, keep);
  if (options.temperature != 1) {
    for (double& s : scores) s /= options.temperature;
  }
  keep_top_k(scores, options.top_k, keep);
  keep_top_p(scores, options.top_p, keep);
}

std::int64_t best(const Scores& scores) {
  return std::max_element(scores.begin(), scores.end()) - scores.begin();
}

std::int64_t draw(const Scores& scores, RandomStream& random) {
  return draw_distinct(scores, 1, random).front();
}

// Gumbel's trick: score - log(-log u) sorts candidates as successive draws without replacement would.
std::vector<std::int64_t> draw_distinct(const Scores& scores, std::int64_t count, RandomStream& random) {
  Scores noisy = scores;
  std::int64_t candidates = 0;
  for (double& s : noisy) {
    if (s == kRemoved) continue;
    ++candidates;
    s -= std::log(-std::log((static_cast<double>(random.next_u32()) + 0.5) * 0x1p-32));
  }
  return largest(noisy, std::min(count, candidates));
}

std::vector<std::int64_t> largest(const Scores& scores, std::int64_t count) {
  auto order = all_indices(scores.size());
  const auto end = order.begin() + std::min<std::ptrdiff_t>(count, static_cast<std::ptrdiff_t>(order.size()));
  std::partial_sort(order.begin(), end, order.end(),
                    [&](auto a, auto b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
  return {order.begin(), end};
}

}  // namespace train_gpt_v2
