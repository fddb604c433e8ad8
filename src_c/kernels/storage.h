/* The storage types: what a value of each is in the type of the arithmetic (load), and how a result is rounded to it
 * (store). Every conversion rounds to nearest even, keeps subnormal numbers, and makes an infinity of what is too large.
 * A NaN stays a quiet NaN with the same sign. A value of float16 or bfloat16 is kept as its bits, in uint16_t.
 *
 * load and store convert one value. load_many, store_many and round_many convert n values, where n is a constant and a
 * multiple of 8, at most MOST_MANY; round_many replaces values by what a load of their store gives. Templates use these in vector loops:
 * GCC vectorizes the integer arithmetic, but not the conversions that F16C has, which are intrinsics here.
 *
 * store_many and round_many of bfloat16 do not look for NaNs, which would take a third of their time. They expect that a
 * NaN has a lower half of 0. Arithmetic gives no other NaN where its operands have none: values of bfloat16 have none, and
 * coefficients are made by coefficient_bf16. */
#ifndef BNCORE_STORAGE_H
#define BNCORE_STORAGE_H

#include "../arithmetic.h"

#include <stdint.h>
#include <string.h>

#if defined(__AVX__)
#include <immintrin.h>
#endif

/* Without optimization, as for the sanitizers, copies of the templates' parts in every kernel would take most of the time
 * of a compilation, and gain nothing. */
#ifdef __OPTIMIZE__
#define ALWAYS_INLINE __attribute__((always_inline))
#else
#define ALWAYS_INLINE
#endif

enum { MOST_MANY = 64 };

static inline ALWAYS_INLINE uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline ALWAYS_INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- 16 bits to 32, and back where they fit ----
 *
 * With AVX-512, GCC's vectors of 16-bit values are too wide for a line of 32-bit values, and it would pass the values
 * through memory. With AVX2 it would take values apart that are loaded as one vector, and mask values that fit. */

static inline ALWAYS_INLINE void widen_many(uint32_t *to, const uint16_t *from, int n)
{
    int l = 0;
#if defined(__AVX512F__)
    for (; l + 16 <= n; l += 16)
        _mm512_storeu_si512(to + l,
                            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(from + l))));
#endif
#if defined(__AVX2__)
    for (; l + 8 <= n; l += 8)
        _mm256_storeu_si256((void *)(to + l),
                            _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(from + l))));
#endif
#pragma omp simd
    for (int i = l; i < n; i++) to[i] = from[i];
}

static inline ALWAYS_INLINE void narrow_many(uint16_t *to, const uint32_t *from, int n)
{
    int l = 0;
#if defined(__AVX512F__)
    for (; l + 16 <= n; l += 16)
        _mm256_storeu_si256((void *)(to + l), _mm512_cvtepi32_epi16(_mm512_loadu_si512(from + l)));
#elif defined(__AVX2__)
    for (; l + 16 <= n; l += 16) {
        const __m256i low = _mm256_loadu_si256((const void *)(from + l));
        const __m256i high = _mm256_loadu_si256((const void *)(from + l + 8));
        const __m256i mixed = _mm256_packus_epi32(low, high); /* within halves of a vector */
        _mm256_storeu_si256((void *)(to + l), _mm256_permute4x64_epi64(mixed, 0xD8));
    }
#endif
#pragma omp simd
    for (int i = l; i < n; i++) to[i] = (uint16_t)from[i];
}

/* ---- float32 and float64, which the arithmetic is done in ---- */

#define BNCORE_STORED_AS_IS(T, name)                                                               \
    static inline ALWAYS_INLINE T load_##name(T stored)                                            \
    {                                                                                              \
        return stored;                                                                             \
    }                                                                                              \
    static inline ALWAYS_INLINE uint8_t is_number_##name(T stored)                                 \
    {                                                                                              \
        return stored == stored;                                                                   \
    }                                                                                              \
    static inline ALWAYS_INLINE T store_##name(T value)                                            \
    {                                                                                              \
        return value;                                                                              \
    }                                                                                              \
    static inline ALWAYS_INLINE void load_many_##name(T *to, const T *from, int n)                 \
    {                                                                                              \
        _Pragma("omp simd") for (int l = 0; l < n; l++) to[l] = from[l];                           \
    }                                                                                              \
    static inline ALWAYS_INLINE void store_many_##name(T *to, const T *from, int n)                \
    {                                                                                              \
        _Pragma("omp simd") for (int l = 0; l < n; l++) to[l] = from[l];                           \
    }                                                                                              \
    static inline ALWAYS_INLINE void round_many_##name(T *values, int n)                           \
    {                                                                                              \
        (void)values, (void)n;                                                                     \
    }
BNCORE_STORED_AS_IS(float, f32)
BNCORE_STORED_AS_IS(double, f64)
#undef BNCORE_STORED_AS_IS

/* Sums take values as doubles. GCC would load float32 values once as they are, and convert the upper half of each vector
 * from a register, which takes two instructions more than a conversion from memory. */
