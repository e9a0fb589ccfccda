#pragma once
// PNG pictures from memory (RFC 2083, zlib only) and heat maps for alignments.
//
// Pixels are rows from the top, 8 bits per channel, 1 channel (grey) or 3 (red, green, blue), without padding.
// Throws Error INT001 for sizes that do not match the pixels: the callers make their pictures themselves.
// All functions are pure and may run on any thread.

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace train_gpt_v2 {

struct Image {
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  std::uint32_t channels = 3;
  std::vector<std::uint8_t> pixels;  // width * height * channels
};

// The bytes of a .png file.
std::string encode_png(const Image& image);

// {width, height} of a .png file's header; nothing where it is none.
std::optional<std::pair<std::uint32_t, std::uint32_t>> png_size(std::string_view png);

// viridis for a value in [0, 1] (clamped): brightness rises evenly, also in grey and for colour-blind eyes.
// Not-a-number is a grey that the map does not contain.
std::array<std::uint8_t, 3> heat_colour(double value);

struct HeatMapOptions {
  std::uint32_t cell = 4;         // pixels per value, both directions
  bool first_row_at_top = false;  // alignments read upwards: text position 0 is the lowest row
  // The values shown darkest and brightest; equal ones mean the range that the finite values span.
  float low = 0, high = 0;
};

// `values` is [rows, columns]; every value becomes a cell. At most 2048 pixels a side: cells shrink before rows are
// merged (a merged pixel shows the largest value beneath it, so that a sharp path stays visible).
Image heat_map(std::span<const float> values, std::size_t rows, std::size_t columns,
               const HeatMapOptions& options = {});

}  // namespace train_gpt_v2
