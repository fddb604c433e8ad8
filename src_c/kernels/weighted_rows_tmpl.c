/* Moments of weighted values in rows, for storage type T (weighted_moments_tmpl.c). Rows without weight are left out where a
 * row has one weight. Weights that do not lie in memory as they are used are laid out there first, for up to WEIGHTED_STRIP
 * columns. */

/* Columns at a time where every row has one weight; sums in chains take more of the stack. */
enum { NAME(WIDE_STRIP) = CHAINED ? WEIGHTED_STRIP : 2 * WEIGHTED_STRIP };

/* Some rows, with their flags or weights, as `from` says. */
typedef struct NAME(weighted_tile) {
    int rows;
    const T *const *x;
    const uint8_t *const *flags;
    const double *const *weights;
} NAME(weighted_tile);

/* The sums of a block. */
typedef struct NAME(weighted_columns) {
    double s[NAME(WIDE_STRIP)], q[NAME(WIDE_STRIP)], n[NAME(WIDE_STRIP)];
    const double *pivot;
    uint8_t few[NAME(WIDE_STRIP)]; /* flags that are not in n yet, fewer than 256 */
    union {
        uint8_t flags[ROW_TILE][WEIGHTED_STRIP];
        double weights[1][WEIGHTED_STRIP];
    } room;
} NAME(weighted_columns);

/* Rows of the strip, of which the first value is value `at` of x. */
typedef struct NAME(some_rows) {
    const T *x;
    int64_t at, stride, cols, rows;
} NAME(some_rows);

static inline NAME(some_rows) NAME(rows_from)(NAME(some_rows) t, int64_t r, int64_t rows)
{
    return (NAME(some_rows)){t.x + r * t.stride, t.at + r * t.stride, t.stride, t.cols, rows};
}

/* The weight of value j of row r. */
static inline ALWAYS_INLINE double NAME(tile_weight)(const NAME(weighted_tile) * t, int r,
                                                     int64_t j, int from)
{
    if (from == FLAGS) return t->flags[r][j];
    if (from == WEIGHTS) return t->weights[r][j];
    if (from == ROW_WEIGHTS) return t->weights[r][0];
    return from == NUMBERS ? (double)NAME(is_number)(t->x[r][j]) : 1.0;
}

/* Add the rows, which are t->rows and have flags, to LANES columns from j on. */
static inline ALWAYS_INLINE void NAME(add_flagged_strip)(NAME(weighted_columns) * c,
                                                         const NAME(weighted_tile) * t, int64_t j,
                                                         int rows)
{
    double s[BNCORE_LANES], q[BNCORE_LANES], pivot[BNCORE_LANES];
    uint8_t few[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++)
        s[l] = c->s[j + l], q[l] = c->q[j + l], pivot[l] = c->pivot[j + l];
    memcpy(few, c->few + j, sizeof few);
    for (int r = 0; r < rows; r++) {
        const uint8_t *flags = t->flags[r] + j;
        double d[BNCORE_LANES];
        fetch(t->x[r] + j, AHEAD, LEVEL_2);
        fetch(flags, AHEAD / (int)sizeof(T), LEVEL_2);
        NAME(load_doubles)(d, t->x[r] + j, BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) d[l] -= pivot[l];
        keep_flagged(d, flags);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            s[l] += d[l];
            q[l] += d[l] * d[l];
        }
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) few[l] += flags[l];
    }
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) c->s[j + l] = s[l], c->q[j + l] = q[l];
    memcpy(c->few + j, few, sizeof few);
}

