#pragma once
// `train_gpt_v2 inspect FILE` and `inspect A B`: what is in a weight or checkpoint file, without a model and without
// executing anything. Each function writes its result to `out`; nothing else is printed.
//
// Errors: those of reading (IO…, CKP001, CKP002), CKP004 for a file without any tensor. Threads: none.

#include <cstddef>
#include <ostream>
#include <string>

namespace train_gpt_v2 {

// Kind, step, sections, tensors, what is ignored, where it can be resumed. `verify` reads and checks every byte first;
// otherwise only the description is read. `json`: one document.
void run_inspect(const std::string& file, bool verify, bool json, std::ostream& out);

// Differences of two files, name by name and bit by bit; a bare state dict counts as one under "model". Returns how
// many there are.
std::size_t run_inspect_compare(const std::string& a, const std::string& b, bool verify, bool json, std::ostream& out);

}  // namespace train_gpt_v2
