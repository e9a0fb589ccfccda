#include "train_gpt_v2/data/doctor.h"

#include <gmock/gmock.h>

#include <map>
#include <nlohmann/json.hpp>

#include "support/error_of.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/random.h"
#include "unit/data/data_test_support.h"

namespace train_gpt_v2 {
namespace {

using ::testing::AllOf;
using testing::array_of;
using testing::data_path;
using ::testing::HasSubstr;
using testing::TemporaryFolder;
using testing::write_array;

// A healthy corpus of clips in pairs, which each test spoils in one way.
class Clinic {
 public:
  struct Clip {
    std::string id, speaker, text;
    double duration = 0;
    std::vector<std::int32_t> codes, ids;
    std::string language = "am";
  };

  explicit Clinic(std::uint64_t seed = 1, const std::string& prefix = "t", int count = 60) : prefix_(prefix) {
    RandomStream random(seed, 0);
    for (int i = 0; i < count; ++i) {
      Clip clip{concat(prefix, i),
                concat(prefix, "speaker", i / 10),
                concat("HELLO NUMBER ", prefix, " ", i),
                0,
                {},
                {},
                "am"};
      clip.duration = 1 + static_cast<double>(random.below(200)) / 100;
      for (int c = 0; c < static_cast<int>(clip.duration * 50); ++c) {
        clip.codes.push_back(static_cast<std::int32_t>(random.below(224)));
      }
      clips.push_back(std::move(clip));
    }
  }

