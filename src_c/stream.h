/* Stores that pass the caches: the one place with intrinsics. */
#ifndef BNCORE_STREAM_H
#define BNCORE_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

enum { STREAM_BYTES = 2048, LINE = 64 };

/* Whole lines only; dst is on a line's start. */
static inline void stream_lines(char *dst, const char *src, size_t lines)
{
#if defined(__AVX512F__)
    for (size_t i = 0; i < lines * LINE; i += LINE)
        _mm512_stream_si512((void *)(dst + i), _mm512_loadu_si512(src + i));
#elif defined(__SSE2__)
    for (size_t i = 0; i < lines * LINE; i += 16)
        _mm_stream_si128((__m128i *)(dst + i), _mm_loadu_si128((const __m128i *)(src + i)));
#else
    memcpy(dst, src, lines * LINE);
#endif
}

static inline void stream_out(void *dst_, const void *src_, size_t bytes)
{
    char *dst = dst_;
    const char *src = src_;
    size_t head = (size_t)(-(uintptr_t)dst & (LINE - 1));
    if (head > bytes) head = bytes;
    memcpy(dst, src, head);
    const size_t lines = (bytes - head) / LINE, done = head + lines * LINE;
    stream_lines(dst + head, src + head, lines);
    memcpy(dst + done, src + done, bytes - done);
}

/* Streamed stores are ordered with later ones only after this. */
static inline void stream_end(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#endif
