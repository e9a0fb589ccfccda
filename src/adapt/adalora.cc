#include "train_gpt_v2/adapt/adalora.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <utility>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/tensor_bridge.h"

namespace train_gpt_v2 {
namespace {

std::vector<double> to_doubles(const at::Tensor& values) {
  const at::Tensor host = values.to(at::kCPU, at::kDouble).contiguous();
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

std::int64_t cost_of(const PeftOptions& options, const Adapter& adapter) {
  return options.budget_unit == "params" ? adapter.triplet_cost() : 1;
}

// Factors that the regulariser averages over: A and B of every adapter that still has a rank.
double factor_count(const AdapterSet& set) {
  const auto alive = std::count_if(set.adapters().begin(), set.adapters().end(),
                                   [](const Adapter& adapter) { return adapter.rank() > 0; });
  return 2 * static_cast<double>(alive);
}

// rows·rowsᵀ − I of the rows [r,n] of a factor.
at::Tensor excess_of(const at::Tensor& rows) {
  return at::mm(rows, rows.t()) - at::eye(rows.size(0), rows.options());
}

Error schedule_error(std::string message) {
  return Error("PFT003", std::move(message));
}

PruneSchedule plan_peft_schedule(const PeftOptions& options, const AdapterSet& set, std::int64_t total_steps,
                                 PruneSchedule schedule) {
  if (!options.tinit || !options.tfinal || !options.delta_t || !options.target_rank) {
    throw schedule_error("peft's schedule needs all of peft.tinit, tfinal, delta_t and target_rank")
        .fix("set the missing ones, or use peft.pruning_steps instead");
  }
  if (options.budget_unit != "ranks") {
    throw schedule_error("peft's schedule counts ranks, but peft.budget_unit is \"" + options.budget_unit + "\"")
        .fix("set peft.budget_unit to \"ranks\"");
  }
  const std::int64_t first = *options.tinit, last = total_steps - *options.tfinal;
  if (first < 0 || *options.tfinal < 0 || *options.delta_t < 1 || first >= last) {
    throw schedule_error("peft's schedule leaves no step in which it could prune")
        .detail(concat("it prunes after step tinit = ", first, " until step ", total_steps, " - tfinal = ", last,
                       ", every delta_t = ", *options.delta_t))
        .fix("choose 0 <= tinit < total steps - tfinal (tfinal is a duration, not a step) and delta_t >= 1");
  }
  const std::int64_t final_budget = *options.target_rank * static_cast<std::int64_t>(set.adapters().size());
  schedule.peft = true;
  schedule.tinit = first;
  schedule.events.push_back({last, final_budget});  // budget_at() reads it
  std::vector<PruneEvent> events;
  for (std::int64_t step = first + 1; step < last; ++step) {
    if (step % *options.delta_t == 0) events.push_back({step, schedule.budget_at(step)});
  }
  events.push_back({last, final_budget});
  schedule.events = std::move(events);
  return schedule;
}

PruneSchedule plan_steps(const PeftOptions& options, std::int64_t total_steps, PruneSchedule schedule) {
  const std::vector<std::int64_t>& steps = options.pruning_steps;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (steps[i] < 1 || (i > 0 && steps[i] <= steps[i - 1])) {
      throw schedule_error("peft.pruning_steps must be positive and strictly increasing")
          .detail(concat("entry ", i + 1, " is ", steps[i]));
    }
    if (steps[i] >= total_steps) {
      throw schedule_error(
          concat("pruning at step ", steps[i], " cannot take effect: the run has ", total_steps, " steps"))
          .fix("lower peft.pruning_steps, or train longer");
    }
  }
  const auto initial = static_cast<double>(schedule.initial_budget);
  const std::int64_t target = options.target_budget.value_or(std::llround(initial / 1.5));
  const auto count = static_cast<double>(steps.size());
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const double left = 1 - static_cast<double>(i + 1) / count;
    const double share = options.budget_curve == "cubic" ? left * left * left : left;
    schedule.events.push_back({steps[i], target + std::llround((initial - static_cast<double>(target)) * share)});
  }
  return schedule;
}

}  // namespace

