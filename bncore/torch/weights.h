/* What counts in a call, as bncore/arguments/weights.py has it in Python: masks and weights in x's memory order. */
#ifndef BNCORE_TORCH_WEIGHTS_H
#define BNCORE_TORCH_WEIGHTS_H

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include <ATen/ATen.h>

#include "bncore.h"
#include "call.h"

namespace
{

Optional some(const Optional &tensor)
{
    return tensor && tensor->defined() ? tensor : std::nullopt;
}

/* Whether x's sizes come of broadcasting `tensor` against x. */
bool broadcasts(const Tensor &tensor, const Tensor &x)
{
    const int64_t missing = x.dim() - tensor.dim();
    if (missing < 0) return false;
    for (int64_t d = 0; d < tensor.dim(); d++)
        if (tensor.size(d) != 1 && tensor.size(d) != x.size(missing + d)) return false;
    return true;
}

bool is_real(at::ScalarType kind)
{
    return dtype_of(kind) >= 0 || at::isIntegralType(kind, true);
}

/* Weights as bool or double; refuses those that are no finite numbers >= 0. */
Tensor checked_numbers(const Tensor &weights)
{
    TORCH_CHECK_TYPE(is_real(weights.scalar_type()), "weights: expected real numbers, got ",
                     weights.scalar_type());
    if (weights.scalar_type() == at::kBool || weights.numel() == 0) return weights;
    Tensor numbers = weights.to(at::kDouble);
    const auto [least, largest] = at::aminmax(numbers); /* both are NaN if there is one */
    if (least.item<double>() >= 0.0 &&
        largest.item<double>() < std::numeric_limits<double>::infinity())
        return numbers;
    const Tensor bad = at::logical_not(at::logical_and(numbers.ge(0.0), numbers.isfinite()));
    const auto position = bad.flatten().to(at::kByte).argmax().item<int64_t>();
    std::string place;
    for (int64_t d = numbers.dim() - 1, rest = position; d >= 0; rest /= numbers.size(d--))
        place = std::to_string(rest % numbers.size(d)) + (place.empty() ? "" : ", ") + place;
    TORCH_CHECK_VALUE(false, "weights: expected finite numbers >= 0, got ",
                      numbers.flatten()[position].item<double>(), " at (", place, ")");
}

/* A tensor that broadcasts against x, with as many dimensions as x. */
Tensor fitted(const char *name, Tensor given, const Tensor &x)
{
    TORCH_CHECK_VALUE(broadcasts(given, x), name, ": expected a shape that broadcasts against x's ",
                      x.sizes(), ", got ", given.sizes());
    while (given.dim() < x.dim()) given = given.unsqueeze(0);
    return given;
}

/* The product of mask and weights as bool or double; undefined if there is neither. */
Tensor product(const Optional &where, const Optional &weights, const Tensor &x)
{
    Tensor mask;
    if (where) {
        TORCH_CHECK_TYPE(where->scalar_type() == at::kBool, "where: expected bool, got ",
                         where->scalar_type());
        mask = fitted("where", *where, x);
    }
    if (!weights) return mask;
    const Tensor numbers = checked_numbers(fitted("weights", *weights, x));
    if (!where) return numbers;
    if (numbers.scalar_type() == at::kBool) return mask.logical_and(numbers);
    return at::where(mask, numbers, at::zeros({}, numbers.options()));
}

/* The weights of a dense x that is not empty. The C library's record points into this. */
class Counts
{
    bncore_weights record_{};
    Tensor values_; /* as the C library takes them */
    bool weighs_ = false, filled_ = false;

    /* Lay bool or double values out as (outer, 1, inner), or as x if channels differ. */
    static Tensor canonical(const Tensor &x, Tensor values)
    {
        if (values.stride(1) == 0) values = values.narrow(1, 0, 1);
        auto sizes = x.sizes().vec();
        sizes[1] = values.size(1);
        c10::SmallVector<int64_t, 8> axes;
        memory_order(x, axes);
        Tensor block = values.expand(sizes).permute(axes).contiguous();
        if (reinterpret_cast<uintptr_t>(block.const_data_ptr()) % block.element_size() != 0)
            block = block.clone();
        if (block.scalar_type() != at::kBool) return block;
        block = block.view(at::kByte); /* its bytes need not be 0 and 1 */
        return block.max().item<uint8_t>() > 1 ? block.ne(0).view(at::kByte) : block;
    }

    static void refuse_nan(const Tensor &x, const Tensor &values)
    {
        Tensor bad = at::isnan(x);
        if (values.defined()) bad = at::logical_and(bad, values.ne(0));
        if (!bad.any().item<bool>()) return;
        c10::SmallVector<int64_t, 8> axes;
        const int at = memory_order(x, axes);
        TORCH_CHECK_VALUE(false, "x: expected no NaN with nan_policy='raise', got NaN in channel ",
                          bad.permute(axes).nonzero()[0][at].item<int64_t>());
    }

  public:
    Counts(const Tensor &x, const Optional &where, const Optional &weights,
           const Settings &settings)
    {
        TORCH_CHECK_VALUE(settings.policy >= 0,
                          "nan_policy: expected 'propagate', 'omit' or 'raise'");
        bncore_weights_init(&record_, sizeof record_);
        const Tensor values = product(some(where), some(weights), x);
        if (settings.policy == RAISE) refuse_nan(x, values);
        weighs_ = values.defined() || settings.policy == OMIT;
        if (!weighs_) return;
        record_.omit_nan = settings.policy == OMIT;
        if (values.defined()) {
            values_ = canonical(x, values);
            record_.values = values_.const_data_ptr();
            record_.per_channel = values_.numel() == x.numel();
            record_.dtype =
                values_.scalar_type() == at::kByte ? BNCORE_WEIGHT_UINT8 : BNCORE_WEIGHT_FLOAT64;
        }
        filled_ = settings.fill.has_value();
        record_.filled = filled_;
        record_.fill = settings.fill.value_or(0.0);
    }
    Counts(const Counts &) = delete;

    /* Let a call count so. `count` [channels] receives the sums of the weights, or has them. */
    void apply(Call &call, double *count)
    {
        if (!weighs_) return;
        record_.count = count;
        call.problem.weights = &record_;
    }

    /* The same for a call with given statistics, where only what is filled matters. */
    void apply_fill(Call &call)
    {
        if (filled_) apply(call, nullptr);
    }
};

} // namespace

#endif
