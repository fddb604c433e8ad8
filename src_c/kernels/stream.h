/* Stores that pass the caches by. Only this file uses intrinsics. */
#ifndef BNCORE_STREAM_H
#define BNCORE_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

enum { LINE = 64 }; /* bytes of a line of the caches */

/* Whether stream_line() passes the caches by. Where it is a plain copy, streaming only adds a copy of every line. */
#if defined(__SSE2__)
enum { STREAMS = 1 };
#else
enum { STREAMS = 0 };
#endif

/* Write one line; dst must be the start of a line. */
static inline void stream_line(void *dst, const void *src)
{
#if defined(__AVX512F__)
    _mm512_stream_si512(dst, _mm512_loadu_si512(src));
#elif defined(__AVX__)
    for (int i = 0; i < 2; i++)
        _mm256_stream_si256((__m256i *)dst + i, _mm256_loadu_si256((const __m256i *)src + i));
#elif defined(__SSE2__)
    for (int i = 0; i < 4; i++)
        _mm_stream_si128((__m128i *)dst + i, _mm_loadu_si128((const __m128i *)src + i));
#else
    memcpy(dst, src, LINE);
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
