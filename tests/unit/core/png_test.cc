#include "train_gpt_v2/core/png.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <cmath>
#include <cstring>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

std::uint32_t be32(const std::string& bytes, std::size_t at) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<std::uint8_t>(bytes.at(at + i));
  return value;
}

// A second reading of RFC 2083: chunks with their checksums, one inflate, filter types 0 to 2.
Image decode_png(const std::string& bytes) {
  EXPECT_EQ(bytes.substr(0, 8), "\x89PNG\r\n\x1a\n");
  Image image;
  std::string packed;
  bool ended = false;
  for (std::size_t at = 8; at < bytes.size();) {
    const std::uint32_t size = be32(bytes, at);
    const std::string type = bytes.substr(at + 4, 4), data = bytes.substr(at + 8, size);
    const auto crc = ::crc32(0, reinterpret_cast<const Bytef*>(bytes.data() + at + 4), size + 4);
    EXPECT_EQ(be32(bytes, at + 8 + size), crc) << type;
    if (type == "IHDR") {
      EXPECT_EQ(size, 13u);
      image.width = be32(data, 0);
      image.height = be32(data, 4);
      EXPECT_EQ(data[8], 8);
      image.channels = data[9] == 2 ? 3 : 1;
    } else if (type == "IDAT") {
      packed += data;
    } else if (type == "IEND") {
      ended = true;
    }
    at += 12 + size;
  }
  EXPECT_TRUE(ended);
  const std::size_t stride = std::size_t{image.width} * image.channels;
  std::string rows((stride + 1) * image.height, '\0');
  uLongf size = rows.size();
  EXPECT_EQ(::uncompress(reinterpret_cast<Bytef*>(rows.data()), &size, reinterpret_cast<const Bytef*>(packed.data()),
                         packed.size()),
            Z_OK);
  EXPECT_EQ(size, rows.size());
  image.pixels.resize(stride * image.height);
  for (std::size_t y = 0; y < image.height; ++y) {
    const int filter = rows[y * (stride + 1)];
    for (std::size_t x = 0; x < stride; ++x) {
      const auto raw = static_cast<std::uint8_t>(rows[y * (stride + 1) + 1 + x]);
      const std::uint8_t left = x >= image.channels ? image.pixels[y * stride + x - image.channels] : 0;
      const std::uint8_t above = y > 0 ? image.pixels[(y - 1) * stride + x] : 0;
      EXPECT_LE(filter, 2);
      image.pixels[y * stride + x] = static_cast<std::uint8_t>(raw + (filter == 1 ? left : filter == 2 ? above : 0));
    }
  }
  return image;
}

TEST(Png, PixelsComeBackInGreyAndColour) {
  for (const std::uint32_t channels : {1u, 3u}) {
    Image image{7, 5, channels, {}};
    for (std::uint32_t i = 0; i < 7 * 5 * channels; ++i) image.pixels.push_back(static_cast<std::uint8_t>(i * 37 + 11));
    const Image back = decode_png(encode_png(image));
    EXPECT_EQ(back.width, 7u);
    EXPECT_EQ(back.height, 5u);
    EXPECT_EQ(back.channels, channels);
    EXPECT_EQ(back.pixels, image.pixels);
  }
}

TEST(Png, RefusesSizesThatDoNotMatch) {
  EXPECT_THROW(encode_png({2, 2, 3, std::vector<std::uint8_t>(11)}), Error);
  EXPECT_THROW(encode_png({0, 2, 3, {}}), Error);
  EXPECT_THROW(encode_png({2, 2, 4, std::vector<std::uint8_t>(16)}), Error);
  EXPECT_THROW(encode_png({0x80000000u, 0x80000000u, 1, {}}), Error);
  EXPECT_THROW(heat_map(std::vector<float>(5), 2, 3), Error);
}

TEST(Png, HeatColoursRiseInBrightness) {
  double before = -1;
  for (int i = 0; i <= 100; ++i) {
    const auto colour = heat_colour(i / 100.0);
    const double brightness = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2];
    EXPECT_GT(brightness, before) << i;
    before = brightness;
  }
  // matplotlib's viridis ends: #440154 and #fde725; the fit is within 4 levels.
  EXPECT_NEAR(heat_colour(0)[0], 0x44, 4);
  EXPECT_NEAR(heat_colour(0)[2], 0x54, 4);
  EXPECT_NEAR(heat_colour(1)[0], 0xfd, 4);
  EXPECT_NEAR(heat_colour(1)[1], 0xe7, 4);
  EXPECT_EQ(heat_colour(-3), heat_colour(0));
  EXPECT_EQ(heat_colour(INFINITY), heat_colour(1));
  EXPECT_EQ(heat_colour(NAN)[0], 128);
}

std::array<std::uint8_t, 3> pixel(const Image& image, std::size_t x, std::size_t y) {
  std::array<std::uint8_t, 3> colour;
  std::memcpy(colour.data(), image.pixels.data() + (y * image.width + x) * 3, 3);
  return colour;
}

TEST(Png, HeatMapPutsTheFirstRowAtTheBottom) {
  const std::vector<float> values{0, 0.5f, 1, 0.25f, NAN, 0.75f};  // two rows of three
  const Image image = heat_map(values, 2, 3, {.cell = 4});
  ASSERT_EQ(image.width, 12u);
  ASSERT_EQ(image.height, 8u);
  EXPECT_EQ(pixel(image, 0, 7), heat_colour(0));
  EXPECT_EQ(pixel(image, 11, 4), heat_colour(1));
  EXPECT_EQ(pixel(image, 3, 0), heat_colour(0.25));
  EXPECT_EQ(pixel(image, 5, 2), heat_colour(NAN));
  EXPECT_EQ(pixel(heat_map(values, 2, 3, {.cell = 1, .first_row_at_top = true}), 0, 0), heat_colour(0));
  EXPECT_EQ(pixel(heat_map(values, 2, 3, {.cell = 1, .low = 0, .high = 2}), 2, 1), heat_colour(0.5));
}

TEST(Png, HeatMapsOfExtremeShapesStayBounded) {
  std::vector<float> values(2 * 20000, 0.0f);
  values[12345] = 1;  // one bright cell among merged ones stays visible
  const Image image = heat_map(values, 2, 20000);
  EXPECT_LE(image.width, 2048u);
  EXPECT_EQ(image.height, 2u);
  EXPECT_EQ(pixel(image, 12345 / 10, 1), heat_colour(1));
  const Image flat = heat_map(std::vector<float>(6, 3.0f), 2, 3);
  EXPECT_EQ(pixel(flat, 0, 0), heat_colour(0));
  const Image nothing = heat_map(std::vector<float>(6, NAN), 2, 3);
  EXPECT_EQ(pixel(nothing, 0, 0), heat_colour(NAN));
}

}  // namespace
}  // namespace train_gpt_v2
