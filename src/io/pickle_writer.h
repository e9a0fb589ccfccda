#pragma once
// A value tree as a pickle of protocol 2, with only what torch.load(weights_only=True) accepts.
// Errors: CKP003 naming the place of a value that has no such form. Threads: none.

#include <cstdint>
#include <functional>
#include <string>

#include "train_gpt_v2/io/value.h"

namespace train_gpt_v2 {

// Where a tensor's elements lie in the archive.
struct StoragePlace {
  std::uint64_t key = 0;      // the record data/<key>
  std::int64_t elements = 0;  // of the whole storage
  std::int64_t offset = 0;    // of the first element
};

// Calls `visit` for every tensor, in the order in which write_pickle() meets them.
void visit_tensors(const Value& root, const std::function<void(const Tensor&)>& visit);

// `place` is asked for every tensor in that order.
std::string write_pickle(const Value& root, const std::function<StoragePlace(const Tensor&)>& place);

}  // namespace train_gpt_v2
