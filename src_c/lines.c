/* Group norm of groups of one position, such as layer norm over a last axis: a group is a line of neighbouring values, and
 * each of them has a weight of its own. kernels/lines_tmpl.c has the loops.
 *
 * A task takes some lines through all steps, so that they stay in cache. Where lines are too few for the threads, or
 * shorter than a vector, each step is a parallel loop of its own: the last one over columns. */
#include <stdlib.h>
#include <string.h>

#include "float_env.h"
#include "parallel_for.h"
#include "parts.h"

enum {
    SOME = BNCORE_GROUP,     /* lines whose coefficients a task holds, at most */
    TASK_VALUES = 64 * 1024, /* of a task, about */
    NEAREST = 12 * 1024,     /* bytes of each array in the first-level cache at once */
    TASKS_PER_THREAD = 4,
    TASK_COLUMNS = 8 * 1024, /* of a task over columns */
    LINE_DOUBLES = 8         /* of a line of the caches */
};

typedef struct lines {
    const bncore_group_call *call;
    const bncore_kernel_set *kernels;
    bncore_geometry g; /* of (1, all, width) */
    int64_t all, width, channels;
    int64_t each, some; /* forward: lines of a task; backward: samples of a segment, and at once */
    void *memory;
    double *more;
    void *weight, *bias; /* [channel], in the type of the arithmetic */
    int plain;           /* there are neither, and y is xhat */
    double *columns;     /* backward: [segment][2][channel], the sums of dy and of dy * xhat */
    double *invstd;      /* apart: [line], and the coefficients and sums of all lines */
    void *coef;
    double *sums[2];
} lines;

/* ---- steps ---- */

/* n lines, `step` apart, from line `first` on; their columns from `column` on. */
typedef struct some_lines {
    int64_t first, step, n, column, cols;
} some_lines;

static void *coef_at(const lines *l, const void *coef, int64_t i)
{
    return (char *)coef + (size_t)i * l->kernels->coef_item;
}

static bncore_arrays arrays_at(const lines *l, const some_lines *t)
{
    bncore_arrays a = l->call->whole.arrays;
    const size_t bytes = (size_t)(t->first * l->width + t->column) * l->kernels->item;
    a.x = (const char *)a.x + bytes;
    if (a.dy) a.dy = (const char *)a.dy + bytes;
    a.dst = (char *)a.dst + bytes;
    return a;
}

/* The place of the first line's parameters and column sums. */
static int64_t parameter_at(const lines *l, const some_lines *t)
{
    return t->first % l->call->groups * l->width + t->column;
}

/* Set the coefficients of normalize of n lines, from their mean and invstd. */
static void set_coefs(const lines *l, void *coef, int64_t stride, int64_t n, const double *mean,
                      const double *invstd)
{
    l->kernels->normalize_coefs(coef, stride, n, mean, invstd, NULL, NULL);
}

/* Set those of grad_input behind them. */
static void set_slopes(const lines *l, void *coef, int64_t stride, int64_t n, const double *mean,
                       const double *invstd, const double *sum_g, const double *sum_g_xhat)
{
    l->kernels->grad_input_coefs(coef_at(l, coef, NORMALIZE_FIELDS * stride), stride, n, mean,
                                 invstd, NULL, sum_g, sum_g_xhat, NULL, (double)l->width);
}

static void normalize(const lines *l, const some_lines *t, const void *coef, int64_t stride)
{
    const bncore_arrays a = arrays_at(l, t);
    if (l->plain) {
        bncore_arrays from_start = arrays_at(l, &(some_lines){.first = t->first});
        from_start.stream = a.stream;
        const bncore_planes p = {
            .channels = t->n, .inner = l->width, .begin = t->column, .end = t->column + t->cols};
        l->kernels->normalize_planes[0](&from_start, coef, stride, &p);
        return;
    }
    const int64_t at_once = l->call->groups == 1 ? t->n : 1;
    for (int64_t i = 0; i < t->n; i += at_once) {
        const some_lines one = {t->first + i, 1, at_once, t->column, t->cols};
        const bncore_arrays here = arrays_at(l, &one);
        const int64_t p = parameter_at(l, &one);
        l->kernels->line_normalize(&here, coef_at(l, coef, i), stride, coef_at(l, l->weight, p),
                                   coef_at(l, l->bias, p),
                                   &(bncore_rows){at_once, t->cols, l->width});
    }
}

