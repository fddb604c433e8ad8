/* Runs a case on arrays that are surrounded by guarded memory. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

#ifdef _WIN32 /* has another function for this, and its own to free the memory */
#include <malloc.h>
#define aligned_alloc(alignment, size) _aligned_malloc(size, alignment)
#define free_aligned _aligned_free
#else
#define free_aligned free
#endif

#if defined(__SANITIZE_ADDRESS__)
#define WATCHED_BY_COMPILER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WATCHED_BY_COMPILER 1
#endif
#endif
#ifdef WATCHED_BY_COMPILER
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

/* ---- memory ---- */

enum { ZONE = 128, ALIGNMENT = 64, MARK = 0xA5, ARRAYS = 16 };

/* An array with a zone before and behind it that no one may write; where AddressSanitizer is there, no one may read
 * it either. */
typedef struct guarded {
    unsigned char *block, *at;
    size_t bytes;
    const void *copy_of; /* an input, which has to stay as it is; NULL: an output */
} guarded;

/* All arrays of one call. */
typedef struct memory {
    guarded arrays[ARRAYS];
    int count;
    int64_t shift; /* in items of each array */
} memory;

static void watch(guarded *g, size_t total)
{
    ASAN_POISON_MEMORY_REGION(g->block, (size_t)(g->at - g->block));
    ASAN_POISON_MEMORY_REGION(g->at + g->bytes, total - g->bytes - (size_t)(g->at - g->block));
}

