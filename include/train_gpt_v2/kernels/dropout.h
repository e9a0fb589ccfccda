#pragma once
// Counter-based dropout: a keep decision is a pure function of (seed, step, micro-batch, site, row, column), so masks
// are never stored, backward makes them again, a resumed run repeats them, and every executor and device agrees on
// them.
//
// How a decision is made (Philox4x32 with 7 rounds, Salmon et al. 2011; one block of four words decides 8 columns):
//   key     = { seed & 0xffffffff, seed >> 32 }
//   counter = { micro << 16 | group, row, site, step }
//   group   = column / 128 * 16 + column % 32 / 2          (column < 2^19, micro < 2^16)
//   word    = output word number column % 128 / 32
//   keep    <=> 16-bit half number column % 2 of that word (0 = low half)  >=  threshold
//   threshold = round(p * 65536); a kept value is multiplied by exactly 1 / (1 - threshold / 65536), as float.
// row  = dropout_row(sample, position): the sample's index in its micro-batch and the position in its own sequence
//        (32 latents, 2 speed vectors, text, mel; 0 is the first latent). Padding and packing therefore agree.
// site = dropout_site_*() below. In attention the column is the key's position, the row is the query's.
// `micro` is the number of the micro-batch in the whole optimizer step (all ranks counted), `step` the optimizer step.
// Threads: pure functions. Errors: make_dropout throws std::invalid_argument unless 0 <= p < 1.

#include <cstdint>

namespace train_gpt_v2 {

struct DropoutKey {
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
  std::uint32_t micro = 0;
};

struct Dropout {
  DropoutKey key;
  std::uint32_t threshold = 0;  // of 65536; 0 = off
  float scale = 1;              // of kept values

  bool active() const { return threshold != 0; }
};

Dropout make_dropout(const DropoutKey& key, double probability);

constexpr std::uint32_t dropout_site_embedding() {
  return 0;
}
constexpr std::uint32_t dropout_site_attention_residual(std::uint32_t layer) {
  return 1 + 2 * layer;
}
constexpr std::uint32_t dropout_site_mlp_residual(std::uint32_t layer) {
  return 2 + 2 * layer;
}
constexpr std::uint32_t dropout_site_attention_probability(std::uint32_t layer, std::uint32_t head) {
  return 0x80000000u | layer << 12 | head;
}

// sample < 2^16, position < 2^16.
constexpr std::uint32_t dropout_row(std::uint32_t sample, std::uint32_t position) {
  return sample << 16 | position;
}

// Keep bits of the 128 columns from 128 * block on: bit c % 32 of bits[c / 32] is column c of the block. All ones when
// dropout is off.
void dropout_bits(const Dropout& dropout, std::uint32_t site, std::uint32_t row, std::uint32_t block,
                  std::uint32_t bits[4]);

// out[i, c] = dropout.scale where kept, else 0, for rows [count, columns]; rows[i] is a dropout_row().
void fill_dropout_scale(const Dropout& dropout, std::uint32_t site, const std::uint32_t* rows, std::int64_t count,
                        std::int64_t columns, float* out);

// The same for attention probabilities [queries, keys] of one sample and head; query i stands at position
// first_query + i, key column j at position j.
void fill_attention_dropout_scale(const Dropout& dropout, std::uint32_t layer, std::uint32_t head, std::uint32_t sample,
                                  std::int64_t first_query, std::int64_t queries, std::int64_t keys, float* out);

}  // namespace train_gpt_v2