std::int64_t PruneSchedule::budget_at(std::int64_t step) const {
  if (peft) {
    const PruneEvent& end = events.back();
    if (step <= tinit) return initial_budget;
    if (step >= end.step) return end.budget;
    const double left = 1 - static_cast<double>(step - tinit) / static_cast<double>(end.step - tinit);
    return static_cast<std::int64_t>(static_cast<double>(initial_budget - end.budget) * (left * left * left) +
                                     static_cast<double>(end.budget));
  }
  std::int64_t budget = initial_budget;
  for (const PruneEvent& event : events) {
    if (event.step <= step) budget = event.budget;
  }
  return budget;
}

PruneSchedule plan_pruning(const PeftOptions& options, const AdapterSet& set, std::int64_t total_steps) {
  const bool has_peft = options.tinit || options.tfinal || options.delta_t || options.target_rank;
  if (has_peft && !options.pruning_steps.empty()) {
    throw schedule_error("both peft.pruning_steps and peft's own schedule are set")
        .fix("keep peft.pruning_steps, or tinit, tfinal, delta_t and target_rank");
  }
  if (!has_peft && options.pruning_steps.empty()) {
    throw schedule_error(concat("peft.method \"", options.method, "\" has no schedule: ranks would never change"))
        .fix("set peft.pruning_steps, or use \"lora\" or \"dora\"");
  }
  if (options.compaction == "soft" && options.budget_unit == "params") {
    throw schedule_error("peft.compaction \"soft\" keeps every parameter, so a budget in parameters means nothing")
        .fix("use peft.budget_unit \"ranks\", or peft.compaction \"hard\"");
  }
  PruneSchedule schedule;
  std::int64_t least = 0;
  for (const Adapter& adapter : set.adapters()) {
    schedule.initial_budget += adapter.spec().rank * cost_of(options, adapter);
    least += std::min(options.min_rank, adapter.spec().rank) * cost_of(options, adapter);
  }
  schedule = has_peft ? plan_peft_schedule(options, set, total_steps, std::move(schedule))
                      : plan_steps(options, total_steps, std::move(schedule));
  const std::int64_t target = schedule.events.back().budget;
  if (target < least || target > schedule.initial_budget) {
    throw schedule_error(concat("the target of ", target, " ", options.budget_unit, " is out of reach"))
        .detail(concat("the adapters start with ", schedule.initial_budget, "; min_rank ", options.min_rank, " keeps ",
                       least))
        .fix(concat("choose a target from ", least, " to ", schedule.initial_budget));
  }
  return schedule;
}

RankAllocator::RankAllocator(const PeftOptions& options, AdapterSet& set, std::int64_t total_steps)
    : options_(options), set_(set) {
  TGV2_CHECK(is_adaptive(set.kind()));
  schedule_ = plan_pruning(options, set, total_steps);
  for (Adapter& adapter : set.adapters()) {
    kept_.emplace_back(static_cast<std::size_t>(adapter.rank()));
    std::iota(kept_.back().begin(), kept_.back().end(), 0);
  }
  start_importance();
}

void RankAllocator::start_importance() {
  importance_.clear();
  if (options_.importance == "magnitude") return;
  for (const Adapter& adapter : set_.adapters()) {
    importance_.emplace_back();
    for (const AdapterParameter& parameter : adapter.parameters()) {
      if (parameter.role == AdapterRole::kMagnitude) continue;
      importance_.back().push_back({parameter.name, parameter.tensor, at::zeros_like(parameter.tensor.detach()),
                                    at::zeros_like(parameter.tensor.detach())});
    }
  }
}

double RankAllocator::regulariser() const {
  const at::NoGradGuard no_grad;
  const at::NoTF32Guard full_precision;
  at::Tensor total = at::zeros({}, set_.adapters().front().base().options().dtype(at::kDouble));
  for (const Adapter& adapter : set_.adapters()) {
    if (adapter.rank() == 0) continue;
    total.add_(excess_of(adapter.a().detach()).norm().to(at::kDouble));
    total.add_(excess_of(adapter.b().detach().t()).norm().to(at::kDouble));
  }
  return total.item<double>() / std::max(factor_count(set_), 1.0);
}

