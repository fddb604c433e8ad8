/* Gradient sums of 16-bit values, for storage type T: those of grad_sums_tmpl.c, but in chains. The second sum is that of
 * g * xhat, where xhat is (x - hi) * scale. hi is the mean rounded to float32, and finish_chained_sums makes up for it. */

static inline ALWAYS_INLINE void NAME(grad_term)(chain_terms *to, const NAME(about) * about, int h,
                                                 NAME(values) v, int skip, int fused)
{
    NAME(inputs) in;
    float g[CHAIN_WIDTH];
    NAME(take)(&in, v, CHAIN_WIDTH, fused);
#pragma omp simd
    for (int l = 0; l < CHAIN_WIDTH; l++)
        g[l] = NAME(g_of)(v, in.dy[l], in.x[l] - about->mask_hi[h + l], in.r[l],
                          about->mask_scale[h + l], about->mask_shift[h + l], fused);
    NAME(round_g)(g, CHAIN_WIDTH, fused);
    NAME(fill_gradients)(g, v, CHAIN_WIDTH, fused);
    if (fused & STORED && !(fused & WEIGHTED && !v.dr)) {
        T stored[CHAIN_WIDTH];
        NAME(store_many)(stored, g, CHAIN_WIDTH);
#pragma omp simd
        for (int l = 0; l < CHAIN_WIDTH; l++) v.dr[l] = h + l >= skip ? stored[l] : v.dr[l];
    }
    float alone_a[CHAIN_WIDTH], alone_b[CHAIN_WIDTH];
#pragma omp simd
    for (int l = 0; l < CHAIN_WIDTH; l++) {
        const float xhat = (in.x[l] - about->centre[h + l]) * about->scale[h + l];
        const int some = v.unfilled & (g[l] != 0.0F);
        to->a[l] = h + l >= skip ? g[l] : 0.0F;
        to->b[l] = h + l >= skip ? g[l] * xhat : 0.0F;
        alone_a[l] = some ? to->a[l] : 0.0F;
        alone_b[l] = some ? to->b[l] : 0.0F;
    }
    if (!(fused & WEIGHTED)) return;
    NAME(replace)(to->a, alone_a, v.flags, CHAIN_WIDTH);
    NAME(replace)(to->b, alone_b, v.flags, CHAIN_WIDTH);
}

/* One value alone. */
static inline ALWAYS_INLINE void NAME(one_grad_term)(float *a, float *b, NAME(values) v, float hi,
                                                     float scale, NAME(mask) m, int fused)
{
    const float x = NAME(load)(v.x[0]), r = fused & RESIDUAL ? NAME(load)(v.r[0]) : 0.0F;
    const float g = NAME(g_of)(v, NAME(load)(v.dy[0]), x - m.hi, r, m.scale, m.shift, fused);
    const int in = !(fused & WEIGHTED) || NAME(takes_part)(v, (float)v.flags[0], g);
    const T stored = NAME(store)(NAME(filled_g)(v, g, fused));
    if (fused & STORED && !(fused & WEIGHTED && !v.dr)) v.dr[0] = stored;
    *a = in ? (fused & ACTIVATION ? NAME(load)(stored) : g) : 0.0F;
    *b = in ? *a * ((x - hi) * scale) : 0.0F;
}

static NOINLINE void NAME(add_short_grad_run)(lanes *acc, NAME(values) v, int64_t len, float hi,
                                              float scale, NAME(mask) m, int fused)
{
    for (int64_t i = 0; i < len; i++) {
        float a, b;
        NAME(one_grad_term)(&a, &b, NAME(values_at)(v, i, fused), hi, scale, m, fused);
        acc->a[BNCORE_LANES - len + i] += (double)a;
        acc->b[BNCORE_LANES - len + i] += (double)b;
    }
}

static inline ALWAYS_INLINE void NAME(add_grad_run)(lanes *acc, NAME(values) v, int64_t len,
                                                    float hi, float scale, NAME(mask) m,
                                                    int64_t ahead, int fused)
{
    if (len < BNCORE_LANES) {
        NAME(add_short_grad_run)(acc, v, len, hi, scale, m, fused);
        return;
    }
    NAME(about) about;
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        about.centre[l] = hi, about.scale[l] = scale;
        about.mask_scale[l] = m.scale, about.mask_hi[l] = m.hi, about.mask_shift[l] = m.shift;
    }
    NAME(chain_run)(acc, &about, v, len, ahead, NAME(grad_term), fused);
}

