/* The operators' kernels on the CPU, as PyTorch's dispatcher calls them. */
#ifndef BNCORE_TORCH_OPERATORS_H
#define BNCORE_TORCH_OPERATORS_H

#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "groups.h"
#include "kernels.h"

namespace
{

/* Refuse tensors with a tangent, which would be lost; transforms.py has forward mode. */
template <typename... Tensors> void refuse_tangents(const Tensors &...tensors)
{
    if (!c10::AutogradState::get_tls_state().get_fw_grad_mode()) return;
    const auto has = [](const Optional &t) { return t && torch::autograd::isFwGradDefined(*t); };
    TORCH_CHECK_NOT_IMPLEMENTED(!(has(tensors) || ...),
                                "torch.ops.bncore: forward mode is not implemented; "
                                "bncore.torch.batch_norm has it");
}

std::tuple<Tensor, Tensor> train_op(const Tensor &x, const Optional &weight, const Optional &bias,
                                    const Optional &residual, const Optional &where,
                                    const Optional &weights, double eps, Text activation,
                                    double slope, c10::string_view policy,
                                    std::optional<double> fill)
{
    refuse_tangents(x, weight, bias, residual, weights);
    return train(x, weight, bias, residual, where, weights,
                 {eps, activation_of(activation), slope, policy_of(policy), fill});
}

Gradients train_backward_op(const Tensor &dy, const Tensor &x, const Tensor &moments,
                            const Optional &weight, const Optional &bias, const Optional &residual,
                            const Optional &where, const Optional &weights, double eps,
                            Text activation, double slope, c10::string_view policy,
                            std::optional<double> fill, bool through)
{
    refuse_tangents(dy, x, weight, bias, residual, weights);
    return train_backward(dy, x, moments, weight, bias, residual, where, weights,
                          {eps, activation_of(activation), slope, policy_of(policy), fill},
                          through);
}

Tensor infer_op(const Tensor &x, const Tensor &mean, const Tensor &var, const Optional &weight,
                const Optional &bias, const Optional &residual, const Optional &where,
                const Optional &weights, double eps, Text activation, double slope,
                c10::string_view policy, std::optional<double> fill)
{
    refuse_tangents(x, weight, bias, residual, weights);
    return infer(x, mean, var, weight, bias, residual, where, weights,
                 {eps, activation_of(activation), slope, policy_of(policy), fill});
}

Gradients infer_backward_op(const Tensor &dy, const Tensor &x, const Tensor &mean,
                            const Tensor &var, const Optional &weight, const Optional &bias,
                            const Optional &residual, const Optional &where,
                            const Optional &weights, double eps, Text activation, double slope,
                            c10::string_view policy, std::optional<double> fill, bool through)
{
    refuse_tangents(dy, x, weight, bias, residual, weights);
    return infer_backward(dy, x, mean, var, weight, bias, residual, where, weights,
                          {eps, activation_of(activation), slope, policy_of(policy), fill},
                          through);
}

std::tuple<Tensor, Tensor> group_norm_op(const Tensor &x, int64_t groups, const Optional &weight,
                                         const Optional &bias, double eps)
{
    refuse_tangents(x, weight, bias);
    return normalize_groups(x, groups, weight, bias, eps);
}

GroupGradients group_norm_backward_op(const Tensor &dy, const Tensor &x, const Tensor &moments,
                                      int64_t groups, const Optional &weight, double eps)
{
    refuse_tangents(dy, x, weight);
    return normalize_groups_backward(dy, x, moments, groups, weight, eps);
}

void update_op(const Tensor &running_mean, const Tensor &running_var, const Tensor &moments,
               double momentum)
{
    for (const auto &[name, running] :
         {std::pair("running_mean", running_mean), std::pair("running_var", running_var)})
        TORCH_CHECK(!(at::GradMode::is_enabled() && running.requires_grad()),
                    "The operator of bncore is not differentiable with respect to argument '", name,
                    "'. This input cannot have requires_grad True.");
    update(running_mean, running_var, moments, momentum);
}

/* Called when Python imports the module, not when the library is loaded: until then the loader of adapters may still
 * refuse it. The registration outlives the interpreter, as tensors and their gradients may. */
void register_kernels()
{
    static auto *const library = [] {
        auto *made = new torch::Library(torch::Library::IMPL, "bncore", c10::DispatchKey::CPU,
                                        __FILE__, __LINE__);
        made->impl("batch_norm_train", train_op);
        made->impl("batch_norm_train_backward", train_backward_op);
        made->impl("batch_norm_infer", infer_op);
        made->impl("batch_norm_infer_backward", infer_backward_op);
        made->impl("group_norm", group_norm_op);
        made->impl("group_norm_backward", group_norm_backward_op);
        made->impl("update_running_stats_", update_op);
        return made;
    }();
    (void)library;
}

} // namespace
#endif
