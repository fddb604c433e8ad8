/* The node of batch norm in autograd's graph. */
#ifndef BNCORE_TORCH_BACKWARD_NODE_H
#define BNCORE_TORCH_BACKWARD_NODE_H

#include <Python.h>

#include <array>
#include <mutex>

#include <c10/core/AutogradState.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/csrc/utils/pybind.h>

#include "kernels.h"
#include "operators.h"
#include "ordinary.h"

namespace
{

/* The operators as Python has them, for gradients that will be differentiated again, transformed or watched. */
struct WatchedBackward {
    pybind11::object train, infer;
};

WatchedBackward &watched_backward()
{
    static auto *const one = new WatchedBackward; /* outlives the interpreter */
    return *one;
}

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

/* What backward needs of `x, weight, bias, residual`, and what counts; training: moments, else the running statistics. */
struct BatchNormBackward final : torch::autograd::Node {
    SavedVariable x, weight, bias, residual, where, weights, mean, var;
    Tensor moments;
    Settings settings;

    std::string name() const override { return "BatchNormBackward"; }

    void release_variables() override
    {
        std::lock_guard<std::mutex> lock(mutex_);
        for (SavedVariable *saved : saved_variables()) saved->reset_data();
        moments.reset();
    }

    variable_list apply(variable_list &&grads) override
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!grads[0].defined()) return variable_list(4);
        const bool through =
            task_should_compute_output(3) &&
            (settings.activation != BNCORE_NO_ACTIVATION || settings.fill.has_value());
        auto [dx, dweight, dbias, dresidual] = gradients(grads[0], through);
        variable_list wanted{dx, dweight, dbias, through ? dresidual : grads[0]};
        for (size_t i = 0; i < wanted.size(); i++)
            if (!task_should_compute_output(i)) wanted[i].reset();
        return wanted;
    }

    /* For compiled autograd, which traces backward with other tensors in the place of the saved ones. */
    void compiled_args(torch::dynamo::autograd::CompiledNodeArgs &args) const override
    {
        for (const SavedVariable *saved : saved_variables()) args.collect(*saved, false);
        args.collect(moments);
        args.collect(settings.eps);
        args.collect(static_cast<int64_t>(settings.activation));
        args.collect(settings.slope);
        args.collect(static_cast<int64_t>(settings.policy));
        args.collect(settings.fill);
    }

    variable_list apply_with_saved(const variable_list &grads,
                                   torch::dynamo::autograd::SwapSavedVariables &swap) override
    {
        for (SavedVariable *saved : saved_variables()) swap.before(*saved);
        swap.before(moments);
        variable_list found = apply(variable_list(grads));
        for (SavedVariable *saved : saved_variables()) swap.after(*saved);
        swap.after(moments);
        return found;
    }

  private:
    std::array<SavedVariable *, 8> saved_variables()
    {
        return {&x, &weight, &bias, &residual, &where, &weights, &mean, &var};
    }

    std::array<const SavedVariable *, 8> saved_variables() const
    {
        return {&x, &weight, &bias, &residual, &where, &weights, &mean, &var};
    }

    Gradients gradients(const Tensor &dy, bool through) const
    {
        const Tensor kept = x.unpack(), m = mean.unpack(), v = var.unpack();
        const Optional w = some(weight.unpack()), b = some(bias.unpack()),
                       r = some(residual.unpack()), counted = some(where.unpack()),
                       numbers = some(weights.unpack());
        const Tensor saved_x = kept.defined() ? kept : dy; /* its values do not matter, then */
        const bool direct = !at::GradMode::is_enabled() && !watched() &&
                            all_ordinary(dy, saved_x, m, v, w, b, r, counted, numbers) &&
                            !torch::autograd::isFwGradDefined(dy);
        if (direct && m.defined())
            return infer_backward(dy, saved_x, m, v, w, b, r, counted, numbers, settings, through);
        if (direct)
            return train_backward(dy, saved_x, moments, w, b, r, counted, numbers, settings,
                                  through);
        pybind11::gil_scoped_acquire held;
        const char *activation = ACTIVATIONS[settings.activation];
        const char *policy = POLICIES[settings.policy];
        const auto call = [&](const pybind11::object &function, const auto &...statistics) {
            return function(dy, saved_x, statistics..., w, b, r, counted, numbers, settings.eps,
                            activation, settings.slope, policy, settings.fill, through)
                .template cast<Gradients>();
        };
        return m.defined() ? call(watched_backward().infer, m, v)
                           : call(watched_backward().train, moments);
    }
};

} // namespace

#endif
