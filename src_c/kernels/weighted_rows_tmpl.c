/* Moments of weighted values in rows, for storage type T (weighted_moments_tmpl.c). The weights of some rows of up to
 * WEIGHTED_STRIP columns are laid out in memory first, unless every row has one weight. */

/* Columns at a time where every row has one weight; sums in chains take more of the stack. */
enum { NAME(WIDE_STRIP) = CHAINED ? WEIGHTED_STRIP : 2 * WEIGHTED_STRIP };

/* The sums of a block. */
typedef struct NAME(weighted_columns) {
    double s[NAME(WIDE_STRIP)], q[NAME(WIDE_STRIP)], n[NAME(WIDE_STRIP)];
    int16_t count[WEIGHTED_STRIP]; /* of flags */
    uint8_t flags[ROW_TILE][WEIGHTED_STRIP];
    int64_t flags_by; /* 0: a vector of flags stands for a row */
    const double *pivot;
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

/* Add rows to LANES columns from j on. */
static inline ALWAYS_INLINE void NAME(add_flagged_strip)(NAME(weighted_columns) * w, const T *x,
                                                         int64_t stride, int64_t j, int64_t rows)
{
    double s[BNCORE_LANES], q[BNCORE_LANES], pivot[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++)
        s[l] = w->s[j + l], q[l] = w->q[j + l], pivot[l] = w->pivot[j + l];
    for (int64_t r = 0; r < rows; r++) {
        double d[BNCORE_LANES];
        fetch(x + r * stride + j, AHEAD, LEVEL_2);
        NAME(load_doubles)(d, x + r * stride + j, BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) d[l] -= pivot[l];
        keep_flagged(d, w->flags[r] + j * w->flags_by);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            s[l] += d[l];
            q[l] += d[l] * d[l];
        }
    }
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) w->s[j + l] = s[l], w->q[j + l] = q[l];
}

/* Add up to ROW_TILE rows whose flags are laid out. */
static ONCE_ONLY void NAME(add_flagged_rows)(NAME(weighted_columns) * w, NAME(some_rows) t)
{
    int64_t j = 0;
    for (; j + BNCORE_LANES <= t.cols; j += BNCORE_LANES)
        NAME(add_flagged_strip)(w, t.x, t.stride, j, t.rows);
    for (; j < t.cols; j++)
        for (int64_t r = 0; r < t.rows; r++) {
            const double x = (double)NAME(load)(t.x[r * t.stride + j]);
            const double d = w->flags[r][j * w->flags_by] ? x - w->pivot[j] : 0.0;
            w->s[j] += d;
            w->q[j] += d * d;
        }
}

/* Lay out the flags of up to ROW_TILE rows, and count them. */
static ONCE_ONLY void NAME(lay_out_rows)(NAME(weighted_columns) * w,
                                         const bncore_weighting *weighting, NAME(some_rows) t)
{
    for (int64_t r = 0; r < t.rows; r++) {
        uint8_t *to = w->flags[r];
        const int64_t i = r * t.stride;
        const uint8_t *flags = NAME(flags_in)(to, weighting, t.at + i, t.x + i, t.cols);
#pragma omp simd
        for (int64_t j = 0; j < t.cols; j++) {
            to[j] = flags[j];
            w->count[j] = (int16_t)(w->count[j] + to[j]);
        }
    }
}

/* Add a row whose weights are doubles. */
static ONCE_ONLY void NAME(add_weighted_row)(NAME(weighted_columns) * w, const T *x,
                                             const double *weights, int64_t cols)
{
#pragma omp simd
    for (int64_t j = 0; j < cols; j++) {
        const double d = weights[j] != 0.0 ? (double)NAME(load)(x[j]) - w->pivot[j] : 0.0;
        const double t = weights[j] * d;
        w->s[j] += t;
        w->q[j] += t * d;
        w->n[j] += weights[j];
    }
}

