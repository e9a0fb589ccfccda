// Rows of sections train, optimizer and trainable.

#include "option_builder.h"
#include "train_gpt_v2/config/patterns.h"

namespace train_gpt_v2 {

template <>
const std::vector<Field<ParameterGroupOptions>>& fields_of<ParameterGroupOptions>() {
  static const std::vector<Field<ParameterGroupOptions>> fields{
      TGV2_FIELD(ParameterGroupOptions, name, "name of the group in log and checkpoint"),
      TGV2_FIELD(ParameterGroupOptions, match, "module patterns of its tensors").checked(pattern_problem),
      TGV2_FIELD(ParameterGroupOptions, learning_rate, "own learning rate; null = the section's").at_least(0),
      TGV2_FIELD(ParameterGroupOptions, lr_scale, "or a factor on the section's learning rate").at_least(0),
      TGV2_FIELD(ParameterGroupOptions, weight_decay, "own weight decay; null = the section's").at_least(0),
  };
  return fields;
}

namespace {

RowBuilder betas_row() {
  RowBuilder row = TGV2_OPTION(optimizer.beta1, kSchedule, "decay of Adam's two averages");
  OptionRow edited = row;
  edited.path = "optimizer.betas";
  edited.value.list = true;
  edited.value.items = 2;
  edited.get = [](const Options& o) { return Json::array({o.optimizer.beta1, o.optimizer.beta2}); };
  edited.set = [](Options& o, const Json& json) {
    o.optimizer.beta1 = json.at(0).get<double>();
    o.optimizer.beta2 = json.at(1).get<double>();
  };
  return RowBuilder(std::move(edited)).at_least(0).below(1);
}

RowBuilder batch_size_row() {
  RowBuilder row = TGV2_OPTION(train.batch_size, kOrder,
                               "samples per micro-batch; the maximum where sampler.batch_tokens is set; \"auto\": the "
                               "largest that fits the memory, measured once and kept when the run goes on");
  OptionRow edited = row;
  edited.value.word = "auto";
  edited.get = [](const Options& o) { return o.train.batch_size_auto ? Json("auto") : Json(o.train.batch_size); };
  edited.set = [](Options& o, const Json& json) {
    o.train.batch_size_auto = json.is_string();
    if (json.is_number()) o.train.batch_size = json.get<std::int64_t>();
  };
  return RowBuilder(std::move(edited)).range(1, 1'000'000).unit("samples");
}

OptionRows optimizer_rows() {
  return {
      TGV2_OPTION(optimizer.learning_rate, kSchedule, "peak learning rate").range(0, 1),
      TGV2_OPTION(optimizer.weight_decay, kGroups, "decoupled decay (AdamW)").range(0, 10),
      betas_row(),
      TGV2_OPTION(optimizer.eps, kSchedule, "Adam's epsilon").above(0).at_most(1),
      TGV2_OPTION(optimizer.schedule, kSchedule, "course of the learning rate; hf_cosine rises again beyond its total")
          .choices({"cosine", "hf_cosine", "constant", "linear", "wsd"}),
      TGV2_OPTION(optimizer.warmup_steps, kSchedule, "linear warm-up").range(0, 1e9).unit("steps"),
      TGV2_OPTION(optimizer.min_lr_ratio, kSchedule, "floor of the schedule as a share of the peak").range(0, 1),
      TGV2_OPTION(
          optimizer.total_steps, kSchedule,
          "length of the schedule; null = train.max_steps, else the order file's, else epochs × steps per epoch")
          .range(1, 1e9)
          .unit("steps"),
      TGV2_OPTION(optimizer.groups, kGroups, "parameter groups; [] = one group, decay on everything"),
      TGV2_OPTION(optimizer.layer_lr_decay, kGroups, "learning rate of a block = this ^ (blocks above it); null = off")
          .above(0)
          .at_most(1),
      TGV2_OPTION(optimizer.lr_scaling, kSchedule,
                  "scale the learning rate with effective batch / reference_batch_size")
          .choices({"none", "linear", "sqrt"}),
      TGV2_OPTION(optimizer.reference_batch_size, kSchedule, "effective batch that learning_rate was chosen for")
          .range(1, 1e9)
          .unit("samples"),
      TGV2_OPTION(trainable.freeze, kGroups, "module patterns that do not train").checked(pattern_problem),
      TGV2_OPTION(trainable.train, kGroups, "module patterns that train; wins over freeze").checked(pattern_problem),
      TGV2_OPTION(trainable.text_rows, kGroups,
                  "text rows that train; null = all, but a Python run with more than base_text_rows rows must choose")
          .choices({"all", "new_only", "python_mask"}),
      TGV2_OPTION(trainable.base_text_rows, kGroups, "rows of the base vocabulary").range(0, 16'777'216).unit("rows"),
  };
}

}  // namespace

OptionRows train_rows() {
  OptionRows rows{
      TGV2_OPTION(train.effective_batch, kFree,
                  "samples per optimiser step that batch_size \"auto\" keeps by choosing grad_accumulation")
          .range(1, 1'000'000)
          .unit("samples"),
      batch_size_row(),
      TGV2_OPTION(train.grad_accumulation, kBatch, "micro-batches per optimiser step, over all ranks")
          .range(1, 1'000'000),
      TGV2_OPTION(train.layout, kLoss, "packed: no padding, as inference sees it; padded: the reference's")
          .choices({"packed", "padded"}),
      TGV2_OPTION(train.engine, kFree,
                  "fused: the step written out over our own kernels for CPU and GPU; modules: LibTorch; auto: fused "
                  "where it can run")
          .choices({"auto", "fused", "modules"}),
      TGV2_OPTION(train.max_steps, kFree, "end after this many optimiser steps").range(1, 1e9).unit("steps"),
      TGV2_OPTION(train.epochs, kFree,
                  "end after this many epochs, whatever their length becomes; whichever comes first")
          .range(1, 1e9)
          .unit("epochs"),
      TGV2_OPTION(train.max_hours, kFree, "save and leave with status 75 after this time").above(0).unit("hours"),
      TGV2_OPTION(train.seed, kOrder, "of sample order, dropout and fresh weights").at_least(0),
      TGV2_OPTION(train.precision, kPrecision, "auto: bf16 on CUDA 8.0 and later, fp16 on older, fp32 on CPU")
          .choices({"auto", "fp32", "bf16", "fp16"}),
      TGV2_OPTION(train.tf32, kPrecision, "allow TF32 in float32 matrix products on CUDA"),
      TGV2_OPTION(train.deterministic, kWarn, "refuse algorithms whose result depends on timing"),
      TGV2_OPTION(train.text_loss_weight, kLoss, "share of the text loss").range(0, 1000),
      TGV2_OPTION(train.mel_loss_weight, kLoss, "share of the code loss").range(0, 1000),
      TGV2_OPTION(train.loss_normalization, kLoss,
                  "mean over the window's tokens, or the Python trainer's mean of means")
          .choices({"window_tokens", "micro_batch"}),
      TGV2_OPTION(train.grad_clip, kFree, "largest global gradient norm; 0 = off").at_least(0),
      TGV2_OPTION(train.clip_per_group, kFree, "clip each parameter group by its own norm"),
      TGV2_OPTION(train.log_interval, kFree, "metrics line every so many steps; 0 = off")
          .range(0, 1e9)
          .off_is(0)
          .unit("steps"),
      TGV2_OPTION(train.num_threads, kWarn, "CPU threads for computing; null = all cores")
          .range(1, 2047)  // kernels/thread_pool.cc counts the threads inside in 11 bits
          .unit("threads"),
      TGV2_OPTION(train.activation_checkpointing, kFree, "recompute every k-th block instead of storing it; 0 = off")
          .range(0, 1024),
  };
  for (OptionRow& row : optimizer_rows()) rows.push_back(std::move(row));
  return rows;
}

}  // namespace train_gpt_v2
