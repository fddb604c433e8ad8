#include "run.h"

#include <stdlib.h>
#include <string.h>

#include "float_env.h"
#include "parallel_for.h"

enum {
    /* Bytes of scratch on the stack, so that small problems allocate no memory; with float32 these are problems of up
     * to 280 channels. These bytes and those for STRIP columns in kernels.c are most of the stack that bncore.h says a
     * call takes. */
    LOCAL_SCRATCH = 16 * 1024,
    COPY_BYTES = 1 << 18, /* per task of a copy */
    /* Columns of room between two fields of the coefficients. They hold the REPEATED columns, and keep fields of 1024
     * columns from falling into the same set of the first-level cache. */
    COEF_APART = 80
};

int64_t bncore_scratch_doubles(const bncore_geometry *g)
{
    const int64_t per_column = g->segments * MAX_FIELDS + COEF_FIELDS + 2;
    return bncore_columns(g) * per_column + COEF_FIELDS * COEF_APART;
}

static const void *coef_at(const operation *op, int64_t column)
{
    return (const char *)op->coef + (size_t)column * op->kernels->coef_item;
}

static const void *moved(const void *array, size_t bytes)
{
    return array ? (const char *)array + bytes : NULL;
}

static bncore_arrays arrays_at(const operation *op, int64_t offset)
{
    const size_t bytes = (size_t)offset * op->item;
    bncore_arrays a = op->arrays;
    a.dst = (void *)moved(a.dst, bytes);
    a.dy = moved(a.dy, bytes);
    a.x = moved(a.x, (size_t)offset * op->x_item);
    a.residual = moved(a.residual, bytes);
    a.dresidual = (void *)moved(a.dresidual, bytes);
    a.weighting = &op->weighting, a.at = offset;
    return a;
}

/* The arrays of the first pass, which masks the gradient where there is an activation. */
static bncore_arrays arrays_before(const operation *op, int64_t offset, int64_t column)
{
    bncore_arrays a = arrays_at(op, offset);
    a.mask = coef_at(op, column);
    a.mask_stride = op->coef_stride;
    a.invstd = (op->column_invstd ? op->column_invstd : op->invstd) + column;
    return a;
}

/* The arrays of the second pass, which reads the masked gradient where the first pass stored it. */
static bncore_arrays arrays_after(const operation *op, int64_t offset)
{
    bncore_arrays a = arrays_at(op, offset);
    if (a.dresidual) a.dy = a.dresidual;
    return a;
}

/* ---- planes ---- */

static bncore_planes planes_tile(const operation *op, int64_t group)
{
    const int64_t first = group * op->group;
    return (bncore_planes){.channels = bncore_min(op->group, op->g.channels - first),
                           .inner = op->g.inner,
                           .image_stride = op->g.channels * op->g.inner,
                           .begin = 0,
                           .end = op->g.n};
}

static bncore_planes planes_segment(const operation *op, int64_t group, int64_t segment)
{
    bncore_planes t = planes_tile(op, group);
    t.begin = segment * op->g.segment;
    t.end = bncore_min(t.begin + op->g.segment, op->g.n);
    return t;
}

static void reduce_segment(const operation *op, int64_t group, int64_t segment,
                           bncore_partial partial)
{
    const bncore_planes t = planes_segment(op, group, segment);
    const int64_t first = group * op->group;
    const bncore_arrays a = arrays_before(op, first * op->g.inner, first);
    double mean[BNCORE_GROUP];
    for (int64_t c = 0; op->mean && c < t.channels; c++) mean[c] = bncore_sum_mean(op, first + c);
    op->reduce_planes(partial, &a, op->mean ? mean : NULL, &t);
}

static void apply_tile(const operation *op, int64_t group, const bncore_planes *t)
{
    const int64_t first = group * op->group;
    const bncore_arrays a = arrays_after(op, first * op->g.inner);
    op->apply_planes(&a, coef_at(op, first), op->coef_stride, t);
}

