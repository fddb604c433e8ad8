#include "partition.h"

static int64_t gcd(int64_t a, int64_t b)
{
    return b == 0 ? a : gcd(b, a % b);
}

/* Rows: how many rows are read as one. Together they are a whole number of vectors wide, and at least four vectors. */
static int64_t rows_per_fold(int64_t outer, int64_t width)
{
    if (width > BNCORE_FOLD_WIDTH || width == 0) return 1;
    int64_t fold = BNCORE_LANES / gcd(BNCORE_LANES, width);
    while (fold * width < 4 * BNCORE_LANES) fold *= 2;
    return outer < 8 * fold ? 1 : fold;
}

static void partition_planes(bncore_geometry *g)
{
    const int64_t wanted = bncore_min(bncore_max(g->n / BNCORE_SEGMENT, 1), BNCORE_MAX_SEGMENTS);
    g->segment = bncore_ceil_div(bncore_ceil_div(g->n, wanted), BNCORE_BLOCK) * BNCORE_BLOCK;
    g->segments = bncore_ceil_div(g->n, g->segment);
}

static void partition_rows(bncore_geometry *g)
{
    const int64_t width = g->channels * g->inner;
    const int64_t fold = rows_per_fold(g->outer, width);
    g->cols = fold * width;
    g->short_cols = (g->outer % fold) * width;
    g->rows = bncore_ceil_div(g->outer, fold);
    const int64_t blocks = bncore_ceil_div(g->rows, BNCORE_ROW_BLOCK);
    const int64_t wanted = bncore_min(blocks, BNCORE_MAX_SEGMENTS);
    g->segment = bncore_ceil_div(blocks, wanted) * BNCORE_ROW_BLOCK;
    g->segments = bncore_ceil_div(g->rows, g->segment);
}

bncore_geometry bncore_partition(int64_t outer, int64_t channels, int64_t inner)
{
    bncore_geometry g = {.outer = outer, .channels = channels, .inner = inner, .n = outer * inner};
    if (channels == 1) {
        g.outer = 1;
        g.inner = g.n;
    }
    g.planes = g.inner >= BNCORE_LANES;
    if (g.n == 0 || channels == 0) return g;
    if (g.planes)
        partition_planes(&g);
    else
        partition_rows(&g);
    return g;
}

int64_t bncore_group_size(const bncore_geometry *g, int64_t bytes, int32_t threads)
{
    const int64_t cache = 768 * 1024, run = 24 * 1024;
    const int64_t fits = cache / bncore_max(g->n * bytes, 1);
    const int64_t long_enough = bncore_ceil_div(run, g->inner * bytes);
    const int64_t wanted = bncore_min(bncore_max(bncore_max(fits, long_enough), 1), BNCORE_GROUP);
    return bncore_min(wanted, bncore_max(g->channels / threads, 1));
}

int64_t bncore_line_segment(int64_t samples)
{
    const int64_t tiles = bncore_ceil_div(samples, BNCORE_LINE_SEGMENTS * BNCORE_LINE_TILE);
    return bncore_max(tiles * BNCORE_LINE_TILE, BNCORE_LINE_SEGMENT);
}
