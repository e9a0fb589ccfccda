#include "train_gpt_v2/core/png.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint32_t kMaxSide = 1u << 16;
constexpr std::size_t kMaxHeatMapSide = 2048;

void append_be32(std::string& out, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xFF);
}

void append_chunk(std::string& out, const char (&type)[5], const std::string& data) {
  append_be32(out, static_cast<std::uint32_t>(data.size()));
  const std::size_t begin = out.size();
  out.append(type, 4);
  out += data;
  const auto crc =
      ::crc32(0, reinterpret_cast<const Bytef*>(out.data() + begin), static_cast<uInt>(out.size() - begin));
  append_be32(out, static_cast<std::uint32_t>(crc));
}

// Every row with filter type 1 (difference to the pixel on the left): heat maps have long even runs.
std::string filtered_rows(const Image& image) {
  const std::size_t stride = std::size_t{image.width} * image.channels;
  std::string rows;
  rows.reserve((stride + 1) * image.height);
  for (std::size_t y = 0; y < image.height; ++y) {
    const std::uint8_t* row = image.pixels.data() + y * stride;
    rows += '\1';
    for (std::size_t x = 0; x < stride; ++x) {
      const std::uint8_t left = x >= image.channels ? row[x - image.channels] : 0;
      rows += static_cast<char>(row[x] - left);
    }
  }
  return rows;
}

}  // namespace

std::string encode_png(const Image& image) {
  TGV2_CHECK(image.channels == 1 || image.channels == 3);
  TGV2_CHECK(image.width > 0 && image.height > 0 && image.width <= kMaxSide && image.height <= kMaxSide);
  TGV2_CHECK(image.pixels.size() == std::uint64_t{image.width} * image.height * image.channels);

  const std::string rows = filtered_rows(image);
  uLongf size = ::compressBound(static_cast<uLong>(rows.size()));
  std::string packed(size, '\0');
  const int status = ::compress2(reinterpret_cast<Bytef*>(packed.data()), &size,
                                 reinterpret_cast<const Bytef*>(rows.data()), static_cast<uLong>(rows.size()), 6);
  TGV2_CHECK(status == Z_OK && size <= UINT32_MAX);
  packed.resize(size);

  std::string header;
  append_be32(header, image.width);
  append_be32(header, image.height);
  header += '\x08';                                 // bits per channel
  header += image.channels == 1 ? '\x00' : '\x02';  // grey or RGB
  header.append(3, '\0');                           // deflate, adaptive filters, not interlaced

  std::string out = "\x89PNG\r\n\x1a\n";
  append_chunk(out, "IHDR", header);
  append_chunk(out, "IDAT", packed);
  append_chunk(out, "IEND", "");
  return out;
}

std::optional<std::pair<std::uint32_t, std::uint32_t>> png_size(std::string_view png) {
  if (png.size() < 24 || png.substr(0, 8) != "\x89PNG\r\n\x1a\n" || png.substr(12, 4) != "IHDR") return std::nullopt;
  const auto number = [&png](std::size_t at) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(png[at + i]);
    return value;
  };
  return std::pair{number(16), number(20)};
}

std::array<std::uint8_t, 3> heat_colour(double value) {
  if (std::isnan(value)) return {128, 128, 128};
  // Sixth-degree fit to matplotlib's viridis (M. Zucker, shadertoy.com/view/WlfXRN, CC0).
  static constexpr double kFit[7][3] = {
      {0.2777273272234177, 0.005407344544966578, 0.3340998053353061},
      {0.1050930431085774, 1.404613529898575, 1.384590162594685},
      {-0.3308618287255563, 0.214847559468213, 0.09509516302823659},
      {-4.634230498983486, -5.799100973351585, -19.33244095627987},
      {6.228269936347081, 14.17993336680509, 56.69055260068105},
      {4.776384997670288, -13.74514537774601, -65.35303263337234},
      {-5.435455855934631, 4.645852612178535, 26.3124352495832},
  };
  const double t = std::clamp(value, 0.0, 1.0);
  std::array<std::uint8_t, 3> colour{};
  for (int channel = 0; channel < 3; ++channel) {
    double sum = 0;
    for (int power = 6; power >= 0; --power) sum = sum * t + kFit[power][channel];
    colour[static_cast<std::size_t>(channel)] = static_cast<std::uint8_t>(std::lround(std::clamp(sum, 0.0, 1.0) * 255));
  }
  return colour;
}

Image heat_map(std::span<const float> values, std::size_t rows, std::size_t columns, const HeatMapOptions& options) {
  TGV2_CHECK(rows > 0 && columns > 0 && values.size() / columns == rows && values.size() % columns == 0);
  float low = options.low, high = options.high;
  if (!(low < high)) {
    low = INFINITY, high = -INFINITY;
    for (const float value : values) {
      if (!std::isfinite(value)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  // An all-equal or all-NaN map has no range: everything is the darkest colour or the grey.
  const double scale = low < high ? 1.0 / (static_cast<double>(high) - low) : 0;

  const std::size_t fitting = std::max<std::size_t>(1, kMaxHeatMapSide / std::max(rows, columns));
  const std::size_t cell = std::clamp<std::size_t>(options.cell, 1, fitting);
  const std::size_t row_step = (rows + kMaxHeatMapSide - 1) / kMaxHeatMapSide;
  const std::size_t column_step = (columns + kMaxHeatMapSide - 1) / kMaxHeatMapSide;
  const std::size_t shown_rows = (rows + row_step - 1) / row_step;
  const std::size_t shown_columns = (columns + column_step - 1) / column_step;

  Image image;
  image.width = static_cast<std::uint32_t>(shown_columns * cell);
  image.height = static_cast<std::uint32_t>(shown_rows * cell);
  image.pixels.resize(std::size_t{image.width} * image.height * 3);
  for (std::size_t r = 0; r < shown_rows; ++r) {
    const std::size_t y = options.first_row_at_top ? r : shown_rows - 1 - r;
    for (std::size_t c = 0; c < shown_columns; ++c) {
      float value = NAN;
      for (std::size_t i = r * row_step; i < std::min(rows, (r + 1) * row_step); ++i) {
        for (std::size_t j = c * column_step; j < std::min(columns, (c + 1) * column_step); ++j) {
          value = std::fmax(value, values[i * columns + j]);  // fmax ignores not-a-number
        }
      }
      const auto colour = heat_colour((static_cast<double>(value) - low) * scale);
      for (std::size_t dy = 0; dy < cell; ++dy) {
        std::uint8_t* pixel = image.pixels.data() + ((y * cell + dy) * image.width + c * cell) * 3;
        for (std::size_t dx = 0; dx < cell; ++dx, pixel += 3) std::copy(colour.begin(), colour.end(), pixel);
      }
    }
  }
  return image;
}

}  // namespace train_gpt_v2
