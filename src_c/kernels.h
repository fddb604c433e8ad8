/* The dispatch table: one struct of kernel pointers per instruction set, one set of kernels per storage type.
 *
 * Reductions give one partial result per channel (planes) or column (rows), of these fields:
 *   moments:  {n, pivot, offset, m2}, the mean being pivot + offset
 *   grad_sums: {sum of dy, sum of dy * (x - mean)}
 * Elementwise kernels read coefficients of the storage type, field by field: coefficient[field * stride + column]; for
 * rows, those of the first REPEATED columns stand once more behind the last ones.
 */
#ifndef BNCORE_KERNELS_H
#define BNCORE_KERNELS_H

#include "partition.h"

enum {
    MOMENTS_FIELDS = 4,
    GRAD_FIELDS = 2,
    NORMALIZE_FIELDS = 3,
    INPUT_FIELDS = 4,
    MAX_FIELDS = 4,
    REPEATED = 16
};

/* Planes: `channels` neighbouring channels, their values begin .. end - 1. Image i of channel c starts at
 * (i * image_stride + c * inner) values from the array pointer. */
typedef struct bncore_planes {
    int64_t channels, inner, image_stride, begin, end;
} bncore_planes;

/* Rows: rows x cols values, rows `stride` values apart; elementwise, stride == cols. */
typedef struct bncore_rows {
    int64_t rows, cols, stride;
} bncore_rows;

/* Field f of the partial result of column c is at[f * stride + c]. */
typedef struct bncore_partial {
    double *at;
    int64_t stride;
} bncore_partial;

/* dst is y or dx; dy is NULL in forward. stream: dst is too large for the caches (and none of the others). */
typedef struct bncore_arrays {
    void *dst;
    const void *dy, *x;
    int stream;
} bncore_arrays;

typedef struct bncore_kernel_set {
    void (*moments_planes)(bncore_partial partial, const bncore_arrays *a, const double *unused,
                           const bncore_planes *t);
    void (*moments_rows)(bncore_partial partial, const bncore_arrays *a, const double *unused,
                         const bncore_rows *t);
    void (*grad_sums_planes)(bncore_partial partial, const bncore_arrays *a, const double *mean,
                             const bncore_planes *t);
    void (*grad_sums_rows)(bncore_partial partial, const bncore_arrays *a, const double *mean,
                           const bncore_rows *t);
    /* into = into and from, in this order, column by column; of one stride. */
    void (*merge_moments)(bncore_partial into, const double *from, int64_t cols);
    void (*merge_sums)(bncore_partial into, const double *from, int64_t cols);

    void (*normalize_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                             const bncore_planes *t);
    void (*normalize_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                           const bncore_rows *t);
    void (*grad_input_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                              const bncore_planes *t);
    void (*grad_input_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                            const bncore_rows *t);
    void (*grad_frozen_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                               const bncore_planes *t);
    void (*grad_frozen_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                             const bncore_rows *t);

    /* Per channel, n of them: 1 / sqrt(var / divisor + eps), and the coefficients that follow from it. weight and
     * bias may be NULL. */
    void (*inverse_std)(double *invstd, int64_t n, const double *var, double divisor, double eps);
    void (*normalize_coefs)(void *coef, int64_t stride, int64_t n, const double *mean,
                            const double *invstd, const double *weight, const double *bias);
    void (*grad_input_coefs)(void *coef, int64_t stride, int64_t n, const double *mean,
                             const double *invstd, const double *weight, const double *sum_dy,
                             const double *sum_dy_xhat, double count);
    void (*grad_frozen_coefs)(void *coef, int64_t n, const double *invstd, const double *weight);
} bncore_kernel_set;

typedef struct bncore_kernels {
    const char *name;
    const bncore_kernel_set *set[2]; /* by bncore_dtype */
} bncore_kernels;

/* The table in use. */
const bncore_kernels *bncore_kernels_now(void);

#endif
