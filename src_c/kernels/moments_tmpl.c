/* Mean and sum of squared deviations in one pass over memory, for storage type T: the method of Chan, Golub & LeVeque
 * (1983), in blocks about a pivot. */

/* Add to the lanes s (sum of d) and q (sum of d * d), where d = x - pivot. The whole vectors of x are added first,
 * and then its last `left` values to the last lanes. The other lanes add 0 there, since GCC would otherwise keep the
 * lanes in memory. */
static inline ALWAYS_INLINE void NAME(add_vectors)(lanes *restrict acc, const T *restrict x,
                                                   int64_t len, int left, double pivot,
                                                   int64_t ahead)
{
    const double one = ONE;
    double s[BNCORE_LANES], q[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) s[l] = acc->a[l], q[l] = acc->b[l];
    for (int64_t i = 0; i + BNCORE_LANES <= len; i += BNCORE_LANES) {
        double v[BNCORE_LANES];
        fetch(x + i, ahead, LEVEL_1);
        NAME(load_doubles)(v, x + i, BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            const double d = v[l] - pivot;
            s[l] += d;
            q[l] = plus(q[l], d * d, one);
        }
    }
    if (left) {
        double last[BNCORE_LANES];
        NAME(load_doubles)(last, x + len - BNCORE_LANES, BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            const double d = l >= BNCORE_LANES - left ? last[l] - pivot : 0.0;
            s[l] += d;
            q[l] = plus(q[l], d * d, one);
        }
    }
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) acc->a[l] = s[l], acc->b[l] = q[l];
}

/* Add a run that is shorter than a vector. This is not inlined, because it would take registers from the longer runs. */
static NOINLINE void NAME(add_short_run)(lanes *acc, const T *x, int64_t len, double pivot)
{
    for (int64_t i = 0; i < len; i++) {
        const double d = (double)NAME(load)(x[i]) - pivot;
        acc->a[BNCORE_LANES - len + i] += d;
        acc->b[BNCORE_LANES - len + i] += d * d;
    }
}

/* Add a run of len values; its last len % LANES values go to the last lanes. Each call of add_vectors is inlined by
 * itself, so that the lanes stay in registers from the first vector to the last one, and nothing is subtracted about 0. */
static inline void NAME(add_run)(lanes *acc, const T *x, int64_t len, double pivot, int64_t ahead)
{
    const int left = (int)(len % BNCORE_LANES);
    if (len < BNCORE_LANES)
        NAME(add_short_run)(acc, x, len, pivot);
    else if (left == 0 && NAME(ABOUT_0) && pivot == 0.0)
        NAME(add_vectors)(acc, x, len, 0, 0.0, ahead);
    else if (left == 0)
        NAME(add_vectors)(acc, x, len, 0, pivot, ahead);
    else if (NAME(ABOUT_0) && pivot == 0.0)
        NAME(add_vectors)(acc, x, len, left, 0.0, ahead);
    else
        NAME(add_vectors)(acc, x, len, left, pivot, ahead);
}

/* Whether 0 is between the least and the largest of k values, or one of them. */
static inline int NAME(around_0)(const T *x, int64_t k)
{
    int64_t below = 0, above = 0;
    while (below < k && !(NAME(load)(x[below]) <= (ACC)0)) below++;
    while (above < k && !(NAME(load)(x[above]) >= (ACC)0)) above++;
    return below < k && above < k;
}

/* Whether the sums of a call may be about 0. */
static inline int NAME(may_be_about_0)(const bncore_arrays *a)
{
    return NAME(ABOUT_0) && !a->float64_sums;
}

/* The first pivot: the mean of the first k values, or with about_0 0 if they lie around it. The mean is computed from their differences
 * to the first value, so that the mean of equal values is that value. */
static inline double NAME(first_pivot)(const T *x, int64_t k, int about_0)
{
    if (about_0 && NAME(around_0)(x, k)) return 0.0;
    const double x0 = (double)NAME(load)(x[0]);
    double sum = 0.0;
    for (int64_t i = 1; i < k; i++) sum += (double)NAME(load)(x[i]) - x0;
    const double pivot = x0 + sum / (double)k;
    return is_finite(pivot) ? pivot : 0.0;
}

static void NAME(moments_planes)(bncore_partial partial, const bncore_arrays *arrays,
                                 const double *unused, const bncore_planes *t)
{
    (void)unused;
    const T *x = arrays->x;
    running w[BNCORE_GROUP];
    lanes acc[BNCORE_GROUP] = {0};
    int64_t pending = 0;
    const int about_0 = NAME(may_be_about_0)(arrays);
    const int64_t ahead = bytes_ahead(t, sizeof(T));
    const piece first = piece_at(t, t->begin, BNCORE_LANES);
    for (int64_t c = 0; c < t->channels; c++)
        w[c] = (running){
            .pivot = NAME(first_pivot)(x + c * t->inner + first.offset, first.len, about_0)};
    for (int64_t e = t->begin; e < t->end;) {
        const piece p = piece_at(t, e, BNCORE_BLOCK);
        for (int64_t c = 0; c < t->channels; c++)
            NAME(add_run)(&acc[c], x + c * t->inner + p.offset, p.len, w[c].pivot, ahead);
        e += p.len;
        pending += p.len;
        if (pending < BNCORE_BLOCK && e < t->end) continue;
        for (int64_t c = 0; c < t->channels; c++) {
            w[c] = running_flush(w[c], fold_lanes(acc[c].a), fold_lanes(acc[c].b), (double)pending,
                                 about_0);
            acc[c] = (lanes){0};
        }
        pending = 0;
    }
    for (int64_t c = 0; c < t->channels; c++) running_finish(&w[c], partial, c);
}