/* Add rows that have one flag each: those without weight add nothing. Returns how many have weight. */
static ONCE_ONLY int64_t NAME(add_whole_rows)(NAME(weighted_columns) * w, const uint8_t *flags,
                                              NAME(some_rows) t)
{
    int64_t count = 0;
    for (int64_t r = 0; r < t.rows; r += ROW_TILE) {
        const int64_t rows = bncore_min(t.rows - r, ROW_TILE);
        for (int64_t i = 0; i < rows; i++) {
            memcpy(w->flags[i], flags_of_row[flags[r + i]], BNCORE_LANES);
            count += flags[r + i];
        }
        NAME(add_flagged_rows)(w, NAME(rows_from)(t, r, rows));
    }
    return count;
}

static ONCE_ONLY void NAME(sum_weighted_block)(NAME(weighted_columns) * w,
                                               const bncore_weighting *weighting, NAME(some_rows) t)
{
    for (int64_t j = 0; j < t.cols; j++) w->s[j] = w->q[j] = w->n[j] = 0.0;
    w->flags_by = !has_row_flags(weighting, t.stride);
    if (!w->flags_by) {
        const uint8_t *flags = (const uint8_t *)weighting->values + t.at / t.stride;
        const int64_t count = NAME(add_whole_rows)(w, flags, t);
        for (int64_t j = 0; j < t.cols; j++) w->n[j] = (double)count;
        return;
    }
    memset(w->count, 0, sizeof w->count);
    if (weighting->doubles) {
        for (int64_t r = 0; r < t.rows; r++) {
            double room[WEIGHTED_STRIP];
            const NAME(some_rows) row = NAME(rows_from)(t, r, 1);
            const double *weights = NAME(weights_in)(room, weighting, row.at, row.x, row.cols);
            NAME(add_weighted_row)(w, row.x, weights, row.cols);
        }
        return;
    }
    for (int64_t r = 0; r < t.rows; r += ROW_TILE) {
        const NAME(some_rows) rows = NAME(rows_from)(t, r, bncore_min(t.rows - r, ROW_TILE));
        NAME(lay_out_rows)(w, weighting, rows);
        NAME(add_flagged_rows)(w, rows);
    }
    for (int64_t j = 0; j < t.cols; j++) w->n[j] = (double)w->count[j];
}

/* Start the running statistics of a column, and return the mean square of the values that made its first pivot; the
 * pivot of a column without weight is 0. */
static NOINLINE double NAME(start_weighted_column)(bncore_partial partial, const bncore_arrays *a,
                                                   const bncore_rows *t, int64_t j)
{
    const bncore_weighting *w = a->weighting;
    const T *x = (const T *)a->x + j;
    uint8_t flags[BNCORE_PIVOT_ROWS];
    int64_t first = 0;
    double pivot = 0.0, square = 0.0;
    while (first < t->rows &&
           NAME(weight_at)(w, NAME(row_place)(a, t, first, j), x[first * t->stride]) == 0.0)
        first++;
    const int64_t k = bncore_min(t->rows - first, BNCORE_PIVOT_ROWS);
    x += first * t->stride;
    for (int64_t i = 0; i < k; i++)
        flags[i] = NAME(weight_at)(w, NAME(row_place)(a, t, first + i, j), x[i * t->stride]) != 0.0;
    if (k) pivot = NAME(weighted_pivot)(x, flags, k, t->stride);
#if CHAINED
    if (k && !a->float64_sums) {
        pivot = NAME(rounded_pivot)(pivot);
        square = NAME(weighted_square)(x, flags, k, t->stride, pivot);
    }
#endif
    partial.at[j] = partial.at[RUNNING_S * partial.stride + j] = 0.0;
    partial.at[RUNNING_PIVOT * partial.stride + j] = pivot;
    partial.at[RUNNING_Q * partial.stride + j] = 0.0;
    return square;
}

/* The same for all columns, where each row has one flag: the columns have their first rows in common. The sums of
 * differences are kept in `sum`. */
