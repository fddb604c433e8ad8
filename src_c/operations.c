/* The public operations. Each chooses a reduction, an elementwise pass, and the arithmetic per channel between. */
#include <math.h>

#include "run.h"

/* ---- arguments ---- */

typedef struct double_in_struct {
    char before;
    double value;
} double_in_struct;

enum { DOUBLE_ALIGNMENT = offsetof(double_in_struct, value) }; /* 32-bit x86: 4 */

static int misaligned(const void *array, size_t alignment)
{
    return (uintptr_t)array % alignment != 0;
}

/* Check arrays of x's size. Where they hold no value, they may be NULL, and nobody looks at them. */
static bncore_status check_data(const operation *op, int count, const void *const arrays[])
{
    if (op->g.n == 0 || op->g.channels == 0) return BNCORE_OK;
    for (int i = 0; i < count; i++) {
        if (!arrays[i]) return BNCORE_ERROR_NULL;
        if (misaligned(arrays[i], arrays[i] == op->arrays.x ? op->x_item : op->item))
            return BNCORE_ERROR_ALIGNMENT;
    }
    return BNCORE_OK;
}

/* Check arrays that may be NULL: double[channels], or scratch. */
static bncore_status check_optional(int count, const void *const arrays[])
{
    for (int i = 0; i < count; i++)
        if (misaligned(arrays[i], DOUBLE_ALIGNMENT)) return BNCORE_ERROR_ALIGNMENT;
    return BNCORE_OK;
}

/* Check arrays of double[channels], which may be NULL where there is no channel. */
static bncore_status check_channels(const operation *op, int count, const void *const arrays[])
{
    for (int i = 0; i < count; i++)
        if (!arrays[i] && op->g.channels) return BNCORE_ERROR_NULL;
    return check_optional(count, arrays);
}

static bncore_status check_counts(const operation *op, const double *count)
{
    for (int64_t c = 0; c < op->g.channels; c++)
        if (!(count[c] > 0.0 || (op->problem->weights && count[c] == 0.0)))
            return BNCORE_ERROR_COUNT;
    return BNCORE_OK;
}

/* Check the problem, with its residual, dresidual, bias and scratch, and begin *op with it. */
static bncore_status start_any(operation *op, const bncore_problem *p, void *dst, const void *dy,
                               const void *x)
{
    bncore_geometry g;
    const bncore_status status = bncore_problem_open(p, &g);
    if (status != BNCORE_OK) return status;
    const bncore_kernels *kernels = bncore_kernels_now();
    if (!kernels) return BNCORE_ERROR_ISA;
    if (bncore_executor_init() != BNCORE_OK) return BNCORE_ERROR_EXECUTOR;
    const int integers = p->dtype >= BNCORE_UINT8;
    const bncore_kernel_set *set = kernels->set[integers ? BNCORE_FLOAT32 : p->dtype];
    *op = (operation){.problem = p,
                      .kernels = set,
                      .g = g,
                      .arrays = {.dst = dst, .dy = dy, .x = x},
                      .item = set->item,
                      .x_item = set->item};
    if (integers) bncore_read_integers(op, kernels);
    const bncore_fusion *f = p->fusion;
    if (f && (misaligned(f->residual, op->item) || misaligned(f->dresidual, op->item)))
        return BNCORE_ERROR_ALIGNMENT;
    return check_optional(2, (const void *[]){p->scratch, f ? f->bias : NULL});
}

/* The same for an operation that takes no integers. */
static bncore_status start(operation *op, const bncore_problem *p, void *dst, const void *dy,
                           const void *x)
{
    const bncore_status status = start_any(op, p, dst, dy, x);
    return status == BNCORE_OK && op->arrays.integers ? BNCORE_ERROR_DTYPE : status;
}

/* ---- per channel ---- */

static void finish_moments(const operation *op, int64_t first, int64_t n, bncore_partial partial,
                           int64_t step)
{
    for (int64_t c = 0; c < n; c++) {
        const double *from = partial.at + c * step;
        op->results[0][first + c] = from[partial.stride] + from[2 * partial.stride];
        op->results[1][first + c] = from[3 * partial.stride];
    }
}

