/* The terms of short chains of float32 (chains_tmpl.c), which do not depend on the storage type. */
#ifndef BNCORE_CHAINS_H
#define BNCORE_CHAINS_H

#include "../partition.h"
#include "welford.h"

/* Lanes that are computed at once. With fewer registers, all lanes of eight vectors would not fit them. */
#if defined(__AVX512F__)
enum { CHAIN_WIDTH = BNCORE_LANES };
#else
enum { CHAIN_WIDTH = BNCORE_LANES / 2 };
#endif

enum { CHAIN = 8 }; /* most values of a chain */

/* Two terms of each lane: of moments d and d * d, of gradient sums g and g * xhat. */
typedef struct chain_terms {
    float a[CHAIN_WIDTH], b[CHAIN_WIDTH];
} chain_terms;

static inline ALWAYS_INLINE void add_terms(chain_terms *restrict to,
                                           const chain_terms *restrict more)
{
#pragma omp simd
    for (int l = 0; l < CHAIN_WIDTH; l++) to->a[l] += more->a[l];
#pragma omp simd
    for (int l = 0; l < CHAIN_WIDTH; l++) to->b[l] += more->b[l];
}

static inline ALWAYS_INLINE void widen_terms(double *restrict a, double *restrict b,
                                             const chain_terms *restrict sum)
{
#pragma omp simd
    for (int l = 0; l < CHAIN_WIDTH; l++) a[l] += (double)sum->a[l];
#pragma omp simd
    for (int l = 0; l < CHAIN_WIDTH; l++) b[l] += (double)sum->b[l];
}

/* The tree of a chain of one lane; the terms behind `terms` are 0 in a chain of up to four. */
static inline float chain_tree(const float *t, int terms)
{
    const float four = (t[0] + t[1]) + (t[2] + t[3]);
    return terms > CHAIN / 2 ? four + ((t[4] + t[5]) + (t[6] + t[7])) : four;
}

/* A block of moments is summed in chains where std squared of the values before it, or of the first ones, lies between
 * these bounds, so that no square of float32 becomes subnormal or infinite. A NaN lies outside. */
static inline int is_chained(double square)
{
    return square >= 0x1p-80 && square <= 0x1p80;
}

/* Whether the sums s and q of n differences in chains count. No square may have left the range of float32. And the
 * squares about the pivot may be at most 16 times those about the mean of the block, because the rounding of the former
 * hides the latter. */
static inline int keeps_digits(double s, double q, double n)
{
    return is_finite(q) && 16.0 * (s * s) <= 15.0 * (n * q);
}

#endif
