/* What the reductions of kernels.c share, whatever the storage type: walking planes, lanes, and the running
 * statistics of one channel. Included once per instruction set; all static. */
#ifndef BNCORE_REDUCE_H
#define BNCORE_REDUCE_H

#include <float.h>
#include <math.h>

#include "kernels.h"

/* A run of memory that belongs to one channel: `len` values, `offset` values after the channel's first one. */
typedef struct piece {
    int64_t offset, len;
} piece;

static inline piece piece_at(const bncore_planes *t, int64_t e, int64_t most)
{
    const int64_t image = e / t->inner, pos = e - image * t->inner;
    const int64_t len = bncore_min(t->inner - pos, t->end - e);
    return (piece){image * t->image_stride + pos, bncore_min(len, most)};
}

/* Have what lies `bytes` behind p fetched into the second-level cache; it need not be in any array. */
static inline void fetch(const void *p, int64_t bytes)
{
    __builtin_prefetch((const void *)((uintptr_t)p + (uintptr_t)bytes), 0, 2);
}

/* Backwards: what lies before value e in its image. */
static inline piece piece_before(const bncore_planes *t, int64_t e)
{
    const int64_t image = (e - 1) / t->inner, start = image * t->inner;
    const int64_t begin = bncore_max(start, t->begin);
    return (piece){image * t->image_stride + (begin - start), e - begin};
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

static inline int is_finite(double v)
{
    return fabs(v) <= DBL_MAX;
}

/* Blocked Welford: n values, their sum S and sum of squares Q about a pivot. After each block the pivot moves to
 * the running mean (with a block of one value this is Welford's update, Technometrics 4(3), 1962), so that S is
 * only the rounding of that move and Q does not cancel. */
typedef struct running {
    double n, pivot, S, Q;
} running;

static inline running running_flush(running w, double s, double q, double n)
{
    w.n += n;
    w.S += s;
    w.Q += q;
    const double moved = w.pivot + w.S / w.n;
    const double t = moved - w.pivot, nt = w.n * t;
    const double Q = w.Q - t * (2.0 * w.S - nt);
    const double S = w.S - nt;
    const int ok =
        is_finite(moved); /* else an Inf or NaN came by: S and Q carry it to the result */
    w.pivot = ok ? moved : w.pivot;
    w.S = ok ? S : w.S;
    w.Q = ok ? (Q < 0.0 ? 0.0 : Q) : w.Q;
    return w;
}

/* The partial result {n, pivot, offset, m2} of a segment. */
static inline void running_finish(const running *w, double *partial)
{
    const double offset = w->S / w->n, m2 = w->Q - w->S * offset;
    partial[0] = w->n;
    partial[1] = w->pivot;
    partial[2] = offset;
    partial[3] = m2 < 0.0 ? 0.0 : m2;
}

#endif
