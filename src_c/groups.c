/* Group norm, of which instance norm and layer norm are cases: every group of channels of every sample has its own
 * statistics (Wu & He, "Group Normalization", 2018). The call is divided into units: some groups of one sample, whose
 * values stay in cache from one operation to the next. Within a unit the operations are those of batch norm. */
#include <stdlib.h>

#include "float_env.h"
#include "parallel_for.h"
#include "parts.h"

enum {
    UNIT_VALUES = 64 * 1024, /* of a unit, at most, where groups are smaller */
    UNITS_PER_THREAD = 4
};

typedef struct division {
    const bncore_group_call *call;
    int64_t each, blocks; /* groups of a unit, units of a sample */
    int32_t threads;      /* of the operations within a unit */
    bncore_streaming streaming;
    double *scratch; /* [array][sample][channel] */
    _Atomic int status;
} division;

/* A unit: `groups` groups of one sample, from its group `first` on. */
typedef struct unit {
    bncore_problem problem; /* of its channels */
    int64_t groups, channels;
    int64_t result;  /* the place of its first group among all groups of the call */
    int64_t channel; /* and of its first channel among all channels of all samples */
    int64_t offset;  /* and of its first value */
    const double *weight, *bias;
} unit;

static bncore_problem problem_of(const division *d, int64_t outer, int64_t channels, int64_t inner)
{
    bncore_problem p = *d->call->problem;
    p.outer = outer;
    p.channels = channels;
    p.inner = inner;
    p.n_threads = d->threads;
    p.scratch = NULL;
    return p;
}

static unit unit_at(const division *d, int64_t i)
{
    const bncore_group_call *c = d->call;
    const bncore_problem *p = c->problem;
    const int64_t sample = i / d->blocks, first = i % d->blocks * d->each;
    const int64_t groups = bncore_min(d->each, c->groups - first), channels = groups * c->wide;
    const int64_t channel = sample * p->channels + first * c->wide;
    return (unit){.problem = problem_of(d, p->outer, channels, p->inner),
                  .groups = groups,
                  .channels = channels,
                  .result = sample * c->groups + first,
                  .channel = channel,
                  .offset = channel * p->outer * p->inner,
                  .weight = bncore_from_channel(c->weight, first * c->wide),
                  .bias = bncore_from_channel(c->bias, first * c->wide)};
}

/* The place in scratch of one of its arrays, for this unit. */
static double *scratch_at(const division *d, const unit *u, int array)
{
    const bncore_group_call *c = d->call;
    return d->scratch + array * c->samples * c->problem->channels + u->channel;
}

static void *at(const operation *whole, const void *array, const unit *u)
{
    return (char *)array + (size_t)u->offset * whole->item;
}

/* Give each channel the value of its group, divided by `divisor`. */
static void spread(double *to, const double *from, int64_t groups, int64_t wide, double divisor)
{
    for (int64_t g = 0; g < groups; g++)
        for (int64_t c = 0; c < wide; c++) to[g * wide + c] = from[g] / divisor;
}

/* Give each channel the sum over its group of weight * sum, in the order of the channels. */
static void add_up(double *to, const double *sums, const double *weight, int64_t groups,
                   int64_t wide)
{
    for (int64_t first = 0; first < groups * wide; first += wide) {
        double total = 0.0;
        for (int64_t c = first; c < first + wide; c++)
            total += weight ? sums[c] * weight[c] : sums[c];
        for (int64_t c = first; c < first + wide; c++) to[c] = total;
    }
}

static void keep(division *d, bncore_status status)
{
    if (status != BNCORE_OK) d->status = status;
}

/* The moments of a unit's groups. Where a group is one run of memory, its values are summed as one. */
static bncore_status unit_moments(const division *d, const unit *u, double *mean, double *m2,
                                  const void *x)
{
    const bncore_group_call *c = d->call;
    if (u->problem.outer > 1) return bncore_group_moments(&u->problem, c->wide, mean, m2, x);
    const bncore_problem runs = problem_of(d, 1, u->groups, c->wide * u->problem.inner);
    return bncore_moments(&runs, mean, m2, x);
}