static void sum_lines(const lines *l, const some_lines *t, const void *coef, int64_t stride,
                      double *sum_g, double *sum_g_xhat)
{
    const bncore_arrays a = arrays_at(l, t);
    const bncore_rows rows = {t->n, t->cols, t->step * l->width};
    l->kernels->line_sums(sum_g, sum_g_xhat, &a, coef, stride,
                          coef_at(l, l->weight, parameter_at(l, t)), &rows);
}

static void write_dx(const lines *l, const some_lines *t, const void *coef, int64_t stride,
                     double *columns)
{
    const bncore_arrays a = arrays_at(l, t);
    const bncore_rows rows = {t->n, t->cols, t->step * l->width};
    const int64_t at = parameter_at(l, t);
    l->kernels->line_grad_input(&a, coef, stride, coef_at(l, l->weight, at),
                                columns + l->channels + at, columns + at, &rows);
}

/* ---- forward ---- */

/* The moments of up to SOME neighbouring lines, which are planes. */
static void line_moments(const lines *l, int64_t first, int64_t n)
{
    const bncore_group_call *c = l->call;
    const bncore_arrays a = arrays_at(l, &(some_lines){.first = first});
    if (l->kernels->line_moments && l->width <= BNCORE_BLOCK) {
        l->kernels->line_moments(c->results[0] + first, c->results[1] + first, &a,
                                 &(bncore_rows){n, l->width, l->width});
        return;
    }
    double fields[2][MOMENTS_FIELDS * SOME];
    const bncore_partial total = {fields[0], SOME}, more = {fields[1], SOME};
    for (int64_t s = 0; s < l->g.segments; s++) {
        const int64_t begin = s * l->g.segment;
        const bncore_planes p = {.channels = n,
                                 .inner = l->width,
                                 .image_stride = n * l->width, /* where it reads ahead */
                                 .begin = begin,
                                 .end = bncore_min(begin + l->g.segment, l->width)};
        l->kernels->moments_planes(s ? more : total, &a, NULL, &p);
        if (s) l->kernels->merge_moments(total, more.at, n, 1);
    }
    for (int64_t i = 0; i < n; i++) {
        c->results[0][first + i] = total.at[SOME + i] + total.at[2 * SOME + i];
        c->results[1][first + i] = total.at[3 * SOME + i];
    }
}

static void forward_lines(void *arg, int64_t task)
{
    const lines *l = arg;
    const bncore_group_call *c = l->call;
    const int64_t end = bncore_min((task + 1) * l->each, l->all);
    const int64_t some = bncore_min(2 * l->some, SOME); /* there is no dy to keep */
    for (int64_t first = task * l->each; first < end; first += some) {
        double invstd[SOME], coef[NORMALIZE_FIELDS * SOME];
        const int64_t n = bncore_min(end - first, some);
        line_moments(l, first, n);
        l->kernels->inverse_std(invstd, n, c->results[1] + first, (double)l->width,
                                c->problem->eps);
        set_coefs(l, coef, SOME, n, c->results[0] + first, invstd);
        normalize(l, &(some_lines){first, 1, n, 0, l->width}, coef, SOME);
    }
}

static some_lines columns_of(const lines *l, int64_t task)
{
    const int64_t column = task * TASK_COLUMNS;
    return (some_lines){0, 1, l->all, column, bncore_min(TASK_COLUMNS, l->width - column)};
}

static void forward_columns(void *arg, int64_t task)
{
    const lines *l = arg;
    const some_lines t = columns_of(l, task);
    normalize(l, &t, l->coef, l->all);
}

/* ---- backward ---- */

/* The mean and invstd of some lines, and their coefficients of normalize. */
static void take_statistics(const lines *l, const some_lines *t, double *mean, double *invstd,
                            void *coef, int64_t stride)
{
    double var[SOME];
    for (int64_t i = 0; i < t->n; i++) {
        mean[i] = l->call->mean[t->first + i * t->step];
        var[i] = l->call->var[t->first + i * t->step];
    }
    l->kernels->inverse_std(invstd, t->n, var, 1.0, l->call->problem->eps);
    set_coefs(l, coef, stride, t->n, mean, invstd);
}