static ONCE_ONLY void NAME(start_columns_together)(bncore_partial partial, const bncore_arrays *a,
                                                   const bncore_rows *t, double *restrict sum,
                                                   double *restrict square)
{
    const uint8_t *flags = (const uint8_t *)a->weighting->values + a->at / t->stride;
    double *restrict n = partial.at, *restrict pivot = n + RUNNING_PIVOT * partial.stride;
    double *restrict S = n + RUNNING_S * partial.stride, *restrict Q =
                                                             n + RUNNING_Q * partial.stride;
    int64_t first = 0, count = 0;
    while (first < t->rows && !flags[first]) first++;
    const int64_t end = bncore_min(t->rows, first + BNCORE_PIVOT_ROWS);
    const T *x = (const T *)a->x, *x0 = x + first * t->stride;
    for (int64_t j = 0; j < t->cols; j++) n[j] = pivot[j] = S[j] = Q[j] = sum[j] = square[j] = 0.0;
    for (int64_t r = first; r < end; r++) {
        if (!flags[r]) continue;
        count++;
        for (int64_t j = 0; r > first && j < t->cols; j++)
            sum[j] += (double)NAME(load)(x[r * t->stride + j]) - (double)NAME(load)(x0[j]);
    }
    for (int64_t j = 0; count && j < t->cols; j++) {
        const double mean = (double)NAME(load)(x0[j]) + sum[j] / (double)count;
        pivot[j] = is_finite(mean) ? mean : 0.0;
    }
#if CHAINED
    if (!count || a->float64_sums) return;
    for (int64_t j = 0; j < t->cols; j++) pivot[j] = NAME(rounded_pivot)(pivot[j]);
    for (int64_t r = first; r < end; r++)
        for (int64_t j = 0; flags[r] && j < t->cols; j++) {
            const double d = (double)NAME(load)(x[r * t->stride + j]) - pivot[j];
            square[j] += d * d;
        }
    for (int64_t j = 0; j < t->cols; j++) square[j] /= (double)count;
#endif
}

/* Flush a block; `square` becomes the mean square so far. */
static NOINLINE void NAME(flush_weighted_columns)(bncore_partial partial,
                                                  const NAME(weighted_columns) * w, double *square,
                                                  int64_t cols, int float64_sums)
{
    double *n_ = partial.at, *pivot = n_ + RUNNING_PIVOT * partial.stride;
    double *S = n_ + RUNNING_S * partial.stride, *Q = n_ + RUNNING_Q * partial.stride;
    for (int64_t j = 0; j < cols; j++) {
        if (w->n[j] == 0.0) continue;
        const running before = {n_[j], pivot[j], S[j], Q[j]};
#if CHAINED
        const running moved = float64_sums ? running_flush(before, w->s[j], w->q[j], w->n[j])
                                           : NAME(flush_rounded)(before, w->s[j], w->q[j], w->n[j]);
#else
        (void)float64_sums;
        const running moved = running_flush(before, w->s[j], w->q[j], w->n[j]);
#endif
        n_[j] = moved.n, pivot[j] = moved.pivot, S[j] = moved.S, Q[j] = moved.Q;
        square[j] = moved.Q / moved.n;
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
    if (has_row_flags(a->weighting, t->stride))
        NAME(start_columns_together)(partial, a, t, w.s, square);
    else
        for (int64_t j = 0; j < t->cols; j++)
            square[j] = NAME(start_weighted_column)(partial, a, t, j);
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
        has_row_flags(a->weighting, t->stride) ? NAME(WIDE_STRIP) : WEIGHTED_STRIP;
    for (int64_t j = 0; j < t->cols; j += width) {
        const bncore_rows strip = {t->rows, bncore_min(t->cols - j, width), t->stride};
        bncore_arrays here = *a;
        here.x = (const T *)a->x + j;
        here.at += j;
        NAME(weighted_strip)((bncore_partial){partial.at + j, partial.stride}, &here, &strip);
    }
}