/* Both passes over one group of channels: the second pass finds in the cache what the first one read. */
static void task_group(void *arg, int64_t group)
{
    const operation *op = arg;
    const bncore_planes t = planes_tile(op, group);
    const int64_t first = group * op->group;
    double first_fields[BNCORE_GROUP * MAX_FIELDS], more_fields[BNCORE_GROUP * MAX_FIELDS];
    const bncore_partial partial = {first_fields, BNCORE_GROUP}, more = {more_fields, BNCORE_GROUP};
    if (op->set_mask) op->set_mask(op, first, t.channels);
    reduce_segment(op, group, 0, partial);
    for (int64_t s = 1; s < op->g.segments; s++) {
        reduce_segment(op, group, s, more);
        op->merge(partial, more.at, t.channels, 1);
    }
    op->finish(op, first, t.channels, partial, 1);
    if (!op->apply_planes) return;
    op->set_coefs(op, first, t.channels);
    apply_tile(op, group, &t);
}

static void task_reduce_planes(void *arg, int64_t i)
{
    const operation *op = arg;
    const int64_t group = i / op->g.segments, segment = i % op->g.segments;
    const bncore_partial partial = bncore_partial_at(op, segment);
    reduce_segment(op, group, segment,
                   (bncore_partial){partial.at + group * op->group, partial.stride});
    if (!op->at_once) return;
    const bncore_planes t = planes_segment(op, group, segment);
    apply_tile(op, group, &t);
}

/* The second pass over a part of a group's images. Where there are enough images, a task takes whole ones, so that no
 * run of memory is split. */
static void task_apply_planes(void *arg, int64_t i)
{
    const operation *op = arg;
    const bncore_geometry *g = &op->g;
    const int64_t group = i / g->segments, segment = i % g->segments;
    bncore_planes t = planes_segment(op, group, segment);
    if (g->outer >= g->segments) {
        t.begin = segment * g->outer / g->segments * g->inner;
        t.end = (segment + 1) * g->outer / g->segments * g->inner;
    }
    apply_tile(op, group, &t);
}

/* ---- rows ---- */

static void reduce_part(const operation *op, bncore_partial partial, int64_t begin, int64_t first,
                        const bncore_rows *t)
{
    partial.at += first;
    if (t->rows == 0) {
        for (int f = 0; f < op->fields; f++)
            for (int64_t c = 0; c < t->cols; c++) partial.at[f * partial.stride + c] = 0.0;
        return;
    }
    const bncore_arrays a = arrays_before(op, begin * op->g.cols + first, first);
    op->reduce_rows(partial, &a, op->column_mean ? op->column_mean + first : NULL, t);
}

/* Reduce rows begin .. end - 1 of columns first .. first + cols - 1. The columns that reach into a short last row have
 * one row more than the others. */
static void reduce_columns(const operation *op, bncore_partial partial, int64_t begin, int64_t end,
                           int64_t first, int64_t cols)
{
    const bncore_geometry *g = &op->g;
    const int short_row = end == g->rows && g->short_cols > 0;
    const int64_t longer = bncore_min(bncore_max(g->short_cols - first, 0), cols);
    const bncore_rows all = {end - begin, short_row ? longer : cols, g->cols};
    const bncore_rows shorter = {end - begin - 1, cols - longer, g->cols};
    if (all.cols > 0) reduce_part(op, partial, begin, first, &all);
    if (short_row && shorter.cols > 0) reduce_part(op, partial, begin, first + longer, &shorter);
}

/* The second pass over rows begin .. end - 1; a short last row is a call of its own. */
static void apply_whole_rows(const operation *op, int64_t begin, int64_t end)
{
    const bncore_geometry *g = &op->g;
    const int short_row = end == g->rows && g->short_cols > 0;
    const bncore_rows whole = {end - begin - short_row, g->cols, g->cols};
    const bncore_rows rest = {1, g->short_cols, g->short_cols};
    bncore_arrays a = arrays_after(op, begin * g->cols);
    if (whole.rows > 0) op->apply_rows(&a, op->coef, op->coef_stride, &whole);
    a = arrays_after(op, (end - 1) * g->cols);
    if (short_row) op->apply_rows(&a, op->coef, op->coef_stride, &rest);
}

