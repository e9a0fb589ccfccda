#include "train_gpt_v2/adapt/hooks.h"

#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>

#include <numeric>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

// Apart from the model's own sites (kernels/dropout.h): residuals count from 0, attention has the top bit.
constexpr std::uint32_t kFirstSite = 0x40000000;

}  // namespace

AdapterHooks::AdapterHooks(UnifiedVoice& model, AdapterSet& set, double probability)
    : set_(set), probability_(probability) {
  const auto modules = model.named_modules("", /*include_self=*/false);
  for (const Adapter& adapter : set.adapters()) {
    const std::string& name = adapter.spec().module;
    const auto* found = modules.find(name);
    auto dense = found ? std::dynamic_pointer_cast<Dense>(*found) : nullptr;
    if (!dense) {
      throw Error("PFT001", concat("peft.lora_dropout cannot act on the table ", name))
          .fix("set peft.lora_dropout to 0, or leave the table out of peft.target_modules");
    }
    modules_.push_back(std::move(dense));
  }
}

AdapterHooks::~AdapterHooks() {
  for (const std::shared_ptr<Dense>& module : modules_) module->adapter = nullptr;
}

void AdapterHooks::train() {
  set_.use_base();
  for (std::size_t i = 0; i < modules_.size(); ++i) {
    modules_[i]->adapter = [this, i](const at::Tensor& y0, const at::Tensor& x) {
      return set_.adapters()[i].forward(y0, dropped(x, kFirstSite + static_cast<std::uint32_t>(i)));
    };
  }
}

void AdapterHooks::evaluate() {
  for (const std::shared_ptr<Dense>& module : modules_) module->adapter = nullptr;
  set_.apply();
}

void AdapterHooks::begin(const DropoutKey& key, const Segments& segments) {
  dropout_ = make_dropout(key, probability_);
  rows_ = segments.dropout_rows;
}

at::Tensor AdapterHooks::dropped(const at::Tensor& x, std::uint32_t site) const {
  if (!dropout_.active()) return x;
  if (x.is_cuda()) return at::dropout(x, probability_, /*train=*/true);
  const std::int64_t columns = x.size(-1), count = x.numel() / columns;
  std::vector<std::uint32_t> numbered;
  if (count != static_cast<std::int64_t>(rows_.size())) {  // a conditioner: rows of its own
    numbered.resize(static_cast<std::size_t>(count));
    std::iota(numbered.begin(), numbered.end(), 0u);
  }
  at::Tensor scale = at::empty({count, columns}, at::kFloat);
  fill_dropout_scale(dropout_, site, (numbered.empty() ? rows_ : numbered).data(), count, columns,
                     scale.mutable_data_ptr<float>());
  return x * scale.view(x.sizes()).to(x.scalar_type());
}

}  // namespace train_gpt_v2
