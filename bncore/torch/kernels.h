/* The kernels of the operators, as ops.py has them in Python, to the bit: bncore's C library on tensors' own memory. */
#ifndef BNCORE_TORCH_KERNELS_H
#define BNCORE_TORCH_KERNELS_H

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>

#include "bncore.h"
#include "dtypes.h"
#include "memory.h"

namespace
{

using Optional = std::optional<Tensor>;
using Text = std::optional<c10::string_view>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>; /* dx, dweight, dbias, dresidual */

/* ---- arguments of the C library ---- */

constexpr const char *ACTIVATIONS[] = {nullptr, "relu", "leaky_relu"};

struct Fused {
    double eps;
    int32_t activation; /* of bncore_activation, or -1 */
    double slope;
};

int32_t activation_of(Text name)
{
    if (!name) return BNCORE_NO_ACTIVATION;
    if (*name == "relu") return BNCORE_RELU;
    return *name == "leaky_relu" ? BNCORE_LEAKY_RELU : -1;
}

/* x itself where it fills one block of memory, else a copy, in the order that PyTorch gives to results like x. */
Tensor dense(const Tensor &x)
{
    const auto place = reinterpret_cast<uintptr_t>(x.const_data_ptr());
    return x.is_non_overlapping_and_dense() && place % x.element_size() == 0 ? x : x.clone();
}

/* `tensor`, which is of x's sizes, in the memory order of a dense x. */
Tensor in_order_of(const Tensor &x, const Tensor &tensor)
{
    const auto place = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    if (tensor.strides() == x.strides() && place % x.element_size() == 0) return tensor;
    Tensor copy = like(x);
    copy.copy_(tensor);
    return copy;
}

/* torch.set_flush_denormal makes subnormal numbers zero; parameters and results are converted as bncore computes. */
class Environment
{
    bncore_environment own_;

  public:
    Environment() { bncore_environment_enter(&own_); }
    ~Environment() { bncore_environment_leave(&own_); }
    Environment(const Environment &) = delete;
};

/* A parameter or statistic [channels] as double; NULL for none. The values live as long as this. */
class Channels
{
    std::vector<double> values_;

  public:
    explicit Channels(const Optional &given)
    {
        if (given && given->defined()) values_ = as_double(*given);
    }
    const double *get() const { return values_.empty() ? nullptr : values_.data(); }
};

void check_channels(const char *name, const Optional &given, const Tensor &x)
{
    if (!given || !given->defined()) return;
    TORCH_CHECK_VALUE(given->dim() == 1 && given->size(0) == x.size(1), name, ": expected shape (",
                      x.size(1), ",), got ", given->sizes());
    TORCH_CHECK_TYPE(dtype_of(given->scalar_type()) >= 0, name, ": expected ", DTYPES, ", got ",
                     given->scalar_type());
}

void check_like(const char *name, const Tensor &given, const Tensor &x)
{
    TORCH_CHECK_VALUE(given.sizes() == x.sizes(), name, ": expected shape ", x.sizes(), ", got ",
                      given.sizes());
    TORCH_CHECK_TYPE(given.scalar_type() == x.scalar_type(), name, ": expected ", x.scalar_type(),
                     ", got ", given.scalar_type());
}

/* ---- threads ---- */

/* PyTorch's own parallel loop: the threads that just ran a convolution run this too. Each takes one stretch of
 * neighbouring tasks, the same one in every call. A call inside a parallel region runs on its own thread. */
void torch_parallel_for(void *, int64_t tasks, int32_t, void (*task)(void *, int64_t), void *arg)
{
    at::parallel_for(0, tasks, 1, [task, arg](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) task(arg, i);
    });
}

constexpr bncore_executor TORCH_EXECUTOR{torch_parallel_for, nullptr};

/* Who runs the loops of every call; NULL is the library's executor, of this copy of the library. */
std::atomic<const bncore_executor *> executor{nullptr};

/* "torch", or a name that bncore_executor_choose knows; "" is what BNCORE_EXECUTOR says, else the default. */
bool choose_executor(const std::string &name)
{
#ifdef INTRA_OP_PARALLEL
    const char *asked = std::getenv("BNCORE_EXECUTOR");
    if (name == "torch" || (name.empty() && !(asked && *asked))) {
        executor = &TORCH_EXECUTOR;
        return true;
    }
#endif
    if (name.empty() ? bncore_executor_init() != BNCORE_OK
                     : bncore_executor_choose(name.c_str()) != BNCORE_OK)
        return false;
    executor = nullptr;
    return true;
}

/* A forked child has none of PyTorch's threads, and waits for them forever; the library makes new ones. */
const bncore_executor *executor_of_a_call()
{
    return bncore_in_forked_child() ? nullptr : executor.load(std::memory_order_relaxed);
}

