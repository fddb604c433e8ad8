/* Runs group norm over shapes, dtypes, places in memory, instruction sets, threads and hosts. The results must agree with a plain
 * loop, must have the same bits in every setting, and a call that the header forbids must be refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

/* samples, outer, channels, inner, groups: groups that are runs of memory, rows of one and of several segments, planes whose
 * channels merge, lines with and without a remainder, few long lines, and lines shorter than a vector. */
static const int64_t shapes[][5] = {
    {3, 1, 6, 40, 2},    {2, 1, 4, 5000, 4},  {5, 1, 6, 3, 3},   {3, 30, 6, 1, 2},
    {2, 9, 96, 1, 4},    {2, 600, 8, 1, 8},   {2, 5, 6, 17, 3},  {2, 5, 1, 17, 1},
    {70, 1, 33, 1, 1},   {9, 1, 200, 1, 1},   {40, 1, 20, 1, 2}, {6, 1, 21, 1, 3},
    {2, 1, 40000, 1, 1}, {1, 1, 70000, 1, 1}, {1, 1, 2, 1, 2},
};

enum { THREADS = 4 };

typedef struct results {
    char *y, *dx;
    double *mean, *m2, *dbias, *dweight;
} results;

static long calls;

static void die(const int64_t *s, bncore_dtype dtype, const char *what)
{
    printf("(%lld, %lld, %lld, %lld), %lld groups, dtype %d: %s\n", (long long)s[0],
           (long long)s[1], (long long)s[2], (long long)s[3], (long long)s[4], dtype, what);
    exit(1);
}

static int64_t count_of(const int64_t *s)
{
    return s[0] * s[1] * s[2] * s[3];
}

static size_t item(bncore_dtype dtype)
{
    return item_size(&(test_case){.dtype = dtype});
}

static results new_results(const int64_t *s, bncore_dtype dtype)
{
    const size_t bytes = (size_t)count_of(s) * item(dtype), groups = (size_t)(s[0] * s[4]);
    return (results){malloc(bytes),
                     malloc(bytes),
                     calloc(groups, sizeof(double)),
                     calloc(groups, sizeof(double)),
                     calloc((size_t)s[2], sizeof(double)),
                     calloc((size_t)s[2], sizeof(double))};
}

static void free_results(results *r)
{
    free(r->y), free(r->dx), free(r->mean), free(r->m2), free(r->dbias), free(r->dweight);
}

/* Both calls; `over` writes y and dx over x and dy, of which it makes copies. */
static void run(const int64_t *s, bncore_dtype dtype, int32_t threads, int over, const char *x,
                const char *dy, const double *weight, const double *bias, results *r)
{
    const size_t bytes = (size_t)count_of(s) * item(dtype);
    const int64_t n = s[1] * s[2] / s[4] * s[3];
    double *var = malloc((size_t)(s[0] * s[4]) * sizeof(double));
    bncore_problem p;
    bncore_problem_init(&p, sizeof p, dtype, s[1], s[2], s[3]);
    p.eps = 1e-3;
    p.n_threads = threads;
    if (over) memcpy(r->y, x, bytes), memcpy(r->dx, dy, bytes);
    if (bncore_group_norm(&p, s[0], s[4], r->y, r->mean, r->m2, over ? r->y : x, weight, bias))
        die(s, dtype, "forward fails");
    for (int64_t i = 0; i < s[0] * s[4]; i++) var[i] = r->m2[i] / (double)n;
    if (bncore_group_norm_backward(&p, s[0], s[4], r->dx, r->dbias, r->dweight, over ? r->dx : dy,
                                   x, r->mean, var, weight))
        die(s, dtype, "backward fails");
    free(var);
    calls += 2;
}

/* The place of value i of a group in its sample. */
static int64_t index_of(const int64_t *s, int64_t group, int64_t i)
{
    const int64_t wide = s[2] / s[4], run = wide * s[3];
    return i / run * s[2] * s[3] + group * run + i % run;
}

static void near(const int64_t *s, bncore_dtype dtype, double got, long double want,
                 long double size, const char *what)
{
    static const long double ulp[] = {0x1p-24L, 0x1p-53L, 0x1p-11L, 0x1p-8L};
    if (!(fabsl((long double)got - want) <= 16.0L * ulp[dtype] * size)) die(s, dtype, what);
}

