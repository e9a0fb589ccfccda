// Schedules, averages, scaler, monitors, groups, metrics, checkpoint files: the parts around the training loop.
#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "support/error_of.h"
#include "support/test_files.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/model/tensor_bridge.h"
#include "train_gpt_v2/train/device.h"
#include "train_gpt_v2/train/ema.h"
#include "train_gpt_v2/train/grad_scaler.h"
#include "train_gpt_v2/train/metrics.h"
#include "train_gpt_v2/train/monitors.h"
#include "train_gpt_v2/train/optimizer.h"
#include "train_gpt_v2/train/resume_rules.h"
#include "train_gpt_v2/train/schedule.h"
#include "train_gpt_v2/train/train_state.h"

namespace train_gpt_v2 {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

nlohmann::json golden() {
  return nlohmann::json::parse(read_file(testing::data_path("golden_peft.json"), 1 << 20));
}

Options tiny_options() {
  Options options;
  options.model.model_dim = 16;
  options.model.layers = 3;
  options.model.heads = 2;
  options.model.number_text_tokens = 30;
  options.model.number_mel_codes = 22;
  options.model.start_mel_token = 20;
  options.model.stop_mel_token = 21;
  options.model.max_text_tokens = 20;
  options.model.max_mel_tokens = 30;
  options.model.condition_module = {8, 8, 1, 1, "conv2d2", 1};
  options.model.emo_condition_module = {8, 8, 1, 1, "conv2d2", 0.1};
  return options;
}

std::unique_ptr<UnifiedVoice> tiny_model(const Options& options) {
  auto model = std::make_unique<UnifiedVoice>(options.model);
  initialise(*model, 3);
  return model;
}

TEST(Schedule, HfCosineIsExactAndRunsOver) {
  const auto expected = golden().at("cosine_warmup");
  OptimizerOptions options;
  options.schedule = "hf_cosine";
  options.warmup_steps = expected.at("warmup").get<std::int64_t>();
  const LearningRateSchedule schedule(options, expected.at("total").get<std::int64_t>());
  for (const auto& [step, value] : expected.at("values").items()) {
    EXPECT_NEAR(schedule.factor(std::stoll(step)), value.get<double>(), 1e-12) << step;
  }
}

TEST(Schedule, CosineIsClampedAtItsEndAndKeepsTheFloor) {
  OptimizerOptions options;
  options.warmup_steps = 10;
  options.min_lr_ratio = 0.05;
  const LearningRateSchedule schedule(options, 100);
  EXPECT_EQ(schedule.factor(0), 0);
  EXPECT_NEAR(schedule.factor(55), 0.05 + 0.95 * 0.5, 1e-12);
  EXPECT_NEAR(schedule.factor(100), 0.05, 1e-12);
  EXPECT_NEAR(schedule.factor(190), 0.05, 1e-12);
}

TEST(Schedule, OtherShapes) {
  OptimizerOptions options;
  options.warmup_steps = 0;
  options.schedule = "linear";
  EXPECT_NEAR(LearningRateSchedule(options, 100).factor(25), 0.75, 1e-12);
  options.schedule = "constant";
  EXPECT_EQ(LearningRateSchedule(options, 100).factor(99), 1.0);
  options.schedule = "wsd";  // stable for four fifths, then 1 - sqrt
  EXPECT_EQ(LearningRateSchedule(options, 100).factor(80), 1.0);
  EXPECT_NEAR(LearningRateSchedule(options, 100).factor(85), 0.5, 1e-12);
  EXPECT_NEAR(LearningRateSchedule(options, 100).factor(100), 0.0, 1e-12);
}

TEST(Schedule, BatchScaling) {
  OptimizerOptions options;
  EXPECT_EQ(batch_scaling(options, 96), 1.0);
  options.lr_scaling = "linear";
  EXPECT_DOUBLE_EQ(batch_scaling(options, 96), 1.5);
  options.lr_scaling = "sqrt";
  EXPECT_DOUBLE_EQ(batch_scaling(options, 96), std::sqrt(1.5));
}

TEST(GradScaler, FollowsTheReferenceTrace) {
  const auto trace = golden().at("gradscaler_growth_interval_3");
  GradScaler scaler(65536, 3);
  for (std::size_t i = 0; i < trace.at("found_inf").size(); ++i) {
    scaler.update(trace.at("found_inf")[i] == 0);
    EXPECT_EQ(scaler.scale(), trace.at("scale_tracker")[i][0].get<double>()) << i;
    EXPECT_EQ(scaler.save_state().at("_growth_tracker").as_int(), trace.at("scale_tracker")[i][1].get<std::int64_t>())
        << i;
  }
  GradScaler copy;
  copy.load_state(scaler.save_state());
  EXPECT_EQ(copy.scale(), scaler.scale());
}

TEST(GradScaler, GivesUpWithADiagnosis) {
  const auto given_up = [](GradScaler& scaler, int after) {
    for (int i = 1; i < after; ++i) EXPECT_NO_THROW(scaler.update(false)) << i;
    const Error error = error_of([&] { scaler.update(false); });
    EXPECT_EQ(error.code(), "NUM002");
    EXPECT_EQ(error.status(), ExitStatus::kDiverged);
    EXPECT_THAT(error.hint(), AllOf(HasSubstr("train.precision \"bf16\""), HasSubstr("optimizer.learning_rate")));
    return error.message();
  };
  GradScaler scaler(65536, 3), small(0x1p-8, 3);
  EXPECT_EQ(given_up(scaler, 20), "fp16 gradients stay non-finite: 20 steps in a row, loss scale 0.0625");
  EXPECT_THAT(given_up(small, 3), HasSubstr("3 steps in a row, loss scale 0.00048"));  // below 2^-10
}

TEST(Ema, DecayFollowsTheWarmUpCurve) {
  const Options options = tiny_options();
  const auto model = tiny_model(options);
  ParameterSet parameters = build_parameter_set(*model, options, 1);
  EmaOptions settings;
  settings.enabled = true;
  const Ema ema(parameters, settings);
  EXPECT_EQ(ema.decay_at(1), 0.0);
  const auto expected = golden().at("ema_decay_timm_power_3_4");
  for (const auto& [update, value] : expected.items()) {
    EXPECT_NEAR(ema.decay_at(std::stoll(update)), value.get<double>(), 1e-12) << update;
  }
}

TEST(Ema, AveragesSwapsAndRestores) {
  const Options options = tiny_options();
  const auto model = tiny_model(options);
  ParameterSet parameters = build_parameter_set(*model, options, 1);
  EmaOptions settings{true, 0.5, false, 1, "same"};
  Ema ema(parameters, settings);
  const torch::Tensor before = parameters.tensors[0].value.detach().clone();
  {
    const torch::NoGradGuard no_grad;
    parameters.tensors[0].value.detach().add_(1.0);
  }
  ema.update();
  const torch::Tensor raw = parameters.tensors[0].value.detach().clone();
  try {
    const Ema::ScopedSwap averaged(ema);
    EXPECT_TRUE(torch::allclose(parameters.tensors[0].value, before + 0.5, 1e-6, 1e-6));
    EXPECT_THROW(ema.save_state(), Error);  // never saved while swapped
    throw std::runtime_error("validation failed");
  } catch (const std::runtime_error&) {
  }
  EXPECT_TRUE(torch::equal(parameters.tensors[0].value, raw));
}

TEST(Ema, EveryKStepsWithTheDecayToTheK) {
  const Options options = tiny_options();
  const auto model = tiny_model(options);
  ParameterSet parameters = build_parameter_set(*model, options, 1);
  const torch::Tensor start = parameters.tensors[0].value.detach().clone();
  Ema each(parameters, {true, 0.9, false, 1, "same"}), third(parameters, {true, 0.9, false, 3, "same"});
  EXPECT_DOUBLE_EQ(third.decay_at(1), 0.9 * 0.9 * 0.9);
  {
    const torch::NoGradGuard no_grad;
    parameters.tensors[0].value.detach().add_(1.0);
  }
  for (int step = 1; step <= 6; ++step) {
    each.update();
    third.update();
    EXPECT_EQ(third.updates(), step / 3);
  }
  // Where the weights stand still, both have come equally far: 1 - 0.9^6 of the way.
  const auto first = [](const Ema& ema) {
    return to_float_vector(ema.save_state().entries().front().value.as_tensor())[0];
  };
  EXPECT_NEAR(first(each), start.flatten()[0].item<float>() + 1 - std::pow(0.9, 6), 1e-6);
  EXPECT_NEAR(first(third), first(each), 1e-6);
  // With the warm-up the curve is the same in steps, whatever k.
  const Ema every(parameters, {true, 0.9999, true, 1, "same"}), tenth(parameters, {true, 0.9999, true, 10, "same"});
  EXPECT_NEAR(tenth.decay_at(50), std::pow(every.decay_at(500), 10), 1e-12);
}

TEST(Ema, TakesFourBytesPerTrainableNumberAndNothingMore) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "AddressSanitizer's allocator does not count";
#endif
  Options options = tiny_options();
  options.model.model_dim = 256;
  options.trainable.freeze = {"mel_embedding"};
  const auto model = tiny_model(options);
  ParameterSet parameters = build_parameter_set(*model, options, 1);
  const auto expected = static_cast<double>(parameters.trainable_count()) * 4;
  const std::uint64_t before = allocated_bytes(at::kCPU);
  Ema ema(parameters, {true, 0.99, true, 1, "same"});
  EXPECT_NEAR(static_cast<double>(allocated_bytes(at::kCPU) - before), expected, 0.01 * expected);
  for (int step = 0; step < 3; ++step) ema.update();
  { const Ema::ScopedSwap averaged(ema); }
  EXPECT_NEAR(static_cast<double>(allocated_bytes(at::kCPU) - before), expected, 0.01 * expected);
}

