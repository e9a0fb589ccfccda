#include "train_gpt_v2/model/search.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kSamplingStream = 0x53414D50ull << 32;  // apart from the streams of data and dropout

RandomStream stream_of(const SearchSetup& setup) {
  return {static_cast<std::uint64_t>(setup.options.seed), kSamplingStream + setup.stream};
}

struct Path {
  std::vector<std::int64_t> codes;
  double score = 0;    // what the search maximises
  double logprob = 0;  // of the codes under the unprocessed distribution
};

std::vector<std::int64_t> seen_by(const Path& path, const SearchSetup& setup) {
  std::vector<std::int64_t> seen = setup.always_seen;
  seen.insert(seen.end(), path.codes.begin(), path.codes.end());
  return seen;
}

SearchResult finish(const Path& path, const SearchSetup& setup) {
  SearchResult result;
  result.codes = path.codes;
  result.stopped = !path.codes.empty() && path.codes.back() == setup.stop;
  result.mean_logprob = path.codes.empty() ? 0 : path.logprob / static_cast<double>(path.codes.size());
  if (result.stopped) result.codes.pop_back();
  return result;
}

class SinglePath final : public Search {
 public:
  explicit SinglePath(const SearchSetup& setup) : setup_(setup), random_(stream_of(setup)) {}

  SearchStep advance(const std::vector<Scores>& logits) override {
    Scores scores = logits.front();
    penalise_repetition(scores, seen_by(path_, setup_), setup_.options.repetition_penalty);
    if (!setup_.options.greedy) warp(scores, setup_.options, 1);
    const std::int64_t code = setup_.options.greedy ? best(scores) : draw(scores, random_);
    Scores own = logits.front();
    to_log_softmax(own);
    path_.logprob += own[code];
    path_.codes.push_back(code);
    done_ = code == setup_.stop || static_cast<std::int64_t>(path_.codes.size()) == setup_.limit;
    return {{0}, {code}};
  }

  SearchResult result() const override { return finish(path_, setup_); }

 private:
  SearchSetup setup_;
  RandomStream random_;
  Path path_;
};

class BeamSearch final : public Search {
 public:
  explicit BeamSearch(const SearchSetup& setup) : setup_(setup), random_(stream_of(setup)) {
    beams_.resize(static_cast<std::size_t>(setup.options.num_beams));
    // All beams are equal at first; only one of them counts.
    for (std::size_t i = 1; i < beams_.size(); ++i) beams_[i].score = -1e9;
  }

  SearchStep advance(const std::vector<Scores>& logits) override {
    const std::size_t width = beams_.size();
    const std::size_t codes = logits.front().size();
    Scores flat;
    std::vector<Scores> own;
    for (std::size_t b = 0; b < width; ++b) {
      Scores scores = logits[b];
      to_log_softmax(scores);
      own.push_back(scores);
      penalise_repetition(scores, seen_by(beams_[b], setup_), setup_.options.repetition_penalty);
      if (!setup_.options.greedy) warp(scores, setup_.options, 2);
      for (const double s : scores) flat.push_back(s + beams_[b].score);
    }
    ++length_;
    std::vector<Path> next;
    SearchStep step;
    const std::vector<std::int64_t> candidates = choose(flat, static_cast<std::int64_t>(2 * width));
    for (std::size_t rank = 0; rank < candidates.size() && next.size() < width; ++rank) {
      const auto source = static_cast<std::size_t>(candidates[rank]) / codes;
      const auto code = static_cast<std::int64_t>(static_cast<std::size_t>(candidates[rank]) % codes);
      if (code == setup_.stop && rank >= width) continue;
      Path path = beams_[source];
      path.codes.push_back(code);
      path.score = flat[candidates[rank]];
      path.logprob += own[source][code];
      if (code == setup_.stop) {
        close(std::move(path));
      } else {
        step.source.push_back(static_cast<std::int64_t>(source));
        step.codes.push_back(code);
        next.push_back(std::move(path));
      }
    }
    const double best_open = flat[candidates.front()] / penalty(length_);
    const bool settled = closed_.size() == width && closed_.back().score >= best_open;
    beams_ = std::move(next);
    done_ = settled || beams_.size() < width || length_ == setup_.limit;
    if (done_ && !settled) {
      for (Path& path : beams_) close(std::move(path));
    }
    return step;
  }

  SearchResult result() const override { return finish(closed_.front(), setup_); }

 private:
  double penalty(std::int64_t length) const {
    return std::pow(static_cast<double>(length), setup_.options.length_penalty);
  }

  // Indices into the flat scores, best first.
  std::vector<std::int64_t> choose(const Scores& flat, std::int64_t count) {
    if (setup_.options.greedy) return largest(flat, count);
    std::vector<std::int64_t> drawn = draw_distinct(flat, count, random_);
    std::stable_sort(drawn.begin(), drawn.end(), [&](auto a, auto b) { return flat[a] > flat[b]; });
    return drawn;
  }

  void close(Path path) {
    path.score /= penalty(static_cast<std::int64_t>(path.codes.size()));
    const auto place =
        std::find_if(closed_.begin(), closed_.end(), [&](const Path& p) { return p.score < path.score; });
    closed_.insert(place, std::move(path));
    if (closed_.size() > static_cast<std::size_t>(setup_.options.num_beams)) closed_.pop_back();
  }

  SearchSetup setup_;
  RandomStream random_;
  std::vector<Path> beams_;   // open
  std::vector<Path> closed_;  // best first, at most num_beams
  std::int64_t length_ = 0;
};

}  // namespace

std::unique_ptr<Search> make_search(const SearchSetup& setup) {
  if (setup.options.num_beams == 1) return std::make_unique<SinglePath>(setup);
  return std::make_unique<BeamSearch>(setup);
}

}  // namespace train_gpt_v2
