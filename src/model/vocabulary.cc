#include "train_gpt_v2/model/vocabulary.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <unordered_map>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/model/romanise.h"

namespace train_gpt_v2 {
namespace {

constexpr std::string_view kWordStart = "\xE2\x96\x81";  // SentencePiece's mark of a space, U+2581
constexpr double kInputNoise = 0.02;                     // share of the table's deviation

std::string upper(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

// The text of a piece: word starts become spaces.
std::string plain_text(std::string_view piece) {
  std::string text;
  for (std::size_t i = 0; i < piece.size();) {
    if (piece.substr(i, kWordStart.size()) == kWordStart) {
      text += ' ';
      i += kWordStart.size();
    } else {
      text += piece[i++];
    }
  }
  return text;
}

// The base rows whose mean starts the row of `piece`; empty where nothing is known about it.
std::vector<std::int64_t> source_rows(const Vocabulary& vocabulary, std::string_view piece, bool romanised) {
  if (!vocabulary.segment) return {};
  const std::string text = plain_text(piece);
  return vocabulary.segment(upper(romanised ? romanise(text) : text));
}

// The same for a new id, by the first way that knows any; counted in the report.
std::vector<std::int64_t> choose_rows(const Vocabulary& vocabulary, std::int64_t id, NewRows method,
                                      VocabularyReport& report) {
  std::vector<std::int64_t> rows;
  if (method != NewRows::kMeanNoise && id < static_cast<std::int64_t>(vocabulary.pieces.size())) {
    const std::string& piece = vocabulary.pieces[id];
    if (method == NewRows::kRomanisedMean) rows = source_rows(vocabulary, piece, true);
    if (!rows.empty()) {
      ++report.romanised;
      return rows;
    }
    rows = source_rows(vocabulary, piece, false);
  }
  ++(rows.empty() ? report.mean : report.subpiece);
  return rows;
}

struct Pair {
  at::Tensor base, model;
};

}  // namespace

NewRows parse_new_rows(std::string_view name) {
  if (name == "romanised_mean") return NewRows::kRomanisedMean;
  if (name == "subpiece_mean") return NewRows::kSubpieceMean;
  if (name == "mean_noise") return NewRows::kMeanNoise;
  TGV2_CHECK(name == "random");
  return NewRows::kRandom;
}

std::vector<std::int64_t> longest_match(std::string_view text, const std::vector<std::string>& pieces,
                                        std::int64_t base_pieces) {
  std::unordered_map<std::string_view, std::int64_t> known;
  std::size_t longest = 0;
  const auto count = std::min<std::int64_t>(base_pieces, static_cast<std::int64_t>(pieces.size()));
  for (std::int64_t id = 3; id < count; ++id) {  // 0..2 are control pieces
    known.emplace(pieces[id], id);
    longest = std::max(longest, pieces[id].size());
  }
  std::string marked;
  for (const char c : text) marked += c == ' ' ? std::string(kWordStart) : std::string(1, c);
  std::vector<std::int64_t> ids;
  for (std::size_t i = 0; i < marked.size();) {
    std::size_t length = std::min(longest, marked.size() - i);
    for (; length > 0; --length) {
      const auto found = known.find(std::string_view(marked).substr(i, length));
      if (found == known.end()) continue;
      ids.push_back(found->second);
      break;
    }
    i += std::max<std::size_t>(length, 1);
  }
  return ids;
}

VocabularyReport open_vocabulary(const VocabularyRows& base, const VocabularyRows& model, NewRows method,
                                 const Vocabulary& vocabulary, std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  VocabularyReport report;
  report.base_pieces = base.table.size(0) - 1;
  report.pieces = model.table.size(0) - 1;
  TGV2_CHECK(report.base_pieces > 0 && report.pieces > report.base_pieces);
  const std::array<Pair, 3> tensors{
      {{base.table, model.table}, {base.head_weight, model.head_weight}, {base.head_bias, model.head_bias}}};
  const std::int64_t kept = report.base_pieces + (method == NewRows::kRandom ? 1 : 0);
  for (const Pair& pair : tensors) pair.model.slice(0, 0, kept).copy_(pair.base.slice(0, 0, kept));
  if (method == NewRows::kRandom) {
    report.random = report.pieces - report.base_pieces - 1;
    return report;
  }
  report.spare_row_moved = true;
  for (const Pair& pair : tensors) pair.model.slice(0, report.pieces).copy_(pair.base.slice(0, report.base_pieces));

  std::array<at::Tensor, 3> mean;  // of all base rows, made once
  for (std::size_t k = 0; k < 3; ++k) mean[k] = tensors[k].base.slice(0, 0, report.base_pieces).to(at::kDouble).mean(0);
  const double deviation = base.table.slice(0, 0, report.base_pieces).to(at::kDouble).std().item<double>();
  at::Tensor noise = at::empty({report.pieces - report.base_pieces, base.table.size(1)}, at::kFloat);
  fill_normal(noise, kInputNoise * deviation, seed, "new_rows");

  for (std::int64_t id = report.base_pieces; id < report.pieces; ++id) {
    const std::vector<std::int64_t> rows = choose_rows(vocabulary, id, method, report);
    for (std::size_t k = 0; k < 3; ++k) {
      const at::Tensor value =
          rows.empty() ? mean[k] : at::index_select(tensors[k].base, 0, at::tensor(rows)).to(at::kDouble).mean(0);
      tensors[k].model[id].copy_(value);
    }
    model.table[id].add_(noise[id - report.base_pieces]);
  }
  return report;
}

}  // namespace train_gpt_v2