TEST(Ema, StateRoundTripsAndShapesAreCompared) {
  const Options options = tiny_options();
  const auto model = tiny_model(options);
  ParameterSet parameters = build_parameter_set(*model, options, 1);
  const EmaOptions settings{true, 0.5, true, 1, "same"};
  Ema ema(parameters, settings);
  {
    const torch::NoGradGuard no_grad;
    for (TrainableTensor& tensor : parameters.tensors) tensor.value.detach().add_(0.25);
  }
  ema.update();
  ema.update();
  Ema fresh(parameters, settings);
  fresh.load_state(ema.save_state(), ema.updates(), ema.steps());
  EXPECT_TRUE(identical(fresh.save_state(), ema.save_state()));
  EXPECT_EQ(fresh.updates(), 2);
  Value wrong = Value::ordered_dict();
  const std::vector<float> three(3);
  wrong.set(parameters.tensors[0].name, Tensor::copy_of(DType::kFloat32, {3}, std::as_bytes(std::span(three))));
  EXPECT_THROW(fresh.load_state(wrong, 1, 1), Error);
  EXPECT_TRUE(identical(fresh.save_state(), ema.save_state()));  // nothing was copied before the error
}

TEST(Ema, JoinsTheOptimizersPass) {
  const Options options = tiny_options();
  struct Side {
    std::shared_ptr<UnifiedVoice> model;
    ParameterSet parameters;
    AdamW optimizer;
    Ema ema;
    explicit Side(const Options& options)
        : model(tiny_model(options)),
          parameters(build_parameter_set(*model, options, 1)),
          optimizer(parameters, options.optimizer),
          ema(parameters, EmaOptions{true, 0.9, false, 2, "same"}) {}
  } apart(options), joined(options);
  for (int step = 0; step < 4; ++step) {
    for (Side* side : {&apart, &joined}) {
      const torch::NoGradGuard no_grad;
      for (TrainableTensor& tensor : side->parameters.tensors) tensor.grad.copy_(tensor.value * (0.1 + step));
    }
    apart.optimizer.step(1.0);
    apart.ema.update();
    const JoinedAverages averages = joined.ema.update_with(joined.optimizer);
    EXPECT_TRUE(averages.joined);
    EXPECT_EQ(averages.values.empty(), step % 2 == 0);  // every second step
    joined.optimizer.step(1.0, averages);
  }
  EXPECT_EQ(joined.ema.updates(), 2);
  EXPECT_EQ(joined.ema.steps(), apart.ema.steps());
  const Value here = joined.ema.save_state(), there = apart.ema.save_state();
  for (const TrainableTensor& tensor : joined.parameters.tensors) {
    const torch::Tensor a = tensor_to_torch(here.at(tensor.name).as_tensor()),
                        b = tensor_to_torch(there.at(tensor.name).as_tensor());
    EXPECT_TRUE(torch::allclose(a, b, 1e-6, 1e-8)) << tensor.name;
  }
}

