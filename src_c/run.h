/* One call of an operation, as operations.c describes it and run.c runs it. It has at most one reduction per channel,
 * whose partial results are merged in a fixed order and finished into the two results of a channel, and at most one
 * elementwise pass with coefficients. */
#ifndef BNCORE_RUN_H
#define BNCORE_RUN_H

#include "include/bncore.h"
#include "kernels/kernels.h"

/* Whether stores pass the caches by. */
typedef enum bncore_streaming { BY_SIZE = 0, KEPT, STREAMED } bncore_streaming;

typedef struct operation {
    const bncore_problem *problem;
    const bncore_kernel_set *kernels;
    bncore_geometry g;
    bncore_arrays arrays;
    bncore_integers integers; /* arrays.integers, where x has integers */
    size_t item, x_item;      /* bytes of one value, and of one of x, which may be an integer */
    int32_t threads;

    /* What the caller gave per channel; NULL where the operation does not have it. */
    const double *mean, *var, *weight, *bias;
    const double *sum_dy, *sum_dy_xhat;
    const double *counts; /* NULL: g.n for every channel */

    int64_t
        wide; /* how many neighbouring channels share statistics, as in group norm; 0: none do */
    int streaming; /* bncore_streaming: for a part of a call, of which the whole decides */

    int weighted; /* whether there are weights */
    bncore_weighting weighting;

    /* The reduction; fields is 0 where there is none. finish computes the results of channels first .. first + n - 1 from
     * columns 0, step, 2 step ... of partial. */
    int fields;
    void (*reduce_planes)(bncore_partial partial, const bncore_arrays *a, const double *mean,
                          const bncore_planes *t);
    void (*reduce_rows)(bncore_partial partial, const bncore_arrays *a, const double *mean,
                        const bncore_rows *t);
    void (*merge)(bncore_partial into, const double *from, int64_t cols, int64_t step);
    void (*finish)(const struct operation *op, int64_t first, int64_t n, bncore_partial partial,
                   int64_t step);
    double *results[2]; /* mean and m2, or sum_dy and sum_dy_xhat */
    double *count; /* with mean and m2: where the count of each channel is written; NULL: nowhere */

    /* For the backward of an activation: sets what its mask adds to the coefficients of channels first .. first + n - 1,
     * for both passes. Otherwise NULL. */
    void (*set_mask)(const struct operation *op, int64_t first, int64_t n);
    int masked; /* the variant of the second pass */

    /* The elementwise pass; the functions are NULL where there is none. set_coefs sets the coefficients of channels
     * first .. first + n - 1. at_once: the pass does not need the results of the reduction, and each task runs it right
     * after its part of the reduction. */
    int at_once;
    int coef_fields; /* without those of a mask */
    void (*set_coefs)(const struct operation *op, int64_t first, int64_t n);
    void (*apply_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                         const bncore_planes *t);
    void (*apply_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                       const bncore_rows *t);

    void *copy_of_dy; /* where dy is copied to before anything else; NULL: nowhere */

    /* Scratch. */
    double *partial;       /* [segment][field][column] */
    double *invstd;        /* [channel], once a variance is known */
    double *column_mean;   /* rows: what grad_sums subtracts from x in each column */
    double *column_invstd; /* rows of 16-bit values: the same of invstd */
    void *coef;            /* [field][column], fields coef_stride columns apart */
    int64_t coef_stride;

    int64_t group, groups; /* planes: channels per task, tasks */
    int whole_groups;      /* planes: one task runs both passes over its group */
    int64_t strip, strips; /* rows: columns per task of the reduction, tasks across */
    int64_t chunk, chunks; /* rows: rows per task of the elementwise pass, tasks */
} operation;

/* Check a problem and partition it. Where the status is not BNCORE_OK, *g is undefined. */
bncore_status bncore_problem_open(const bncore_problem *problem, bncore_geometry *g);

/* What grad_sums subtracts from the values of a channel: the mean, or 0 where that loses nothing. */
static inline double bncore_sum_mean(const operation *op, int64_t channel)
{
    const double mean = op->mean[channel];
    const int near_0 = op->kernels->about_0 && bncore_is_near_0(1.0, mean, op->var[channel]);
    return near_0 ? 0.0 : mean;
}

/* Set the number of threads, the sizes of tasks, and whether the output passes the caches by. at_once becomes 0 where
 * a task has not whole rows. */
void bncore_schedule(operation *op);

/* Schedule the operation, take scratch, and run it. */
bncore_status bncore_run(operation *op);

/* How many columns the partial results have: one for each channel of planes, or for each value of a row. */
static inline int64_t bncore_columns(const bncore_geometry *g)
{
    return g->planes ? g->channels : g->cols;
}

/* The partial results of a segment. */
static inline bncore_partial bncore_partial_at(const operation *op, int64_t segment)
{
    const int64_t all = bncore_columns(&op->g);
    return (bncore_partial){op->partial + segment * op->fields * all, all};
}

/* Merge the partial results of all segments, and then those of the columns of each channel or group, and finish them. */
void bncore_finish(const operation *op);

/* For an x of integers: set how it is read; change the reduction to sums of integers, and the elementwise pass to one that
 * converts them. */
void bncore_read_integers(operation *op, const bncore_kernels *kernels);
void bncore_sum_integers(operation *op);
void bncore_normalize_integers(operation *op);

/* How many doubles of scratch the most demanding operation on this shape takes. */
int64_t bncore_scratch_doubles(const bncore_geometry *g);

#endif
