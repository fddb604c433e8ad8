/* The weights of a tile's values, before a NaN of x is looked for (weights_tmpl.c). A flag says whether a weight is not 0:
 * the uint8 weights of a mask are such flags themselves. */
#ifndef BNCORE_WEIGHTS_H
#define BNCORE_WEIGHTS_H

#include <string.h>

#include "kernels.h"
#include "storage.h"

enum {
    /* Weights are laid out in memory for so many values at a time, and for up to MORE_WEIGHTS more at the end of a run,
     * so that its last chain is whole. */
    SOME_WEIGHTS = 128,
    MORE_WEIGHTS = 128,
    MOST_WEIGHTS = SOME_WEIGHTS + MORE_WEIGHTS,
    SOME_FLAGS = 1024, /* the same for flags */
    MOST_FLAGS = SOME_FLAGS + MORE_WEIGHTS,
    LONG_FLAGS = 256 /* so many flags are looked through before: there may be no 0 among them */
};

/* What says whether a value takes part: a flag, a weight that is a double, or whether it is a number; in rows also the flag
 * or weight of its row. */
enum { FLAGS, WEIGHTS, NUMBERS, ROW_FLAGS, ROW_WEIGHTS };

/* A vector of flags for a row that has one flag. */
static const uint8_t flags_of_row[2][BNCORE_LANES] = {
    {0}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}};

/* Whether each row of `cols` values has one weight. */
static inline int has_row_weights(const bncore_weighting *w, int64_t cols)
{
    return w->values && !w->omit_nan && w->inner == 1 && w->width == cols;
}

/* The same where the weight is a flag. */
static inline int has_row_flags(const bncore_weighting *w, int64_t cols)
{
    return !w->doubles && has_row_weights(w, cols);
}

/* How many of the `left` values of a run are taken next. */
static inline int64_t some_of(int64_t left)
{
    return left < MOST_WEIGHTS ? left : SOME_WEIGHTS;
}

static inline int64_t some_flags_of(int64_t left)
{
    return left < MOST_FLAGS ? left : SOME_FLAGS;
}

static inline double weight_of(const bncore_weighting *w, int64_t i)
{
    if (!w->values) return 1.0;
    return w->doubles ? ((const double *)w->values)[i] : (double)((const uint8_t *)w->values)[i];
}

/* The place of the weight of value `at` of x, where one weight is for all channels of rows. */
static inline int64_t shared_place(const bncore_weighting *w, int64_t at)
{
    return at / w->width * w->inner + at % w->inner;
}

/* Write a flag n times. There is room for `room` flags; what lies behind the n flags is written later. */
static inline void repeat_flag(char *to, uint8_t flag, int64_t n, int64_t room)
{
    const uint64_t flags = flag * UINT64_C(0x0101010101010101);
    if (n <= (int64_t)sizeof flags && room >= (int64_t)sizeof flags)
        memcpy(to, &flags, sizeof flags);
    else
        memset(to, flag, (size_t)n);
}

/* Repeat weights: the first one is that of value `at` of x, and the weights of a row are `inner` weights, once for each
 * channel. A weight has `item` bytes. */
static ONCE_ONLY void repeat_weights(char *to, const bncore_weighting *w, int64_t at, int64_t len,
                                     size_t item)
{
    int64_t from = shared_place(w, at), in_run = at % w->inner, in_row = at % w->width;
    const char *values = w->values;
    for (int64_t i = 0; i < len;) {
        const int64_t run = bncore_min(w->inner - in_run, len - i);
        if (w->inner == 1) {
            const int64_t row = bncore_min(w->width - in_row, len - i);
            if (item == 1)
                repeat_flag(to + i, (uint8_t)values[from], row, len - i);
            else
                for (int64_t l = 0; l < row; l++)
                    ((double *)(void *)to)[i + l] = ((const double *)(const void *)values)[from];
            i += row;
            in_row = 0;
            from++;
            continue;
        }
        memcpy(to + (size_t)i * item, values + (size_t)from * item, (size_t)run * item);
        i += run;
        in_row += run;
        from += run;
        in_run = 0;
        if (in_row < w->width)
            from -= w->inner;
        else
            in_row = 0;
    }
}

/* The flags of `len` values, at most MOST_FLAGS unless they lie in memory. They are written to `room` if they do not. */
static ONCE_ONLY const uint8_t *flags_of(uint8_t *room, const bncore_weighting *w, int64_t at,
                                         int64_t len)
{
    const uint8_t *bytes = w->values;
    if (!bytes) {
        memset(room, 1, (size_t)len);
        return room;
    }
    if (!w->doubles && !w->width) return bytes + at;
    if (!w->doubles) {
        repeat_weights((char *)room, w, at, len, 1);
        return room;
    }
    enum { PART = 64 };
    for (int64_t i = 0, n; i < len; i += n) {
        double repeated[PART];
        const double *values = (const double *)w->values + at + i;
        n = bncore_min(len - i, PART);
        if (w->width) {
            repeat_weights((char *)repeated, w, at + i, n, sizeof(double));
            values = repeated;
        }
#pragma omp simd
        for (int64_t l = 0; l < n; l++) room[i + l] = values[l] != 0.0;
    }
    return room;
}