TEST(Groups, LayerDecayMatchesTheSpecification) {
  Options options = tiny_options();
  options.model.layers = 12;
  options.optimizer.layer_lr_decay = 0.95;
  options.optimizer.learning_rate = 1e-4;
  const auto model = tiny_model(options);
  const ParameterSet parameters = build_parameter_set(*model, options, 1);
  std::map<std::string, double> rate;
  for (const ParameterGroup& group : parameters.groups) rate[group.name] = group.learning_rate;
  EXPECT_NEAR(rate.at("default.h.11"), 0.95e-4, 1e-15);                   // top block
  EXPECT_NEAR(rate.at("default.h.0"), std::pow(0.95, 12) * 1e-4, 1e-15);  // bottom of twelve: 0.54
  EXPECT_NEAR(rate.at("default"), 1e-4, 1e-15);                           // embeddings and heads are exempt
}

TEST(Groups, ATensorThatGetsNoGradientCannotTrain) {
  Options options = tiny_options();
  options.trainable.train = {"perceiver_encoder.norm.gamma"};
  const auto model = tiny_model(options);
  const Error error = error_of([&] { build_parameter_set(*model, options, 1); });
  EXPECT_EQ(error.code(), "CFG011");
  EXPECT_EQ(error.status(), ExitStatus::kConfig);
  EXPECT_THAT(error.message(), HasSubstr("trainable.train names perceiver_encoder.norm.gamma, which gets no gradient"));
  EXPECT_THAT(error.report(), HasSubstr("model.conditioning is \"precomputed\""));
  EXPECT_THAT(error.hint(), HasSubstr("set model.conditioning to \"online\""));
  options.model.conditioning = "online";  // as the error says
  EXPECT_NO_THROW(build_parameter_set(*model, options, 1));
}

