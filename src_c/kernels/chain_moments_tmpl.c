/* Moments of 16-bit values, for storage type T: as in moments_tmpl.c, but a block is summed in chains where that loses
 * nothing that matters (is_chained), and the pivot is always a value of T, so that most differences to it are exact in
 * float32. Every channel decides for itself. */

static inline ALWAYS_INLINE void NAME(moment_term)(chain_terms *to, const NAME(about) * about,
                                                   int h, NAME(values) v, int skip, int fused)
{
    float x[CHAIN_WIDTH];
    (void)fused;
    NAME(load_many)(x, v.x, CHAIN_WIDTH);
#pragma omp simd
    for (int l = 0; l < CHAIN_WIDTH; l++) {
        const float d = h + l >= skip ? x[l] - about->centre[h + l] : 0.0F;
        to->a[l] = d;
        to->b[l] = d * d;
    }
}

/* The value of T that is nearest to v. */
static inline double NAME(stored)(double v)
{
    return (double)NAME(load)(NAME(store)((float)v));
}

static inline double NAME(rounded_pivot)(double pivot)
{
    const double rounded = NAME(stored)(pivot);
    return is_finite(rounded) ? rounded : 0.0;
}

/* running_flush, after which the pivot is a value of T. */
static inline running NAME(flush_rounded)(running w, double s, double q, double n)
{
    w.n += n;
    w.S += s;
    w.Q += q;
    return running_moved(w, NAME(stored)(w.pivot + w.S / w.n));
}

/* ---- planes ---- */

/* What a task keeps of its channels while it sums a block. */
typedef struct NAME(chained_planes) {
    const T *x;
    int64_t ahead;
    running w[BNCORE_GROUP];
    lanes acc[BNCORE_GROUP];
    int chained[BNCORE_GROUP];
} NAME(chained_planes);

static NOINLINE void NAME(chain_short_run)(lanes *acc, const T *x, int64_t len, float pivot)
{
    for (int64_t i = 0; i < len; i++) {
        const float d = NAME(load)(x[i]) - pivot;
        acc->a[BNCORE_LANES - len + i] += (double)d;
        acc->b[BNCORE_LANES - len + i] += (double)(d * d);
    }
}

static inline void NAME(chain_moments_run)(lanes *acc, const T *x, int64_t len, float pivot,
                                           int64_t ahead)
{
    if (len < BNCORE_LANES) {
        NAME(chain_short_run)(acc, x, len, pivot);
        return;
    }
    NAME(about) about;
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) about.centre[l] = pivot;
    NAME(chain_run)(acc, &about, (NAME(values)){.x = x}, len, ahead, NAME(moment_term), 0);
}

/* Start channel c with the mean of its first k values as the pivot, and choose how its first block is summed. */
static void NAME(start_chained)(NAME(chained_planes) * p, int64_t c, const T *x, int64_t k)
{
    const double pivot = NAME(rounded_pivot)(NAME(first_pivot)(x, k, 0));
    double squares = 0.0;
    for (int64_t i = 0; i < k; i++) {
        const double d = (double)NAME(load)(x[i]) - pivot;
        squares += d * d;
    }
    p->w[c] = (running){.pivot = pivot};
    p->chained[c] = is_chained(squares / (double)k);
}

static NOINLINE void NAME(sum_again)(NAME(chained_planes) * p, const bncore_planes *t, int64_t c,
                                     int64_t begin, int64_t end)
{
    p->acc[c] = (lanes){0};
    for (int64_t e = begin; e < end;) {
        const piece at = piece_at(t, e, BNCORE_BLOCK);
        NAME(add_run)(&p->acc[c], p->x + c * t->inner + at.offset, at.len, p->w[c].pivot, p->ahead);
        e += at.len;
    }
}

/* Flush the block of values begin .. end - 1. It is summed again if its chains do not keep the digits. */
static void NAME(flush_chained)(NAME(chained_planes) * p, const bncore_planes *t, int64_t begin,
                                int64_t end)
{
    for (int64_t c = 0; c < t->channels; c++) {
        lanes *acc = &p->acc[c];
        const double n = (double)(end - begin);
        if (p->chained[c] && !keeps_digits(fold_lanes(acc->a), fold_lanes(acc->b), n))
            NAME(sum_again)(p, t, c, begin, end);
        const running w = NAME(flush_rounded)(p->w[c], fold_lanes(acc->a), fold_lanes(acc->b), n);
        p->w[c] = w;
        p->chained[c] = is_chained(w.Q / w.n);
        *acc = (lanes){0};
    }
}

