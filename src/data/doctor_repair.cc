// Manifests written anew without what cannot be used, and codes cut that preprocessing padded to their batch's longest.
#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "doctor_parts.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/parallel.h"
#include "train_gpt_v2/io/npy.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::ordered_json;

struct TargetClip {
  std::int64_t length = -1;  // after trimming; -1 = stays as it is
  std::string path;          // of the trimmed array
};

struct Verdict {
  std::string left_out_because;  // "" = it stays
  bool tokenise_anew = false;    // its ids are those of another tokenizer
};

class Repair {
 public:
  Repair(const RepairOptions& options, DataOptions data, const ModelOptions& model,
         std::shared_ptr<const Tokenizer> tokenizer)
      : options_(options), data_(std::move(data)), model_(model), tokenizer_(std::move(tokenizer)) {
    data_.on_bad_sample = "skip";
    data_.max_bad_fraction = 1;
    data_.on_overlong = "trim";  // what is too long now may fit once it is trimmed
  }

  RepairReport run() {
    make_directories(path_join(options_.folder, "codes"));
    const Dataset train(data_.train_manifests, {}, data_, model_, tokenizer_);
    std::unique_ptr<const Dataset> validation;
    if (!data_.val_manifests.empty()) {
      validation =
          std::make_unique<const Dataset>(data_.val_manifests, std::vector<ReplayOptions>{}, data_, model_, tokenizer_);
    }
    refuse_packed(train);
    if (validation) refuse_packed(*validation);
    learn_durations(train);
    if (validation) learn_durations(*validation);
    AtomicFile left_out(path_join(options_.folder, "left_out.jsonl"));
    report_.train = write_side(train, "train", left_out);
    in_training_ = std::move(targets_);
    if (validation) report_.validation = write_side(*validation, "val", left_out);
    left_out.commit();
    return std::move(report_);
  }

 private:
  static void refuse_packed(const Dataset& dataset) {
    for (std::size_t m = 0; m < dataset.index().manifests(); ++m) {
      if (!dataset.index().is_packed(m)) continue;
      throw Error("DAT031", "a packed set cannot be repaired")
          .where(dataset.index().manifest_path(m))
          .fix("repair the manifests it was packed from, then pack them again");
    }
  }

  void learn_durations(const Dataset& dataset) {
    RecordParser parser;
    for (const PairEntry& entry : dataset.index().entries()) {
      const PairRecord record = dataset.index().record(entry, parser);
      if (record.prompt_duration > 0 && !record.prompt_id.empty()) {
        durations_.try_emplace(std::string(record.prompt_id), record.prompt_duration);
      }
      if (record.target_duration > 0) {
        durations_[doctor::clip_key(dataset.index(), entry, record)] = record.target_duration;
      }
    }
  }

