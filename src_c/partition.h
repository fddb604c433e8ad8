/* Divides a problem. Everything here depends on the shape alone, and so the order of every addition does, too. */
#ifndef BNCORE_PARTITION_H
#define BNCORE_PARTITION_H

#include <stdint.h>

enum {
    BNCORE_LANES = 16,      /* virtual lanes of a planes reduction */
    BNCORE_BLOCK = 4096,    /* planes: values between two flushes of the lanes */
    BNCORE_ROW_BLOCK = 256, /* rows: rows between two flushes */
    BNCORE_PIVOT_ROWS = 8,  /* rows: the first pivot is the mean of so many rows */
    BNCORE_SEGMENT = 32768, /* planes: least values of a segment, the unit of parallel reduction */
    BNCORE_MAX_SEGMENTS = 64, /* segments per channel: bounds scratch */
    BNCORE_FOLD_WIDTH = 256,  /* rows: rows narrower than this may be folded into wider ones */
    BNCORE_GROUP = 32,        /* planes: channels per task, at most */
    BNCORE_LINE_TILE = 4,     /* lines whose columns are added in one tree */
    BNCORE_LINE_SEGMENT =
        16, /* lines: least samples of a sum over samples, a multiple of BNCORE_LINE_TILE */
    BNCORE_LINE_SEGMENTS = 64 /* lines: such sums, at most */
};

/* Planes (inner >= 16): a channel has `outer` runs of `inner` values, and value e lies in image e / inner. Rows (the
 * others): memory is a matrix of `cols` columns, and column j belongs to channel (j / inner) % channels. `rows`
 * includes a last row that may have only `short_cols` columns (0: it has all). */
typedef struct bncore_geometry {
    int planes;
    int64_t outer, channels, inner;
    int64_t n; /* values per channel */
    int64_t rows, cols, short_cols;
    int64_t segments,
        segment; /* how many, and values (planes) or rows (rows) of each but the last */
} bncore_geometry;

bncore_geometry bncore_partition(int64_t outer, int64_t channels, int64_t inner);

/* Planes: how many channels a task takes. The values of a task (`bytes` each, over all arrays) then stay in the
 * core's own cache between the two passes, runs are long enough for the prefetcher, and there are at least
 * `threads` tasks where there are as many channels. */
int64_t bncore_group_size(const bncore_geometry *g, int64_t bytes, int32_t threads);

/* Lines: how many samples a segment of a sum over samples has. */
int64_t bncore_line_segment(int64_t samples);

/* Whether the mean of n values is so near 0, beside their squares about the mean, that nothing is lost if they are summed
 * about 0: the squares about 0 are then at most 16 times as large. */
static inline int bncore_is_near_0(double n, double mean, double squares)
{
    return n * (mean * mean) <= 15.0 * squares;
}

static inline int64_t bncore_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
static inline int64_t bncore_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}
static inline int64_t bncore_ceil_div(int64_t a, int64_t b)
{
    return a / b + (a % b != 0);
}

#endif