void RankAllocator::add_regulariser_gradient(double loss_scale) {
  const double factors = factor_count(set_);
  if (options_.orthogonality_weight == 0 || factors == 0) return;
  const at::NoGradGuard no_grad;
  const at::NoTF32Guard full_precision;
  const double weight = 2 * loss_scale * options_.orthogonality_weight / factors;
  // `rows` [r,n]: ‖rows·rowsᵀ − I‖_F has the derivative 2(rows·rowsᵀ − I)·rows over the norm itself.
  const auto add = [&](const at::Tensor& parameter, const at::Tensor& rows, bool transposed) {
    const at::Tensor excess = excess_of(rows);
    at::Tensor gradient = at::mm(excess, rows) * (weight / excess.norm().clamp_min(1e-30));
    if (transposed) gradient = gradient.t();
    at::Tensor& grad = parameter.mutable_grad();
    if (grad.defined()) {
      grad.add_(gradient);
    } else {
      grad = gradient.contiguous();
    }
  };
  for (const Adapter& adapter : set_.adapters()) {
    if (adapter.rank() == 0) continue;
    add(adapter.a(), adapter.a().detach(), false);
    add(adapter.b(), adapter.b().detach().t(), true);
  }
}

void RankAllocator::update_importance() {
  const at::NoGradGuard no_grad;
  for (std::vector<Importance>& adapter : importance_) {
    for (Importance& item : adapter) {
      const at::Tensor& grad = item.value.grad();
      const at::Tensor now = grad.defined() ? (item.value.detach() * grad).abs() : at::zeros_like(item.mean);
      item.mean.mul_(options_.beta1).add_(now, 1 - options_.beta1);
      item.deviation.mul_(options_.beta2).add_((now - item.mean).abs(), 1 - options_.beta2);
    }
  }
}

std::vector<std::vector<double>> RankAllocator::scores() const {
  const at::NoGradGuard no_grad;
  std::vector<std::vector<double>> all;
  for (std::size_t i = 0; i < set_.adapters().size(); ++i) {
    const Adapter& adapter = set_.adapters()[i];
    if (options_.importance == "magnitude") {
      const at::Tensor p = adapter.b().detach().norm(2, {0}), q = adapter.a().detach().norm(2, {1});
      all.push_back(to_doubles(adapter.lambda().detach().squeeze(1).abs() * p * q));
    } else if (importance_.empty()) {
      all.emplace_back();  // the last event is over
    } else {
      const auto score = [&](std::size_t k) { return importance_[i][k].mean * importance_[i][k].deviation; };
      all.push_back(to_doubles(score(1).squeeze(1) + score(0).mean(1) + score(2).mean(0)));
    }
  }
  return all;
}

std::optional<PruneResult> RankAllocator::after_step(std::int64_t step) {
  if (finished()) {
    apply_masks();
    return std::nullopt;
  }
  const bool at_end_of_peft = schedule_.peft && step >= schedule_.events.back().step;
  if (!importance_.empty() && !at_end_of_peft) update_importance();
  if (step < schedule_.events[next_event_].step) return std::nullopt;
  std::size_t due = next_event_;
  while (due + 1 < schedule_.events.size() && schedule_.events[due + 1].step <= step) ++due;
  PruneResult result = prune(step, schedule_.events[due].budget);
  next_event_ = due + 1;
  if (finished()) importance_.clear();
  return result;
}

PruneResult RankAllocator::prune(std::int64_t step, std::int64_t budget) {
  PruneResult result;
  result.step = step;
  result.budget = budget;
  const std::vector<std::vector<double>> values = scores();
  for (std::size_t i = 0; i < values.size(); ++i) {
    for (std::size_t rank = 0; rank < values[i].size(); ++rank) {
      if (std::isfinite(values[i][rank])) continue;
      throw Error("NUM011", concat("the importance of rank ", rank, " of ", set_.adapters()[i].spec().module, " is ",
                                   values[i][rank], ": nothing is pruned"))
          .at(concat("step ", step))
          .fix("resume from an earlier checkpoint with a lower learning rate");
    }
  }
  const std::vector<std::int64_t> before = ranks();
  result.ranks_before = std::accumulate(before.begin(), before.end(), std::int64_t{0});
  if (options_.compaction == "soft") {
    masks_ = select_threshold(values, budget);
    apply_masks();
    result.masks = masks_;
  } else {
    compact(select_exact(values, budget), result);
  }
  const std::vector<std::int64_t> after = ranks();
  result.ranks_after = std::accumulate(after.begin(), after.end(), std::int64_t{0});
  return result;
}

