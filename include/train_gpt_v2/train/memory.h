#pragma once
// Memory of the device that trains: what was used at the highest, and what is still to be had.
//
// On CUDA these are the caching allocator's figures and the driver's; on the CPU the resident memory of this process
// (/proc/self/status) and what the system and the control group (container, Slurm job) still give.

#include <torch/types.h>

#include <cstdint>
#include <optional>

namespace train_gpt_v2 {

// Bytes in use at their highest since the start or the last reset.
std::uint64_t peak_memory_bytes(at::Device device);
// Begins the measurement anew; memory held for later use is given back first. Where the system does not allow it (CPU),
// the peak stays that of the process.
void reset_peak_memory(at::Device device);
// Bytes this process may have in all: those in use now and those that are free. Nothing where it cannot be told.
std::optional<std::uint64_t> memory_within_reach(at::Device device);
// Of the card or the machine, for the fallback table.
std::uint64_t total_memory(at::Device device);

}  // namespace train_gpt_v2
