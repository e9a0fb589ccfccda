#include "train_gpt_v2/app/demo_files.h"

#include <c10/util/Half.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::uint64_t kPairStream = 0x9A12;

std::string npy_header(std::string_view descriptor, std::span<const std::size_t> shape) {
  std::string text = concat("{'descr': '", descriptor, "', 'fortran_order': False, 'shape': (");
  for (std::size_t i = 0; i < shape.size(); ++i) text += concat(i == 0 ? "" : " ", shape[i], ",");
  if (shape.size() > 1) text.pop_back();
  text += "), }";
  constexpr std::size_t kMagic = 10;
  text.append(63 - (kMagic + text.size()) % 64, ' ');
  text += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(text.size() & 0xFF);
  header += static_cast<char>(text.size() >> 8);
  return header + text;
}

// One JSON object with the spacing of Python's json.dumps(ensure_ascii=False).
class JsonLine {
 public:
  JsonLine& add(std::string_view key, std::string_view value) { return raw(key, nlohmann::json(value).dump()); }
  JsonLine& add(std::string_view key, double value) {
    const std::string number = exact_number(value);
    return raw(key, number.find_first_of(".e") == std::string::npos ? number + ".0" : number);
  }
  JsonLine& add(std::string_view key, std::size_t value) { return raw(key, std::to_string(value)); }
  std::string text() const { return "{" + body_ + "}\n"; }

 private:
  JsonLine& raw(std::string_view key, std::string_view value) {
    body_ += concat(body_.empty() ? "" : ", ", nlohmann::json(key).dump(), ": ", value);
    return *this;
  }
  std::string body_;
};

std::string stored(std::string_view folder, const DemoClip& clip, std::string_view suffix = ".npy") {
  return concat(folder, "/", clip.id, suffix);
}

}  // namespace

std::string npy_bytes(NpyType type, std::span<const std::size_t> shape, std::span<const float> values) {
  if (type == NpyType::kFloat32) {
    std::string out = npy_header("<f4", shape);
    out.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
    return out;
  }
  TGV2_CHECK(type == NpyType::kFloat16);
  std::string out = npy_header("<f2", shape);
  std::vector<std::uint16_t> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), c10::detail::fp16_ieee_from_fp32_value);
  out.append(reinterpret_cast<const char*>(halves.data()), halves.size() * sizeof(std::uint16_t));
  return out;
}

std::string npy_bytes(std::span<const std::int32_t> values) {
  const std::size_t shape[] = {values.size()};
  std::string out = npy_header("<i4", shape);
  out.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  return out;
}

void write_plainly(const std::string& path, std::string_view content) {
  std::ofstream file(path, std::ios::binary);
  if (!file) throw Error("IO003", concat("cannot create a file: ", std::strerror(errno))).where(path);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (!file) throw Error("IO002", concat("writing failed: ", std::strerror(errno))).where(path);
}

std::string source_line(const DemoClip& clip) {
  return JsonLine()
      .add("id", clip.id)
      .add("text", clip.text)
      .add("audio", stored("audio", clip, ".wav"))
      .add("duration", clip.duration)
      .add("language", "am")
      .add("speaker", clip.speaker)
      .text();
}

std::string manifest_line(const DemoClip& clip) {
  return JsonLine()
      .add("id", clip.id)
      .add("audio_path", stored("audio", clip, ".wav"))
      .add("text", clip.text)
      .add("speaker", clip.speaker)
      .add("language", "am")
      .add("duration", clip.duration)
      .add("text_ids_path", stored("text_ids", clip))
      .add("text_len", clip.text_length)
      .add("codes_path", stored("codes", clip))
      .add("code_len", clip.code_length)
      .add("condition_path", stored("condition", clip))
      .add("condition_len", std::size_t{32})
      .add("emo_vec_path", stored("emo_vec", clip))
      .text();
}

bool is_validation_id(std::string_view id, double ratio) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  TGV2_CHECK(EVP_Digest(id.data(), id.size(), digest, &size, EVP_sha1(), nullptr) == 1);
  std::uint32_t remainder = 0;
  for (unsigned int i = 0; i < size; ++i) remainder = (remainder * 256 + digest[i]) % 1'000'000;
  return static_cast<double>(remainder) / 1e6 < ratio;
}

std::vector<DemoPair> make_pairs(const std::vector<DemoClip>& clips, std::size_t per_target,
                                 const std::vector<bool>& may_prompt, std::uint64_t seed) {
  std::map<std::string, std::vector<std::size_t>> speakers;
  for (std::size_t i = 0; i < clips.size(); ++i) speakers[clips[i].speaker].push_back(i);
  RandomStream stream(seed, kPairStream);
  std::vector<DemoPair> pairs;
  for (const auto& [speaker, members] : speakers) {
    for (const std::size_t target : members) {
      std::vector<std::size_t> prompts;
      for (const std::size_t other : members) {
        if (other != target && (may_prompt.empty() || may_prompt[other])) prompts.push_back(other);
      }
      for (std::size_t drawn = 0; drawn < std::min(per_target, prompts.size()); ++drawn) {
        std::swap(prompts[drawn], prompts[drawn + stream.below(prompts.size() - drawn)]);
        pairs.push_back({target, prompts[drawn]});
      }
    }
  }
  return pairs;
}

std::string pair_line(const DemoClip& target, const DemoClip& prompt, bool features) {
  JsonLine line;
  line.add("id", concat(target.id, "__", prompt.id))
      .add("speaker", target.speaker)
      .add("prompt_id", prompt.id)
      .add("prompt_audio_path", stored("audio", prompt, ".wav"))
      .add("prompt_condition_path", stored("condition", prompt))
      .add("prompt_condition_len", std::size_t{32})
      .add("prompt_emo_vec_path", stored("emo_vec", prompt))
      .add("prompt_duration", prompt.duration)
      .add("target_id", target.id)
      .add("target_audio_path", stored("audio", target, ".wav"))
      .add("target_text", target.text)
      .add("target_text_ids_path", stored("text_ids", target))
      .add("target_text_len", target.text_length)
      .add("target_codes_path", stored("codes", target))
      .add("target_code_len", target.code_length)
      .add("target_emo_vec_path", stored("emo_vec", target));
  if (features) {
    line.add("prompt_features_path", stored("features", prompt)).add("emo_features_path", stored("features", prompt));
  }
  return line.text();
}

}  // namespace train_gpt_v2
