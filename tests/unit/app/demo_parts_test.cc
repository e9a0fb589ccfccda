// The parts of the demo corpus that need no installed package.
#include <array>
#include <cstring>
#include <functional>
#include <sstream>

#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <cmath>
#include <complex>
#include <nlohmann/json.hpp>
#include <numbers>
#include <set>

#include "support/test_files.h"
#include "train_gpt_v2/app/demo_codebook.h"
#include "train_gpt_v2/app/demo_dsp.h"
#include "train_gpt_v2/app/demo_features.h"
#include "train_gpt_v2/app/demo_files.h"
#include "train_gpt_v2/app/demo_process.h"
#include "train_gpt_v2/app/demo_speech.h"
#include "train_gpt_v2/app/demo_text.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/random.h"

namespace train_gpt_v2 {
namespace {

std::string code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.code();
  }
  return "none";
}

std::vector<float> noise(std::size_t count, std::uint64_t seed) {
  RandomStream stream(seed, 1);
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(stream.normal());
  return values;
}

// --- programs and threads

TEST(RunProgram, ExchangesMoreThanAPipeHolds) {
  ::signal(SIGPIPE, SIG_IGN);
  const std::string input(3'000'000, 'x');
  EXPECT_EQ(run_program({"cat"}, input, 4'000'000, "coreutils"), input);
}

TEST(RunProgram, PassesArgumentsUntouched) {
  EXPECT_EQ(run_program({"printf", "%s", "$(id); `id` | \"x\""}, "", 1000, "coreutils"), "$(id); `id` | \"x\"");
}

TEST(RunProgram, NamesThePackageOfAMissingProgram) {
  try {
    run_program({"no-such-program-here"}, "", 10, "some-package");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "DEM001");
    EXPECT_EQ(error.status(), ExitStatus::kMissingInput);
    EXPECT_NE(error.hint().find("apt-get install -y some-package"), std::string::npos);
  }
}

