/* What the reductions of both storage types share: walking through planes, lanes, and the running statistics of a
 * channel. The file is compiled once per instruction set, so everything in it is static. */
#ifndef BNCORE_WELFORD_H
#define BNCORE_WELFORD_H

#include <float.h>
#include <math.h>

#include "kernels.h"

/* A run of memory that belongs to one channel. It has `len` values and begins `offset` values after the channel's
 * first. */
typedef struct piece {
    int64_t offset, len;
} piece;

static inline piece piece_at(const bncore_planes *t, int64_t e, int64_t most)
{
    const int64_t image = e / t->inner, pos = e - image * t->inner;
    const int64_t len = bncore_min(t->inner - pos, t->end - e);
    return (piece){image * t->image_stride + pos, bncore_min(len, most)};
}

/* The cache that values are prefetched to. ONCE is the nearest one for values that are read once and not kept. */
enum { LEVEL_1, LEVEL_2, ONCE };

enum {
    LONG_RUN = 65536
}; /* bytes; in longer runs, values prefetched one image ahead would be evicted before their use */

/* Prefetch what lies `bytes` behind p. The address need not lie in any array. */
static inline ALWAYS_INLINE void fetch(const void *p, int64_t bytes, int where)
{
    const void *at = (const void *)((uintptr_t)p + (uintptr_t)bytes);
    if (where == LEVEL_1)
        __builtin_prefetch(at, 0, 3);
    else if (where == LEVEL_2)
        __builtin_prefetch(at, 0, 2);
    else
        __builtin_prefetch(at, 0, 0);
}

/* Planes: bytes from the current values to those that are prefetched. In a long run these lie a little ahead, in a
 * short one at the same place of the next image. */
static inline int64_t bytes_ahead(const bncore_planes *t, int64_t item)
{
    const int64_t in_run = 8192;
    return t->inner * item >= LONG_RUN ? in_run : t->image_stride * item;
}

/* The same for a residual in the second pass, which goes from the last image to the first; 0 where runs are long. */
static inline int64_t residual_ahead(const bncore_planes *t, int64_t item)
{
    return t->channels * t->inner * item > LONG_RUN ? 0 : -t->image_stride * item;
}

/* For walking backwards: the piece that lies before value e in its image. */
static inline piece piece_before(const bncore_planes *t, int64_t e)
{
    const int64_t image = (e - 1) / t->inner, start = image * t->inner;
    const int64_t begin = bncore_max(start, t->begin);
    return (piece){image * t->image_stride + (begin - start), e - begin};
}

/* The compiler must not know this 1, or it would make an addition of plus. */
static const volatile double ONE = 1.0;

/* s + v, on the units that multiply. Conversions and additions share the others, which sums keep busy. The product is exact,
 * so that the bits are those of the addition. */
static inline ALWAYS_INLINE double plus(double s, double v, double one)
{
#ifdef __FMA__
    return __builtin_fma(v, one, s);
#else
    (void)one;
    return s + v;
#endif
}

typedef struct lanes {
    double a[BNCORE_LANES], b[BNCORE_LANES];
} lanes;

static inline double fold_lanes(const double *lane)
{
    double f[BNCORE_LANES / 2];
    for (int l = 0; l < BNCORE_LANES / 2; l++) f[l] = lane[l] + lane[l + BNCORE_LANES / 2];
    for (int w = BNCORE_LANES / 4; w >= 1; w /= 2)
        for (int l = 0; l < w; l++) f[l] += f[l + w];
    return f[0];
}

/* For every LANES columns, whether their values are all 0. */
static inline void find_0(uint8_t *at_0, const double *v, int64_t cols)
{
    for (int64_t j = 0; j + BNCORE_LANES <= cols; j += BNCORE_LANES) {
        uint64_t others = 0;
        for (int l = 0; l < BNCORE_LANES; l++) {
            uint64_t bits;
            memcpy(&bits, v + j + l, sizeof bits);
            others |= bits << 1; /* without the sign */
        }
        at_0[j / BNCORE_LANES] = others == 0;
    }
}

static inline int is_finite(double v)
{
    return fabs(v) <= DBL_MAX;
}

/* Welford's method in blocks: n values, and their sum S and sum of squares Q about a pivot. After each block the
 * pivot moves to the running mean, so that S is only the rounding of that move and Q does not cancel. With blocks of
 * one value this is Welford's update (Technometrics 4(3), 1962). */
typedef struct running {
    double n, pivot, S, Q;
} running;

/* Move the pivot of w to `moved`. */
static inline running running_moved(running w, double moved)
{
    const double t = moved - w.pivot, nt = w.n * t;
    const double Q = w.Q - t * (2.0 * w.S - nt);
    const double S = w.S - nt;
    const int ok =
        is_finite(moved); /* otherwise there was an Inf or NaN: S and Q carry it to the result */
    w.pivot = ok ? moved : w.pivot;
    w.S = ok ? S : w.S;
    w.Q = ok ? (Q < 0.0 ? 0.0 : Q) : w.Q;
    return w;
}