  std::vector<Verdict> judge(const Dataset& dataset) {
    std::vector<Verdict> verdicts(dataset.size());
    in_parallel(dataset.size(), 16, [&](std::size_t, std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) {
        const doctor::ArrayLook look = doctor::look_at_arrays(dataset, tokenizer_.get(), static_cast<std::uint32_t>(i));
        verdicts[i] = {look.unusable(), look.differs};
      }
    });
    RecordParser parser;
    for (std::uint32_t i = 0; i < dataset.size(); ++i) {
      std::string& reason = verdicts[i].left_out_because;
      if (!reason.empty()) continue;
      const PairEntry& entry = dataset.index()[i];
      const PairRecord record = dataset.index().record(entry, parser);
      const std::string target = doctor::clip_key(dataset.index(), entry, record);
      if (record.prompt_id == target) reason = "the prompt is the target itself";
      if (in_training_.contains(target)) reason = "this clip is also trained on";
      if (reason.empty()) targets_.insert(target);
    }
    return verdicts;
  }

  // Writes the trimmed codes of one clip where they are too long; asked once per clip.
  TargetClip trimmed(const std::string& source, const std::string& key, const PairRecord& record) {
    TargetClip clip;
    const auto duration = durations_.find(key);
    if (duration == durations_.end()) {
      ++report_.without_duration;
      return clip;
    }
    const std::int64_t length = std::llround(duration->second * options_.codes_per_second);
    const Tensor codes = read_npy(source);
    if (length < 1 || !doctor::longer_than_clip(codes.shape[0], duration->second, options_.codes_per_second)) {
      ++report_.unchanged;
      return clip;
    }
    clip.length = length;
    clip.path = concat("codes/", report_.trimmed, "_", file_name(record.target_codes_path));
    const auto bytes =
        codes.contiguous().bytes().subspan(0, static_cast<std::size_t>(length) * dtype_size(codes.dtype));
    write_npy(path_join(options_.folder, clip.path), Tensor::copy_of(codes.dtype, {length}, bytes));
    ++report_.trimmed;
    return clip;
  }

  std::vector<std::string> write_side(const Dataset& dataset, const std::string& side, AtomicFile& left_out) {
    for (const DropReason& reason : dataset.dropped()) {
      report_.left_out += reason.count;
      for (const DataProblem& problem : reason.problems) {
        note_left_out(left_out, problem.file, problem.line, problem.sample, problem.message);
      }
    }
    const PairIndex& index = dataset.index();
    const std::vector<Verdict> verdicts = judge(dataset);
    std::vector<std::string> written;
    RecordParser parser;
    doctor::LineNumbers lines(index);
    for (std::size_t manifest = 0, next = 0; manifest < index.manifests(); ++manifest) {
      written.push_back(
          path_join(options_.folder, concat(side, manifest, "_", file_name(index.manifest_path(manifest)))));
      AtomicFile file(written.back());
      for (; next < dataset.size() && index[next].manifest() == manifest; ++next) {
        const PairEntry& entry = index[next];
        const Verdict& verdict = verdicts[next];
        if (verdict.left_out_because.empty()) {
          file.write(new_line(index, entry, index.record(entry, parser), verdict.tokenise_anew));
          continue;
        }
        ++report_.left_out;
        note_left_out(left_out, index.file(entry), lines.line(entry), index.id(entry), verdict.left_out_because);
      }
      file.commit();
    }
    return written;
  }

  static void note_left_out(AtomicFile& file, const std::string& manifest, long line, const std::string& id,
                            const std::string& reason) {
    const Json entry = {{"file", manifest}, {"line", line}, {"id", id}, {"reason", reason}};
    file.write(dump_json(entry) + "\n");
  }

  std::string new_line(const PairIndex& index, const PairEntry& entry, const PairRecord& record, bool tokenise_anew) {
    const std::string source = index.resolve(entry, record.target_codes_path);
    auto known = clips_.find(source);
    if (known == clips_.end()) {
      known = clips_.emplace(source, trimmed(source, doctor::clip_key(index, entry, record), record)).first;
    }
    const std::string_view all = index.manifest_bytes(entry.manifest());
    Json line = Json::parse(all.substr(entry.offset(), all.find('\n', entry.offset()) - entry.offset()));
    for (auto& [key, value] : line.items()) {  // the new manifest lies in another folder
      if (ends_with(key, "_path") && value.is_string() && !value.get_ref<const std::string&>().empty()) {
        std::string path = absolute_path(index.resolve(entry, value.get_ref<const std::string&>()));
        if (!valid_utf8(path)) {
          throw Error("IO003", "a manifest cannot name this file: its path is not UTF-8")
              .where(path)
              .fix("give the folder another name");
        }
        value = std::move(path);
      }
    }
    if (record.stated_language().empty() && !index.manifest_language(entry.manifest()).empty()) {
      line["language"] = index.manifest_language(entry.manifest());  // the suffix stays behind with the old name
    }
    if (tokenise_anew) {
      line.erase("target_text_ids_path");
      line.erase("target_text_len");
    }
    if (known->second.length >= 0) {
      line["target_codes_path"] = known->second.path;
      line["target_code_len"] = known->second.length;
    }
    return dump_json(line) + "\n";
  }

  const RepairOptions& options_;
  DataOptions data_;
  const ModelOptions& model_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unordered_map<std::string, double> durations_;  // by clip id
  std::unordered_map<std::string, TargetClip> clips_;  // by path of the codes
  std::unordered_set<std::string> targets_, in_training_;
  RepairReport report_;
};

}  // namespace

RepairReport repair_data(const RepairOptions& options, DataOptions data, const ModelOptions& model,
                         const std::shared_ptr<const Tokenizer>& tokenizer) {
  return Repair(options, std::move(data), model, tokenizer).run();
}

}  // namespace train_gpt_v2
