// Real processes over Gloo on this machine: each test forks its ranks, which report by their exit status.

#include "train_gpt_v2/train/ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <torch/types.h>
#include <unistd.h>

#include <functional>
#include <map>

#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/train/gradient_sync.h"

namespace train_gpt_v2 {
namespace {

// One that the system gives out now; tests run side by side.
std::uint16_t free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), size), 0);
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  ::close(fd);
  return ntohs(address.sin_port);
}

// Runs `body` in `size` processes and gives their exit statuses (128 + signal for a death).
std::vector<int> run_ranks(int size, const std::function<int(Ranks&)>& body) {
  const std::uint16_t port = free_port();
  std::vector<pid_t> children;
  for (int rank = 0; rank < size; ++rank) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      RankEnvironment env;
      env.rank = rank;
      env.size = env.local_size = size;
      env.local_rank = rank;
      env.port = port;
      int status = 99;
      try {
        Ranks ranks(env, "gloo", at::kCPU);
        try {
          status = body(ranks);
          if (status == 0) ranks.leave();
        } catch (const Error& error) {
          ranks.report_failure(error);
          status = static_cast<int>(error.status());
        }
      } catch (const Error& error) {
        std::fputs(error.report().c_str(), stderr);
        status = static_cast<int>(error.status());
      }
      std::_Exit(status);
    }
    children.push_back(pid);
  }
  std::vector<int> statuses;
  for (const pid_t pid : children) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    statuses.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
  }
  return statuses;
}

VariableLookup variables(std::map<std::string, std::string> values) {
  return [values = std::move(values)](const std::string& name) -> std::optional<std::string> {
    const auto found = values.find(name);
    return found == values.end() ? std::nullopt : std::optional(found->second);
  };
}

TEST(RankEnvironment, NothingSetMeansOneRank) {
  EXPECT_TRUE(read_rank_environment(variables({})).single());
  // A batch script sees these, but is one process.
  EXPECT_TRUE(read_rank_environment(variables({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}})).single());
}

TEST(RankEnvironment, TorchrunsVariables) {
  const RankEnvironment env = read_rank_environment(variables({{"RANK", "5"},
                                                               {"WORLD_SIZE", "8"},
                                                               {"LOCAL_RANK", "1"},
                                                               {"LOCAL_WORLD_SIZE", "4"},
                                                               {"MASTER_ADDR", "node7"},
                                                               {"MASTER_PORT", "29511"},
                                                               {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                                               {"TORCHELASTIC_RESTART_COUNT", "2"}}));
  EXPECT_EQ(env.rank, 5);
  EXPECT_EQ(env.size, 8);
  EXPECT_EQ(env.local_rank, 1);
  EXPECT_EQ(env.local_size, 4);
  EXPECT_EQ(env.address, "node7");
  EXPECT_EQ(env.port, 29511);
  EXPECT_TRUE(env.agent_store);
  EXPECT_EQ(env.attempt, "2");
}

TEST(RankEnvironment, SlurmStepOverTwoNodes) {
  const RankEnvironment env = read_rank_environment(variables({{"SLURM_STEP_NUM_TASKS", "8"},
                                                               {"SLURM_PROCID", "3"},
                                                               {"SLURM_LOCALID", "3"},
                                                               {"SLURM_STEP_NUM_NODES", "2"},
                                                               {"SLURM_STEP_NODELIST", "gpu[07-08],gpu12"},
                                                               {"SLURM_JOB_ID", "41234567"},
                                                               {"SLURM_STEP_ID", "0"}}));
  EXPECT_EQ(env.rank, 3);
  EXPECT_EQ(env.size, 8);
  EXPECT_EQ(env.local_rank, 3);
  EXPECT_EQ(env.address, "gpu07");
  EXPECT_EQ(env.port, 20000 + 41234567 % 20000);
  const auto one_node = variables(
      {{"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_PROCID", "1"}, {"SLURM_LOCALID", "1"}, {"SLURM_STEP_NODELIST", "a1"}});
  EXPECT_EQ(read_rank_environment(one_node).address, "127.0.0.1");
}

TEST(RankEnvironment, NonsenseIsNamed) {
  const std::vector<std::map<std::string, std::string>> bad{
      {{"RANK", "1"}},
      {{"WORLD_SIZE", "2"}},
      {{"RANK", "2"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}},
      {{"RANK", "-1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}},
      {{"RANK", "0"}, {"WORLD_SIZE", "two"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}},
      {{"RANK", "0"}, {"WORLD_SIZE", "99999999999999999999"}},
      {{"RANK", "0"}, {"WORLD_SIZE", "2"}},
      {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "70000"}},
      {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "80 "}}};
  for (const auto& one : bad) {
    try {
      read_rank_environment(variables(one));
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), "NET001");
      EXPECT_FALSE(error.hint().empty());
    }
  }
}

