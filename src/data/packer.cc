#include "train_gpt_v2/data/packer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <unordered_map>

#include "names.h"
#include "packed_format.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/packed_set.h"

namespace train_gpt_v2 {
namespace {

constexpr ArrayRole kRoles[] = {ArrayRole::kCondition, ArrayRole::kEmoVec,   ArrayRole::kTextIds,
                                ArrayRole::kCodes,     ArrayRole::kFeatures, ArrayRole::kEmoFeatures};

struct RoleRule {
  std::string_view what;
  std::size_t dimensions;
  bool floats;
};
RoleRule rule_of(ArrayRole role) {
  switch (role) {
    case ArrayRole::kCondition:
      return {"the condition", 2, true};
    case ArrayRole::kEmoVec:
      return {"the emotion vector", 1, true};
    case ArrayRole::kTextIds:
      return {"text ids", 1, false};
    case ArrayRole::kCodes:
      return {"codes", 1, false};
    case ArrayRole::kFeatures:
      return {"the prompt's features", 2, true};
    case ArrayRole::kEmoFeatures:
      return {"the emotion features", 2, true};
  }
  return {};
}

// Round to nearest, ties to even. Values beyond the largest half become infinite; the caller refuses those.
std::uint16_t to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000U, magnitude = bits & 0x7FFFFFFFU;
  if (magnitude < 0x38800000U) {  // below the smallest normal half: count in units of 2^-24
    return static_cast<std::uint16_t>(
        sign | static_cast<std::uint32_t>(std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24F)));
  }
  const std::uint32_t rounded = magnitude + 0xFFFU + (magnitude >> 13 & 1U);
  if (rounded >= 0x47800000U) return static_cast<std::uint16_t>(sign | 0x7C00U);
  return static_cast<std::uint16_t>(sign | (rounded - 0x38000000U) >> 13);
}