TEST(Groups, SomethingMustTrain) {
  Options options = tiny_options();
  options.trainable.freeze = {"**"};
  const auto model = tiny_model(options);
  const Error error = error_of([&] { build_parameter_set(*model, options, 1); });
  EXPECT_EQ(error.code(), "CFG013");
  EXPECT_EQ(error.status(), ExitStatus::kConfig);
  EXPECT_THAT(error.message(), HasSubstr("every parameter is frozen"));
  EXPECT_THAT(error.hint(), HasSubstr("trainable.freeze and trainable.train"));
}

TEST(Groups, EveryTensorIsInExactlyOne) {
  Options options = tiny_options();
  options.optimizer.groups = {{"heads", {"text_head", "mel_head"}, 3e-5, std::nullopt, 0.0},
                              {"text", {"wte"}, std::nullopt, 0.5, 0.01}};
  const auto model = tiny_model(options);
  const ParameterSet parameters = build_parameter_set(*model, options, 1);
  std::vector<int> seen(parameters.tensors.size(), 0);
  for (const ParameterGroup& group : parameters.groups) {
    for (const int member : group.members) ++seen[static_cast<std::size_t>(member)];
  }
  EXPECT_THAT(seen, ::testing::Each(1));
  options.optimizer.groups[1].match = {"text_head.weight"};
  EXPECT_THROW(build_parameter_set(*model, options, 1), Error);
  options.optimizer.groups.clear();
  options.trainable.freeze = {"no_such_module"};
  EXPECT_THROW(build_parameter_set(*model, options, 1), Error);
  options.trainable.freeze = {};
  options.trainable.train = {"conditioning_encoder"};  // gets no gradient with precomputed conditioning
  EXPECT_THROW(build_parameter_set(*model, options, 1), Error);
}

