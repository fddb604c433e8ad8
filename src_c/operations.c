/* The operations: which reduction, which elementwise pass, and the arithmetic per channel between them. */
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

/* Arrays of x's size. One that holds no value may be NULL, and is never looked at. */
static bncore_status check_data(const job *j, int count, const void *const arrays[])
{
    if (j->g.n == 0 || j->g.channels == 0) return BNCORE_OK;
    for (int i = 0; i < count; i++) {
        if (!arrays[i]) return BNCORE_ERROR_NULL;
        if (misaligned(arrays[i], j->item)) return BNCORE_ERROR_ALIGNMENT;
    }
    return BNCORE_OK;
}

/* Arrays that may be NULL: double[channels], or scratch. */
static bncore_status check_optional(int count, const void *const arrays[])
{
    for (int i = 0; i < count; i++)
        if (misaligned(arrays[i], DOUBLE_ALIGNMENT)) return BNCORE_ERROR_ALIGNMENT;
    return BNCORE_OK;
}

/* double[channels], which may be NULL where there is no channel. */
static bncore_status check_channels(const job *j, int count, const void *const arrays[])
{
    for (int i = 0; i < count; i++)
        if (!arrays[i] && j->g.channels) return BNCORE_ERROR_NULL;
    return check_optional(count, arrays);
}

/* Take the problem, which brings residual, dresidual, bias and scratch with it. */
static bncore_status start(job *j, const bncore_problem *p, void *dst, const void *dy,
                           const void *x)
{
    bncore_geometry g;
    const bncore_status status = bncore_problem_open(p, &g);
    if (status != BNCORE_OK) return status;
    const bncore_kernels *kernels = bncore_kernels_now();
    if (!kernels) return BNCORE_ERROR_ISA;
    if (bncore_executor_init() != BNCORE_OK) return BNCORE_ERROR_EXECUTOR;
    *j = (job){.problem = p,
               .kernels = kernels->set[p->dtype],
               .g = g,
               .arrays = {.dst = dst, .dy = dy, .x = x},
               .item = kernels->set[p->dtype]->item};
    const bncore_fusion *f = p->fusion;
    if (f && (misaligned(f->residual, j->item) || misaligned(f->dresidual, j->item)))
        return BNCORE_ERROR_ALIGNMENT;
    return check_optional(2, (const void *[]){p->scratch, f ? f->bias : NULL});
}

static bncore_status run(job *j)
{
    if (j->g.n > 0 && j->g.channels > 0) return bncore_job_run(j);
    for (int i = 0; i < 2; i++)
        for (int64_t c = 0; j->results[i] && c < j->g.channels; c++) j->results[i][c] = 0.0;
    return BNCORE_OK;
}

/* ---- per channel ---- */

static void finish_moments(const job *j, int64_t first, int64_t n, bncore_partial partial,
                           int64_t step)
{
    for (int64_t c = 0; c < n; c++) {
        const double *from = partial.at + c * step;
        j->results[0][first + c] = from[partial.stride] + from[2 * partial.stride];
        j->results[1][first + c] = from[3 * partial.stride];
    }
}

static void finish_sums(const job *j, int64_t first, int64_t n, bncore_partial partial,
                        int64_t step)
{
    for (int64_t c = 0; c < n; c++) {
        const double *from = partial.at + c * step;
        j->results[0][first + c] = from[0];
        j->results[1][first + c] = from[partial.stride] * j->invstd[first + c];
    }
}

static const double *from_channel(const double *parameter, int64_t first)
{
    return parameter ? parameter + first : NULL;
}

static void *coef_at(const job *j, int64_t column)
{
    return (char *)j->coef + (size_t)column * j->kernels->coef_item;
}

static void set_normalize(const job *j, int64_t first, int64_t n, const double *mean)
{
    j->kernels->normalize_coefs(coef_at(j, first), j->coef_stride, n, mean + first,
                                j->invstd + first, from_channel(j->weight, first),
                                from_channel(j->bias, first));
}

static void normalize_by_var(const job *j, int64_t first, int64_t n)
{
    set_normalize(j, first, n, j->mean);
}

static void normalize_by_moments(const job *j, int64_t first, int64_t n)
{
    j->kernels->inverse_std(j->invstd + first, n, j->results[1] + first, (double)j->g.n,
                            j->problem->eps);
    set_normalize(j, first, n, j->results[0]);
}

static void set_grad_input(const job *j, int64_t first, int64_t n)
{
    j->kernels->grad_input_coefs(coef_at(j, first), j->coef_stride, n, j->mean + first,
                                 j->invstd + first, from_channel(j->weight, first),
                                 j->sum_dy + first, j->sum_dy_xhat + first, j->count);
}

