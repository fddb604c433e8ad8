#include "run.h"

#include <stdlib.h>
#include <string.h>

#include "float_env.h"
#include "parallel_for.h"

enum {
    /* Bytes on the stack: small problems allocate nothing, those of up to 300 channels of float32 among them. With
     * the STRIP of kernels.c it is most of the stack that bncore.h promises to be enough. */
    LOCAL_SCRATCH = 18 * 1024,
    COPY_BYTES = 1 << 18, /* per task of a copy */
    /* More columns between two fields of the coefficients than there are: REPEATED, and so that fields of 1024 columns
     * do not meet in one set of the first-level cache. */
    COEF_APART = 80
};

static int64_t columns(const bncore_geometry *g)
{
    return g->planes ? g->channels : g->cols;
}

int64_t bncore_scratch_doubles(const bncore_geometry *g)
{
    const int64_t per_column = g->segments * MAX_FIELDS + COEF_FIELDS + 2;
    return columns(g) * per_column + COEF_FIELDS * COEF_APART;
}

static const void *coef_at(const job *j, int64_t column)
{
    return (const char *)j->coef + (size_t)column * j->kernels->coef_item;
}

static const void *moved(const void *array, size_t bytes)
{
    return array ? (const char *)array + bytes : NULL;
}

static bncore_arrays arrays_at(const job *j, int64_t offset)
{
    const size_t bytes = (size_t)offset * j->item;
    bncore_arrays a = j->arrays;
    a.dst = (void *)moved(a.dst, bytes);
    a.dy = moved(a.dy, bytes);
    a.x = moved(a.x, bytes);
    a.residual = moved(a.residual, bytes);
    a.dresidual = (void *)moved(a.dresidual, bytes);
    return a;
}

/* The first pass masks the gradient, where it is to. */
static bncore_arrays arrays_before(const job *j, int64_t offset, int64_t column)
{
    bncore_arrays a = arrays_at(j, offset);
    a.mask = coef_at(j, column);
    a.mask_stride = j->coef_stride;
    return a;
}

/* The second pass reads the masked gradient where the first one stored it. */
static bncore_arrays arrays_after(const job *j, int64_t offset)
{
    bncore_arrays a = arrays_at(j, offset);
    if (a.dresidual) a.dy = a.dresidual;
    return a;
}

static bncore_partial partial_at(const job *j, int64_t segment)
{
    const int64_t all = columns(&j->g);
    return (bncore_partial){j->partial + segment * j->fields * all, all};
}

/* ---- planes ---- */

static bncore_planes planes_tile(const job *j, int64_t group)
{
    const int64_t first = group * j->group;
    return (bncore_planes){.channels = bncore_min(j->group, j->g.channels - first),
                           .inner = j->g.inner,
                           .image_stride = j->g.channels * j->g.inner,
                           .begin = 0,
                           .end = j->g.n};
}

static bncore_planes planes_segment(const job *j, int64_t group, int64_t segment)
{
    bncore_planes t = planes_tile(j, group);
    t.begin = segment * j->g.segment;
    t.end = bncore_min(t.begin + j->g.segment, j->g.n);
    return t;
}

static void reduce_segment(const job *j, int64_t group, int64_t segment, bncore_partial partial)
{
    const bncore_planes t = planes_segment(j, group, segment);
    const int64_t first = group * j->group;
    const bncore_arrays a = arrays_before(j, first * j->g.inner, first);
    j->reduce_planes(partial, &a, j->mean ? j->mean + first : NULL, &t);
}

static void apply_tile(const job *j, int64_t group, const bncore_planes *t)
{
    const int64_t first = group * j->group;
    const bncore_arrays a = arrays_after(j, first * j->g.inner);
    j->apply_planes(&a, coef_at(j, first), j->coef_stride, t);
}