static inline ALWAYS_INLINE void load_doubles_f32(double *to, const float *from, int n)
{
    int l = 0;
#if defined(__AVX512F__)
    for (; l < n; l += 8) _mm512_storeu_pd(to + l, _mm512_cvtps_pd(_mm256_loadu_ps(from + l)));
#elif defined(__AVX__)
    for (; l < n; l += 4) _mm256_storeu_pd(to + l, _mm256_cvtps_pd(_mm_loadu_ps(from + l)));
#else
#pragma omp simd
    for (l = 0; l < n; l++) to[l] = (double)from[l];
#endif
}

static inline ALWAYS_INLINE void load_doubles_f64(double *to, const double *from, int n)
{
#pragma omp simd
    for (int l = 0; l < n; l++) to[l] = from[l];
}

/* ---- coefficients: a double in the type of the arithmetic ---- */

static inline ALWAYS_INLINE float coefficient_f32(double value)
{
    return (float)value;
}

static inline ALWAYS_INLINE double coefficient_f64(double value)
{
    return value;
}

static inline ALWAYS_INLINE float coefficient_f16(double value)
{
    return (float)value;
}

/* Every NaN becomes the same, whose lower half is 0. */
static inline ALWAYS_INLINE float coefficient_bf16(double value)
{
    return value == value ? (float)value : float_of(0x7FC00000);
}

/* ---- bfloat16: the upper half of a float32 ---- */

static inline ALWAYS_INLINE uint8_t is_number_bf16(uint16_t stored)
{
    return (stored & 0x7FFF) <= 0x7F80;
}

static inline ALWAYS_INLINE float load_bf16(uint16_t stored)
{
    return float_of((uint32_t)stored << 16);
}

/* The bits of a float32 whose lower half is dropped by a store. A NaN with a lower half of 0 stays what it is; another one
 * could become a number. */
static inline ALWAYS_INLINE uint32_t rounded_number_bf16(float value)
{
    const uint32_t u = bits_of(value);
    return u + 0x7FFF + (u >> 16 & 1);
}

static inline ALWAYS_INLINE uint32_t rounded_bf16(float value)
{
    return value == value ? rounded_number_bf16(value) : bits_of(value) | 0x00400000;
}

static inline ALWAYS_INLINE uint16_t store_bf16(float value)
{
    return (uint16_t)(rounded_bf16(value) >> 16);
}

static inline ALWAYS_INLINE void load_many_bf16(float *to, const uint16_t *from, int n)
{
    uint32_t wide[MOST_MANY];
    widen_many(wide, from, n);
#pragma omp simd
    for (int l = 0; l < n; l++) to[l] = float_of(wide[l] << 16);
}

static inline ALWAYS_INLINE void store_many_bf16(uint16_t *to, const float *from, int n)
{
    uint32_t wide[MOST_MANY];
#pragma omp simd
    for (int l = 0; l < n; l++) wide[l] = rounded_number_bf16(from[l]) >> 16;
    narrow_many(to, wide, n);
}

static inline ALWAYS_INLINE void round_many_bf16(float *values, int n)
{
#pragma omp simd
    for (int l = 0; l < n; l++) values[l] = float_of(rounded_number_bf16(values[l]) & 0xFFFF0000);
}

/* ---- float16 ---- */

static inline ALWAYS_INLINE uint8_t is_number_f16(uint16_t stored)
{
    return (stored & 0x7FFF) <= 0x7C00;
}

/* In integer arithmetic. The exponents of the two types differ by 112; a float32 has 13 digits more. */
static inline ALWAYS_INLINE float load_f16_by_integers(uint32_t stored)
{
    const uint32_t sign = (stored & 0x8000) << 16, shifted = (stored & 0x7FFF) << 13;
    const uint32_t normal = shifted + (112U << 23);
    /* An infinity or NaN has the largest exponent of float32, and a NaN is quiet. */
    const uint32_t quiet = shifted > 0x7C00U << 13 ? 0x00400000U : 0;
    const uint32_t special = (shifted + (224U << 23)) | quiet;
    /* Subnormal numbers, and 0: the difference is exact, and a normal number. */
    const uint32_t small = bits_of(float_of(shifted + (113U << 23)) - 0x1p-14F);
    const uint32_t finite = shifted < 0x0400U << 13 ? small : normal;
    return float_of((shifted < 0x7C00U << 13 ? finite : special) | sign);
}

static inline ALWAYS_INLINE uint32_t store_f16_by_integers(float value)
{
    const uint32_t u = bits_of(value), sign = u >> 16 & 0x8000, size = u & 0x7FFFFFFF;
    const uint32_t nearest = (size + 0xFFF + (size >> 13 & 1) - (112U << 23)) >> 13;
    /* Below the normal numbers of float16: 0.5 has the last digit that a subnormal number has, so this addition rounds. */
    const uint32_t small = bits_of(float_of(size) + 0.5F) - bits_of(0.5F);
    const uint32_t nan = 0x7E00 | (size >> 13 & 0x3FF);
    const uint32_t finite = size < 113U << 23 ? small : nearest;
    const uint32_t number = size < 0x477FF000 ? finite : 0x7C00; /* 65520 is too large */
    return (size > 0x7F800000 ? nan : number) | sign;
}