TEST(AdamW, IsTheTextbookUpdateAndItsStateRoundTrips) {
  Options options = tiny_options();
  options.trainable.freeze = {"*"};
  options.trainable.train = {"mel_head.bias"};
  options.optimizer.weight_decay = 0.1;
  options.optimizer.learning_rate = 1e-2;
  const auto model = tiny_model(options);
  ParameterSet parameters = build_parameter_set(*model, options, 1);
  ASSERT_EQ(parameters.tensors.size(), 1u);
  AdamW optimizer(parameters, options.optimizer);
  torch::Tensor value = parameters.tensors[0].value.detach().to(at::kDouble).clone();
  torch::Tensor m = torch::zeros_like(value), v = torch::zeros_like(value);
  for (int step = 1; step <= 5; ++step) {
    const torch::Tensor grad = torch::linspace(-1, 2, value.numel(), at::kDouble) * step;
    {
      const torch::NoGradGuard no_grad;
      parameters.tensors[0].grad.copy_(grad);
    }
    const ClipResult clip = optimizer.unscale_and_clip(1.0, 1.0, false);
    EXPECT_NEAR(clip.norm, grad.norm().item<double>(), 1e-6 * clip.norm);
    EXPECT_TRUE(clip.clipped);
    optimizer.step(0.5);
    const torch::Tensor g = grad / (grad.norm() + 1e-6);
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    value = value * (1 - 5e-3 * 0.1) -
            5e-3 * (m / (1 - std::pow(0.9, step))) / ((v / (1 - std::pow(0.999, step))).sqrt() + 1e-8);
    EXPECT_TRUE(torch::allclose(parameters.tensors[0].value.to(at::kDouble), value, 1e-5, 1e-7)) << step;
  }
  const Value saved = optimizer.save_state(1.0);
  AdamW fresh(parameters, options.optimizer);
  fresh.load_state(saved, parameters.all_names, false);
  EXPECT_TRUE(identical(saved, fresh.save_state(1.0)));
}

TEST(AdamW, NonFiniteGradientsAreReportedAndLeftAlone) {
  const Options options = tiny_options();
  const auto model = tiny_model(options);
  ParameterSet parameters = build_parameter_set(*model, options, 1);
  AdamW optimizer(parameters, options.optimizer);
  {
    const torch::NoGradGuard no_grad;
    parameters.tensors[0].grad.fill_(NAN);
  }
  EXPECT_FALSE(optimizer.unscale_and_clip(1.0, 1.0, false).finite);
}

ValidationResult result(double mel_loss, const std::string& weights = "raw") {
  ValidationResult one;
  one.weights = weights;
  one.mel_loss = mel_loss;
  one.text_tokens = one.mel_tokens = 10;
  return one;
}

TEST(Monitors, BestMovesByAnyImprovementAndPatienceOnlyByEnough) {
  EarlyStoppingOptions stop{true, "mel_loss", 2, 0.01};
  Monitors monitors({}, stop);
  EXPECT_EQ(monitors.observe({result(4.0)}, true).size(), 1u);
  EXPECT_EQ(monitors.observe({result(3.995)}, true).size(), 1u);  // a new best, no progress
  EXPECT_EQ(monitors.patience_counter(), 1);
  Monitors resumed({}, stop);
  resumed.load_state(monitors.save_state());
  EXPECT_EQ(resumed.save_state(), monitors.save_state());
  EXPECT_TRUE(resumed.observe({result(4.1)}, true).empty());
  EXPECT_TRUE(resumed.should_stop());
  EXPECT_EQ(monitors.observe({result(3.9)}, true).size(), 1u);
  EXPECT_EQ(monitors.patience_counter(), 0);
}

TEST(Monitors, ABestThatCouldNotBeWrittenIsNoBest) {
  Monitors monitors({}, {});
  EXPECT_EQ(monitors.observe({result(4.0)}, true).size(), 1u);
  EXPECT_EQ(monitors.observe({result(3.0)}, true).size(), 1u);
  monitors.not_written("best_model.pth");
  EXPECT_EQ(monitors.best("mel_loss"), 4.0);
  EXPECT_EQ(monitors.observe({result(3.5)}, true).size(), 1u);
  monitors.not_written("best_mel_top1.pth");
  EXPECT_EQ(monitors.best("mel_loss"), 3.5);
}

TEST(Monitors, ARollbackKeepsTheBestWhoseFilesAreThere) {
  const auto validation = [](double mel_loss) {
    ValidationResult result;
    result.mel_loss = mel_loss;
    result.mel_tokens = result.text_tokens = 5;
    return result;
  };
  Monitors left({}, {}), saved({}, {});
  left.observe({validation(4.2)}, true);
  saved.load_state(left.save_state());
  left.observe({validation(4.1)}, true);
  saved.keep_best_of(left);
  EXPECT_EQ(saved.best("mel_loss"), 4.1);
  EXPECT_EQ(saved.early_stopping_reference(), 4.2);  // as it was saved
  EXPECT_TRUE(saved.observe({validation(4.15)}, true).empty());
  Monitors better({}, {});
  better.observe({validation(3)}, true);
  better.keep_best_of(left);
  EXPECT_EQ(better.best("mel_loss"), 3);
}

