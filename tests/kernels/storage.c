/* Checks the conversions of float16 and bfloat16 against a computation in double: every stored value, and every float32
 * at which rounding could go wrong. Prints how many conversions were right. The test compiles this file for each
 * instruction set. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/storage.h"

enum { MANY = 16 };

/* A type of 16 bits: the digits of its fraction, its least exponent, and its conversions. */
typedef struct storage {
    const char *name;
    int digits, least;
    float (*load)(uint16_t);
    uint16_t (*store)(float);
    void (*load_many)(float *, const uint16_t *);
    void (*store_many)(uint16_t *, const float *);
    void (*round_many)(float *);
} storage;

#define FUNCTIONS(name)                                                                            \
    static float one_loaded_##name(uint16_t v)                                                     \
    {                                                                                              \
        return load_##name(v);                                                                     \
    }                                                                                              \
    static uint16_t one_stored_##name(float v)                                                     \
    {                                                                                              \
        return store_##name(v);                                                                    \
    }                                                                                              \
    static void many_loaded_##name(float *to, const uint16_t *from)                                \
    {                                                                                              \
        load_many_##name(to, from, MANY);                                                          \
    }                                                                                              \
    static void many_stored_##name(uint16_t *to, const float *from)                                \
    {                                                                                              \
        store_many_##name(to, from, MANY);                                                         \
    }                                                                                              \
    static void many_rounded_##name(float *v)                                                      \
    {                                                                                              \
        round_many_##name(v, MANY);                                                                \
    }
FUNCTIONS(f16)
FUNCTIONS(bf16)

#define TYPE(name, digits, least)                                                                  \
    {#name,                                                                                        \
     digits,                                                                                       \
     least,                                                                                        \
     one_loaded_##name,                                                                            \
     one_stored_##name,                                                                            \
     many_loaded_##name,                                                                           \
     many_stored_##name,                                                                           \
     many_rounded_##name}
static const storage types[] = {TYPE(f16, 10, -14), TYPE(bf16, 7, -126)};

static long right;

static void same(const storage *s, const char *what, uint32_t from, uint32_t got, uint32_t wanted)
{
    right++;
    if (got == wanted) return;
    printf("%s of %s: %#x gives %#x, expected %#x\n", what, s->name, from, got, wanted);
    exit(1);
}

/* The bits of infinity: all that is larger is a NaN. */
static uint32_t infinity(const storage *s)
{
    return 0x7FFF >> s->digits << s->digits;
}

/* The float32 that a stored value is. */
static uint32_t loaded(const storage *s, uint32_t stored)
{
    const uint32_t sign = stored >> 15 << 31, size = stored & 0x7FFF;
    const int field = (int)(size >> s->digits), exponent = field ? field - 1 + s->least : s->least;
    const uint32_t fraction = size & ((1U << s->digits) - 1);
    if (size > infinity(s))
        return sign | 0x7F800000 | fraction << (23 - s->digits) |
               (s->digits == 10 ? 0x00400000 : 0);
    if (size == infinity(s)) return sign | 0x7F800000;
    const double whole = fraction + (field ? ldexp(1.0, s->digits) : 0.0);
    return sign | bits_of((float)ldexp(whole, exponent - s->digits));
}

/* The stored value that a float32 is rounded to. */
static uint32_t stored(const storage *s, uint32_t bits)
{
    const uint32_t sign = bits >> 31 << 15, size = bits & 0x7FFFFFFF;
    const uint32_t quiet = 1U << (s->digits - 1);
    if (size > 0x7F800000)
        return sign | infinity(s) | quiet | (size >> (23 - s->digits) & (2 * quiet - 1));
    if (size == 0x7F800000) return sign | infinity(s);
    const double v = (double)float_of(size);
    const int exponent = size && ilogb(v) > s->least ? ilogb(v) : s->least;
    /* In units of the last digit. A carry goes to the next exponent by itself. */
    const uint32_t nearest = (uint32_t)nearbyint(ldexp(v, s->digits - exponent));
    const uint32_t all = ((uint32_t)(exponent - s->least) << s->digits) + nearest;
    return sign | (all < infinity(s) ? all : infinity(s));
}

static void check_load(const storage *s, uint32_t first)
{
    uint16_t from[MANY];
    float to[MANY];
    for (uint32_t l = 0; l < MANY; l++) from[l] = (uint16_t)(first + l);
    s->load_many(to, from);
    for (uint32_t l = 0; l < MANY; l++) {
        same(s, "the load", from[l], bits_of(s->load(from[l])), loaded(s, from[l]));
        same(s, "a load of many", from[l], bits_of(to[l]), loaded(s, from[l]));
    }
}

static void check_store(const storage *s, const uint32_t from[MANY])
{
    float values[MANY];
    uint16_t to[MANY];
    for (int l = 0; l < MANY; l++) values[l] = float_of(from[l]);
    s->store_many(to, values);
    for (int l = 0; l < MANY; l++) {
        const uint32_t wanted = stored(s, from[l]);
        same(s, "the store", from[l], s->store(values[l]), wanted);
        same(s, "a store of many", from[l], to[l], wanted);
    }
    s->round_many(values);
    for (int l = 0; l < MANY; l++)
        same(s, "the rounding", from[l], bits_of(values[l]), loaded(s, stored(s, from[l])));
}

/* What lies around a stored value and around the middle between it and the next one; NaNs with each bit of theirs. */
static void check_around(const storage *s, uint32_t value)
{
    const uint32_t here = loaded(s, value), next = loaded(s, (value & 0x7FFF) + 1);
    const int number = (value & 0x7FFF) < infinity(s);
    /* Behind the largest number, an infinity stands for the next power of 2. */
    const double a = (double)float_of(here & 0x7FFFFFFF);
    const double b = isinf(float_of(next)) ? 2.0 * ldexp(1.0, ilogb(a)) : (double)float_of(next);
    const uint32_t middle = bits_of((float)(number ? (a + b) / 2.0 : a)) | (here & 0x80000000);
    uint32_t around[MANY];
    for (uint32_t l = 0; l < 5; l++) {
        around[l] = here + l - 2;
        around[5 + l] = middle + l - 2;
        around[10 + l] = here | 1U << (3 * l);
    }
    around[15] = here ^ 0x00001000;
    check_store(s, around);
}

int main(void)
{
    for (int i = 0; i < 2; i++) {
        const storage *s = &types[i];
        for (uint32_t first = 0; first < 0x10000; first += MANY) check_load(s, first);
        for (uint32_t value = 0; value < 0x10000; value++) check_around(s, value);
        /* All exponents, with a step that visits other digits each time. */
        for (uint64_t first = 0; first <= UINT32_MAX; first += 16 * 104729ULL) {
            uint32_t some[MANY];
            for (uint32_t l = 0; l < MANY; l++) some[l] = (uint32_t)first + l * 104729U;
            check_store(s, some);
        }
        if (i == 0)
            for (uint32_t first = 0; first < 0x10000; first++)
                same(s, "the integer load", first, bits_of(load_f16_by_integers(first)),
                     loaded(s, first));
    }
    printf("%ld conversions: right\n", right);
    return 0;
}