/* A group of channels from x to y: the second pass finds in cache what the first one read. */
static void task_group(void *arg, int64_t group)
{
    const job *j = arg;
    const bncore_planes t = planes_tile(j, group);
    const int64_t first = group * j->group;
    double first_fields[BNCORE_GROUP * MAX_FIELDS], more_fields[BNCORE_GROUP * MAX_FIELDS];
    const bncore_partial partial = {first_fields, BNCORE_GROUP}, more = {more_fields, BNCORE_GROUP};
    if (j->set_mask) j->set_mask(j, first, t.channels);
    reduce_segment(j, group, 0, partial);
    for (int64_t s = 1; s < j->g.segments; s++) {
        reduce_segment(j, group, s, more);
        j->merge(partial, more.at, t.channels, 1);
    }
    j->finish(j, first, t.channels, partial, 1);
    if (!j->apply_planes) return;
    j->set_coefs(j, first, t.channels);
    apply_tile(j, group, &t);
}

static void task_reduce_planes(void *arg, int64_t i)
{
    const job *j = arg;
    const int64_t group = i / j->g.segments, segment = i % j->g.segments;
    const bncore_partial partial = partial_at(j, segment);
    reduce_segment(j, group, segment,
                   (bncore_partial){partial.at + group * j->group, partial.stride});
    if (!j->at_once) return;
    const bncore_planes t = planes_segment(j, group, segment);
    apply_tile(j, group, &t);
}

/* Whole images where there are enough of them, so that runs of memory stay whole. */
static void task_apply_planes(void *arg, int64_t i)
{
    const job *j = arg;
    const bncore_geometry *g = &j->g;
    const int64_t group = i / g->segments, segment = i % g->segments;
    bncore_planes t = planes_segment(j, group, segment);
    if (g->outer >= g->segments) {
        t.begin = segment * g->outer / g->segments * g->inner;
        t.end = (segment + 1) * g->outer / g->segments * g->inner;
    }
    apply_tile(j, group, &t);
}

/* ---- rows ---- */

static void reduce_part(const job *j, bncore_partial partial, int64_t begin, int64_t first,
                        const bncore_rows *t)
{
    partial.at += first;
    if (t->rows == 0) {
        for (int f = 0; f < j->fields; f++)
            for (int64_t c = 0; c < t->cols; c++) partial.at[f * partial.stride + c] = 0.0;
        return;
    }
    const bncore_arrays a = arrays_before(j, begin * j->g.cols + first, first);
    j->reduce_rows(partial, &a, j->column_mean ? j->column_mean + first : NULL, t);
}

/* Rows begin .. end - 1 of columns first .. first + cols - 1. The columns that reach into a short last row have one
 * row more than the others. */
static void reduce_columns(const job *j, bncore_partial partial, int64_t begin, int64_t end,
                           int64_t first, int64_t cols)
{
    const bncore_geometry *g = &j->g;
    const int short_row = end == g->rows && g->short_cols > 0;
    const int64_t longer = bncore_min(bncore_max(g->short_cols - first, 0), cols);
    const bncore_rows all = {end - begin, short_row ? longer : cols, g->cols};
    const bncore_rows shorter = {end - begin - 1, cols - longer, g->cols};
    if (all.cols > 0) reduce_part(j, partial, begin, first, &all);
    if (short_row && shorter.cols > 0) reduce_part(j, partial, begin, first + longer, &shorter);
}

/* Whole rows begin .. end - 1, and the short one apart. */
static void apply_whole_rows(const job *j, int64_t begin, int64_t end)
{
    const bncore_geometry *g = &j->g;
    const int short_row = end == g->rows && g->short_cols > 0;
    const bncore_rows whole = {end - begin - short_row, g->cols, g->cols};
    const bncore_rows rest = {1, g->short_cols, g->short_cols};
    bncore_arrays a = arrays_after(j, begin * g->cols);
    if (whole.rows > 0) j->apply_rows(&a, j->coef, j->coef_stride, &whole);
    a = arrays_after(j, (end - 1) * g->cols);
    if (short_row) j->apply_rows(&a, j->coef, j->coef_stride, &rest);
}

