#include "train_gpt_v2/data/packed_set.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "../../../src/data/packed_format.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/data/packer.h"
#include "train_gpt_v2/data/sampler.h"
#include "unit/data/data_test_support.h"

namespace train_gpt_v2 {
namespace {

using ::testing::AllOf;
using testing::array_of;
using testing::data_path;
using ::testing::ElementsAre;
using testing::fixture_model;
using ::testing::HasSubstr;
using testing::PairLengths;
using testing::TemporaryFolder;
using testing::tiny_model;
using testing::write_array;

PackReport pack(const std::vector<std::string>& manifests, const std::string& output,
                const std::function<void(PackRequest&)>& change = {}) {
  PackRequest request;
  request.manifests = manifests;
  request.output = output;
  if (change) change(request);
  return pack_manifests(request);
}

std::string report_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_NE(error.status(), ExitStatus::kInternal) << error.report();
    return error.report();
  }
  return "";
}

void expect_same_data(const Dataset& a, const Dataset& b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(a.records(), b.records());
  EXPECT_EQ(a.speakers(), b.speakers());
  EXPECT_EQ(a.languages(), b.languages());
  Batch one, two;
  for (std::uint32_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a.id(i), b.id(i));
    EXPECT_EQ(a.info(i).text_length, b.info(i).text_length);
    EXPECT_EQ(a.info(i).code_length, b.info(i).code_length);
    EXPECT_EQ(a.info(i).speaker, b.info(i).speaker);
    EXPECT_EQ(a.info(i).language, b.info(i).language);
    EXPECT_EQ(a.info(i).manifest, b.info(i).manifest);
    a.load(i, one);
    b.load(i, two);
  }
  EXPECT_EQ(one.text, two.text);
  EXPECT_EQ(one.codes, two.codes);
  EXPECT_EQ(one.condition, two.condition);
  EXPECT_EQ(one.emo_vec, two.emo_vec);
  EXPECT_EQ(one.features, two.features);
  EXPECT_EQ(one.frame_begin, two.frame_begin);
  EXPECT_EQ(one.emo_features, two.emo_features);
  PlanSettings plan;
  plan.batch_size = 3;
  for (std::size_t g = 1; g < a.groups().size(); ++g) plan.replay_shares.push_back(a.groups()[g].share);
  EXPECT_EQ(Sampler(a, plan).plan(1).hash(), Sampler(b, plan).plan(1).hash());
}

const std::string kTrain = data_path("fixtures/data/train_pairs.jsonl");
const std::string kVal = data_path("fixtures/data/val_pairs.jsonl");

TEST(PackedSet, StandsForItsManifests) {
  const TemporaryFolder folder;
  const PackReport report = pack({kTrain + "::am", kVal}, folder.file("set"));
  EXPECT_EQ(report.pairs, 32u);
  EXPECT_LT(report.arrays, report.named) << "conditions and codes are shared between pairs";
  const Dataset manifests({kTrain + "::am", kVal}, {}, {}, fixture_model());
  const Dataset packed({folder.file("set")}, {}, {}, fixture_model());
  expect_same_data(manifests, packed);
  EXPECT_EQ(manifests.fingerprint(), packed.fingerprint());
  EXPECT_EQ(packed.find(manifests.id(7)), 7u);
  EXPECT_EQ(packed.place(1), folder.file("set/manifest_0.jsonl:2"));
  PackedSet::open(folder.file("set"))->verify();
  EXPECT_EQ(PackedSet::open(folder.file("set"))->bytes(), report.bytes);
}

TEST(PackedSet, StandsBesideManifestsAndInReplay) {
  const TemporaryFolder folder;
  pack({kVal}, folder.file("val"));
  const Dataset manifests({kTrain}, {{kVal, 0.25}}, {}, fixture_model());
  const Dataset packed({kTrain}, {{folder.file("val"), 0.25}}, {}, fixture_model());
  expect_same_data(manifests, packed);
  EXPECT_EQ(manifests.fingerprint(), packed.fingerprint());
  EXPECT_EQ(packed.groups().size(), 2u);
}

TEST(PackedSet, CanBePackedAgain) {
  const TemporaryFolder folder;
  pack({kTrain + "::am"}, folder.file("one"));
  pack({folder.file("one"), kVal}, folder.file("two"));
  expect_same_data(Dataset({kTrain + "::am", kVal}, {}, {}, fixture_model()),
                   Dataset({folder.file("two")}, {}, {}, fixture_model()));
}

