/* Prints the statuses of large problems and the bits of the results of small ones. The test compiles it for 32 and
 * for 64 bits and compares what it prints. */
#include <stdio.h>

#include "bncore.h"

static bncore_problem problem;

static void size(int64_t outer, int64_t channels, int64_t inner)
{
    const bncore_status status =
        bncore_problem_init(&problem, sizeof problem, BNCORE_FLOAT32, outer, channels, inner);
    printf("%s, scratch %lu\n", bncore_status_string(status),
           (unsigned long)bncore_scratch_size(&problem));
}

static void print(const void *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) printf("%02x", ((const unsigned char *)bytes)[i]);
    printf("\n");
}

/* NHWC of 100 x 37, and NCHW of 20 planes of 185 values. */
static void bits(int64_t outer, int64_t inner)
{
    enum { CHANNELS = 37, SIZE = 100 * CHANNELS };
    static float x[SIZE], y[SIZE], dx[SIZE];
    static double mean[CHANNELS], m2[CHANNELS], var[CHANNELS], dbias[CHANNELS], dweight[CHANNELS];
    for (int i = 0; i < SIZE; i++) x[i] = (float)(i * i % 1009) / 7.0f + 100.0f;
    bncore_problem_init(&problem, sizeof problem, BNCORE_FLOAT32, outer, CHANNELS, inner);
    printf("%d", (int)bncore_train(&problem, y, mean, m2, x, NULL, NULL));
    for (int c = 0; c < CHANNELS; c++) var[c] = m2[c] / (double)(outer * inner);
    printf("%d\n", (int)bncore_train_backward(&problem, dx, dbias, dweight, y, x, mean, var, mean));
    print(mean, sizeof mean);
    print(m2, sizeof m2);
    print(y, sizeof y);
    print(dx, sizeof dx);
    print(dweight, sizeof dweight);
}

int main(void)
{
    size(1, 49000000, 1);            /* 196 MB of values, but 4.3 GB of scratch */
    size(1 << 20, 1 << 20, 1 << 10); /* 2^50 values */
    size(1, 600000000, 1);           /* 2.4 GB of values */
    size(1, 20000000, 1);            /* 1.8 GB of scratch */
    size(4, 3, 5);
    bits(100, 1);
    bits(5, 20);
    return 0;
}