static inline ALWAYS_INLINE void NAME(sum_planes)(bncore_partial partial,
                                                  const bncore_arrays *arrays, const double *mean,
                                                  const bncore_planes *t, int fused)
{
    const NAME(values) values =
        fused & WEIGHTED ? NAME(weighted_values_of)(arrays) : NAME(values_of)(arrays);
    const float *mask = arrays->mask;
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
            const float hi = (float)mean[c], scale = (float)arrays->invstd[c];
            if (!(fused & WEIGHTED)) {
                NAME(add_grad_run)(&acc[c], v, p.len, hi, scale, m, ahead, fused);
                continue;
            }
            const int64_t at = NAME(plane_place)(arrays, t, c, e);
            for (int64_t i = 0, n; i < p.len; i += n) {
                NAME(values) some = NAME(values_at)(v, i, fused);
                n = NAME(next_flags)(&flags, &some, at + i, p.len - i);
                NAME(add_grad_run)(&acc[c], some, n, hi, scale, m, ahead, fused);
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
    const double *mean, *invstd;
    const float *mask;
    int64_t mask_stride;
    NAME(row_flags) flags;
} NAME(grad_columns);

static inline ALWAYS_INLINE void NAME(add_grad_column)(NAME(grad_columns) * w, int64_t j,
                                                       NAME(values) v, int64_t stride, int rows,
                                                       int fused)
{
    const NAME(mask) m = NAME(mask_of)(w->mask + j, w->mask_stride, fused);
    float a[CHAIN] = {0}, b[CHAIN] = {0};
    for (int r = 0; r < rows; r++)
        NAME(one_grad_term)(
            a + r, b + r,
            NAME(row_values)(NAME(values_at)(v, r * stride + j, fused), &w->flags, r, j, fused),
            (float)w->mean[j], (float)w->invstd[j], m, fused);
    w->a[j] += (double)chain_tree(a, rows);
    w->b[j] += (double)chain_tree(b, rows);
}

static inline ALWAYS_INLINE void NAME(add_grad_rows)(NAME(grad_columns) * w, NAME(values) values,
                                                     int64_t stride, int64_t cols, int rows,
                                                     int fused)
{
    int64_t j = 0;
    for (; j + BNCORE_LANES <= cols; j += BNCORE_LANES) {
        const NAME(values) v =
            NAME(row_values)(NAME(values_at)(values, j, fused), &w->flags, 0, j, fused);
        NAME(about) about;
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            const NAME(mask) m = NAME(mask_of)(w->mask + j + l, w->mask_stride, fused);
            about.centre[l] = (float)w->mean[j + l], about.scale[l] = (float)w->invstd[j + l];
            about.mask_scale[l] = m.scale, about.mask_hi[l] = m.hi, about.mask_shift[l] = m.shift;
        }
        if (j % (LINE / (int64_t)sizeof(T)) == 0)
            for (int r = 0; r < rows; r++)
                NAME(fetch_values)(NAME(values_at)(v, r * stride, fused), AHEAD, LEVEL_2, fused);
        NAME(chain_strip)(w->a + j, w->b + j, &about, v, stride, rows, NAME(grad_term), fused);
    }
    for (; j < cols; j++) NAME(add_grad_column)(w, j, values, stride, rows, fused);
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
        NAME(values) v = NAME(values_at)(values, block * t->stride, fused);
        for (int64_t r = 0; r < rows;) {
            const int chain = NAME(chain_rows)(rows - r);
            if (fused & WEIGHTED) NAME(find_flags)(&w->flags, v.x, block + r, t, chain);
            if (fused & WEIGHTED)
                NAME(add_grad_rows)(w, v, t->stride, t->cols, chain, fused);
            else if (chain == CHAIN)
                NAME(add_grad_rows)(w, v, t->stride, t->cols, CHAIN, fused);
            else if (chain == CHAIN / 2)
                NAME(add_grad_rows)(w, v, t->stride, t->cols, CHAIN / 2, fused);
            else
                NAME(add_grad_rows)(w, v, t->stride, t->cols, chain, fused);
            v = NAME(values_at)(v, chain * t->stride, fused);
            r += chain;
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
    const float *mask = arrays->mask;
    NAME(grad_columns) w;
    w.mask_stride = arrays->mask_stride;
    if (fused & WEIGHTED) NAME(start_row_flags)(&w.flags, arrays, t);
    const int laid_out = fused & WEIGHTED && !w.flags.in_rows && !w.flags.in_memory;
    const int64_t width = laid_out ? WEIGHTED_STRIP : STRIP;
    for (int64_t j = 0; j < t->cols; j += width) {
        const bncore_rows strip = {t->rows, bncore_min(t->cols - j, width), t->stride};
        w.flags.at = arrays->at + j;
        w.mean = mean + j;
        w.invstd = arrays->invstd + j;
        w.mask = mask ? mask + j : NULL;
        NAME(sum_strip)((bncore_partial){partial.at + j, partial.stride}, &w,
                        NAME(values_at)(values, j, fused), &strip, fused);
    }
}
