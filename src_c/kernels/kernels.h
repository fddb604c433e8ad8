/* The table of kernels: for each instruction set one struct, with one set of function pointers per storage type.
 *
 * A reduction gives one partial result per channel (planes) or column (rows), with these fields:
 *   moments: {n, pivot, offset, m2}, where the mean is pivot + offset
 *   sums of integers: {sum of x, sum of x * x}, both wide integers (wide.h) that take two fields each
 *   grad_sums: {sum of dy, sum of dy * (x - mean)}, where the mean may be any number; of 16-bit values {sum of dy, sum of
 *              dy * (x - hi) * scale}, where hi and scale are the mean and 1 / sqrt(var + eps), rounded to float32
 * An elementwise kernel reads coefficients of the arithmetic type: field f of column c is coefficient[f * stride + c]. For
 * rows, the coefficients of the first REPEATED columns follow those of the last column once more.
 *   normalize: {hi, scale, shift}
 *   grad_input: {a, hi, k, c}, and for a mask the shift of normalize, whose scale is a
 *   grad_frozen: the same fields, but only a and, for a mask, hi and the shift are set
 *   grad_group: {a, hi, k, c, w}
 * Those of lines (lines_tmpl.c) have one value per line: {hi, scale, shift} and, for backward, those of
 * grad_input.
 */
#ifndef BNCORE_KERNELS_H
#define BNCORE_KERNELS_H

#include <math.h>
#include <stddef.h>

#include "../arithmetic.h"
#include "../partition.h"

enum {
    MOMENTS_FIELDS = 4,
    GRAD_FIELDS = 2,
    MAX_FIELDS = 4, /* of a partial result */
    NORMALIZE_FIELDS = 3,
    GRAD_INPUT_FIELDS = 4,
    GRAD_FROZEN_FIELDS = 1,
    GRAD_GROUP_FIELDS = 5,
    LINE_FIELDS = NORMALIZE_FIELDS + GRAD_INPUT_FIELDS, /* of lines in backward */
    LINE_TILE = BNCORE_LINE_TILE,
    MASK_SHIFT = 4,  /* the field of coefficients that a mask adds */
    COEF_FIELDS = 5, /* of coefficients with a mask */
    REPEATED = 32    /* as many values as a line of the caches can have */
};

/* A variant of a kernel is a sum of these, and an index of the table. */
enum {
    ACTIVATION = 1, /* forward has an activation; backward masks dy */
    RESIDUAL = 2,   /* a residual is added before the activation */
    STORED = 4,     /* grad_sums: the masked gradient goes to dresidual */
    BACKWARD = 8,   /* only within the templates: the kernel reads dy */
    WEIGHTED = 16,  /* only within the templates: the kernel reads weights */
    DOUBLES = 32,   /* only within the templates: these may be other ones than 0 and 1 */
    ABOUT_0 = 64,   /* only within the templates: all means are 0 */
    PAIRS = 128,    /* only within the templates: a line of values is computed in pairs */
    ELEMENTWISE_VARIANTS = 4,
    SUMS_VARIANTS = 8
};

/* Planes: `channels` neighbouring channels, their values begin .. end - 1. Image i of channel c starts at
 * (i * image_stride + c * inner) values from the array pointer. */
typedef struct bncore_planes {
    int64_t channels, inner, image_stride, begin, end;
} bncore_planes;

/* Rows: rows x cols values. Neighbouring rows lie `stride` values apart; for elementwise kernels stride == cols. */
typedef struct bncore_rows {
    int64_t rows, cols, stride;
} bncore_rows;

/* Field f of the partial result of column c is at[f * stride + c]. */
typedef struct bncore_partial {
    double *at;
    int64_t stride;
} bncore_partial;

/* The weights of a call (bncore_weights). Planes: the weights of a channel lie as its values do in x, or, where one weight is
 * for all channels, one image after the other. Rows: they lie as the values of x do, or `inner` of them are repeated for all
 * channels of an outer, which has `width` values; otherwise width is 0. */
typedef struct bncore_weighting {
    const void *values; /* uint8 or double; NULL: all are 1 */
    int doubles, per_channel, omit_nan, filled;
    int frozen; /* for grad_input: as grad_frozen */
    int64_t width, inner;
    double fill;
} bncore_weighting;

/* dst is y or dx, and dy is NULL in forward. stream: dst is too large for the caches, and it is no other array of the
 * call. near: all arrays of the call fit into the caches of one core. The fields after it are for variants other than
 * the plain one. */