TEST(PackedSet, FilesOfArraysRollOver) {
  const TemporaryFolder folder;
  pack({kTrain}, folder.file("set"), [](PackRequest& request) { request.file_bytes = 10'000; });
  EXPECT_TRUE(file_exists(folder.file("set/arrays_3.bin")));
  expect_same_data(Dataset({kTrain}, {}, {}, fixture_model()), Dataset({folder.file("set")}, {}, {}, fixture_model()));
  PackedSet::open(folder.file("set"))->verify();
}

// Two records state nothing, one states French; its text is Amharic.
std::string three_languages(const TemporaryFolder& folder) {
  testing::write_arrays(folder, {{3, 4}, {3, 4}, {3, 4}});
  std::string text;
  for (int i = 0; i < 3; ++i) {
    std::string line = testing::pair_line(concat("u", i), {3, 4});
    line.replace(line.find("\"target_text\": \"x\""), 18, "\"target_text\": \"ሰላም\"");
    if (i == 1) line.insert(1, R"("language": "fr", )");
    text += line;
  }
  return folder.write("pairs.jsonl", text);
}

TEST(PackedSet, LanguagesFollowTheSameOrderOfPrecedence) {
  const TemporaryFolder folder;
  const std::string plain = three_languages(folder);
  pack({plain}, folder.file("plain"));
  pack({plain + "::de"}, folder.file("suffix"));
  for (const char* default_language : {"", "en"}) {
    DataOptions data;
    data.language = default_language;
    const auto languages = [&](const std::string& spec) {
      const Dataset dataset({spec}, {}, data, tiny_model());
      std::vector<std::string> all;
      for (std::uint32_t i = 0; i < 3; ++i) all.push_back(dataset.languages()[dataset.info(i).language]);
      return all;
    };
    EXPECT_EQ(languages(plain), languages(folder.file("plain")));
    EXPECT_EQ(languages(plain + "::de"), languages(folder.file("suffix")));
    EXPECT_EQ(languages(plain + "::it"), languages(folder.file("plain::it")));
    EXPECT_EQ(languages(plain + "::it"), languages(folder.file("suffix::it")));
    EXPECT_THAT(languages(folder.file("plain")),
                ElementsAre(*default_language ? "en" : "am", "fr", *default_language ? "en" : "am"));
  }
}

TEST(PackedSet, TextIsTokenisedAsFromAManifest) {
  const auto tokenizer = std::make_shared<const Tokenizer>(data_path("fixtures/tokenizer/extended.model"));
  const TemporaryFolder folder;
  std::string manifest = read_file(kTrain, 1 << 20);
  for (std::size_t at = 0; (at = manifest.find("\"target_text_ids_path\"", at)) != std::string::npos;) {
    manifest.replace(at, 22, "\"not_any_more\"");
  }
  for (const char* name : {"condition", "emo_vec", "codes"}) {
    std::filesystem::copy(data_path(concat("fixtures/data/", name)), folder.file(name),
                          std::filesystem::copy_options::recursive);
  }
  const std::string path = folder.write("text.jsonl", manifest);
  pack({path + "::am"}, folder.file("set"));
  const Dataset texts({path + "::am"}, {}, {}, fixture_model(), tokenizer);
  const Dataset packed({folder.file("set")}, {}, {}, fixture_model(), tokenizer);
  expect_same_data(texts, packed);
  EXPECT_EQ(texts.fingerprint(), packed.fingerprint());
  EXPECT_THAT(report_of([&] { Dataset({folder.file("set")}, {}, {}, fixture_model()); }),
              AllOf(HasSubstr("DAT001"), HasSubstr("text ids"), HasSubstr("data.tokenizer")));
}

TEST(PackedSet, OnlineConditioning) {
  const TemporaryFolder folder;
  std::filesystem::copy(data_path("fixtures/data/features"), folder.file("features"),
                        std::filesystem::copy_options::recursive);
  for (const char* name : {"condition", "emo_vec", "codes", "text_ids"}) {
    std::filesystem::copy(data_path(concat("fixtures/data/", name)), folder.file(name),
                          std::filesystem::copy_options::recursive);
  }
  const auto record = [](const std::string& id, const std::string& more) {
    return concat(
        R"({"id": ")", id, R"(", "prompt_features_path": "features/spk000_000000.npy", )", more,
        R"("target_text_ids_path": "text_ids/spk000_000001.npy", "target_codes_path": "codes/spk000_000001.npy"})",
        "\n");
  };
  const std::string both = folder.write(
      "both.jsonl",
      record(
          "a",
          R"("prompt_condition_path": "condition/spk000_000000.npy", "prompt_emo_vec_path": "emo_vec/spk000_000000.npy", )") +
          record("b", R"("emo_features_path": "features/spk001_000000.npy", )"));
  ModelOptions online = fixture_model();
  online.conditioning = "online";
  pack({both}, folder.file("all"), [](PackRequest& request) { request.conditioning = "both"; });
  pack({both}, folder.file("online"), [](PackRequest& request) { request.conditioning = "online"; });
  pack({both}, folder.file("auto"));
  const Dataset manifest({both}, {}, {}, online);
  expect_same_data(manifest, Dataset({folder.file("all")}, {}, {}, online));
  expect_same_data(manifest, Dataset({folder.file("online")}, {}, {}, online));
  EXPECT_THAT(report_of([&] { Dataset({folder.file("auto")}, {}, {}, online); }),
              AllOf(HasSubstr("manifest_0.jsonl:1"), HasSubstr("no features"), HasSubstr("--conditioning online")));
  EXPECT_THAT(report_of([&] { Dataset({folder.file("online")}, {}, {}, fixture_model()); }),
              AllOf(HasSubstr("no condition"), HasSubstr("1 more records")));
  DataOptions skip;
  skip.on_bad_sample = "skip";
  skip.max_bad_fraction = 1;
  const Dataset left({folder.file("all")}, {}, skip, fixture_model());
  EXPECT_EQ(left.size(), 1u) << "the second record has no condition";
  EXPECT_EQ(left.bad_at_open(), 1u);
}

TEST(PackedSet, EqualArraysAreStoredOnce) {
  const TemporaryFolder folder;
  testing::write_arrays(folder, {{3, 4}, {3, 4}});
  write_array(folder.file("other.npy"), array_of<float>(DType::kFloat32, {4, 3}, std::vector<float>(12, 0.5F)));
  std::string second = testing::pair_line("u1", {3, 4});
  second.replace(second.find("condition.npy"), 13, "other.npy");
  const std::string manifest = folder.write("pairs.jsonl", testing::pair_line("u0", {3, 4}) + second);
  const PackReport report = pack({manifest}, folder.file("set"));
  EXPECT_EQ(report.named, 8u);
  EXPECT_EQ(report.arrays, 6u) << "one condition, one emotion vector, two texts, two lists of codes";
}

TEST(PackedSet, NarrowTypesRoundToNearestEvenAndSaySo) {
  const TemporaryFolder folder;
  testing::write_arrays(folder, {{3, 4}});
  // fp16 has 11 significant bits, bf16 8: exact, tie to even down, tie up, subnormal half, largest half.
  const std::vector<float> values{1.F,        1.F + 0x1p-11F, 1.F + 3 * 0x1p-11F, 0x1p-25F * 3,
                                  -65504.F,   1.F + 0x1p-8F,  1.F + 3 * 0x1p-8F,  -0.F,
                                  0x1.8p-24F, 0.1F,           -0x1p-24F,          2.F};
  write_array(folder.file("condition.npy"), array_of(DType::kFloat32, {4, 3}, values));
  const std::string manifest = testing::write_manifest(folder, "pairs.jsonl", {{3, 4}});
  const auto condition = [&](const std::string& dtype) {
    pack({manifest}, folder.file(dtype), [&](PackRequest& request) { request.dtype = dtype; });
    Batch batch;
    Dataset({folder.file(dtype)}, {}, {}, tiny_model()).load(0, batch);
    return batch.condition;
  };
  EXPECT_EQ(condition("fp32"), values);
  EXPECT_THAT(condition("fp16"), ElementsAre(1.F, 1.F, 1.F + 0x1p-9F, 0x1p-23F, -65504.F, 1.F + 0x1p-8F,
                                             1.F + 3 * 0x1p-8F, -0.F, 0x1p-23F, 0x1.998p-4F, -0x1p-24F, 2.F));
  EXPECT_THAT(condition("bf16"), ElementsAre(1.F, 1.F, 1.F, 0x1.8p-24F, -65536.F, 1.F, 1.F + 0x1p-6F, -0.F, 0x1.8p-24F,
                                             0x1.9ap-4F, -0x1p-24F, 2.F));
  const std::string exact = Dataset({manifest}, {}, {}, tiny_model()).fingerprint();
  EXPECT_EQ(Dataset({folder.file("fp32")}, {}, {}, tiny_model()).fingerprint(), exact);
  EXPECT_NE(Dataset({folder.file("fp16")}, {}, {}, tiny_model()).fingerprint(), exact);
  EXPECT_NE(Dataset({folder.file("bf16")}, {}, {}, tiny_model()).fingerprint(),
            Dataset({folder.file("fp16")}, {}, {}, tiny_model()).fingerprint());
  write_array(folder.file("condition.npy"), array_of<float>(DType::kFloat32, {4, 3}, std::vector<float>(12, 65520.F)));
  EXPECT_THAT(
      report_of([&] { pack({manifest}, folder.file("x"), [](PackRequest& request) { request.dtype = "fp16"; }); }),
      AllOf(HasSubstr("DAT007"), HasSubstr("65520"), HasSubstr("condition.npy")));
  // Nothing is rounded: the same data.
  write_array(folder.file("condition.npy"), array_of<float>(DType::kFloat32, {4, 3}, std::vector<float>(12, 0.5F)));
  EXPECT_EQ(pack({manifest}, folder.file("y"), [](PackRequest& request) { request.dtype = "fp16"; }).rounded_to, "");
}

// --- what cannot be packed
// ----------------------------------------------------------------------------------------------

TEST(Packer, RefusesWhatCannotBeUsedAndLeavesNoSet) {
  const TemporaryFolder folder;
  testing::write_arrays(folder, {{3, 4}, {3, 4}});
  const std::string manifest = testing::write_manifest(folder, "pairs.jsonl", {{3, 4}, {3, 4}});
  const auto report = [&] { return report_of([&] { pack({manifest}, folder.file("set")); }); };
  const std::string codes = folder.file("codes_u1.npy");
  write_array(codes, array_of<std::int32_t>(DType::kInt32, {5}, {1, 2, 3, 4, 5}));
  EXPECT_THAT(report(), AllOf(HasSubstr("DAT006"), HasSubstr("pairs.jsonl:2"), HasSubstr("sample: u1"),
                              HasSubstr("array     5")));
  write_array(codes, array_of<float>(DType::kFloat32, {4}, {1, 2, 3, 4}));
  EXPECT_THAT(report(), AllOf(HasSubstr("whole numbers"), HasSubstr("float32 [4]"), HasSubstr(codes)));
  write_array(codes, array_of<std::int32_t>(DType::kInt32, {2, 2}, {1, 2, 3, 4}));
  EXPECT_THAT(report(), HasSubstr("int32 [2, 2]"));
  write_array(codes, array_of<std::int32_t>(DType::kInt32, {0}, {}));
  EXPECT_THAT(report(), HasSubstr("int32 [0]"));
  std::filesystem::remove(codes);
  EXPECT_THAT(report(), AllOf(HasSubstr("IO001"), HasSubstr(codes)));
  write_array(codes, array_of<std::int32_t>(DType::kInt32, {4}, {1, 2, 3, 4}));
  write_array(folder.file("emo.npy"),
              array_of<float>(DType::kFloat32, {3}, {1, std::numeric_limits<float>::infinity(), 0}));
  EXPECT_THAT(report(), AllOf(HasSubstr("DAT007"), HasSubstr("emo.npy"), HasSubstr("element 1")));
  EXPECT_FALSE(PackedSet::is_one(folder.file("set")));
  EXPECT_THAT(report_of([&] { Dataset({folder.file("set")}, {}, {}, tiny_model()); }), HasSubstr("IO0"));
  // What the failed attempts left does not hinder the next one.
  write_array(folder.file("emo.npy"), array_of<float>(DType::kFloat32, {3}, {1, 2, 0}));
  EXPECT_EQ(report(), "");
  EXPECT_THAT(report(), AllOf(HasSubstr("IO003"), HasSubstr("already holds a packed set")));
  folder.write("other/notes.txt", "mine");
  EXPECT_THAT(report_of([&] { pack({manifest}, folder.file("other")); }),
              AllOf(HasSubstr("IO003"), HasSubstr("notes.txt")));
  EXPECT_THAT(report_of([&] { pack({folder.write("empty.jsonl", "\n")}, folder.file("e")); }), HasSubstr("DAT008"));
}

// --- damaged and forged sets
// --------------------------------------------------------------------------------------------

class DamagedSet : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::write_arrays(folder_, {{3, 4}, {5, 6}});
    const std::string manifest = testing::write_manifest(folder_, "pairs.jsonl", {{3, 4}, {5, 6}});
    pack({manifest}, set_, [](PackRequest& request) { request.file_bytes = 200; });
    index_ = read_file(file("index.bin"), 1 << 20);
  }

  std::string file(const std::string& name) const { return set_ + "/" + name; }
  void write(const std::string& name, const std::string& content) const { folder_.write("set/" + name, content); }
  std::string opened() const {
    return report_of([&] { Dataset({set_}, {}, {}, tiny_model()); });
  }
  std::string loaded() const {
    return report_of([&] {
      const Dataset dataset({set_}, {}, {}, tiny_model());
      Batch batch;
      for (std::uint32_t i = 0; i < dataset.size(); ++i) dataset.load(i, batch);
    });
  }
  std::string verified() const {
    return report_of([&] { PackedSet::open(set_)->verify(); });
  }

  // The index with a change, its checksums made right again.
  void forge(const std::function<void(PackedHeader&, PackedPair*, PackedArray*, std::string& names)>& change) const {
    PackedHeader header;
    std::memcpy(&header, index_.data(), sizeof header);
    std::vector<PackedPair> pairs(header.pairs);
    std::vector<PackedArray> arrays(header.arrays);
    const char* at = index_.data() + sizeof header;
    std::memcpy(pairs.data(), at, pairs.size() * sizeof(PackedPair));
    at += pairs.size() * sizeof(PackedPair);
    std::memcpy(arrays.data(), at, arrays.size() * sizeof(PackedArray));
    at += arrays.size() * sizeof(PackedArray);
    std::string names(at, header.names_bytes);
    change(header, pairs.data(), arrays.data(), names);
    std::string tables(reinterpret_cast<const char*>(pairs.data()), pairs.size() * sizeof(PackedPair));
    tables.append(reinterpret_cast<const char*>(arrays.data()), arrays.size() * sizeof(PackedArray));
    tables += names;
    header.tables_crc = tables_checksum(tables);
    header.header_crc = header_checksum(header);
    write("index.bin", std::string(reinterpret_cast<const char*>(&header), sizeof header) + tables);
  }

  const TemporaryFolder folder_;
  const std::string set_ = folder_.file("set");
  std::string index_;
};

