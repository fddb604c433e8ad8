/* Group norm past the dispatcher: the call from Python, and the gradient. */
#ifndef BNCORE_TORCH_GROUP_NODE_H
#define BNCORE_TORCH_GROUP_NODE_H

#include <ATen/record_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "groups.h"
#include "ordinary.h"
#include "reading.h"

namespace
{

/* The gradients as Python has them, for those that will be differentiated again, transformed or watched. */
pybind11::object &watched_group_backward()
{
    static auto *const one = new pybind11::object; /* outlives the interpreter */
    return *one;
}

struct GroupNormBackward final : torch::autograd::Node {
    torch::autograd::SavedVariable x, weight;
    Tensor moments;
    int64_t groups = 1,
            from = 0; /* from: the first axis that layer norm normalizes; 0: group norm */
    double eps = 0.0;

    std::string name() const override { return "GroupNormBackward"; }

    void release_variables() override
    {
        std::lock_guard<std::mutex> lock(mutex_);
        x.reset_data();
        weight.reset_data();
        moments.reset();
    }

    torch::autograd::variable_list apply(torch::autograd::variable_list &&grads) override
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!grads[0].defined()) return torch::autograd::variable_list(3);
        auto [dx, dweight, dbias] = gradients(grads[0]);
        torch::autograd::variable_list wanted{dx, dweight, dbias};
        for (size_t i = 0; i < wanted.size(); i++)
            if (!task_should_compute_output(i)) wanted[i].reset();
        return wanted;
    }

  private:
    GroupGradients gradients(const Tensor &dy) const
    {
        const Tensor saved = x.unpack(), w = weight.unpack();
        if (at::GradMode::is_enabled() || watched() || !all_ordinary(dy, saved, w) ||
            torch::autograd::isFwGradDefined(dy)) {
            pybind11::gil_scoped_acquire held;
            return watched_group_backward()(dy, saved, moments, groups, from, some(w), eps)
                .cast<GroupGradients>();
        }
        if (!from) return normalize_groups_backward(dy, saved, moments, groups, some(w), eps);
        at::AutoDispatchBelowADInplaceOrView guard; /* the results are no views of anything */
        const int64_t rows = moments.size(1);
        const Optional flat = w.defined() ? Optional(w.reshape({-1})) : Optional();
        auto [dx, dweight, dbias] = normalize_groups_backward(
            dy.reshape({rows, -1}), saved.reshape({rows, -1}), moments, 1, flat, eps);
        const auto shape = saved.sizes().slice(static_cast<size_t>(from));
        return {dx.view(saved.sizes()), dweight.view(shape), dbias.view(shape)};
    }
};

struct GroupCall {
    Tensor x;
    Optional weight, bias;
    int64_t groups = 1, from = 0;
    double eps = 0.0;

    /* Whether weight and bias have the dtypes that PyTorch takes with x. */
    bool fits(const Optional &parameter, at::IntArrayRef shape) const
    {
        if (!parameter) return true;
        const auto kind = x.scalar_type(), own = parameter->scalar_type();
        if (own != kind && !(own == at::kFloat && arithmetic(kind) == at::kFloat)) return false;
        return parameter->sizes() == shape &&
               !(at::GradMode::is_enabled() && !c10::InferenceMode::is_enabled() &&
                 parameter->is_inference());
    }

    /* Whether these are arguments that nothing is to be said of. */
    bool fit() const
    {
        if (watched() || !all_ordinary(x, weight, bias)) return false;
        if (dtype_of(x.scalar_type()) < 0 || x.numel() == 0 || !(eps >= 0.0) || !std::isfinite(eps))
            return false;
        if (weight && bias && weight->scalar_type() != bias->scalar_type()) return false;
        if (at::GradMode::is_enabled() && !c10::InferenceMode::is_enabled() && x.is_inference())
            return false;
        if (from) {
            const auto shape = x.sizes().slice(static_cast<size_t>(from));
            return fits(weight, shape) && fits(bias, shape);
        }
        if (x.dim() < 2 || groups < 1 || x.size(1) % groups || x.numel() == groups) return false;
        return fits(weight, {x.size(1)}) && fits(bias, {x.size(1)});
    }

    Tensor computed() const
    {
        RECORD_FUNCTION("bncore::group_norm", c10::ArrayRef<const c10::IValue>{});
        Tensor y, moments;
        if (from) {
            at::AutoDispatchBelowADInplaceOrView guard; /* y is no view of anything */
            const int64_t width =
                c10::multiply_integers(x.sizes().slice(static_cast<size_t>(from)));
            std::tie(y, moments) =
                normalize_groups(x.reshape({-1, width}), 1, flat(weight), flat(bias), eps);
            y = y.view(x.sizes());
        } else {
            std::tie(y, moments) = normalize_groups(x, groups, weight, bias, eps);
        }
        if (torch::autograd::compute_requires_grad(x, weight, bias)) remember(y, moments);
        return y;
    }

  private:
    static Optional flat(const Optional &parameter)
    {
        return parameter ? Optional(parameter->reshape({-1})) : Optional();
    }

    void remember(const Tensor &y, const Tensor &moments) const
    {
        auto node = c10::make_intrusive<GroupNormBackward>();
        node->set_next_edges(torch::autograd::collect_next_edges(x, weight, bias));
        node->x = torch::autograd::SavedVariable(x, false);
        node->weight = torch::autograd::SavedVariable(weight, false);
        node->moments = moments;
        node->groups = groups;
        node->from = from;
        node->eps = eps;
        torch::autograd::set_history(y, node);
    }
};

/* (x, groups, from, weight, bias, eps); None where the call is not an ordinary one. */
PyObject *call_group_norm(PyObject *, PyObject *const *args, Py_ssize_t count)
{
    HANDLE_TH_ERRORS
    GroupCall call;
    Optional x;
    if (count != 6 || !read(args[0], x) || !x || !read(args[1], call.groups) ||
        !read(args[2], call.from) || !read(args[3], call.weight) || !read(args[4], call.bias) ||
        !read(args[5], call.eps))
        Py_RETURN_NONE;
    call.x = std::move(*x);
    if (!call.fit()) Py_RETURN_NONE;
    Tensor y;
    {
        pybind11::gil_scoped_release released;
        y = call.computed();
    }
    return THPVariable_Wrap(std::move(y));
    END_HANDLE_TH_ERRORS
}

} // namespace

#endif
