/* Stores that pass the caches: the one place with intrinsics. */
#ifndef BNCORE_STREAM_H
#define BNCORE_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

/* Bytes: a line of the caches, and the tile in which values gather. */
enum { LINE = 64, STREAM_TILE = 2048 };

/* Whole lines, both on a line's start. */
static inline void stream_lines(void *dst_, const void *src_, size_t lines)
{
    char *dst = dst_;
    const char *src = src_;
#if defined(__AVX512F__)
    for (size_t i = 0; i < lines * LINE; i += LINE)
        _mm512_stream_si512((void *)(dst + i), _mm512_load_si512(src + i));
#elif defined(__AVX__)
    for (size_t i = 0; i < lines * LINE; i += 32)
        _mm256_stream_si256((__m256i *)(dst + i), _mm256_load_si256((const __m256i *)(src + i)));
#elif defined(__SSE2__)
    for (size_t i = 0; i < lines * LINE; i += 16)
        _mm_stream_si128((__m128i *)(dst + i), _mm_load_si128((const __m128i *)(src + i)));
#else
    memcpy(dst, src, lines * LINE);
#endif
}

/* Streamed stores are ordered with later ones only after this. */
static inline void stream_end(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#endif