static void backward_segment(void *arg, int64_t segment)
{
    const lines *l = arg;
    const bncore_group_call *c = l->call;
    const int64_t end = bncore_min((segment + 1) * l->each, c->samples);
    double *columns = l->columns + segment * 2 * l->channels;
    for (int64_t first = segment * l->each; first < end; first += l->some)
        for (int64_t g = 0; g < c->groups; g++) {
            double mean[SOME], invstd[SOME], sums[2][SOME], coef[LINE_FIELDS * SOME];
            const some_lines t = {first * c->groups + g, c->groups,
                                  bncore_min(end - first, l->some), 0, l->width};
            take_statistics(l, &t, mean, invstd, coef, SOME);
            sum_lines(l, &t, coef, SOME, sums[0], sums[1]);
            set_slopes(l, coef, SOME, t.n, mean, invstd, sums[0], sums[1]);
            write_dx(l, &t, coef, SOME, columns);
        }
}

/* The sums and coefficients of one line, where these are computed apart. */
static void backward_line(void *arg, int64_t i)
{
    const lines *l = arg;
    const some_lines t = {i, 1, 1, 0, l->width};
    double mean[SOME], invstd[SOME];
    void *coef = coef_at(l, l->coef, i);
    take_statistics(l, &t, mean, invstd, coef, l->all);
    sum_lines(l, &t, coef, l->all, l->sums[0] + i, l->sums[1] + i);
    set_slopes(l, coef, l->all, 1, mean, invstd, l->sums[0] + i, l->sums[1] + i);
}

static void backward_columns(void *arg, int64_t task)
{
    const lines *l = arg;
    const bncore_group_call *c = l->call;
    const some_lines all = columns_of(l, task);
    for (int64_t first = 0, segment = 0; first < c->samples; first += l->each, segment++)
        for (int64_t s = first; s < bncore_min(first + l->each, c->samples); s += LINE_TILE)
            for (int64_t g = 0; g < c->groups; g++) {
                const int64_t line = s * c->groups + g;
                const int64_t n =
                    bncore_min(bncore_min(first + l->each, c->samples) - s, LINE_TILE);
                const some_lines t = {line, c->groups, n, all.column, all.cols};
                char coef[LINE_FIELDS * LINE_TILE * sizeof(double)];
                const size_t item = l->kernels->coef_item;
                for (int64_t i = 0; i < n; i++)
                    for (int f = 0; f < LINE_FIELDS; f++)
                        memcpy(coef + (size_t)(f * LINE_TILE + i) * item,
                               coef_at(l, l->coef, f * l->all + line + i * c->groups), item);
                write_dx(l, &t, coef, LINE_TILE, l->columns + segment * 2 * l->channels);
            }
}

/* ---- the calls ---- */

/* Whether lines are too few, or too short, for tasks that take lines through all steps. */
static int steps_apart(const lines *l, int64_t tasks)
{
    const int32_t threads = l->call->whole.threads;
    return threads > 1 && tasks < TASKS_PER_THREAD * threads && l->width > TASK_COLUMNS;
}

/* Take memory for parameters, and for `doubles` more, at `more`. Each array begins with a line of the caches. Returns 0 if there
 * is none. */
static int open_lines(lines *l, const bncore_group_call *c, size_t doubles)
{
    const bncore_kernel_set *k = c->whole.kernels;
    const int64_t channels = c->problem->channels;
    const size_t apart = (size_t)bncore_ceil_div(channels, LINE_DOUBLES) * LINE_DOUBLES;
    *l = (lines){.call = c,
                 .kernels = k,
                 .all = c->samples * c->groups,
                 .width = c->wide,
                 .channels = channels,
                 .plain = !c->weight && !c->bias};
    l->g = bncore_partition(1, l->all, l->width);
    const int64_t nearest = NEAREST / (l->width * (int64_t)k->item);
    l->some = bncore_min(bncore_max(nearest / LINE_TILE, 1) * LINE_TILE, SOME);
    l->memory = malloc((2 * apart + doubles + LINE_DOUBLES) * sizeof(double));
    if (!l->memory) return 0;
    const size_t place = (uintptr_t)l->memory / sizeof(double) % LINE_DOUBLES;
    l->weight = (double *)l->memory + (LINE_DOUBLES - place) % LINE_DOUBLES;
    l->bias = (double *)l->weight + apart;
    l->more = (double *)l->bias + apart;
    return 1;
}