static void task_reduce_rows(void *arg, int64_t i)
{
    const job *j = arg;
    const bncore_geometry *g = &j->g;
    const int64_t segment = i / j->strips, first = i % j->strips * j->strip;
    const int64_t begin = segment * g->segment, end = bncore_min(begin + g->segment, g->rows);
    reduce_columns(j, partial_at(j, segment), begin, end, first,
                   bncore_min(j->strip, g->cols - first));
    if (j->at_once) apply_whole_rows(j, begin, end);
}

/* After a reduction the last rows first: they were read last and are still in cache. */
static void task_apply_rows(void *arg, int64_t i)
{
    const job *j = arg;
    const int64_t chunk = j->fields ? j->chunks - 1 - i : i;
    const int64_t begin = chunk * j->chunk, end = bncore_min(begin + j->chunk, j->g.rows);
    apply_whole_rows(j, begin, end);
}

/* ---- both ---- */

/* Segments in order onto the first, then a channel's columns in order onto its first column. */
static void finish_channels(const job *j)
{
    const bncore_geometry *g = &j->g;
    const int64_t all = columns(g), inner = g->planes ? 1 : g->inner, width = g->channels * inner;
    const bncore_partial total = partial_at(j, 0);
    for (int64_t s = 1; s < g->segments; s++) j->merge(total, partial_at(j, s).at, all, 1);
    for (int64_t i = 1; i < inner * (all / width); i++)
        j->merge(total, total.at + i / inner * width + i % inner, g->channels, inner);
    j->finish(j, 0, g->channels, total, inner);
}

/* Each of `n` values of `item` bytes, `inner` times, in place. */
static inline void repeat_each(char *to, int64_t n, int64_t inner, size_t item)
{
    for (int64_t c = n - 1; c >= 0; c--) {
        char value[sizeof(double)];
        memcpy(value, to + (size_t)c * item, item);
        for (int64_t i = 0; i < inner; i++)
            memcpy(to + (size_t)(c * inner + i) * item, value, item);
    }
}

/* Per channel to per column, in place. A constant size makes each copy one instruction. */
static void spread_over_columns(const bncore_geometry *g, void *values, size_t item)
{
    const int64_t inner = g->planes ? 1 : g->inner, width = g->channels * inner;
    if (inner > 1 && item == sizeof(float))
        repeat_each(values, g->channels, inner, sizeof(float));
    else if (inner > 1)
        repeat_each(values, g->channels, inner, sizeof(double));
    for (int64_t fold = width; fold < columns(g); fold += width)
        memcpy((char *)values + (size_t)fold * item, values, (size_t)width * item);
}

/* How many fields of coefficients the call has. */
static int coef_fields(const job *j)
{
    return j->set_mask ? COEF_FIELDS : j->set_coefs ? MAX_FIELDS : 0;
}

/* whole: else the mask alone, for the first pass. */
static void set_coefs(const job *j, int whole)
{
    if (whole) j->set_coefs(j, 0, j->g.channels);
    if (j->set_mask) j->set_mask(j, 0, j->g.channels);
    if (j->g.planes) return;
    const size_t item = j->kernels->coef_item;
    const size_t repeated = (size_t)bncore_min(j->g.cols, REPEATED) * item;
    for (int f = 0; f < coef_fields(j); f++) {
        char *field = (char *)j->coef + (size_t)(f * j->coef_stride) * item;
        spread_over_columns(&j->g, field, item);
        memcpy(field + (size_t)j->g.cols * item, field, repeated);
    }
}

static void run_planes(job *j)
{
    const bncore_executor *executor = j->problem->executor;
    const int64_t tasks = j->groups * j->g.segments;
    if (j->whole_groups) {
        bncore_parallel_for(executor, j->groups, j->threads, 0, task_group, j);
        return;
    }
    if (j->at_once || j->set_mask) set_coefs(j, j->at_once);
    if (j->fields) {
        bncore_parallel_for(executor, tasks, j->threads, 0, task_reduce_planes, j);
        finish_channels(j);
    }
    if (!j->apply_planes || j->at_once) return;
    set_coefs(j, 1);
    bncore_parallel_for(executor, tasks, j->threads, 0, task_apply_planes, j);
}