/* The same for rows whose weights are not a flag for each value. */
static inline ALWAYS_INLINE void NAME(add_weighted_strip)(NAME(weighted_columns) * c,
                                                          const NAME(weighted_tile) * t, int64_t j,
                                                          int rows, int from)
{
    const int counts = from != ROW_FLAGS && from != ROW_WEIGHTS;
    double s[BNCORE_LANES], q[BNCORE_LANES], n[BNCORE_LANES], pivot[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        s[l] = c->s[j + l], q[l] = c->q[j + l], pivot[l] = c->pivot[j + l];
        n[l] = counts ? c->n[j + l] : 0.0;
    }
    for (int r = 0; r < rows; r++) {
        double d[BNCORE_LANES], w[BNCORE_LANES];
        fetch(t->x[r] + j, AHEAD, LEVEL_2);
        NAME(load_doubles)(d, t->x[r] + j, BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            d[l] -= pivot[l];
            if (from == WEIGHTS) w[l] = t->weights[r][j + l];
            if (from == ROW_WEIGHTS) w[l] = t->weights[r][0];
            if (from == NUMBERS) w[l] = d[l] == d[l] ? 1.0 : 0.0;
            if (counts) d[l] = w[l] != 0.0 ? d[l] : 0.0;
            const double wd = from == WEIGHTS || from == ROW_WEIGHTS ? w[l] * d[l] : d[l];
            s[l] += wd;
            q[l] += wd * d[l];
            if (counts) n[l] += w[l];
        }
    }
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        c->s[j + l] = s[l], c->q[j + l] = q[l];
        if (counts) c->n[j + l] = n[l];
    }
}

static inline ALWAYS_INLINE void NAME(add_weighted_tile)(NAME(weighted_columns) * c,
                                                         const NAME(weighted_tile) * t,
                                                         int64_t cols, int rows, int from)
{
    const int counts = from != ROW_FLAGS && from != ROW_WEIGHTS;
    int64_t j = 0;
    for (; j + BNCORE_LANES <= cols; j += BNCORE_LANES)
        if (from == FLAGS)
            NAME(add_flagged_strip)(c, t, j, rows);
        else
            NAME(add_weighted_strip)(c, t, j, rows, from);
    for (; j < cols; j++)
        for (int r = 0; r < rows; r++) {
            const double w = NAME(tile_weight)(t, r, j, from);
            const double d = w != 0.0 ? (double)NAME(load)(t->x[r][j]) - c->pivot[j] : 0.0;
            const double wd = w * d;
            c->s[j] += wd;
            c->q[j] += wd * d;
            if (counts) c->n[j] += w;
        }
}

/* Add ROW_TILE rows at once, and what is left one by one: the sums stay in registers where the number of rows is a
 * constant. */
static inline ALWAYS_INLINE void NAME(add_tile_from)(NAME(weighted_columns) * c,
                                                     NAME(weighted_tile) t, int64_t cols, int from)
{
    for (int rows; t.rows > 0; t.rows -= rows, t.x += rows) {
        rows = t.rows >= ROW_TILE ? ROW_TILE : 1;
        if (rows == ROW_TILE)
            NAME(add_weighted_tile)(c, &t, cols, ROW_TILE, from);
        else
            NAME(add_weighted_tile)(c, &t, cols, 1, from);
        if (from == FLAGS) t.flags += rows;
        if (from == WEIGHTS || from == ROW_WEIGHTS) t.weights += rows;
    }
}

static ONCE_ONLY void NAME(add_tile_with)(NAME(weighted_columns) * c, NAME(weighted_tile) t,
                                          int64_t cols, int from)
{
    if (from == FLAGS)
        NAME(add_tile_from)(c, t, cols, FLAGS);
    else if (from == NUMBERS)
        NAME(add_tile_from)(c, t, cols, NUMBERS);
    else if (from == ROW_FLAGS)
        NAME(add_tile_from)(c, t, cols, ROW_FLAGS);
    else if (from == ROW_WEIGHTS)
        NAME(add_tile_from)(c, t, cols, ROW_WEIGHTS);
    else
        NAME(add_tile_from)(c, t, cols, WEIGHTS);
}

/* Add up to BNCORE_ROW_BLOCK rows that have one weight each: those without weight are left out. Returns the sum of the
 * weights. */