TEST(Ranks, SumsTextsAndBroadcasts) {
  const auto statuses = run_ranks(3, [](Ranks& ranks) {
    std::vector<double> counts{1.0, static_cast<double>(ranks.rank())};
    ranks.sum(counts);
    if (counts != std::vector<double>{3.0, 3.0}) return 1;
    const torch::Tensor a = torch::full({4}, ranks.rank() + 1.0f),
                        b = torch::full({2, 2}, 10.0f * static_cast<float>(ranks.rank()));
    ranks.start_sum({a, b})->wait();
    if (a[0].item<float>() != 6 || b[1][1].item<float>() != 30) return 2;
    const torch::Tensor c = torch::full({3}, static_cast<float>(ranks.rank()));
    ranks.broadcast(c, 2);
    if (c[0].item<float>() != 2) return 3;
    if (ranks.gather(std::string(static_cast<std::size_t>(ranks.rank()), 'x')) !=
        std::vector<std::string>{"", "x", "xx"})
      return 4;
    if (ranks.from_first(concat("says ", ranks.rank())) != "says 0") return 5;
    if (ranks.from_first(ranks.rank() != 0) || !ranks.from_first(ranks.rank() == 0)) return 6;
    return 0;
  });
  EXPECT_THAT(statuses, ::testing::Each(0));
}

TEST(Ranks, DisagreementIsNamedOnEveryRank) {
  const auto statuses = run_ranks(2, [](Ranks& ranks) {
    ranks.check_equal("nothing", "same");
    try {
      ranks.check_equal("the configuration", concat("hash ", ranks.rank()));
    } catch (const Error& error) {
      return error.code() == "NET003" && error.report().find("hash 1") != std::string::npos ? 0 : 1;
    }
    return 2;
  });
  EXPECT_THAT(statuses, ::testing::Each(0));
}

TEST(Ranks, AFailureEndsAllWithItsStatus) {
  const auto begin = std::chrono::steady_clock::now();
  const auto statuses = run_ranks(3, [](Ranks& ranks) -> int {
    if (ranks.rank() == 1) throw Error("DAT001", "a bad file").fix("mend it");
    std::vector<double> never{0};
    ranks.sum(never);
    return 0;
  });
  EXPECT_THAT(statuses, ::testing::Each(65));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
}

TEST(Ranks, AFailureOfTheFirstRankReachesTheOthers) {
  const auto statuses = run_ranks(2, [](Ranks& ranks) -> int {
    if (ranks.rank() == 0) throw Error("NUM001", "diverged").fix("lower the rate");
    std::vector<double> never{0};
    ranks.sum(never);
    return 0;
  });
  EXPECT_THAT(statuses, ::testing::Each(80));
}

TEST(Ranks, AKilledRankEndsTheOthersForAnotherTry) {
  for (const int victim : {0, 1}) {
    const auto statuses = run_ranks(2, [victim](Ranks& ranks) -> int {
      if (ranks.rank() == victim) ::raise(SIGKILL);
      std::vector<double> never{0};
      ranks.sum(never);
      return 0;
    });
    EXPECT_EQ(statuses[static_cast<std::size_t>(victim)], 128 + SIGKILL);
    EXPECT_EQ(statuses[static_cast<std::size_t>(1 - victim)], 75);
  }
}

// Two micro-batches: the first only adds, the second sends while backward is still going on; sums are those of one
// rank.
TEST(GradientSync, SumsOnceAndOverlapsWithBackward) {
  const auto statuses = run_ranks(2, [](Ranks& ranks) {
    const std::int64_t wide = GradientSync::kFirstBucketBytes / 4;  // a bucket of its own each
    ParameterSet parameters;
    std::vector<torch::Tensor> leaves;
    for (int i = 0; i < 3; ++i) {
      leaves.push_back(torch::ones({wide * (i == 0 ? 30 : 1)}).set_requires_grad(true));
      leaves.back().mutable_grad() = torch::zeros_like(leaves.back());
      parameters.tensors.push_back({"", leaves.back(), leaves.back().mutable_grad(), 0, 0, {}});
    }
    GradientSync sync(ranks, parameters, leaves);
    const auto backward = [&] {
      torch::Tensor loss = torch::zeros({});
      for (int i = 0; i < 3; ++i)
        loss = loss + leaves[static_cast<std::size_t>(i)].sum() * (i + 1.0 + 10.0 * ranks.rank());
      loss.backward();
    };
    for (int window = 0; window < 2; ++window) {
      for (const torch::Tensor& leaf : leaves) leaf.mutable_grad().zero_();
      backward();
      sync.begin_last_micro_batch();
      backward();
      sync.finish();
      for (int i = 0; i < 3; ++i) {
        const torch::Tensor& grad = leaves[static_cast<std::size_t>(i)].grad();
        if (!grad.eq(2 * ((i + 1.0) + (i + 11.0))).all().item<bool>()) return 1;
      }
    }
    if (sync.buckets() < 2 || sync.sent_during_backward() != sync.buckets()) return 2;
    for (const torch::Tensor& leaf : leaves) leaf.mutable_grad().fill_(ranks.rank() + 1.0f);
    sync.finish();  // a rank without a last micro-batch: everything is sent here
    if (leaves[0].grad()[0].item<float>() != 3) return 3;
    parameters.tensors[1].grad = torch::full({5}, ranks.rank() + 1.0f);  // a buffer that was replaced
    sync.finish();
    return parameters.tensors[1].grad[4].item<float>() == 3 ? 0 : 4;
  });
  EXPECT_THAT(statuses, ::testing::Each(0));
}

}  // namespace
}  // namespace train_gpt_v2