static void task_reduce_rows(void *arg, int64_t i)
{
    const operation *op = arg;
    const bncore_geometry *g = &op->g;
    const int64_t segment = i / op->strips, first = i % op->strips * op->strip;
    const int64_t begin = segment * g->segment, end = bncore_min(begin + g->segment, g->rows);
    reduce_columns(op, bncore_partial_at(op, segment), begin, end, first,
                   bncore_min(op->strip, g->cols - first));
    if (op->at_once) apply_whole_rows(op, begin, end);
}

/* After a reduction, the last rows come first, because the reduction read them last and they are still in the cache. */
static void task_apply_rows(void *arg, int64_t i)
{
    const operation *op = arg;
    const int64_t chunk = op->fields ? op->chunks - 1 - i : i;
    const int64_t begin = chunk * op->chunk, end = bncore_min(begin + op->chunk, op->g.rows);
    apply_whole_rows(op, begin, end);
}

/* ---- both ---- */

/* Repeat each of `n` values of `item` bytes `inner` times, in place. */
static inline void repeat_each(char *to, int64_t n, int64_t inner, size_t item)
{
    for (int64_t c = n - 1; c >= 0; c--) {
        char value[sizeof(double)];
        memcpy(value, to + (size_t)c * item, item);
        for (int64_t i = 0; i < inner; i++)
            memcpy(to + (size_t)(c * inner + i) * item, value, item);
    }
}

/* Make one value per column of one value per channel, in place. The sizes are constants, so that each copy is one
 * instruction. */
static void spread_over_columns(const bncore_geometry *g, void *values, size_t item)
{
    const int64_t inner = g->planes ? 1 : g->inner, width = g->channels * inner;
    if (inner > 1 && item == sizeof(float))
        repeat_each(values, g->channels, inner, sizeof(float));
    else if (inner > 1)
        repeat_each(values, g->channels, inner, sizeof(double));
    for (int64_t fold = width; fold < bncore_columns(g); fold += width)
        memcpy((char *)values + (size_t)fold * item, values, (size_t)width * item);
}

/* How many fields of coefficients the operation has. */
static int coef_fields(const operation *op)
{
    return op->set_mask ? COEF_FIELDS : op->coef_fields;
}

/* Set all coefficients (whole), or only those of the mask, which are enough for the first pass. */
static void set_coefs(const operation *op, int whole)
{
    if (whole) op->set_coefs(op, 0, op->g.channels);
    if (op->set_mask) op->set_mask(op, 0, op->g.channels);
    if (op->g.planes) return;
    const size_t item = op->kernels->coef_item;
    const size_t repeated = (size_t)bncore_min(op->g.cols, REPEATED) * item;
    for (int f = 0; f < coef_fields(op); f++) {
        char *field = (char *)op->coef + (size_t)(f * op->coef_stride) * item;
        spread_over_columns(&op->g, field, item);
        memcpy(field + (size_t)op->g.cols * item, field, repeated);
    }
}

static void run_planes(operation *op)
{
    const bncore_executor *executor = op->problem->executor;
    const int64_t tasks = op->groups * op->g.segments;
    if (op->whole_groups) {
        bncore_parallel_for(executor, op->groups, op->threads, 0, task_group, op);
        return;
    }
    if (op->at_once || op->set_mask) set_coefs(op, op->at_once);
    if (op->fields) {
        bncore_parallel_for(executor, tasks, op->threads, 0, task_reduce_planes, op);
        bncore_finish(op);
    }
    if (!op->apply_planes || op->at_once) return;
    set_coefs(op, 1);
    bncore_parallel_for(executor, tasks, op->threads, 0, task_apply_planes, op);
}

