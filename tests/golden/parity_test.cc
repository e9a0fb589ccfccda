// The recorded run of the Python trainer, followed step by step (fixtures/expected/trainer_run.json).
#include <cmath>
#include <sstream>

#include "support/fixture_run.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using testing::fixture_json;
using testing::fixture_options;
using testing::TemporaryFolder;

// Limits of the fixtures' README.
constexpr double kLossLimit = 5e-6, kNormLimit = 1e-5, kWeightLimit = 3e-5;

void expect_steps(const std::string& directory, const nlohmann::json& run, std::size_t first_step) {
  const auto lines = testing::metrics_of(directory, "train");
  const auto& steps = run.at("steps");
  ASSERT_EQ(lines.size(), steps.size() - first_step);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto& step = steps[first_step + i];
    EXPECT_EQ(lines[i].at("step"), step.at("step"));
    EXPECT_NEAR(lines[i].at("lr")[0].get<double>(), step.at("lr").get<double>(), 1e-15);
    const double norm = step.at("grad_norm_before_clip").get<double>();
    EXPECT_NEAR(lines[i].at("grad_norm").get<double>(), norm, kNormLimit * norm) << "step " << step.at("step");
    double loss = 0;
    const auto first = step.at("micro")[0].get<std::size_t>(), last = step.at("micro")[1].get<std::size_t>();
    for (std::size_t m = first; m <= last; ++m) {
      const auto& micro = run.at("micro_batches")[m];
      const auto value = [&micro](const char* key, int index) {
        return micro.is_array() ? micro[static_cast<std::size_t>(index)].get<double>() : micro.at(key).get<double>();
      };
      loss += (0.2 * value("text_loss", 0) + 0.8 * value("mel_loss", 1)) / static_cast<double>(last - first + 1);
    }
    EXPECT_NEAR(lines[i].at("loss").get<double>(), loss, kLossLimit) << "step " << step.at("step");
  }
}

// Largest difference to final.safetensors, without the key third of c_attn.bias (its gradient is zero in exact
// arithmetic, so Adam turns rounding noise into steps).
double weight_difference(const std::string& checkpoint, std::int64_t model_dim) {
  const LoadedFile ours = read_tensor_file(checkpoint);
  const LoadedFile expected = read_tensor_file(data_path("fixtures/expected/trainer/final.safetensors"));
  double largest = 0;
  for (const auto& [key, value] : expected.root.entries()) {
    if (!value.is_tensor()) continue;
    const std::vector<float> a = to_float_vector(ours.root.at("model").at(key.as_string()).as_tensor());
    const std::vector<float> b = to_float_vector(value.as_tensor());
    EXPECT_EQ(a.size(), b.size());
    const bool bias = ends_with(key.as_string(), "attn.c_attn.bias");
    for (std::size_t i = 0; i < b.size(); ++i) {
      const auto at = static_cast<std::int64_t>(i);
      if (bias && at >= model_dim && at < 2 * model_dim) continue;
      largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
    }
  }
  return largest;
}

// The parity run holds on both executors of the model.
class Parity : public ::testing::TestWithParam<const char*> {
 protected:
  Options options() const { return fixture_options({std::string("train.engine=") + GetParam()}); }
};
INSTANTIATE_TEST_SUITE_P(Engines, Parity, ::testing::Values("modules", "fused"),
                         [](const auto& engine) { return std::string(engine.param); });

TEST_P(Parity, FollowsTheRecordedRun) {
  const TemporaryFolder folder;
  const auto run = fixture_json("expected/trainer_run.json");
  Options options = this->options();
  options.data.order_file = testing::write_order(folder, run.at("micro_batches"));
  ASSERT_EQ(testing::train_here(options, folder.file("run")), ExitStatus::kOk);
  expect_steps(folder.file("run"), run, 0);
  EXPECT_LE(weight_difference(folder.file("run/latest.pt"), options.model.model_dim), kWeightLimit);
  EXPECT_TRUE(file_exists(folder.file("run/DONE")));
}

TEST_P(Parity, ContinuesThePythonCheckpoint) {
  const TemporaryFolder folder;
  const auto run = fixture_json("expected/trainer_run.json");
  Options options = this->options();
  options.data.order_file = testing::write_order(folder, run.at("micro_batches"), 12);
  for (const char* file : {"latest.pth", "model_step6.pth"}) {
    const std::string directory = folder.file(std::string("run_") + file);
    ASSERT_EQ(testing::train_here(options, directory, data_path(std::string("fixtures/expected/trainer/") + file)),
              ExitStatus::kOk);
    expect_steps(directory, run, 6);
    EXPECT_LE(weight_difference(directory + "/latest.pt", options.model.model_dim), kWeightLimit);
  }
}

TEST_P(Parity, MaskedRowsOfThePythonTrainer) {
  const TemporaryFolder folder;
  const auto frozen = fixture_json("expected/trainer_frozen_rows.json");
  auto run = fixture_json("expected/trainer_run.json");
  Options options = this->options();
  options.data.order_file = testing::write_order(folder, run.at("micro_batches"));
  options.trainable.text_rows = "python_mask";
  options.trainable.base_text_rows = frozen.at("frozen_rows").get<std::int64_t>();
  ASSERT_EQ(testing::train_here(options, folder.file("run")), ExitStatus::kOk);
  for (std::size_t i = 0; i < run.at("steps").size(); ++i) {
    run["steps"][i]["grad_norm_before_clip"] = frozen.at("steps")[i].at("grad_norm_before_clip");
  }
  run["micro_batches"] = frozen.at("micro_batches");
  expect_steps(folder.file("run"), run, 0);
  const LoadedFile ours = read_tensor_file(folder.file("run/latest.pt"));
  for (const auto& [key, rows] : frozen.at("row_l2_after_last_step").items()) {
    const Tensor& tensor = ours.root.at("model").at(key).as_tensor();
    const std::vector<float> values = to_float_vector(tensor);
    const std::size_t width = values.size() / rows.size();
    for (std::size_t r = 0; r < rows.size(); ++r) {
      double square = 0;
      for (std::size_t c = 0; c < width; ++c) square += double{values[r * width + c]} * values[r * width + c];
      EXPECT_NEAR(std::sqrt(square), rows[r].get<double>(), kWeightLimit) << key << " row " << r;
    }
  }
}

TEST(PythonResume, AsksHowTextRowsTrain) {
  const TemporaryFolder folder;
  Options options = fixture_options();
  options.trainable.base_text_rows = 160;
  try {
    testing::train_here(options, folder.file("run"), data_path("fixtures/expected/trainer/latest.pth"));
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "CFG016") << error.report();
  }
}

}  // namespace
}  // namespace train_gpt_v2
