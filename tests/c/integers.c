/* Calls with arrays of integers: their moments against sums in 128 bits, y against the call with floats, every setting
 * against one thread, and the operations that take no integers. Each array has memory of its own, so that a sanitizer sees
 * what is read or written beside it. With --digests the program prints a digest of the results of each case instead. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

#ifdef __SIZEOF_INT128__
__extension__ typedef __int128 wide;
#else
typedef int64_t wide; /* too short for the check of moments, which is left out */
#endif

static const int64_t shapes[][3] = {
    {1, 1, 1},    {1, 3, 1},      {2, 3, 15},   {3, 5, 17},     {7, 33, 49},
    {64, 7, 1},   {300, 4, 3},    {9, 1000, 1}, {130, 257, 1},  {12, 40, 1024},
    {40, 300, 4}, {40000, 24, 1}, {4, 2, 9000}, {1, 2, 300001},
};
static const size_t items[] = {1, 2, 4};

static long calls;
static int digests; /* they are printed, and no other settings are tried */

static void check(int right, const int64_t *shape, int type, const char *what)
{
    if (right) return;
    fprintf(stderr, "(%lld, %lld, %lld), type %d: %s\n", (long long)shape[0], (long long)shape[1],
            (long long)shape[2], type, what);
    exit(1);
}

static int64_t read_integer(int type, const void *x, int64_t i)
{
    switch (type + BNCORE_UINT8) {
    case BNCORE_UINT8:
        return ((const uint8_t *)x)[i];
    case BNCORE_INT8:
        return ((const int8_t *)x)[i];
    case BNCORE_UINT16:
        return ((const uint16_t *)x)[i];
    case BNCORE_INT16:
        return ((const int16_t *)x)[i];
    case BNCORE_UINT32:
        return ((const uint32_t *)x)[i];
    default:
        return ((const int32_t *)x)[i];
    }
}

static void write_integer(int type, void *x, int64_t i, uint64_t bits)
{
    if (items[type / 2] == 1)
        ((uint8_t *)x)[i] = (uint8_t)bits;
    else if (items[type / 2] == 2)
        ((uint16_t *)x)[i] = (uint16_t)bits;
    else
        ((uint32_t *)x)[i] = (uint32_t)bits;
}

/* Random values, or now and then the same bits everywhere. */
static void fill(int type, void *x, int64_t n, uint64_t *random)
{
    const uint64_t same = random_bits(random);
    for (int64_t i = 0; i < n; i++) {
        const uint64_t bits = random_bits(random) >> 32;
        write_integer(type, x, i, same % 4 ? bits : same % 8 ? 0 : UINT64_MAX);
    }
}

/* Whether got is the nearest double to a / n: the neighbour on each side is not nearer. */
static int is_nearest(double got, wide a, int64_t n)
{
    const long double exact = (long double)a / (long double)n;
    const long double error = fabsl((long double)got - exact);
    return error <= fabsl((long double)nextafter(got, INFINITY) - exact) &&
           error <= fabsl((long double)nextafter(got, -INFINITY) - exact);
}

static void check_moments(const int64_t *shape, int type, const void *x, const double *mean,
                          const double *m2)
{
    const int64_t n = shape[0] * shape[2];
    for (int64_t c = 0; sizeof(wide) > sizeof(int64_t) && c < shape[1]; c++) {
        wide sum = 0, squares = 0;
        for (int64_t o = 0; o < shape[0]; o++)
            for (int64_t i = 0; i < shape[2]; i++) {
                const int64_t v = read_integer(type, x, (o * shape[1] + c) * shape[2] + i);
                sum += v;
                squares += (wide)v * v;
            }
        check(is_nearest(mean[c], sum, n), shape, type, "the mean is not the nearest");
        check(is_nearest(m2[c], n * squares - sum * sum, n), shape, type, "m2 is not the nearest");
    }
}

/* One call of each operation, into memory of its own. */
typedef struct results {
    double *mean, *m2;
    float *y;
} results;

static results run(const int64_t *shape, int type, const void *x, const float *residual,
                   int threads, host h)
{
    const size_t channels = (size_t)shape[1] * sizeof(double);
    const size_t values = (size_t)(shape[0] * shape[1] * shape[2]);
    results r = {must_have(channels), must_have(channels), must_have(values * sizeof(float))};
    double *var = must_have(channels);
    bncore_problem p;
    bncore_fusion f;
    bncore_problem_init(&p, sizeof p, (bncore_dtype)(BNCORE_UINT8 + type), shape[0], shape[1],
                        shape[2]);
    bncore_fusion_init(&f, sizeof f);
    f.activation = BNCORE_LEAKY_RELU;
    f.slope = 0.25;
    f.residual = residual;
    p.n_threads = threads;
    p.executor = executor_of(h);
    check(bncore_moments(&p, r.mean, r.m2, x) == BNCORE_OK, shape, type, "moments fails");
    for (int64_t c = 0; c < shape[1]; c++) var[c] = r.m2[c] / (double)(shape[0] * shape[2]);
    p.fusion = residual ? &f : NULL;
    check(bncore_normalize(&p, r.y, x, r.mean, var, NULL, r.mean) == BNCORE_OK, shape, type,
          "normalize fails");
    if (type < BNCORE_UINT32 - BNCORE_UINT8) {
        float *as_floats = must_have(values * sizeof(float)),
              *y = must_have(values * sizeof(float));
        for (size_t i = 0; i < values; i++) as_floats[i] = (float)read_integer(type, x, (int64_t)i);
        p.dtype = BNCORE_FLOAT32;
        bncore_normalize(&p, y, as_floats, r.mean, var, NULL, r.mean);
        check(memcmp(y, r.y, values * sizeof(float)) == 0, shape, type, "y is not that of floats");
        free(as_floats);
        free(y);
    }
    free(var);
    calls += 2;
    return r;
}

