/* The numbers that check_kernels.c checks with. */
#ifndef BNCORE_TESTS_RANDOM_H
#define BNCORE_TESTS_RANDOM_H

#include <math.h>
#include <stdint.h>

/* ---- random numbers (Steele, Lea & Flood, 2014: SplitMix) ---- */

static uint64_t state;

static uint64_t random_bits(void)
{
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* From `least` to `most`, both included. */
static int64_t random_int(int64_t least, int64_t most)
{
    return least + (int64_t)(random_bits() % (uint64_t)(most - least + 1));
}

static double random_value(void)
{
    return (double)(random_bits() >> 11) * 0x1p-52 - 1.0;
}

/* A random value. If `wild`, it is sometimes an infinity, a NaN, a subnormal number or another special case. */
static double random_or_special(int wild)
{
    static const double special[] = {0.0,    -0.0, INFINITY, -INFINITY, NAN, 1e-40,
                                     -1e-42, 3e38, 1e-6,     -65519.0,  1.0};
    if (!wild || random_int(0, 30)) return 3.0 * random_value() + 0.5;
    return special[random_int(0, sizeof special / sizeof special[0] - 1)];
}

#endif