/* Where the mean is NaN, the sum of products is NaN, or 0 if backward leaves out all values, and stays as it is. */
static void finish_sums(const operation *op, int64_t first, int64_t n, bncore_partial partial,
                        int64_t step)
{
    for (int64_t c = 0; c < n; c++) {
        const double *from = partial.at + c * step;
        op->results[0][first + c] = from[0];
        op->results[1][first + c] =
            from[partial.stride] * (isnan(op->mean[first + c]) ? 1.0 : op->invstd[first + c]);
    }
}

/* The same for sums of dy * (x - hi) * scale, where hi and scale are the mean and invstd, rounded to float32. What the
 * rounding of the mean added is taken away, unless an infinite sum of dy would make NaN of it. */
static void finish_chained_sums(const operation *op, int64_t first, int64_t n,
                                bncore_partial partial, int64_t step)
{
    for (int64_t c = 0; c < n; c++) {
        const double *from = partial.at + c * step;
        const double mean = op->mean[first + c], lo = mean - (double)(float)mean;
        const double scale = (double)(float)op->invstd[first + c];
        op->results[0][first + c] = from[0];
        const int exact = lo == 0.0 || !isfinite(from[0]) || isnan(mean);
        op->results[1][first + c] = from[partial.stride] - (exact ? 0.0 : (lo * scale) * from[0]);
    }
}

static const double *from_channel(const double *parameter, int64_t first)
{
    return parameter ? parameter + first : NULL;
}

static void *coef_at(const operation *op, int64_t column)
{
    return (char *)op->coef + (size_t)column * op->kernels->coef_item;
}

static void set_normalize(const operation *op, int64_t first, int64_t n, const double *mean)
{
    op->kernels->normalize_coefs(coef_at(op, first), op->coef_stride, n, mean + first,
                                 op->invstd + first, from_channel(op->weight, first),
                                 from_channel(op->bias, first));
}

static void normalize_by_var(const operation *op, int64_t first, int64_t n)
{
    set_normalize(op, first, n, op->mean);
}

static void normalize_by_moments(const operation *op, int64_t first, int64_t n)
{
    op->kernels->inverse_std(op->invstd + first, n, op->results[1] + first, (double)op->g.n,
                             op->problem->eps);
    set_normalize(op, first, n, op->results[0]);
}

static void set_grad_input(const operation *op, int64_t first, int64_t n)
{
    op->kernels->grad_input_coefs(coef_at(op, first), op->coef_stride, n, op->mean + first,
                                  op->invstd + first, from_channel(op->weight, first),
                                  op->sum_dy + first, op->sum_dy_xhat + first,
                                  from_channel(op->counts, first), (double)op->g.n);
}

static void set_grad_frozen(const operation *op, int64_t first, int64_t n)
{
    op->kernels->grad_frozen_coefs(coef_at(op, first), n, op->invstd + first,
                                   from_channel(op->weight, first));
}

/* Compute the coefficients of z as normalize_by_var does, so that z has the bits that it had in forward. */
static void set_mask(const operation *op, int64_t first, int64_t n)
{
    op->kernels->mask_coefs(coef_at(op, first), op->coef_stride, n, op->mean + first,
                            op->invstd + first, from_channel(op->weight, first),
                            from_channel(op->bias, first));
}

/* ---- fusion ---- */

/* Take the activation and the residual from the problem's fusion. Returns the variant of the kernels for them. */
static int fuse(operation *op)
{
    const bncore_fusion *f = op->problem->fusion;
    op->arrays.slope = f->activation == BNCORE_LEAKY_RELU ? f->slope : 0.0;
    op->arrays.least = f->activation == BNCORE_LEAKY_RELU ? -INFINITY : INFINITY;
    op->arrays.residual = f->residual;
    return (f->activation ? ACTIVATION : 0) + (f->residual ? RESIDUAL : 0);
}

/* The same for backward; returns the variant of grad_sums. Without an activation dresidual is a copy of dy, and the
 * rest of the computation does not change. */
static int fuse_backward(operation *op)
{
    const bncore_fusion *f = op->problem->fusion;
    if (!f->activation) {
        if (f->dresidual != op->arrays.dy) op->copy_of_dy = f->dresidual;
        return 0;
    }
    const int variant = fuse(op);
    op->arrays.dresidual = f->dresidual;
    op->bias = f->bias;
    op->set_mask = set_mask;
    op->masked = f->dresidual ? 0 : variant;
    return f->dresidual ? variant + STORED : variant;
}