/* The outputs hold marks, too, so that damage() can tell whether a call that failed has written to them. */
static void *take(memory *m, size_t bytes, size_t item, const void *copy_of)
{
    const size_t before = ZONE + (size_t)m->shift * item, total = before + bytes + ZONE;
    const size_t whole = (total + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    guarded *g = &m->arrays[m->count++];
    *g = (guarded){.block = aligned_alloc(ALIGNMENT, whole), .bytes = bytes, .copy_of = copy_of};
    if (!g->block) {
        fprintf(stderr, "no memory for %zu bytes\n", whole);
        abort();
    }
    g->at = g->block + before;
    memset(g->block, MARK, whole);
    if (copy_of && bytes) memcpy(g->at, copy_of, bytes);
    watch(g, whole);
    return g->at;
}

static int all_marks(const unsigned char *at, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (at[i] != MARK) return 0;
    return 1;
}

/* Returns what the call wrote that it must not write, or NULL: memory around an array, an input that is not an
 * output, and, if the call failed, any output. */
static const char *damage(const memory *m, const void *dst, const void *dresidual, int failed)
{
    for (int i = 0; i < m->count; i++) {
        const guarded *g = &m->arrays[i];
        const size_t before = (size_t)(g->at - g->block);
        ASAN_UNPOISON_MEMORY_REGION(g->block, before + g->bytes + ZONE);
        if (!all_marks(g->block, before)) return "the call wrote before an array";
        if (!all_marks(g->at + g->bytes, ZONE)) return "the call wrote behind an array";
        if (g->copy_of && (failed || (g->at != dst && g->at != dresidual)) &&
            memcmp(g->at, g->copy_of, g->bytes))
            return "the call changed an input";
        if (!g->copy_of && failed && !all_marks(g->at, g->bytes))
            return "the call failed and had written an output";
    }
    return NULL;
}

static void release(memory *m)
{
    for (int i = 0; i < m->count; i++) free_aligned(m->arrays[i].block);
    m->count = 0;
}

/* ---- hosts ---- */

static void backwards(void *context, int64_t tasks, int32_t threads, void (*task)(void *, int64_t),
                      void *arg)
{
    (void)context, (void)threads;
    for (int64_t i = tasks - 1; i >= 0; i--) task(arg, i);
}

typedef struct loop {
    _Atomic int64_t next;
    int64_t tasks;
    void (*task)(void *, int64_t);
    void *arg;
} loop;

static void *take_tasks(void *argument)
{
    loop *l = argument;
    for (int64_t i; (i = atomic_fetch_add(&l->next, 1)) < l->tasks;) l->task(l->arg, i);
    return NULL;
}

static void on_threads(void *context, int64_t tasks, int32_t threads, void (*task)(void *, int64_t),
                       void *arg)
{
    enum { MOST = 8 };
    (void)context;
    loop l = {.tasks = tasks, .task = task, .arg = arg};
    pthread_t started[MOST];
    int count = 0;
    while (count < threads - 1 && count < MOST &&
           pthread_create(&started[count], NULL, take_tasks, &l) == 0)
        count++;
    take_tasks(&l);
    while (count > 0) pthread_join(started[--count], NULL);
}

static const bncore_executor executors[HOSTS] = {[BACKWARDS] = {backwards, NULL},
                                                 [ON_THREADS] = {on_threads, NULL}};

const bncore_executor *executor_of(host h)
{
    return h == NO_HOST ? NULL : &executors[h];
}

/* ---- a call ---- */

/* The arguments of one call, all of them in watched memory. */
typedef struct arguments {
    bncore_problem problem;
    bncore_fusion fusion;
    bncore_weights weights;
    void *dst, *dresidual;
    const void *x, *dy;
    const double *mean, *var, *weight, *bias, *sum_dy, *sum_dy_xhat, *count;
    double *results[2], *counted;
} arguments;

/* Arrays of x's size, and doubles per channel. */
static void *take_array(const inputs *in, memory *m, const test_case *c, const void *copy_of)
{
    return take(m, in->bytes, item_size(c), copy_of);
}

static double *take_channels(memory *m, const test_case *c, const double *copy_of)
{
    return take(m, (size_t)c->channels * sizeof(double), sizeof(double), copy_of);
}

static void fill_weights(const test_case *c, const inputs *in, memory *m, arguments *a)
{
    bncore_weights *w = &a->weights;
    bncore_weights_init(w, sizeof *w);
    w->dtype = weight_size(c) == 1 ? BNCORE_WEIGHT_UINT8 : BNCORE_WEIGHT_FLOAT64;
    w->per_channel = c->weights == MASK_OF_X || c->weights == NUMBERS_OF_X;
    w->omit_nan = c->omit_nan;
    w->filled = c->filled;
    w->fill = FILL;
    if (c->weights != ONLY_NANS) w->values = take(m, weight_bytes(c), weight_size(c), in->weights);
    if (gives_moments(c->operation)) w->count = a->counted = take_channels(m, c, NULL);
    if (c->operation == TRAIN_BACKWARD) w->count = (double *)a->count;
    a->problem.weights = w;
}

static void fill_inputs(const test_case *c, const inputs *in, memory *m, arguments *a)
{
    a->x = take_array(in, m, c, in->x);
    if (is_backward(c->operation)) a->dy = take_array(in, m, c, in->dy);
    a->mean = take_channels(m, c, in->mean);
    a->var = take_channels(m, c, in->var);
    a->sum_dy = take_channels(m, c, in->sum_dy);
    a->sum_dy_xhat = take_channels(m, c, in->sum_dy_xhat);
    a->count = take_channels(m, c, in->count);
    if (c->weight) a->weight = take_channels(m, c, in->weight);
    if (c->bias) a->bias = take_channels(m, c, in->bias);
    if (c->weights) fill_weights(c, in, m, a);
    if (!takes_fusion(c->operation)) return;
    if (c->residual) a->fusion.residual = take_array(in, m, c, in->residual);
    a->fusion.activation = (int32_t)c->activation;
    a->fusion.slope = c->slope;
    a->fusion.bias = a->bias;
    a->problem.fusion = &a->fusion;
}

static void place_outputs(const test_case *c, const inputs *in, memory *m, arguments *a)
{
    void *const over[PLACES] = {NULL, (void *)a->x, (void *)a->dy, (void *)a->fusion.residual};
    if (writes_array(c->operation))
        a->dst = over[c->place] ? over[c->place] : take_array(in, m, c, NULL);
    if (gives_results(c->operation))
        for (int i = 0; i < 2; i++) a->results[i] = take_channels(m, c, NULL);
    if (!gives_dresidual(c)) return;
    void *const shared = over[c->dresidual_place];
    a->dresidual = shared ? shared : take_array(in, m, c, NULL);
    a->fusion.dresidual = a->dresidual;
}

static void fill_arguments(const test_case *c, const inputs *in, memory *m, arguments *a)
{
    bncore_problem_init(&a->problem, sizeof a->problem, c->dtype, c->outer, c->channels, c->inner);
    bncore_fusion_init(&a->fusion, sizeof a->fusion);
    a->problem.eps = c->eps;
    a->problem.flags = c->float64_sums ? BNCORE_FLOAT64_SUMS : 0;
    a->problem.n_threads = c->threads;
    a->problem.executor = executor_of(c->host);
    fill_inputs(c, in, m, a);
    place_outputs(c, in, m, a);
    if (!c->own_scratch) return;
    a->problem.scratch_size = bncore_scratch_size(&a->problem);
    a->problem.scratch = take(m, a->problem.scratch_size, sizeof(double), NULL);
}

static bncore_status call(const test_case *c, const arguments *a)
{
    const bncore_problem *p = &a->problem;
    switch (c->operation) {
    case MOMENTS:
        return bncore_moments(p, a->results[0], a->results[1], a->x);
    case NORMALIZE:
        return bncore_normalize(p, a->dst, a->x, a->mean, a->var, a->weight, a->bias);
    case TRAIN:
        return bncore_train(p, a->dst, a->results[0], a->results[1], a->x, a->weight, a->bias);
    case GRAD_SUMS:
        return bncore_grad_sums(p, a->results[0], a->results[1], a->dy, a->x, a->mean, a->var);
    case GRAD_INPUT:
        return bncore_grad_input(p, a->dst, a->dy, a->x, a->mean, a->var, a->sum_dy, a->sum_dy_xhat,
                                 a->count, a->weight);
    case TRAIN_BACKWARD:
        return bncore_train_backward(p, a->dst, a->results[0], a->results[1], a->dy, a->x, a->mean,
                                     a->var, a->weight);
    default:
        return bncore_infer_backward(p, a->dst, a->results[0], a->results[1], a->dy, a->x, a->mean,
                                     a->var, a->weight);
    }
}

/* ---- results ---- */

static void *copy_of(const void *from, size_t bytes)
{
    if (!from) return NULL;
    void *to = must_have(bytes);
    if (bytes) memcpy(to, from, bytes);
    return to;
}

void (*around_call)(int inside) = NULL;

bncore_status run_case(const test_case *c, const inputs *in, outputs *out)
{
    memory m = {.shift = c->shift};
    arguments a = {0};
    fill_arguments(c, in, &m, &a);
    if (around_call) around_call(1);
    const bncore_status status = call(c, &a);
    if (around_call) around_call(0);
    const char *wrong = damage(&m, a.dst, a.dresidual, status != BNCORE_OK);
    if (wrong) fail(c, "%s", wrong);
    *out = (outputs){0};
    if (status == BNCORE_OK) {
        out->dst = copy_of(a.dst, in->bytes);
        out->dresidual = copy_of(a.dresidual, in->bytes);
        for (int i = 0; i < 2; i++)
            out->results[i] = copy_of(a.results[i], (size_t)c->channels * sizeof(double));
        out->count = copy_of(a.counted, (size_t)c->channels * sizeof(double));
    }
    release(&m);
    return status;
}

void free_outputs(outputs *out)
{
    free(out->dst);
    free(out->dresidual);
    for (int i = 0; i < 2; i++) free(out->results[i]);
    free(out->count);
    *out = (outputs){0};
}

/* ---- bits ---- */

/* A NaN is the same as any other. */
static int64_t first_difference(const void *got, const void *expected, int64_t n,
                                bncore_dtype dtype)
{
    const size_t item = item_size(&(test_case){.dtype = dtype});
    for (int64_t i = 0; got && i < n; i++) {
        const char *a = (const char *)got + (size_t)i * item;
        const char *b = (const char *)expected + (size_t)i * item;
        if (memcmp(a, b, item) == 0) continue;
        if (!isnan(read_value(dtype, got, i)) || !isnan(read_value(dtype, expected, i))) return i;
    }
    return -1;
}

void check_same_bits(const test_case *c, const outputs *got, const outputs *expected)
{
    int64_t at = first_difference(got->dst, expected->dst, values(c), c->dtype);
    if (at >= 0) fail(c, "value %lld of y or dx has other bits", (long long)at);
    at = first_difference(got->dresidual, expected->dresidual, values(c), c->dtype);
    if (at >= 0) fail(c, "value %lld of dresidual has other bits", (long long)at);
    for (int i = 0; i < 2; i++) {
        at = first_difference(got->results[i], expected->results[i], c->channels, BNCORE_FLOAT64);
        if (at >= 0) fail(c, "channel %lld of result %d has other bits", (long long)at, i);
    }
    at = first_difference(got->count, expected->count, c->channels, BNCORE_FLOAT64);
    if (at >= 0) fail(c, "the count of channel %lld has other bits", (long long)at);
}
