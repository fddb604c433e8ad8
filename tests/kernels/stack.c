/* Prints how many bytes of stack the operations take. Each runs on a thread whose stack was filled with a mark
 * before. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bncore.h"

enum { STACK = 256 * 1024, PAINT = 0xA5, OPERATIONS = 8, SHAPES = 6, MOST = 4096 };

static const int64_t shapes[SHAPES][3] = {
    {8, 32, 784}, {1, 1, 200000}, {2000, 64, 1}, {500, 1500, 1}, {4096, 3, 1}, {40, 170, 7},
};

typedef struct call {
    int operation, dtype, threads, fused, weights;
    const int64_t *shape;
    void *x, *y, *residual;
    double *given, *results;
    bncore_status status;
} call;

static void *run(void *arg)
{
    call *c = arg;
    bncore_problem p;
    bncore_fusion f;
    bncore_weights w;
    const int64_t n = c->shape[1];
    double *first = c->results, *second = first + n, *given = c->given;
    bncore_problem_init(&p, sizeof p, c->dtype, c->shape[0], n, c->shape[2]);
    bncore_fusion_init(&f, sizeof f);
    f.activation = BNCORE_RELU;
    f.residual = c->residual;
    p.fusion = c->fused ? &f : NULL;
    bncore_weights_init(&w, sizeof w);
    w.dtype = c->weights == 1 ? BNCORE_WEIGHT_UINT8 : BNCORE_WEIGHT_FLOAT64;
    w.values = c->weights == 1 ? NULL : c->residual; /* zeros */
    w.omit_nan = w.filled = 1;
    w.count = second + n;
    p.weights = c->weights ? &w : NULL;
    p.n_threads = c->threads;
    switch (c->operation) {
    case 0:
        c->status = bncore_moments(&p, first, second, c->x);
        break;
    case 1:
        c->status = bncore_normalize(&p, c->y, c->x, given, given, given, given);
        break;
    case 2:
        c->status = bncore_train(&p, c->y, first, second, c->x, given, given);
        break;
    case 3:
        c->status = bncore_grad_sums(&p, first, second, c->x, c->x, given, given);
        break;
    case 4:
        c->status = bncore_train_backward(&p, c->y, first, second, c->x, c->x, given, given, given);
        break;
    case 5:
        c->status = bncore_infer_backward(&p, c->y, first, second, c->x, c->x, given, given, given);
        break;
    default: { /* rows are lines, and everything else is one sample */
        const int64_t samples = p.inner == 1 ? p.outer : 1;
        p.outer /= samples, p.fusion = NULL, p.weights = NULL;
        c->status =
            c->operation == 6
                ? bncore_group_norm(&p, samples, 1, c->y, first, first + MOST, c->x, given, given)
                : bncore_group_norm_backward(&p, samples, 1, c->y, first, second, c->x, c->x, given,
                                             given, given);
    }
    }
    return NULL;
}

/* Does nothing, so that the stack of the thread itself can be subtracted. */
static void *rest(void *arg)
{
    return arg;
}

/* How many bytes of the stack the function has used. */
static long depth(void *(*function)(void *), void *arg)
{
    static unsigned char stack[STACK] __attribute__((aligned(4096)));
    pthread_attr_t attributes;
    pthread_t thread;
    memset(stack, PAINT, STACK);
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, stack, STACK);
    if (pthread_create(&thread, &attributes, function, arg)) exit(2);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    long untouched = 0;
    while (untouched < STACK && stack[untouched] == PAINT) untouched++;
    return STACK - untouched;
}

int main(void)
{
    const size_t most = 8 * 1500 * 1000;
    call c = {.x = calloc(1, most), .y = calloc(1, most), .residual = calloc(1, most)};
    c.given = malloc(MOST * sizeof(double));
    c.results = malloc(3 * MOST * sizeof(double));
    for (int i = 0; i < MOST; i++) c.given[i] = 1.0;
    const long of_thread = depth(rest, NULL);
    long deepest = 0;
    for (int i = 0; bncore_isa_available(i); i++) {
        bncore_isa_set(bncore_isa_available(i));
        for (int n = 0; n < OPERATIONS * SHAPES * 24; n++) {
            c.operation = n % OPERATIONS;
            c.shape = shapes[n / OPERATIONS % SHAPES];
            c.dtype = n / (OPERATIONS * SHAPES) % 2;
            c.threads = 1 + n / (OPERATIONS * SHAPES * 2) % 2;
            c.fused = n / (OPERATIONS * SHAPES * 4) % 2;
            c.weights = n / (OPERATIONS * SHAPES * 8);
            const long took = depth(run, &c) - of_thread;
            if (c.status != BNCORE_OK) return 3;
            if (took > deepest) deepest = took;
        }
        for (int n = 0; n < 2 * SHAPES * 6 * 2; n++) { /* moments and normalize of integers */
            c.operation = n % 2;
            c.shape = shapes[n / 2 % SHAPES];
            c.dtype = BNCORE_UINT8 + n / (2 * SHAPES) % 6;
            c.threads = 1 + n / (2 * SHAPES * 6);
            c.fused = c.weights = 0;
            const long took = depth(run, &c) - of_thread;
            if (c.status != BNCORE_OK) return 3;
            if (took > deepest) deepest = took;
        }
    }
    printf("%ld\n", deepest);
    return 0;
}
