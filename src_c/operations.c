/* The public operations. Each chooses a reduction, an elementwise pass, and the arithmetic per channel between. */
#include <math.h>
#include <string.h>

#include "parts.h"

/* ---- per channel ---- */

static void finish_moments(const operation *op, int64_t first, int64_t n, bncore_partial partial,
                           int64_t step)
{
    for (int64_t c = 0; c < n; c++) {
        const double *from = partial.at + c * step;
        const double mean = from[partial.stride] + from[2 * partial.stride];
        op->results[0][first + c] = from[0] == 0.0 ? (double)NAN : mean;
        op->results[1][first + c] = from[3 * partial.stride];
        if (op->count) op->count[first + c] = from[0];
    }
}

/* Where x was summed about 0, the mean is taken away here. Where it is NaN, the sum of products is NaN, or 0 if backward
 * leaves out all values, and stays as it is. */
static void finish_sums(const operation *op, int64_t first, int64_t n, bncore_partial partial,
                        int64_t step)
{
    for (int64_t c = 0; c < n; c++) {
        const double *from = partial.at + c * step, mean = op->mean[first + c];
        const int about_0 = bncore_sum_mean(op, first + c) == 0.0 && mean != 0.0;
        const double products = from[partial.stride] - (about_0 ? mean * from[0] : 0.0);
        op->results[0][first + c] = from[0];
        op->results[1][first + c] = isnan(mean) ? products : products * op->invstd[first + c];
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

static void *coef_at(const operation *op, int64_t column)
{
    return (char *)op->coef + (size_t)column * op->kernels->coef_item;
}

static void set_normalize(const operation *op, int64_t first, int64_t n, const double *mean)
{
    op->kernels->normalize_coefs(coef_at(op, first), op->coef_stride, n, mean + first,
                                 op->invstd + first, bncore_from_channel(op->weight, first),
                                 bncore_from_channel(op->bias, first));
}

static void normalize_by_var(const operation *op, int64_t first, int64_t n)
{
    set_normalize(op, first, n, op->mean);
}

static void normalize_by_moments(const operation *op, int64_t first, int64_t n)
{
    const double *m2 = op->results[1] + first, eps = op->problem->eps;
    if (!op->count)
        op->kernels->inverse_std(op->invstd + first, n, m2, (double)op->g.n, eps);
    else
        for (int64_t c = 0; c < n; c++)
            op->invstd[first + c] = 1.0 / sqrt(m2[c] / op->count[first + c] + eps);
    set_normalize(op, first, n, op->results[0]);
}

static void set_grad_input(const operation *op, int64_t first, int64_t n)
{
    op->kernels->grad_input_coefs(coef_at(op, first), op->coef_stride, n, op->mean + first,
                                  op->invstd + first, bncore_from_channel(op->weight, first),
                                  op->sum_dy + first, op->sum_dy_xhat + first,
                                  bncore_from_channel(op->counts, first), (double)op->g.n);
}

static void set_grad_frozen(const operation *op, int64_t first, int64_t n)
{
    op->kernels->grad_frozen_coefs(coef_at(op, first), n, op->invstd + first,
                                   bncore_from_channel(op->weight, first));
    /* The weighted kernel reads the other fields of grad_input, too. The first of them may be set for the mask. */
    for (int f = op->set_mask ? 2 : 1; op->weighted && f < GRAD_INPUT_FIELDS; f++)
        memset(coef_at(op, f * op->coef_stride + first), 0, (size_t)n * op->kernels->coef_item);
}

static void set_grad_group(const operation *op, int64_t first, int64_t n)
{
    op->kernels->grad_group_coefs(coef_at(op, first), op->coef_stride, n, op->mean + first,
                                  op->invstd + first, bncore_from_channel(op->weight, first),
                                  op->sum_dy + first, op->sum_dy_xhat + first,
                                  (double)(op->g.n * op->wide));
}

/* Compute the coefficients of z as normalize_by_var does, so that z has the bits that it had in forward. */
static void set_mask(const operation *op, int64_t first, int64_t n)
{
    op->kernels->mask_coefs(coef_at(op, first), op->coef_stride, n, op->mean + first,
                            op->invstd + first, bncore_from_channel(op->weight, first),
                            bncore_from_channel(op->bias, first));
}

/* ---- fusion ---- */

/* Take the activation and the residual from the problem's fusion. Returns the variant of the kernels for them. Weighted
 * kernels compute without an activation as if it changed nothing. */
static int fuse(operation *op)
{
    const bncore_fusion *f = op->problem->fusion;
    op->arrays.slope = f->activation == BNCORE_LEAKY_RELU ? f->slope : 0.0;
    op->arrays.least = f->activation == BNCORE_LEAKY_RELU ? -INFINITY : INFINITY;
    op->arrays.residual = f->residual;
    if (!f->activation) bncore_without_activation(&op->arrays);
    return (f->activation ? ACTIVATION : 0) + (f->residual ? RESIDUAL : 0);
}

/* The same for backward; returns the variant of grad_sums. Without an activation dresidual is a copy of dy, and the
 * rest of the computation does not change. */
static int fuse_backward(operation *op)
{
    const bncore_fusion *f = op->problem->fusion;
    const int fills = op->weighting.filled && f->dresidual;
    if (!f->activation && !fills) {
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
    if (!op->weighted) return;
    op->reduce_planes = op->kernels->weighted_moments_planes;
    op->reduce_rows = op->kernels->weighted_moments_rows;
    op->count = op->problem->weights->count;
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
    if (!op->weighted) return;
    const int all = variant ? ACTIVATION | RESIDUAL | STORED : 0;
    op->reduce_planes = op->kernels->weighted_grad_sums_planes[all];
    op->reduce_rows = op->kernels->weighted_grad_sums_rows[all];
}

static void apply_normalize(operation *op, void (*set_coefs)(const operation *, int64_t, int64_t))
{
    const int variant = op->problem->fusion ? fuse(op) : 0;
    op->apply_planes = op->kernels->normalize_planes[variant];
    op->apply_rows = op->kernels->normalize_rows[variant];
    if (op->weighting.filled) {
        op->apply_planes = op->kernels->weighted_normalize_planes[variant != 0];
        op->apply_rows = op->kernels->weighted_normalize_rows[variant != 0];
    }
    op->coef_fields = NORMALIZE_FIELDS;
    op->set_coefs = set_coefs;
    if (op->arrays.integers) bncore_normalize_integers(op);
}

/* The gradient by x of weighted values. */
static void apply_weighted_gradient(operation *op)
{
    const int variant = op->masked ? 2 : op->weighting.doubles;
    op->apply_planes = op->kernels->weighted_grad_input_planes[variant];
    op->apply_rows = op->kernels->weighted_grad_input_rows[variant];
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
    if (op->weighted) apply_weighted_gradient(op);
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
    for (int64_t c = 0; op->count && c < op->g.channels; c++) op->count[c] = 0.0;
    return BNCORE_OK;
}

/* ---- the public operations ---- */

bncore_status bncore_moments(const bncore_problem *p, double *mean, double *m2, const void *x)
{
    return bncore_group_moments(p, 0, mean, m2, x);
}

bncore_status bncore_group_moments(const bncore_problem *p, int64_t wide, double *mean, double *m2,
                                   const void *x)
{
    operation op;
    bncore_status status = bncore_start_any(&op, p, NULL, NULL, x);
    if (status == BNCORE_OK) status = bncore_check_data(&op, 1, (const void *[]){x});
    if (status == BNCORE_OK) status = bncore_check_channels(&op, 2, (const void *[]){mean, m2});
    if (status == BNCORE_OK) status = bncore_check_count(&op);
    if (status != BNCORE_OK) return status;
    reduce_moments(&op, mean, m2);
    op.wide = wide;
    return run(&op);
}

bncore_status bncore_normalize(const bncore_problem *p, void *y, const void *x, const double *mean,
                               const double *var, const double *weight, const double *bias)
{
    return bncore_normalize_part(p, BY_SIZE, y, x, mean, var, weight, bias);
}

bncore_status bncore_normalize_part(const bncore_problem *p, bncore_streaming streaming, void *y,
                                    const void *x, const double *mean, const double *var,
                                    const double *weight, const double *bias)
{
    operation op;
    bncore_status status = bncore_start_any(&op, p, y, NULL, x);
    if (status == BNCORE_OK) status = bncore_check_data(&op, 2, (const void *[]){y, x});
    if (status == BNCORE_OK) status = bncore_check_channels(&op, 2, (const void *[]){mean, var});
    if (status == BNCORE_OK) status = bncore_check_optional(2, (const void *[]){weight, bias});
    if (status != BNCORE_OK) return status;
    given(&op, mean, var, weight, bias);
    apply_normalize(&op, normalize_by_var);
    op.streaming = streaming;
    return run(&op);
}

bncore_status bncore_train(const bncore_problem *p, void *y, double *mean, double *m2,
                           const void *x, const double *weight, const double *bias)
{
    operation op;
    bncore_status status = bncore_start(&op, p, y, NULL, x);
    if (status == BNCORE_OK) status = bncore_check_data(&op, 2, (const void *[]){y, x});
    if (status == BNCORE_OK) status = bncore_check_channels(&op, 2, (const void *[]){mean, m2});
    if (status == BNCORE_OK) status = bncore_check_optional(2, (const void *[]){weight, bias});
    if (status == BNCORE_OK) status = bncore_check_count(&op);
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
    bncore_status status = bncore_start(&op, p, NULL, dy, x);
    if (status == BNCORE_OK) status = bncore_check_data(&op, 2, (const void *[]){dy, x});
    if (status == BNCORE_OK)
        status = bncore_check_channels(&op, 4, (const void *[]){mean, var, sum_dy, sum_dy_xhat});
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
    bncore_status status = bncore_start(op, p, dx, dy, x);
    if (status == BNCORE_OK) status = bncore_check_data(op, 3, (const void *[]){dx, dy, x});
    if (status == BNCORE_OK)
        status = bncore_check_channels(op, 4, (const void *[]){mean, var, sum_dy, sum_dy_xhat});
    if (status == BNCORE_OK) status = bncore_check_optional(1, (const void *[]){weight});
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
    if (status == BNCORE_OK) status = bncore_check_channels(&op, 1, (const void *[]){count});
    if (status == BNCORE_OK) status = bncore_check_counts(&op, count);
    if (status != BNCORE_OK) return status;
    apply_grad_input(&op, sum_dy, sum_dy_xhat, count);
    return run(&op);
}

bncore_status bncore_grad_group(const bncore_problem *p, bncore_streaming streaming, int64_t wide,
                                void *dx, const void *dy, const void *x, const double *mean,
                                const double *var, const double *sum_dy, const double *sum_dy_xhat,
                                const double *weight)
{
    operation op;
    const bncore_status status =
        start_gradient(&op, p, dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight);
    if (status != BNCORE_OK) return status;
    op.wide = wide;
    op.streaming = streaming;
    op.apply_planes = op.kernels->grad_group_planes[0];
    op.apply_rows = op.kernels->grad_group_rows[0];
    op.coef_fields = GRAD_GROUP_FIELDS;
    op.set_coefs = set_grad_group;
    op.sum_dy = sum_dy;
    op.sum_dy_xhat = sum_dy_xhat;
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
    bncore_status status =
        start_backward(&op, p, dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight);
    if (status == BNCORE_OK) status = bncore_check_count(&op);
    if (status != BNCORE_OK) return status;
    apply_grad_input(&op, sum_dy, sum_dy_xhat, op.weighted ? p->weights->count : NULL);
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
    op.coef_fields = op.weighted ? GRAD_INPUT_FIELDS : GRAD_FROZEN_FIELDS;
    op.set_coefs = set_grad_frozen;
    op.weighting.frozen = op.weighted;
    if (op.weighted) apply_weighted_gradient(&op);
    return run(&op);
}