std::string executor_name()
{
    return executor.load() ? "torch" : bncore_executor_name();
}

/* A dense x as the C library has it, and what is fused; the problem points into this struct. */
struct Call {
    bncore_problem problem{};
    bncore_fusion fusion{};
    Tensor residual; /* in x's order */

    Call(const Tensor &x, const Fused &fused, const Optional &given)
    {
        const int dtype = dtype_of(x.scalar_type());
        TORCH_CHECK_NOT_IMPLEMENTED(dtype >= 0, "\"batch_norm\" not implemented for '",
                                    x.scalar_type(), "'");
        TORCH_CHECK_VALUE(x.dim() >= 2, "x: expected at least 2 dimensions, got ", x.dim());
        /* The sizes of all axes: those that are slower in memory than the channels, the channels,
         * and the rest. The order within each group changes no product. */
        c10::SmallVector<int64_t, 8> sizes, faster;
        for (int64_t d = 0; d < x.dim(); d++) {
            const bool slower = x.is_contiguous() ? d == 0
                                : d == 0          ? x.stride(0) >= x.stride(1)
                                                  : x.stride(d) > x.stride(1);
            if (d != 1) (slower ? sizes : faster).push_back(x.size(d));
        }
        const int at = static_cast<int>(sizes.size());
        sizes.push_back(x.size(1));
        sizes.append(faster.begin(), faster.end());
        int64_t canonical[3];
        bncore_canonical(sizes.data(), static_cast<int>(x.dim()), at, at + 1, canonical);
        bncore_problem_init(&problem, sizeof problem, static_cast<bncore_dtype>(dtype),
                            canonical[0], canonical[1], canonical[2]);
        bncore_fusion_init(&fusion, sizeof fusion);
        problem.eps = fused.eps;
        problem.n_threads = at::get_num_threads();
        problem.executor = executor_of_a_call();
        fusion.activation = fused.activation;
        fusion.slope = fused.slope;
        if (given && given->defined()) {
            check_like("residual", *given, x);
            residual = in_order_of(x, *given);
            fusion.residual = residual.const_data_ptr();
        }
        if (fused.activation != BNCORE_NO_ACTIVATION || fusion.residual) problem.fusion = &fusion;
    }
    Call(const Call &) = delete;

    int64_t count() const { return problem.outer * problem.inner; }
    bool empty() const { return count() * problem.channels == 0; }
};

void require(bncore_status status)
{
    TORCH_CHECK_VALUE(status == BNCORE_OK, "bncore: ", bncore_status_string(status));
}

/* ---- the kernels ---- */

std::tuple<Tensor, Tensor> train(const Tensor &given, const Optional &weight, const Optional &bias,
                                 const Optional &residual, const Fused &fused)
{
    at::AutoDispatchBelowADInplaceOrView guard;
    const Environment environment;
    const Tensor x = dense(given);
    Call call(x, fused, residual);
    check_channels("weight", weight, x);
    check_channels("bias", bias, x);
    const int64_t channels = x.size(1);
    Tensor y = like(x), moments = vector({3, channels}, at::kDouble);
    double *count = moments.mutable_data_ptr<double>(), *mean = count + channels;
    std::fill_n(count, channels, static_cast<double>(call.count()));
    if (call.empty()) {
        std::fill_n(mean, channels, std::numeric_limits<double>::quiet_NaN());
        std::fill_n(mean + channels, channels, 0.0);
        return {y, moments};
    }
    const Channels gamma(weight), beta(bias);
    require(bncore_train(&call.problem, y.mutable_data_ptr(), mean, mean + channels,
                         x.const_data_ptr(), gamma.get(), beta.get()));
    return {y, moments};
}

Tensor infer(const Tensor &given, const Tensor &mean, const Tensor &var, const Optional &weight,
             const Optional &bias, const Optional &residual, const Fused &fused)
{
    at::AutoDispatchBelowADInplaceOrView guard;
    const Environment environment;
    const Tensor x = dense(given);
    Call call(x, fused, residual);
    check_channels("mean", mean, x);
    check_channels("var", var, x);
    check_channels("weight", weight, x);
    check_channels("bias", bias, x);
    Tensor y = like(x);
    if (call.empty()) return y;
    const Channels m(mean), v(var), gamma(weight), beta(bias);
    require(bncore_normalize(&call.problem, y.mutable_data_ptr(), x.const_data_ptr(), m.get(),
                             v.get(), gamma.get(), beta.get()));
    return y;
}

