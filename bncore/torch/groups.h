/* Group norm, and with it instance norm and layer norm, as norm_ops.py has it in Python, to the bit. */
#ifndef BNCORE_TORCH_GROUPS_H
#define BNCORE_TORCH_GROUPS_H

#include <limits>
#include <tuple>
#include <vector>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>

#include "bncore.h"
#include "call.h"
#include "kernels.h"

namespace
{

using GroupGradients = std::tuple<Tensor, Tensor, Tensor>; /* dx, dweight, dbias */

/* x in the memory order that PyTorch gives to results like it: samples come first, then channels or positions. */
Tensor in_samples(const Tensor &x)
{
    const auto place = reinterpret_cast<uintptr_t>(x.const_data_ptr());
    const Tensor dense = x.contiguous(x.suggest_memory_format());
    return dense.is_same(x) && place % x.element_size() ? x.clone() : dense;
}

/* The problem of one sample of x, which is as in_samples gives it. */
bncore_problem sample_problem(const Tensor &x, int64_t groups, double eps)
{
    const int dtype = dtype_of(x.scalar_type());
    TORCH_CHECK_NOT_IMPLEMENTED(dtype >= 0, "\"group_norm\" not implemented for '", x.scalar_type(),
                                "'");
    TORCH_CHECK_VALUE(x.dim() >= 2, "x: expected at least 2 dimensions, got ", x.dim());
    TORCH_CHECK_VALUE(groups >= 1 && x.size(1) % groups == 0, "groups: expected a divisor of ",
                      x.size(1), " channels, got ", groups);
    const auto positions = x.sizes().slice(2);
    c10::SmallVector<int64_t, 8> sizes(positions.begin(), positions.end());
    const int rank = static_cast<int>(x.dim()) - 1, at = x.is_contiguous() ? 0 : rank - 1;
    sizes.insert(sizes.begin() + at, x.size(1));
    int64_t canonical[3];
    bncore_canonical(sizes.data(), rank, at, at + 1, canonical);
    bncore_problem p{};
    bncore_problem_init(&p, sizeof p, static_cast<bncore_dtype>(dtype), canonical[0], canonical[1],
                        canonical[2]);
    p.eps = eps;
    p.n_threads = at::get_num_threads();
    p.executor = executor_of_a_call();
    return p;
}

/* Moments have the count, mean and m2 of each group of each sample: (3, samples * groups). */
std::tuple<Tensor, Tensor> normalize_groups(const Tensor &given, int64_t groups,
                                            const Optional &weight, const Optional &bias,
                                            double eps)
{
    at::AutoDispatchBelowADInplaceOrView guard;
    const Environment environment;
    const Tensor x = in_samples(given);
    const bncore_problem problem = sample_problem(x, groups, eps);
    check_channels("weight", weight, x);
    check_channels("bias", bias, x);
    const int64_t samples = x.size(0), results = samples * groups;
    Tensor y = like(x), moments = vector({3, results}, at::kDouble);
    double *count = moments.mutable_data_ptr<double>(), *mean = count + results;
    const auto values = problem.outer * (problem.channels / groups) * problem.inner;
    std::fill_n(count, results, static_cast<double>(values));
    const Channels gamma(weight), beta(bias);
    require(bncore_group_norm(&problem, samples, groups, y.mutable_data_ptr(), mean, mean + results,
                              x.const_data_ptr(), gamma.get(), beta.get()));
    return {y, moments};
}

GroupGradients normalize_groups_backward(const Tensor &dy, const Tensor &given,
                                         const Tensor &moments, int64_t groups,
                                         const Optional &weight, double eps)
{
    at::AutoDispatchBelowADInplaceOrView guard;
    const Environment environment;
    const Tensor x = in_samples(given);
    const bncore_problem problem = sample_problem(x, groups, eps);
    check_like("dy", dy, x);
    check_channels("weight", weight, x);
    const int64_t channels = x.size(1), results = x.size(0) * groups;
    check_moments(moments, results);
    const Tensor batch = moments.contiguous(), gradient = in_order_of(x, dy);
    const double *count = batch.const_data_ptr<double>(), *mean = count + results;
    std::vector<double> var(mean + results, mean + 2 * results), sums(2 * channels);
    for (int64_t i = 0; i < results; i++) var[i] /= count[i];
    const Channels gamma(weight);
    Tensor dx = like(x);
    require(bncore_group_norm_backward(
        &problem, x.size(0), groups, dx.mutable_data_ptr(), sums.data(), sums.data() + channels,
        gradient.const_data_ptr(), x.const_data_ptr(), mean, var.data(), gamma.get()));
    const auto kind =
        weight && weight->defined() ? weight->scalar_type() : arithmetic(x.scalar_type());
    return {dx, as_vector(sums.data() + channels, channels, kind),
            as_vector(sums.data(), channels, kind)};
}

} // namespace

#endif
