// Trimming codes that preprocessing padded to the longest clip of its batch.
#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/doctor.h"
#include "train_gpt_v2/io/npy.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::ordered_json;

struct TargetClip {
  std::int64_t length = -1;  // after trimming; -1 = stays as it is
  std::string path;          // of the trimmed array
};

class Repair {
 public:
  Repair(const std::vector<std::string>& manifests, std::string folder, double codes_per_second)
      : folder_(std::move(folder)), per_second_(codes_per_second), index_(settings()) {
    for (const std::string& manifest : manifests) index_.add(manifest);
  }

  RepairReport run() {
    make_directories(path_join(folder_, "codes"));
    learn_durations();
    for (std::size_t m = 0; m < index_.manifests(); ++m) {
      if (index_.is_packed(m)) {
        throw Error("DAT031", "a packed set cannot be repaired")
            .where(index_.manifest_path(m))
            .fix("repair the manifests it was packed from, then pack them again");
      }
      write_manifest(m);
    }
    return std::move(report_);
  }

 private:
  static PairIndex::Settings settings() {
    PairIndex::Settings settings;
    settings.skip_bad = true;
    return settings;
  }

  void learn_durations() {
    RecordParser parser;
    for (const PairEntry& entry : index_.entries()) {
      const PairRecord record = index_.record(entry, parser);
      if (record.prompt_duration > 0) durations_.try_emplace(std::string(record.prompt_id), record.prompt_duration);
      if (record.target_duration > 0) durations_[std::string(record.target_id)] = record.target_duration;
    }
  }

  // Writes the trimmed codes of one clip where they are too long; asked once per clip.
  TargetClip trimmed(const PairEntry& entry, const PairRecord& record) {
    TargetClip clip;
    const auto duration = durations_.find(std::string(record.target_id));
    if (duration == durations_.end()) {
      ++report_.without_duration;
      return clip;
    }
    const std::int64_t length = std::llround(duration->second * per_second_);
    const Tensor codes = index_.array(entry, record, ArrayRole::kCodes);
    // The same allowance as in examine_data: rounding, and a frame at either end.
    if (codes.shape.size() != 1 || length < 1 ||
        static_cast<double>(codes.shape[0]) <= duration->second * per_second_ * 1.02 + 3) {
      ++report_.unchanged;
      return clip;
    }
    clip.length = length;
    clip.path = concat("codes/", report_.trimmed, "_", file_name(record.target_codes_path));
    const auto bytes =
        codes.contiguous().bytes().subspan(0, static_cast<std::size_t>(length) * dtype_size(codes.dtype));
    write_npy(path_join(folder_, clip.path), Tensor::copy_of(codes.dtype, {length}, bytes));
    ++report_.trimmed;
    return clip;
  }

  void write_manifest(std::size_t number) {
    const std::string name = concat(number, "_", file_name(index_.manifest_path(number)));
    AtomicFile file(path_join(folder_, name));
    RecordParser parser;
    const std::string_view all = index_.manifest_bytes(number);
    for (const PairEntry& entry : index_.entries()) {
      if (entry.manifest() != number) continue;
      const PairRecord record = index_.record(entry, parser);
      const std::string source = index_.resolve(entry, record.target_codes_path);
      auto known = clips_.find(source);
      if (known == clips_.end()) known = clips_.emplace(source, trimmed(entry, record)).first;
      Json line = Json::parse(all.substr(entry.offset(), all.find('\n', entry.offset()) - entry.offset()));
      for (auto& [key, value] : line.items()) {  // the new manifest lies in another folder
        if (ends_with(key, "_path") && value.is_string() && !value.get_ref<const std::string&>().empty()) {
          value = absolute_path(index_.resolve(entry, value.get_ref<const std::string&>()));
        }
      }
      if (record.stated_language().empty() && !index_.manifest_language(number).empty()) {
        line["language"] = index_.manifest_language(number);  // the suffix stays behind with the old name
      }
      if (known->second.length >= 0) {
        line["target_codes_path"] = known->second.path;
        line["target_code_len"] = known->second.length;
      }
      file.write(line.dump() + "\n");
    }
    file.commit();
    report_.manifests.push_back(path_join(folder_, name));
  }

  std::string folder_;
  double per_second_;
  PairIndex index_;
  std::unordered_map<std::string, double> durations_;  // by clip id
  std::unordered_map<std::string, TargetClip> clips_;  // by path of the codes
  RepairReport report_;
};

}  // namespace

RepairReport repair_padded_codes(const std::vector<std::string>& manifests, const std::string& folder,
                                 double codes_per_second) {
  return Repair(manifests, folder, codes_per_second).run();
}

}  // namespace train_gpt_v2