std::uint16_t to_upper_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class Packer {
 public:
  explicit Packer(const PackRequest& request)
      : request_(request), folder_(absolute_path(request.output)), index_(settings()) {
    if (request.dtype == "fp32") stored_ = DType::kFloat32;
    if (request.dtype == "fp16") stored_ = DType::kFloat16;
    if (request.dtype == "bf16") stored_ = DType::kBFloat16;
  }

  PackReport run() {
    for (const std::string& manifest : request_.manifests) index_.add(manifest);
    if (index_.size() == 0) {
      throw Error("DAT008", "there is no pair to pack")
          .where(join(request_.manifests, ", "))
          .fix("name manifests that hold pairs");
    }
    prepare_folder();
    pairs_.reserve(index_.size());
    for (const PairEntry& entry : index_.entries()) add(entry);
    finish_file();
    for (std::size_t m = 0; m < index_.manifests(); ++m) {
      write_file_atomically(packed_manifest(folder_, m), index_.manifest_bytes(m));
      report_.bytes += index_.manifest_bytes(m).size();
    }
    write_index();
    report_.pairs = pairs_.size();
    report_.manifests = index_.manifests();
    report_.arrays = arrays_.size();
    report_.rounded_to = rounded_to_;
    return report_;
  }

 private:
  static PairIndex::Settings settings() { return {}; }

  // Nothing that is not ours is ever mixed with a set or overwritten.
  void prepare_folder() {
    make_directories(folder_);
    for (const std::string& name : list_directory(folder_)) {
      const bool ours = (starts_with(name, "manifest_") && name.find(".jsonl") != std::string::npos) ||
                        (starts_with(name, "arrays_") && name.find(".bin") != std::string::npos);
      if (!ours) {
        throw Error("IO003",
                    name == "index.bin" ? "the folder already holds a packed set" : "the folder holds other files")
            .where(path_join(folder_, name))
            .fix("name a folder that is new or empty");
      }
    }
  }

  void add(const PairEntry& entry) {
    const PairRecord record = index_.record(entry, parser_);
    PackedPair pair;
    pair.entry = entry;
    pair.entry.speaker = speakers_.number(index_.speakers()[entry.speaker]);
    const std::uint64_t language = languages_.number(index_.languages()[entry.language()]);
    pair.entry.place = entry.offset() | std::uint64_t{entry.manifest()} << 40 | language << 56;
    pair.language_source = !record.stated_language().empty()                     ? LanguageSource::kRecord
                           : !index_.manifest_language(entry.manifest()).empty() ? LanguageSource::kSuffix
                                                                                 : LanguageSource::kScript;
    const std::string_view all = index_.manifest_bytes(entry.manifest());
    const std::string_view line = all.substr(entry.offset(), all.find('\n', entry.offset()) - entry.offset());
    pair.line_bytes = static_cast<std::uint32_t>(line.size());
    pair.line_crc = crc32(std::as_bytes(std::span(line)));
    try {
      for (const ArrayRole role : kRoles) {
        if (wanted(record, role)) pair.arrays[static_cast<std::size_t>(role)] = store(entry, record, role);
      }
      check_length(record.target_code_len, pair, ArrayRole::kCodes, pair.entry.code_length);
      check_length(record.target_text_len, pair, ArrayRole::kTextIds, pair.entry.text_length);
      if (pair.array(ArrayRole::kTextIds) == PackedPair::kNoArray) pair.entry.text_length = PairEntry::kUnknownLength;
    } catch (const Error& error) {
      // The set's own file could not be written: nothing is wrong with the data.
      if (starts_with(error.place(), packed_arrays(folder_, file_bytes_.size()))) throw;
      Error full = Error(error.code(), error.message())
                       .at(concat(index_.file(entry), ":", index_.line(entry)))
                       .detail(concat("sample: ", record.id));
      if (!error.place().empty()) std::move(full).detail(concat("file: ", error.place()));
      for (const std::string& detail : error.details()) std::move(full).detail(detail);
      throw std::move(full).fix("repair the file, or leave the record out (check --repair DIR writes such manifests)");
    }
    pairs_.push_back(pair);
    manifest_pairs_.resize(index_.manifests());
    ++manifest_pairs_[entry.manifest()];
  }

  bool wanted(const PairRecord& record, ArrayRole role) const {
    if (record.array_path(role).empty()) return false;
    const bool features = role == ArrayRole::kFeatures || role == ArrayRole::kEmoFeatures;
    if (!features && role != ArrayRole::kCondition && role != ArrayRole::kEmoVec) return true;
    if (request_.conditioning == "both") return true;
    const bool online =
        request_.conditioning == "online" || record.prompt_condition_path.empty() || record.emo_vec_path().empty();
    return features == online;
  }

  // The number of the array; the file is read once, equal contents are stored once.
  std::uint32_t store(const PairEntry& entry, const PairRecord& record, ArrayRole role) {
    ++report_.named;
    const std::string place = index_.array_place(entry, record, role);
    const std::string key = concat(static_cast<int>(role), place);
    if (const auto known = by_place_.find(key); known != by_place_.end()) return known->second;
    const Tensor source = index_.array(entry, record, role);
    check(source, place, role);
    const Tensor tensor = rule_of(role).floats ? converted(source, place) : source;
    PackedArray row;
    row.type = static_cast<std::uint8_t>(std::find(std::begin(kPackedTypes), std::end(kPackedTypes), tensor.dtype) -
                                         std::begin(kPackedTypes) + 1);
    row.dimensions = static_cast<std::uint8_t>(tensor.shape.size());
    for (std::size_t d = 0; d < tensor.shape.size(); ++d) row.shape[d] = static_cast<std::uint32_t>(tensor.shape[d]);
    row.crc = crc32(tensor.bytes());
    Sha256 identity;
    identity.update(&row, sizeof row);
    identity.update(tensor.data, tensor.nbytes());
    const auto [same, added] = by_content_.try_emplace(identity.hex(), static_cast<std::uint32_t>(arrays_.size()));
    if (added) append(tensor, row);
    by_place_.emplace(key, same->second);
    return same->second;
  }

  static void check(const Tensor& array, const std::string& place, ArrayRole role) {
    const RoleRule rule = rule_of(role);
    const bool fits = array.shape.size() == rule.dimensions && is_floating_point(array.dtype) == rule.floats &&
                      array.shape[0] >= 1 && array.shape[0] <= kMaxArrayRows &&
                      (rule.dimensions == 1 || (array.shape[1] >= 1 && array.shape[1] <= kMaxArrayColumns));
    if (!fits) {
      throw Error("DAT006", concat(rule.what, " must be ", rule.dimensions == 1 ? "a list" : "a table", " of ",
                                   rule.floats ? "numbers" : "whole numbers", ", not ", dtype_name(array.dtype), " ",
                                   shape_text(array.shape)))
          .where(place);
    }
    if (!rule.floats) return;
    const std::vector<float> values = to_float_vector(array);
    const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
    if (bad == values.end()) return;
    throw Error("DAT007", concat(rule.what, " holds a value that is not finite"))
        .where(place)
        .detail(concat("value ", *bad, " at element ", bad - values.begin()));
  }

  Tensor converted(const Tensor& source, const std::string& place) {
    if (!stored_ || *stored_ == source.dtype) return source;
    const std::vector<float> values = to_float_vector(source);
    Tensor result = Tensor::zeros(*stored_, source.shape);
    auto* out = const_cast<std::byte*>(result.data);
    if (*stored_ == DType::kFloat32) {
      std::memcpy(out, values.data(), result.nbytes());
      return result;  // what training computes with; float64 is read in this way, too
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint16_t half = *stored_ == DType::kFloat16 ? to_half(values[i]) : to_upper_half(values[i]);
      std::memcpy(out + 2 * i, &half, 2);
    }
    const std::vector<float> back = to_float_vector(result);
    const auto lost = std::find_if(back.begin(), back.end(), [](float value) { return !std::isfinite(value); });
    if (lost != back.end()) {
      throw Error("DAT007", concat("a value does not fit into ", dtype_name(*stored_)))
          .where(place)
          .detail(concat("value ", values[static_cast<std::size_t>(lost - back.begin())]));
    }
    if (!same_bits(values, back)) rounded_to_ = dtype_name(*stored_);
    return result;
  }

  void append(const Tensor& tensor, PackedArray row) {
    const std::uint64_t bytes = tensor.nbytes();
    std::uint64_t at = file_ ? (file_->size() + kPackedAlignment - 1) / kPackedAlignment * kPackedAlignment : 0;
    if (file_ && at + bytes > request_.file_bytes) {
      finish_file();
      at = 0;
    }
    if (!file_) file_ = std::make_unique<AtomicFile>(packed_arrays(folder_, file_bytes_.size()));
    constexpr char kZeros[kPackedAlignment] = {};
    file_->write(kZeros, at - file_->size());
    row.file = static_cast<std::uint32_t>(file_bytes_.size());
    row.offset = at;
    file_->write(tensor.data, bytes);
    arrays_.push_back(row);
  }

  void finish_file() {
    if (!file_) return;
    file_->commit();
    file_bytes_.push_back(file_->size());
    report_.bytes += file_->size();
    file_.reset();
  }

  void check_length(std::int64_t stated, const PackedPair& pair, ArrayRole role, std::uint16_t& stored) const {
    if (pair.array(role) == PackedPair::kNoArray) return;
    const std::uint32_t length = arrays_[pair.array(role)].shape[0];
    stored = static_cast<std::uint16_t>(std::min<std::uint32_t>(length, PairEntry::kMaxLength));
    if (stated < 0 || stated == length) return;
    throw Error("DAT006", concat(rule_of(role).what, " and manifest disagree on the length"))
        .detail(concat("manifest  ", stated))
        .detail(concat("array     ", length));
  }

  void write_index() {
    std::string names;
    for (std::size_t m = 0; m < index_.manifests(); ++m) {
      const std::string_view bytes = index_.manifest_bytes(m);
      names += concat(content_hash(bytes), "\n", bytes.size(), "\n", manifest_pairs_[m], "\n",
                      index_.manifest_language(m), "\n", shown_value(file_name(index_.manifest_path(m))), "\n");
    }
    for (const std::uint64_t bytes : file_bytes_) names += concat(bytes, "\n");
    for (const std::string& name : speakers_.names()) names += name + "\n";
    for (const std::string& name : languages_.names()) names += name + "\n";
    names += rounded_to_ + "\n";

    PackedHeader header;
    std::memcpy(header.magic, kPackedMagic.data(), kPackedMagic.size());
    header.version = kPackedVersion;
    header.pairs = pairs_.size();
    header.arrays = arrays_.size();
    header.names_bytes = names.size();
    header.manifests = index_.manifests();
    header.array_files = file_bytes_.size();
    header.speakers = speakers_.names().size();
    header.languages = languages_.names().size();
    std::string tables;
    tables.reserve(pairs_.size() * sizeof(PackedPair) + arrays_.size() * sizeof(PackedArray) + names.size());
    tables.append(reinterpret_cast<const char*>(pairs_.data()), pairs_.size() * sizeof(PackedPair));
    tables.append(reinterpret_cast<const char*>(arrays_.data()), arrays_.size() * sizeof(PackedArray));
    tables += names;
    header.index_bytes = sizeof header + tables.size();
    header.tables_crc = tables_checksum(tables);
    header.header_crc = header_checksum(header);
    AtomicFile file(packed_index(folder_), header.index_bytes);
    file.write(&header, sizeof header);
    file.write(tables);
    file.commit();
    report_.bytes += header.index_bytes;
  }

  const PackRequest request_;
  const std::string folder_;
  std::optional<DType> stored_;  // of floating-point arrays; empty: as in the source
  PairIndex index_;
  RecordParser parser_;
  Names speakers_, languages_;
  std::vector<PackedPair> pairs_;
  std::vector<PackedArray> arrays_;
  std::vector<std::uint64_t> manifest_pairs_, file_bytes_;
  std::unique_ptr<AtomicFile> file_;
  std::unordered_map<std::string, std::uint32_t> by_place_, by_content_;
  std::string rounded_to_;
  PackReport report_;
};

}  // namespace

PackReport pack_manifests(const PackRequest& request) {
  return Packer(request).run();
}

}  // namespace train_gpt_v2