/* Compare with the formula. */
static void check_group(const int64_t *s, bncore_dtype dtype, int64_t sample, int64_t group,
                        const char *x_, const char *dy_, const double *weight, const double *bias,
                        const results *r, double *dbias, double *dweight)
{
    const int64_t n = s[1] * s[2] / s[4] * s[3], sample_values = s[1] * s[2] * s[3];
    long double sum = 0.0L, squares = 0.0L, a = 0.0L, b = 0.0L, size = 0.0L;
    for (int64_t i = 0; i < n; i++)
        sum += (long double)read_value(dtype, x_, sample * sample_values + index_of(s, group, i));
    const long double mean = sum / (long double)n;
    for (int64_t i = 0; i < n; i++) {
        const long double d =
            (long double)read_value(dtype, x_, sample * sample_values + index_of(s, group, i)) -
            mean;
        squares += d * d;
    }
    const long double invstd = 1.0L / sqrtl(squares / (long double)n + (long double)1e-3);
    near(s, BNCORE_FLOAT32, r->mean[sample * s[4] + group], mean, fabsl(mean) + 1.0L, "mean");
    near(s, BNCORE_FLOAT32, r->m2[sample * s[4] + group], squares, squares + 1e-9L, "m2");
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < n; i++) {
            const int64_t in_sample = index_of(s, group, i),
                          at = sample * sample_values + in_sample;
            const int64_t c = in_sample / s[3] % s[2];
            const long double dy = (long double)read_value(dtype, dy_, at);
            const long double xhat = ((long double)read_value(dtype, x_, at) - mean) * invstd;
            const long double w = (long double)weight[c], g = dy * w;
            if (pass == 0) {
                a += g, b += g * xhat, dbias[c] += (double)dy, dweight[c] += (double)(dy * xhat);
                size = fmaxl(size, fabsl(g) + fabsl(g * xhat));
                near(s, dtype, read_value(dtype, r->y, at), xhat * w + (long double)bias[c],
                     fabsl(xhat * w) + fabsl((long double)bias[c]) + fabsl(mean * invstd * w), "y");
                continue;
            }
            const long double dx = (g - (a + xhat * b) / (long double)n) * invstd;
            near(s, dtype, read_value(dtype, r->dx, at), dx,
                 (fabsl(xhat) + fabsl(mean * invstd) + 1.0L) * size * invstd, "dx");
        }
}

static void check(const int64_t *s, bncore_dtype dtype, const char *x, const char *dy,
                  const double *weight, const double *bias, const results *r)
{
    double *dbias = calloc((size_t)s[2], sizeof(double)),
           *dweight = calloc((size_t)s[2], sizeof(double));
    for (int64_t sample = 0; sample < s[0]; sample++)
        for (int64_t group = 0; group < s[4]; group++)
            check_group(s, dtype, sample, group, x, dy, weight, bias, r, dbias, dweight);
    const long double size = 8.0L * (long double)(s[0] * s[1] * s[3]);
    for (int64_t c = 0; c < s[2]; c++) {
        near(s, BNCORE_FLOAT32, r->dbias[c], (long double)dbias[c], size, "dbias");
        near(s, BNCORE_FLOAT32, r->dweight[c], (long double)dweight[c], size, "dweight");
    }
    free(dbias), free(dweight);
}

static void check_shape(const int64_t *s, bncore_dtype dtype, uint64_t *random)
{
    const test_case c = {.dtype = dtype,
                         .outer = s[0] * s[1],
                         .channels = s[2],
                         .inner = s[3],
                         .contents = NORMAL,
                         .seed = random_bits(random),
                         .weight = 1,
                         .bias = 1,
                         .operation = TRAIN_BACKWARD};
    inputs in = make_inputs(&c);
    const size_t bytes = (size_t)count_of(s) * item(dtype),
                 groups = (size_t)(s[0] * s[4]) * sizeof(double);
    results want = new_results(s, dtype);
    run(s, dtype, 1, 0, in.x, in.dy, in.weight, in.bias, &want);
    check(s, dtype, in.x, in.dy, in.weight, in.bias, &want);
    for (int i = 0; bncore_isa_available(i); i++) {
        bncore_isa_set(bncore_isa_available(i));
        for (int32_t threads = 1; threads <= THREADS; threads++) {
            results got = new_results(s, dtype);
            run(s, dtype, threads, threads % 2, in.x, in.dy, in.weight, in.bias, &got);
            const int same = !memcmp(got.y, want.y, bytes) && !memcmp(got.dx, want.dx, bytes) &&
                             !memcmp(got.mean, want.mean, groups) &&
                             !memcmp(got.m2, want.m2, groups) &&
                             !memcmp(got.dbias, want.dbias, (size_t)s[2] * sizeof(double)) &&
                             !memcmp(got.dweight, want.dweight, (size_t)s[2] * sizeof(double));
            if (!same) die(s, dtype, "another setting gives other bits");
            free_results(&got);
        }
    }
    bncore_isa_set(NULL);
    free_results(&want);
    free_inputs(&in);
}