#if defined(__F16C__)

static inline ALWAYS_INLINE float load_f16(uint16_t stored)
{
    return _cvtsh_ss(stored);
}

static inline ALWAYS_INLINE uint16_t store_f16(float value)
{
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
}

static inline ALWAYS_INLINE void load_many_f16(float *to, const uint16_t *from, int n)
{
    int l = 0;
#if defined(__AVX512F__)
    for (; l + 16 <= n; l += 16)
        _mm512_storeu_ps(to + l, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(from + l))));
#endif
    for (; l < n; l += 8)
        _mm256_storeu_ps(to + l, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(from + l))));
}

static inline ALWAYS_INLINE void store_many_f16(uint16_t *to, const float *from, int n)
{
    int l = 0;
#if defined(__AVX512F__)
    for (; l + 16 <= n; l += 16)
        _mm256_storeu_si256((void *)(to + l),
                            _mm512_cvtps_ph(_mm512_loadu_ps(from + l), _MM_FROUND_TO_NEAREST_INT));
#else
    /* In one store, since a load of both halves would have to wait for two. */
    for (; l + 16 <= n; l += 16)
        _mm256_storeu_si256(
            (void *)(to + l),
            _mm256_set_m128i(
                _mm256_cvtps_ph(_mm256_loadu_ps(from + l + 8), _MM_FROUND_TO_NEAREST_INT),
                _mm256_cvtps_ph(_mm256_loadu_ps(from + l), _MM_FROUND_TO_NEAREST_INT)));
#endif
    for (; l < n; l += 8)
        _mm_storeu_si128((void *)(to + l),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + l), _MM_FROUND_TO_NEAREST_INT));
}

#elif defined(__ARM_FP16_FORMAT_IEEE)

/* The compiler has the type, and vectorizes its conversions. */
static inline ALWAYS_INLINE float load_f16(uint16_t stored)
{
    __fp16 half;
    memcpy(&half, &stored, sizeof half);
    return (float)half;
}

static inline ALWAYS_INLINE uint16_t store_f16(float value)
{
    const __fp16 half = (__fp16)value;
    uint16_t stored;
    memcpy(&stored, &half, sizeof stored);
    return stored;
}

static inline ALWAYS_INLINE void load_many_f16(float *to, const uint16_t *from, int n)
{
#pragma omp simd
    for (int l = 0; l < n; l++) to[l] = load_f16(from[l]);
}

static inline ALWAYS_INLINE void store_many_f16(uint16_t *to, const float *from, int n)
{
#pragma omp simd
    for (int l = 0; l < n; l++) to[l] = store_f16(from[l]);
}

#else

static inline ALWAYS_INLINE float load_f16(uint16_t stored)
{
    return load_f16_by_integers(stored);
}

static inline ALWAYS_INLINE uint16_t store_f16(float value)
{
    return (uint16_t)store_f16_by_integers(value);
}

/* These two are not inlined: they are so long that the kernels would become three times as large. */
static __attribute__((noinline, unused)) void load_8_f16(float *to, const uint16_t *from)
{
    uint32_t wide[8];
    widen_many(wide, from, 8);
#pragma omp simd
    for (int l = 0; l < 8; l++) to[l] = load_f16_by_integers(wide[l]);
}

static __attribute__((noinline, unused)) void store_8_f16(uint16_t *to, const float *from)
{
    uint32_t wide[8];
#pragma omp simd
    for (int l = 0; l < 8; l++) wide[l] = store_f16_by_integers(from[l]);
    narrow_many(to, wide, 8);
}

static inline ALWAYS_INLINE void load_many_f16(float *to, const uint16_t *from, int n)
{
    for (int l = 0; l < n; l += 8) load_8_f16(to + l, from + l);
}

static inline ALWAYS_INLINE void store_many_f16(uint16_t *to, const float *from, int n)
{
    for (int l = 0; l < n; l += 8) store_8_f16(to + l, from + l);
}

#endif

static inline ALWAYS_INLINE void round_many_f16(float *values, int n)
{
    uint16_t stored[MOST_MANY];
    store_many_f16(stored, values, n);
    load_many_f16(values, stored, n);
}

#define BNCORE_LOAD_DOUBLES(name)                                                                  \
    static inline ALWAYS_INLINE void load_doubles_##name(double *to, const uint16_t *from, int n)  \
    {                                                                                              \
        float values[MOST_MANY];                                                                   \
        load_many_##name(values, from, n);                                                         \
        _Pragma("omp simd") for (int l = 0; l < n; l++) to[l] = (double)values[l];                 \
    }
BNCORE_LOAD_DOUBLES(f16)
BNCORE_LOAD_DOUBLES(bf16)
#undef BNCORE_LOAD_DOUBLES

#endif
