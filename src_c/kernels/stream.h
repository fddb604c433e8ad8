/* Stores that pass the caches by. Only this file, storage.h and weights.h use intrinsics. */
#ifndef BNCORE_STREAM_H
#define BNCORE_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

enum { LINE = 64 }; /* bytes of a line of the caches */

/* Whether stream() passes the caches by. Where it is a plain copy, streaming only adds a copy of every line. */
#if defined(__SSE2__)
enum { STREAMS = 1 };
#else
enum { STREAMS = 0 };
#endif

/* Write a line, or half of one (bytes: a constant); dst must be the start of a line or of its second half. The other half
 * is expected to follow at once. */
static inline __attribute__((always_inline)) void stream(void *dst, const void *src, int bytes)
{
#if defined(__AVX512F__)
    if (bytes == LINE)
        _mm512_stream_si512(dst, _mm512_loadu_si512(src));
    else
        _mm256_stream_si256(dst, _mm256_loadu_si256(src));
#elif defined(__AVX__)
    for (int i = 0; i < bytes / 32; i++)
        _mm256_stream_si256((__m256i *)dst + i, _mm256_loadu_si256((const __m256i *)src + i));
#elif defined(__SSE2__)
    for (int i = 0; i < bytes / 16; i++)
        _mm_stream_si128((__m128i *)dst + i, _mm_loadu_si128((const __m128i *)src + i));
#else
    memcpy(dst, src, (size_t)bytes);
#endif
}

/* Order the streamed stores before all later stores. */
static inline void stream_end(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#endif
