/* Backward, for storage type T: the two sums of Ioffe & Szegedy (2015), section 3, and dx made of them. */

/* Add to the lanes a (sum of dy) and b (sum of dy * (x - mean)); the last `left` values as in add_vectors. */
static inline ALWAYS_INLINE void NAME(add_grad_vectors)(lanes *restrict acc, const T *restrict dy,
                                                        const T *restrict x, int64_t len, int left,
                                                        double mean, int64_t ahead)
{
    double a[BNCORE_LANES], b[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) a[l] = acc->a[l], b[l] = acc->b[l];
    for (int64_t i = 0; i + BNCORE_LANES <= len; i += BNCORE_LANES) {
        const T *restrict u = dy + i, *restrict v = x + i;
        fetch(u, ahead);
        fetch(v, ahead);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            const double g = (double)u[l];
            a[l] += g;
            b[l] += g * ((double)v[l] - mean);
        }
    }
    if (left) {
        const T *restrict u = dy + len - BNCORE_LANES, *restrict v = x + len - BNCORE_LANES;
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            const double g = l >= BNCORE_LANES - left ? (double)u[l] : 0.0;
            const double d = l >= BNCORE_LANES - left ? (double)v[l] - mean : 0.0;
            a[l] += g;
            b[l] += g * d;
        }
    }
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) acc->a[l] = a[l], acc->b[l] = b[l];
}

static NOINLINE void NAME(add_short_grad_run)(lanes *acc, const T *dy, const T *x, int64_t len,
                                              double mean)
{
    for (int64_t i = 0; i < len; i++) {
        const double g = (double)dy[i];
        acc->a[BNCORE_LANES - len + i] += g;
        acc->b[BNCORE_LANES - len + i] += g * ((double)x[i] - mean);
    }
}

/* A run of len values, as in add_run. */
static inline void NAME(add_grad_run)(lanes *acc, const T *dy, const T *x, int64_t len, double mean,
                                      int64_t ahead)
{
    const int left = (int)(len % BNCORE_LANES);
    if (len < BNCORE_LANES)
        NAME(add_short_grad_run)(acc, dy, x, len, mean);
    else if (left == 0)
        NAME(add_grad_vectors)(acc, dy, x, len, 0, mean, ahead);
    else
        NAME(add_grad_vectors)(acc, dy, x, len, left, mean, ahead);
}

static void NAME(grad_sums_planes)(bncore_partial partial, const bncore_arrays *arrays,
                                   const double *mean, const bncore_planes *t)
{
    const T *dy = arrays->dy, *x = arrays->x;
    lanes acc[BNCORE_GROUP] = {0};
    int64_t pending = 0;
    double *sum_a = partial.at, *sum_b = sum_a + partial.stride;
    for (int64_t c = 0; c < t->channels; c++) sum_a[c] = sum_b[c] = 0.0;
    for (int64_t e = t->begin; e < t->end;) {
        const piece p = piece_at(t, e, BNCORE_BLOCK);
        for (int64_t c = 0; c < t->channels; c++) {
            const int64_t at = c * t->inner + p.offset;
            NAME(add_grad_run)(&acc[c], dy + at, x + at, p.len, mean[c],
                               t->image_stride * (int64_t)sizeof(T));
        }
        e += p.len;
        pending += p.len;
        if (pending < BNCORE_BLOCK && e < t->end) continue;
        for (int64_t c = 0; c < t->channels; c++) {
            sum_a[c] += fold_lanes(acc[c].a);
            sum_b[c] += fold_lanes(acc[c].b);
            acc[c] = (lanes){0};
        }
        pending = 0;
    }
}

static inline void NAME(add_grad_strip)(double *restrict a_, double *restrict b_,
                                        const double *restrict mean_, const T *restrict dy,
                                        const T *restrict x, int64_t stride, int rows)
{
    double a[BNCORE_LANES], b[BNCORE_LANES], mean[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) a[l] = a_[l], b[l] = b_[l], mean[l] = mean_[l];
    for (int r = 0; r < rows; r++) {
        const T *restrict u = dy + r * stride, *restrict v = x + r * stride;
        fetch(u, AHEAD);
        fetch(v, AHEAD);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            const double g = (double)u[l];
            a[l] += g;
            b[l] += g * ((double)v[l] - mean[l]);
        }
    }
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) a_[l] = a[l], b_[l] = b[l];
}

static inline void NAME(add_grad_rows)(double *restrict a, double *restrict b,
                                       const double *restrict mean, const T *restrict dy,
                                       const T *restrict x, int64_t stride, int64_t cols, int rows)
{
    int64_t j = 0;
    for (; j + BNCORE_LANES <= cols; j += BNCORE_LANES)
        NAME(add_grad_strip)(a + j, b + j, mean + j, dy + j, x + j, stride, rows);
    for (; j < cols; j++)
        for (int r = 0; r < rows; r++) {
            const double g = (double)dy[r * stride + j];
            a[j] += g;
            b[j] += g * ((double)x[r * stride + j] - mean[j]);
        }
}

static void NAME(grad_sums_strip)(bncore_partial partial, const T *dy, const T *x,
                                  const double *mean, const bncore_rows *t)
{
    double a[STRIP], b[STRIP];
    double *sum_a = partial.at, *sum_b = sum_a + partial.stride;
    for (int64_t j = 0; j < t->cols; j++) sum_a[j] = sum_b[j] = 0.0;
    for (int64_t block = 0; block < t->rows; block += BNCORE_ROW_BLOCK) {
        const int64_t rows = bncore_min(t->rows - block, BNCORE_ROW_BLOCK);
        for (int64_t j = 0; j < t->cols; j++) a[j] = b[j] = 0.0;
        int64_t r = 0;
        for (; r + ROW_TILE <= rows; r += ROW_TILE) {
            const int64_t at = (block + r) * t->stride;
            NAME(add_grad_rows)(a, b, mean, dy + at, x + at, t->stride, t->cols, ROW_TILE);
        }
        for (; r < rows; r++) {
            const int64_t at = (block + r) * t->stride;
            NAME(add_grad_rows)(a, b, mean, dy + at, x + at, t->stride, t->cols, 1);
        }
        for (int64_t j = 0; j < t->cols; j++) {
            sum_a[j] += a[j];
            sum_b[j] += b[j];
        }
    }
}

static void NAME(grad_sums_rows)(bncore_partial partial, const bncore_arrays *arrays,
                                 const double *mean, const bncore_rows *t)
{
    const T *dy = arrays->dy, *x = arrays->x;
    for (int64_t j = 0; j < t->cols; j += STRIP) {
        const bncore_rows strip = {t->rows, bncore_min(t->cols - j, STRIP), t->stride};
        NAME(grad_sums_strip)((bncore_partial){partial.at + j, partial.stride}, dy + j, x + j,
                              mean + j, &strip);
    }
}
