#include "train_gpt_v2/app/merge_command.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>

#include "config_value.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/sampler.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/weights.h"
#include "train_gpt_v2/train/device.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kProofBatchSize = 4;
constexpr std::size_t kProofBatches = 4;

// A model with adapters in both forms.
class TwoForms {
 public:
  TwoForms(UnifiedVoice& model, AdapterSet& set, double share) : set_(set), share_(share) {
    std::map<std::string, std::shared_ptr<Dense>> dense;
    for (const auto& item : model.named_modules("", /*include_self=*/false)) {
      if (auto found = std::dynamic_pointer_cast<Dense>(item.value())) dense[item.key()] = std::move(found);
    }
    for (const Adapter& adapter : set.adapters()) {
      const auto found = dense.find(adapter.spec().module);
      modules_.push_back(found == dense.end() ? nullptr : found->second);
    }
  }
  ~TwoForms() { fold(); }
  TwoForms(const TwoForms&) = delete;
  TwoForms& operator=(const TwoForms&) = delete;

  // Weights hold W0, every projection adds its adapter's part. Tables have no such form: theirs stay folded.
  void beside() {
    for (std::size_t i = 0; i < modules_.size(); ++i) {
      if (!modules_[i]) continue;
      set_.weights()[i].detach().copy_(set_.adapters()[i].base());
      modules_[i]->adapter = [this, i](const at::Tensor& y0, const at::Tensor& x) {
        const at::Tensor y = set_.adapters()[i].forward(y0, x);
        return share_ == 1 ? y : y0 + (y - y0) * share_;
      };
    }
  }

  void fold() {
    for (std::size_t i = 0; i < modules_.size(); ++i) {
      if (modules_[i]) modules_[i]->adapter = nullptr;
      set_.weights()[i].detach().copy_(set_.adapters()[i].merged(share_));
    }
  }

 private:
  AdapterSet& set_;
  double share_;
  std::vector<std::shared_ptr<Dense>> modules_;  // one per adapter; null for a table
};

struct Scores {
  at::Tensor text, mel;                // logits of the scored positions
  double text_loss = 0, mel_loss = 0;  // sums
};

Scores score(UnifiedVoice& model, const ModelInputs& inputs) {
  const at::Tensor rows = model.run_blocks(model.embed(inputs), inputs.segments);
  const auto logits = [&](const Dense& head, const at::Tensor& scored) {
    return head.forward(model.final_states(rows.index_select(0, scored)));
  };
  const auto loss = [](const at::Tensor& values, const at::Tensor& targets) {
    return at::cross_entropy_loss(values.to(at::kDouble), targets, {}, /*reduction=*/2).item<double>();
  };
  Scores scores{logits(*model.text_head, inputs.text_scored_rows), logits(*model.mel_head, inputs.mel_scored_rows)};
  scores.text_loss = loss(scores.text, inputs.text_targets);
  scores.mel_loss = loss(scores.mel, inputs.mel_targets);
  return scores;
}

struct Proof {
  std::int64_t samples = 0, text_tokens = 0, mel_tokens = 0;
  double largest_logit = 0, logit_difference = 0;
  double beside_text = 0, beside_mel = 0, merged_text = 0, merged_mel = 0;  // sums of losses

  // A not-a-number on either side stays one, and is refused.
  void add(const Scores& beside, const Scores& merged, const ModelInputs& inputs) {
    const auto keep_largest = [](double& largest, const at::Tensor& value) {
      const double one = value.item<double>();
      if (!(one <= largest)) largest = one;
    };
    for (const auto& [a, b] : {std::pair{beside.text, merged.text}, std::pair{beside.mel, merged.mel}}) {
      keep_largest(largest_logit, a.abs().max());
      keep_largest(logit_difference, (a - b).abs().max());
    }
    beside_text += beside.text_loss;
    beside_mel += beside.mel_loss;
    merged_text += merged.text_loss;
    merged_mel += merged.mel_loss;
    samples += inputs.count;
    text_tokens += inputs.text_tokens();
    mel_tokens += inputs.mel_tokens();
  }

  double text_loss() const { return merged_text / static_cast<double>(text_tokens); }
  double mel_loss() const { return merged_mel / static_cast<double>(mel_tokens); }
  double loss_difference() const {
    const double text = std::abs(merged_text - beside_text) / static_cast<double>(text_tokens);
    const double mel = std::abs(merged_mel - beside_mel) / static_cast<double>(mel_tokens);
    return text > mel || std::isnan(text) ? text : mel;
  }
};

