/* Backward, for storage type T: the two sums of Ioffe & Szegedy (2015), section 3. g is dy, or what an activation
 * leaves of it. `fused` is a constant, as in activation_tmpl.c. */

/* Where g is dy itself, it is taken from memory as double, as x is (load_doubles in storage.h). */

/* Store LANES gradients by z. */
static inline ALWAYS_INLINE void NAME(store_g)(NAME(values) v, ACC *g, int fused)
{
    if (fused & WEIGHTED && !v.dr) return;
    NAME(fill_gradients)(g, v, BNCORE_LANES, fused);
    NAME(store_many)(v.dr, g, BNCORE_LANES);
}

/* Add LANES gradients and their products with d. */
static inline ALWAYS_INLINE void NAME(add_products)(double *restrict a, double *restrict b,
                                                    const double *restrict g,
                                                    const double *restrict d)
{
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        a[l] += g[l];
        b[l] += g[l] * d[l];
    }
}

/* Add to the lanes a (sum of g) and b (sum of g * (x - mean)). The last `left` values are added as in add_vectors. dr
 * may be the same memory as dy; values that an earlier vector stored there are then neither added nor stored again. */
static inline ALWAYS_INLINE void NAME(add_grad_vectors)(lanes *restrict acc, NAME(values) values,
                                                        int64_t len, int left, double mean,
                                                        NAME(mask) m, int64_t ahead, int fused)
{
    double a[BNCORE_LANES], b[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) a[l] = acc->a[l], b[l] = acc->b[l];
    for (int64_t i = 0; i + BNCORE_LANES <= len; i += BNCORE_LANES) {
        const NAME(values) v = NAME(values_at)(values, i, fused);
        NAME(inputs) in;
        ACC g[BNCORE_LANES];
        double x[BNCORE_LANES], dy[BNCORE_LANES];
        NAME(fetch_values)(v, ahead, LEVEL_1, fused);
        NAME(load_doubles)(x, v.x, BNCORE_LANES);
        NAME(load_doubles)(dy, v.dy, BNCORE_LANES);
        NAME(take)(&in, v, BNCORE_LANES, fused);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++)
            g[l] = NAME(g_of)(v, in.dy[l], in.x[l] - m.hi, in.r[l], m.scale, m.shift, fused);
        NAME(round_g)(g, BNCORE_LANES, fused);
        if (fused & STORED) NAME(store_g)(v, g, fused);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            dy[l] = fused & ACTIVATION ? (double)g[l] : dy[l];
            x[l] = fused & ABOUT_0 ? x[l] : x[l] - mean;
        }
        if (fused & WEIGHTED) leave_out(dy, x, v.flags, v.unfilled);
        NAME(add_products)(a, b, dy, x);
    }
    if (left) {
        const NAME(values) v = NAME(values_at)(values, len - BNCORE_LANES, fused);
        NAME(inputs) in;
        ACC value[BNCORE_LANES];
        T stored[BNCORE_LANES];
        NAME(take)(&in, v, BNCORE_LANES, fused);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++)
            value[l] = NAME(g_of)(v, in.dy[l], in.x[l] - m.hi, in.r[l], m.scale, m.shift, fused);
        NAME(round_g)(value, BNCORE_LANES, fused);
        NAME(fill_gradients)(value, v, BNCORE_LANES, fused);
        NAME(store_many)(stored, value, BNCORE_LANES);
        double g[BNCORE_LANES], d[BNCORE_LANES];
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            const int last = l >= BNCORE_LANES - left;
            g[l] = last ? (double)value[l] : 0.0;
            d[l] = last ? (double)in.x[l] - mean : 0.0;
        }
        if (fused & STORED && !(fused & WEIGHTED && !v.dr))
#pragma omp simd
            for (int l = 0; l < BNCORE_LANES; l++)
                v.dr[l] = l >= BNCORE_LANES - left ? stored[l] : v.dr[l];
        if (fused & WEIGHTED) leave_out(g, d, v.flags, v.unfilled);
        NAME(add_products)(a, b, g, d);
    }
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) acc->a[l] = a[l], acc->b[l] = b[l];
}

/* The gradient by z of one value, its x, and whether it takes part. */
typedef struct NAME(gradient) {
    double value, x;
    int in;
} NAME(gradient);

static inline ALWAYS_INLINE NAME(gradient)
    NAME(gradient_at)(NAME(values) v, NAME(mask) m, int fused)
{
    const ACC x = NAME(load)(v.x[0]), r = fused & RESIDUAL ? NAME(load)(v.r[0]) : (ACC)0;
    const ACC g = NAME(g_of)(v, NAME(load)(v.dy[0]), x - m.hi, r, m.scale, m.shift, fused);
    const int in = !(fused & WEIGHTED) || NAME(takes_part)(v, (ACC)v.flags[0], g);
    const T stored = NAME(store)(NAME(filled_g)(v, g, fused));
    if (fused & STORED && !(fused & WEIGHTED && !v.dr)) v.dr[0] = stored;
    const ACC value = fused & ACTIVATION ? NAME(load)(stored) : g;
    return (NAME(gradient)){in ? (double)value : 0.0, (double)x, in};
}

