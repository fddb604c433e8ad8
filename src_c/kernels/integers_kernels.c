/* The kernels for arrays of integers, for one instruction set: kernels.c includes this file. A partial result has two wide
 * integers, the sum of x and that of x * x, whose four halves are kept as they are in the memory of its fields. */
#include "../wide.h"

enum {
    SUM_TILE = 8,       /* rows that are added between a load and a store of sums */
    SUM_AHEAD = 4096,   /* bytes from the next rows to those that are prefetched */
    RUN_COLUMNS = 64,   /* of a run that is read as rows */
    MOST_ROWS = 1 << 15 /* whose sums fit 32 bits: those of 255 * 255, and of 65535 */
};

static inline void clear_sums(bncore_partial partial, int64_t cols)
{
    for (int f = 0; f < MOMENTS_FIELDS; f++)
        memset(partial.at + f * partial.stride, 0, (size_t)cols * sizeof(double));
}

/* Add a sum of x, and sums of the lower `half` bits and of the other bits of x * x. */
static inline void add_sums(bncore_partial partial, int64_t column, uint64_t sum, uint64_t lower,
                            uint64_t upper, int half)
{
    double *at = partial.at + column;
    bncore_wide squares = {upper << half, half ? upper >> (64 - half) : 0};
    squares = wide_sum(squares, (bncore_wide){lower, 0});
    wide_add(at, partial.stride, (bncore_wide){sum, 0});
    wide_add(at + 2 * partial.stride, partial.stride, squares);
}

/* ---- 8 and 16 bits: as float32, which is exact ---- */

#define BNCORE_LOAD(name, T)                                                                       \
    static void load_##name(float *restrict to, const void *from, int64_t n, uint32_t flip,        \
                            const float *center, int by_column)                                    \
    {                                                                                              \
        const T *restrict x = from;                                                                \
        (void)center, (void)by_column;                                                             \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) to[i] =                                \
            (float)((int32_t)(x[i] ^ (T)flip) - (int32_t)flip);                                    \
    }
BNCORE_LOAD(u8, uint8_t)
BNCORE_LOAD(u16, uint16_t)
#undef BNCORE_LOAD

/* ---- 32 bits: the difference from a center, which is rounded once ---- */

static void load_u32(float *restrict to, const void *from, int64_t n, uint32_t flip,
                     const float *restrict center, int by_column)
{
    const uint32_t *restrict x = from, sign = (uint32_t)1 << 31;
    const double shift = flip ? 0.0 : 0x1p31; /* the compiler converts signed integers faster */
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const double value = (double)(int32_t)(x[i] ^ flip ^ sign) + shift;
        to[i] = (float)(value - (double)center[i * by_column]);
    }
}

#define T uint8_t
#define SQUARE uint16_t
#define SUM uint32_t
#define HALF 0
#define NAME(function) function##_u8
#include "integers_tmpl.c"
#undef T
#undef SQUARE
#undef HALF
#undef NAME

#define T uint16_t
#define SQUARE uint32_t
#define HALF 16
#define NAME(function) function##_u16
#include "integers_tmpl.c"
#undef T
#undef SQUARE
#undef SUM
#undef HALF
#undef NAME

#define T uint32_t
#define SQUARE uint64_t
#define SUM uint64_t
#define HALF 32
#define NAME(function) function##_u32
#include "integers_tmpl.c"
#undef T
#undef SQUARE
#undef SUM
#undef HALF
#undef NAME

#define SET(T, name) {sizeof(T), sum_planes_##name, sum_rows_##name, load_##name}

extern const bncore_integer_set JOIN(bncore_integers, BNCORE_ISA_NAME)[3];
const bncore_integer_set JOIN(bncore_integers, BNCORE_ISA_NAME)[3] = {
    SET(uint8_t, u8), SET(uint16_t, u16), SET(uint32_t, u32)};
#undef SET
