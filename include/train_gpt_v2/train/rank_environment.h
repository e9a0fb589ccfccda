#pragma once
// Which rank of how many this process is, as its launcher says: torchrun's variables, else those of a Slurm step
// (libtorch.md §7). Without either, one rank. Errors: NET001 for variables that contradict each other or are missing.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace train_gpt_v2 {

struct RankEnvironment {
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;  // on this machine; the local rank chooses the device
  std::string address = "127.0.0.1";   // where rank 0, or the launcher's agent, keeps the store
  std::uint16_t port = 29500;
  bool agent_store = false;  // torchrun keeps the store itself
  std::string attempt;       // torchrun's restart count: a restarted run must not read the keys of the one before

  bool single() const { return size == 1; }
};

// `lookup` stands for getenv.
using VariableLookup = std::function<std::optional<std::string>(const std::string& name)>;

RankEnvironment read_rank_environment(const VariableLookup& lookup);
RankEnvironment read_rank_environment();

}  // namespace train_gpt_v2