TEST_F(DamagedSet, EveryFlippedByteOfTheIndexIsNoticed) {
  for (std::size_t i = 0; i < index_.size(); ++i) {
    std::string bytes = index_;
    bytes[i] = static_cast<char>(bytes[i] ^ (1 << i % 8));
    write("index.bin", bytes);
    ASSERT_THAT(opened(), HasSubstr("[DAT03")) << "byte " << i;
  }
}

TEST_F(DamagedSet, EveryTruncationOfTheIndexIsNoticed) {
  for (std::size_t size = 0; size < index_.size(); size += size < 300 ? 1 : 37) {
    write("index.bin", index_.substr(0, size));
    ASSERT_THAT(opened(), HasSubstr("[DAT030]")) << size << " bytes";
  }
  write("index.bin", index_ + "x");
  EXPECT_THAT(opened(), HasSubstr("[DAT030]"));
}

TEST_F(DamagedSet, ForgedCountsAreRefusedBeforeAnythingIsAllocated) {
  const std::function<void(PackedHeader&)> changes[] = {
      [](PackedHeader& h) { h.pairs = UINT64_MAX; },
      [](PackedHeader& h) { h.pairs = UINT64_MAX / sizeof(PackedPair) + 2; },
      [](PackedHeader& h) { h.pairs += 1; },
      [](PackedHeader& h) { h.arrays = UINT64_MAX / sizeof(PackedArray); },
      [](PackedHeader& h) { h.names_bytes = UINT64_MAX; },
      [](PackedHeader& h) { h.names_bytes -= 1; },
      [](PackedHeader& h) { h.index_bytes += 1; },
      [](PackedHeader& h) { h.manifests = UINT64_MAX; },
      [](PackedHeader& h) { h.manifests = 2; },
      [](PackedHeader& h) { h.manifests = 0; },
      [](PackedHeader& h) { h.array_files = 1'000'000'000; },
      [](PackedHeader& h) { h.array_files -= 1; },
      [](PackedHeader& h) { h.speakers = UINT64_MAX; },
      [](PackedHeader& h) { h.speakers += 100; },
      [](PackedHeader& h) { h.languages = 257; },
      [](PackedHeader& h) { h.languages = 0; },
  };
  for (std::size_t i = 0; i < std::size(changes); ++i) {
    forge([&](PackedHeader& header, PackedPair*, PackedArray*, std::string&) { changes[i](header); });
    ASSERT_THAT(opened(), HasSubstr("[DAT030]")) << "change " << i;
  }
  forge([](PackedHeader& header, PackedPair*, PackedArray*, std::string&) { header.version = 2; });
  EXPECT_THAT(opened(), AllOf(HasSubstr("[DAT031]"), HasSubstr("format 2")));
}

TEST_F(DamagedSet, ForgedRowsAreRefused) {
  using Change = std::function<void(PackedPair*, PackedArray*)>;
  const Change changes[] = {
      [](PackedPair* p, PackedArray*) { p[1].entry.place = p[0].entry.place; },
      [](PackedPair* p, PackedArray*) { p[1].entry.place = (1ULL << 40) - 1; },
      [](PackedPair* p, PackedArray*) { p[0].entry.place |= 1ULL << 40; },
      [](PackedPair* p, PackedArray*) { p[0].entry.place |= 200ULL << 56; },
      [](PackedPair* p, PackedArray*) { p[0].entry.speaker = 9; },
      [](PackedPair* p, PackedArray*) { p[0].line_bytes = 1 << 20; },
      [](PackedPair* p, PackedArray*) { p[1].line_bytes += 2; },
      [](PackedPair* p, PackedArray*) { p[0].arrays[0] = 1000; },
      [](PackedPair* p, PackedArray*) { p[0].arrays[3] = PackedPair::kNoArray; },
      [](PackedPair* p, PackedArray*) { p[0].language_source = static_cast<LanguageSource>(3); },
      [](PackedPair*, PackedArray* a) { a[0].type = 0; },
      [](PackedPair*, PackedArray* a) { a[0].type = 11; },
      [](PackedPair*, PackedArray* a) { a[0].dimensions = 3; },
      [](PackedPair*, PackedArray* a) { a[0].shape[0] = UINT32_MAX; },
      [](PackedPair*, PackedArray* a) { a[0].shape[1] = UINT32_MAX; },
      [](PackedPair*, PackedArray* a) { a[0].shape[0] += 10; },
      [](PackedPair*, PackedArray* a) { a[0].file = 7; },
      [](PackedPair*, PackedArray* a) { a[0].offset = 64; },
      [](PackedPair*, PackedArray* a) { a[1].offset = UINT64_MAX - 63; },
      [](PackedPair*, PackedArray* a) { a[1].offset = 0; },
  };
  for (std::size_t i = 0; i < std::size(changes); ++i) {
    forge([&](PackedHeader&, PackedPair* pairs, PackedArray* arrays, std::string&) { changes[i](pairs, arrays); });
    ASSERT_THAT(opened(), HasSubstr("[DAT030]")) << "change " << i;
  }
}

TEST_F(DamagedSet, RowsOfArraysWithoutAnyFileAreRefused) {
  forge([](PackedHeader& header, PackedPair*, PackedArray* arrays, std::string& names) {
    const auto after_lines = [&](std::size_t at, std::uint64_t count) {
      for (; count > 0; --count) at = names.find('\n', at) + 1;
      return at;
    };
    const std::size_t sizes = after_lines(0, 5);  // behind what stands there of the manifest
    names.erase(sizes, after_lines(sizes, header.array_files) - sizes);
    header.index_bytes -= header.names_bytes - names.size();
    header.names_bytes = names.size();
    header.array_files = 0;
    arrays[0].file = 1;
  });
  EXPECT_THAT(opened(), AllOf(HasSubstr("[DAT030]"), HasSubstr("row 0 of the arrays is malformed")));
}

TEST_F(DamagedSet, ForgedNamesAreRefused) {
  const auto with_names = [&](const std::function<void(std::string&)>& change) {
    forge([&](PackedHeader& header, PackedPair*, PackedArray*, std::string& names) {
      change(names);
      header.index_bytes += names.size() - header.names_bytes;
      header.names_bytes = names.size();
    });
    return opened();
  };
  EXPECT_THAT(with_names([](std::string& names) { names.clear(); }), HasSubstr("[DAT030]"));
  EXPECT_THAT(with_names([](std::string& names) { names.pop_back(); }), HasSubstr("[DAT030]"));
  EXPECT_THAT(with_names([](std::string& names) { names += "one more\n"; }), HasSubstr("[DAT030]"));
  EXPECT_THAT(with_names([](std::string& names) { names.replace(names.find('\n') + 1, 1, "-"); }),
              HasSubstr("[DAT030]"));
  EXPECT_THAT(with_names([](std::string& names) { names.replace(names.find("\n\n") + 1, 0, "not a language\n"); }),
              HasSubstr("[DAT030]"));
}

TEST_F(DamagedSet, ArraysAreCheckedWhenFirstRead) {
  const std::string arrays = read_file(file("arrays_0.bin"), 1 << 20);
  for (std::size_t i = 0; i < arrays.size(); i += 5) {
    std::string bytes = arrays;
    bytes[i] = static_cast<char>(bytes[i] ^ 0x10);
    write("arrays_0.bin", bytes);
    ASSERT_EQ(opened(), "");
    ASSERT_THAT(verified(), AllOf(HasSubstr("[DAT030]"), HasSubstr("arrays_0.bin"))) << "byte " << i;
    if (i < 48) {
      ASSERT_THAT(loaded(), AllOf(HasSubstr("[DAT030]"), HasSubstr("sample: u0"))) << "the condition, byte " << i;
    }
  }
  write("arrays_0.bin", arrays.substr(0, arrays.size() - 1));
  EXPECT_THAT(opened(), AllOf(HasSubstr("[DAT030]"), HasSubstr("arrays_0.bin")));
  std::filesystem::remove(file("arrays_0.bin"));
  EXPECT_THAT(opened(), AllOf(HasSubstr("[IO001]"), HasSubstr("arrays_0.bin")));
}

TEST_F(DamagedSet, RecordsAreCheckedWhenRead) {
  const std::string manifest = read_file(file("manifest_0.jsonl"), 1 << 20);
  for (std::size_t i = 0; i < manifest.size(); i += 7) {
    std::string bytes = manifest;
    bytes[i] = static_cast<char>(bytes[i] ^ 1);
    write("manifest_0.jsonl", bytes);
    ASSERT_THAT(loaded(), HasSubstr("[DAT030]")) << "byte " << i;
    ASSERT_THAT(verified(), HasSubstr("[DAT030]")) << "byte " << i;
  }
  write("manifest_0.jsonl", manifest + " ");
  EXPECT_THAT(opened(), AllOf(HasSubstr("[DAT030]"), HasSubstr("manifest_0.jsonl")));
}

TEST_F(DamagedSet, FilesCutShortWhileInUseAreAnErrorNotTheEnd) {
  const Dataset dataset({set_}, {}, {}, tiny_model());
  const Dataset manifest({folder_.file("pairs.jsonl")}, {}, {}, tiny_model());
  Batch batch;
  dataset.load(0, batch);
  std::filesystem::resize_file(file("arrays_0.bin"), 10);
  EXPECT_THAT(report_of([&] { dataset.load(0, batch); }),
              AllOf(HasSubstr("[IO008]"), HasSubstr("cut short"), HasSubstr("arrays_0.bin")));
  std::filesystem::resize_file(folder_.file("pairs.jsonl"), 0);
  EXPECT_THAT(report_of([&] { manifest.load(0, batch); }), AllOf(HasSubstr("[IO008]"), HasSubstr("cut short")));
  EXPECT_EQ(batch.count(), 1);
}

}  // namespace
}  // namespace train_gpt_v2