/* Convert the parameters, which rounds them. */
static void convert_parameters(const lines *l)
{
    l->kernels->convert(l->weight, l->channels, l->call->weight, 1.0);
    l->kernels->convert(l->bias, l->channels, l->call->bias, 0.0);
}

static bncore_status forward_apart(lines *l)
{
    const bncore_group_call *c = l->call;
    bncore_problem p = *c->problem;
    p.outer = 1, p.channels = l->all, p.inner = l->width, p.scratch = NULL;
    const bncore_status status =
        bncore_moments(&p, c->results[0], c->results[1], c->whole.arrays.x);
    if (status != BNCORE_OK) return status;
    l->invstd = l->more;
    l->coef = l->invstd + l->all;
    l->kernels->inverse_std(l->invstd, l->all, c->results[1], (double)l->width, p.eps);
    set_coefs(l, l->coef, l->all, l->all, c->results[0], l->invstd);
    bncore_parallel_for(p.executor, bncore_ceil_div(l->width, TASK_COLUMNS), c->whole.threads, 0,
                        forward_columns, l);
    return BNCORE_OK;
}

bncore_status bncore_lines_forward(const bncore_group_call *c)
{
    lines l;
    const int64_t all = c->samples * c->groups;
    if (!open_lines(&l, c, (size_t)((1 + NORMALIZE_FIELDS) * all))) return BNCORE_ERROR_MEMORY;
    const bncore_float_env own = bncore_float_env_enter();
    convert_parameters(&l);
    bncore_status status = BNCORE_OK;
    l.each = bncore_max(TASK_VALUES / l.width, 1);
    l.each = bncore_min(l.each, bncore_ceil_div(all, TASKS_PER_THREAD * c->whole.threads));
    const int64_t tasks = bncore_ceil_div(all, l.each);
    if (!l.g.planes || steps_apart(&l, tasks))
        status = forward_apart(&l);
    else
        bncore_parallel_for(c->problem->executor, tasks, c->whole.threads, 0, forward_lines, &l);
    bncore_float_env_leave(&own);
    free(l.memory);
    return status;
}

bncore_status bncore_lines_backward(const bncore_group_call *c)
{
    lines l;
    const int64_t all = c->samples * c->groups, channels = c->problem->channels;
    const int64_t each = bncore_line_segment(c->samples);
    const int64_t segments = bncore_ceil_div(c->samples, each);
    const size_t column_sums = (size_t)(segments * 2 * channels);
    if (!open_lines(&l, c, column_sums + (size_t)((2 + LINE_FIELDS) * all)))
        return BNCORE_ERROR_MEMORY;
    const bncore_float_env own = bncore_float_env_enter();
    convert_parameters(&l);
    const bncore_executor *executor = c->problem->executor;
    l.each = each;
    l.columns = l.more;
    memset(l.columns, 0, column_sums * sizeof(double));
    if (steps_apart(&l, segments)) {
        l.sums[0] = l.columns + column_sums;
        l.sums[1] = l.sums[0] + all;
        l.coef = l.sums[1] + all;
        bncore_parallel_for(executor, all, c->whole.threads, 0, backward_line, &l);
        bncore_parallel_for(executor, bncore_ceil_div(l.width, TASK_COLUMNS), c->whole.threads, 0,
                            backward_columns, &l);
    } else {
        bncore_parallel_for(executor, segments, c->whole.threads, 0, backward_segment, &l);
    }
    for (int r = 0; r < 2; r++)
        for (int64_t i = 0; i < channels; i++) c->results[r][i] = 0.0;
    for (int64_t s = 0; s < segments; s++)
        for (int r = 0; r < 2; r++)
            for (int64_t i = 0; i < channels; i++)
                c->results[r][i] += l.columns[(2 * s + r) * channels + i];
    bncore_float_env_leave(&own);
    free(l.memory);
    return BNCORE_OK;
}