/* ---- reductions and passes ---- */

static void reduce_moments(operation *op, double *mean, double *m2)
{
    op->fields = MOMENTS_FIELDS;
    op->reduce_planes = op->kernels->moments_planes;
    op->reduce_rows = op->kernels->moments_rows;
    op->merge = op->kernels->merge_moments;
    op->finish = finish_moments;
    op->results[0] = mean;
    op->results[1] = m2;
    op->arrays.float64_sums = (op->problem->flags & BNCORE_FLOAT64_SUMS) != 0;
    if (op->arrays.integers) bncore_sum_integers(op);
}

static void reduce_sums(operation *op, double *sum_dy, double *sum_dy_xhat, int variant)
{
    op->fields = GRAD_FIELDS;
    op->reduce_planes = op->kernels->grad_sums_planes[variant];
    op->reduce_rows = op->kernels->grad_sums_rows[variant];
    op->merge = op->kernels->merge_sums;
    op->finish = op->kernels->chained ? finish_chained_sums : finish_sums;
    op->results[0] = sum_dy;
    op->results[1] = sum_dy_xhat;
}

static void apply_normalize(operation *op, void (*set_coefs)(const operation *, int64_t, int64_t))
{
    const int variant = op->problem->fusion ? fuse(op) : 0;
    op->apply_planes = op->kernels->normalize_planes[variant];
    op->apply_rows = op->kernels->normalize_rows[variant];
    op->coef_fields = NORMALIZE_FIELDS;
    op->set_coefs = set_coefs;
    if (op->arrays.integers) bncore_normalize_integers(op);
}

/* counts NULL: every channel has g.n values. */
static void apply_grad_input(operation *op, const double *sum_dy, const double *sum_dy_xhat,
                             const double *counts)
{
    op->apply_planes = op->kernels->grad_input_planes[op->masked];
    op->apply_rows = op->kernels->grad_input_rows[op->masked];
    op->coef_fields = GRAD_INPUT_FIELDS;
    op->set_coefs = set_grad_input;
    op->sum_dy = sum_dy;
    op->sum_dy_xhat = sum_dy_xhat;
    op->counts = counts;
}

static void given(operation *op, const double *mean, const double *var, const double *weight,
                  const double *bias)
{
    op->mean = mean;
    op->var = var;
    op->weight = weight;
    op->bias = bias;
}

/* Run the operation. Statistics of no value are NaN and 0, and sums are 0. */
static bncore_status run(operation *op)
{
    if (op->g.n > 0 && op->g.channels > 0) return bncore_run(op);
    for (int i = 0; i < 2; i++)
        for (int64_t c = 0; op->results[i] && c < op->g.channels; c++)
            op->results[i][c] = i == 0 && op->fields == MOMENTS_FIELDS ? (double)NAN : 0.0;
    return BNCORE_OK;
}

/* ---- the public operations ---- */

bncore_status bncore_moments(const bncore_problem *p, double *mean, double *m2, const void *x)
{
    operation op;
    bncore_status status = start_any(&op, p, NULL, NULL, x);
    if (status == BNCORE_OK) status = check_data(&op, 1, (const void *[]){x});
    if (status == BNCORE_OK) status = check_channels(&op, 2, (const void *[]){mean, m2});
    if (status != BNCORE_OK) return status;
    reduce_moments(&op, mean, m2);
    return run(&op);
}

bncore_status bncore_normalize(const bncore_problem *p, void *y, const void *x, const double *mean,
                               const double *var, const double *weight, const double *bias)
{
    operation op;
    bncore_status status = start_any(&op, p, y, NULL, x);
    if (status == BNCORE_OK) status = check_data(&op, 2, (const void *[]){y, x});
    if (status == BNCORE_OK) status = check_channels(&op, 2, (const void *[]){mean, var});
    if (status == BNCORE_OK) status = check_optional(2, (const void *[]){weight, bias});
    if (status != BNCORE_OK) return status;
    given(&op, mean, var, weight, bias);
    apply_normalize(&op, normalize_by_var);
    return run(&op);
}