// Nothing when a stop was asked for.
std::optional<Proof> prove(UnifiedVoice& model, TwoForms& forms, const Dataset& data) {
  const at::NoGradGuard no_grad;
  Proof proof;
  const BatchPlan plan = spread(sequential_plan(data, kProofBatchSize), kProofBatches);
  for (std::size_t i = 0; i < plan.size(); ++i) {
    if (stop_requested() != ExitStatus::kOk) return std::nullopt;
    Batch batch;
    for (const std::uint32_t sample : plan.batch(i)) data.load_or_skip(sample, batch);
    if (batch.count() == 0) continue;
    const ModelInputs inputs =
        assemble_inputs(batch, model.options(), BatchLayout::kPacked, model.device(), model.dtype());
    forms.beside();
    const Scores beside = score(model, inputs);
    forms.fold();
    proof.add(beside, score(model, inputs), inputs);
  }
  if (proof.samples == 0) throw Error("DAT008", "none of the samples for the proof can be used: nothing is written");
  return proof;
}

void require_equal(const Proof& proof, const MergeRequest& request) {
  const double limit = request.tolerance * std::max(1.0, proof.largest_logit);
  const double loss_limit = request.tolerance * std::max({1.0, proof.text_loss(), proof.mel_loss()});
  if (proof.logit_difference <= limit && proof.loss_difference() <= loss_limit) return;
  throw Error("PFT005", "the merged model differs from the adapters: nothing is written")
      .where(request.model.checkpoint)
      .detail(concat("largest difference of a logit ", proof.logit_difference, ", allowed ", limit))
      .detail(concat("difference of the losses ", proof.loss_difference(), ", allowed ", loss_limit))
      .fix("merge an earlier checkpoint; --tolerance X allows more");
}

nlohmann::ordered_json summary(const MergeRequest& request, const ModelSource& source, const Proof& proof) {
  return {{"output", absolute_path(request.output)},
          {"checkpoint", request.model.checkpoint},
          {"weights", source.weights},
          {"method", adapter_kind_name(source.adapters->kind())},
          {"scale", request.scale},
          {"matrices", source.adapters->adapters().size()},
          {"adapter_parameters", source.adapters->parameter_count()},
          {"samples", proof.samples},
          {"max_logit_difference", proof.logit_difference},
          {"largest_logit", proof.largest_logit},
          {"loss_difference", proof.loss_difference()},
          {"text_loss", proof.text_loss()},
          {"mel_loss", proof.mel_loss()},
          {"tensors", source.model->state().size()},
          {"bytes", file_size(request.output)}};
}

}  // namespace

ExitStatus run_merge(const MergeRequest& request, std::ostream& out) {
  check_output_file(request.output, request.model.checkpoint);
  ModelRequest wanted = request.model;
  wanted.complete = true;  // fresh values must never reach an inference file
  ModelSource source = load_model(wanted);
  require_adapters(source, request.model.checkpoint);
  TrainOptions exact = source.options.train;
  exact.tf32 = false;
  configure_compute(exact, request.model.device);
  const std::unique_ptr<Dataset> data = open_pairs(source.options, request.manifests);
  make_directories(parent_path(absolute_path(request.output)));

  TwoForms forms(*source.model, *source.adapters, request.scale);
  const std::optional<Proof> proof = prove(*source.model, forms, *data);
  if (!proof || stop_requested() != ExitStatus::kOk) {
    log_warning("merge", "stopped: nothing is written");
    return stop_requested();
  }
  require_equal(*proof, request);
  if (request.scale != 1 && !source.beside.empty()) {
    log_info("merge", "--scale acts on the adapted matrices; what trained beside them is taken as it is: ",
             join(source.beside, ", "));
  }
  Options plain = source.options;
  plain.peft = PeftOptions{};
  plain.ewc = EwcOptions{};
  plain.init = InitOptions{};
  Value root = Value::dict();
  root.set("model", state_value(*source.model));
  root.set("config", config_value(plain));
  write_torch_file(request.output, root);

  const nlohmann::ordered_json result = summary(request, source, *proof);
  if (request.json) {
    out << dump_json(result, 1) << "\n";
    return ExitStatus::kOk;
  }
  out << request.output << ": " << result["tensors"] << " tensors, " << source.adapters->adapters().size()
      << " matrices merged (" << adapter_kind_name(source.adapters->kind()) << ", scale " << request.scale << ", "
      << source.weights << " weights), " << human_bytes(result["bytes"].get<std::uint64_t>()) << "\n"
      << "equal on " << proof->samples << " samples: max |dlogit| " << proof->logit_difference << " (largest logit "
      << proof->largest_logit << "), dloss " << proof->loss_difference() << ", text loss "
      << fixed(proof->text_loss(), 6) << ", mel loss " << fixed(proof->mel_loss(), 6) << "\n";
  return ExitStatus::kOk;
}

}  // namespace train_gpt_v2
