#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace train_gpt_v2 {

// Opens a regular file read-only and tells its size; FIFOs and devices are refused before they can block. The caller
// closes the descriptor. Errors: IO001, IO002, IO004.
int open_regular(const std::string& path, std::uint64_t max_bytes, std::size_t& size);

}  // namespace train_gpt_v2