bncore_status bncore_train(const bncore_problem *p, void *y, double *mean, double *m2,
                           const void *x, const double *weight, const double *bias)
{
    operation op;
    bncore_status status = start(&op, p, y, NULL, x);
    if (status == BNCORE_OK) status = check_data(&op, 2, (const void *[]){y, x});
    if (status == BNCORE_OK) status = check_channels(&op, 2, (const void *[]){mean, m2});
    if (status == BNCORE_OK) status = check_optional(2, (const void *[]){weight, bias});
    if (status != BNCORE_OK) return status;
    given(&op, NULL, NULL, weight, bias);
    reduce_moments(&op, mean, m2);
    apply_normalize(&op, normalize_by_moments);
    return run(&op);
}

bncore_status bncore_grad_sums(const bncore_problem *p, double *sum_dy, double *sum_dy_xhat,
                               const void *dy, const void *x, const double *mean, const double *var)
{
    operation op;
    bncore_status status = start(&op, p, NULL, dy, x);
    if (status == BNCORE_OK) status = check_data(&op, 2, (const void *[]){dy, x});
    if (status == BNCORE_OK)
        status = check_channels(&op, 4, (const void *[]){mean, var, sum_dy, sum_dy_xhat});
    if (status != BNCORE_OK) return status;
    given(&op, mean, var, NULL, NULL);
    reduce_sums(&op, sum_dy, sum_dy_xhat, 0);
    return run(&op);
}

/* Begin an operation that writes dx. */
static bncore_status start_gradient(operation *op, const bncore_problem *p, void *dx,
                                    const double *sum_dy, const double *sum_dy_xhat, const void *dy,
                                    const void *x, const double *mean, const double *var,
                                    const double *weight)
{
    bncore_status status = start(op, p, dx, dy, x);
    if (status == BNCORE_OK) status = check_data(op, 3, (const void *[]){dx, dy, x});
    if (status == BNCORE_OK)
        status = check_channels(op, 4, (const void *[]){mean, var, sum_dy, sum_dy_xhat});
    if (status == BNCORE_OK) status = check_optional(1, (const void *[]){weight});
    if (status == BNCORE_OK) given(op, mean, var, weight, NULL);
    return status;
}

bncore_status bncore_grad_input(const bncore_problem *p, void *dx, const void *dy, const void *x,
                                const double *mean, const double *var, const double *sum_dy,
                                const double *sum_dy_xhat, const double *count,
                                const double *weight)
{
    operation op;
    bncore_status status =
        start_gradient(&op, p, dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight);
    if (status == BNCORE_OK) status = check_channels(&op, 1, (const void *[]){count});
    if (status == BNCORE_OK) status = check_counts(&op, count);
    if (status != BNCORE_OK) return status;
    apply_grad_input(&op, sum_dy, sum_dy_xhat, count);
    return run(&op);
}

static bncore_status start_backward(operation *op, const bncore_problem *p, void *dx,
                                    double *sum_dy, double *sum_dy_xhat, const void *dy,
                                    const void *x, const double *mean, const double *var,
                                    const double *weight)
{
    const bncore_status status =
        start_gradient(op, p, dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight);
    if (status != BNCORE_OK) return status;
    reduce_sums(op, sum_dy, sum_dy_xhat, p->fusion ? fuse_backward(op) : 0);
    return BNCORE_OK;
}

bncore_status bncore_train_backward(const bncore_problem *p, void *dx, double *sum_dy,
                                    double *sum_dy_xhat, const void *dy, const void *x,
                                    const double *mean, const double *var, const double *weight)
{
    operation op;
    const bncore_status status =
        start_backward(&op, p, dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight);
    if (status != BNCORE_OK) return status;
    apply_grad_input(&op, sum_dy, sum_dy_xhat, NULL);
    return run(&op);
}

bncore_status bncore_infer_backward(const bncore_problem *p, void *dx, double *sum_dy,
                                    double *sum_dy_xhat, const void *dy, const void *x,
                                    const double *mean, const double *var, const double *weight)
{
    operation op;
    const bncore_status status =
        start_backward(&op, p, dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight);
    if (status != BNCORE_OK) return status;
    op.at_once = 1;
    op.apply_planes = op.kernels->grad_frozen_planes[op.masked];
    op.apply_rows = op.kernels->grad_frozen_rows[op.masked];
    op.coef_fields = GRAD_FROZEN_FIELDS;
    op.set_coefs = set_grad_frozen;
    return run(&op);
}
