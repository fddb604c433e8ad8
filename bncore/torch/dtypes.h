/* The dtypes that tensors may have, and conversions of parameters and results between them and double. */
#ifndef BNCORE_TORCH_DTYPES_H
#define BNCORE_TORCH_DTYPES_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "bncore.h"
#include "memory.h"

namespace
{

using at::Tensor;

constexpr const char *DTYPES = "Half, BFloat16, Float or Double";

/* The C library's name of a dtype, or -1 where it has none. */
constexpr int dtype_of(at::ScalarType kind)
{
    switch (kind) {
    case at::kHalf:
        return BNCORE_FLOAT16;
    case at::kBFloat16:
        return BNCORE_BFLOAT16;
    case at::kFloat:
        return BNCORE_FLOAT32;
    case at::kDouble:
        return BNCORE_FLOAT64;
    default:
        return -1;
    }
}

/* The dtype of the arithmetic on such data. */
constexpr at::ScalarType arithmetic(at::ScalarType kind)
{
    return kind == at::kHalf || kind == at::kBFloat16 ? at::kFloat : kind;
}

/* Call `work` with a null pointer to the C++ type of a dtype, which is one of DTYPES. */
template <typename Work> void by_type(at::ScalarType kind, const Work &work)
{
    switch (kind) {
    case at::kHalf:
        return work(static_cast<c10::Half *>(nullptr));
    case at::kBFloat16:
        return work(static_cast<c10::BFloat16 *>(nullptr));
    case at::kFloat:
        return work(static_cast<float *>(nullptr));
    default:
        return work(static_cast<double *>(nullptr));
    }
}

/* The float next to a double that has the double's value, or else the odd one of its two neighbours. Rounding that one
 * to 16 bits rounds the double once: it is never halfway between two values of 16 bits unless the double is. */
inline float rounded_to_odd(double value)
{
    const auto nearest = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &nearest, sizeof bits);
    if (std::isnan(value) || static_cast<double>(nearest) == value || bits & 1) return nearest;
    if (std::fabs(static_cast<double>(nearest)) > std::fabs(value))
        bits--;
    else
        bits++;
    float odd;
    std::memcpy(&odd, &bits, sizeof odd);
    return odd;
}

/* A double as T, rounded once to nearest and even. */
template <typename T> T rounded(double value)
{
    if constexpr (sizeof(T) == 2)
        return T(rounded_to_odd(value));
    else
        return static_cast<T>(value);
}

/* A vector of one of DTYPES as double. */
std::vector<double> as_double(const Tensor &given)
{
    const Tensor values = given.contiguous();
    std::vector<double> wide(static_cast<size_t>(values.numel()));
    by_type(values.scalar_type(), [&](auto *type) {
        using T = std::remove_pointer_t<decltype(type)>;
        std::transform(values.const_data_ptr<T>(), values.const_data_ptr<T>() + values.numel(),
                       wide.begin(), [](T value) { return static_cast<double>(value); });
    });
    return wide;
}

/* Doubles in a new vector of a dtype, each rounded once. */
Tensor as_vector(const double *values, int64_t size, at::ScalarType kind)
{
    Tensor made = vector({size}, kind);
    by_type(kind, [&](auto *type) {
        using T = std::remove_pointer_t<decltype(type)>;
        std::transform(values, values + size, made.mutable_data_ptr<T>(), rounded<T>);
    });
    return made;
}

} // namespace

#endif