static void forward_unit(void *arg, int64_t i)
{
    division *d = arg;
    const bncore_group_call *c = d->call;
    const unit u = unit_at(d, i);
    const operation *whole = &c->whole;
    const void *x = at(whole, whole->arrays.x, &u);
    double *const mean = c->results[0] + u.result, *const m2 = c->results[1] + u.result;
    double *const means = scratch_at(d, &u, 0), *const vars = scratch_at(d, &u, 1);
    bncore_status status = unit_moments(d, &u, mean, m2, x);
    spread(means, mean, u.groups, c->wide, 1.0);
    spread(vars, m2, u.groups, c->wide, (double)(u.problem.outer * c->wide * u.problem.inner));
    if (status == BNCORE_OK)
        status = bncore_normalize_part(&u.problem, d->streaming, at(whole, whole->arrays.dst, &u),
                                       x, means, vars, u.weight, u.bias);
    keep(d, status);
}

static void backward_unit(void *arg, int64_t i)
{
    division *d = arg;
    const bncore_group_call *c = d->call;
    const unit u = unit_at(d, i);
    const operation *whole = &c->whole;
    const void *x = at(whole, whole->arrays.x, &u), *dy = at(whole, whole->arrays.dy, &u);
    double *arrays[6]; /* sum_dy, sum_dy_xhat; mean, var and both sums of the group */
    for (int a = 0; a < 6; a++) arrays[a] = scratch_at(d, &u, a);
    spread(arrays[2], c->mean + u.result, u.groups, c->wide, 1.0);
    spread(arrays[3], c->var + u.result, u.groups, c->wide, 1.0);
    bncore_status status =
        bncore_grad_sums(&u.problem, arrays[0], arrays[1], dy, x, arrays[2], arrays[3]);
    for (int a = 0; a < 2; a++) add_up(arrays[4 + a], arrays[a], u.weight, u.groups, c->wide);
    if (status == BNCORE_OK)
        status =
            bncore_grad_group(&u.problem, d->streaming, c->wide, at(whole, whole->arrays.dst, &u),
                              dy, x, arrays[2], arrays[3], arrays[4], arrays[5], u.weight);
    keep(d, status);
}

/* Divide the call into units. Where there are too few of them for the threads, each takes all threads in turn. */
static division divide(const bncore_group_call *c)
{
    const bncore_problem *p = c->problem;
    const int64_t group = c->wide * p->inner, wanted = UNITS_PER_THREAD * c->whole.threads;
    division d = {.call = c,
                  .each = c->groups,
                  .threads = 1,
                  .streaming = c->whole.arrays.stream ? STREAMED : KEPT};
    if (p->outer == 1) {
        d.each = bncore_min(bncore_max(UNIT_VALUES / group, 1), c->groups);
        if (c->samples * bncore_ceil_div(c->groups, d.each) < wanted)
            d.each = bncore_max(c->samples * c->groups / wanted, 1);
    }
    d.blocks = bncore_ceil_div(c->groups, d.each);
    const int64_t units = c->samples * d.blocks;
    if (units >= wanted || units % c->whole.threads == 0) return d;
    d.each = c->groups;
    d.blocks = 1;
    d.threads = c->whole.threads;
    return d;
}

/* Run all units, with scratch of so many arrays. */
static bncore_status run_units(const bncore_group_call *c, int arrays,
                               void (*run)(void *arg, int64_t i), division *d)
{
    *d = divide(c);
    d->scratch = malloc((size_t)(arrays * c->samples * c->problem->channels) * sizeof(double));
    if (!d->scratch) return BNCORE_ERROR_MEMORY;
    const bncore_float_env own = bncore_float_env_enter();
    const int64_t units = c->samples * d->blocks;
    bncore_parallel_for(c->problem->executor, units, d->threads > 1 ? 1 : c->whole.threads, 0, run,
                        d);
    bncore_float_env_leave(&own);
    return (bncore_status)d->status;
}

