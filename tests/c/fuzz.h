/* What the fuzz target reads of any bytes, and the calls of fuzz_refused.c. */
#ifndef FUZZ_H
#define FUZZ_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct reader {
    const uint8_t *at;
    size_t left;
} reader;

/* The next bytes as a number; zeros where they have run out. */
static inline uint64_t next(reader *r, size_t bytes)
{
    uint64_t number = 0;
    for (size_t i = 0; i < bytes && r->left; i++, r->left--) number = number << 8 | *r->at++;
    return number;
}

static inline uint64_t below(reader *r, uint64_t limit)
{
    return next(r, 1) % limit;
}

static inline double any_double(reader *r)
{
    static const double choices[] = {0.0, 1e-5, 1.0, -0.0, -1e-5, NAN, INFINITY, 1e300, 5e-324};
    const uint64_t choice = below(r, 16);
    if (choice < sizeof choices / sizeof *choices) return choices[choice];
    const uint64_t bits = next(r, 8);
    double number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static inline int64_t any_size(reader *r)
{
    static const int64_t choices[] = {
        0,         1,         2,         -1,           INT64_MAX,      INT64_MIN,
        1LL << 31, 1LL << 32, 1LL << 62, 3037000500LL, INT64_MAX / 64, INT64_MAX / 64 + 1};
    const uint64_t choice = below(r, 16);
    if (choice < sizeof choices / sizeof *choices) return choices[choice];
    return (int64_t)next(r, 8);
}

/* Call with a valid problem and arrays that are not aligned to their values. */
void try_misaligned(reader *r);

/* Call with a problem in which anything may be wrong. */
void try_anything(reader *r);

#endif