static void run_rows(operation *op)
{
    const bncore_executor *executor = op->problem->executor;
    if (op->at_once || op->set_mask) set_coefs(op, op->at_once);
    if (op->fields) {
        for (int64_t c = 0; op->column_mean && c < op->g.channels; c++)
            op->column_mean[c] = bncore_sum_mean(op, c);
        for (int64_t c = 0; op->column_invstd && c < op->g.channels; c++)
            op->column_invstd[c] = op->invstd[c];
        if (op->column_mean) spread_over_columns(&op->g, op->column_mean, sizeof(double));
        if (op->column_invstd) spread_over_columns(&op->g, op->column_invstd, sizeof(double));
        bncore_parallel_for(executor, op->g.segments * op->strips, op->threads, 0, task_reduce_rows,
                            op);
        bncore_finish(op);
    }
    if (!op->apply_rows || op->at_once) return;
    set_coefs(op, 1);
    bncore_parallel_for(executor, op->chunks, op->threads, op->fields > 0, task_apply_rows, op);
}

/* Copy a stretch of dy to dresidual. */
static void task_copy(void *arg, int64_t i)
{
    const operation *op = arg;
    const size_t bytes = (size_t)(op->g.n * op->g.channels) * op->item;
    const size_t begin = (size_t)i * COPY_BYTES;
    memcpy((char *)op->copy_of_dy + begin, (const char *)op->arrays.dy + begin,
           bytes - begin < COPY_BYTES ? bytes - begin : COPY_BYTES);
}

static void copy_dy(operation *op)
{
    const int64_t bytes = op->g.n * op->g.channels * (int64_t)op->item;
    bncore_parallel_for(op->problem->executor, bncore_ceil_div(bytes, COPY_BYTES), op->threads, 0,
                        task_copy, op);
}

/* Bytes of the operation's coefficients, rounded up so that doubles can follow them. */
static size_t coef_bytes(const operation *op)
{
    const size_t bytes = (size_t)(coef_fields(op) * op->coef_stride) * op->kernels->coef_item;
    return (bytes + sizeof(double) - 1) / sizeof(double) * sizeof(double);
}

/* Whether scratch holds the mean of each column, which grad_sums reads where it works on rows. */
static int has_column_mean(const operation *op)
{
    return !op->g.planes && op->fields && op->mean;
}

/* The same for invstd, which grad_sums reads in chains alone. */
static int has_column_invstd(const operation *op)
{
    return has_column_mean(op) && op->kernels->chained;
}

/* Bytes of scratch for this operation. They are never more than bncore_scratch_doubles returns for its shape: where
 * there is a column_invstd, the coefficients are float, and leave room for it. */
static size_t scratch_bytes(const operation *op)
{
    const int64_t per_column =
        op->g.segments * op->fields + 1 + has_column_mean(op) + has_column_invstd(op);
    return coef_bytes(op) + (size_t)(bncore_columns(&op->g) * per_column) * sizeof(double);
}

static void lay_out_scratch(operation *op, void *scratch)
{
    const int64_t all = bncore_columns(&op->g);
    op->coef = scratch;
    op->invstd = (double *)((char *)scratch + coef_bytes(op));
    op->column_mean = has_column_mean(op) ? op->invstd + all : NULL;
    op->column_invstd = has_column_invstd(op) ? op->invstd + 2 * all : NULL;
    op->partial = op->invstd + all * (1 + has_column_mean(op) + has_column_invstd(op));
}

bncore_status bncore_run(operation *op)
{
    double local[LOCAL_SCRATCH / sizeof(double)];
    const bncore_problem *p = op->problem;
    if (p->scratch && p->scratch_size < (size_t)bncore_scratch_doubles(&op->g) * sizeof(double))
        return BNCORE_ERROR_SCRATCH;
    op->coef_stride = bncore_columns(&op->g) + COEF_APART;
    const size_t need = scratch_bytes(op);
    void *scratch = p->scratch ? p->scratch : need <= sizeof local ? local : malloc(need);
    if (!scratch) return BNCORE_ERROR_MEMORY;
    const bncore_float_env own = bncore_float_env_enter();
    lay_out_scratch(op, scratch);
    bncore_schedule(op);
    if (op->copy_of_dy) copy_dy(op);
    if (op->var) op->kernels->inverse_std(op->invstd, op->g.channels, op->var, 1.0, p->eps);
    if (op->g.planes)
        run_planes(op);
    else
        run_rows(op);
    bncore_float_env_leave(&own);
    if (scratch != p->scratch && scratch != (void *)local) free(scratch);
    return BNCORE_OK;
}