static void NAME(chained_moments_planes)(bncore_partial partial, const bncore_arrays *arrays,
                                         const double *unused, const bncore_planes *t)
{
    if (arrays->float64_sums) {
        NAME(moments_planes)(partial, arrays, unused, t);
        return;
    }
    NAME(chained_planes) p = {.x = arrays->x, .ahead = bytes_ahead(t, sizeof(T))};
    int64_t begin = t->begin;
    const piece first = piece_at(t, begin, BNCORE_LANES);
    for (int64_t c = 0; c < t->channels; c++)
        NAME(start_chained)(&p, c, p.x + c * t->inner + first.offset, first.len);
    for (int64_t e = begin; e < t->end;) {
        const piece at = piece_at(t, e, BNCORE_BLOCK);
        for (int64_t c = 0; c < t->channels; c++) {
            const T *x = p.x + c * t->inner + at.offset;
            if (p.chained[c])
                NAME(chain_moments_run)(&p.acc[c], x, at.len, (float)p.w[c].pivot, p.ahead);
            else
                NAME(add_run)(&p.acc[c], x, at.len, p.w[c].pivot, p.ahead);
        }
        e += at.len;
        if (e - begin < BNCORE_BLOCK && e < t->end) continue;
        NAME(flush_chained)(&p, t, begin, e);
        begin = e;
    }
    for (int64_t c = 0; c < t->channels; c++) running_finish(&p.w[c], partial, c);
}

/* ---- rows: std squared of a column is kept where its n will be written ---- */

/* Start the columns as in start_chained. */
static void NAME(start_chained_columns)(bncore_partial partial, double *restrict sum, const T *x,
                                        const bncore_rows *t)
{
    const int64_t k = bncore_min(t->rows, BNCORE_PIVOT_ROWS);
    double *restrict square = partial.at, *restrict pivot = square + RUNNING_PIVOT * partial.stride;
    NAME(start_columns)(partial, sum, x, t, 0);
    for (int64_t j = 0; j < t->cols; j++) {
        pivot[j] = NAME(rounded_pivot)(pivot[j]);
        square[j] = 0.0;
    }
    for (int64_t r = 0; r < k; r++)
        for (int64_t j = 0; j < t->cols; j++) {
            const double d = (double)NAME(load)(x[r * t->stride + j]) - pivot[j];
            square[j] += d * d;
        }
    for (int64_t j = 0; j < t->cols; j++) square[j] /= (double)k;
}

/* Add a chain of rows to one column. */
static void NAME(chain_column)(double *s, double *q, float pivot, const T *x, int64_t stride,
                               int rows)
{
    float a[CHAIN] = {0}, b[CHAIN] = {0};
    for (int r = 0; r < rows; r++) {
        a[r] = NAME(load)(x[r * stride]) - pivot;
        b[r] = a[r] * a[r];
    }
    *s += (double)chain_tree(a, rows);
    *q += (double)chain_tree(b, rows);
}

static inline ALWAYS_INLINE void NAME(chain_columns)(running_columns *w, const double *pivot,
                                                     const T *x, int64_t stride, int64_t cols,
                                                     int rows)
{
    int64_t j = 0;
    for (; j + BNCORE_LANES <= cols; j += BNCORE_LANES) {
        NAME(about) about;
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) about.centre[l] = (float)pivot[j + l];
        if (j % (LINE / (int64_t)sizeof(T)) == 0)
            for (int r = 0; r < rows; r++) fetch(x + r * stride + j, AHEAD, LEVEL_2);
        NAME(chain_strip)(w->s + j, w->q + j, &about, (NAME(values)){.x = x + j}, stride, rows,
                          NAME(moment_term), 0);
    }
    for (; j < cols; j++)
        NAME(chain_column)(w->s + j, w->q + j, (float)pivot[j], x + j, stride, rows);
}