TEST(RunProgram, ReportsFailureAndTooMuchOutput) {
  EXPECT_EQ(code_of([] { run_program({"false"}, "", 10, "coreutils"); }), "DEM002");
  EXPECT_EQ(code_of([] { run_program({"yes"}, "", 100'000, "coreutils"); }), "DEM002");
}

TEST(ParallelFor, DoesEachPieceOnceAndPassesOnTheFailure) {
  std::vector<std::atomic<int>> done(1000);
  parallel_for(done.size(), 4, [&](std::size_t i) { ++done[i]; });
  for (const auto& times : done) EXPECT_EQ(times, 1);
  EXPECT_EQ(code_of([] {
              parallel_for(100, 3, [](std::size_t i) {
                if (i == 37) throw Error("DEM002", "thirty-seven");
              });
            }),
            "DEM002");
}

// --- text

TEST(DemoText, ReadsMessageCataloguesOfBothByteOrders) {
  // Two entries: "" -> header, "a" -> two plural forms.
  const auto catalogue = [](bool big) {
    std::string out;
    const auto word = [&](std::uint32_t x) {
      for (int i = 0; i < 4; ++i) out += static_cast<char>(x >> (big ? 24 - 8 * i : 8 * i));
    };
    word(0x950412DE), word(0), word(2), word(28), word(44), word(0), word(0);
    word(0), word(60), word(1), word(60);  // originals
    word(3), word(62), word(7), word(66);  // translations
    out += std::string("a\0", 2) + std::string("hdr\0", 4) + std::string("one\0two\0", 8);
    return out;
  };
  const std::vector<std::string> expected{"hdr", "one", "two"};
  EXPECT_EQ(parse_message_catalogue(catalogue(false), "x.mo"), expected);
  EXPECT_EQ(parse_message_catalogue(catalogue(true), "x.mo"), expected);

  const std::string whole = catalogue(false);
  for (std::size_t size = 0; size < whole.size() - 1; ++size) {
    EXPECT_EQ(code_of([&] { parse_message_catalogue(whole.substr(0, size), "x.mo"); }), "DEM002") << size;
  }
  std::string huge = whole;
  huge[8] = huge[9] = huge[10] = huge[11] = '\xFF';  // 4 billion entries
  EXPECT_EQ(code_of([&] { parse_message_catalogue(huge, "x.mo"); }), "DEM002");
  EXPECT_EQ(code_of([] { parse_message_catalogue(std::string(64, 'x'), "x.mo"); }), "DEM002");
}

TEST(DemoText, TakesPhrasesOutOfMessages) {
  using Phrases = std::vector<std::string>;
  EXPECT_EQ(phrases_of_message("በ መ_ደብ ውስጥ"), (Phrases{"በመደብ ውስጥ"}));
  EXPECT_EQ(phrases_of_message("የ ክለሳ ቁጥር: ቀን (የተወሰነ)"), (Phrases{"የክለሳ ቁጥር", "ቀን", "የተወሰነ"}));
  EXPECT_EQ(phrases_of_message("ZIP ፋይል መፍጠር። ሌላ ቃል"), (Phrases{"ሌላ ቃል"}));
  EXPECT_EQ(phrases_of_message("150 ቋንቋዎች"), Phrases{});
  EXPECT_EQ(phrases_of_message("ሀ"), Phrases{}) << "a single letter is no phrase";
  EXPECT_EQ(phrases_of_message("%PRODUCTNAME"), Phrases{});
  EXPECT_EQ(phrases_of_message("\xE1\x88"), Phrases{}) << "cut UTF-8";
}

TEST(DemoText, SentencesAreDifferentDeterministicAndPrefixStable) {
  AmharicText text;
  for (int i = 0; i < 60; ++i) {
    std::string word;
    for (int n = i; n >= 0; n -= 7) word += n % 2 ? "ሰላ" : "ቡና";
    text.phrases.push_back("ቤት " + word);
    text.words.push_back(word);
  }
  const std::vector<std::string> many = make_sentences(text, 500, 3), few = make_sentences(text, 40, 3);
  EXPECT_EQ(std::set<std::string>(many.begin(), many.end()).size(), many.size());
  EXPECT_TRUE(std::equal(few.begin(), few.end(), many.begin()));
  EXPECT_NE(make_sentences(text, 40, 4), few);
  for (const std::string& sentence : many) {
    EXPECT_TRUE(sentence.ends_with("።"));
    EXPECT_LE(std::count(sentence.begin(), sentence.end(), ' '), 6);
  }
}

TEST(DemoText, SaysWhatToInstall) {
  const testing::TemporaryFolder folder;
  EXPECT_EQ(code_of([&] { read_amharic_text(folder.file("none")); }), "DEM001");
  folder.write("x/empty.mo", std::string("\xDE\x12\x04\x95", 4) + std::string(24, '\0'));
  EXPECT_EQ(code_of([&] { read_amharic_text(folder.file("x")); }), "DEM001");
}

// --- sound files

TEST(DemoSpeech, WavRoundTrip) {
  std::vector<float> samples{0.0F, 0.5F, -0.5F, -1.0F, 32767.0F / 32768.0F};
  EXPECT_EQ(parse_wav(wav_bytes(samples, kDemoSampleRate), kDemoSampleRate), samples);
  samples = {2.0F, -2.0F};
  EXPECT_EQ(parse_wav(wav_bytes(samples, kDemoSampleRate), kDemoSampleRate),
            (std::vector<float>{32767.0F / 32768.0F, -1.0F}));
}

TEST(DemoSpeech, WritesAWavFile) {
  const testing::TemporaryFolder folder;
  const std::vector<float> samples{0.25F, -0.25F};
  write_wav(folder.file("x.wav"), samples, 16000);
  EXPECT_EQ(parse_wav(read_file(folder.file("x.wav"), 1000), 16000), samples);
}

TEST(DemoSpeech, RefusesOtherSound) {
  const std::vector<float> samples{0.1F, 0.2F};
  const std::string good = wav_bytes(samples, 16000);
  EXPECT_EQ(code_of([&] { parse_wav(good, kDemoSampleRate); }), "DEM002");
  for (std::size_t size = 0; size < 44; ++size) {
    EXPECT_EQ(code_of([&] { parse_wav(good.substr(0, size), 16000); }), size < 44 ? "DEM002" : "none") << size;
  }
  std::string piped = good;
  piped[40] = piped[41] = piped[42] = '\xFF';  // what a program writes that does not know the length yet
  piped[43] = '\x7F';
  EXPECT_EQ(parse_wav(piped, 16000).size(), 2u);
}

// --- spectra

TEST(DemoDsp, FftEqualsTheDefinition) {
  constexpr std::size_t kSize = 64;
  std::vector<float> real = noise(kSize, 1), imaginary = noise(kSize, 2);
  const std::vector<float> real_before = real, imaginary_before = imaginary;
  const Fft fft(kSize);
  fft.forward(real, imaginary);
  for (std::size_t k = 0; k < kSize; ++k) {
    std::complex<double> sum = 0;
    for (std::size_t n = 0; n < kSize; ++n) {
      sum += std::complex<double>(real_before[n], imaginary_before[n]) *
             std::polar(1.0, -2.0 * std::numbers::pi * static_cast<double>(k * n) / kSize);
    }
    EXPECT_NEAR(real[k], sum.real(), 2e-5);
    EXPECT_NEAR(imaginary[k], sum.imag(), 2e-5);
  }
  fft.inverse(real, imaginary);
  for (std::size_t n = 0; n < kSize; ++n) {
    EXPECT_NEAR(real[n], real_before[n], 2e-6);
    EXPECT_NEAR(imaginary[n], imaginary_before[n], 2e-6);
  }
}

TEST(DemoDsp, SpectraAndBackGiveTheSamples) {
  for (const std::size_t frames : {5u, 6u}) {  // a lone last frame and a full pair
    const std::vector<float> samples = noise(frames * kFrameHop, frames);
    const Spectra both = spectra(samples);
    ASSERT_EQ(both.frames, frames);
    const std::vector<float> back = samples_of(both);
    for (std::size_t i = 0; i < samples.size(); ++i) EXPECT_NEAR(back[i], samples[i], 1e-4) << i;
  }
}

TEST(DemoDsp, AToneLandsInItsBand) {
  std::vector<float> samples(20 * kFrameHop);
  for (std::size_t i = 0; i < samples.size(); ++i) {
    samples[i] = static_cast<float>(std::sin(2.0 * std::numbers::pi * 1000.0 * static_cast<double>(i) / 22050.0));
  }
  const std::vector<float> mel = log_mel(samples);
  ASSERT_EQ(mel.size(), 20 * kMelBands);
  const auto frame = mel.begin() + 10 * kMelBands;
  const auto loudest = std::max_element(frame, frame + kMelBands) - frame;
  // 1000 Hz = 999.99 mel of 2840.02 (8000 Hz) in 81 steps: band centres at (i + 1) * 35.062 mel, so i = 27.5 +- 0.5.
  EXPECT_TRUE(loudest == 27 || loudest == 28) << loudest;
}

TEST(DemoDsp, CepstraInvertUpToTheCoefficientsLeftOut) {
  // A frame that is smooth over bands has all its energy in the first coefficients.
  MelStatistics statistics;
  std::vector<float> mel(kMelBands);
  for (std::size_t band = 0; band < kMelBands; ++band) {
    statistics.mean[band] = -3.0F;
    statistics.deviation[band] = 2.0F;
    mel[band] = static_cast<float>(std::cos(std::numbers::pi * 3.0 * (static_cast<double>(band) + 0.5) / kMelBands));
  }
  const std::vector<float> back = log_mel_of_cepstra(cepstra(mel, statistics), statistics);
  // (x + 3) / 2 has a constant and one cosine: both among the first twenty.
  for (std::size_t band = 0; band < kMelBands; ++band) EXPECT_NEAR(back[band], mel[band], 1e-5);
}

// --- codes

TEST(DemoCodebook, FindsClearClustersWhateverTheThreads) {
  constexpr std::size_t kClusters = 12;
  RandomStream stream(5, 0);
  std::vector<float> centres, points;
  for (std::size_t i = 0; i < kClusters * kCepstra; ++i) centres.push_back(static_cast<float>(10 * stream.normal()));
  std::vector<std::size_t> truth;
  for (std::size_t i = 0; i < 9000; ++i) {  // more than two chunks
    truth.push_back(stream.below(kClusters));
    for (std::size_t d = 0; d < kCepstra; ++d) {
      points.push_back(centres[truth.back() * kCepstra + d] + static_cast<float>(0.1 * stream.normal()));
    }
  }
  const Codebook one = fit_codebook(points, kClusters, 1, 1), three = fit_codebook(points, kClusters, 1, 3);
  EXPECT_EQ(one.centroids, three.centroids);
  EXPECT_EQ(one.ids, three.ids);
  EXPECT_NE(fit_codebook(points, kClusters, 2, 1).ids, one.ids);

  EXPECT_EQ(std::set<std::int32_t>(one.ids.begin(), one.ids.end()).size(), kClusters);
  for (const std::int32_t id : one.ids) EXPECT_TRUE(id >= 0 && id < kCodeSpace);
  const std::vector<std::int32_t> codes = one.encode(points);
  std::set<std::pair<std::size_t, std::int32_t>> links;
  for (std::size_t i = 0; i < truth.size(); ++i) links.insert({truth[i], codes[i]});
  EXPECT_EQ(links.size(), kClusters) << "one code per cluster and one cluster per code";
  EXPECT_EQ(one.encode(one.decode(codes)), codes);
  const std::vector<std::int32_t> foreign{9000};
  EXPECT_EQ(code_of([&] { one.decode(foreign); }), "DEM003");
}

TEST(DemoFeatures, ShapesDeterminismAndSpeakers) {
  MelStatistics global;
  global.deviation.fill(2.0F);
  const ClipProjection projection(global, 24, 9), same(global, 24, 9), other(global, 24, 10);
  // Two "speakers" differ by a fixed tilt over bands; two clips of one differ by noise only.
  const auto clip = [](float tilt, std::uint64_t seed) {
    std::vector<float> mel = noise(50 * kMelBands, seed);
    for (std::size_t i = 0; i < mel.size(); ++i) mel[i] += tilt * static_cast<float>(i % kMelBands) / kMelBands;
    return mel;
  };
  const std::vector<float> a1 = clip(4, 1), a2 = clip(4, 2), b = clip(-4, 3);
  EXPECT_EQ(projection.frame_features(a1).size(), 50 * kFeatureSize);
  EXPECT_EQ(projection.condition(a1).size(), kConditionRows * 24);
  EXPECT_EQ(projection.emotion(a1).size(), 24u);
  EXPECT_EQ(projection.condition(a1), same.condition(a1));
  EXPECT_NE(projection.condition(a1), other.condition(a1));
  const auto distance = [](const std::vector<float>& x, const std::vector<float>& y) {
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
    return sum;
  };
  EXPECT_LT(4 * distance(projection.condition(a1), projection.condition(a2)),
            distance(projection.condition(a1), projection.condition(b)));
  EXPECT_LT(4 * distance(projection.emotion(a1), projection.emotion(a2)),
            distance(projection.emotion(a1), projection.emotion(b)));
  const std::vector<float> short_clip = noise(3 * kMelBands, 4);  // fewer frames than condition rows
  for (const float x : projection.condition(short_clip)) EXPECT_TRUE(std::isfinite(x));
}

// --- files

TEST(DemoFiles, NpyBytesEqualThoseOfNumpy) {
  // Written by numpy.save in the reference data.
  const std::string path = testing::data_path("fixtures/data/codes/spk000_000000.npy");
  const std::string reference = read_file(path, 1 << 20);
  std::vector<std::int32_t> codes((reference.size() - 128) / 4);
  std::memcpy(codes.data(), reference.data() + 128, codes.size() * 4);
  EXPECT_EQ(npy_bytes(codes), reference);

  const std::string condition = read_file(testing::data_path("fixtures/data/condition/spk000_000000.npy"), 1 << 20);
  std::vector<float> values((condition.size() - 128) / 4);
  std::memcpy(values.data(), condition.data() + 128, values.size() * 4);
  const std::array<std::size_t, 2> shape{32, 64};
  EXPECT_EQ(npy_bytes(NpyType::kFloat32, shape, values), condition);
}

TEST(DemoFiles, SplitsAsThePythonTool) {
  // The reference data was split with ratio 0.4.
  for (const bool validation : {false, true}) {
    const std::string name = validation ? "fixtures/data/val_manifest.jsonl" : "fixtures/data/train_manifest.jsonl";
    std::istringstream lines(read_file(testing::data_path(name), 1 << 20));
    int count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
      const std::string id = nlohmann::json::parse(line)["id"];
      EXPECT_EQ(is_validation_id(id, 0.4), validation) << id;
    }
    EXPECT_EQ(count, validation ? 8 : 12);
  }
}

TEST(DemoFiles, LinesEqualThoseOfThePythonTools) {
  const DemoClip target{"spk000_000001", "spk000", "ተማሪው መጽሐፉን በጥንቃቄ አነበበ።", 0.64, 8, 32};
  const DemoClip prompt{"spk000_000000", "spk000", "ደስታ እና ሐዘን አብረው ይኖራሉ። ስምህ ማን ነው፧", 0.98, 17, 49};
  const auto first_lines = [](const char* name, int skip) {
    std::istringstream lines(read_file(testing::data_path(std::string("fixtures/data/") + name), 1 << 20));
    std::string line;
    for (int i = 0; i <= skip; ++i) std::getline(lines, line);
    return line + "\n";
  };
  EXPECT_EQ(source_line(prompt), first_lines("source.jsonl", 0));
  EXPECT_EQ(manifest_line(prompt), first_lines("train_manifest.jsonl", 0));
  EXPECT_EQ(manifest_line(target), first_lines("train_manifest.jsonl", 1));
  EXPECT_EQ(pair_line(target, prompt, false), first_lines("train_pairs.jsonl", 0));
  const auto online = nlohmann::json::parse(pair_line(target, prompt, true));
  EXPECT_EQ(online["prompt_features_path"], "features/spk000_000000.npy");
}

TEST(DemoFiles, PairsFollowThePairBuildersRules) {
  std::vector<DemoClip> clips;
  for (int i = 0; i < 14; ++i)
    clips.push_back({"c" + std::to_string(i), i < 8 ? "b" : i < 13 ? "a" : "lonely", "", 1, 1, 1});
  const std::vector<DemoPair> pairs = make_pairs(clips, 3, {}, 1);
  ASSERT_EQ(pairs.size(), 13u * 3);
  EXPECT_EQ(clips[pairs.front().target].speaker, "a") << "grouped by speaker in order of name";
  std::set<std::pair<std::size_t, std::size_t>> unique;
  for (const DemoPair& pair : pairs) {
    EXPECT_NE(pair.target, pair.prompt);
    EXPECT_EQ(clips[pair.target].speaker, clips[pair.prompt].speaker);
    unique.insert({pair.target, pair.prompt});
  }
  EXPECT_EQ(unique.size(), pairs.size());
  EXPECT_EQ(make_pairs(clips, 100, {}, 1).size(), 8u * 7 + 5u * 4) << "never more prompts than others";
  std::vector<bool> only_two(clips.size());
  only_two[0] = only_two[1] = true;
  for (const DemoPair& pair : make_pairs(clips, 3, only_two, 1)) EXPECT_LE(pair.prompt, 1u);
}

}  // namespace
}  // namespace train_gpt_v2
