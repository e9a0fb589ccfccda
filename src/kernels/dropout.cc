#include "train_gpt_v2/kernels/dropout.h"

#include <cmath>
#include <stdexcept>

#include "isa/table.h"

namespace train_gpt_v2 {
namespace {

const KernelTable& table() {
  static const KernelTable& chosen = kernel_table(best_isa());
  return chosen;
}

}  // namespace

Dropout make_dropout(const DropoutKey& key, double probability) {
  if (!(probability >= 0 && probability < 1)) throw std::invalid_argument("dropout probability outside [0, 1)");
  Dropout dropout;
  dropout.key = key;
  const double threshold = std::nearbyint(probability * 65536);
  dropout.threshold = threshold > 65535 ? 65535u : static_cast<std::uint32_t>(threshold);
  dropout.scale = static_cast<float>(1 / (1 - dropout.threshold / 65536.0));
  return dropout;
}

void dropout_bits(const Dropout& dropout, std::uint32_t site, std::uint32_t row, std::uint32_t block,
                  std::uint32_t bits[4]) {
  if (dropout.active()) {
    table().keep_bits(dropout, site, row, block, bits);
  } else {
    bits[0] = bits[1] = bits[2] = bits[3] = ~0u;
  }
}

void fill_dropout_scale(const Dropout& dropout, std::uint32_t site, const std::uint32_t* rows, std::int64_t count,
                        std::int64_t columns, float* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    table().dropout_scale_row(dropout, site, rows[i], columns, out + i * columns);
  }
}

void fill_attention_dropout_scale(const Dropout& dropout, std::uint32_t layer, std::uint32_t head, std::uint32_t sample,
                                  std::int64_t first_query, std::int64_t queries, std::int64_t keys, float* out) {
  const std::uint32_t site = dropout_site_attention_probability(layer, head);
  for (std::int64_t i = 0; i < queries; ++i) {
    const std::uint32_t row = dropout_row(sample, static_cast<std::uint32_t>(first_query + i));
    table().dropout_scale_row(dropout, site, row, keys, out + i * keys);
  }
}

}  // namespace train_gpt_v2
