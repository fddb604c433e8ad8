/* The kernels of the operators, as ops.py has them in Python, to the bit: bncore's C library on tensors' own memory. */
#ifndef BNCORE_TORCH_KERNELS_H
#define BNCORE_TORCH_KERNELS_H

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>

#include "bncore.h"
#include "call.h"
#include "weights.h"

namespace
{

void require(bncore_status status)
{
    TORCH_CHECK_VALUE(status == BNCORE_OK, "bncore: ", bncore_status_string(status));
}

/* ---- the kernels ---- */

std::tuple<Tensor, Tensor> train(const Tensor &given, const Optional &weight, const Optional &bias,
                                 const Optional &residual, const Optional &where,
                                 const Optional &weights, const Settings &settings)
{
    at::AutoDispatchBelowADInplaceOrView guard;
    const Environment environment;
    const Tensor x = dense(given);
    Call call(x, settings, residual);
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
    Counts counts(x, where, weights, settings);
    counts.apply(call, count);
    require(bncore_train(&call.problem, y.mutable_data_ptr(), mean, mean + channels,
                         x.const_data_ptr(), gamma.get(), beta.get()));
    return {y, moments};
}

Tensor infer(const Tensor &given, const Tensor &mean, const Tensor &var, const Optional &weight,
             const Optional &bias, const Optional &residual, const Optional &where,
             const Optional &weights, const Settings &settings)
{
    at::AutoDispatchBelowADInplaceOrView guard;
    const Environment environment;
    const Tensor x = dense(given);
    Call call(x, settings, residual);
    check_channels("mean", mean, x);
    check_channels("var", var, x);
    check_channels("weight", weight, x);
    check_channels("bias", bias, x);
    Tensor y = like(x);
    if (call.empty()) return y;
    const Channels m(mean), v(var), gamma(weight), beta(bias);
    v.check_variances();
    Counts counts(x, where, weights, settings);
    counts.apply_fill(call);
    require(bncore_normalize(&call.problem, y.mutable_data_ptr(), x.const_data_ptr(), m.get(),
                             v.get(), gamma.get(), beta.get()));
    return y;
}

/* Both backward functions: `run` is the C library's, mean, var and the sums of weights are double [channels]. */
Gradients backward(decltype(&bncore_train_backward) run, const Tensor &dy, const Tensor &given,
                   const double *mean, const double *var, double *count, const Optional &weight,
                   const Optional &bias, const Optional &residual, const Optional &where,
                   const Optional &weights, const Settings &settings, bool through)
{
    const Tensor x = dense(given);
    Call call(x, settings, residual);
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
    if (!call.empty()) {
        Counts counts(x, where, weights, settings);
        counts.apply(call, count);
        require(run(&call.problem, dx.mutable_data_ptr(), sums.data(), sums.data() + channels,
                    gradient.const_data_ptr(), x.const_data_ptr(), mean, var, gamma.get()));
    }
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
                         const Optional &where, const Optional &weights, const Settings &settings,
                         bool through)
{
    at::AutoDispatchBelowADInplaceOrView guard;
    const Environment environment;
    const int64_t channels = x.size(1);
    check_moments(moments, channels);
    const Tensor batch = moments.contiguous();
    const double *sums = batch.const_data_ptr<double>(), *mean = sums + channels;
    std::vector<double> count(sums, mean), var(mean + channels, mean + 2 * channels);
    for (int64_t c = 0; c < channels; c++) var[c] /= count[c];
    return backward(bncore_train_backward, dy, x, mean, var.data(), count.data(), weight, bias,
                    residual, where, weights, settings, through);
}

Gradients infer_backward(const Tensor &dy, const Tensor &x, const Tensor &mean, const Tensor &var,
                         const Optional &weight, const Optional &bias, const Optional &residual,
                         const Optional &where, const Optional &weights, const Settings &settings,
                         bool through)
{
    at::AutoDispatchBelowADInplaceOrView guard;
    const Environment environment;
    check_channels("mean", mean, x);
    check_channels("var", var, x);
    const Channels m(mean), v(var);
    v.check_variances();
    return backward(bncore_infer_backward, dy, x, m.get(), v.get(), nullptr, weight, bias, residual,
                    where, weights, settings, through);
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

const double ROUNDING = 1e-5; // that of bncore.statistics.moments

/* In float64, rounded once, for any momentum. */
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
    for (int64_t c = 0; c < channels; c++)
        TORCH_CHECK_VALUE(count[c] == 0.0 || count[c] - 1.0 > ROUNDING,
                          "input: expected a sum of weights per channel > correction = 1",
                          count[c] > 1.0 ? " by more than rounding, got " : ", got ", count[c],
                          " for channel ", c);
    std::vector<double> var(mean + channels, mean + 2 * channels);
    for (int64_t c = 0; c < channels; c++) var[c] /= std::max(count[c] - 1.0, 0.0);
    for (const Tensor &running : {running_mean, running_var})
        if (!running.is_inference()) running.unsafeGetTensorImpl()->bump_version();
    move(running_mean, count, mean, momentum);
    move(running_var, count, var.data(), momentum);
}

} // namespace

#endif
