// Rows of sections peft and ewc.

#include "option_builder.h"
#include "train_gpt_v2/config/patterns.h"

namespace train_gpt_v2 {
namespace {

constexpr double kRanks = 65536;

RowBuilder lambda_row() {
  OptionRow row =
      TGV2_OPTION(ewc.lambda, kLoss, "strength; auto: by the ratio of gradients after 20 steps").at_least(0);
  row.value.nullable = false;
  row.value.word = "auto";
  row.get = [](const Options& o) { return o.ewc.lambda ? Json(*o.ewc.lambda) : Json("auto"); };
  row.set = [](Options& o, const Json& json) {
    o.ewc.lambda = json.is_string() ? std::nullopt : std::optional(json.get<double>());
  };
  return RowBuilder(std::move(row));
}

}  // namespace

OptionRows peft_rows() {
  return {
      TGV2_OPTION(peft.method, kNever, "kind of the adapters; null = none, whole weights train")
          .choices({"lora", "dora", "adalora", "dora_adalora"})
          .or_null(),
      TGV2_OPTION(peft.rank, kNever, "rank of an adapter, where rank_pattern says nothing").range(1, kRanks),
      TGV2_OPTION(peft.rank_pattern, kNever, "ranks by module pattern; the first match wins").range(1, kRanks),
      TGV2_OPTION(peft.lora_alpha, kNever, "numerator of the scale alpha / rank; null = twice the module's rank")
          .above(0),
      TGV2_OPTION(peft.alpha_pattern, kNever, "alphas by module pattern; the first match wins").above(0),
      TGV2_OPTION(peft.lora_dropout, kNever, "dropout in front of the adapters; above 0 needs the engine \"modules\"")
          .at_least(0)
          .below(1),
      TGV2_OPTION(peft.target_modules, kNever, "module patterns of the adapted matrices and tables")
          .checked(pattern_problem),
      TGV2_OPTION(peft.use_rslora, kNever, "scale alpha / sqrt(rank)"),
      TGV2_OPTION(peft.lora_plus_ratio, kNever, "learning rate of B as a multiple of A's (LoRA+)").range(0.001, 1000),
      TGV2_OPTION(peft.conformer_budget_share, kNever,
                  "share of all adapter parameters that conformer adapters may have; their ranks are lowered to it")
          .above(0)
          .below(1),
      TGV2_OPTION(peft.pruning_steps, kNever, "steps at which ranks are pruned; rising").range(1, 1e9).unit("steps"),
      TGV2_OPTION(peft.budget_curve, kNever, "course of the budget over the pruning steps")
          .choices({"linear", "cubic"}),
      TGV2_OPTION(peft.target_budget, kNever, "ranks (or parameters) after the last pruning; null = two thirds")
          .range(0, 1e15),
      TGV2_OPTION(peft.min_rank, kNever, "no module falls below it").range(0, kRanks),
      TGV2_OPTION(peft.budget_unit, kNever, "what the budget counts").choices({"ranks", "params"}),
      TGV2_OPTION(peft.tinit, kNever, "peft's own schedule instead of pruning_steps: first step that may prune")
          .range(0, 1e9)
          .unit("steps"),
      TGV2_OPTION(peft.tfinal, kNever, "peft's schedule: steps at the end without pruning").range(0, 1e9).unit("steps"),
      TGV2_OPTION(peft.delta_t, kNever, "peft's schedule: steps between two prunings").range(1, 1e9).unit("steps"),
      TGV2_OPTION(peft.target_rank, kNever, "peft's schedule: mean rank at the end").range(0, kRanks),
      TGV2_OPTION(peft.importance, kNever, "what ranks are judged by").choices({"sensitivity", "magnitude"}),
      TGV2_OPTION(peft.beta1, kNever, "decay of the averaged sensitivity").at_least(0).below(1),
      TGV2_OPTION(peft.beta2, kNever, "decay of its averaged uncertainty").at_least(0).below(1),
      TGV2_OPTION(peft.orthogonality_weight, kNever, "weight of AdaLoRA's regulariser").range(0, 1000),
      TGV2_OPTION(peft.compaction, kNever,
                  "hard: pruned ranks are removed; soft: masked as in peft, they may come back")
          .choices({"hard", "soft"}),

      TGV2_OPTION(ewc.enabled, kLoss, "pull the weights back to where they started"),
      TGV2_OPTION(ewc.fisher, kLoss, "Fisher information of the languages to protect, from `train_gpt_v2 fisher`")
          .path()
          .or_null(),
      lambda_row(),
      TGV2_OPTION(
          ewc.mode, kLoss,
          "penalty: its gradient joins the loss's; proximal: weights without adapter are drawn back after the step")
          .choices({"penalty", "proximal"}),
  };
}

}  // namespace train_gpt_v2
