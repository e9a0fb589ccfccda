#include "train_gpt_v2/train/sample_cases.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/npy.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMaxFile = 16ull << 20;
constexpr std::size_t kMaxCases = 10'000, kMaxLine = 64 << 10, kMaxId = 200, kMaxText = 8000;
constexpr std::int64_t kFeatureSize = 1024, kMaxFrames = 20'000;

const std::vector<std::string>& known_fields() {
  static const std::vector<std::string> fields{"id",
                                               "text",
                                               "text_ids",
                                               "prompt",
                                               "condition_path",
                                               "emo_vec_path",
                                               "speaker_features_path",
                                               "emotion_features_path",
                                               "emotion_alpha",
                                               "reference_codes_path",
                                               "category",
                                               "emotion",
                                               "translation",
                                               "speaker"};
  return fields;
}

// One line of the file, with its place for messages.
class CaseLine {
 public:
  CaseLine(const std::string& file, long line, std::string_view content) : file_(file), line_(line) {
    if (content.size() > kMaxLine) throw problem(concat("a line of more than ", kMaxLine, " bytes"));
    if (!valid_utf8(content)) throw problem("the line is not UTF-8");
    json_ = Json::parse(content, nullptr, /*allow_exceptions=*/false);
    if (!json_.is_object()) throw problem("the line is not a JSON object");
  }

  Error problem(const std::string& message) const { return Error("DAT092", message).where(file_, line_); }
  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  const Json& operator[](const char* key) const { return json_.at(key); }

  std::string text(const char* key) const {
    if (!has(key)) return {};
    if (!json_[key].is_string()) throw problem(concat("\"", key, "\" is not text"));
    std::string value = json_[key].get<std::string>();
    if (value.size() > kMaxText) throw problem(concat("\"", key, "\" is longer than ", kMaxText, " bytes"));
    if (value.find('\0') != std::string::npos) throw problem(concat("\"", key, "\" holds a zero byte"));
    return value;
  }

  std::string path(const char* key) const {
    const std::string value = text(key);
    return value.empty() ? value : absolute_path(path_join(parent_path(file_), value));
  }

  void warn_about_unknown(std::set<std::string>& warned) const {
    for (const auto& [key, value] : json_.items()) {
      const auto& known = known_fields();
      if (std::find(known.begin(), known.end(), key) != known.end() || !warned.insert(key).second) continue;
      const std::string nearest = nearest_name(key, known);
      log_warning("sample", file_, ":", line_, ": the field \"", key.substr(0, 80), "\" is not used",
                  nearest.empty() ? "" : concat("; did you mean \"", nearest, "\"?"));
    }
  }

 private:
  const std::string& file_;
  long line_;
  Json json_;
};

std::vector<std::int32_t> text_of(const CaseLine& line, const std::string& text, const CaseContext& context) {
  std::vector<std::int32_t> ids;
  if (line.has("text_ids")) {
    const Json& list = line["text_ids"];
    if (!list.is_array()) throw line.problem("\"text_ids\" is not a list");
    for (const Json& item : list) {
      const bool fits = item.is_number_integer() && item.get<double>() >= 0 &&
                        item.get<double>() < static_cast<double>(context.model.text_rows());
      if (!fits) {
        throw line.problem(concat("a text id is not a whole number from 0 to ", context.model.text_rows() - 1))
            .detail("found " + item.dump(-1, ' ', true).substr(0, 80));
      }
      ids.push_back(item.get<std::int32_t>());
    }
  } else {
    if (text.empty()) throw line.problem("the case has neither \"text\" nor \"text_ids\"");
    if (!context.tokenizer) {
      throw line.problem("the text cannot be split into ids: no tokenizer is known")
          .fix("name data.tokenizer in the configuration (--set data.tokenizer=FILE), or give text_ids");
    }
    ids = context.tokenizer->encode(text, context.language);
  }
  if (ids.empty()) throw line.problem("the text has no ids");
  if (static_cast<std::int64_t>(ids.size()) > context.model.max_text_tokens) {
    throw line.problem(concat("a text of ", ids.size(), " ids; the model takes ", context.model.max_text_tokens))
        .fix("split the text into sentences, one case each");
  }
  return ids;
}

void check_shape(const CaseLine& line, const std::string& path, const std::vector<std::int64_t>& expected) {
  if (path.empty()) return;
  const Tensor header = read_npy_header(path);
  std::vector<std::int64_t> shape = header.shape;
  while (shape.size() > expected.size() && shape.front() == 1) shape.erase(shape.begin());  // a batch of one
  bool fits = is_floating_point(header.dtype) && shape.size() == expected.size();
  for (std::size_t i = 0; fits && i < shape.size(); ++i) {
    fits = expected[i] < 0 ? shape[i] > 0 && shape[i] <= kMaxFrames : shape[i] == expected[i];
  }
  if (fits) return;
  throw line.problem("an array of the case has another shape or type")
      .detail(path)
      .detail(concat("found ", dtype_name(header.dtype), " ", shape_text(header.shape), ", need floating ",
                     shape_text(expected), " (-1: up to ", kMaxFrames, ")"));
}