  // Writes arrays and manifest: each clip with the next one of its speaker as prompt.
  std::string write(const TemporaryFolder& folder) {
    static const Tokenizer tokenizer(data_path("fixtures/tokenizer/extended.model"));
    write_array(folder.file("condition.npy"),
                array_of<float>(DType::kFloat32, {4, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
    write_array(folder.file("emo.npy"), array_of<float>(DType::kFloat32, {3}, {1, 2, 3}));
    std::string manifest;
    for (std::size_t i = 0; i < clips.size(); ++i) {
      const Clip& clip = clips[i];
      const Clip& prompt = clips[std::min(i / 10 * 10 + (i + 1) % 10, clips.size() - 1)];
      const auto ids = clip.ids.empty() ? tokenizer.encode(clip.text, "am") : clip.ids;
      write_array(folder.file(clip.id + "_ids.npy"),
                  array_of(DType::kInt32, {static_cast<std::int64_t>(ids.size())}, ids));
      write_array(folder.file(clip.id + "_codes.npy"),
                  array_of(DType::kInt32, {static_cast<std::int64_t>(clip.codes.size())}, clip.codes));
      nlohmann::ordered_json line = {{"id", clip.id + "__" + prompt.id},
                                     {"speaker", clip.speaker},
                                     {"prompt_id", prompt.id},
                                     {"prompt_condition_path", "condition.npy"},
                                     {"prompt_emo_vec_path", "emo.npy"},
                                     {"prompt_duration", prompt.duration},
                                     {"target_id", clip.id},
                                     {"target_text", clip.text},
                                     {"language", clip.language},
                                     {"target_text_ids_path", clip.id + "_ids.npy"},
                                     {"target_text_len", ids.size()},
                                     {"target_codes_path", clip.id + "_codes.npy"},
                                     {"target_code_len", clip.codes.size()}};
      if (!with_ids) {
        for (const char* key : {"prompt_id", "target_id"}) line.erase(key);
        line["target_duration"] = clip.duration;
      }
      manifest += line.dump() + "\n";
    }
    return folder.write(prefix_ + "_pairs.jsonl", manifest + extra);
  }

  std::vector<Clip> clips;
  std::string extra;  // lines behind the good ones
  bool with_ids = true;

 private:
  std::string prefix_;
};

ModelOptions clinic_model() {
  ModelOptions model = testing::tiny_model();
  model.max_text_tokens = 200;
  return model;
}

DoctorReport examine(const std::vector<std::string>& train, const std::vector<std::string>& validation = {},
                     bool with_tokenizer = true) {
  DataOptions data;
  data.train_manifests = train;
  data.val_manifests = validation;
  DoctorOptions options;
  options.unknown_error = 2;  // the fixtures' small tokenizer leaves much unknown; tests of it set their own gates
  options.unknown_warning = 1;
  const auto tokenizer =
      with_tokenizer ? std::make_shared<const Tokenizer>(data_path("fixtures/tokenizer/extended.model")) : nullptr;
  return examine_data(data, clinic_model(), tokenizer, options);
}

RepairReport repair(const std::vector<std::string>& train, const std::vector<std::string>& validation,
                    const std::string& folder) {
  DataOptions data;
  data.train_manifests = train;
  data.val_manifests = validation;
  return repair_data({folder, 50}, data, clinic_model(),
                     std::make_shared<const Tokenizer>(data_path("fixtures/tokenizer/extended.model")));
}

const Finding* find(const DoctorReport& report, const std::string& check) {
  for (const Finding& finding : report.findings) {
    if (finding.check == check) return &finding;
  }
  return nullptr;
}

// The one finding of a spoiled corpus; nothing else may be found.
Finding only_finding(Clinic& clinic, const std::string& check) {
  const TemporaryFolder folder;
  const DoctorReport report = examine({clinic.write(folder)});
  for (const Finding& finding : report.findings) EXPECT_EQ(finding.check, check) << finding.summary;
  const Finding* finding = find(report, check);
  if (!finding) {
    ADD_FAILURE() << check << " was not found";
    return {};
  }
  EXPECT_FALSE(finding->fix.empty());
  EXPECT_FALSE(finding->places.empty());
  return *finding;
}

TEST(Doctor, FindsNothingInAHealthyCorpus) {
  const TemporaryFolder folder;
  Clinic train(1, "t"), validation(2, "v", 20);
  const DoctorReport report = examine({train.write(folder)}, {validation.write(folder)});
  EXPECT_TRUE(report.findings.empty()) << report.text();
  EXPECT_EQ(report.records, 80u);
  EXPECT_EQ(report.arrays_read, 80u);
  ASSERT_EQ(report.manifests.size(), 2u);
  EXPECT_EQ(report.manifests[0].clips, 60u);
  EXPECT_EQ(report.manifests[0].speakers, 6u);
  EXPECT_TRUE(report.manifests[1].validation);
  EXPECT_THAT(report.text(), HasSubstr("nothing found"));
  ASSERT_EQ(report.histograms.size(), 4u);
  std::uint64_t counted = 0;
  for (const std::uint64_t count : report.histograms[1].counts) counted += count;
  EXPECT_EQ(counted, 60u);
  EXPECT_EQ(report.json()["worst"], "info");
}

TEST(Doctor, FindsCodesPaddedToTheirBatchByDurationAndByNeighbours) {
  Clinic clinic;
  for (std::size_t i = 0; i < 60; ++i) {  // batches of five, padded by varying junk
    std::size_t longest = 0;
    for (std::size_t j = i / 5 * 5; j < i / 5 * 5 + 5; ++j) longest = std::max(longest, clinic.clips[j].codes.size());
    for (int c = 0; clinic.clips[i].codes.size() < longest; ++c)
      clinic.clips[i].codes.push_back((c * 37 + 11 * c * c) % 224);
  }
  const TemporaryFolder folder;
  const std::string manifest = clinic.write(folder);
  const DoctorReport report = examine({manifest});
  const Finding* padded = find(report, "padded_codes");
  ASSERT_NE(padded, nullptr);
  EXPECT_EQ(padded->severity, Severity::kError);
  EXPECT_GT(padded->count, 30u);
  EXPECT_THAT(padded->places[0].detail, HasSubstr("hold"));
  EXPECT_EQ(padded->places[0].file, manifest);
  EXPECT_GT(padded->places[0].line, 0);
  EXPECT_NE(find(report, "padded_codes_neighbours"), nullptr);
  EXPECT_EQ(report.worst(), Severity::kError);

  // Repaired: nothing is padded any more, the sound part is unchanged, the originals are untouched.
  const std::string original = read_file(manifest, 1 << 20);
  const RepairReport repaired = repair({manifest + "::am"}, {}, folder.file("repaired"));
  EXPECT_EQ(repaired.trimmed, padded->count);
  EXPECT_EQ(repaired.trimmed + repaired.unchanged, 60u);
  ASSERT_EQ(repaired.train.size(), 1u);
  EXPECT_EQ(read_file(manifest, 1 << 20), original);
  EXPECT_TRUE(examine(repaired.train).findings.empty());
  const Dataset before({manifest}, {}, {}, clinic_model()), after(repaired.train, {}, {}, clinic_model());
  for (std::uint32_t i = 0; i < 60; ++i) {
    Batch a, b;
    before.load(i, a);
    after.load(i, b);
    EXPECT_EQ(a.ids, b.ids);
    EXPECT_EQ(a.text, b.text);
    ASSERT_LE(b.codes.size(), a.codes.size());
    EXPECT_TRUE(std::equal(b.codes.begin(), b.codes.end(), a.codes.begin()));
    EXPECT_LE(static_cast<double>(b.codes.size()), clinic.clips[i].duration * 50 * 1.02 + 3);
  }
}

TEST(Doctor, FindsRepeatedTails) {
  Clinic clinic;
  const auto spoil = [&](std::size_t clip, std::size_t from, int period) {
    auto& codes = clinic.clips[clip].codes;
    codes.resize(from + 60);
    for (std::size_t i = from; i < codes.size(); ++i)
      codes[i] = static_cast<std::int32_t>(7 + i % static_cast<std::size_t>(period));
    clinic.clips[clip].duration = static_cast<double>(codes.size()) / 50;
  };
  spoil(3, 40, 1);
  spoil(8, 40, 3);
  const Finding finding = only_finding(clinic, "padded_codes_tail");
  EXPECT_EQ(finding.count, 2u);
  EXPECT_THAT(finding.places[0].detail, AllOf(HasSubstr("60 codes"), HasSubstr("period 1")));
  EXPECT_THAT(finding.places[1].detail, HasSubstr("period 3"));
}

TEST(Doctor, FindsEthiopicTextUnderAnotherLanguage) {
  Clinic clinic;
  clinic.clips[5].text = "ሰላም";
  clinic.clips[5].language = "en";
  clinic.clips[6].text = "ሰላም ነው";
  EXPECT_THAT(only_finding(clinic, "language").places[0].detail, HasSubstr("\"en\""));
}

TEST(Doctor, FindsRollingSubtitles) {
  Clinic clinic;
  for (std::size_t i = 0; i < clinic.clips.size(); ++i) {
    clinic.clips[i].text = concat("WORD", i, " WORD", i + 1, " WORD", i + 2, " WORD", i + 3);
  }
  const Finding finding = only_finding(clinic, "rolling_text");
  EXPECT_EQ(finding.count, 59u);
  EXPECT_EQ(finding.places[0].line, 2);
}

std::string line_of(const std::string& manifest, std::size_t number) {
  return split(read_file(manifest, 1 << 24), '\n')[number];
}

TEST(Doctor, FindsPairsAndIdsThatStandTwice) {
  const TemporaryFolder folder;
  Clinic clinic;
  const std::string first = line_of(clinic.write(folder), 0);
  auto renamed = nlohmann::ordered_json::parse(first);
  renamed["id"] = "another";
  clinic.extra = first + "\n" + renamed.dump() + "\n";
  const DoctorReport report = examine({clinic.write(folder)});
  const Finding* ids = find(report, "malformed");
  ASSERT_TRUE(ids);
  EXPECT_EQ(ids->severity, Severity::kError);
  EXPECT_EQ(ids->places[0].line, 61);
  EXPECT_THAT(ids->places[0].detail, HasSubstr("first at line 1"));
  const Finding* pairs = find(report, "duplicate_pair");
  ASSERT_TRUE(pairs);
  EXPECT_EQ(pairs->places[0].line, 62);
  EXPECT_EQ(report.findings.size(), 2u);
}

TEST(Doctor, QuickLookFindsWhatStandsInTheRecords) {
  const TemporaryFolder folder;
  Clinic clinic;
  for (auto& clip : clinic.clips) clip.codes.resize(clip.codes.size() + 200, 3);
  DataOptions data;
  data.train_manifests = {clinic.write(folder)};
  const Dataset train(data.train_manifests, {}, data, clinic_model());
  DoctorOptions options;
  options.quick_records = 20;
  const DoctorReport part = examine_quickly(train, nullptr, nullptr, options);
  EXPECT_EQ(part.records, 60u);
  EXPECT_EQ(part.records_looked_at, 20u);
  EXPECT_EQ(find(part, "padded_codes")->count, 20u);
  EXPECT_FALSE(find(part, "lonely_speaker"));
  EXPECT_EQ(find(examine_quickly(train, nullptr, nullptr), "padded_codes")->count, 60u);
}

TEST(Doctor, RepairLeavesOutWhatCannotBeUsed) {
  const TemporaryFolder folder;
  Clinic train(1, "t"), validation(2, "v", 20);
  train.clips[3].ids = {5, 0, 7};        // a start id inside the text
  train.clips[4].codes[2] = 225;         // the stop code
  train.clips[5].codes.resize(400, 3);   // padded
  validation.clips[6] = train.clips[7];  // also trained on
  train.extra = "{\"id\": not json\n";
  const std::string train_manifest = train.write(folder), val_manifest = validation.write(folder);
  auto self = nlohmann::ordered_json::parse(line_of(train_manifest, 10));
  self["id"] = "self";
  self["prompt_id"] = self["target_id"];
  train.extra += self.dump() + "\n";
  train.write(folder);
  const std::string before = read_file(train_manifest, 1 << 20);

  const RepairReport repaired = repair({train_manifest}, {val_manifest}, folder.file("repaired"));
  EXPECT_EQ(read_file(train_manifest, 1 << 20), before);
  EXPECT_EQ(repaired.trimmed, 1u);
  std::map<std::string, std::string> reasons;
  for (const std::string& line : split(read_file(folder.file("repaired/left_out.jsonl"), 1 << 20), '\n')) {
    if (line.empty()) continue;
    const auto entry = nlohmann::json::parse(line);
    reasons[concat(file_name(entry.at("file").get<std::string>()), ":", entry.at("line").get<long>())] =
        entry.at("reason");
  }
  EXPECT_EQ(repaired.left_out, reasons.size());
  EXPECT_THAT(reasons["t_pairs.jsonl:4"], HasSubstr("start or stop id"));
  EXPECT_THAT(reasons["t_pairs.jsonl:5"], HasSubstr("start or stop code"));
  EXPECT_THAT(reasons["t_pairs.jsonl:61"], HasSubstr("JSON"));
  EXPECT_THAT(reasons["t_pairs.jsonl:62"], HasSubstr("target itself"));
  EXPECT_THAT(reasons["v_pairs.jsonl:7"], HasSubstr("trained on"));
  EXPECT_EQ(reasons.size(), 5u);
  for (const Finding& finding : examine(repaired.train, repaired.validation).findings) {
    EXPECT_NE(finding.severity, Severity::kError) << finding.check << ": " << finding.summary;
  }
}

TEST(Doctor, RepairKeepsSoundClipsThatHaveNoIds) {
  const TemporaryFolder folder;
  Clinic clinic;
  clinic.with_ids = false;
  clinic.clips.back().duration = 0.5;  // shorter than all others
  clinic.clips.back().codes.resize(25);
  clinic.clips[3].codes.resize(200, 3);  // the one that is padded
  const RepairReport repaired = repair({clinic.write(folder)}, {}, folder.file("repaired"));
  EXPECT_EQ(repaired.trimmed, 1u);
  EXPECT_EQ(repaired.unchanged, 59u);
  EXPECT_EQ(repaired.without_duration, 0u);
}

TEST(Doctor, ClipsWithoutIdsAreToldApartByTheirFolders) {
  const TemporaryFolder a, b;
  Clinic train(1, "t"), validation(2, "t", 20);
  train.with_ids = validation.with_ids = false;
  const std::string train_manifest = train.write(a), val_manifest = validation.write(b);
  EXPECT_EQ(find(examine({train_manifest}, {val_manifest}), "leakage_utterance"), nullptr);
  EXPECT_EQ(repair({train_manifest}, {val_manifest}, a.file("repaired")).left_out, 0u);
  // The same file is the same clip, however it is named.
  auto shared = nlohmann::ordered_json::parse(line_of(val_manifest, 0));
  shared["id"] = "shared";
  shared["target_codes_path"] = "../" + file_name(a.path()) + "/t7_codes.npy";
  shared["target_code_len"] = train.clips[7].codes.size();
  validation.extra = shared.dump() + "\n";
  validation.write(b);
  const DoctorReport report = examine({train_manifest}, {val_manifest});
  ASSERT_NE(find(report, "leakage_utterance"), nullptr);
  EXPECT_EQ(find(report, "leakage_utterance")->count, 1u);
  EXPECT_EQ(repair({train_manifest}, {val_manifest}, a.file("again")).left_out, 1u);
}

TEST(Doctor, RepairWritesNoPathThatWouldNotBeFound) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder.file("caf\xE9"));
  Clinic clinic;
  const std::string manifest = clinic.write(folder);
  std::string bad = folder.file("caf\xE9/t_pairs.jsonl");
  std::filesystem::copy_file(manifest, bad);
  for (const std::string& name : list_directory(folder.path())) {
    if (name.ends_with(".npy")) std::filesystem::create_hard_link(folder.file(name), folder.file("caf\xE9/" + name));
  }
  const Error error = testing::error_of([&] { repair({bad}, {}, folder.file("repaired")); });
  EXPECT_EQ(error.code(), "IO003");
  // Reasons, too, may name such a path; they are for people.
  clinic.clips[3].codes[2] = 225;
  clinic.write(folder);
  EXPECT_EQ(repair({manifest}, {}, folder.file("caf\xE9/repaired")).left_out, 1u);
}

TEST(Doctor, FindsSharedUtterancesTextsAndSpeakers) {
  const TemporaryFolder folder;
  Clinic train(1, "t"), validation(2, "v", 20);
  validation.clips[4] = train.clips[7];
  validation.clips[5].text = train.clips[9].text;
  const std::string train_manifest = train.write(folder);
  const DoctorReport report = examine({train_manifest}, {validation.write(folder)});
  const Finding* utterance = find(report, "leakage_utterance");
  ASSERT_NE(utterance, nullptr);
  EXPECT_EQ(utterance->count, 1u);
  EXPECT_EQ(utterance->severity, Severity::kError);
  EXPECT_EQ(utterance->places[0].line, 5);
  EXPECT_THAT(utterance->places[0].detail, HasSubstr(train_manifest + ":8"));
  const Finding* text = find(report, "leakage_text");
  ASSERT_NE(text, nullptr);
  EXPECT_EQ(text->count, 2u);  // the shared clip's text is shared as well
  const Finding* speaker = find(report, "leakage_speaker");
  ASSERT_NE(speaker, nullptr);
  EXPECT_THAT(speaker->summary, HasSubstr("1 of 3"));
}

TEST(Doctor, FindsDoubles) {
  Clinic clinic;
  clinic.clips[13].codes = clinic.clips[31].codes;
  clinic.clips[13].duration = clinic.clips[31].duration;
  EXPECT_THAT(only_finding(clinic, "duplicate_codes").places[0].detail, HasSubstr(":14"));
  Clinic texts;
  texts.clips[50].text = "  " + texts.clips[2].text;
  const Finding finding = only_finding(texts, "duplicate_text");
  EXPECT_EQ(finding.severity, Severity::kInfo);
  EXPECT_EQ(finding.places[0].line, 51);
}

TEST(Doctor, FindsPairsThatAreTheirOwnPromptAndSpeakersWithOneClip) {
  Clinic clinic;
  clinic.clips.push_back({"single", "hermit", "ONE CLIP ONLY", 2, std::vector<std::int32_t>(100), {}});
  for (int i = 0; i < 100; ++i) clinic.clips.back().codes[static_cast<std::size_t>(i)] = (i * i) % 224;
  clinic.clips.back().codes.resize(90);
  const TemporaryFolder folder;
  const DoctorReport report = examine({clinic.write(folder)});  // write() finds no other clip for its prompt
  ASSERT_NE(find(report, "self_prompt"), nullptr);
  EXPECT_EQ(find(report, "self_prompt")->places[0].line, 61);
  ASSERT_NE(find(report, "lonely_speaker"), nullptr);
  EXPECT_EQ(find(report, "lonely_speaker")->places[0].detail, "hermit");
}

TEST(Doctor, CollectsEveryBadRecordAndArrayAtOnce) {
  const TemporaryFolder folder;
  Clinic clinic;
  clinic.clips[1].codes[5] = 225;
  clinic.clips[2].ids = {5, 400, 6};
  clinic.clips[3].codes.assign(2000, 1);
  clinic.extra = "not json\n{\"id\": 3}\n";
  const std::string manifest = clinic.write(folder);
  write_array(folder.file("t4_codes.npy"), array_of(DType::kInt32, {2}, std::vector<std::int32_t>{1, 2}));
  remove_file(folder.file("t5_ids.npy"));
  const DoctorReport report = examine({manifest});
  ASSERT_NE(find(report, "malformed"), nullptr);
  EXPECT_EQ(find(report, "malformed")->count, 2u);
  EXPECT_EQ(find(report, "malformed")->places[0].line, 61);
  ASSERT_NE(find(report, "overlong"), nullptr);
  EXPECT_EQ(find(report, "overlong")->places[0].line, 4);
  EXPECT_EQ(find(report, "overlong")->severity, Severity::kWarning);
  const std::map<std::string, std::pair<long, std::string>> arrays = {{"array_DAT004", {2, "code 225 at element 5"}},
                                                                      {"array_DAT005", {3, "id 400"}},
                                                                      {"array_DAT006", {5, "array     2"}},
                                                                      {"array_IO001", {6, "t5_ids.npy"}}};
  for (const auto& [check, expected] : arrays) {
    const Finding* finding = find(report, check);
    ASSERT_NE(finding, nullptr) << check;
    EXPECT_EQ(finding->places[0].line, expected.first) << check;
    EXPECT_THAT(finding->places[0].detail, HasSubstr(expected.second)) << check;
  }
  EXPECT_EQ(report.findings.front().severity, Severity::kError) << "the worst come first";
  const nlohmann::json json = nlohmann::json::parse(report.json().dump());
  EXPECT_EQ(json["findings"].size(), report.findings.size());
  EXPECT_EQ(json["findings"][0]["places"][0]["file"], manifest);
}

TEST(Doctor, FindsIdsOfAnotherTokenizerAndSpecialIds) {
  Clinic clinic;
  clinic.clips[20].ids = {50, 51, 52};
  EXPECT_EQ(only_finding(clinic, "other_tokenizer").severity, Severity::kWarning);
  for (auto& clip : clinic.clips) clip.ids = {50, 51, 52};
  EXPECT_EQ(only_finding(clinic, "other_tokenizer").severity, Severity::kError);
  Clinic special;
  special.clips[6].ids = {10, 11, 1};
  const TemporaryFolder folder;
  const DoctorReport report = examine({special.write(folder)}, {}, false);
  ASSERT_NE(find(report, "special_ids"), nullptr);
  EXPECT_EQ(find(report, "special_ids")->places[0].detail, "element 2");
}

TEST(Doctor, GatesUnknownPiecesAndNamesTheirCharacters) {
  const TemporaryFolder folder;
  Clinic clinic;
  clinic.clips[0].text = "HELLO ጿጿጿ";
  DataOptions data;
  data.train_manifests = {clinic.write(folder)};
  const auto tokenizer = std::make_shared<const Tokenizer>(data_path("fixtures/tokenizer/extended.model"));
  DoctorOptions options;
  options.unknown_warning = 1e-6;
  const DoctorReport report = examine_data(data, clinic_model(), tokenizer, options);
  const Finding* finding = find(report, "unknown_pieces");
  ASSERT_NE(finding, nullptr);
  EXPECT_THAT(finding->places[0].detail, AllOf(HasSubstr("<unk>"), HasSubstr("ጿ×3")));
  EXPECT_GT(report.manifests[0].unknown_share, 0);
  options.unknown_error = 1e-6;
  EXPECT_EQ(find(examine_data(data, clinic_model(), tokenizer, options), "unknown_pieces")->severity, Severity::kError);
}

TEST(Doctor, FindsEmptyFeatures) {
  const TemporaryFolder folder;
  Clinic clinic;
  const std::string manifest = clinic.write(folder);
  write_array(folder.file("emo.npy"), array_of<float>(DType::kFloat32, {3}, {0, 0, 0}));
  const DoctorReport report = examine({manifest});
  ASSERT_NE(find(report, "empty_features"), nullptr);
  EXPECT_EQ(find(report, "empty_features")->places[0].detail, "emotion vector");
}

TEST(Doctor, FindsTextsThatBelongToOtherClips) {
  Clinic clinic;
  clinic.clips[30].text = "A";
  for (int i = 0; i < 30; ++i) clinic.clips[30].text += " B C D E F";
  const Finding finding = only_finding(clinic, "text_speed");
  EXPECT_EQ(finding.places[0].line, 31);
}

TEST(Doctor, SamplesTheSamePairsForTheSameSeed) {
  const TemporaryFolder folder;
  Clinic clinic;
  for (std::size_t i = 0; i < 60; i += 2) clinic.clips[i].codes[0] = 225;
  DataOptions data;
  data.train_manifests = {clinic.write(folder)};
  DoctorOptions options;
  options.sample = 20;
  const auto count = [&] { return find(examine_data(data, clinic_model(), nullptr, options), "array_DAT004")->count; };
  const std::uint64_t first = count();
  EXPECT_EQ(count(), first);
  EXPECT_LE(first, 20u);
  options.full = true;
  EXPECT_EQ(count(), 30u);
}

TEST(Doctor, ExaminesTheFixtures) {
  DataOptions data;
  data.train_manifests = {data_path("fixtures/data/train_pairs.jsonl")};
  data.val_manifests = {data_path("fixtures/data/val_pairs.jsonl")};
  const auto tokenizer = std::make_shared<const Tokenizer>(data_path("fixtures/tokenizer/extended.model"));
  const DoctorReport report = examine_data(data, testing::fixture_model(), tokenizer, {});
  EXPECT_EQ(find(report, "other_tokenizer"), nullptr) << "the reference's ids are ours";
  EXPECT_EQ(find(report, "padded_codes"), nullptr);
  ASSERT_NE(find(report, "unknown_pieces"), nullptr) << "the reference's extension leaves out single fidels";
  ASSERT_NE(find(report, "leakage_speaker"), nullptr);
  EXPECT_THAT(report.text(), HasSubstr("train_pairs.jsonl"));
}

}  // namespace
}  // namespace train_gpt_v2