std::vector<std::vector<std::int64_t>> RankAllocator::select_exact(const std::vector<std::vector<double>>& scores,
                                                                   std::int64_t budget) const {
  // Best first; equal scores fall to the earlier module, then the earlier rank.
  std::vector<std::tuple<double, std::size_t, std::int64_t>> order;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    for (std::size_t rank = 0; rank < scores[i].size(); ++rank) {
      order.emplace_back(-scores[i][rank], i, static_cast<std::int64_t>(rank));
    }
  }
  std::sort(order.begin(), order.end());
  std::vector<std::vector<std::int64_t>> kept(scores.size());
  // First what min_rank guarantees, then the rest as far as the budget goes.
  for (const bool guaranteed : {true, false}) {
    for (auto& [negative_score, module, rank] : order) {
      if (rank < 0) continue;  // taken in the first pass
      const std::int64_t cost = cost_of(options_, set_.adapters()[module]);
      if (guaranteed ? static_cast<std::int64_t>(kept[module].size()) >= options_.min_rank : cost > budget) continue;
      kept[module].push_back(rank);
      budget -= cost;
      rank = -1;
    }
  }
  for (std::vector<std::int64_t>& indices : kept) std::sort(indices.begin(), indices.end());
  return kept;
}

std::vector<std::vector<bool>> RankAllocator::select_threshold(const std::vector<std::vector<double>>& scores,
                                                               std::int64_t budget) const {
  std::vector<double> all;
  for (const std::vector<double>& module : scores) all.insert(all.end(), module.begin(), module.end());
  const std::int64_t falling = schedule_.initial_budget - budget;
  double threshold = -1;  // scores are not negative
  if (falling > 0) {
    const auto last = all.begin() + (falling - 1);
    std::nth_element(all.begin(), last, all.end());
    threshold = *last;
  }
  std::vector<std::vector<bool>> masks;
  for (const std::vector<double>& module : scores) {
    std::vector<std::size_t> order(module.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return module[a] > module[b]; });
    masks.emplace_back(module.size());
    for (std::size_t place = 0; place < order.size(); ++place) {
      masks.back()[order[place]] =
          module[order[place]] > threshold || static_cast<std::int64_t>(place) < options_.min_rank;
    }
  }
  return masks;
}

void RankAllocator::compact(const std::vector<std::vector<std::int64_t>>& kept, PruneResult& result) {
  for (std::size_t i = 0; i < kept.size(); ++i) {
    Adapter& adapter = set_.adapters()[i];
    if (static_cast<std::int64_t>(kept[i].size()) == adapter.rank()) continue;
    adapter.compact(kept[i]);
    for (const AdapterParameter& parameter : adapter.parameters()) {
      if (parameter.role == AdapterRole::kMagnitude) continue;
      result.shrunk.push_back({parameter.name, parameter.role == AdapterRole::kB ? 1 : 0, kept[i]});
    }
    std::vector<std::int64_t> original;
    for (const std::int64_t rank : kept[i]) original.push_back(kept_[i][static_cast<std::size_t>(rank)]);
    kept_[i] = std::move(original);
    if (importance_.empty()) continue;
    for (std::size_t k = 0; k < importance_[i].size(); ++k) {
      Importance& item = importance_[i][k];
      const at::Tensor index = at::tensor(kept[i], at::kLong).to(item.mean.device());
      item.mean = item.mean.index_select(k == 2 ? 1 : 0, index);
      item.deviation = item.deviation.index_select(k == 2 ? 1 : 0, index);
    }
  }
}

void RankAllocator::apply_masks() {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < masks_.size(); ++i) {
    const at::Tensor& lambda = set_.adapters()[i].lambda();
    const std::vector<std::int64_t> on(masks_[i].begin(), masks_[i].end());
    lambda.masked_fill_(at::tensor(on, at::kLong).to(lambda.device()).eq(0).unsqueeze(1), 0);
  }
}

std::vector<std::int64_t> RankAllocator::ranks() const {
  std::vector<std::int64_t> all;
  for (std::size_t i = 0; i < set_.adapters().size(); ++i) {
    all.push_back(masks_.empty() ? set_.adapters()[i].rank() : std::count(masks_[i].begin(), masks_[i].end(), true));
  }
  return all;
}

