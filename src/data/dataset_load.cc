// Reading one sample: every array is checked before anything of it is used.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/dataset.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kFeatureSize = 1024;
constexpr std::int64_t kMaxFrames = 10'000;  // the conformer's 5,000 positions after subsampling by 2 (architecture §3)
constexpr std::int64_t kMinFrames = 3;       // one frame after subsampling
constexpr std::int64_t kMaxArrayLength = 1 << 20;

// A list of whole numbers whose length agrees with what the record states, or else (`stated` < 0) with what was found
// at opening, which is cut to the limit.
std::vector<std::int64_t> read_integers(const Tensor& array, const std::string& path, std::string_view what,
                                        std::int64_t stated, std::int64_t found, std::int64_t limit) {
  if (array.shape.size() != 1 || is_floating_point(array.dtype)) {
    throw Error("DAT006", concat(what, " must be a list of whole numbers, not ", dtype_name(array.dtype), " ",
                                 shape_text(array.shape)))
        .where(path)
        .fix("save an int32 array of one dimension");
  }
  const std::int64_t length = array.shape[0];
  const bool agrees = stated >= 0 ? length == stated : std::min(length, limit) == found;
  if (!agrees || length > kMaxArrayLength) {
    throw Error("DAT006", concat(what, " and manifest disagree on the length"))
        .where(path)
        .detail(stated >= 0 ? concat("manifest  ", stated) : concat("opening   ", found))
        .detail(concat("array     ", length))
        .fix("make the manifest again from the arrays; lengths that are left out are read from the arrays");
  }
  return to_int_vector(array);
}

// Appends a floating-point array of the given shape; Error DAT006 or DAT007 with the position of the first bad value.
void append_floats(const Tensor& array, const std::string& path, std::string_view what,
                   const std::vector<std::int64_t>& shape, std::vector<float>& values) {
  if (array.shape != shape || !is_floating_point(array.dtype)) {
    throw Error("DAT006", concat(what, " has the wrong shape or type"))
        .where(path)
        .detail(concat("expected  float32 or float16 ", shape_text(shape)))
        .detail(concat("found     ", dtype_name(array.dtype), " ", shape_text(array.shape)))
        .fix("it must come from a model with this model_dim and condition_num_latent");
  }
  const std::size_t first = values.size();
  if (array.dtype == DType::kFloat32) {
    values.resize(first + static_cast<std::size_t>(array.numel()));
    std::memcpy(values.data() + first, array.data, array.nbytes());
  } else {
    const std::vector<float> converted = to_float_vector(array);
    values.insert(values.end(), converted.begin(), converted.end());
  }
  const auto bad = std::find_if(values.begin() + static_cast<std::ptrdiff_t>(first), values.end(),
                                [](float value) { return !std::isfinite(value); });
  if (bad == values.end()) return;
  const auto at = static_cast<std::size_t>(bad - values.begin()) - first;
  const std::string shown = concat("value ", *bad, " at element ", at);
  values.resize(first);
  throw Error("DAT007", concat(what, " holds a value that is not finite"))
      .where(path)
      .detail(shown)
      .fix("compute this array again");
}

std::vector<std::int32_t> narrow(const std::vector<std::int64_t>& values, std::int64_t limit) {
  const auto count = std::min<std::size_t>(values.size(), static_cast<std::size_t>(limit));
  return {values.begin(), values.begin() + static_cast<std::ptrdiff_t>(count)};
}

}  // namespace

std::vector<std::int32_t> Dataset::read_text(const PairEntry& entry, const PairRecord& record) const {
  if (record.target_text_ids_path.empty()) {
    std::vector<std::int32_t> ids = tokenizer_->encode(record.target_text, languages()[entry.language()]);
    ids.resize(std::min<std::size_t>(ids.size(), static_cast<std::size_t>(text_limit_)));
    return ids;
  }
  const std::string path = index_.array_place(entry, record, ArrayRole::kTextIds);
  const auto ids = read_integers(index_.array(entry, record, ArrayRole::kTextIds), path, "text ids",
                                 record.target_text_len, entry.text_length, text_limit_);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < model_.number_text_tokens) continue;
    throw Error("DAT005", "a text id is outside the vocabulary")
        .where(path)
        .detail(concat("id ", ids[i], " at element ", i, "; ids run from 0 to ", model_.number_text_tokens - 1))
        .fix("the ids come from another tokenizer: preprocess again, or set model.number_text_tokens to its size");
  }
  return narrow(ids, text_limit_);
}

