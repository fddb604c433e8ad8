/* One call of an operation, as operations.c runs it: at most one reduction per channel (partial results, merged in fixed
 * order, finished into the two results of a channel) and at most one elementwise pass with coefficients. */
#ifndef BNCORE_RUN_H
#define BNCORE_RUN_H

#include "include/bncore.h"
#include "kernels/kernels.h"

typedef struct operation {
    const bncore_problem *problem;
    const bncore_kernel_set *kernels;
    bncore_geometry g;
    bncore_arrays arrays;
    size_t item; /* bytes of one value */
    int32_t threads;

    /* What the caller gave: per channel, NULL where it does not apply. */
    const double *mean, *var, *weight, *bias;
    const double *sum_dy, *sum_dy_xhat;
    double count;

    /* The reduction; fields == 0: there is none. finish: the results of channels first .. first + n - 1, from columns
     * 0, step, 2 step ... of partial. */
    int fields;
    void (*reduce_planes)(bncore_partial partial, const bncore_arrays *a, const double *mean,
                          const bncore_planes *t);
    void (*reduce_rows)(bncore_partial partial, const bncore_arrays *a, const double *mean,
                        const bncore_rows *t);
    void (*merge)(bncore_partial into, const double *from, int64_t cols, int64_t step);
    void (*finish)(const struct operation *op, int64_t first, int64_t n, bncore_partial partial,
                   int64_t step);
    double *results[2]; /* mean and m2, or sum_dy and sum_dy_xhat */

    /* Backward of an activation: what its mask adds to the coefficients of channels first .. first + n - 1, for both
     * passes; else NULL. */
    void (*set_mask)(const struct operation *op, int64_t first, int64_t n);
    int masked; /* the variant of the second pass */

    /* The elementwise pass; NULL: there is none. set_coefs: of channels first .. first + n - 1. at_once: it does not
     * need the reduction's results, and follows it piece by piece. */
    int at_once;
    void (*set_coefs)(const struct operation *op, int64_t first, int64_t n);
    void (*apply_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                         const bncore_planes *t);
    void (*apply_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                       const bncore_rows *t);

    void *copy_of_dy; /* where dy goes as it is, before anything else; NULL: nowhere */

    /* Scratch. */
    double *partial;     /* [segment][field][column] */
    double *invstd;      /* [channel], once a variance is known */
    double *column_mean; /* rows: the mean of each column's channel */
    void *coef;          /* [field][column], fields coef_stride columns apart */
    int64_t coef_stride;

    int64_t group, groups; /* planes: channels per task, tasks */
    int whole_groups;      /* planes: a task takes its group from the reduction to the end */
    int64_t strip, strips; /* rows: columns per task of the reduction, tasks across */
    int64_t chunk, chunks; /* rows: rows per task of the elementwise pass, tasks */
} operation;

/* Check a problem and partition it: BNCORE_OK, or what is wrong with it, and then *g is undefined. */
bncore_status bncore_problem_open(const bncore_problem *problem, bncore_geometry *g);

/* Sets threads, the sizes of tasks, at_once where they forbid it, and whether outputs pass the caches. */
void bncore_schedule(operation *op);

/* Schedules the operation, takes scratch, and runs it. */
bncore_status bncore_run(operation *op);

/* Doubles of scratch for the most demanding operation on this shape. */
int64_t bncore_scratch_doubles(const bncore_geometry *g);

#endif
