#include "train_gpt_v2/app/demo_codebook.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "train_gpt_v2/app/demo_process.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr int kRounds = 25;
constexpr std::size_t kChunk = 4096;
constexpr std::uint64_t kStartStream = 0xC0DE1, kIdStream = 0xC0DE2;

float squared_distance(const float* a, const float* b) {
  float sum = 0;
  for (std::size_t i = 0; i < kCepstra; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

std::size_t nearest_entry(const std::vector<float>& centroids, const float* point, float* distance) {
  std::size_t best = 0;
  *distance = std::numeric_limits<float>::infinity();
  for (std::size_t k = 0; k * kCepstra < centroids.size(); ++k) {
    const float candidate = squared_distance(&centroids[k * kCepstra], point);
    if (candidate < *distance) {
      *distance = candidate;
      best = k;
    }
  }
  return best;
}

// k-means++: each next centre is drawn with probability proportional to its squared distance to those chosen.
std::vector<float> starting_centroids(std::span<const float> points, std::size_t size, RandomStream& stream) {
  const std::size_t count = points.size() / kCepstra;
  std::vector<float> centroids, distance(count, std::numeric_limits<float>::infinity());
  std::size_t chosen = stream.below(count);
  while (true) {
    const float* centre = &points[chosen * kCepstra];
    centroids.insert(centroids.end(), centre, centre + kCepstra);
    if (centroids.size() == size * kCepstra) return centroids;
    double total = 0;
    for (std::size_t i = 0; i < count; ++i) {
      distance[i] = std::min(distance[i], squared_distance(centre, &points[i * kCepstra]));
      total += distance[i];
    }
    double left = stream.uniform() * total;
    chosen = 0;
    while (chosen + 1 < count && (left -= distance[chosen]) >= 0) ++chosen;
  }
}

struct Round {
  std::vector<double> sums;
  std::vector<std::size_t> counts;
  float worst = -1;  // the point farthest from its centroid: the new centre of an entry that lost all points
  std::size_t worst_point = 0;
};

Round assign(std::span<const float> points, const std::vector<float>& centroids, std::size_t begin, std::size_t end) {
  Round part{std::vector<double>(centroids.size()), std::vector<std::size_t>(centroids.size() / kCepstra)};
  for (std::size_t i = begin; i < end; ++i) {
    const float* point = &points[i * kCepstra];
    float distance = 0;
    const std::size_t entry = nearest_entry(centroids, point, &distance);
    ++part.counts[entry];
    for (std::size_t d = 0; d < kCepstra; ++d) part.sums[entry * kCepstra + d] += point[d];
    if (distance > part.worst) {
      part.worst = distance;
      part.worst_point = i;
    }
  }
  return part;
}

}  // namespace

std::vector<std::int32_t> Codebook::encode(std::span<const float> points) const {
  std::vector<std::int32_t> codes(points.size() / kCepstra);
  float distance = 0;
  for (std::size_t i = 0; i < codes.size(); ++i)
    codes[i] = ids[nearest_entry(centroids, &points[i * kCepstra], &distance)];
  return codes;
}

std::vector<float> Codebook::decode(std::span<const std::int32_t> codes) const {
  std::unordered_map<std::int32_t, std::size_t> entry;
  for (std::size_t k = 0; k < ids.size(); ++k) entry[ids[k]] = k;
  std::vector<float> points;
  points.reserve(codes.size() * kCepstra);
  for (const std::int32_t code : codes) {
    const auto found = entry.find(code);
    if (found == entry.end()) throw Error("DEM003", concat("code ", code, " is in no entry of the codebook"));
    const float* centre = &centroids[found->second * kCepstra];
    points.insert(points.end(), centre, centre + kCepstra);
  }
  return points;
}

Codebook fit_codebook(std::span<const float> points, std::size_t size, std::uint64_t seed, int threads) {
  const std::size_t count = points.size() / kCepstra;
  TGV2_CHECK(size > 0 && size <= static_cast<std::size_t>(kCodeSpace) && count >= size);
  RandomStream start_stream(seed, kStartStream), id_stream(seed, kIdStream);
  Codebook book;
  book.centroids = starting_centroids(points, size, start_stream);
  std::vector<Round> parts((count + kChunk - 1) / kChunk);
  for (int round = 0; round < kRounds; ++round) {
    parallel_for(parts.size(), threads, [&](std::size_t i) {
      parts[i] = assign(points, book.centroids, i * kChunk, std::min(count, (i + 1) * kChunk));
    });
    Round all{std::vector<double>(book.centroids.size()), std::vector<std::size_t>(size)};
    for (const Round& part : parts) {
      for (std::size_t i = 0; i < all.sums.size(); ++i) all.sums[i] += part.sums[i];
      for (std::size_t k = 0; k < size; ++k) all.counts[k] += part.counts[k];
      if (part.worst > all.worst) {
        all.worst = part.worst;
        all.worst_point = part.worst_point;
      }
    }
    for (std::size_t k = 0; k < size; ++k) {
      for (std::size_t d = 0; d < kCepstra; ++d) {
        const std::size_t at = k * kCepstra + d;
        book.centroids[at] = all.counts[k] > 0 ? static_cast<float>(all.sums[at] / static_cast<double>(all.counts[k]))
                                               : points[all.worst_point * kCepstra + d];
      }
    }
  }
  const std::vector<std::uint32_t> order = random_permutation(kCodeSpace, id_stream);
  for (std::size_t k = 0; k < size; ++k) book.ids.push_back(static_cast<std::int32_t>(order[k]));
  return book;
}

}  // namespace train_gpt_v2
