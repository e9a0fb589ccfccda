#pragma once
// One adapted matrix: LoRA, DoRA, AdaLoRA or both together (algorithms.md §1-§3), as formulas on tensors.
//
// Logical weight W0 [out,in]; A [r,in], B [out,r]; λ [r,1] for the adaptive kinds; m [out] for DoRA. With D = B·A or
// B·diag(λ)·A, V = W0 + s·D, n = max(row norm of V, 1e-6) held constant in derivatives, g = m/n:
//     W' = diag(g)·V   (without m: W' = V)
// An embedding table [V,d] is the same with in = V, out = d, stored [in,out], so that m has one entry per dimension.
//
// Two ways to train: the executor reads W' (write_effective) and returns dL/dW' (push_gradient), or of it only what the
// factors need (push_products), exact without dropout; or forward() runs beside the base projection with a dropout
// mask. Both use n of the last refresh(): call it after every change of a parameter. Adapters are fp32 (fp64 for a
// double base), never in a compute type, never in TF32. Owns a copy of W0. Not thread-safe. Errors: PFT001 settings,
// PFT002 tensors that do not fit, NUM010 non-finite merge.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "train_gpt_v2/model/layers.h"

namespace train_gpt_v2 {

enum class AdapterKind { kLora, kDora, kAdalora, kDoraAdalora };

std::string_view adapter_kind_name(AdapterKind kind);   // as in peft.method
AdapterKind parse_adapter_kind(std::string_view name);  // PFT001 for an unknown one
bool has_magnitude(AdapterKind kind);
bool is_adaptive(AdapterKind kind);

struct AdapterSpec {
  std::string module;  // "gpt.h.0.attn.c_attn"
  AdapterKind kind = AdapterKind::kLora;
  WeightLayout layout = WeightLayout::kInOut;
  bool embedding = false;
  std::int64_t rank = 16;  // at the start; the scale keeps it when ranks are pruned
  double alpha = 32;
  bool rslora = false;

  double scale() const;  // α/r, α/√r, or α/(r+1e-5) for the adaptive kinds
};

enum class AdapterRole { kA, kB, kLambda, kMagnitude };

struct AdapterParameter {
  std::string name;  // peft's, without "base_model.model.": "gpt.h.0.attn.c_attn.lora_A.weight"
  AdapterRole role = AdapterRole::kA;
  at::Tensor tensor;
};

// Of G = dL/dW', stored [in,out]: all that the gradients of A, B, λ and m are made of (§1.4).
struct GradientProducts {
  at::Tensor with_a;   // A·G [r,out]
  at::Tensor with_b;   // (G·(g⊙B))ᵀ [r,in]
  at::Tensor columns;  // column sums of G∘W' [out]; undefined without m
};

class Adapter {
 public:
  // `base` in its stored layout; copied. All tensors are allocated; initialise() or set() gives them values.
  Adapter(AdapterSpec spec, const at::Tensor& base);

  // A uniform ±1/√in, B zero (embedding: A zero, B normal); adaptive: A, B normal(0.02), λ zero; m the row norms. A
  // tensor depends on (seed, its name) only. W' equals W0 bit by bit afterwards.
  void initialise(std::uint64_t seed);

  // Replaces values, converting type and device. A, B and λ may have any common rank; m stays when undefined here.
  void set(const at::Tensor& a, const at::Tensor& b, const at::Tensor& lambda, const at::Tensor& magnitude);

  const AdapterSpec& spec() const { return spec_; }
  std::int64_t inputs() const { return base_view().size(1); }
  std::int64_t outputs() const { return base_view().size(0); }
  std::int64_t rank() const { return a_.size(0); }  // current
  std::int64_t parameter_count() const;             // current
  std::int64_t triplet_cost() const;                // parameters that one rank costs

  // The tensors the optimizer moves, in the order A, λ, B, m. Leaves that require gradients; pruning keeps the objects.
  std::vector<AdapterParameter> parameters() const;
  std::string parameter_name(AdapterRole role) const;
  const at::Tensor& a() const { return a_; }
  const at::Tensor& b() const { return b_; }
  const at::Tensor& lambda() const { return lambda_; }        // undefined unless adaptive
  const at::Tensor& magnitude() const { return magnitude_; }  // undefined without DoRA
  const at::Tensor& base() const { return base_; }            // stored layout

  // Computes n and g from the parameters as they are, without forming D (§1.5).
  void refresh();
  const at::Tensor& norm() const { return norm_; }  // [out] double, of the last refresh; DoRA only

  // target <- W' in the stored layout and the target's type.
  void write_effective(at::Tensor target) const;
  // W0 + share·(W' − W0) in fp32 or wider, checked to be finite. share 1: the merged weight.
  at::Tensor merged(double share = 1) const;
  // W0 back from W', with n of the last refresh (it cannot be computed from W').
  at::Tensor unmerged(const at::Tensor& effective) const;

  // Adds the gradients of A, B, λ, m that follow from dL/dW' (stored layout) to the parameters' .grad (§1.4).
  void push_gradient(const at::Tensor& weight_grad);
  // The same from products with A and gained_b() as they are.
  void push_products(const GradientProducts& products);
  at::Tensor gained_b() const;  // g⊙B; B without m

  // y [N,out] from x, y0 = base(x), and x after dropout (x itself: evaluation): §1.3, with peft's shared draw.
  // Differentiable in x, y0, the dropped x and the parameters.
  at::Tensor forward(const at::Tensor& y0, const at::Tensor& dropped_x) const;

  // A and B of the plain LoRA/DoRA adapter with rank r = max(rank, 1) and α = 2r that has the same W' (§3.6). For the
  // kinds that are plain already: A and B themselves.
  std::pair<at::Tensor, at::Tensor> plain_factors() const;

  // Keeps these ranks (ascending indices into the current ones): A, B, λ shrink in new storage, gradients are dropped.
  void compact(const std::vector<std::int64_t>& kept);

 private:
  at::Tensor logical(const at::Tensor& stored) const;  // [out,in] view
  at::Tensor base_view() const { return logical(base_); }
  at::Tensor left_factor() const;  // B, or B·diag(λ)
  at::Tensor nonzero_magnitude() const;
  void push_factors(const at::Tensor& with_a, const at::Tensor& with_b);

  AdapterSpec spec_;
  at::Tensor base_;
  at::Tensor base_norm_squared_;  // [out] double
  at::Tensor a_, b_, lambda_, magnitude_;
  at::Tensor norm_, gain_;  // of the last refresh
};

}  // namespace train_gpt_v2