static void check_refusals(void)
{
    const int64_t s[5] = {2, 1, 4, 3, 2};
    float x[24] = {0}, y[24] = {0};
    double d[8] = {0}, sums[4] = {0};
    bncore_problem p;
    bncore_fusion f;
    bncore_weights w;
    bncore_problem_init(&p, sizeof p, BNCORE_FLOAT32, 1, 4, 3);
#define REFUSED(expected, ...)                                                                     \
    if (bncore_group_norm(__VA_ARGS__) != (expected)) die(s, BNCORE_FLOAT32, #expected)
    REFUSED(BNCORE_ERROR_SIZE, &p, 2, 3, y, d, d, x, NULL, NULL);
    REFUSED(BNCORE_ERROR_SIZE, &p, 2, 0, y, d, d, x, NULL, NULL);
    REFUSED(BNCORE_ERROR_SIZE, &p, -1, 2, y, d, d, x, NULL, NULL);
    REFUSED(BNCORE_ERROR_SIZE, &p, INT64_MAX, 2, y, d, d, x, NULL, NULL);
    REFUSED(BNCORE_ERROR_NULL, NULL, 2, 2, y, d, d, x, NULL, NULL);
    REFUSED(BNCORE_ERROR_NULL, &p, 2, 2, NULL, d, d, x, NULL, NULL);
    REFUSED(BNCORE_ERROR_NULL, &p, 2, 2, y, NULL, d, x, NULL, NULL);
    REFUSED(BNCORE_ERROR_ALIGNMENT, &p, 2, 2, (char *)y + 1, d, d, x, NULL, NULL);
    REFUSED(BNCORE_ERROR_ALIGNMENT, &p, 2, 2, y, d, d, x, (const double *)((const char *)d + 1),
            NULL);
    REFUSED(BNCORE_OK, &p, 0, 2, NULL, NULL, NULL, NULL, NULL, NULL);
    if (bncore_group_norm_backward(&p, 2, 2, y, sums, sums, NULL, x, d, d, NULL) !=
        BNCORE_ERROR_NULL)
        die(s, BNCORE_FLOAT32, "a dy of NULL");
    if (bncore_group_norm_backward(&p, 2, 2, y, NULL, sums, x, x, d, d, NULL) != BNCORE_ERROR_NULL)
        die(s, BNCORE_FLOAT32, "a sum of NULL");
    sums[0] = sums[1] = 3.0;
    if (bncore_group_norm_backward(&p, 0, 2, NULL, sums, sums, NULL, NULL, NULL, NULL, NULL) ||
        sums[0] != 0.0)
        die(s, BNCORE_FLOAT32, "the sums of no sample");
    bncore_fusion_init(&f, sizeof f);
    p.fusion = &f;
    REFUSED(BNCORE_ERROR_STRUCT, &p, 2, 2, y, d, d, x, NULL, NULL);
    p.fusion = NULL;
    bncore_weights_init(&w, sizeof w);
    p.weights = &w;
    REFUSED(BNCORE_ERROR_STRUCT, &p, 2, 2, y, d, d, x, NULL, NULL);
    p.weights = NULL;
    p.dtype = BNCORE_UINT8;
    REFUSED(BNCORE_ERROR_DTYPE, &p, 2, 2, y, d, d, x, NULL, NULL);
}

int main(void)
{
    uint64_t random = 1;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int dtype = BNCORE_FLOAT32; dtype <= BNCORE_BFLOAT16; dtype++)
            check_shape(shapes[i], (bncore_dtype)dtype, &random);
    check_refusals();
    printf("%ld calls: right, and the same bits in every setting\n", calls);
    return 0;
}
