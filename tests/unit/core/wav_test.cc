#include "train_gpt_v2/core/wav.h"

#include <gtest/gtest.h>

#include <string>

#include "train_gpt_v2/core/png.h"

namespace train_gpt_v2 {
namespace {

std::string number(std::uint32_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}

// RIFF/WAVE by the specification: stereo, 16 bit, 8 kHz, a chunk of odd size before the sound.
std::string stereo(std::size_t frames) {
  const auto bytes = static_cast<std::uint32_t>(frames * 4);
  return "RIFF" + number(50 + bytes, 4) + "WAVE" + "fmt " + number(16, 4) + number(1, 2) + number(2, 2) +
         number(8000, 4) + number(32000, 4) + number(4, 2) + number(16, 2) + "note" + number(3, 4) + "abc" + '\0' +
         "data" + number(bytes, 4) + std::string(bytes, 'x');
}

TEST(Wav, SaysWhatTheHeaderSays) {
  const auto format = wav_format(stereo(100));
  ASSERT_TRUE(format);
  EXPECT_EQ(format->rate, 8000);
  EXPECT_EQ(format->channels, 2);
  EXPECT_EQ(format->frames, 100);
}

TEST(Wav, CountsWhatIsThereNotWhatIsClaimed) {
  const std::string whole = stereo(100);
  EXPECT_EQ(wav_format(whole.substr(0, whole.size() - 200))->frames, 50);
}

TEST(Wav, NoPrefixOfAFileIsReadBeyondItsEnd) {
  const std::string whole = stereo(3);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const auto format = wav_format(std::string_view(whole).substr(0, size));
    EXPECT_TRUE(!format || format->frames <= 3) << size;
  }
}

TEST(Wav, RefusesWhatIsNoSound) {
  EXPECT_FALSE(wav_format("RIFF____WAVEdata____"));
  std::string broken = stereo(3);
  broken.replace(22, 2, number(0, 2));  // no channels
  EXPECT_FALSE(wav_format(broken));
  broken = stereo(3);
  broken.replace(32, 2, number(0, 2));  // frames of no bytes
  EXPECT_FALSE(wav_format(broken));
  broken = stereo(3);
  broken.replace(16, 4, number(0xFFFFFFFF, 4));  // a chunk larger than the file
  EXPECT_FALSE(wav_format(broken));
}

TEST(PngSize, IsThatOfTheHeader) {
  const std::string png = encode_png({7, 5, 3, std::vector<std::uint8_t>(7 * 5 * 3)});
  EXPECT_EQ(png_size(png), (std::pair<std::uint32_t, std::uint32_t>{7, 5}));
  for (std::size_t size = 0; size < 24; ++size) EXPECT_FALSE(png_size(std::string_view(png).substr(0, size)));
  EXPECT_FALSE(png_size("GIF89a" + png.substr(6)));
}

}  // namespace
}  // namespace train_gpt_v2