/* Sum a block in chains, all columns of it. */
static void NAME(chain_block)(running_columns *w, const double *pivot, const T *x, int64_t stride,
                              int64_t cols, int64_t rows)
{
    int64_t r = 0;
    for (; r + CHAIN <= rows; r += CHAIN)
        NAME(chain_columns)(w, pivot, x + r * stride, stride, cols, CHAIN);
    if (r + CHAIN / 2 <= rows) {
        NAME(chain_columns)(w, pivot, x + r * stride, stride, cols, CHAIN / 2);
        r += CHAIN / 2;
    }
    if (r < rows) NAME(chain_columns)(w, pivot, x + r * stride, stride, cols, (int)(rows - r));
}

/* Sum those columns of a block again that must not be summed in chains. */
static void NAME(mend_columns)(running_columns *w, const double *square, const double *pivot,
                               const T *x, int64_t stride, int64_t cols, int64_t rows)
{
    for (int64_t j = 0; j < cols; j += BNCORE_LANES) {
        const int64_t n = bncore_min(cols - j, BNCORE_LANES);
        double s[BNCORE_LANES] = {0}, q[BNCORE_LANES] = {0};
        int wide[BNCORE_LANES], any = 0;
        for (int64_t l = 0; l < n; l++) {
            wide[l] =
                !is_chained(square[j + l]) || !keeps_digits(w->s[j + l], w->q[j + l], (double)rows);
            any |= wide[l];
        }
        if (!any) continue;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t l = 0; l < n; l++) {
                const double d = (double)NAME(load)(x[r * stride + j + l]) - pivot[j + l];
                s[l] += d;
                q[l] += d * d;
            }
        for (int64_t l = 0; l < n; l++) {
            w->s[j + l] = wide[l] ? s[l] : w->s[j + l];
            w->q[j + l] = wide[l] ? q[l] : w->q[j + l];
        }
    }
}

/* Flush a block of `rows` rows, after `before` rows. */
static void NAME(flush_chained_columns)(bncore_partial partial, const running_columns *w,
                                        int64_t cols, double before, double rows)
{
    double *restrict square = partial.at, *restrict pivot = square + RUNNING_PIVOT * partial.stride,
                     *restrict S = square + RUNNING_S * partial.stride,
                     *restrict Q = square + RUNNING_Q * partial.stride;
    for (int64_t j = 0; j < cols; j++) {
        const running moved =
            NAME(flush_rounded)((running){before, pivot[j], S[j], Q[j]}, w->s[j], w->q[j], rows);
        pivot[j] = moved.pivot;
        S[j] = moved.S;
        Q[j] = moved.Q;
        square[j] = moved.Q / moved.n;
    }
}

static void NAME(chained_strip)(bncore_partial partial, const T *x, const bncore_rows *t)
{
    double s[STRIP], q[STRIP];
    running_columns w = {s, q};
    const double *square = partial.at, *pivot = square + RUNNING_PIVOT * partial.stride;
    NAME(start_chained_columns)(partial, w.s, x, t);
    for (int64_t block = 0; block < t->rows; block += BNCORE_ROW_BLOCK) {
        const int64_t rows = bncore_min(t->rows - block, BNCORE_ROW_BLOCK);
        const T *v = x + block * t->stride;
        int64_t chained = 0;
        for (int64_t j = 0; j < t->cols; j++) chained += is_chained(square[j]);
        for (int64_t j = 0; j < t->cols; j++) w.s[j] = w.q[j] = 0.0;
        if (chained) {
            NAME(chain_block)(&w, pivot, v, t->stride, t->cols, rows);
            NAME(mend_columns)(&w, square, pivot, v, t->stride, t->cols, rows);
        } else {
            NAME(add_block)(&w, pivot, v, t->stride, t->cols, rows);
        }
        NAME(flush_chained_columns)(partial, &w, t->cols, (double)block, (double)rows);
    }
    finish_columns(partial, t->cols, (double)t->rows);
}

static void NAME(chained_moments_rows)(bncore_partial partial, const bncore_arrays *arrays,
                                       const double *unused, const bncore_rows *t)
{
    if (arrays->float64_sums) {
        NAME(moments_rows)(partial, arrays, unused, t);
        return;
    }
    const T *x = arrays->x;
    for (int64_t j = 0; j < t->cols; j += STRIP) {
        const bncore_rows strip = {t->rows, bncore_min(t->cols - j, STRIP), t->stride};
        NAME(chained_strip)((bncore_partial){partial.at + j, partial.stride}, x + j, &strip);
    }
}