void read_voice(const CaseLine& line, const CaseContext& context, SampleCase& one) {
  one.condition_path = line.path("condition_path");
  one.emo_vec_path = line.path("emo_vec_path");
  one.speaker_features_path = line.path("speaker_features_path");
  one.emotion_features_path = line.path("emotion_features_path");
  one.prompt = line.text("prompt");
  const int ways = !one.prompt.empty() + !one.speaker_features_path.empty() + !one.condition_path.empty();
  if (ways == 0) one.prompt = context.default_prompt;
  const bool incomplete = one.condition_path.empty() != one.emo_vec_path.empty() ||
                          (one.speaker_features_path.empty() && !one.emotion_features_path.empty());
  if (incomplete || ways > 1 || (ways == 0 && one.prompt.empty())) {
    throw line.problem(ways > 1 ? "the case names its voice in two ways" : "the case does not say in whose voice")
        .fix("give one of: condition_path and emo_vec_path; prompt (a pair id); speaker_features_path");
  }
  if (line.has("emotion_alpha")) {
    if (!line["emotion_alpha"].is_number()) throw line.problem("\"emotion_alpha\" is not a number");
    one.emotion_alpha = line["emotion_alpha"].get<double>();
    if (!(one.emotion_alpha >= 0 && one.emotion_alpha <= 1))
      throw line.problem("\"emotion_alpha\" is not within 0 to 1");
  }
  check_shape(line, one.condition_path, {context.model.condition_num_latent, context.model.model_dim});
  check_shape(line, one.emo_vec_path, {context.model.model_dim});
  check_shape(line, one.speaker_features_path, {-1, kFeatureSize});
  check_shape(line, one.emotion_features_path, {-1, kFeatureSize});
}

std::vector<float> read_floats(const std::string& path) {
  if (path.empty()) return {};
  std::vector<float> values = to_float_vector(read_npy(path));
  if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
    throw Error("DAT007", "an array holds a value that is not finite").where(path);
  }
  return values;
}

}  // namespace

std::string id_problem(std::string_view id) {
  if (id.empty()) return "the id is empty";
  if (id.size() > kMaxId) return concat("the id is longer than ", kMaxId, " bytes");
  if (id.front() == '.') return "an id must not begin with a full stop";
  if (!valid_utf8(id)) return "the id is not UTF-8";
  for (const char c : id) {
    if (c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      return "the id holds a slash or a control character: it cannot be a file name";
    }
  }
  return "";
}

std::vector<SampleCase> read_cases(const std::string& path, const CaseContext& context) {
  const std::string file = absolute_path(path);
  const std::string content = read_file(file, kMaxFile);
  std::vector<SampleCase> cases;
  std::set<std::string> ids, warned;
  long number = 0;
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view bytes = trim(std::string_view(content).substr(begin, end - begin));
    begin = end + 1;
    ++number;
    if (bytes.empty()) continue;
    const CaseLine line(file, number, bytes);
    if (cases.size() >= kMaxCases) throw line.problem(concat("more than ", kMaxCases, " cases"));
    SampleCase one;
    one.id = line.text("id");
    if (const std::string problem = id_problem(one.id); !problem.empty()) throw line.problem(problem);
    if (!ids.insert(one.id).second) throw line.problem(concat("the id \"", one.id, "\" is used twice"));
    one.text = line.text("text");
    one.text_ids = text_of(line, one.text, context);
    one.category = line.text("category");
    one.emotion = line.text("emotion");
    one.speaker = line.text("speaker");
    read_voice(line, context, one);
    if (const std::string codes = line.path("reference_codes_path"); !codes.empty()) {
      const Tensor header = read_npy_header(codes);
      if (header.shape.empty() || header.numel() == 0)
        throw line.problem("the reference codes are empty").detail(codes);
      one.reference_length = header.numel();
    }
    line.warn_about_unknown(warned);
    cases.push_back(std::move(one));
  }
  if (cases.empty()) throw Error("DAT092", "the file holds no case").where(file);
  return cases;
}

Voice load_voice(const SampleCase& one, const ModelOptions& model, const Dataset* pairs) {
  Voice voice;
  if (one.prompt.empty() && !one.pair) {
    voice.condition = read_floats(one.condition_path);
    voice.emo_vec = read_floats(one.emo_vec_path);
    voice.speaker_features = read_floats(one.speaker_features_path);
    voice.emotion_features = read_floats(one.emotion_features_path);
    const auto latents = static_cast<std::size_t>(model.condition_num_latent * model.model_dim);
    // The files were looked at when the cases were read; they may have changed since.
    if (!one.condition_path.empty() &&
        (voice.condition.size() != latents || voice.emo_vec.size() != static_cast<std::size_t>(model.model_dim))) {
      throw Error("DAT006", "an array of a case changed its size").where(one.condition_path);
    }
    return voice;
  }
  TGV2_CHECK(pairs != nullptr);
  Batch batch;
  pairs->load(one.pair ? *one.pair : pairs->find(one.prompt), batch);
  voice.condition = std::move(batch.condition);
  voice.emo_vec = std::move(batch.emo_vec);
  voice.speaker_features = std::move(batch.features);
  voice.emotion_features = std::move(batch.emo_features);
  return voice;
}

}  // namespace train_gpt_v2