static NOINLINE void NAME(add_short_grad_run)(lanes *acc, NAME(values) v, int64_t len, double mean,
                                              NAME(mask) m, int fused)
{
    for (int64_t i = 0; i < len; i++) {
        const NAME(gradient) g = NAME(gradient_at)(NAME(values_at)(v, i, fused), m, fused);
        acc->a[BNCORE_LANES - len + i] += g.value;
        acc->b[BNCORE_LANES - len + i] += g.value * (g.in ? g.x - mean : 0.0);
    }
}

/* Add a run of len values, as add_run does. */
static inline ALWAYS_INLINE void NAME(add_grad_run)(lanes *acc, NAME(values) v, int64_t len,
                                                    double mean, NAME(mask) m, int64_t ahead,
                                                    int fused)
{
    const int left = (int)(len % BNCORE_LANES);
    const int about_0 = NAME(ABOUT_0) && !(fused & WEIGHTED) && mean == 0.0;
    if (len < BNCORE_LANES)
        NAME(add_short_grad_run)(acc, v, len, mean, m, fused);
    else if (left == 0 && about_0)
        NAME(add_grad_vectors)(acc, v, len, 0, 0.0, m, ahead, fused | ABOUT_0);
    else if (left == 0)
        NAME(add_grad_vectors)(acc, v, len, 0, mean, m, ahead, fused);
    else if (about_0)
        NAME(add_grad_vectors)(acc, v, len, left, 0.0, m, ahead, fused | ABOUT_0);
    else
        NAME(add_grad_vectors)(acc, v, len, left, mean, m, ahead, fused);
}

static inline ALWAYS_INLINE void NAME(sum_planes)(bncore_partial partial,
                                                  const bncore_arrays *arrays, const double *mean,
                                                  const bncore_planes *t, int fused)
{
    const NAME(values) values =
        fused & WEIGHTED ? NAME(weighted_values_of)(arrays) : NAME(values_of)(arrays);
    const ACC *mask = arrays->mask;
    const int64_t ahead = bytes_ahead(t, sizeof(T));
    lanes acc[BNCORE_GROUP] = {0};
    NAME(run_flags) flags;
    if (fused & WEIGHTED) NAME(start_runs)(&flags, arrays);
    int64_t pending = 0;
    double *sum_a = partial.at, *sum_b = sum_a + partial.stride;
    for (int64_t c = 0; c < t->channels; c++) sum_a[c] = sum_b[c] = 0.0;
    for (int64_t e = t->begin; e < t->end;) {
        const piece p = piece_at(t, e, BNCORE_BLOCK);
        for (int64_t c = 0; c < t->channels; c++) {
            const NAME(mask) m = NAME(mask_of)(mask + c, arrays->mask_stride, fused);
            const NAME(values) v = NAME(values_at)(values, c * t->inner + p.offset, fused);
            if (!(fused & WEIGHTED)) {
                NAME(add_grad_run)(&acc[c], v, p.len, mean[c], m, ahead, fused);
                continue;
            }
            const int64_t at = NAME(plane_place)(arrays, t, c, e);
            for (int64_t i = 0, n; i < p.len; i += n) {
                NAME(values) some = NAME(values_at)(v, i, fused);
                n = NAME(next_flags)(&flags, &some, at + i, p.len - i);
                NAME(add_grad_run)(&acc[c], some, n, mean[c], m, ahead, fused);
            }
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

/* Rows: the sums of STRIP columns in the current block. */
typedef struct NAME(grad_columns) {
    double a[STRIP], b[STRIP];
    const double *mean;
    uint8_t at_0[STRIP / BNCORE_LANES]; /* of every LANES columns, whether their means are all 0 */
    const ACC *mask;
    int64_t mask_stride;
    NAME(row_flags) flags;
} NAME(grad_columns);

static inline ALWAYS_INLINE void NAME(add_grad_strip)(NAME(grad_columns) * w, int64_t j,
                                                      NAME(values) values, int64_t stride, int rows,
                                                      int fused)
{
    double a[BNCORE_LANES], b[BNCORE_LANES], mean[BNCORE_LANES];
    ACC scale[BNCORE_LANES], hi[BNCORE_LANES], shift[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        const NAME(mask) m = NAME(mask_of)(w->mask + j + l, w->mask_stride, fused);
        scale[l] = m.scale, hi[l] = m.hi, shift[l] = m.shift;
        a[l] = w->a[j + l], b[l] = w->b[j + l], mean[l] = w->mean[j + l];
    }
    for (int r = 0; r < rows; r++) {
        const NAME(values) v = NAME(row_values)(NAME(values_at)(values, r * stride + j, fused),
                                                &w->flags, r, j, fused);
        NAME(inputs) in;
        ACC g[BNCORE_LANES];
        double x[BNCORE_LANES], dy[BNCORE_LANES];
        NAME(fetch_values)(v, AHEAD, LEVEL_2, fused);
        if (fused & WEIGHTED) fetch(v.flags, w->flags.ahead, LEVEL_2);
        NAME(load_doubles)(x, v.x, BNCORE_LANES);
        NAME(load_doubles)(dy, v.dy, BNCORE_LANES);
        NAME(take)(&in, v, BNCORE_LANES, fused);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++)
            g[l] = NAME(g_of)(v, in.dy[l], in.x[l] - hi[l], in.r[l], scale[l], shift[l], fused);
        NAME(round_g)(g, BNCORE_LANES, fused);
        if (fused & STORED) NAME(store_g)(v, g, fused);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            dy[l] = fused & ACTIVATION ? (double)g[l] : dy[l];
            x[l] = fused & ABOUT_0 ? x[l] : x[l] - mean[l];
        }
        if (fused & WEIGHTED) leave_out(dy, x, v.flags, v.unfilled);
        NAME(add_products)(a, b, dy, x);
    }
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) w->a[j + l] = a[l], w->b[j + l] = b[l];
}