std::vector<std::int32_t> Dataset::read_codes(const PairEntry& entry, const PairRecord& record) const {
  const std::string path = index_.array_place(entry, record, ArrayRole::kCodes);
  const auto codes = read_integers(index_.array(entry, record, ArrayRole::kCodes), path, "codes",
                                   record.target_code_len, entry.code_length, code_limit_);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const std::int64_t code = codes[i];
    if (code >= 0 && code < model_.number_mel_codes && code != model_.start_mel_token &&
        code != model_.stop_mel_token) {
      continue;
    }
    const bool special = code == model_.start_mel_token || code == model_.stop_mel_token;
    throw Error("DAT004", special ? "a code equals the start or stop code" : "a code is outside the code book")
        .where(path)
        .detail(concat("code ", code, " at element ", i, "; start is ", model_.start_mel_token, ", stop ",
                       model_.stop_mel_token, ", codes run from 0 to ", model_.number_mel_codes - 1))
        .fix("codes are stored without start and stop; quantise this clip again");
  }
  return narrow(codes, code_limit_);
}

void Dataset::append_condition(const PairEntry& entry, const PairRecord& record, Batch& batch) const {
  const auto append = [&](ArrayRole role, std::string_view what, const std::vector<std::int64_t>& shape,
                          std::vector<float>& values) {
    append_floats(index_.array(entry, record, role), index_.array_place(entry, record, role), what, shape, values);
  };
  append(ArrayRole::kCondition, "the condition", {model_.condition_num_latent, model_.model_dim}, batch.condition);
  append(ArrayRole::kEmoVec, "the emotion vector", {model_.model_dim}, batch.emo_vec);
}

void Dataset::append_features(const PairEntry& entry, const PairRecord& record, Batch& batch) const {
  const auto append = [&](ArrayRole role, std::string_view what, std::vector<float>& values,
                          std::vector<std::int64_t>& begin) {
    const std::string path = index_.array_place(entry, record, role);
    const Tensor array = index_.array(entry, record, role);
    const std::int64_t frames = array.shape.size() == 2 ? array.shape[0] : 0;
    if (frames < kMinFrames || frames > kMaxFrames) {
      throw Error("DAT006", concat(what, " have the wrong shape: ", shape_text(array.shape)))
          .where(path)
          .detail(concat("expected  [frames, 1024] with ", kMinFrames, " to ", kMaxFrames, " frames"))
          .fix("extract the features again; clips longer than 200 s cannot be prompts");
    }
    append_floats(array, path, what, {frames, kFeatureSize}, values);
    begin.push_back(begin.back() + frames);
  };
  const std::size_t before = batch.features.size();
  const std::int64_t frame_before = batch.frame_begin.back();
  const bool batch_has_emotion = !batch.emo_features.empty();
  if (!record.emo_features_path.empty() && !batch_has_emotion) {  // so far the emotion came from the features
    batch.emo_features = batch.features;
    batch.emo_frame_begin = batch.frame_begin;
  }
  append(ArrayRole::kFeatures, "the prompt's features", batch.features, batch.frame_begin);
  if (!record.emo_features_path.empty()) {
    append(ArrayRole::kEmoFeatures, "the emotion features", batch.emo_features, batch.emo_frame_begin);
  } else if (batch_has_emotion) {
    batch.emo_features.insert(batch.emo_features.end(), batch.features.begin() + static_cast<std::ptrdiff_t>(before),
                              batch.features.end());
    batch.emo_frame_begin.push_back(batch.emo_frame_begin.back() + batch.frame_begin.back() - frame_before);
  }
}

void Dataset::load(std::uint32_t sample, Batch& batch) const {
  const PairEntry& entry = index_[sample];
  thread_local RecordParser parser;
  const std::size_t condition = batch.condition.size(), emo_vec = batch.emo_vec.size();
  const std::size_t features = batch.features.size(), emo_features = batch.emo_features.size();
  const std::size_t frames = batch.frame_begin.size(), emo_frames = batch.emo_frame_begin.size();
  std::string name;
  try {
    const PairRecord record = index_.record(entry, parser);
    name = record.id;
    const auto text = read_text(entry, record);
    const auto codes = read_codes(entry, record);
    if (model_.conditioning == "online") {
      append_features(entry, record, batch);
    } else {
      append_condition(entry, record, batch);
    }
    index_.check_whole(entry);
    batch.text.insert(batch.text.end(), text.begin(), text.end());
    batch.text_begin.push_back(static_cast<std::int64_t>(batch.text.size()));
    batch.codes.insert(batch.codes.end(), codes.begin(), codes.end());
    batch.code_begin.push_back(static_cast<std::int64_t>(batch.codes.size()));
    batch.samples.push_back(sample);
    batch.ids.push_back(std::move(name));
  } catch (const Error& error) {
    batch.condition.resize(condition);
    batch.emo_vec.resize(emo_vec);
    batch.features.resize(features);
    batch.frame_begin.resize(frames);
    batch.emo_features.resize(emo_features);
    batch.emo_frame_begin.resize(emo_frames);
    Error full = Error(error.code(), error.message()).at(place(sample)).detail(concat("sample: ", name));
    if (!error.place().empty()) std::move(full).detail(concat("file: ", error.place()));
    for (const std::string& line : error.details()) std::move(full).detail(line);
    throw std::move(full).fix(error.hint().empty() ? "repair the file, or set data.on_bad_sample to \"skip\""
                                                   : error.hint());
  }
}

}  // namespace train_gpt_v2
