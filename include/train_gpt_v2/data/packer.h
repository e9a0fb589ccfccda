#pragma once
// Makes a packed set (packed_set.h) from pair manifests: every array is read once, checked, and stored once however
// many pairs name it or hold the same values.
//
// Everything is checked that does not need a model: records, types and dimensions, lengths against the manifest, finite
// values. The first record that cannot be used ends it. index.bin is written last, so a folder without it is no set.
// Errors: those of PairIndex and read_npy, DAT006, DAT007, IO002, IO003 (the folder holds something else).

#include <cstdint>
#include <string>
#include <vector>

namespace train_gpt_v2 {

struct PackRequest {
  std::vector<std::string> manifests;  // as in data.train_manifests
  std::string output;                  // a folder: new, empty, or with the rest of a pack that was interrupted
  std::string dtype;  // of conditions, emotion vectors and features: "", "fp32", "fp16", "bf16"; "" = as stored
  // "auto": condition and emotion vector, or the features of a record that names no condition; "online": features;
  // "both": whatever a record names.
  std::string conditioning = "auto";
  std::uint64_t file_bytes = std::uint64_t{4} << 30;  // a new arrays_K.bin begins where one would grow beyond this
};

struct PackReport {
  std::uint64_t pairs = 0, manifests = 0;
  std::uint64_t arrays = 0, named = 0;  // stored, and named by records
  std::uint64_t bytes = 0;              // of the set
  std::string rounded_to;               // PackedSet::rounded_to()
};

PackReport pack_manifests(const PackRequest& request);

}  // namespace train_gpt_v2
