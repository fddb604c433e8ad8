/* Values per channel in the adapters: a parameter or a result has any dtype of bncore_dtype, and the C library takes
 * double. float16, bfloat16 and float become double exactly. A double is rounded to each of them once, to the nearest
 * value, ties to even; a way through float would round twice. */
#ifndef BNCORE_ADAPTER_VALUES_H
#define BNCORE_ADAPTER_VALUES_H

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "bncore.h"

namespace bncore_values
{

/* A storage type of 16 bits: a sign, then the exponent, then the mantissa. */
template <int exponent_bits> struct Sixteen {
    static constexpr int mantissa_bits = 15 - exponent_bits;
    static constexpr int bias = (1 << (exponent_bits - 1)) - 1;
    static constexpr std::uint64_t infinity = ((1u << exponent_bits) - 1u) << mantissa_bits;

    static double widened(std::uint16_t bits)
    {
        const int magnitude = bits & 0x7fff;
        const int exponent = magnitude >> mantissa_bits;
        const int mantissa = magnitude & ((1 << mantissa_bits) - 1);
        double value;
        if (magnitude > static_cast<int>(infinity))
            value = std::numeric_limits<double>::quiet_NaN();
        else if (magnitude == static_cast<int>(infinity))
            value = std::numeric_limits<double>::infinity();
        else if (exponent == 0)
            value = std::ldexp(mantissa, 1 - bias - mantissa_bits);
        else
            value = std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
        return bits & 0x8000 ? -value : value;
    }

    static std::uint16_t rounded(double value)
    {
        std::uint64_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        const auto sign = static_cast<std::uint64_t>(bits >> 63 << 15);
        const std::uint64_t magnitude = bits & ~(std::uint64_t{1} << 63);
        const int exponent = static_cast<int>(magnitude >> 52) - 1023;
        std::uint64_t made;
        if (std::isnan(value)) {
            made = infinity | std::uint64_t{1} << (mantissa_bits - 1);
        } else if (exponent > bias) {
            made = infinity;
        } else {
            /* Below the normal numbers, each step of the exponent takes one more digit away. */
            const int smallest = 1 - bias, digits = 52 - mantissa_bits;
            const int drop = digits + std::max(smallest - exponent, 0);
            const std::uint64_t fraction =
                (magnitude & ((std::uint64_t{1} << 52) - 1)) | std::uint64_t{1} << 52;
            made = drop > 53 ? 0 : shifted(fraction, drop);
            /* `made` has the leading one of a normal number, which counts as one step of the exponent. A carry out of
             * the mantissa is one step, too, and out of the largest number it gives infinity. */
            if (exponent >= smallest)
                made += static_cast<std::uint64_t>(exponent - smallest) << mantissa_bits;
        }
        return static_cast<std::uint16_t>(sign | made);
    }

  private:
    /* fraction / 2^drop, rounded to nearest, ties to even; 1 <= drop <= 53. */
    static std::uint64_t shifted(std::uint64_t fraction, int drop)
    {
        const std::uint64_t below_half = (std::uint64_t{1} << (drop - 1)) - 1;
        return (fraction + below_half + (fraction >> drop & 1)) >> drop;
    }
};

using Float16 = Sixteen<5>;
using Bfloat16 = Sixteen<8>;

inline std::size_t bytes_of(bncore_dtype dtype)
{
    switch (dtype) {
    case BNCORE_FLOAT16:
    case BNCORE_BFLOAT16:
        return 2;
    case BNCORE_FLOAT32:
        return 4;
    default:
        return 8;
    }
}

/* The `count` values of this dtype at `from` as doubles. */
inline std::vector<double> widened(bncore_dtype dtype, const void *from, std::size_t count)
{
    const auto *sixteen = static_cast<const std::uint16_t *>(from);
    const auto *single = static_cast<const float *>(from);
    const auto *wide = static_cast<const double *>(from);
    std::vector<double> values(count);
    switch (dtype) {
    case BNCORE_FLOAT16:
        std::transform(sixteen, sixteen + count, values.begin(), Float16::widened);
        break;
    case BNCORE_BFLOAT16:
        std::transform(sixteen, sixteen + count, values.begin(), Bfloat16::widened);
        break;
    case BNCORE_FLOAT32:
        std::copy(single, single + count, values.begin());
        break;
    default:
        std::copy(wide, wide + count, values.begin());
    }
    return values;
}

/* Store doubles as this dtype at `to`. */
inline void store(bncore_dtype dtype, void *to, const std::vector<double> &values)
{
    auto *sixteen = static_cast<std::uint16_t *>(to);
    switch (dtype) {
    case BNCORE_FLOAT16:
        std::transform(values.begin(), values.end(), sixteen, Float16::rounded);
        break;
    case BNCORE_BFLOAT16:
        std::transform(values.begin(), values.end(), sixteen, Bfloat16::rounded);
        break;
    case BNCORE_FLOAT32:
        std::transform(values.begin(), values.end(), static_cast<float *>(to),
                       [](double value) { return static_cast<float>(value); });
        break;
    default:
        std::copy(values.begin(), values.end(), static_cast<double *>(to));
    }
}

} // namespace bncore_values

#endif