static void set_grad_frozen(const job *j, int64_t first, int64_t n)
{
    j->kernels->grad_frozen_coefs(coef_at(j, first), n, j->invstd + first,
                                  from_channel(j->weight, first));
}

/* As normalize_by_var, so that z comes out as in forward. */
static void set_mask(const job *j, int64_t first, int64_t n)
{
    j->kernels->mask_coefs(coef_at(j, first), j->coef_stride, n, j->mean + first, j->invstd + first,
                           from_channel(j->weight, first), from_channel(j->bias, first));
}

/* ---- fusion ---- */

/* Takes what the problem's fusion says of activation and residual; the variant that this asks for. */
static int fuse(job *j)
{
    const bncore_fusion *f = j->problem->fusion;
    j->arrays.slope = f->activation == BNCORE_LEAKY_RELU ? f->slope : 0.0;
    j->arrays.least = f->activation == BNCORE_LEAKY_RELU ? -INFINITY : INFINITY;
    j->arrays.residual = f->residual;
    return (f->activation ? ACTIVATION : 0) + (f->residual ? RESIDUAL : 0);
}

/* Backward: the variant of grad_sums. Without an activation dresidual is a copy of dy, and all else as ever. */
static int fuse_backward(job *j)
{
    const bncore_fusion *f = j->problem->fusion;
    if (!f->activation) {
        if (f->dresidual != j->arrays.dy) j->copy_of_dy = f->dresidual;
        return 0;
    }
    const int variant = fuse(j);
    j->arrays.dresidual = f->dresidual;
    j->bias = f->bias;
    j->set_mask = set_mask;
    j->masked = f->dresidual ? 0 : variant;
    return f->dresidual ? variant + STORED : variant;
}

/* ---- reductions and passes ---- */

static void reduce_moments(job *j, double *mean, double *m2)
{
    j->fields = MOMENTS_FIELDS;
    j->reduce_planes = j->kernels->moments_planes;
    j->reduce_rows = j->kernels->moments_rows;
    j->merge = j->kernels->merge_moments;
    j->finish = finish_moments;
    j->results[0] = mean;
    j->results[1] = m2;
}

static void reduce_sums(job *j, double *sum_dy, double *sum_dy_xhat, int variant)
{
    j->fields = GRAD_FIELDS;
    j->reduce_planes = j->kernels->grad_sums_planes[variant];
    j->reduce_rows = j->kernels->grad_sums_rows[variant];
    j->merge = j->kernels->merge_sums;
    j->finish = finish_sums;
    j->results[0] = sum_dy;
    j->results[1] = sum_dy_xhat;
}

static void apply_normalize(job *j, void (*set_coefs)(const job *, int64_t, int64_t))
{
    const int variant = j->problem->fusion ? fuse(j) : 0;
    j->apply_planes = j->kernels->normalize_planes[variant];
    j->apply_rows = j->kernels->normalize_rows[variant];
    j->set_coefs = set_coefs;
}

static void apply_grad_input(job *j, const double *sum_dy, const double *sum_dy_xhat, double count)
{
    j->apply_planes = j->kernels->grad_input_planes[j->masked];
    j->apply_rows = j->kernels->grad_input_rows[j->masked];
    j->set_coefs = set_grad_input;
    j->sum_dy = sum_dy;
    j->sum_dy_xhat = sum_dy_xhat;
    j->count = count;
}

static void given(job *j, const double *mean, const double *var, const double *weight,
                  const double *bias)
{
    j->mean = mean;
    j->var = var;
    j->weight = weight;
    j->bias = bias;
}

/* ---- the public operations ---- */

bncore_status bncore_moments(const bncore_problem *p, double *mean, double *m2, const void *x)
{
    job j;
    bncore_status status = start(&j, p, NULL, NULL, x);
    if (status == BNCORE_OK) status = check_data(&j, 1, (const void *[]){x});
    if (status == BNCORE_OK) status = check_channels(&j, 2, (const void *[]){mean, m2});
    if (status != BNCORE_OK) return status;
    reduce_moments(&j, mean, m2);
    return run(&j);
}

bncore_status bncore_normalize(const bncore_problem *p, void *y, const void *x, const double *mean,
                               const double *var, const double *weight, const double *bias)
{
    job j;
    bncore_status status = start(&j, p, y, NULL, x);
    if (status == BNCORE_OK) status = check_data(&j, 2, (const void *[]){y, x});
    if (status == BNCORE_OK) status = check_channels(&j, 2, (const void *[]){mean, var});
    if (status == BNCORE_OK) status = check_optional(2, (const void *[]){weight, bias});
    if (status != BNCORE_OK) return status;
    given(&j, mean, var, weight, bias);
    apply_normalize(&j, normalize_by_var);
    return run(&j);
}