static void print_digest(const int64_t *shape, int type, const results *r)
{
    uint64_t state = digest(DIGEST, BNCORE_FLOAT64, r->mean, shape[1]);
    state = digest(state, BNCORE_FLOAT64, r->m2, shape[1]);
    state = digest(state, BNCORE_FLOAT32, r->y, shape[0] * shape[1] * shape[2]);
    printf("integers, type %d, (%lld, %lld, %lld): %016llx\n", type, (long long)shape[0],
           (long long)shape[1], (long long)shape[2], (unsigned long long)state);
}

static void check_shape(const int64_t *shape, int type, uint64_t *random)
{
    const size_t values = (size_t)(shape[0] * shape[1] * shape[2]);
    void *x = must_have(values * items[type / 2]);
    float *residual = random_bits(random) % 2 ? must_have(values * sizeof(float)) : NULL;
    fill(type, x, (int64_t)values, random);
    for (size_t i = 0; residual && i < values; i++)
        residual[i] = (float)(int32_t)random_bits(random) / 1e8F;
    const results expected = run(shape, type, x, residual, 1, NO_HOST);
    check_moments(shape, type, x, expected.mean, expected.m2);
    if (digests) print_digest(shape, type, &expected);
    for (int i = 0; !digests && bncore_isa_available(i); i++) {
        bncore_isa_set(bncore_isa_available(i));
        const results got = run(shape, type, x, residual, (int)(random_bits(random) % 4) + 1,
                                (host)(random_bits(random) % HOSTS));
        const size_t channels = (size_t)shape[1] * sizeof(double);
        check(memcmp(got.mean, expected.mean, channels) == 0, shape, type, "mean has other bits");
        check(memcmp(got.m2, expected.m2, channels) == 0, shape, type, "m2 has other bits");
        check(memcmp(got.y, expected.y, values * sizeof(float)) == 0, shape, type,
              "y has other bits");
        free(got.mean), free(got.m2), free(got.y);
    }
    bncore_isa_set(NULL);
    free(expected.mean), free(expected.m2), free(expected.y);
    free(x);
    free(residual);
}

/* A call that is refused, or has no value, before it reads an array. */
static void check_refusals(void)
{
    const int64_t shape[3] = {2, 1, 2};
    double d[4] = {0};
    float y[4] = {0};
    const uint32_t x[4] = {0};
    bncore_problem p;
    for (int type = 0; type < 6; type++) {
        bncore_problem_init(&p, sizeof p, (bncore_dtype)(BNCORE_UINT8 + type), 2, 1, 2);
        const int refused =
            bncore_train(&p, y, d, d + 1, x, NULL, NULL) == BNCORE_ERROR_DTYPE &&
            bncore_grad_sums(&p, d, d + 1, x, x, d, d) == BNCORE_ERROR_DTYPE &&
            bncore_grad_input(&p, y, x, x, d, d, d, d, d, NULL) == BNCORE_ERROR_DTYPE &&
            bncore_train_backward(&p, y, d, d + 1, x, x, d, d, NULL) == BNCORE_ERROR_DTYPE &&
            bncore_infer_backward(&p, y, d, d + 1, x, x, d, d, NULL) == BNCORE_ERROR_DTYPE;
        check(refused, shape, type, "an operation took integers");
        check(bncore_moments(&p, d, d + 1, NULL) == BNCORE_ERROR_NULL, shape, type, "no x");
        const char *odd = (const char *)x + 1;
        const bncore_status status = bncore_moments(&p, d, d + 1, odd);
        check(status == (type < 2 ? BNCORE_OK : BNCORE_ERROR_ALIGNMENT), shape, type, "odd x");
        check(bncore_normalize(&p, (char *)y + 1, x, d, d, NULL, NULL) == BNCORE_ERROR_ALIGNMENT,
              shape, type, "odd y");
        p.outer = 0;
        d[1] = 3.0;
        check(bncore_moments(&p, d, d + 1, NULL) == BNCORE_OK && isnan(d[0]) && d[1] == 0.0, shape,
              type, "the moments of nothing");
        d[0] = d[1] = 0.0;
    }
    p.dtype = BNCORE_INT32 + 1;
    check(bncore_moments(&p, d, d + 1, x) == BNCORE_ERROR_DTYPE, shape, 6, "no such type");
}

int main(int argc, char **argv)
{
    uint64_t random = 1;
    digests = argc > 1 && strcmp(argv[1], "--digests") == 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int type = 0; type < 6; type++) check_shape(shapes[i], type, &random);
    check_refusals();
    if (!digests) printf("%ld calls: right, and the same bits in every setting\n", calls);
    return 0;
}
