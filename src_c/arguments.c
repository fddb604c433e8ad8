/* Checks the arrays of a call, and begins its operation. operations.c checks all arrays before it writes any. */
#include "arguments.h"

typedef struct double_in_struct {
    char before;
    double value;
} double_in_struct;

enum { DOUBLE_ALIGNMENT = offsetof(double_in_struct, value) }; /* 32-bit x86: 4 */

static int misaligned(const void *array, size_t alignment)
{
    return (uintptr_t)array % alignment != 0;
}

bncore_status bncore_check_data(const operation *op, int count, const void *const arrays[])
{
    if (op->g.n == 0 || op->g.channels == 0) return BNCORE_OK;
    for (int i = 0; i < count; i++) {
        if (!arrays[i]) return BNCORE_ERROR_NULL;
        if (misaligned(arrays[i], arrays[i] == op->arrays.x ? op->x_item : op->item))
            return BNCORE_ERROR_ALIGNMENT;
    }
    return BNCORE_OK;
}

bncore_status bncore_check_optional(int count, const void *const arrays[])
{
    for (int i = 0; i < count; i++)
        if (misaligned(arrays[i], DOUBLE_ALIGNMENT)) return BNCORE_ERROR_ALIGNMENT;
    return BNCORE_OK;
}

bncore_status bncore_check_channels(const operation *op, int count, const void *const arrays[])
{
    for (int i = 0; i < count; i++)
        if (!arrays[i] && op->g.channels) return BNCORE_ERROR_NULL;
    return bncore_check_optional(count, arrays);
}

/* Take the problem's weights. */
static void take_weights(operation *op)
{
    const bncore_weights *w = op->problem->weights;
    const int64_t inner = op->g.inner;
    const int repeated = !op->g.planes && !w->per_channel;
    op->weighted = 1;
    op->weighting = (bncore_weighting){.values = w->values,
                                       .doubles = w->dtype == BNCORE_WEIGHT_FLOAT64,
                                       .per_channel = w->per_channel,
                                       .omit_nan = w->omit_nan,
                                       .filled = w->filled,
                                       .width = repeated ? op->g.channels * inner : 0,
                                       .inner = inner,
                                       .fill = w->fill};
}

bncore_status bncore_check_count(const operation *op)
{
    if (!op->weighted) return BNCORE_OK;
    return bncore_check_channels(op, 1, (const void *[]){op->problem->weights->count});
}

bncore_status bncore_check_counts(const operation *op, const double *count)
{
    for (int64_t c = 0; c < op->g.channels; c++)
        if (!(count[c] > 0.0 || (op->problem->weights && count[c] == 0.0)))
            return BNCORE_ERROR_COUNT;
    return BNCORE_OK;
}

bncore_status bncore_start_any(operation *op, const bncore_problem *p, void *dst, const void *dy,
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
    bncore_without_activation(&op->arrays);
    if (p->weights) take_weights(op);
    const bncore_fusion *f = p->fusion;
    if (f && (misaligned(f->residual, op->item) || misaligned(f->dresidual, op->item)))
        return BNCORE_ERROR_ALIGNMENT;
    if (op->weighted &&
        misaligned(op->weighting.values, op->weighting.doubles ? DOUBLE_ALIGNMENT : 1))
        return BNCORE_ERROR_ALIGNMENT;
    return bncore_check_optional(2, (const void *[]){p->scratch, f ? f->bias : NULL});
}

bncore_status bncore_start(operation *op, const bncore_problem *p, void *dst, const void *dy,
                           const void *x)
{
    const bncore_status status = bncore_start_any(op, p, dst, dy, x);
    return status == BNCORE_OK && op->arrays.integers ? BNCORE_ERROR_DTYPE : status;
}
