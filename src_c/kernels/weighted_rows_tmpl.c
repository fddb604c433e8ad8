/* Moments of weighted values in rows, for storage type T (weighted_moments_tmpl.c). Rows without weight are left out where a
 * row has one weight. Weights that do not lie in memory as they are used are laid out there first, for up to WEIGHTED_STRIP
 * columns. */

/* Columns at a time where every row has one weight; sums in chains take more of the stack. */
enum { NAME(WIDE_STRIP) = CHAINED ? WEIGHTED_STRIP : 2 * WEIGHTED_STRIP };

/* Up to ROW_TILE rows, with their flags or weights, as `from` says. */
typedef struct NAME(weighted_tile) {
    int rows;
    const T *x[ROW_TILE];
    const uint8_t *flags[ROW_TILE];
    const double *weights[ROW_TILE];
} NAME(weighted_tile);

/* The sums of a block. */
typedef struct NAME(weighted_columns) {
    double s[NAME(WIDE_STRIP)], q[NAME(WIDE_STRIP)], n[NAME(WIDE_STRIP)];
    const double *pivot;
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

/* Add the rows, which are t->rows, to LANES columns from j on. */
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
        if (from == FLAGS) load_flags_f64(w, t->flags[r] + j, BNCORE_LANES);
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

/* Add a whole tile at once, or its rows one by one: the sums stay in registers where the number of rows is a constant. */
static inline ALWAYS_INLINE void NAME(add_tile_from)(NAME(weighted_columns) * c,
                                                     const NAME(weighted_tile) * t, int64_t cols,
                                                     int from)
{
    if (t->rows == ROW_TILE) {
        NAME(add_weighted_tile)(c, t, cols, ROW_TILE, from);
        return;
    }
    for (int r = 0; r < t->rows; r++) {
        const NAME(weighted_tile) row = {1, {t->x[r]}, {t->flags[r]}, {t->weights[r]}};
        NAME(add_weighted_tile)(c, &row, cols, 1, from);
    }
}

static ONCE_ONLY void NAME(add_tile_with)(NAME(weighted_columns) * c, const NAME(weighted_tile) * t,
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

/* Add rows that have one weight each: those without weight are left out. Returns the sum of the weights. */
static ONCE_ONLY double NAME(add_whole_rows)(NAME(weighted_columns) * c,
                                             const bncore_weighting *weighting, NAME(some_rows) t)
{
    NAME(weighted_tile) tile = {.rows = 0};
    const int from = weighting->doubles ? ROW_WEIGHTS : ROW_FLAGS;
    const int64_t place = t.at / t.stride;
    double sum = 0.0;
    for (int64_t r = 0; r < t.rows; r++) {
        const double w = weight_of(weighting, place + r);
        if (w != 0.0) {
            sum += w;
            tile.x[tile.rows] = t.x + r * t.stride;
            if (weighting->doubles)
                tile.weights[tile.rows] = (const double *)weighting->values + place + r;
            tile.rows++;
        }
        if (tile.rows < ROW_TILE && r + 1 < t.rows) continue;
        NAME(add_tile_with)(c, &tile, t.cols, from);
        tile.rows = 0;
    }
    return sum;
}

/* Point a tile to rows r, r + 1 … and to their weights, which are laid out if need be. Returns where these come from. */
static ONCE_ONLY int NAME(take_rows)(NAME(weighted_tile) * tile, NAME(weighted_columns) * c,
                                     const bncore_weighting *w, NAME(some_rows) t, int64_t r)
{
    const int lay_out = w->values && w->doubles && (w->width || w->omit_nan);
    tile->rows = lay_out ? 1 : (int)bncore_min(t.rows - r, ROW_TILE);
    for (int i = 0; i < tile->rows; i++) {
        const int64_t from = (r + i) * t.stride;
        tile->x[i] = t.x + from;
        if (!w->values) continue;
        if (w->doubles)
            tile->weights[i] =
                NAME(weights_in)(c->room.weights[0], w, t.at + from, tile->x[i], t.cols);
        else
            tile->flags[i] = NAME(flags_in)(c->room.flags[i], w, t.at + from, tile->x[i], t.cols);
    }
    if (!w->values) return w->omit_nan ? NUMBERS : ROW_FLAGS;
    return w->doubles ? WEIGHTS : FLAGS;
}

static ONCE_ONLY void NAME(sum_weighted_block)(NAME(weighted_columns) * c,
                                               const bncore_weighting *weighting, NAME(some_rows) t)
{
    double n = 0.0;
    for (int64_t j = 0; j < t.cols; j++) c->s[j] = c->q[j] = c->n[j] = 0.0;
    if (has_row_weights(weighting, t.stride)) {
        n = NAME(add_whole_rows)(c, weighting, t);
    } else {
        NAME(weighted_tile) tile = {.rows = 0};
        for (int64_t r = 0; r < t.rows; r += tile.rows) {
            const int from = NAME(take_rows)(&tile, c, weighting, t, r);
            NAME(add_tile_with)(c, &tile, t.cols, from);
            n += from == ROW_FLAGS ? tile.rows : 0;
        }
    }
    for (int64_t j = 0; n != 0.0 && j < t.cols; j++) c->n[j] = n;
}

/* Add a row, whose flags are doubles, to what the first pivots are made of: of each column BNCORE_PIVOT_ROWS rows, from
 * the first value with weight on. That value is kept in `pivot`; `since` is how many rows have been seen from it on, and
 * `count` how many of them have weight. What is added to `to` is the difference to the first value, or, where the pivots
 * are known, the square of the difference to them. Returns whether a column has not seen all its rows. */
static inline ALWAYS_INLINE int NAME(add_first_row)(double *restrict to, double *restrict pivot,
                                                    double *restrict since, double *restrict count,
                                                    const double *restrict flags,
                                                    const T *restrict x, int64_t cols, int squares)
{
    const double all = BNCORE_PIVOT_ROWS;
    double open = 0.0;
#pragma omp simd reduction(+ : open)
    for (int64_t j = 0; j < cols; j++) {
        const double v = (double)NAME(load)(x[j]), rows = since[j];
        const double begun = rows > 0.0 ? 1.0 : flags[j], in = rows < all ? flags[j] : 0.0;
        const double first = rows > 0.0 || squares ? pivot[j] : v;
        const double d = in != 0.0 ? v - first : 0.0;
        if (!squares) pivot[j] = begun != 0.0 ? first : 0.0;
        to[j] += squares ? d * d : d;
        count[j] += in;
        since[j] = rows + begun;
        open += rows + begun < all ? 1.0 : 0.0;
    }
    return open > 0.0;
}

/* Add all rows that the first pivots are made of. `flags` has room for a row of them. */
static ONCE_ONLY void NAME(add_first_rows)(double *restrict to, double *restrict pivot,
                                           double *restrict flags, NAME(weighted_columns) * c,
                                           const bncore_arrays *a, const bncore_rows *t,
                                           int squares)
{
    uint8_t room[NAME(WIDE_STRIP)];
    for (int64_t j = 0; j < t->cols; j++) to[j] = c->q[j] = c->n[j] = 0.0;
    int open = 1;
    for (int64_t r = 0; r < t->rows && open; r++) {
        const T *x = (const T *)a->x + r * t->stride;
        const uint8_t *bytes =
            NAME(flags_in)(room, a->weighting, a->at + r * t->stride, x, t->cols);
        for (int64_t j = 0; j < t->cols; j++) flags[j] = bytes[j];
        open = squares ? NAME(add_first_row)(to, pivot, c->q, c->n, flags, x, t->cols, 1)
                       : NAME(add_first_row)(to, pivot, c->q, c->n, flags, x, t->cols, 0);
    }
}

/* Start the running statistics of columns, and set `square` to the mean square of the values that made the first pivots;
 * the pivot of a column without weight is 0. */
static ONCE_ONLY void NAME(start_weighted_columns)(NAME(weighted_columns) * c,
                                                   bncore_partial partial, const bncore_arrays *a,
                                                   const bncore_rows *t, double *restrict square)
{
    double *restrict n = partial.at, *restrict pivot = n + RUNNING_PIVOT * partial.stride;
    double *restrict S = n + RUNNING_S * partial.stride;
    double *restrict Q = n + RUNNING_Q * partial.stride;
    for (int64_t j = 0; j < t->cols; j++) n[j] = pivot[j] = S[j] = Q[j] = 0.0;
    NAME(add_first_rows)(c->s, pivot, square, c, a, t, 0);
    for (int64_t j = 0; j < t->cols; j++) {
        const double mean = pivot[j] + c->s[j] / c->n[j];
        pivot[j] = is_finite(mean) ? mean : 0.0;
        square[j] = 0.0;
    }
#if CHAINED
    if (a->float64_sums) return;
    for (int64_t j = 0; j < t->cols; j++) pivot[j] = NAME(rounded_pivot)(pivot[j]);
    NAME(add_first_rows)(square, pivot, c->s, c, a, t, 1);
    for (int64_t j = 0; j < t->cols; j++) square[j] = c->n[j] > 0.0 ? square[j] / c->n[j] : 0.0;
#endif
}

/* Flush a block; `square` becomes the mean square so far. */
static ONCE_ONLY void NAME(flush_weighted_columns)(bncore_partial partial,
                                                   const NAME(weighted_columns) * c,
                                                   double *restrict square, int64_t cols,
                                                   int float64_sums)
{
    double *restrict n = partial.at, *restrict pivot = n + RUNNING_PIVOT * partial.stride;
    double *restrict S = n + RUNNING_S * partial.stride;
    double *restrict Q = n + RUNNING_Q * partial.stride;
    const double *restrict s = c->s, *restrict q = c->q, *restrict more = c->n;
#pragma omp simd
    for (int64_t j = 0; j < cols; j++) {
        const double any = more[j];
#if CHAINED
        const running moved =
            float64_sums
                ? running_flush((running){n[j], pivot[j], S[j], Q[j]}, s[j], q[j], any)
                : NAME(flush_rounded)((running){n[j], pivot[j], S[j], Q[j]}, s[j], q[j], any);
#else
        const running moved = running_flush((running){n[j], pivot[j], S[j], Q[j]}, s[j], q[j], any);
        (void)float64_sums;
#endif
        n[j] = moved.n;
        pivot[j] = any != 0.0 ? moved.pivot : pivot[j];
        S[j] = any != 0.0 ? moved.S : S[j];
        Q[j] = any != 0.0 ? moved.Q : Q[j];
        square[j] = any != 0.0 ? moved.Q / moved.n : square[j];
    }
}

#if CHAINED
/* Whether all weights of each column are 1. Returns whether those of all columns are. */
static ONCE_ONLY int NAME(find_ones)(uint8_t *ones, const bncore_weighting *weighting,
                                     NAME(some_rows) t)
{
    memset(ones, 1, (size_t)t.cols);
    for (int64_t r = 0; r < t.rows; r++) {
        const NAME(some_rows) row = NAME(rows_from)(t, r, 1);
        double room[WEIGHTED_STRIP];
        if (weighting->doubles) {
            const double *weights = NAME(weights_in)(room, weighting, row.at, row.x, row.cols);
            for (int64_t j = 0; j < row.cols; j++) ones[j] &= weights[j] == 1.0;
        } else {
            const uint8_t *flags =
                NAME(flags_in)((uint8_t *)room, weighting, row.at, row.x, row.cols);
            for (int64_t j = 0; j < row.cols; j++) ones[j] &= flags[j];
        }
    }
    return count_flags(ones, t.cols) == t.cols;
}

/* Sum a block in chains where they may be, and as sum_weighted_block does elsewhere. */
static void NAME(sum_chained_block)(NAME(weighted_columns) * w, const bncore_weighting *weighting,
                                    const double *square, NAME(some_rows) t)
{
    uint8_t ones[WEIGHTED_STRIP];
    double s[WEIGHTED_STRIP] = {0}, q[WEIGHTED_STRIP] = {0};
    running_columns chains = {s, q};
    const int all = NAME(find_ones)(ones, weighting, t);
    int any = 0;
    for (int64_t j = 0; j < t.cols; j++) any |= ones[j] && is_chained(square[j]);
    if (any) {
        NAME(chain_block)(&chains, w->pivot, t.x, t.stride, t.cols, t.rows);
        if (all) NAME(mend_columns)(&chains, square, w->pivot, t.x, t.stride, t.cols, t.rows);
    }
    if (!any || !all) NAME(sum_weighted_block)(w, weighting, t);
    for (int64_t j = 0; any && j < t.cols; j++) {
        const int counts =
            ones[j] && is_chained(square[j]) && keeps_digits(s[j], q[j], (double)t.rows);
        if (!all && !counts) continue;
        w->s[j] = s[j], w->q[j] = q[j], w->n[j] = (double)t.rows;
    }
}
#endif

static ONCE_ONLY void NAME(weighted_strip)(bncore_partial partial, const bncore_arrays *a,
                                           const bncore_rows *t)
{
    NAME(weighted_columns) w;
    double square[NAME(WIDE_STRIP)];
    w.pivot = partial.at + RUNNING_PIVOT * partial.stride;
    NAME(start_weighted_columns)(&w, partial, a, t, square);
    const NAME(some_rows) all = {a->x, a->at, t->stride, t->cols, t->rows};
    for (int64_t block = 0; block < t->rows; block += BNCORE_ROW_BLOCK) {
        const NAME(some_rows) rows =
            NAME(rows_from)(all, block, bncore_min(t->rows - block, BNCORE_ROW_BLOCK));
#if CHAINED
        if (!a->float64_sums)
            NAME(sum_chained_block)(&w, a->weighting, square, rows);
        else
#endif
            NAME(sum_weighted_block)(&w, a->weighting, rows);
        NAME(flush_weighted_columns)(partial, &w, square, t->cols, a->float64_sums);
    }
    for (int64_t j = 0; j < t->cols; j++) {
        double *column = partial.at + j;
        const running end = {column[0], column[RUNNING_PIVOT * partial.stride],
                             column[RUNNING_S * partial.stride],
                             column[RUNNING_Q * partial.stride]};
        if (end.n == 0.0)
            column[RUNNING_PIVOT * partial.stride] = 0.0;
        else
            running_finish(&end, partial, j);
    }
}

static void NAME(weighted_moments_rows)(bncore_partial partial, const bncore_arrays *a,
                                        const double *unused, const bncore_rows *t)
{
    (void)unused;
    const int64_t width =
        has_row_weights(a->weighting, t->stride) ? NAME(WIDE_STRIP) : WEIGHTED_STRIP;
    for (int64_t j = 0; j < t->cols; j += width) {
        const bncore_rows strip = {t->rows, bncore_min(t->cols - j, width), t->stride};
        bncore_arrays here = *a;
        here.x = (const T *)a->x + j;
        here.at += j;
        NAME(weighted_strip)((bncore_partial){partial.at + j, partial.stride}, &here, &strip);
    }
}