std::string RankAllocator::settings() const {
  std::string text = concat(options_.method, " importance ", options_.importance, " ", exact_number(options_.beta1),
                            " ", exact_number(options_.beta2), " unit ", options_.budget_unit, " min ",
                            options_.min_rank, " ", options_.compaction, " events");
  for (const PruneEvent& event : schedule_.events) text += concat(" ", event.step, ":", event.budget);
  for (const Adapter& adapter : set_.adapters()) text += concat(" ", adapter.spec().module, "=", adapter.spec().rank);
  return text;
}

Value RankAllocator::save_state() const {
  Value state = Value::dict(), modules = Value::dict(), importance = Value::dict();
  for (std::size_t i = 0; i < set_.adapters().size(); ++i) {
    Value module = Value::dict(), kept = Value::list();
    for (const std::int64_t rank : kept_[i]) kept.push_back(rank);
    module.set("kept", kept);
    if (!masks_.empty()) {
      Value mask = Value::list();
      for (const bool on : masks_[i]) mask.push_back(on);
      module.set("mask", mask);
    }
    modules.set(set_.adapters()[i].spec().module, module);
    if (importance_.empty()) continue;
    for (const Importance& item : importance_[i]) {
      Value averages = Value::dict();
      averages.set("mean", torch_to_tensor(item.mean.to(at::kCPU)));
      averages.set("deviation", torch_to_tensor(item.deviation.to(at::kCPU)));
      importance.set(item.parameter, averages);
    }
  }
  state.set("settings", settings());
  state.set("events_done", static_cast<std::int64_t>(next_event_));
  state.set("modules", modules);
  state.set("importance", importance);
  return state;
}

void RankAllocator::load_state(const Value& state) {
  const auto other = [] { return Error("PFT002", "the saved rank allocation belongs to other adapter settings"); };
  const std::string& saved = state.at("settings").as_string("settings");
  if (saved != settings()) {
    throw other()
        .detail("saved: " + saved)
        .detail("now:   " + settings())
        .fix("continue with the peft section and the number of steps the checkpoint was trained with");
  }
  const std::int64_t done = state.at("events_done").as_int("events_done");
  if (done < 0 || done > static_cast<std::int64_t>(schedule_.events.size())) throw other().detail("events_done");
  std::vector<std::vector<std::int64_t>> kept;
  std::vector<std::vector<bool>> masks;
  for (const Adapter& adapter : set_.adapters()) {
    const Value& module = state.at("modules").at(adapter.spec().module);
    kept.emplace_back();
    for (const Value& rank : module.at("kept").items("kept")) kept.back().push_back(rank.as_int("kept"));
    const bool ascending =
        std::adjacent_find(kept.back().begin(), kept.back().end(), std::greater_equal<>()) == kept.back().end();
    if (!ascending || static_cast<std::int64_t>(kept.back().size()) != adapter.rank() ||
        (!kept.back().empty() && (kept.back().front() < 0 || kept.back().back() >= adapter.spec().rank))) {
      throw other().detail(concat("kept ranks of ", adapter.spec().module, " do not fit its tensors"));
    }
    const Value* mask = module.find("mask");
    if (!mask) continue;
    masks.emplace_back();
    for (const Value& on : mask->items("mask")) masks.back().push_back(on.as_bool("mask"));
    if (masks.back().size() != kept.back().size()) throw other().detail("mask of " + adapter.spec().module);
  }
  if (!masks.empty() && masks.size() != kept.size()) throw other().detail("masks of some modules only");
  kept_ = std::move(kept);
  masks_ = std::move(masks);
  next_event_ = static_cast<std::size_t>(done);
  start_importance();  // shapes may be others than before
  if (finished()) importance_.clear();
  for (std::vector<Importance>& adapter : importance_) {
    for (Importance& item : adapter) {
      const Value& averages = state.at("importance").at(item.parameter);
      for (const auto& [name, target] : {std::pair{"mean", &item.mean}, std::pair{"deviation", &item.deviation}}) {
        const at::Tensor source = tensor_to_torch(averages.at(name).as_tensor(item.parameter));
        if (source.sizes() != item.value.sizes()) throw other().detail(concat(name, " of ", item.parameter));
        *target = source.to(item.value.options().requires_grad(false), false, /*copy=*/true);
      }
    }
  }
}

}  // namespace train_gpt_v2