bncore_status bncore_train(const bncore_problem *p, void *y, double *mean, double *m2,
                           const void *x, const double *weight, const double *bias)
{
    job j;
    bncore_status status = start(&j, p, y, NULL, x);
    if (status == BNCORE_OK) status = check_data(&j, 2, (const void *[]){y, x});
    if (status == BNCORE_OK) status = check_channels(&j, 2, (const void *[]){mean, m2});
    if (status == BNCORE_OK) status = check_optional(2, (const void *[]){weight, bias});
    if (status != BNCORE_OK) return status;
    given(&j, NULL, NULL, weight, bias);
    reduce_moments(&j, mean, m2);
    apply_normalize(&j, normalize_by_moments);
    return run(&j);
}

bncore_status bncore_grad_sums(const bncore_problem *p, double *sum_dy, double *sum_dy_xhat,
                               const void *dy, const void *x, const double *mean, const double *var)
{
    job j;
    bncore_status status = start(&j, p, NULL, dy, x);
    if (status == BNCORE_OK) status = check_data(&j, 2, (const void *[]){dy, x});
    if (status == BNCORE_OK)
        status = check_channels(&j, 4, (const void *[]){mean, var, sum_dy, sum_dy_xhat});
    if (status != BNCORE_OK) return status;
    given(&j, mean, var, NULL, NULL);
    reduce_sums(&j, sum_dy, sum_dy_xhat, 0);
    return run(&j);
}

/* What every operation with dx does first. */
static bncore_status start_gradient(job *j, const bncore_problem *p, void *dx, const double *sum_dy,
                                    const double *sum_dy_xhat, const void *dy, const void *x,
                                    const double *mean, const double *var, const double *weight)
{
    bncore_status status = start(j, p, dx, dy, x);
    if (status == BNCORE_OK) status = check_data(j, 3, (const void *[]){dx, dy, x});
    if (status == BNCORE_OK)
        status = check_channels(j, 4, (const void *[]){mean, var, sum_dy, sum_dy_xhat});
    if (status == BNCORE_OK) status = check_optional(1, (const void *[]){weight});
    if (status == BNCORE_OK) given(j, mean, var, weight, NULL);
    return status;
}

bncore_status bncore_grad_input(const bncore_problem *p, void *dx, const void *dy, const void *x,
                                const double *mean, const double *var, const double *sum_dy,
                                const double *sum_dy_xhat, double count, const double *weight)
{
    job j;
    const bncore_status status =
        start_gradient(&j, p, dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight);
    if (status != BNCORE_OK) return status;
    if (!(count > 0.0)) return BNCORE_ERROR_COUNT;
    apply_grad_input(&j, sum_dy, sum_dy_xhat, count);
    return run(&j);
}

static bncore_status start_backward(job *j, const bncore_problem *p, void *dx, double *sum_dy,
                                    double *sum_dy_xhat, const void *dy, const void *x,
                                    const double *mean, const double *var, const double *weight)
{
    const bncore_status status =
        start_gradient(j, p, dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight);
    if (status != BNCORE_OK) return status;
    reduce_sums(j, sum_dy, sum_dy_xhat, p->fusion ? fuse_backward(j) : 0);
    return BNCORE_OK;
}

bncore_status bncore_train_backward(const bncore_problem *p, void *dx, double *sum_dy,
                                    double *sum_dy_xhat, const void *dy, const void *x,
                                    const double *mean, const double *var, const double *weight)
{
    job j;
    const bncore_status status =
        start_backward(&j, p, dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight);
    if (status != BNCORE_OK) return status;
    apply_grad_input(&j, sum_dy, sum_dy_xhat, (double)j.g.n);
    return run(&j);
}

bncore_status bncore_infer_backward(const bncore_problem *p, void *dx, double *sum_dy,
                                    double *sum_dy_xhat, const void *dy, const void *x,
                                    const double *mean, const double *var, const double *weight)
{
    job j;
    const bncore_status status =
        start_backward(&j, p, dx, sum_dy, sum_dy_xhat, dy, x, mean, var, weight);
    if (status != BNCORE_OK) return status;
    j.at_once = 1;
    j.apply_planes = j.kernels->grad_frozen_planes[j.masked];
    j.apply_rows = j.kernels->grad_frozen_rows[j.masked];
    j.set_coefs = set_grad_frozen;
    return run(&j);
}
