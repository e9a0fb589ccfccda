// Real processes over Gloo on this machine: each test forks its ranks, which report by their exit status.

#include "train_gpt_v2/train/ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <torch/types.h>

#include <map>

#include "support/rank_processes.h"
#include "support/test_files.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/train/gradient_sync.h"

namespace train_gpt_v2 {
namespace {

using ::testing::HasSubstr;
using testing::run_ranks;

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
  EXPECT_EQ(env.port, 20000 + 41234567 % 12000);
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

// Rank 0 holds the store: without it the watch ends the others, else the broken sum is what they see.
TEST(Ranks, AKilledRankEndsTheOthersForAnotherTry) {
  for (const int victim : {0, 1}) {
    const testing::TemporaryFolder folder;
    const auto statuses = run_ranks(2, [&](Ranks& ranks) -> int {
      if (ranks.rank() == victim) ::raise(SIGKILL);
      add_log_file(folder.file("log.txt"));
      std::vector<double> never{0};
      try {
        ranks.sum(never);
      } catch (const Error& error) {
        log_raw(error.report());
        throw;
      }
      return 0;
    });
    EXPECT_EQ(statuses[static_cast<std::size_t>(victim)], 128 + SIGKILL);
    EXPECT_EQ(statuses[static_cast<std::size_t>(1 - victim)], 75);
    const std::string log = read_file(folder.file("log.txt"), 1 << 20);
    EXPECT_THAT(log, HasSubstr(concat("error[NET002]: contact with the other ranks is lost\n  --> rank ", 1 - victim)));
    EXPECT_THAT(log,
                HasSubstr(victim == 0 ? "the store of rank 0 cannot be reached any more\n  fix: start all ranks again"
                                      : "the log of the other ranks says why; start all of them again"));
    EXPECT_THAT(log, HasSubstr("the run continues from its newest checkpoint"));
  }
}

TEST(Ranks, AnErrorOfOneIsThrownByAll) {
  const auto statuses = run_ranks(3, [](Ranks& ranks) {
    ranks.agree(std::nullopt);
    std::optional<Error> own;
    if (ranks.rank() > 0) {
      own = Error("DAT001", concat("bad file \xff of ", ranks.rank()))
                .where("f", 3)
                .detail("a")
                .detail("b")
                .fix("mend it");
    }
    try {
      ranks.agree(own);
    } catch (const SharedError& error) {
      if (error.code() != "DAT001" || error.message().find(" of 1") == std::string::npos) return 1;
      if (error.place() != "f:3" || error.hint() != "mend it") return 2;
      if (error.details() != std::vector<std::string>{"a", "b", "on rank 1"}) return 3;
      std::vector<double> still{1.0};
      ranks.sum(still);  // they can meet
      return still[0] == 3 ? 0 : 4;
    }
    return 5;
  });
  EXPECT_THAT(statuses, ::testing::Each(0));
  Ranks one;
  one.agree(std::nullopt);
  EXPECT_THROW(one.agree(Error("DAT001", "bad")), Error);
}

ParameterSet gradients_of(const std::vector<std::int64_t>& sizes) {
  ParameterSet parameters;
  for (const std::int64_t size : sizes) parameters.tensors.push_back({"", {}, torch::zeros({size}), 0, 0, {}});
  return parameters;
}

void fill(ParameterSet& parameters, const Ranks& ranks) {
  float value = static_cast<float>(ranks.rank());
  for (TrainableTensor& tensor : parameters.tensors) tensor.grad.fill_(value += 10);
}

bool summed(const ParameterSet& parameters) {  // over two ranks
  float value = 1;
  for (const TrainableTensor& tensor : parameters.tensors) {
    if (!tensor.grad.eq(value += 20).all().item<bool>()) return false;
  }
  return true;
}

TEST(GradientSync, SendsInTheOrderOfBackwardAndOnlyInTheLastPass) {
  const auto statuses = run_ranks(2, [](Ranks& ranks) {
    ParameterSet parameters = gradients_of({100, 100, 100, 100});
    GradientSync sync(ranks, parameters, {2, 1, 0, 2}, {400, 800});  // buckets: [2], [1], [3, 0] or [1, 3], [0]
    if (sync.buckets() != 3) return 1;
    for (int window = 0; window < 2; ++window) {
      sync.begin_window();
      sync.stage_is_final(2);  // a pass that is not the last
      if (sync.begun()) return 2;
      fill(parameters, ranks);
      sync.begin_last_pass();
      sync.stage_is_final(0);
      if (!sync.begun()) return 3;
      std::vector<double> numbers{1};
      if (ranks.rank() == 0) sync.stage_is_final(2);
      ranks.sum(numbers);  // between sums of gradients, at another place on each rank
      if (ranks.rank() == 1) sync.stage_is_final(1);
      sync.finish();
      if (numbers[0] != 2 || !summed(parameters) || sync.begun()) return 4;
      if (sync.sent_during_backward() != (ranks.rank() == 0 ? 3u : 1u)) return 5;
    }
    return 0;
  });
  EXPECT_THAT(statuses, ::testing::Each(0));
}

TEST(GradientSync, WithoutALastPassEverythingIsSentAtTheEnd) {
  const auto statuses = run_ranks(2, [](Ranks& ranks) {
    ParameterSet parameters = gradients_of({5, 300, 7});
    GradientSync sync(ranks, parameters, {0, 1, 2}, {16, 1024});
    for (int window = 0; window < 2; ++window) {
      parameters.tensors[1].grad = torch::zeros({3 - window});  // a buffer that was replaced
      fill(parameters, ranks);
      sync.begin_window();
      if (ranks.rank() == 1) {
        sync.begin_last_pass();
        sync.stage_is_final(2);
      }
      sync.finish();
      if (!summed(parameters)) return 1;
    }
    return 0;
  });
  EXPECT_THAT(statuses, ::testing::Each(0));
}

}  // namespace
}  // namespace train_gpt_v2