/* Add a block, and move the pivot to the mean. With about_0 it moves to 0 instead where the mean is near 0. */
static inline running running_flush(running w, double s, double q, double n, int about_0)
{
    w.n += n;
    w.S += s;
    w.Q += q;
    const double mean = w.pivot + w.S / w.n, t = mean - w.pivot;
    const double squares = w.Q - t * (2.0 * w.S - w.n * t);
    const int near_0 = about_0 && is_finite(mean) && bncore_is_near_0(w.n, mean, squares);
    if (near_0 && w.pivot == 0.0) return w;
    return running_moved(w, near_0 ? 0.0 : mean);
}

/* The partial result {n, pivot, offset, m2} of a segment. */
static inline void running_finish(const running *w, bncore_partial partial, int64_t column)
{
    const double offset = w->S / w->n, m2 = w->Q - w->S * offset;
    double *to = partial.at + column;
    to[0] = w->n;
    to[partial.stride] = w->pivot;
    to[2 * partial.stride] = offset;
    to[3 * partial.stride] = m2 < 0.0 ? 0.0 : m2;
}

/* Rows: the running statistics of a column, {n, pivot, S, Q}, are kept where its partial result will be written. */
enum { RUNNING_PIVOT = 1, RUNNING_S, RUNNING_Q };

/* Flush a block of `rows` rows with the sums s and q, after `before` rows. */
static inline void flush_columns(bncore_partial partial, const double *restrict s,
                                 const double *restrict q, int64_t cols, double before, double rows,
                                 int about_0)
{
    double *restrict pivot = partial.at + RUNNING_PIVOT * partial.stride;
    double *restrict S = partial.at + RUNNING_S * partial.stride;
    double *restrict Q = partial.at + RUNNING_Q * partial.stride;
    for (int64_t j = 0; j < cols; j++) {
        const running moved =
            running_flush((running){before, pivot[j], S[j], Q[j]}, s[j], q[j], rows, about_0);
        pivot[j] = moved.pivot;
        S[j] = moved.S;
        Q[j] = moved.Q;
    }
}

/* Turn the running statistics of n rows into partial results, in place. */
static inline void finish_columns(bncore_partial partial, int64_t cols, double n)
{
    double *restrict n_ = partial.at, *restrict offset_ = n_ + RUNNING_S * partial.stride,
                     *restrict m2_ = n_ + RUNNING_Q * partial.stride;
    for (int64_t j = 0; j < cols; j++) {
        const double offset = offset_[j] / n, m2 = m2_[j] - offset_[j] * offset;
        n_[j] = n;
        offset_[j] = offset;
        m2_[j] = m2 < 0.0 ? 0.0 : m2;
    }
}

/* Chan, Golub & LeVeque (1983), eq. 2.1. Pivots and offsets are subtracted separately, so that the difference of the
 * means keeps its digits where |mean| is much larger than std. A partial result of no value (n = 0) changes nothing. */
static inline void merge_moments_apart(bncore_partial into, const double *from, int64_t cols,
                                       int64_t step)
{
    const int64_t stride = into.stride;
    double *restrict n_ = into.at, *restrict pivot_ = n_ + stride,
                     *restrict offset_ = pivot_ + stride, *restrict m2_ = offset_ + stride;
    const double *restrict from_n = from, *restrict from_pivot = from_n + stride,
                           *restrict from_offset = from_pivot + stride,
                           *restrict from_m2 = from_offset + stride;
#pragma omp simd
    for (int64_t c = 0; c < cols * step; c += step) {
        const double na = n_[c], nb = from_n[c], n = na + nb, r = nb / n;
        const double delta = (from_pivot[c] - pivot_[c]) + (from_offset[c] - offset_[c]);
        const double offset = offset_[c] + delta * r;
        const double m2 = (m2_[c] + from_m2[c]) + (delta * delta) * (na * r);
        const int only_b = na == 0.0, both = na != 0.0 && nb != 0.0;
        n_[c] = n;
        pivot_[c] = only_b ? from_pivot[c] : pivot_[c];
        offset_[c] = only_b ? from_offset[c] : both ? offset : offset_[c];
        m2_[c] = only_b ? from_m2[c] : both ? m2 : m2_[c];
    }
}

static void merge_moments(bncore_partial into, const double *from, int64_t cols, int64_t step)
{
    if (step == 1)
        merge_moments_apart(into, from, cols, 1);
    else
        merge_moments_apart(into, from, cols, step);
}

static inline void merge_sums_apart(bncore_partial into, const double *from, int64_t cols,
                                    int64_t step)
{
    for (int f = 0; f < GRAD_FIELDS; f++) {
        double *restrict a = into.at + f * into.stride;
        const double *restrict b = from + f * into.stride;
#pragma omp simd
        for (int64_t c = 0; c < cols * step; c += step) a[c] = a[c] + b[c];
    }
}

static void merge_sums(bncore_partial into, const double *from, int64_t cols, int64_t step)
{
    if (step == 1)
        merge_sums_apart(into, from, cols, 1);
    else
        merge_sums_apart(into, from, cols, step);
}

/* 1 / sqrt(var / divisor + eps); infinite where var and eps are 0. */
static void inverse_std(double *restrict invstd, int64_t n, const double *restrict var,
                        double divisor, double eps)
{
#pragma omp simd
    for (int64_t c = 0; c < n; c++) {
        /* A variance that the caller gave has divisor 1, and a division would be a third of the work. */
        const double v = divisor == 1.0 ? var[c] : var[c] / divisor;
        invstd[c] = 1.0 / sqrt(v + eps);
    }
}

#endif
