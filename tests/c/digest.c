/* Digests of results, which are the same on every machine whose results have the same bits. */
#include <math.h>
#include <string.h>

#include "cases.h"

/* The lowest byte comes first, wherever the machine has it in memory. */
static uint64_t add_bits(uint64_t state, uint64_t bits, size_t bytes)
{
    for (size_t b = 0; b < bytes; b++)
        state = (state ^ (bits >> 8 * b & 0xFF)) * UINT64_C(0x100000001b3);
    return state;
}

static uint64_t bits_at(const void *array, int64_t i, size_t bytes)
{
    uint64_t bits64;
    uint32_t bits32;
    uint16_t bits16;
    const char *at = (const char *)array + (size_t)i * bytes;
    switch (bytes) {
    case sizeof bits64:
        memcpy(&bits64, at, sizeof bits64);
        return bits64;
    case sizeof bits32:
        memcpy(&bits32, at, sizeof bits32);
        return bits32;
    default:
        memcpy(&bits16, at, sizeof bits16);
        return bits16;
    }
}

uint64_t digest(uint64_t state, bncore_dtype dtype, const void *array, int64_t n)
{
    const size_t bytes = item_size(&(test_case){.dtype = dtype});
    const uint64_t any_nan = UINT64_MAX;
    for (int64_t i = 0; array && i < n; i++) {
        const int is_nan = isnan(read_value(dtype, array, i));
        state = add_bits(state, is_nan ? any_nan : bits_at(array, i, bytes), bytes);
    }
    return state;
}