typedef struct bncore_arrays {
    void *dst;
    const void *dy, *x;
    int stream, near;
    /* Where z <= 0, a value is multiplied by slope if z >= least, and else becomes 0. */
    double slope, least;
    const void *residual;
    void *dresidual;
    /* For grad_sums: the coefficients of the first column, whose fields lie mask_stride columns apart. */
    const void *mask;
    int64_t mask_stride;
    /* For grad_sums of 16-bit values: 1 / sqrt(var + eps) of each channel (planes) or column (rows). */
    const double *invstd;
    int float64_sums; /* for moments: add no value in float32, and none about 0 */
    /* For weighted kernels, and the place of the arrays' first value in x. These kernels are not compiled for each variant: a
     * residual or a dresidual that is NULL is left out, and a slope of 1 with a least of -infinity is no activation. */
    const bncore_weighting *weighting;
    int64_t at;
    const struct bncore_integers *integers; /* where x has integers */
} bncore_arrays;

static inline void bncore_without_activation(bncore_arrays *a)
{
    a->slope = 1.0;
    a->least = -INFINITY;
}

typedef struct bncore_kernel_set {
    size_t item, coef_item; /* bytes of a value, and of a coefficient */
    int chained;            /* whether reductions add in chains of float32 */
    int about_0;            /* whether they add about 0 where is_near_0 allows it */
    int streams;            /* whether this instruction set has stores that pass the caches by */
    void (*moments_planes)(bncore_partial partial, const bncore_arrays *a, const double *unused,
                           const bncore_planes *t);
    void (*moments_rows)(bncore_partial partial, const bncore_arrays *a, const double *unused,
                         const bncore_rows *t);
    void (*grad_sums_planes[SUMS_VARIANTS])(bncore_partial partial, const bncore_arrays *a,
                                            const double *mean, const bncore_planes *t);
    void (*grad_sums_rows[SUMS_VARIANTS])(bncore_partial partial, const bncore_arrays *a,
                                          const double *mean, const bncore_rows *t);
    /* The same with weights. */
    void (*weighted_moments_planes)(bncore_partial partial, const bncore_arrays *a,
                                    const double *unused, const bncore_planes *t);
    void (*weighted_moments_rows)(bncore_partial partial, const bncore_arrays *a,
                                  const double *unused, const bncore_rows *t);
    void (*weighted_grad_sums_planes[SUMS_VARIANTS])(bncore_partial partial, const bncore_arrays *a,
                                                     const double *mean, const bncore_planes *t);
    void (*weighted_grad_sums_rows[SUMS_VARIANTS])(bncore_partial partial, const bncore_arrays *a,
                                                   const double *mean, const bncore_rows *t);
    /* Merge `from` into `into`, in this order, for `cols` columns that lie `step` apart. Both have the same stride. */
    void (*merge_moments)(bncore_partial into, const double *from, int64_t cols, int64_t step);
    void (*merge_sums)(bncore_partial into, const double *from, int64_t cols, int64_t step);

    void (*normalize_planes[ELEMENTWISE_VARIANTS])(const bncore_arrays *a, const void *coef,
                                                   int64_t stride, const bncore_planes *t);
    void (*normalize_rows[ELEMENTWISE_VARIANTS])(const bncore_arrays *a, const void *coef,
                                                 int64_t stride, const bncore_rows *t);
    void (*grad_input_planes[ELEMENTWISE_VARIANTS])(const bncore_arrays *a, const void *coef,
                                                    int64_t stride, const bncore_planes *t);
    void (*grad_input_rows[ELEMENTWISE_VARIANTS])(const bncore_arrays *a, const void *coef,
                                                  int64_t stride, const bncore_rows *t);
    void (*grad_frozen_planes[ELEMENTWISE_VARIANTS])(const bncore_arrays *a, const void *coef,
                                                     int64_t stride, const bncore_planes *t);
    void (*grad_frozen_rows[ELEMENTWISE_VARIANTS])(const bncore_arrays *a, const void *coef,
                                                   int64_t stride, const bncore_rows *t);

    /* The gradient by x of a group whose channels have weights of their own. */
    void (*grad_group_planes[1])(const bncore_arrays *a, const void *coef, int64_t stride,
                                 const bncore_planes *t);
    void (*grad_group_rows[1])(const bncore_arrays *a, const void *coef, int64_t stride,
                               const bncore_rows *t);

    /* Lines; weight and bias have one value of the arithmetic's type per column. line_sums gives the sums of g = weight * dy
     * and of g * xhat of each line, line_grad_input adds to the sums of dy and of dy * xhat of each column. */
    /* mean and m2 of up to BNCORE_GROUP lines of LANES to BLOCK values; NULL where reductions are chained. */
    void (*line_moments)(double *mean, double *m2, const bncore_arrays *a, const bncore_rows *t);
    void (*line_normalize)(const bncore_arrays *a, const void *coef, int64_t stride,
                           const void *weight, const void *bias, const bncore_rows *t);
    void (*line_sums)(double *sum_g, double *sum_g_xhat, const bncore_arrays *a, const void *coef,
                      int64_t stride, const void *weight, const bncore_rows *t);
    void (*line_grad_input)(const bncore_arrays *a, const void *coef, int64_t stride,
                            const void *weight, double *dweight, double *dbias,
                            const bncore_rows *t);

    /* With weights: normalize for weights that are filled, and both gradients by x. The last variant has everything that may
     * be fused, the first ones nothing; the first gradient by x is for flags alone. */
    void (*weighted_normalize_planes[2])(const bncore_arrays *a, const void *coef, int64_t stride,
                                         const bncore_planes *t);
    void (*weighted_normalize_rows[2])(const bncore_arrays *a, const void *coef, int64_t stride,
                                       const bncore_rows *t);
    void (*weighted_grad_input_planes[3])(const bncore_arrays *a, const void *coef, int64_t stride,
                                          const bncore_planes *t);
    void (*weighted_grad_input_rows[3])(const bncore_arrays *a, const void *coef, int64_t stride,
                                        const bncore_rows *t);

    /* For each of n channels: 1 / sqrt(var / divisor + eps), and the coefficients that are computed from it. weight and
     * bias may be NULL. */
    void (*inverse_std)(double *invstd, int64_t n, const double *var, double divisor, double eps);
    void (*normalize_coefs)(void *coef, int64_t stride, int64_t n, const double *mean,
                            const double *invstd, const double *weight, const double *bias);
    /* What a mask needs of the coefficients of backward: the fields a, hi and MASK_SHIFT, as in normalize_coefs. */
    void (*mask_coefs)(void *coef, int64_t stride, int64_t n, const double *mean,
                       const double *invstd, const double *weight, const double *bias);
    /* counts NULL: `count` for every channel. */
    void (*grad_input_coefs)(void *coef, int64_t stride, int64_t n, const double *mean,
                             const double *invstd, const double *weight, const double *sum_dy,
                             const double *sum_dy_xhat, const double *counts, double count);
    void (*grad_frozen_coefs)(void *coef, int64_t n, const double *invstd, const double *weight);
    /* The sums are those of a channel's group. */
    void (*grad_group_coefs)(void *coef, int64_t stride, int64_t n, const double *mean,
                             const double *invstd, const double *weight, const double *sum_dy,
                             const double *sum_dy_xhat, double count);
    /* n parameters in the type of the arithmetic; NULL: all are `otherwise`. */
    void (*convert)(void *to, int64_t n, const double *from, double otherwise);
} bncore_kernel_set;

