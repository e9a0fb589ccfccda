// NCCL: one rank on one GPU, two ranks on two; skipped where they are missing. Everything that touches a GPU runs in
// children, because a process that has used CUDA cannot fork others that do.
#include <ATen/Context.h>
#include <gmock/gmock.h>

#include "support/fixture_run.h"
#include "support/rank_processes.h"
#ifdef TGV2_NCCL
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

namespace train_gpt_v2 {
namespace {

using testing::fork_ranks;
using testing::run_ranks;
using testing::TemporaryFolder;

#ifdef TGV2_NCCL

int gpus() {
  return fork_ranks(1, [](const RankEnvironment&) {
    return at::hasCUDA() ? static_cast<int>(at::detail::getCUDAHooks().deviceCount()) : 0;
  })[0];
}

// Work that keeps the GPU busy for long after its launch; its last kernel makes every element `value`.
torch::Tensor slowly(float value, at::Device device) {
  torch::Tensor a = torch::full({4096, 4096}, 1.0f / 4096, device);
  for (int i = 0; i < 50; ++i) a = a.matmul(a);
  return a * 0 + value;
}

TEST(Nccl, OneRankOnOneGpu) {
  if (gpus() < 1) GTEST_SKIP() << "no GPU here";
  const auto statuses = fork_ranks(1, [](const RankEnvironment&) {
    const at::Device device(at::kCUDA, 0);
    const auto options = c10d::ProcessGroupNCCL::Options::create();
    c10d::ProcessGroupNCCL group(c10::make_intrusive<c10d::HashStore>(), 0, 1, options);
    const at::cuda::CUDAStreamGuard other(at::cuda::getStreamFromPool(false, 0));  // not only the default stream
    std::vector<at::Tensor> tensors{slowly(3, device), torch::full({5}, 4.0f, device)};
    const auto work = group.allreduce_coalesced(tensors);
    work->wait();
    const torch::Tensor sum = tensors[0] + 1;  // behind the reduction, on this stream
    if (!sum.eq(4).all().item<bool>() || !tensors[1].eq(4).all().item<bool>()) return 1;
    group.broadcast(tensors)->wait();
    return tensors[1].eq(4).all().item<bool>() ? 0 : 2;
  });
  EXPECT_THAT(statuses, ::testing::Each(0));
}

TEST(Nccl, TwoRanksSumBehindTheKernelsThatWrite) {
  if (gpus() < 2) GTEST_SKIP() << "fewer than two GPUs here";
  const auto statuses = run_ranks(
      2,
      [](Ranks& ranks) {
        const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(ranks.rank()));
        const c10::cuda::CUDAGuard guard(device);
        for (int repeat = 0; repeat < 5; ++repeat) {
          const torch::Tensor a = slowly(static_cast<float>(ranks.rank() + repeat), device),
                              b = torch::ones({7}, device);
          const std::unique_ptr<PendingSum> sum = ranks.start_sum({a, b});
          std::vector<double> host{1};
          ranks.sum(host);  // over Gloo, meanwhile
          sum->wait();
          if (host[0] != 2 || !(a + 0).eq(2 * repeat + 1).all().item<bool>() || b[6].item<float>() != 2) return 1;
        }
        const torch::Tensor c = torch::full({3}, static_cast<float>(ranks.rank()), device);
        ranks.broadcast(c, 1);
        return c[0].item<float>() == 1 ? 0 : 2;
      },
      "nccl");
  EXPECT_THAT(statuses, ::testing::Each(0));
}

TEST(Nccl, TwoRanksTakeTheStepsOfOne) {
  if (gpus() < 2) GTEST_SKIP() << "fewer than two GPUs here";
  for (const char* engine : {"auto", "modules"}) {
    const TemporaryFolder folder;
    const Options options =
        testing::fixture_options({std::string("train.engine=") + engine, "train.layout=packed", "train.precision=fp32",
                                  "train.grad_accumulation=4", "train.max_steps=8",
                                  "train.loss_normalization=window_tokens", "distributed.shard_optimizer=true"});
    const auto train = [&](int size) {
      const auto statuses = fork_ranks(size, [&](const RankEnvironment& env) {
        SessionRequest request;
        request.options = options;
        request.run_directory = folder.file(std::to_string(size));
        request.device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(env.rank));
        request.ranks = env;
        request.build = "test";
        return static_cast<int>(run_training(request));
      });
      EXPECT_THAT(statuses, ::testing::Each(0));
      return testing::metrics_of(folder.file(std::to_string(size)), "train");
    };
    const auto one = train(1), two = train(2);
    ASSERT_EQ(one.size(), 8u);
    ASSERT_EQ(two.size(), 8u);
    for (std::size_t i = 0; i < one.size(); ++i) {
      EXPECT_NEAR(one[i].at("loss").get<double>(), two[i].at("loss").get<double>(), 1e-4) << engine << " " << i;
    }
  }
}

#else

TEST(Nccl, IsNotInThisBuild) {
  const auto statuses = fork_ranks(2, [](const RankEnvironment& env) {
    const Ranks ranks(env, "nccl", at::kCPU);
    return 0;
  });
  EXPECT_THAT(statuses, ::testing::Each(75));
}

#endif

}  // namespace
}  // namespace train_gpt_v2