/* Both backward functions: `run` is the C library's, mean and var are double [channels]. */
Gradients backward(decltype(&bncore_train_backward) run, const Tensor &dy, const Tensor &given,
                   const double *mean, const double *var, const Optional &weight,
                   const Optional &bias, const Optional &residual, const Fused &fused, bool through)
{
    const Tensor x = dense(given);
    Call call(x, fused, residual);
    check_like("dy", dy, x);
    check_channels("weight", weight, x);
    check_channels("bias", bias, x);
    const int64_t channels = x.size(1);
    const Channels gamma(weight), beta(bias);
    const Tensor gradient = in_order_of(x, dy);
    Tensor dx = like(x), dresidual = through ? like(x) : vector({0}, x.scalar_type());
    call.fusion.bias = beta.get();
    if (through) {
        call.fusion.dresidual = dresidual.mutable_data_ptr();
        call.problem.fusion = &call.fusion;
    }
    std::vector<double> sums(2 * channels); /* of dy, of dy * xhat */
    if (!call.empty())
        require(run(&call.problem, dx.mutable_data_ptr(), sums.data(), sums.data() + channels,
                    gradient.const_data_ptr(), x.const_data_ptr(), mean, var, gamma.get()));
    const auto kind =
        weight && weight->defined() ? weight->scalar_type() : arithmetic(x.scalar_type());
    return {dx, as_vector(sums.data() + channels, channels, kind),
            as_vector(sums.data(), channels, kind), dresidual};
}

void check_moments(const Tensor &moments, int64_t channels)
{
    TORCH_CHECK_VALUE(moments.scalar_type() == at::kDouble && moments.dim() == 2 &&
                          moments.size(0) == 3 && moments.size(1) == channels,
                      "moments: expected Double of shape (3, ", channels, "), got ",
                      moments.scalar_type(), " of ", moments.sizes());
}

Gradients train_backward(const Tensor &dy, const Tensor &x, const Tensor &moments,
                         const Optional &weight, const Optional &bias, const Optional &residual,
                         const Fused &fused, bool through)
{
    at::AutoDispatchBelowADInplaceOrView guard;
    const Environment environment;
    const int64_t channels = x.size(1);
    check_moments(moments, channels);
    const Tensor batch = moments.contiguous();
    const double *count = batch.const_data_ptr<double>(), *mean = count + channels;
    std::vector<double> var(mean + channels, mean + 2 * channels);
    for (int64_t c = 0; c < channels; c++) var[c] /= count[c];
    return backward(bncore_train_backward, dy, x, mean, var.data(), weight, bias, residual, fused,
                    through);
}

Gradients infer_backward(const Tensor &dy, const Tensor &x, const Tensor &mean, const Tensor &var,
                         const Optional &weight, const Optional &bias, const Optional &residual,
                         const Fused &fused, bool through)
{
    at::AutoDispatchBelowADInplaceOrView guard;
    const Environment environment;
    check_channels("mean", mean, x);
    check_channels("var", var, x);
    const Channels m(mean), v(var);
    return backward(bncore_infer_backward, dy, x, m.get(), v.get(), weight, bias, residual, fused,
                    through);
}

/* Move a running statistic towards the batch's; channels without a value stay. */
void move(const Tensor &running, const double *count, const double *batch, double momentum)
{
    const double keep = 1.0 - momentum;
    by_type(running.scalar_type(), [&](auto *type) {
        using T = std::remove_pointer_t<decltype(type)>;
        T *value = running.mutable_data_ptr<T>();
        for (int64_t c = 0; c < running.numel(); c++, value += running.stride(0))
            if (count[c] > 0.0)
                *value = rounded<T>(keep * static_cast<double>(*value) + momentum * batch[c]);
    });
}

/* In float64, rounded once, for any momentum; one value has the variance 0/0, as PyTorch has it. */
void update(const Tensor &running_mean, const Tensor &running_var, const Tensor &moments,
            double momentum)
{
    const int64_t channels = moments.size(-1);
    check_moments(moments, channels);
    for (const Tensor &running : {running_mean, running_var})
        TORCH_CHECK_VALUE(running.dim() == 1 && running.size(0) == channels &&
                              dtype_of(running.scalar_type()) >= 0,
                          "running statistics: expected ", DTYPES, " of shape (", channels,
                          ",), got ", running.scalar_type(), " of ", running.sizes());
    const Environment environment;
    const Tensor batch = moments.contiguous();
    const double *count = batch.const_data_ptr<double>(), *mean = count + channels;
    if (std::all_of(count, mean, [](double n) { return n == 0.0; })) return;
    std::vector<double> var(mean + channels, mean + 2 * channels);
    for (int64_t c = 0; c < channels; c++) var[c] /= std::max(count[c] - 1.0, 0.0);
    for (const Tensor &running : {running_mean, running_var})
        if (!running.is_inference()) running.unsafeGetTensorImpl()->bump_version();
    move(running_mean, count, mean, momentum);
    move(running_var, count, var.data(), momentum);
}

} // namespace

#endif