/* The kernels for integers of one size. `flip` is the highest bit where they are signed, and else 0. */
typedef struct bncore_integer_set {
    size_t item; /* bytes of a value */
    void (*sum_planes)(bncore_partial partial, const bncore_arrays *a, const double *unused,
                       const bncore_planes *t);
    void (*sum_rows)(bncore_partial partial, const bncore_arrays *a, const double *unused,
                     const bncore_rows *t);
    /* Convert n values. Those of 32 bits become their differences from *center, or by_column from as many centers. */
    void (*load)(float *to, const void *x, int64_t n, uint32_t flip, const float *center,
                 int by_column);
} bncore_integer_set;

/* How an operation reads an x of integers. */
typedef struct bncore_integers {
    const bncore_integer_set *set;
    uint32_t flip;
    int centered; /* they have 32 bits, and what is computed with are differences from a center */
    /* The kernels that normalize converted values. */
    void (*apply_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                         const bncore_planes *t);
    void (*apply_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                       const bncore_rows *t);
} bncore_integers;

typedef struct bncore_kernels {
    const char *name;
    const bncore_kernel_set *set[4];        /* by bncore_dtype */
    const bncore_integer_set *integer_sets; /* of 8, 16 and 32 bits */
} bncore_kernels;

/* Return the table in use; NULL while BNCORE_ISA names none. */
const bncore_kernels *bncore_kernels_now(void);

#endif