static ONCE_ONLY double NAME(add_whole_rows)(NAME(weighted_columns) * c,
                                             const bncore_weighting *weighting, NAME(some_rows) t)
{
    const T
        *x[BNCORE_ROW_BLOCK]; /* those with weight from the front on, the others from the back */
    const double *weights[BNCORE_ROW_BLOCK];
    const int64_t place = t.at / t.stride;
    double sum = 0.0;
    int rows = 0, others = 0;
    for (int64_t r = 0; r < t.rows; r++) {
        const double w = weight_of(weighting, place + r);
        x[rows] = x[BNCORE_ROW_BLOCK - 1 - others] = t.x + r * t.stride;
        if (weighting->doubles) weights[rows] = (const double *)weighting->values + place + r;
        sum += w;
        rows += w != 0.0;
        others += w == 0.0;
    }
    /* Rows ahead of the others are fetched when these are added. */
    for (int i = 0; i < others; i++)
        for (int64_t j = 0; j < t.cols; j += NAME(IN_LINE))
            fetch(x[BNCORE_ROW_BLOCK - 1 - i] + j, AHEAD, LEVEL_2);
    const NAME(weighted_tile) tile = {rows, x, NULL, weights};
    NAME(add_tile_with)(c, tile, t.cols, weighting->doubles ? ROW_WEIGHTS : ROW_FLAGS);
    return sum;
}

/* The rows of a tile, and what its pointers point to. */
typedef struct NAME(tile_rows) {
    int rows;
    const T *x[TAKEN_ROWS];
    const uint8_t *flags[TAKEN_ROWS];
    const double *weights[TAKEN_ROWS];
} NAME(tile_rows);

/* Point a tile to rows r, r + 1 … and to their weights, which are laid out if need be. Returns where these come from. */
static ONCE_ONLY int NAME(take_rows)(NAME(tile_rows) * tile, NAME(weighted_columns) * c,
                                     const bncore_weighting *w, NAME(some_rows) t, int64_t r)
{
    const int in_memory = !w->values || (!w->width && !w->omit_nan);
    const int most = in_memory ? TAKEN_ROWS : w->doubles ? 1 : ROW_TILE;
    tile->rows = (int)bncore_min(t.rows - r, most);
    for (int i = 0; i < tile->rows; i++) {
        const int64_t from = (r + i) * t.stride;
        tile->x[i] = t.x + from;
        if (!w->values) continue;
        if (w->doubles)
            tile->weights[i] =
                NAME(weights_in)(c->room.weights[0], w, t.at + from, tile->x[i], t.cols);
        else
            tile->flags[i] = NAME(flags_in)(c->room.flags[in_memory ? 0 : i], w, t.at + from,
                                            tile->x[i], t.cols);
    }
    if (!w->values) return w->omit_nan ? NUMBERS : ROW_FLAGS;
    return w->doubles ? WEIGHTS : FLAGS;
}

/* Add the flags that were counted as bytes to n. */
static ONCE_ONLY void NAME(count_few)(NAME(weighted_columns) * c, int64_t cols)
{
#pragma omp simd
    for (int64_t j = 0; j < cols; j++) c->n[j] += c->few[j];
    memset(c->few, 0, (size_t)cols);
}

static ONCE_ONLY void NAME(sum_weighted_block)(NAME(weighted_columns) * c,
                                               const bncore_weighting *weighting, NAME(some_rows) t)
{
    double n = 0.0;
    for (int64_t j = 0; j < t.cols; j++) c->s[j] = c->q[j] = c->n[j] = 0.0;
    if (has_row_weights(weighting, t.stride)) {
        n = NAME(add_whole_rows)(c, weighting, t);
    } else {
        NAME(tile_rows) rows = {.rows = 0};
        memset(c->few, 0, (size_t)t.cols);
        for (int64_t r = 0; r < t.rows; r += rows.rows) {
            if (r == BNCORE_ROW_BLOCK / 2) NAME(count_few)(c, t.cols);
            const int from = NAME(take_rows)(&rows, c, weighting, t, r);
            const NAME(weighted_tile) tile = {rows.rows, rows.x, rows.flags, rows.weights};
            NAME(add_tile_with)(c, tile, t.cols, from);
            n += from == ROW_FLAGS ? rows.rows : 0;
        }
        NAME(count_few)(c, t.cols);
    }
    for (int64_t j = 0; n != 0.0 && j < t.cols; j++) c->n[j] = n;
}
