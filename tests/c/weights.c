/* The weights of a case, and what they make of a value. */
#include <math.h>
#include <stdlib.h>

#include "cases.h"

static int64_t weight_count(const test_case *c)
{
    if (c->weights == ONLY_NANS) return 0;
    const int per_channel = c->weights == MASK_OF_X || c->weights == NUMBERS_OF_X;
    return c->outer * c->inner * (per_channel ? c->channels : 1);
}

size_t weight_size(const test_case *c)
{
    return c->weights == NUMBERS || c->weights == NUMBERS_OF_X ? sizeof(double) : 1;
}

size_t weight_bytes(const test_case *c)
{
    return (size_t)weight_count(c) * weight_size(c);
}

static double read_weight(const test_case *c, const inputs *in, int64_t i)
{
    if (c->weights == ONLY_NANS) return 1.0;
    if (weight_size(c) == 1) return ((const uint8_t *)in->weights)[i];
    return ((const double *)in->weights)[i];
}

double weight_at(const test_case *c, const inputs *in, int64_t ch, int64_t e)
{
    if (!c->weights) return 1.0;
    const int64_t i = (e / c->inner * c->channels + ch) * c->inner + e % c->inner;
    if (c->omit_nan && isnan(read_value(c->dtype, in->x, i))) return 0.0;
    const int per_channel = c->weights == MASK_OF_X || c->weights == NUMBERS_OF_X;
    return read_weight(c, in, per_channel ? i : e);
}

/* Most weights are 1 or 0, by the kind of the seed in long runs or not, and some masks are of one number alone. */
static double any_weight(const test_case *c, int64_t i, uint64_t *state)
{
    static const double choices[] = {1.0, 0.0, 1.0, 0.25, 2.5, 1e-3, 3.0, 1.0};
    const uint64_t r = random_bits(state);
    if (c->seed % 11 == 3) return 1.0;
    if (c->seed % 11 == 4) return 0.0;
    if (c->seed % 3 == 0 && i / 37 % 2) return i / 74 % 3 != 0;
    if (weight_size(c) == 1) return r % 8 != 0;
    return choices[r % (sizeof choices / sizeof *choices)];
}

/* What may stand in x where there is no weight. */
static double garbage(const test_case *c, uint64_t *state)
{
    static const double choices[] = {NAN, INFINITY, -INFINITY, 3e38, -1.0, 0.0};
    if (c->omit_nan && random_bits(state) % 2) return NAN;
    return choices[random_bits(state) % (sizeof choices / sizeof *choices)];
}

void make_weights(const test_case *c, inputs *in, uint64_t *state)
{
    in->weights = must_have(weight_bytes(c));
    for (int64_t i = 0; i < weight_count(c); i++) {
        const double w = any_weight(c, i, state);
        if (weight_size(c) == 1)
            ((uint8_t *)in->weights)[i] = (uint8_t)w;
        else
            ((double *)in->weights)[i] = w;
    }
    for (int64_t i = 0; i < values(c); i++) {
        const int64_t ch = i / c->inner % c->channels;
        const int64_t e = i / c->inner / c->channels * c->inner + i % c->inner;
        if (c->omit_nan && random_bits(state) % 8 == 0) write_value(c->dtype, in->x, i, NAN);
        if (weight_at(c, in, ch, e) != 0.0 || random_bits(state) % 4) continue;
        write_value(c->dtype, in->x, i, garbage(c, state));
        if (!c->filled) write_value(c->dtype, in->dy, i, 0.0);
    }
}
