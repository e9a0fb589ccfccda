#pragma once
// An engine whose memory is too small from some size on.

#include <new>
#include <utility>

#include "train_gpt_v2/train/engine.h"

namespace train_gpt_v2::testing {

// Runs out of memory from so many positions on, in the middle of backward: after the gradients were touched.
class SmallMemory final : public Engine {
 public:
  SmallMemory(Engine& inner, const ModelOptions& model, std::int64_t room)
      : inner_(inner), model_(model), room_(room) {}
  std::string name() const override { return "small"; }
  void begin_window() override { inner_.begin_window(); }
  LossSums forward_backward(const Batch& batch, const DropoutKey& key, double text_scale, double mel_scale) override {
    const LossSums sums = inner_.forward_backward(batch, key, text_scale, mel_scale);
    check(batch);
    return sums;
  }
  LossSums evaluate(const Batch& batch, bool per_sample) override {
    check(batch);
    return inner_.evaluate(batch, per_sample);
  }
  void on_gradients(StageListener listener) override { inner_.on_gradients(std::move(listener)); }
  void parameters_changed() override { inner_.parameters_changed(); }
  void set_room(std::int64_t room) { room_ = room; }
  int failures() const { return failures_; }

 private:
  void check(const Batch& batch) {
    if (real_positions(batch, model_) < room_) return;
    ++failures_;
    throw std::bad_alloc();
  }
  Engine& inner_;
  const ModelOptions& model_;
  std::int64_t room_;
  int failures_ = 0;
};

}  // namespace train_gpt_v2::testing
