#pragma once
// The files of the Python preprocessing tools, written as they write them (data_and_peers.md §1.2, §1.4 of the
// specification; README "Data" for users): .npy arrays, clip manifests, prompt/target pairs, the hash split.
//
// Files are written plainly, without fsync: the corpus is built in a folder that gets its name when all is there.
// Errors: IO002, IO003. All functions may be called from any thread.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

enum class NpyType { kInt32, kFloat32, kFloat16 };

// The bytes numpy.save writes (version 1, C order, header padded to 64).
std::string npy_bytes(NpyType type, std::span<const std::size_t> shape, std::span<const float> values);
std::string npy_bytes(std::span<const std::int32_t> values);

void write_plainly(const std::string& path, std::string_view content);

// One utterance as a line of train_manifest.jsonl / val_manifest.jsonl.
struct DemoClip {
  std::string id, speaker, text;
  double duration = 0;  // seconds
  std::size_t text_length = 0, code_length = 0;
};
std::string source_line(const DemoClip& clip);  // what the dataset tool hands to preprocessing
std::string manifest_line(const DemoClip& clip);

// Python: int(sha1(id), 16) % 1_000_000 / 1_000_000 < ratio.
bool is_validation_id(std::string_view id, double ratio);

// For each clip, grouped by speaker in order of name, min(per_target, others) distinct prompts of the same speaker;
// speakers with one clip have no pair. `may_prompt` limits the prompts (empty: any clip). Values index `clips`.
struct DemoPair {
  std::size_t target, prompt;
};
std::vector<DemoPair> make_pairs(const std::vector<DemoClip>& clips, std::size_t per_target,
                                 const std::vector<bool>& may_prompt, std::uint64_t seed);
// `features`: adds prompt_features_path and emo_features_path for online conditioning.
std::string pair_line(const DemoClip& target, const DemoClip& prompt, bool features);

}  // namespace train_gpt_v2