/* Rows: add `rows` rows of LANES columns to s and q, one row after the other; about_0: about 0 instead of the pivots. */
static inline ALWAYS_INLINE void NAME(add_strip)(double *restrict s_, double *restrict q_,
                                                 const double *restrict pivot_, const T *restrict x,
                                                 int64_t stride, int rows, int about_0)
{
    const double one = ONE;
    double s[BNCORE_LANES], q[BNCORE_LANES], pivot[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) s[l] = s_[l], q[l] = q_[l], pivot[l] = pivot_[l];
    for (int r = 0; r < rows; r++) {
        double v[BNCORE_LANES];
        fetch(x + r * stride, AHEAD, LEVEL_2);
        NAME(load_doubles)(v, x + r * stride, BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            const double d = about_0 ? v[l] : v[l] - pivot[l];
            s[l] += d;
            q[l] = plus(q[l], d * d, one);
        }
    }
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) s_[l] = s[l], q_[l] = q[l];
}

static inline void NAME(add_rows)(running_columns *w, const double *pivot, const uint8_t *at_0,
                                  const T *x, int64_t stride, int64_t cols, int rows)
{
    int64_t j = 0;
    for (; j + BNCORE_LANES <= cols; j += BNCORE_LANES)
        if (NAME(ABOUT_0) && at_0[j / BNCORE_LANES])
            NAME(add_strip)(w->s + j, w->q + j, pivot + j, x + j, stride, rows, 1);
        else
            NAME(add_strip)(w->s + j, w->q + j, pivot + j, x + j, stride, rows, 0);
    for (; j < cols; j++)
        for (int r = 0; r < rows; r++) {
            const double d = (double)NAME(load)(x[r * stride + j]) - pivot[j];
            w->s[j] += d;
            w->q[j] += d * d;
        }
}

static ONCE_ONLY void NAME(add_block)(running_columns *w, const double *pivot, const T *x,
                                      int64_t stride, int64_t cols, int64_t rows)
{
    uint8_t at_0[STRIP / BNCORE_LANES];
    int64_t r = 0;
    if (NAME(ABOUT_0)) find_0(at_0, pivot, cols);
    for (; r + SUM_ROWS <= rows; r += SUM_ROWS)
        NAME(add_rows)(w, pivot, at_0, x + r * stride, stride, cols, SUM_ROWS);
    for (; r < rows; r++) NAME(add_rows)(w, pivot, at_0, x + r * stride, stride, cols, 1);
}

/* Start the running statistics of columns with a pivot as in first_pivot. The sums of differences are kept in `sum`, and
 * the least and the largest values where S and Q will be. */
static void NAME(start_columns)(bncore_partial partial, double *restrict sum, const T *x,
                                const bncore_rows *t, int about_0)
{
    const int64_t k = bncore_min(t->rows, BNCORE_PIVOT_ROWS);
    double *restrict pivot_ = partial.at + RUNNING_PIVOT * partial.stride;
    double *S = partial.at + RUNNING_S * partial.stride;
    double *Q = partial.at + RUNNING_Q * partial.stride;
    double *least = S, *most = Q;
    for (int64_t j = 0; j < t->cols; j++) {
        least[j] = most[j] = (double)NAME(load)(x[j]);
        sum[j] = 0.0;
    }
    for (int64_t r = 1; r < k; r++)
#pragma omp simd
        for (int64_t j = 0; j < t->cols; j++) {
            const double v = (double)NAME(load)(x[r * t->stride + j]);
            sum[j] += v - (double)NAME(load)(x[j]);
            if (!NAME(ABOUT_0)) continue;
            least[j] = v < least[j] ? v : least[j];
            most[j] = v > most[j] ? v : most[j];
        }
#pragma omp simd
    for (int64_t j = 0; j < t->cols; j++) {
        const double pivot = (double)NAME(load)(x[j]) + sum[j] / (double)k;
        const int around_0 = about_0 && least[j] <= 0.0 && most[j] >= 0.0;
        pivot_[j] = is_finite(pivot) && !around_0 ? pivot : 0.0;
        S[j] = Q[j] = 0.0;
    }
}

/* Reduce up to STRIP columns, so that their sums stay in L1 and L2 with the data. */
static void NAME(moments_strip)(bncore_partial partial, const T *x, const bncore_rows *t,
                                int about_0)
{
    double s[STRIP], q[STRIP];
    running_columns w = {s, q};
    const double *pivot = partial.at + RUNNING_PIVOT * partial.stride;
    NAME(start_columns)(partial, w.s, x, t, about_0);
    for (int64_t block = 0; block < t->rows; block += BNCORE_ROW_BLOCK) {
        const int64_t rows = bncore_min(t->rows - block, BNCORE_ROW_BLOCK);
        for (int64_t j = 0; j < t->cols; j++) w.s[j] = w.q[j] = 0.0;
        NAME(add_block)(&w, pivot, x + block * t->stride, t->stride, t->cols, rows);
        flush_columns(partial, w.s, w.q, t->cols, (double)block, (double)rows, about_0);
    }
    finish_columns(partial, t->cols, (double)t->rows);
}

static void NAME(moments_rows)(bncore_partial partial, const bncore_arrays *arrays,
                               const double *unused, const bncore_rows *t)
{
    (void)unused;
    const T *x = arrays->x;
    for (int64_t j = 0; j < t->cols; j += STRIP) {
        const bncore_rows strip = {t->rows, bncore_min(t->cols - j, STRIP), t->stride};
        NAME(moments_strip)((bncore_partial){partial.at + j, partial.stride}, x + j, &strip,
                            NAME(may_be_about_0)(arrays));
    }
}