static inline ALWAYS_INLINE void NAME(add_grad_rows)(NAME(grad_columns) * w, NAME(values) values,
                                                     int64_t stride, int64_t cols, int rows,
                                                     int fused)
{
    int64_t j = 0;
    for (; j + BNCORE_LANES <= cols; j += BNCORE_LANES)
        if (NAME(ABOUT_0) && !(fused & WEIGHTED) && w->at_0[j / BNCORE_LANES])
            NAME(add_grad_strip)(w, j, values, stride, rows, fused | ABOUT_0);
        else
            NAME(add_grad_strip)(w, j, values, stride, rows, fused);
    for (; j < cols; j++) {
        const NAME(mask) m = NAME(mask_of)(w->mask + j, w->mask_stride, fused);
        for (int r = 0; r < rows; r++) {
            const NAME(values) v = NAME(row_values)(NAME(values_at)(values, r * stride + j, fused),
                                                    &w->flags, r, j, fused);
            const NAME(gradient) g = NAME(gradient_at)(v, m, fused);
            w->a[j] += g.value;
            w->b[j] += g.value * (g.in ? g.x - w->mean[j] : 0.0);
        }
    }
}

static inline ALWAYS_INLINE void NAME(sum_strip)(bncore_partial partial, NAME(grad_columns) * w,
                                                 NAME(values) values, const bncore_rows *t,
                                                 int fused)
{
    double *sum_a = partial.at, *sum_b = sum_a + partial.stride;
    for (int64_t j = 0; j < t->cols; j++) sum_a[j] = sum_b[j] = 0.0;
    for (int64_t block = 0; block < t->rows; block += BNCORE_ROW_BLOCK) {
        const int64_t rows = bncore_min(t->rows - block, BNCORE_ROW_BLOCK);
        for (int64_t j = 0; j < t->cols; j++) w->a[j] = w->b[j] = 0.0;
        const NAME(values) v = NAME(values_at)(values, block * t->stride, fused);
        for (int64_t r = 0; r < rows;) {
            const int tile = r + ROW_TILE <= rows ? ROW_TILE : 1;
            const NAME(values) here = NAME(values_at)(v, r * t->stride, fused);
            const int all =
                fused & WEIGHTED && NAME(find_flags)(&w->flags, here.x, block + r, t, tile);
            if (tile == ROW_TILE && all && !(fused & ACTIVATION))
                NAME(add_grad_rows)(w, here, t->stride, t->cols, ROW_TILE, fused & ~WEIGHTED);
            else if (tile == ROW_TILE)
                NAME(add_grad_rows)(w, here, t->stride, t->cols, ROW_TILE, fused);
            else
                NAME(add_grad_rows)(w, here, t->stride, t->cols, 1, fused);
            r += tile;
        }
        for (int64_t j = 0; j < t->cols; j++) {
            sum_a[j] += w->a[j];
            sum_b[j] += w->b[j];
        }
    }
}

static inline ALWAYS_INLINE void NAME(sum_rows)(bncore_partial partial, const bncore_arrays *arrays,
                                                const double *mean, const bncore_rows *t, int fused)
{
    const NAME(values) values =
        fused & WEIGHTED ? NAME(weighted_values_of)(arrays) : NAME(values_of)(arrays);
    const ACC *mask = arrays->mask;
    NAME(grad_columns) w;
    w.mask_stride = arrays->mask_stride;
    if (fused & WEIGHTED) NAME(start_row_flags)(&w.flags, arrays, t);
    const int laid_out = fused & WEIGHTED && !w.flags.in_rows && !w.flags.in_memory;
    const int64_t width = laid_out ? WEIGHTED_STRIP : STRIP;
    for (int64_t j = 0; j < t->cols; j += width) {
        const bncore_rows strip = {t->rows, bncore_min(t->cols - j, width), t->stride};
        w.flags.at = arrays->at + j;
        w.mean = mean + j;
        if (NAME(ABOUT_0)) find_0(w.at_0, w.mean, strip.cols);
        w.mask = mask ? mask + j : NULL;
        NAME(sum_strip)((bncore_partial){partial.at + j, partial.stride}, &w,
                        NAME(values_at)(values, j, fused), &strip, fused);
    }
}