/* Check a call, and schedule it as one operation on all samples. */
static bncore_status start(bncore_group_call *c, const bncore_problem *p, int64_t samples,
                           int64_t groups, void *dst, const void *dy, const void *x)
{
    if (!p) return BNCORE_ERROR_NULL;
    bncore_geometry g;
    bncore_status status = bncore_problem_open(p, &g);
    if (status != BNCORE_OK) return status;
    if (p->fusion || p->weights) return BNCORE_ERROR_STRUCT;
    if (samples < 0 || groups < 1 || p->channels % groups) return BNCORE_ERROR_SIZE;
    if (p->outer && samples > INT64_MAX / p->outer) return BNCORE_ERROR_SIZE;
    *c = (bncore_group_call){
        .problem = p, .samples = samples, .groups = groups, .wide = p->channels / groups};
    bncore_problem all = *p;
    all.outer *= samples;
    status = bncore_start(&c->whole, &all, dst, dy, x);
    if (status != BNCORE_OK) return status;
    status = bncore_check_data(&c->whole, dy ? 3 : 2, (const void *[]){dst, x, dy});
    if (status != BNCORE_OK) return status;
    if (c->whole.g.n * c->whole.g.channels > 0) bncore_schedule(&c->whole);
    c->whole.problem = p;
    return BNCORE_OK;
}

/* Whether the call has values; if not, its results are set. */
static int is_empty(const bncore_group_call *c, int64_t results, double first)
{
    if (c->whole.g.n * c->whole.g.channels > 0) return 0;
    for (int64_t i = 0; i < results; i++) {
        c->results[0][i] = first;
        c->results[1][i] = 0.0;
    }
    return 1;
}

/* Add the sums of all samples, one after the other. It is not inlined, so that no addition leaves the floating-point
 * environment that it is called in. */
static __attribute__((noinline)) void add_samples(double *to, const double *sums,
                                                  const bncore_group_call *c)
{
    const int64_t channels = c->problem->channels;
    for (int64_t i = 0; i < channels; i++) to[i] = 0.0;
    for (int64_t s = 0; s < c->samples; s++, sums += channels)
        for (int64_t i = 0; i < channels; i++) to[i] += sums[i];
}

static int one_value(const bncore_problem *p)
{
    return p->outer == 1 && p->inner == 1;
}

bncore_status bncore_group_norm(const bncore_problem *p, int64_t samples, int64_t groups, void *y,
                                double *mean, double *m2, const void *x, const double *weight,
                                const double *bias)
{
    bncore_group_call c;
    division d;
    bncore_status status = start(&c, p, samples, groups, y, NULL, x);
    if (status == BNCORE_OK && samples && (!mean || !m2)) status = BNCORE_ERROR_NULL;
    if (status == BNCORE_OK)
        status = bncore_check_optional(4, (const void *[]){mean, m2, weight, bias});
    if (status != BNCORE_OK) return status;
    c.results[0] = mean, c.results[1] = m2;
    c.weight = weight, c.bias = bias;
    if (is_empty(&c, samples * groups, NAN)) return BNCORE_OK;
    if (one_value(p)) return bncore_lines_forward(&c);
    status = run_units(&c, 2, forward_unit, &d);
    free(d.scratch);
    return status;
}

bncore_status bncore_group_norm_backward(const bncore_problem *p, int64_t samples, int64_t groups,
                                         void *dx, double *sum_dy, double *sum_dy_xhat,
                                         const void *dy, const void *x, const double *mean,
                                         const double *var, const double *weight)
{
    bncore_group_call c;
    division d;
    if (!dy && p && samples > 0 && p->outer > 0 && p->channels > 0 && p->inner > 0)
        return BNCORE_ERROR_NULL;
    bncore_status status = start(&c, p, samples, groups, dx, dy, x);
    if (status == BNCORE_OK && samples && (!mean || !var)) status = BNCORE_ERROR_NULL;
    if (status == BNCORE_OK)
        status = bncore_check_channels(&c.whole, 2, (const void *[]){sum_dy, sum_dy_xhat});
    if (status == BNCORE_OK) status = bncore_check_optional(3, (const void *[]){mean, var, weight});
    if (status != BNCORE_OK) return status;
    c.results[0] = sum_dy, c.results[1] = sum_dy_xhat;
    c.mean = mean, c.var = var, c.weight = weight;
    if (is_empty(&c, p->channels, 0.0)) return BNCORE_OK;
    if (one_value(p)) return bncore_lines_backward(&c);
    status = run_units(&c, 6, backward_unit, &d);
    if (status == BNCORE_OK) {
        const bncore_float_env own = bncore_float_env_enter();
        for (int r = 0; r < 2; r++)
            add_samples(c.results[r], d.scratch + r * samples * p->channels, &c);
        bncore_float_env_leave(&own);
    }
    free(d.scratch);
    return status;
}
