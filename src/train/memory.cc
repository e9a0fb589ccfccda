#include "train_gpt_v2/train/memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

#ifdef TGV2_CUDA_API
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>
#endif

namespace train_gpt_v2 {
namespace {

// A field of /proc/self/status or /proc/meminfo, which are in kB.
std::optional<std::uint64_t> proc_field(const char* file, const std::string& name) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.compare(0, name.size(), name) != 0) continue;
    return std::strtoull(line.c_str() + name.size(), nullptr, 10) * 1024;
  }
  return std::nullopt;
}

// A file of the control group that holds one number; "max" = no limit.
std::optional<std::uint64_t> group_number(const char* file) {
  std::ifstream in(file);
  std::uint64_t number = 0;
  if (!(in >> number)) return std::nullopt;
  return number;
}

// What the control group (version 2, else 1) still allows.
std::optional<std::uint64_t> group_room() {
  constexpr const char* kFiles[][2] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"}};
  for (const auto& [limit_file, used_file] : kFiles) {
    const auto limit = group_number(limit_file), used = group_number(used_file);
    if (limit && used) return *limit > *used ? *limit - *used : 0;
  }
  return std::nullopt;
}

}  // namespace

std::uint64_t peak_memory_bytes(at::Device device) {
#ifdef TGV2_CUDA_API
  if (device.is_cuda()) {
    return static_cast<std::uint64_t>(
        c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).allocated_bytes[0].peak);
  }
#endif
  (void)device;
  if (const auto peak = proc_field("/proc/self/status", "VmHWM:")) return *peak;
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

void reset_peak_memory(at::Device device) {
#ifdef TGV2_CUDA_API
  if (device.is_cuda()) {
    c10::cuda::CUDACachingAllocator::emptyCache();
    c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
    return;
  }
#endif
  (void)device;
  std::ofstream("/proc/self/clear_refs") << "5";  // proc(5): resets VmHWM
}

std::optional<std::uint64_t> memory_within_reach(at::Device device) {
#ifdef TGV2_CUDA_API
  if (device.is_cuda()) {
    std::size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) return std::nullopt;
    const auto reserved = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).reserved_bytes[0].current;
    return free + static_cast<std::uint64_t>(reserved);
  }
#endif
  (void)device;
  const auto available = proc_field("/proc/meminfo", "MemAvailable:");
  const auto resident = proc_field("/proc/self/status", "VmRSS:");
  if (!available || !resident) return std::nullopt;
  return std::min(*available, group_room().value_or(*available)) + *resident;
}

std::uint64_t total_memory(at::Device device) {
#ifdef TGV2_CUDA_API
  if (device.is_cuda()) return at::cuda::getDeviceProperties(device.index())->totalGlobalMem;
#endif
  (void)device;
  return static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace train_gpt_v2
