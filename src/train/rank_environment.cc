#include "train_gpt_v2/train/rank_environment.h"

#include <charconv>
#include <cstdlib>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kMaxRanks = 1 << 16;

std::int64_t number(const VariableLookup& lookup, const std::string& name, std::int64_t low, std::int64_t high) {
  const std::optional<std::string> text = lookup(name);
  if (!text) {
    throw Error("NET001", concat("the launcher did not set ", name))
        .fix("start with torchrun, with srun, or with scripts/launch_local.sh; they set RANK, WORLD_SIZE and the rest");
  }
  std::int64_t value = 0;
  const auto [end, problem] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (problem != std::errc() || end != text->data() + text->size() || value < low || value > high) {
    throw Error("NET001", concat("the variable ", name, " is not a number from ", low, " to ", high))
        .detail(concat(name, "=", *text))
        .fix("correct or unset it");
  }
  return value;
}

std::int64_t number_or(const VariableLookup& lookup, const std::string& name, std::int64_t fallback,
                       std::int64_t high) {
  return lookup(name) ? number(lookup, name, 0, high) : fallback;
}

// The first host of a Slurm list: "node[03-07,9],gpu1" -> "node03".
std::string first_host(const std::string& list) {
  const std::size_t bracket = list.find('['), comma = list.find(',');
  if (bracket == std::string::npos || comma < bracket) return list.substr(0, comma);
  const std::size_t end = list.find_first_of(",-]", bracket);
  return list.substr(0, bracket) + list.substr(bracket + 1, end - bracket - 1);
}

RankEnvironment of_torchrun(const VariableLookup& lookup) {
  RankEnvironment env;
  env.size = static_cast<int>(number(lookup, "WORLD_SIZE", 1, kMaxRanks));
  env.rank = static_cast<int>(number(lookup, "RANK", 0, env.size - 1));
  env.local_rank = static_cast<int>(number_or(lookup, "LOCAL_RANK", env.rank, kMaxRanks));
  env.local_size = static_cast<int>(number_or(lookup, "LOCAL_WORLD_SIZE", env.size, kMaxRanks));
  env.agent_store = lookup("TORCHELASTIC_USE_AGENT_STORE").value_or("") == "True";
  env.attempt = lookup("TORCHELASTIC_RESTART_COUNT").value_or("0");
  if (env.single()) return env;
  const std::optional<std::string> address = lookup("MASTER_ADDR");
  if (!address || address->empty()) {
    throw Error("NET001", "WORLD_SIZE is set, but not MASTER_ADDR")
        .fix("export MASTER_ADDR and MASTER_PORT: where rank 0 can be reached");
  }
  env.address = *address;
  env.port = static_cast<std::uint16_t>(number(lookup, "MASTER_PORT", 1, 65535));
  return env;
}

// Only inside `srun`: a batch script also sees SLURM_NTASKS, but is one process.
RankEnvironment of_slurm(const VariableLookup& lookup) {
  RankEnvironment env;
  env.size = static_cast<int>(number(lookup, "SLURM_STEP_NUM_TASKS", 1, kMaxRanks));
  env.rank = static_cast<int>(number(lookup, "SLURM_PROCID", 0, env.size - 1));
  env.local_rank = static_cast<int>(number(lookup, "SLURM_LOCALID", 0, kMaxRanks));
  const std::string nodes = lookup("SLURM_STEP_NODELIST").value_or(lookup("SLURM_JOB_NODELIST").value_or(""));
  const std::int64_t node_count = number_or(lookup, "SLURM_STEP_NUM_NODES", 1, kMaxRanks);
  env.local_size = node_count == 1 ? env.size : 0;
  env.address = lookup("MASTER_ADDR").value_or(node_count == 1 || nodes.empty() ? "127.0.0.1" : first_host(nodes));
  // Jobs that share a node must not meet on one port, nor on one of an outgoing connection (Linux: from 32768 on).
  constexpr std::int64_t kFirstPort = 20000, kPorts = 12000;
  const std::int64_t job = number_or(lookup, "SLURM_JOB_ID", 0, INT64_MAX),
                     step = number_or(lookup, "SLURM_STEP_ID", 0, INT64_MAX);
  env.port = static_cast<std::uint16_t>(number_or(lookup, "MASTER_PORT", kFirstPort + (job + step) % kPorts, 65535));
  return env;
}

}  // namespace

RankEnvironment read_rank_environment(const VariableLookup& lookup) {
  if (lookup("RANK") || lookup("WORLD_SIZE")) return of_torchrun(lookup);
  if (lookup("SLURM_STEP_NUM_TASKS") && lookup("SLURM_PROCID")) return of_slurm(lookup);
  return {};
}

RankEnvironment read_rank_environment() {
  return read_rank_environment([](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    return value ? std::optional<std::string>(value) : std::nullopt;
  });
}

}  // namespace train_gpt_v2
