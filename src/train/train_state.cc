#include "train_gpt_v2/train/train_state.h"

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {

nlohmann::json PlanStart::save_state() const {
  return {{"step", step}, {"batches", batches}};
}

PlanStart PlanStart::load_state(const nlohmann::json& state) {
  constexpr std::int64_t kMost = std::int64_t{1} << 53;
  const PlanStart start{state.value("step", std::int64_t{0}), state.value("batches", std::int64_t{0})};
  if (start.step < 0 || start.step > kMost || start.batches < 0 || start.batches > kMost) {
    throw Error("CKP007", "the checkpoint's counters are out of range").at("plan_start");
  }
  return start;
}

nlohmann::json TrainState::save_state() const {
  return {{"step", step},
          {"windows", windows},
          {"skipped", skipped},
          {"epoch", epoch},
          {"cursor", cursor.save_state()},
          {"plan_start", plan_start.save_state()},
          {"samples", samples},
          {"train_seconds", train_seconds},
          {"validation_seconds", validation_seconds},
          {"validation_due", validation_due},
          {"last_validated_step", last_validated_step},
          {"origin", origin},
          {"meters", meters.save_state()},
          {"monitors", monitors},
          {"last_losses", {last_text_loss, last_mel_loss, last_mel_top1}}};
}

void TrainState::load_state(const nlohmann::json& state) {
  *this = TrainState{};
  step = state.at("step").get<std::int64_t>();
  windows = state.value("windows", step);
  skipped = state.value("skipped", std::int64_t{0});
  epoch = state.value("epoch", std::int64_t{0});
  cursor = BatchCursor::load_state(state.at("cursor"));
  plan_start = PlanStart::load_state(state.value("plan_start", nlohmann::json::object()));
  samples = state.value("samples", std::int64_t{0});
  train_seconds = state.value("train_seconds", 0.0);
  validation_seconds = state.value("validation_seconds", 0.0);
  validation_due = state.value("validation_due", false);
  last_validated_step = state.value("last_validated_step", std::int64_t{-1});
  origin = state.value("origin", "");
  meters.load_state(state.value("meters", nlohmann::json::object()));
  monitors = state.value("monitors", nlohmann::json::object());
  if (const auto last = state.find("last_losses"); last != state.end() && last->size() == 3) {
    last_text_loss = (*last)[0].get<double>();
    last_mel_loss = (*last)[1].get<double>();
    last_mel_top1 = (*last)[2].get<double>();
  }
}

}  // namespace train_gpt_v2