/* The weights of `len` values as doubles, where they are doubles. */
static ONCE_ONLY const double *doubles_of(double *room, const bncore_weighting *w, int64_t at,
                                          int64_t len)
{
    if (!w->width) return (const double *)w->values + at;
    repeat_weights((char *)room, w, at, len, sizeof(double));
    return room;
}

/* How many of `len` flags are 1. Eight are added at once, as the bytes of a word. */
static ONCE_ONLY int64_t count_flags(const uint8_t *flags, int64_t len)
{
    enum { MOST = 255 };
    int64_t count = 0, i = 0;
    while (i + 8 <= len) {
        const int64_t words = bncore_min((len - i) / 8, MOST);
        uint64_t sum = 0;
        for (int64_t k = 0; k < words; k++) {
            uint64_t word;
            memcpy(&word, flags + i + 8 * k, sizeof word);
            sum += word;
        }
        for (int b = 0; b < 8; b++) count += (int64_t)(sum >> 8 * b & 0xFF);
        i += 8 * words;
    }
    for (; i < len; i++) count += flags[i];
    return count;
}

/* Replace those of n values whose flag is 0 by `others`; n is a constant and a multiple of 8. */
static inline ALWAYS_INLINE void replace_f32(float *values, const float *others,
                                             const uint8_t *flags, int n)
{
    int l = 0;
#if defined(__AVX512F__)
    for (; l + 16 <= n; l += 16) {
        const __m128i bytes = _mm_loadu_si128((const void *)(flags + l));
        const __mmask16 kept = _mm_test_epi8_mask(bytes, bytes);
        _mm512_storeu_ps(values + l, _mm512_mask_blend_ps(kept, _mm512_loadu_ps(others + l),
                                                          _mm512_loadu_ps(values + l)));
    }
#endif
#if defined(__AVX2__)
    for (; l + 8 <= n; l += 8) {
        const __m128i bytes = _mm_loadl_epi64((const void *)(flags + l));
        const __m256i none = _mm256_cvtepi8_epi32(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()));
        _mm256_storeu_ps(values + l,
                         _mm256_blendv_ps(_mm256_loadu_ps(values + l), _mm256_loadu_ps(others + l),
                                          _mm256_castsi256_ps(none)));
    }
#endif
    for (; l < n; l++) values[l] = flags[l] ? values[l] : others[l];
}

static inline ALWAYS_INLINE void replace_f64(double *values, const double *others,
                                             const uint8_t *flags, int n)
{
    int l = 0;
#if defined(__AVX512F__)
    for (; l + 8 <= n; l += 8) {
        const __m128i bytes = _mm_loadl_epi64((const void *)(flags + l));
        const __mmask8 kept = (__mmask8)_mm_test_epi8_mask(bytes, bytes);
        _mm512_storeu_pd(values + l, _mm512_mask_blend_pd(kept, _mm512_loadu_pd(others + l),
                                                          _mm512_loadu_pd(values + l)));
    }
#elif defined(__AVX2__)
    for (; l + 4 <= n; l += 4) {
        int32_t four;
        memcpy(&four, flags + l, sizeof four);
        const __m128i none = _mm_cmpeq_epi8(_mm_cvtsi32_si128(four), _mm_setzero_si128());
        _mm256_storeu_pd(values + l,
                         _mm256_blendv_pd(_mm256_loadu_pd(values + l), _mm256_loadu_pd(others + l),
                                          _mm256_castsi256_pd(_mm256_cvtepi8_epi64(none))));
    }
#endif
    for (; l < n; l++) values[l] = flags[l] ? values[l] : others[l];
}

static inline ALWAYS_INLINE void replace_f16(float *values, const float *others,
                                             const uint8_t *flags, int n)
{
    replace_f32(values, others, flags, n);
}

static inline ALWAYS_INLINE void replace_bf16(float *values, const float *others,
                                              const uint8_t *flags, int n)
{
    replace_f32(values, others, flags, n);
}