static void run_rows(job *j)
{
    const bncore_executor *executor = j->problem->executor;
    if (j->at_once || j->set_mask) set_coefs(j, j->at_once);
    if (j->fields) {
        if (j->column_mean) {
            memcpy(j->column_mean, j->mean, (size_t)j->g.channels * sizeof(double));
            spread_over_columns(&j->g, j->column_mean, sizeof(double));
        }
        bncore_parallel_for(executor, j->g.segments * j->strips, j->threads, 0, task_reduce_rows,
                            j);
        finish_channels(j);
    }
    if (!j->apply_rows || j->at_once) return;
    set_coefs(j, 1);
    bncore_parallel_for(executor, j->chunks, j->threads, j->fields > 0, task_apply_rows, j);
}

/* A stretch of dy as it is. */
static void task_copy(void *arg, int64_t i)
{
    const job *j = arg;
    const size_t bytes = (size_t)(j->g.n * j->g.channels) * j->item;
    const size_t begin = (size_t)i * COPY_BYTES;
    memcpy((char *)j->copy_of_dy + begin, (const char *)j->arrays.dy + begin,
           bytes - begin < COPY_BYTES ? bytes - begin : COPY_BYTES);
}

static void copy_dy(job *j)
{
    const int64_t bytes = j->g.n * j->g.channels * (int64_t)j->item;
    bncore_parallel_for(j->problem->executor, bncore_ceil_div(bytes, COPY_BYTES), j->threads, 0,
                        task_copy, j);
}

/* Bytes of the call's coefficients, of which doubles follow. */
static size_t coef_bytes(const job *j)
{
    const size_t bytes = (size_t)(coef_fields(j) * j->coef_stride) * j->kernels->coef_item;
    return (bytes + sizeof(double) - 1) / sizeof(double) * sizeof(double);
}

/* Rows: grad_sums reads the mean of each column. */
static int has_column_mean(const job *j)
{
    return !j->g.planes && j->fields && j->mean;
}

/* Bytes of scratch for this call: no more than bncore_scratch_doubles says for any call on its shape. */
static size_t scratch_bytes(const job *j)
{
    const int64_t per_column = j->g.segments * j->fields + 1 + has_column_mean(j);
    return coef_bytes(j) + (size_t)(columns(&j->g) * per_column) * sizeof(double);
}

static void lay_out_scratch(job *j, void *scratch)
{
    const int64_t all = columns(&j->g);
    j->coef = scratch;
    j->invstd = (double *)((char *)scratch + coef_bytes(j));
    j->column_mean = has_column_mean(j) ? j->invstd + all : NULL;
    j->partial = j->invstd + all + (j->column_mean ? all : 0);
}

bncore_status bncore_job_run(job *j)
{
    double local[LOCAL_SCRATCH / sizeof(double)];
    const bncore_problem *p = j->problem;
    if (p->scratch && p->scratch_size < (size_t)bncore_scratch_doubles(&j->g) * sizeof(double))
        return BNCORE_ERROR_SCRATCH;
    j->coef_stride = columns(&j->g) + COEF_APART;
    const size_t need = scratch_bytes(j);
    void *scratch = p->scratch ? p->scratch : need <= sizeof local ? local : malloc(need);
    if (!scratch) return BNCORE_ERROR_MEMORY;
    const bncore_float_env own = bncore_float_env_enter();
    lay_out_scratch(j, scratch);
    bncore_job_cut(j);
    if (j->copy_of_dy) copy_dy(j);
    if (j->var) j->kernels->inverse_std(j->invstd, j->g.channels, j->var, 1.0, p->eps);
    if (j->g.planes)
        run_planes(j);
    else
        run_rows(j);
    bncore_float_env_leave(&own);
    if (scratch != p->scratch && scratch != (void *)local) free(scratch);
    return BNCORE_OK;
}
