/* Unsigned integers of 128 bits, and the moments that follow from sums of integers. These sums are exact, so they need no order
 * of additions, and each result is rounded once. */
#ifndef BNCORE_WIDE_H
#define BNCORE_WIDE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct bncore_wide {
    uint64_t low, high;
} bncore_wide;

static inline bncore_wide wide_sum(bncore_wide a, bncore_wide b)
{
    const uint64_t low = a.low + b.low;
    return (bncore_wide){low, a.high + b.high + (low < a.low)};
}

/* Add to an integer whose halves stand in the memory of at[0] and at[stride]. */
static inline void wide_add(double *at, int64_t stride, bncore_wide value)
{
    bncore_wide total;
    memcpy(&total.low, at, sizeof total.low);
    memcpy(&total.high, at + stride, sizeof total.high);
    total = wide_sum(total, value);
    memcpy(at, &total.low, sizeof total.low);
    memcpy(at + stride, &total.high, sizeof total.high);
}

static inline bncore_wide wide_at(const double *at, int64_t stride)
{
    bncore_wide value;
    memcpy(&value.low, at, sizeof value.low);
    memcpy(&value.high, at + stride, sizeof value.high);
    return value;
}

static inline bncore_wide wide_difference(bncore_wide a, bncore_wide b)
{
    return (bncore_wide){a.low - b.low, a.high - b.high - (a.low < b.low)};
}

static inline bncore_wide wide_product(uint64_t a, uint64_t b)
{
    const uint64_t al = a & UINT32_MAX, ah = a >> 32, bl = b & UINT32_MAX, bh = b >> 32;
    const uint64_t middle = ah * bl + (al * bl >> 32), other = al * bh + (middle & UINT32_MAX);
    return (bncore_wide){a * b, ah * bh + (middle >> 32) + (other >> 32)};
}

/* Divide a by n < 2^63, which is above a.high, so that the quotient has 64 bits; the rest goes to *rest. */
static inline uint64_t wide_divide(bncore_wide a, uint64_t n, uint64_t *rest)
{
    uint64_t left = a.high, quotient = 0;
    if (n <= UINT32_MAX) { /* two digits of 32 bits */
        const uint64_t first = left << 32 | a.low >> 32;
        const uint64_t second = first % n << 32 | (a.low & UINT32_MAX);
        *rest = second % n;
        return first / n << 32 | second / n;
    }
    for (int bit = 63; bit >= 0; bit--) {
        left = left << 1 | (a.low >> bit & 1);
        const int fits = left >= n;
        left -= fits ? n : 0;
        quotient = quotient << 1 | (uint64_t)fits;
    }
    *rest = left;
    return quotient;
}

/* Return whole + rest / n, rounded once to nearest even, for rest < n < 2^63. */
static inline double wide_rounded(bncore_wide whole, uint64_t rest, uint64_t n)
{
    int exponent = 64; /* of the upper half of digits */
    bncore_wide digits = whole;
    for (int i = 0; i < 2 && digits.high == 0; i++, exponent -= 64)
        digits = (bncore_wide){wide_divide((bncore_wide){0, rest}, n, &rest), digits.low};
    if (digits.high == 0) return 0.0;
    /* There are at least 65 digits, or all. The first 63 of them fit int64_t. A last one of 1 stands for all that follow, and
     * so it decides where they do. */
    const int shift = __builtin_clzll(digits.high) - 1;
    int more = rest != 0;
    if (shift < 0) {
        more |= (int)(digits.low & 1);
        digits = (bncore_wide){digits.low >> 1 | digits.high << 63, digits.high >> 1};
    } else if (shift > 0) {
        digits.high = digits.high << shift | digits.low >> (64 - shift);
        digits.low <<= shift;
    }
    more |= digits.low != 0;
    return ldexp((double)(int64_t)(digits.high | (uint64_t)more), exponent - shift);
}

/* Set the mean and m2 of n unsigned integers that have these sums and are larger by `flip` than the integers meant. With
 * sum = a * n + rest, m2 = squares - a * (sum + rest) - rest^2 / n, where all but the last quotient are integers. */
static inline void wide_moments(double *mean, double *m2, bncore_wide sum, bncore_wide squares,
                                uint64_t n, uint64_t flip)
{
    uint64_t rest, left;
    const uint64_t a = wide_divide(sum, n, &rest);
    const bncore_wide more = wide_sum(sum, (bncore_wide){rest, 0});
    bncore_wide taken = wide_product(a, more.low);
    taken.high += a * more.high;
    const uint64_t quotient = wide_divide(wide_product(rest, rest), n, &left);
    taken = wide_sum(taken, (bncore_wide){quotient + (left > 0), 0});
    *m2 = wide_rounded(wide_difference(squares, taken), left ? n - left : 0, n);
    if (a >= flip) {
        *mean = wide_rounded((bncore_wide){a - flip, 0}, rest, n);
        return;
    }
    *mean = -wide_rounded((bncore_wide){flip - a - (rest > 0), 0}, rest ? n - rest : 0, n);
}

#endif
