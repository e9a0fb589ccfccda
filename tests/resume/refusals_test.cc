// Runs that are refused before their first step: what they say, and that nothing in the run directory changes.
#include <gmock/gmock.h>

#include <filesystem>

#include "support/error_of.h"
#include "support/resume_run.h"
#include "train_gpt_v2/app/model_source.h"

namespace train_gpt_v2 {
namespace {

using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using testing::small_run;
using testing::TemporaryFolder;
using testing::train_here;

// Two steps in folder/run.
std::string short_run(const TemporaryFolder& folder) {
  const std::string run = folder.file("run");
  EXPECT_EQ(train_here(small_run(), run, "auto", 2), ExitStatus::kOk);
  return run;
}

TEST(Refusals, ARunWithoutTrainingData) {
  const TemporaryFolder folder;
  const Error error = error_of([&] { train_here(small_run({"data.train_manifests=[]"}), folder.file("run")); });
  EXPECT_EQ(error.code(), "CFG014");
  EXPECT_EQ(error.status(), ExitStatus::kConfig);
  EXPECT_EQ(error.message(), "data.train_manifests is empty: there is nothing to train on");
  EXPECT_THAT(error.hint(), HasSubstr(R"("train_manifests": ["train_pairs.jsonl::am"])"));
}

TEST(Refusals, DataThatMakeNoStep) {
  const TemporaryFolder folder;
  for (const char* schedule : {"cosine", "constant"}) {  // 24 pairs, four a batch
    const Error error = error_of([&] {
      train_here(small_run({"train.max_steps=null", "train.epochs=2", "train.grad_accumulation=13",
                            std::string("optimizer.schedule=") + schedule}),
                 folder.file("run"));
    });
    EXPECT_EQ(error.code(), "CFG015");
    EXPECT_EQ(error.status(), ExitStatus::kConfig);
    EXPECT_EQ(
        error.message(),
        "the run would have no step: its data make 12 micro-batches, and one step takes 13 (train.grad_accumulation)");
    EXPECT_EQ(error.hint(), "lower train.grad_accumulation, or raise train.epochs");
  }
  EXPECT_FALSE(file_exists(folder.file("run/DONE")));
  const auto recorded = testing::fixture_json("expected/trainer_run.json").at("micro_batches");
  const std::string order = testing::write_order(folder, nlohmann::json::array({recorded.at(0)}));
  EXPECT_EQ(error_of([&] { train_here(small_run({"data.order_file=" + order}), folder.file("run")); }).hint(),
            "lower train.grad_accumulation, or name a longer data.order_file");
}

TEST(Refusals, AFreshStartAmongCheckpoints) {
  const TemporaryFolder folder;
  const std::string run = short_run(folder);
  const auto before = list_directory(run);
  const Error error = error_of([&] { train_here(small_run(), run, "none"); });
  EXPECT_EQ(error.code(), "CKP011");
  EXPECT_EQ(error.status(), ExitStatus::kConfig);
  EXPECT_EQ(error.message(), "the run directory already holds checkpoints");
  EXPECT_EQ(error.place(), run);
  EXPECT_THAT(error.hint(), ::testing::AllOf(HasSubstr("--resume auto"), HasSubstr("another --output-dir")));
  EXPECT_EQ(list_directory(run), before);
  EXPECT_EQ(train_here(small_run(), folder.file("empty"), "none", 1), ExitStatus::kOk);
}

TEST(Refusals, ARunOfWhichNoCheckpointIsWhole) {
  const TemporaryFolder folder;
  const std::string run = short_run(folder);
  const std::string file = path_join(run, "model_step2.pth");  // latest.* are further names of it
  std::filesystem::resize_file(file, file_size(file) / 2);
  const Error error = error_of([&] { train_here(small_run(), run); });
  EXPECT_EQ(error.code(), "CKP012");
  EXPECT_EQ(error.status(), ExitStatus::kBadData);
  EXPECT_EQ(error.message(), "no checkpoint in the run directory can be used");
  EXPECT_EQ(error.place(), run);
  EXPECT_THAT(error.hint(), ::testing::AllOf(HasSubstr("the warnings above"), HasSubstr("another --output-dir")));
  EXPECT_THAT(read_file(path_join(run, "log.txt"), 16 << 20), HasSubstr("left alone"));
}

TEST(Refusals, ACheckpointNameThatMeansTwoFiles) {
  const TemporaryFolder folder;
  const auto before = std::filesystem::current_path();
  std::filesystem::create_directory(folder.file("here"));
  std::filesystem::current_path(folder.file("here"));
  const std::string run = folder.file("run"), here = absolute_path("latest.pt"),
                    there = folder.write("run/latest.pt", "one");
  EXPECT_EQ(find_resume_file("latest.pt", run), there);
  folder.write("here/latest.pt", "one");
  EXPECT_EQ(find_resume_file("latest.pt", run), there);  // either, where the content is the same
  folder.write("here/latest.pt", "two");
  const Error error = error_of([&] { find_resume_file("latest.pt", run); });
  EXPECT_EQ(find_resume_file("./latest.pt", run), here);  // as the error says
  std::filesystem::current_path(before);
  EXPECT_EQ(error.code(), "CKP013");
  EXPECT_EQ(error.status(), ExitStatus::kUsage);
  EXPECT_THAT(error.message(), HasSubstr("\"latest.pt\" exists in the working directory and in the run directory"));
  EXPECT_THAT(error.details(), ElementsAre(here, there));
  EXPECT_EQ(error.hint(), "name the one you mean with its folder");
}

// The configuration of a newer program has keys that nobody here knows: the format is what must be said.
TEST(Refusals, ACheckpointOfANewerProgram) {
  const TemporaryFolder folder;
  const std::string run = short_run(folder), path = path_join(run, "model_step2.pth");
  Value root = Value::dict(), ours = Value::dict();
  {
    const LoadedFile file = read_tensor_file(path);
    for (const auto& [key, value] : file.root.entries()) root.set(key, value);
    for (const auto& [key, value] : file.root.at("train_gpt_v2").entries()) ours.set(key, value);
    auto config = nlohmann::json::parse(ours.at("config").as_string());
    config["train"]["key_of_tomorrow"] = true;
    ours.set("format_version", 2);
    ours.set("config", config.dump());
    root.set("train_gpt_v2", ours);
    write_torch_file(path, root);
  }
  for (const char* name : {"latest.pt", "latest.pth"}) remove_file(path_join(run, name));
  ModelRequest use;
  use.checkpoint = path;
  const std::vector<std::function<void()>> ways{
      [&] { train_here(small_run(), run); }, [&] { train_here(small_run(), folder.file("other"), path); },
      [&] { train_here(small_run({"init.from=" + path}), folder.file("fresh")); }, [&] { load_model(use); }};
  for (std::size_t i = 0; i < ways.size(); ++i) {
    SCOPED_TRACE(i);
    const Error error = error_of(ways[i]);
    EXPECT_EQ(error.code(), "CKP006") << error.report();
    EXPECT_EQ(error.status(), ExitStatus::kBadData);
    EXPECT_EQ(error.message(), "this checkpoint has format 2; this program reads up to 1");
    EXPECT_EQ(error.place(), path);
    EXPECT_EQ(error.hint(), "update train_gpt_v2");
  }
}

}  // namespace
}  // namespace train_gpt_v2
