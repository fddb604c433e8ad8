/* The arguments of the operators as the C library has them. */
#ifndef BNCORE_TORCH_CALL_H
#define BNCORE_TORCH_CALL_H

#include <algorithm>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "bncore.h"
#include "dtypes.h"
#include "executor.h"
#include "memory.h"

namespace
{

using Optional = std::optional<Tensor>;
using Text = std::optional<c10::string_view>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>; /* dx, dweight, dbias, dresidual */

/* ---- arguments of the C library ---- */

constexpr const char *ACTIVATIONS[] = {nullptr, "relu", "leaky_relu"};

constexpr const char *POLICIES[] = {"propagate", "omit", "raise"};
enum Policy : int32_t { PROPAGATE, OMIT, RAISE };

/* The settings of a call, in the order of the operators. */
struct Settings {
    double eps;
    int32_t activation; /* of bncore_activation, or -1 */
    double slope;
    int32_t policy; /* of Policy, or -1 */
    std::optional<double> fill;
};

int32_t activation_of(Text name)
{
    if (!name) return BNCORE_NO_ACTIVATION;
    if (*name == "relu") return BNCORE_RELU;
    return *name == "leaky_relu" ? BNCORE_LEAKY_RELU : -1;
}

int32_t policy_of(c10::string_view name)
{
    for (int32_t policy : {PROPAGATE, OMIT, RAISE})
        if (name == POLICIES[policy]) return policy;
    return -1;
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

/* The axes of a dense x, the slowest in memory first. Returns the place of the channels among them. */
int memory_order(const Tensor &x, c10::SmallVectorImpl<int64_t> &axes)
{
    c10::SmallVector<int64_t, 8> faster;
    for (int64_t d = 0; d < x.dim(); d++) {
        const bool slower = x.is_contiguous() ? d == 0
                            : d == 0          ? x.stride(0) >= x.stride(1)
                                              : x.stride(d) > x.stride(1);
        if (d != 1) (slower ? axes : faster).push_back(d);
    }
    if (!x.is_contiguous()) {
        const auto longer = [&](int64_t a, int64_t b) { return x.stride(a) > x.stride(b); };
        std::sort(axes.begin(), axes.end(), longer);
        std::sort(faster.begin(), faster.end(), longer);
    }
    const int at = static_cast<int>(axes.size());
    axes.push_back(1);
    axes.append(faster.begin(), faster.end());
    return at;
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

    void check_variances() const
    {
        for (size_t c = 0; c < values_.size(); c++)
            TORCH_CHECK_VALUE(!(values_[c] < 0.0), "var: expected variances >= 0, got ", values_[c],
                              " for channel ", c);
    }
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

/* A dense x as the C library has it, and what is fused; the problem points into this struct. */
struct Call {
    bncore_problem problem{};
    bncore_fusion fusion{};
    Tensor residual; /* in x's order */

    Call(const Tensor &x, const Settings &settings, const Optional &given)
    {
        const int dtype = dtype_of(x.scalar_type());
        TORCH_CHECK_NOT_IMPLEMENTED(dtype >= 0, "\"batch_norm\" not implemented for '",
                                    x.scalar_type(), "'");
        TORCH_CHECK_VALUE(x.dim() >= 2, "x: expected at least 2 dimensions, got ", x.dim());
        c10::SmallVector<int64_t, 8> axes, sizes;
        const int at = memory_order(x, axes);
        for (int64_t d : axes) sizes.push_back(x.size(d));
        int64_t canonical[3];
        bncore_canonical(sizes.data(), static_cast<int>(x.dim()), at, at + 1, canonical);
        bncore_problem_init(&problem, sizeof problem, static_cast<bncore_dtype>(dtype),
                            canonical[0], canonical[1], canonical[2]);
        bncore_fusion_init(&fusion, sizeof fusion);
        problem.eps = settings.eps;
        problem.n_threads = at::get_num_threads();
        problem.executor = executor_of_a_call();
        fusion.activation = settings.activation;
        fusion.slope = settings.slope;
        if (given && given->defined()) {
            check_like("residual", *given, x);
            residual = in_order_of(x, *given);
            fusion.residual = residual.const_data_ptr();
        }
        if (settings.activation != BNCORE_NO_ACTIVATION || fusion.residual)
            problem.fusion = &fusion;
    }
    Call(const Call &) = delete;

    int64_t count() const { return problem.outer * problem.inner; }
    bool empty() const { return count() * problem.channels == 0; }
};

} // namespace

#endif
