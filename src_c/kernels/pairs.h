/* Lines of bfloat16 values in pairs. Where all values have the same coefficients, two neighbours are taken as one number of
 * 32 bits. A shift gives one of them and a mask the other, without the exchanges between lanes that take most of the time
 * of widening and narrowing. The first values of all pairs come before the second ones. */
#ifndef BNCORE_PAIRS_H
#define BNCORE_PAIRS_H

#include "storage.h"

enum { IS_PAIRED_bf16 = 1 };
typedef uint32_t __attribute__((may_alias, aligned(2))) pair_bf16;

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
enum { FIRST_IS_UPPER = 1 };
#else
enum { FIRST_IS_UPPER = 0 };
#endif

static inline ALWAYS_INLINE void load_pairs_bf16(float *to, const uint16_t *from, int n)
{
    const pair_bf16 *pair = (const pair_bf16 *)from;
    float *lower = FIRST_IS_UPPER ? to + n / 2 : to, *upper = FIRST_IS_UPPER ? to : to + n / 2;
#pragma omp simd
    for (int l = 0; l < n / 2; l++) lower[l] = float_of(pair[l] << 16);
#pragma omp simd
    for (int l = 0; l < n / 2; l++) upper[l] = float_of(pair[l] & 0xFFFF0000);
}

static inline ALWAYS_INLINE void store_pairs_bf16(uint16_t *to, const float *from, int n)
{
    pair_bf16 *pair = (pair_bf16 *)to;
    const float *lower = FIRST_IS_UPPER ? from + n / 2 : from;
    const float *upper = FIRST_IS_UPPER ? from : from + n / 2;
#pragma omp simd
    for (int l = 0; l < n / 2; l++)
        pair[l] =
            rounded_number_bf16(lower[l]) >> 16 | (rounded_number_bf16(upper[l]) & 0xFFFF0000);
}

/* Types of which no line is computed in pairs. */
#define BNCORE_NOT_PAIRED(T, ACC, name)                                                            \
    enum { IS_PAIRED_##name = 0 };                                                                 \
    static inline ALWAYS_INLINE void load_pairs_##name(ACC *to, const T *from, int n)              \
    {                                                                                              \
        load_many_##name(to, from, n);                                                             \
    }                                                                                              \
    static inline ALWAYS_INLINE void store_pairs_##name(T *to, const ACC *from, int n)             \
    {                                                                                              \
        store_many_##name(to, from, n);                                                            \
    }
BNCORE_NOT_PAIRED(float, float, f32)
BNCORE_NOT_PAIRED(double, double, f64)
BNCORE_NOT_PAIRED(uint16_t, float, f16)
#undef BNCORE_NOT_PAIRED

#endif
