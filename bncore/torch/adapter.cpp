/* bncore.torch, compiled: the operators' kernels on the CPU, and batch norm past the dispatcher.
 *
 * `batch_norm` answers at once, or with None where a tensor is not an ordinary one, somebody watches the calls, or an
 * argument is wrong: then the Python code does it, or says why not. The autograd node needs no Python, unless its
 * gradients will be differentiated again, or transformed: then Python has the operator called.
 */
#include <Python.h>

#include <cmath>
#include <limits>

#include <ATen/ops/empty_like.h>
#include <ATen/record_function.h>
#include <c10/core/AutogradState.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "backward_node.h"
#include "group_node.h"
#include "kernels.h"
#include "operators.h"
#include "ordinary.h"

namespace
{

/* ---- the call from Python ---- */

struct Given {
    Tensor x;
    Optional mean, var, weight, bias, residual, batches, where, weights;
    bool training;
    double momentum;
    Settings settings;

    bool weighs() const { return where || weights || settings.policy == OMIT; }

    /* Whether these are arguments that nothing is to be said of. */
    bool fit() const
    {
        if (watched() ||
            !all_ordinary(x, mean, var, weight, bias, residual, batches, where, weights))
            return false;
        const auto kind = x.scalar_type();
        if (dtype_of(kind) < 0 || x.dim() < 2 || x.numel() == 0) return false;
        if (training ? (x.numel() == x.size(1) && !weighs()) || !(settings.eps > 0.0) ||
                           mean.has_value() != var.has_value()
                     : !(settings.eps >= 0.0) || !mean || !var)
            return false;
        if (where && (where->scalar_type() != at::kBool || !broadcasts(*where, x))) return false;
        if (weights && (!is_real(weights->scalar_type()) || !broadcasts(*weights, x))) return false;
        const double largest = kind == at::kDouble ? std::numeric_limits<double>::max()
                                                   : double(std::numeric_limits<float>::max());
        if (!std::isfinite(settings.eps) || settings.activation < 0 || settings.policy < 0 ||
            !(settings.slope >= 0.0 && settings.slope <= largest))
            return false;
        for (const Optional *vector : {&mean, &var, &weight, &bias})
            if (*vector && ((*vector)->dim() != 1 || (*vector)->size(0) != x.size(1) ||
                            dtype_of((*vector)->scalar_type()) < 0))
                return false;
        for (const Optional *constant : {&mean, &var, &batches, &weights})
            if (*constant && (*constant)->requires_grad()) return false;
        if (!c10::InferenceMode::is_enabled()) {
            if (batches && batches->is_inference()) return false;
            /* such tensors cannot be saved; PyTorch says so before anything is written */
            if (at::GradMode::is_enabled())
                for (const Optional &saved : {Optional(x), weight, bias, residual, where, weights})
                    if (saved && saved->is_inference()) return false;
        }
        if (batches && (batches->scalar_type() != at::kLong || batches->numel() != 1)) return false;
        return !residual || (residual->sizes() == x.sizes() && residual->scalar_type() == kind);
    }
};

void remember(const Tensor &y, const Given &given, const Tensor &moments)
{
    const bool activated = given.settings.activation != BNCORE_NO_ACTIVATION;
    auto node = c10::make_intrusive<BatchNormBackward>();
    node->set_next_edges(
        torch::autograd::collect_next_edges(given.x, given.weight, given.bias, given.residual));
    node->settings = given.settings;
    if (given.settings.policy == RAISE) node->settings.policy = PROPAGATE; /* it has been done */
    const bool weight_moves = given.weight && given.weight->requires_grad();
    if (moments.defined() || activated || weight_moves || given.settings.fill)
        node->x = SavedVariable(given.x, false); /* else dx depends on dy alone */
    node->weight = SavedVariable(given.weight, false);
    node->where = SavedVariable(given.where, false);
    node->weights = SavedVariable(given.weights, false);
    if (activated) { /* else no gradient depends on them */
        node->bias = SavedVariable(given.bias, false);
        node->residual = SavedVariable(given.residual, false);
    }
    if (moments.defined()) {
        node->moments = moments;
    } else {
        /* Copies: a batch in training may move the statistics before this one's backward. */
        node->mean = SavedVariable(given.mean->detach().clone(), false);
        node->var = SavedVariable(given.var->detach().clone(), false);
    }
    torch::autograd::set_history(y, node);
}

Tensor computed(const Given &given)
{
    const auto &[x, mean, var, weight, bias, residual, batches, where, weights, training, momentum,
                 settings] = given;
    RECORD_FUNCTION("bncore::batch_norm", c10::ArrayRef<const c10::IValue>{});
    Tensor y, moments;
    if (training) {
        std::tie(y, moments) = train(x, weight, bias, residual, where, weights, settings);
        if (mean) update(*mean, *var, moments, momentum);
    } else {
        y = infer(x, *mean, *var, weight, bias, residual, where, weights, settings);
    }
    if (training && batches) {
        batches->unsafeGetTensorImpl()->bump_version();
        ++*batches->mutable_data_ptr<int64_t>();
    }
    if (torch::autograd::compute_requires_grad(x, weight, bias, residual))
        remember(y, given, moments); /* last: a hook may stop a recomputation here */
    return y;
}

/* A text as UTF-8; empty where there is none. */
std::string_view text_of(PyObject *object)
{
    if (!PyUnicode_CheckExact(object)) return {};
    Py_ssize_t size = 0;
    const char *text = PyUnicode_AsUTF8AndSize(object, &size);
    if (!text) PyErr_Clear();
    return text ? std::string_view(text, static_cast<size_t>(size)) : std::string_view();
}

bool read_activation(PyObject *object, int32_t &to)
{
    to = object == Py_None ? int32_t(BNCORE_NO_ACTIVATION) : activation_of(text_of(object));
    return to >= 0;
}

bool read_policy(PyObject *object, int32_t &to)
{
    to = policy_of(text_of(object));
    return to >= 0;
}

/* A constant of y: None, or a number, which may be NaN. */
bool read_fill(PyObject *object, std::optional<double> &to)
{
    if (object == Py_None) return true;
    double value;
    if (!read(object, value)) return false;
    to = value;
    return true;
}

constexpr Py_ssize_t ARGUMENTS = 16;

PyObject *batch_norm(PyObject *, PyObject *const *args, Py_ssize_t count)
{
    HANDLE_TH_ERRORS
    Given given;
    Optional x;
    if (count != ARGUMENTS || !read(args[0], x) || !x || !read(args[1], given.mean) ||
        !read(args[2], given.var) || !read(args[3], given.weight) || !read(args[4], given.bias) ||
        !read(args[5], given.training) || !read(args[6], given.momentum) ||
        !read(args[7], given.settings.eps) ||
        !read_activation(args[8], given.settings.activation) ||
        !read(args[9], given.settings.slope) || !read(args[10], given.residual) ||
        !read(args[11], given.batches) || !read(args[12], given.where) ||
        !read(args[13], given.weights) || !read_policy(args[14], given.settings.policy) ||
        !read_fill(args[15], given.settings.fill))
        Py_RETURN_NONE;
    given.x = std::move(*x);
    if (!given.fit()) Py_RETURN_NONE;
    Tensor y;
    {
        pybind11::gil_scoped_release released;
        y = computed(given);
    }
    return THPVariable_Wrap(std::move(y));
    END_HANDLE_TH_ERRORS
}

/* A new tensor for a result like x. */
PyObject *output(PyObject *, PyObject *given)
{
    HANDLE_TH_ERRORS
    const Tensor &x = THPVariable_Unpack(given);
    return THPVariable_Wrap(x.is_non_overlapping_and_dense() ? like(x) : at::empty_like(x));
    END_HANDLE_TH_ERRORS
}

PyObject *set_backward(PyObject *, PyObject *args)
{
    PyObject *train, *infer;
    if (!PyArg_ParseTuple(args, "OO", &train, &infer)) return nullptr;
    watched_backward() = {pybind11::reinterpret_borrow<pybind11::object>(train),
                          pybind11::reinterpret_borrow<pybind11::object>(infer)};
    Py_RETURN_NONE;
}

/* The gradients of group norm as Python has them. */
PyObject *set_group_backward(PyObject *, PyObject *function)
{
    watched_group_backward() = pybind11::reinterpret_borrow<pybind11::object>(function);
    Py_RETURN_NONE;
}

PyObject *set_pool(PyObject *, PyObject *bytes)
{
    const size_t limit = PyLong_AsSize_t(bytes);
    if (PyErr_Occurred()) return nullptr;
    pool().set_limit(limit);
    Py_RETURN_NONE;
}

PyObject *pool_state(PyObject *, PyObject *)
{
    const auto [limit, idle] = pool().state();
    return Py_BuildValue("nn", static_cast<Py_ssize_t>(limit), static_cast<Py_ssize_t>(idle));
}

/* Choose who runs parallel loops, by name, and return the name of the choice; "" is the choice of the start. */
PyObject *set_executor(PyObject *, PyObject *given)
{
    HANDLE_TH_ERRORS
    const char *name = PyUnicode_AsUTF8(given);
    if (!name) return nullptr;
    TORCH_CHECK_VALUE(choose_executor(name),
                      "executor: expected torch, own, openmp or serial, got '", name, "'");
    return PyUnicode_FromString(executor_name().c_str());
    END_HANDLE_TH_ERRORS
}

PyMethodDef METHODS[] = {
    {"batch_norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void *>(&batch_norm)),
     METH_FASTCALL, nullptr},
    {"group_norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void *>(&call_group_norm)),
     METH_FASTCALL, nullptr},
    {"output", &output, METH_O, nullptr},
    {"set_backward", &set_backward, METH_VARARGS, nullptr},
    {"set_group_backward", &set_group_backward, METH_O, nullptr},
    {"set_pool", &set_pool, METH_O, nullptr},
    {"set_executor", &set_executor, METH_O, nullptr},
    {"pool_state", &pool_state, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "adapter", nullptr, -1, METHODS, nullptr, nullptr, nullptr, nullptr};

} // namespace

extern "C" __attribute__((visibility("default"))) PyObject *PyInit_adapter()
{
    HANDLE_TH_ERRORS
    if (!choose_executor("")) {
        PyErr_SetString(PyExc_ImportError,
                        "BNCORE_EXECUTOR: expected own, openmp where it was built in, or serial");
        return nullptr;
    }
    register_kernels();
    PyObject *const module = PyModule_Create(&MODULE);
#ifdef Py_GIL_DISABLED
    /* set_backward is called once, by the import; what else changes has a lock or is PyTorch's. */
    if (module) PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
    return module;
    END_HANDLE_TH_ERRORS
}