/* Make 0 of those of LANES values whose flag is 0. */
static inline ALWAYS_INLINE void keep_flagged(double *values, const uint8_t *flags)
{
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128((const void *)flags);
    const __mmask16 kept = _mm_test_epi8_mask(bytes, bytes);
    const __m512d low = _mm512_loadu_pd(values), high = _mm512_loadu_pd(values + 8);
    _mm512_storeu_pd(values, _mm512_maskz_mov_pd((__mmask8)kept, low));
    _mm512_storeu_pd(values + 8, _mm512_maskz_mov_pd((__mmask8)(kept >> 8), high));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadu_si128((const void *)flags);
    const __m128i none = _mm_cmpeq_epi8(bytes, _mm_setzero_si128());
    const __m256d a = _mm256_castsi256_pd(_mm256_cvtepi8_epi64(none));
    const __m256d b = _mm256_castsi256_pd(_mm256_cvtepi8_epi64(_mm_srli_si128(none, 4)));
    const __m256d c = _mm256_castsi256_pd(_mm256_cvtepi8_epi64(_mm_srli_si128(none, 8)));
    const __m256d d = _mm256_castsi256_pd(_mm256_cvtepi8_epi64(_mm_srli_si128(none, 12)));
    _mm256_storeu_pd(values, _mm256_andnot_pd(a, _mm256_loadu_pd(values)));
    _mm256_storeu_pd(values + 4, _mm256_andnot_pd(b, _mm256_loadu_pd(values + 4)));
    _mm256_storeu_pd(values + 8, _mm256_andnot_pd(c, _mm256_loadu_pd(values + 8)));
    _mm256_storeu_pd(values + 12, _mm256_andnot_pd(d, _mm256_loadu_pd(values + 12)));
#else
    for (int l = 0; l < BNCORE_LANES; l++) values[l] = flags[l] ? values[l] : 0.0;
#endif
}

/* The same, and 0 of the first `skip`. Returns how many are kept. */
static inline ALWAYS_INLINE int keep_and_count(double *values, const uint8_t *flags, int skip)
{
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128((const void *)flags);
    const __mmask16 kept = (__mmask16)(_mm_test_epi8_mask(bytes, bytes) & 0xFFFFU << skip);
    for (int l = 0; l < BNCORE_LANES; l += 8)
        _mm512_storeu_pd(values + l,
                         _mm512_maskz_mov_pd((__mmask8)(kept >> l), _mm512_loadu_pd(values + l)));
    return __builtin_popcount(kept);
#elif defined(__AVX2__)
    int count = 0;
    for (int l = 0; l < BNCORE_LANES; l += 4) {
        int32_t four;
        memcpy(&four, flags + l, sizeof four);
        if (skip > l)
            four =
                skip >= l + 4 ? 0 : (int32_t)((uint32_t)four >> 8 * (skip - l) << 8 * (skip - l));
        const __m256i wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
        const __m256i none = _mm256_cmpeq_epi64(wide, _mm256_setzero_si256());
        _mm256_storeu_pd(values + l,
                         _mm256_andnot_pd(_mm256_castsi256_pd(none), _mm256_loadu_pd(values + l)));
        count += __builtin_popcount((uint32_t)four);
    }
    return count;
#else
    int count = 0;
#pragma omp simd reduction(+ : count)
    for (int l = 0; l < BNCORE_LANES; l++) {
        const int kept = (l >= skip) & (flags[l] != 0);
        values[l] = kept ? values[l] : 0.0;
        count += kept;
    }
    return count;
#endif
}

/* Make 0 of LANES gradients and the factors beside them where the flag is 0 and, if `unfilled`, the gradient is 0. */
static inline ALWAYS_INLINE void leave_out(double *gradients, double *factors, const uint8_t *flags,
                                           int unfilled)
{
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128((const void *)flags);
    const __mmask16 kept = _mm_test_epi8_mask(bytes, bytes);
    const __mmask8 any = unfilled ? 0xFF : 0;
    for (int l = 0; l < BNCORE_LANES; l += 8) {
        const __m512d g = _mm512_loadu_pd(gradients + l);
        const __mmask8 some = _mm512_mask_cmp_pd_mask(any, g, _mm512_setzero_pd(), _CMP_NEQ_UQ);
        const __mmask8 in = (__mmask8)(kept >> l) | some;
        _mm512_storeu_pd(gradients + l, _mm512_maskz_mov_pd(in, g));
        _mm512_storeu_pd(factors + l, _mm512_maskz_mov_pd(in, _mm512_loadu_pd(factors + l)));
    }
#elif defined(__AVX2__)
    const __m256d any = _mm256_castsi256_pd(_mm256_set1_epi64x(unfilled ? -1 : 0));
    for (int l = 0; l < BNCORE_LANES; l += 4) {
        int32_t four;
        memcpy(&four, flags + l, sizeof four);
        const __m256i wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
        const __m256i none = _mm256_cmpeq_epi64(wide, _mm256_setzero_si256());
        const __m256d g = _mm256_loadu_pd(gradients + l);
        const __m256d some = _mm256_and_pd(any, _mm256_cmp_pd(g, _mm256_setzero_pd(), _CMP_NEQ_UQ));
        const __m256d out = _mm256_andnot_pd(some, _mm256_castsi256_pd(none));
        _mm256_storeu_pd(gradients + l, _mm256_andnot_pd(out, g));
        _mm256_storeu_pd(factors + l, _mm256_andnot_pd(out, _mm256_loadu_pd(factors + l)));
    }
#else
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        const int in = flags[l] | (unfilled & (gradients[l] != 0.0));
        gradients[l] = in ? gradients[l] : 0.0;
        factors[l] = in ? factors[l] : 0.0;
    }
#endif
}

#endif