TEST(Monitors, EmptyPartialOrNonFiniteIsNeverBest) {
  Monitors monitors({}, {});
  ValidationResult empty = result(0.0), partial = result(1.0);
  empty.mel_tokens = 0;
  partial.complete = false;
  EXPECT_TRUE(monitors.observe({empty}, true).empty());
  EXPECT_TRUE(monitors.observe({partial}, true).empty());
  EXPECT_TRUE(monitors.observe({result(NAN)}, true).empty());
  const auto best = monitors.observe({result(4.0), result(3.5, "ema")}, true);
  ASSERT_EQ(best.size(), 1u);
  EXPECT_EQ(best[0].weights, "ema");
  EXPECT_EQ(best[0].value, 3.5);
}

TEST(Monitors, EachWatchesItsOwnSplitAndSurvivesAResume) {
  CheckpointOptions checkpoint;
  checkpoint.best_metrics = {"mel_loss", "mel_top1", "text_loss", "mel_loss@language:am"};
  const auto validation = [](double all, double top1, double text, double amharic) {
    ValidationResult whole = result(all), part = result(amharic);
    whole.mel_top1 = top1;
    whole.text_loss = text;
    part.split = "language:am";
    return std::vector<ValidationResult>{whole, part};
  };
  const auto names = [](const std::vector<Improvement>& improved) {
    std::vector<std::string> files;
    for (const Improvement& one : improved) files.push_back(one.metric.file_name());
    return files;
  };
  Monitors monitors(checkpoint, {});
  EXPECT_EQ(monitors.observe(validation(4, 0.2, 3, 5), true).size(), 4u);
  Monitors resumed(checkpoint, {});
  resumed.load_state(nlohmann::json::parse(monitors.save_state().dump()));
  for (Monitors* one : {&monitors, &resumed}) {
    EXPECT_THAT(names(one->observe(validation(4.1, 0.3, 3, 4.9), true)),
                ::testing::ElementsAre("best_mel_top1.pth", "best_mel_loss_language_am.pth"));
    EXPECT_TRUE(one->observe(validation(4, 0.3, 3, 4.9), true).empty());  // equal is no improvement
  }
  EXPECT_EQ(resumed.save_state(), monitors.save_state());
}

TEST(Monitors, PatienceStartsWhenTheWarmUpHasEnded) {
  Monitors monitors({}, {true, "mel_loss", 1, 0.01});
  for (int i = 0; i < 5; ++i) monitors.observe({result(4.0)}, /*warmup_done=*/false);
  EXPECT_FALSE(monitors.should_stop());
  EXPECT_EQ(monitors.patience_counter(), 0);
  monitors.observe({result(4.0)}, true);
  EXPECT_FALSE(monitors.should_stop());
  monitors.observe({result(NAN)}, true);  // a failed validation tells nothing
  EXPECT_FALSE(monitors.should_stop());
  monitors.observe({result(4.0)}, true);
  EXPECT_TRUE(monitors.should_stop());
}

TEST(Monitors, MetricNames) {
  EXPECT_EQ(parse_metric("mel_loss").file_name(), "best_model.pth");
  EXPECT_EQ(parse_metric("mel_top1").file_name(), "best_mel_top1.pth");
  EXPECT_EQ(parse_metric("mel_loss@language:am").file_name(), "best_mel_loss_language_am.pth");
  EXPECT_THROW(parse_metric("accuracy"), Error);
}

TEST(MetricsLog, IsCutBehindTheStepAndLosesATornLine) {
  const TemporaryFolder folder;
  const std::string path = folder.file("metrics.jsonl");
  {
    MetricsLog log(path, 0);
    for (int step = 1; step <= 4; ++step) log.write({{"type", "train"}, {"step", step}, {"loss", 0.1 * step}});
  }
  folder.write("metrics.jsonl", read_file(path, 1 << 20) + "{\"v\":1,\"type\":\"tra");
  const MetricsLog log(path, 2);
  const std::string kept = read_file(path, 1 << 20);
  EXPECT_EQ(std::count(kept.begin(), kept.end(), '\n'), 2);
  EXPECT_NE(kept.find("\"loss\":0.2"), std::string::npos);
}

