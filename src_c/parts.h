/* Operations on a part of a call, of which groups.c and lines.c make the norms of samples. They check as the public ones do. */
#ifndef BNCORE_PARTS_H
#define BNCORE_PARTS_H

#include "arguments.h"

/* bncore_moments of groups of `wide` neighbouring channels, in this order: mean and m2 have channels / wide values. 0 is 1. */
bncore_status bncore_group_moments(const bncore_problem *problem, int64_t wide, double *mean,
                                   double *m2, const void *x);

bncore_status bncore_normalize_part(const bncore_problem *problem, bncore_streaming streaming,
                                    void *y, const void *x, const double *mean, const double *var,
                                    const double *weight, const double *bias);

/* dx = ((dy * weight) - (sum_dy + xhat * sum_dy_xhat) / n) / sqrt(var + eps), where mean, var and both sums of weight * dy
 * are, for each channel, those of its group, which has n = outer * wide * inner values. */
bncore_status bncore_grad_group(const bncore_problem *problem, bncore_streaming streaming,
                                int64_t wide, void *dx, const void *dy, const void *x,
                                const double *mean, const double *var, const double *sum_dy,
                                const double *sum_dy_xhat, const double *weight);

/* A call of group norm. The sizes of `problem` are those of one sample; `whole` is of all samples. */
typedef struct bncore_group_call {
    const bncore_problem *problem;
    operation whole; /* checked and scheduled; nobody runs it */
    int64_t samples, groups, wide;
    const double *mean, *var, *weight, *bias; /* mean and var of backward */
    double *results[2];                       /* mean and m2, or sum_dy and sum_dy_xhat */
} bncore_group_call;

/* The same where a channel has one value in each sample. Groups are lines then. */
bncore_status bncore_lines_forward(const bncore_group_call *call);
bncore_status bncore_lines_backward(const bncore_group_call *call);

/* A parameter from this channel on; NULL where there is none. */
static inline const double *bncore_from_channel(const double *parameter, int64_t channel)
{
    return parameter ? parameter + channel : NULL;
}

#endif
