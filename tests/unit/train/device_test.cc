// Which device a run gets, and what it is told where there is none.
#include "train_gpt_v2/train/device.h"

#include <gmock/gmock.h>

#include "support/error_of.h"

namespace train_gpt_v2 {
namespace {

using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;

TEST(Device, ADriverTooOldForTheBuildIsNamedWithBothVersions) {
  const GpuProbe old{.count = 0, .insufficient = true, .driver = 12020, .runtime = 13000};
  const Error error = error_of([&] { usable_gpus(old); });
  EXPECT_EQ(error.code(), "GPU001");
  EXPECT_EQ(error.status(), ExitStatus::kConfig);
  EXPECT_EQ(error.message(), "the GPU driver is too old for this build");
  EXPECT_THAT(error.details(), ElementsAre("driver supports CUDA 12.2, this build needs CUDA 13.0"));
  EXPECT_EQ(error.hint(), "update the driver, or run with --device cpu");
}

TEST(Device, WithoutADriverThereIsNoGpuAndNoError) {
  EXPECT_EQ(usable_gpus({.count = 0, .insufficient = true, .driver = 0, .runtime = 13000}), 0);
  EXPECT_EQ(usable_gpus({}), 0);  // a build without CUDA
  EXPECT_EQ(usable_gpus({.count = 2, .insufficient = false, .driver = 13000, .runtime = 12080}), 2);
}

TEST(Device, AGpuThatIsNotThereIsNamed) {
  const Error error = error_of([] { choose_device("cuda:99"); });
  EXPECT_EQ(error.code(), "GPU002");
  EXPECT_EQ(error.status(), ExitStatus::kUsage);
  EXPECT_EQ(error.message(), "no such GPU: cuda:99");
  EXPECT_THAT(error.details(), ElementsAre(HasSubstr("usable GPUs here: ")));
  EXPECT_THAT(error.hint(), HasSubstr("--device auto or --device cpu"));
  EXPECT_EQ(error_of([] { choose_device("cuda:99", /*local_rank=*/3); }).message(),
            "no such GPU: cuda:99 for local rank 3");
}

TEST(Device, NamesThatAreNoneAreRefused) {
  for (const char* name : {"gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda:x", "CPU"}) {
    SCOPED_TRACE(name);
    const Error error = error_of([&] { choose_device(name); });
    EXPECT_EQ(error.code(), "ARG001");
    EXPECT_THAT(error.message(), HasSubstr(name));
    EXPECT_EQ(error.hint(), "use auto, cpu, cuda or cuda:N");
  }
  EXPECT_TRUE(choose_device("cpu").is_cpu());
}

}  // namespace
}  // namespace train_gpt_v2
