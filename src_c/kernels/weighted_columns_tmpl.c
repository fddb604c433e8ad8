/* The running statistics of weighted columns, for storage type T: their start, and a block after the other, whose sums are
 * those of weighted_rows_tmpl.c. */

/* What a value adds: its difference to the first value, the square of its difference to the pivot, or 1 if it is not above
 * 0 and ONE_ABOVE if it is not below 0. */
static inline ALWAYS_INLINE double NAME(first_term)(double v, double first, int what)
{
    const double d = v - first;
    const double signs = (v <= 0.0 ? 1.0 : 0.0) + (v >= 0.0 ? (double)ONE_ABOVE : 0.0);
    return what == DIFFERENCES ? d : what == SQUARES ? d * d : signs;
}

/* Add a row, whose flags are doubles, to what the first pivots are made of: of each column BNCORE_PIVOT_ROWS rows, from
 * the first value with weight on. That value is kept in `pivot` where differences are added; later it has the pivot.
 * `since` is how many rows have been seen from it on, and `count` how many of them have weight. Returns whether a column
 * has not seen all its rows. */
static inline ALWAYS_INLINE int NAME(add_first_row)(double *restrict to, double *restrict pivot,
                                                    double *restrict since, double *restrict count,
                                                    const double *restrict flags,
                                                    const T *restrict x, int64_t cols, int what)
{
    const double all = BNCORE_PIVOT_ROWS;
    double open = 0.0;
#pragma omp simd reduction(+ : open)
    for (int64_t j = 0; j < cols; j++) {
        const double v = (double)NAME(load)(x[j]), rows = since[j];
        const double begun = rows > 0.0 ? 1.0 : flags[j], in = rows < all ? flags[j] : 0.0;
        const double first = rows > 0.0 || what != DIFFERENCES ? pivot[j] : v;
        if (what == DIFFERENCES) pivot[j] = begun != 0.0 ? first : 0.0;
        to[j] += in != 0.0 ? NAME(first_term)(v, first, what) : 0.0;
        count[j] += in;
        since[j] = rows + begun;
        open += rows + begun < all ? 1.0 : 0.0;
    }
    return open > 0.0;
}

/* The same for rows that have one weight each, all of them. */
static ONCE_ONLY void NAME(add_first_whole_rows)(double *restrict to, double *restrict pivot,
                                                 NAME(weighted_columns) * c, const bncore_arrays *a,
                                                 const bncore_rows *t, int what)
{
    const int64_t place = a->at / t->stride;
    int64_t first = 0, count = 0;
    while (first < t->rows && weight_of(a->weighting, place + first) == 0.0) first++;
    const int64_t end = bncore_min(first + BNCORE_PIVOT_ROWS, t->rows);
    for (int64_t r = first; r < end; r++) {
        const T *x = (const T *)a->x + r * t->stride;
        if (weight_of(a->weighting, place + r) == 0.0) continue;
        count++;
#pragma omp simd
        for (int64_t j = 0; j < t->cols; j++) {
            const double v = (double)NAME(load)(x[j]);
            if (r == first && what == DIFFERENCES) pivot[j] = v;
            to[j] += NAME(first_term)(v, pivot[j], what);
        }
    }
    for (int64_t j = 0; j < t->cols; j++) c->n[j] = (double)count;
}

/* Add all rows that the first pivots are made of. `flags` has room for a row of them. */
static ONCE_ONLY void NAME(add_first_rows)(double *restrict to, double *restrict pivot,
                                           double *restrict flags, NAME(weighted_columns) * c,
                                           const bncore_arrays *a, const bncore_rows *t, int what)
{
    uint8_t room[NAME(WIDE_STRIP)];
    for (int64_t j = 0; j < t->cols; j++) to[j] = c->q[j] = c->n[j] = 0.0;
    if (has_row_weights(a->weighting, t->stride)) {
        NAME(add_first_whole_rows)(to, pivot, c, a, t, what);
        return;
    }
    int open = 1, begun = 0;
    for (int64_t r = 0; r < t->rows && open; r++) {
        const T *x = (const T *)a->x + r * t->stride;
        const uint8_t *bytes =
            NAME(flags_in)(room, a->weighting, a->at + r * t->stride, x, t->cols);
        begun = begun || count_flags(bytes, t->cols) > 0;
        if (!begun) continue; /* such rows change nothing */
        for (int64_t j = 0; j < t->cols; j++) flags[j] = bytes[j];
        open = what == DIFFERENCES
                   ? NAME(add_first_row)(to, pivot, c->q, c->n, flags, x, t->cols, DIFFERENCES)
                   : NAME(add_first_row)(to, pivot, c->q, c->n, flags, x, t->cols,
                                         CHAINED ? SQUARES : SIGNS);
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
    NAME(add_first_rows)(c->s, pivot, square, c, a, t, DIFFERENCES);
    for (int64_t j = 0; j < t->cols; j++) {
        const double mean = pivot[j] + c->s[j] / c->n[j];
        pivot[j] = is_finite(mean) ? mean : 0.0;
        square[j] = 0.0;
    }
    if (NAME(may_be_about_0)(a)) {
        NAME(add_first_rows)(c->s, pivot, square, c, a, t, SIGNS);
        for (int64_t j = 0; j < t->cols; j++) {
            const int signs = (int)c->s[j];
            if (signs % ONE_ABOVE && signs / ONE_ABOVE) pivot[j] = 0.0;
        }
    }
#if CHAINED
    if (a->float64_sums) return;
    for (int64_t j = 0; j < t->cols; j++) pivot[j] = NAME(rounded_pivot)(pivot[j]);
    NAME(add_first_rows)(square, pivot, c->s, c, a, t, SQUARES);
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
                ? running_flush((running){n[j], pivot[j], S[j], Q[j]}, s[j], q[j], any, 0)
                : NAME(flush_rounded)((running){n[j], pivot[j], S[j], Q[j]}, s[j], q[j], any);
#else
        const running moved = running_flush((running){n[j], pivot[j], S[j], Q[j]}, s[j], q[j], any,
                                            NAME(ABOUT_0) && !float64_sums);
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
