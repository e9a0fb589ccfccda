#include "train_gpt_v2/model/checkpoint.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "train_gpt_v2/model/autocast.h"

namespace train_gpt_v2 {
namespace {

using Block = std::function<at::Tensor(const at::Tensor&)>;

// The block travels beside the tensors; it lives as long as the graph node.
struct BlockHolder : torch::CustomClassHolder {
  BlockHolder(Block the_block, c10::ScalarType the_type) : block(std::move(the_block)), compute(the_type) {}
  Block block;
  c10::ScalarType compute;
};

class Recompute : public torch::autograd::Function<Recompute> {
 public:
  // `anchor` requires a gradient, so that the output does even when x does not (frozen tables, trained blocks).
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& anchor,
                            const c10::intrusive_ptr<BlockHolder>& holder) {
    context->save_for_backward({x});
    context->saved_data["block"] = c10::IValue::make_capsule(holder);
    context->saved_data["input_gradient"] = x.requires_grad();
    static_cast<void>(anchor);
    return holder->block(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto holder = c10::static_intrusive_pointer_cast<BlockHolder>(context->saved_data["block"].toCapsule());
    at::Tensor x = context->get_saved_variables()[0].detach();
    x.set_requires_grad(context->saved_data["input_gradient"].toBool());
    {
      const at::AutoGradMode recording(true);
      at::Tensor y;
      {
        const AutocastScope autocast(x.device().type(), holder->compute);
        y = holder->block(x);
      }
      torch::autograd::backward({y}, {gradients[0]});
    }
    return {x.grad(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor checkpoint(Block block, const at::Tensor& x) {
  if (!at::GradMode::is_enabled()) return block(x);
  const at::Tensor anchor = at::zeros({}, x.options()).set_requires_grad(true);
  auto holder = c10::make_intrusive<BlockHolder>(std::move(block), active_compute_type(x.device().type()));
  return Recompute::apply(x, anchor, holder);
}

}  // namespace train_gpt_v2