// A disk that fills up in the middle of a line.
class FullOps : public FileOps {
 public:
  ssize_t write(int fd, const void* data, std::size_t size) override {
    if (room == 0) {
      errno = ENOSPC;
      return -1;
    }
    const std::size_t some = std::min(size, std::exchange(room, 0));
    return FileOps::write(fd, data, some);
  }
  std::size_t room = SIZE_MAX;
};

TEST(MetricsLog, ALineThatDoesNotFitSpoilsNoOther) {
  const TemporaryFolder folder;
  const std::string path = folder.file("metrics.jsonl");
  FullOps ops;
  const ScopedFileOps scope(ops);
  MetricsLog log(path, 0);
  for (int step = 1; step <= 3; ++step) {
    ops.room = step == 2 ? 10 : SIZE_MAX;
    log.write({{"type", "train"}, {"step", step}});
  }
  std::istringstream lines(read_file(path, 1 << 20));
  std::vector<std::int64_t> steps;
  for (std::string line; std::getline(lines, line);) steps.push_back(nlohmann::json::parse(line).at("step"));
  EXPECT_EQ(steps, (std::vector<std::int64_t>{1, 3}));
}

TEST(MetricsLog, TakesAPathThatIsNoUtf8) {
  const TemporaryFolder folder;
  const std::string path = folder.file("metrics.jsonl");
  MetricsLog(path, 0).event(1, "save", {{"path", "lat\xE9/run"}});
  EXPECT_THAT(read_file(path, 1 << 20), HasSubstr("lat\uFFFD/run"));
}

TEST(MetricsLog, LosesTheLinesOfAValidationThatIsDoneAgainAndTakesForeignOnesAsTheyAre) {
  const TemporaryFolder folder;
  const std::string validation = "{\"type\":\"validation\",\"step\":2}\n", best = "{\"event\":\"best\",\"step\":2}\n";
  const std::string others =
      "{\"type\":\"validation\",\"step\":1}\n{\"type\":\"train\",\"step\":2}\n{\"event\":\"save\",\"step\":2}\n"
      "{\"type\":7,\"event\":[],\"step\":\"x\"}\n{}\n";
  const std::string path = folder.write("metrics.jsonl", validation + others + best);
  { const MetricsLog log(path, 2); }
  EXPECT_EQ(read_file(path, 1 << 20), validation + others + best);
  { const MetricsLog log(path, 2, /*validation_due=*/true); }
  EXPECT_EQ(read_file(path, 1 << 20), others);
}

TEST(TrainState, RoundTrips) {
  TrainState state;
  state.step = 5;
  state.windows = 6;
  state.skipped = 1;
  state.epoch = 2;
  state.cursor.epoch = 2;
  state.cursor.batch = 3;
  state.plan_start = {4, 11};
  state.meters.loss_sum = 0.1 + 0.2;
  state.meters.steps = 2;
  state.meters.step_seconds = 0.7;
  state.meters.wait_seconds = 0.1;
  state.validation_due = true;
  state.last_validated_step = 4;
  state.origin = "/elsewhere/model_step3.pth";
  TrainState copy;
  copy.load_state(state.save_state());
  EXPECT_EQ(copy.save_state().dump(), state.save_state().dump());
  EXPECT_EQ(copy.meters.step_seconds, 0.7);
  EXPECT_EQ(copy.origin, state.origin);
}

TEST(TrainState, RefusesAnImpossiblePlanStart) {
  nlohmann::json state = TrainState{}.save_state();
  for (const std::int64_t wrong : {std::int64_t{-1}, INT64_MAX}) {
    for (const char* key : {"step", "batches"}) {
      state["plan_start"] = {{key, wrong}};
      TrainState loaded;
      EXPECT_THROW(loaded.load_state(state), Error) << key << wrong;
    }
  }
}

TEST(ResumeRules, NamesOfChanges) {
  EXPECT_THAT(parse_allowed_changes({"batch", "order"}), ::testing::ElementsAre("batch", "order"));
  EXPECT_THROW(parse_allowed_changes({"everything"}), Error);
  EXPECT_THROW(parse_allowed_changes({"never"}), Error);
}

}  // namespace
}  // namespace train_gpt_v2
