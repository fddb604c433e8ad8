/* Lines, for storage type T: groups of one position, whose values lie side by side and each have a weight of their own, as in
 * layer norm (Ba, Kiros & Hinton, 2016, equation 4). The coefficients are those of the lines, and weight and bias those of
 * the values, both in ACC. The terms of a sum have the type ACC. Those of a line are added in trees of eight vectors
 * first, as chains_tmpl.c says, and products of a column in trees of LINE_TILE lines; then all is added in double. */

enum {
    NAME(STEP) = sizeof(T) == 2 ? 2 * BNCORE_LANES : BNCORE_LANES
}; /* whole lines of the caches */

typedef struct NAME(line) {
    const T *dy, *x;
    const ACC *weight;
    ACC hi, scale, shift; /* xhat = (x - hi) * scale + shift */
} NAME(line);

/* Line r of some, whose coefficients begin with the fields of normalize. */
static inline ALWAYS_INLINE NAME(line)
    NAME(line_at)(const bncore_arrays *arrays, const void *coef, int64_t stride, const void *weight,
                  int64_t r, const bncore_rows *t)
{
    const ACC *k = (const ACC *)coef + r;
    const T *dy = arrays->dy;
    return (NAME(line)){.dy = dy ? dy + r * t->stride : NULL,
                        .x = (const T *)arrays->x + r * t->stride,
                        .weight = weight,
                        .hi = k[0],
                        .scale = k[stride],
                        .shift = k[2 * stride]};
}

/* The values of LANES columns, in the type of the arithmetic. */
typedef struct NAME(line_values) {
    ACC g[BNCORE_LANES], xhat[BNCORE_LANES];
} NAME(line_values);

static inline ALWAYS_INLINE void NAME(line_terms)(NAME(line_values) * to, NAME(line) v, int64_t i)
{
    ACC dy[BNCORE_LANES], x[BNCORE_LANES];
    NAME(load_many)(dy, v.dy + i, BNCORE_LANES);
    NAME(load_many)(x, v.x + i, BNCORE_LANES);
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        to->g[l] = dy[l] * v.weight[i + l];
        to->xhat[l] = (x[l] - v.hi) * v.scale + v.shift;
    }
}

/* The sums of n vectors of terms from i on: of one to four, of which n is a constant. A term that is missing would add 0. */
static inline ALWAYS_INLINE void NAME(add_line_few)(ACC *a, ACC *b, NAME(line) v, int64_t i, int n)
{
    NAME(line_values) t[4];
    for (int k = 0; k < n; k++) NAME(line_terms)(&t[k], v, i + k * BNCORE_LANES);
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        a[l] = t[0].g[l];
        b[l] = t[0].g[l] * t[0].xhat[l];
        if (n > 1) a[l] += t[1].g[l], b[l] += t[1].g[l] * t[1].xhat[l];
        if (n == 3) a[l] += t[2].g[l], b[l] += t[2].g[l] * t[2].xhat[l];
        if (n == 4) {
            a[l] += t[2].g[l] + t[3].g[l];
            b[l] += t[2].g[l] * t[2].xhat[l] + t[3].g[l] * t[3].xhat[l];
        }
    }
}

/* The terms of the `left` last values of `len`, in the last lanes; the other lanes are 0. */
static NOINLINE void NAME(last_line_terms)(NAME(line_values) * to, NAME(line) v, int64_t len,
                                           int64_t left)
{
    T dy[BNCORE_LANES] = {0}, x[BNCORE_LANES] = {0};
    ACC weight[BNCORE_LANES] = {0};
    for (int64_t i = 0; i < left; i++) {
        const int64_t l = BNCORE_LANES - left + i, at = len - left + i;
        dy[l] = v.dy[at], x[l] = v.x[at], weight[l] = v.weight[at];
    }
    v.dy = dy, v.x = x, v.weight = weight;
    NAME(line_terms)(to, v, 0);
    for (int64_t l = 0; l < BNCORE_LANES - left; l++) to->g[l] = to->xhat[l] = (ACC)0;
}

/* The sums of the last vectors, fewer than four, and of the values behind them, as terms of one tree. */
static NOINLINE void NAME(add_line_rest)(ACC *a, ACC *b, NAME(line) v, int64_t i, int64_t len)
{
    NAME(line_values) t[4] = {{{0}, {0}}};
    const int64_t vectors = (len - i) / BNCORE_LANES, left = len % BNCORE_LANES;
    for (int64_t k = 0; k < vectors; k++) NAME(line_terms)(&t[k], v, i + k * BNCORE_LANES);
    NAME(last_line_terms)(&t[3], v, len, left);
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        a[l] = (t[0].g[l] + t[1].g[l]) + (t[2].g[l] + t[3].g[l]);
        b[l] = (t[0].g[l] * t[0].xhat[l] + t[1].g[l] * t[1].xhat[l]) +
               (t[2].g[l] * t[2].xhat[l] + t[3].g[l] * t[3].xhat[l]);
    }
}

/* Add the sums of a chain, which have the type of the arithmetic, to those of a line. */
static inline ALWAYS_INLINE void NAME(widen_line)(double *a, double *b, ACC low[2][BNCORE_LANES])
{
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) a[l] += (double)low[0][l], b[l] += (double)low[1][l];
}

/* The sums of the terms of up to BLOCK values. `ahead` is the distance in bytes at which dy is prefetched; line_grad_input
 * prefetches x, so that memory is busy all the time. */
static inline ALWAYS_INLINE void NAME(sum_line)(double *sum_a, double *sum_b, NAME(line) v,
                                                int64_t len, int64_t ahead)
{
    double a[BNCORE_LANES], b[BNCORE_LANES];
    ACC low[2][BNCORE_LANES], high[2][BNCORE_LANES];
    const int64_t four = 4 * BNCORE_LANES;
    int64_t i = 0;
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) a[l] = b[l] = 0.0;
    for (; i + 2 * four <= len; i += 2 * four) {
        for (int n = 0; n < 8 * BNCORE_LANES; n += NAME(IN_LINE))
            fetch(v.dy + i + n, ahead, LEVEL_2);
        NAME(add_line_few)(low[0], low[1], v, i, 4);
        NAME(add_line_few)(high[0], high[1], v, i + four, 4);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            a[l] += (double)(low[0][l] + high[0][l]);
            b[l] += (double)(low[1][l] + high[1][l]);
        }
    }
    if (i + four <= len) {
        NAME(add_line_few)(low[0], low[1], v, i, 4);
        NAME(widen_line)(a, b, low);
        i += four;
    }
    if (i < len) {
        const int64_t vectors = (len - i) / BNCORE_LANES;
        if (len % BNCORE_LANES)
            NAME(add_line_rest)(low[0], low[1], v, i, len);
        else if (vectors == 3)
            NAME(add_line_few)(low[0], low[1], v, i, 3);
        else if (vectors == 2)
            NAME(add_line_few)(low[0], low[1], v, i, 2);
        else
            NAME(add_line_few)(low[0], low[1], v, i, 1);
        NAME(widen_line)(a, b, low);
    }
    *sum_a += fold_lanes(a);
    *sum_b += fold_lanes(b);
}

/* For each line the sums of g = weight * dy and of g * xhat. coef has the fields of normalize. */
static void NAME(line_sums)(double *sum_g, double *sum_g_xhat, const bncore_arrays *arrays,
                            const void *coef, int64_t stride, const void *weight,
                            const bncore_rows *t)
{
    const int64_t ahead = t->rows * t->stride * (int64_t)sizeof(T); /* to the next lines */
    for (int64_t r = 0; r < t->rows; r++) {
        NAME(line) v = NAME(line_at)(arrays, coef, stride, weight, r, t);
        double a = 0.0, b = 0.0;
        for (int64_t i = 0; i < t->cols; i += BNCORE_BLOCK) {
            NAME(sum_line)(&a, &b, v, bncore_min(t->cols - i, BNCORE_BLOCK), ahead);
            v.dy += BNCORE_BLOCK, v.x += BNCORE_BLOCK, v.weight += BNCORE_BLOCK;
        }
        sum_g[r] = a;
        sum_g_xhat[r] = b;
    }
}

#if !CHAINED
/* mean and m2 of a line of one block, about a pivot as in moments_planes. */
static NOINLINE void NAME(line_about_pivot)(double *mean, double *m2, const T *x, int64_t len)
{
    running w = {.pivot = NAME(first_pivot)(x, BNCORE_LANES, NAME(ABOUT_0))};
    lanes acc = {0};
    NAME(add_run)(&acc, x, len, w.pivot, 0);
    w = running_flush(w, fold_lanes(acc.a), fold_lanes(acc.b), (double)len, NAME(ABOUT_0));
    const double offset = w.S / w.n, rest = w.Q - w.S * offset;
    *mean = w.pivot + offset;
    *m2 = rest < 0.0 ? 0.0 : rest;
}

/* Add v * v to q. The square of a float32 value is exact, so that this is one operation where the processor has it. */
static inline ALWAYS_INLINE double NAME(plus_square)(double q, double v)
{
#if defined(__FMA__)
    if (sizeof(T) == sizeof(float)) return __builtin_fma(v, v, q);
#endif
    return q + v * v;
}

/* The sums about 0 of a line's values and of their squares; the last `left` values go to the last lanes. */
static inline ALWAYS_INLINE void NAME(sums_about_0)(double *sum, double *squares, const T *x,
                                                    int64_t len, int left, int64_t ahead,
                                                    int64_t results)
{
    double s[BNCORE_LANES], q[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) s[l] = q[l] = 0.0;
    for (int64_t i = 0; i + BNCORE_LANES <= len; i += BNCORE_LANES) {
        double v[BNCORE_LANES];
        fetch(x + i, ahead, LEVEL_1);
        fetch(x + i, results, LEVEL_1);
        NAME(load_doubles)(v, x + i, BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            s[l] += v[l];
            q[l] = NAME(plus_square)(q[l], v[l]);
        }
    }
    if (left) {
        double last[BNCORE_LANES];
        NAME(load_doubles)(last, x + len - BNCORE_LANES, BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            const double v = l >= BNCORE_LANES - left ? last[l] : 0.0;
            s[l] += v;
            q[l] = NAME(plus_square)(q[l], v);
        }
    }
    *sum = fold_lanes(s);
    *squares = fold_lanes(q);
}

/* The same of lines of LANES to BLOCK values each; rows <= BNCORE_GROUP. They are summed about 0, which saves a third of
 * the additions and all of a pivot, unless the squares about 0 are more than 16 times those about the mean. */
static void NAME(line_moments)(double *mean, double *m2, const bncore_arrays *arrays,
                               const bncore_rows *t)
{
    double s[BNCORE_GROUP], q[BNCORE_GROUP];
    const int64_t ahead = t->rows * t->stride * (int64_t)sizeof(T); /* to the next lines */
    /* From x to the results, which are fetched, too, unless they pass the caches by. */
    const int64_t results =
        arrays->stream ? 0 : (int64_t)((uintptr_t)arrays->dst - (uintptr_t)arrays->x);
    const int left = (int)(t->cols % BNCORE_LANES);
    const double n = (double)t->cols;
    for (int64_t r = 0; r < t->rows; r++) {
        const T *x = (const T *)arrays->x + r * t->stride;
        if (left == 0)
            NAME(sums_about_0)(&s[r], &q[r], x, t->cols, 0, ahead, results);
        else
            NAME(sums_about_0)(&s[r], &q[r], x, t->cols, left, ahead, results);
    }
#pragma omp simd
    for (int64_t r = 0; r < t->rows; r++) {
        mean[r] = s[r] / n;
        m2[r] = q[r] - s[r] * mean[r];
    }
    for (int64_t r = 0; r < t->rows; r++)
        if (!(16.0 * (s[r] * s[r]) < 15.0 * (n * q[r])))
            NAME(line_about_pivot)(&mean[r], &m2[r], (const T *)arrays->x + r * t->stride, t->cols);
}
#endif

/* ---- elementwise ---- */

/* y = (x - hi) * (scale * weight) + (shift * weight + bias) of LANES columns: a rounding less than xhat * weight + bias. */
static inline ALWAYS_INLINE void NAME(line_y)(T *to, NAME(line) v, const ACC *bias, int64_t i)
{
    ACC x[BNCORE_LANES], y[BNCORE_LANES];
    NAME(load_many)(x, v.x + i, BNCORE_LANES);
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++)
        y[l] =
            (x[l] - v.hi) * (v.scale * v.weight[i + l]) + (v.shift * v.weight[i + l] + bias[i + l]);
    NAME(store_many)(to, y, BNCORE_LANES);
}

/* Let STEP values pass the caches by. */
static inline ALWAYS_INLINE void NAME(stream_step)(T *dst, const T *values)
{
    for (int i = 0; i < NAME(STEP); i += NAME(IN_LINE)) stream(dst + i, values + i, LINE);
}

/* Whether lines can be streamed: each begins where a line of the caches does, and is a whole number of steps. */
static inline int NAME(streams_lines)(const bncore_arrays *arrays, const bncore_rows *t)
{
    return arrays->stream && (uintptr_t)arrays->dst % LINE == 0 && t->cols % NAME(STEP) == 0 &&
           t->stride % NAME(STEP) == 0;
}

static void NAME(line_normalize)(const bncore_arrays *arrays, const void *coef, int64_t stride,
                                 const void *weight, const void *bias_, const bncore_rows *t)
{
    const ACC *bias = bias_;
    const int streamed = NAME(streams_lines)(arrays, t);
    for (int64_t r = 0; r < t->rows; r++) {
        const NAME(line) v = NAME(line_at)(arrays, coef, stride, weight, r, t);
        T *y = (T *)arrays->dst + r * t->stride;
        int64_t j = 0;
        for (; streamed && j < t->cols; j += NAME(STEP)) {
            T values[NAME(STEP)];
            for (int p = 0; p < NAME(STEP); p += BNCORE_LANES)
                NAME(line_y)(values + p, v, bias, j + p);
            NAME(stream_step)(y + j, values);
        }
        for (; j + BNCORE_LANES <= t->cols; j += BNCORE_LANES) NAME(line_y)(y + j, v, bias, j);
        for (; j < t->cols; j++)
            y[j] = NAME(store)((NAME(load)(v.x[j]) - v.hi) * (v.scale * v.weight[j]) +
                               (v.shift * v.weight[j] + bias[j]));
    }
    if (streamed) stream_end();
}

/* What the gradients of a line's columns need. coef has the fields of normalize, and then those of grad_input. */
typedef struct NAME(line_slopes) {
    NAME(line) line[LINE_TILE];
    T *dx[LINE_TILE];
    ACC k[LINE_TILE], c[LINE_TILE];
    double *dweight, *dbias;
    int64_t ahead; /* in bytes: to the x of the next tiles, as line_sums prefetches dy */
} NAME(line_slopes);

/* dx of LANES columns of a tile of lines, and what the lines add to dbias and dweight. `to` is where dx is written. */
static inline ALWAYS_INLINE void
NAME(line_gradients)(T *const to[LINE_TILE], const NAME(line_slopes) * s, int64_t i, int lines)
{
    ACC slopes[LINE_TILE][BNCORE_LANES] = {{0}}, products[LINE_TILE][BNCORE_LANES] = {{0}};
    for (int n = 0; n < lines; n++) {
        const NAME(line) v = s->line[n];
        const ACC k = s->k[n], c = s->c[n];
        ACC x[BNCORE_LANES], dx[BNCORE_LANES];
        for (int l = 0; l < BNCORE_LANES; l += NAME(IN_LINE)) fetch(v.x + i + l, s->ahead, LEVEL_2);
        NAME(load_many)(slopes[n], v.dy + i, BNCORE_LANES);
        NAME(load_many)(x, v.x + i, BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            const ACC d = x[l] - v.hi;
            products[n][l] = slopes[n][l] * (d * v.scale + v.shift);
            dx[l] = ((slopes[n][l] * v.weight[i + l] + d * k) + c) * v.scale;
        }
        NAME(store_many)(to[n], dx, BNCORE_LANES);
    }
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        s->dbias[i + l] += ((double)slopes[0][l] + (double)slopes[1][l]) +
                           ((double)slopes[2][l] + (double)slopes[3][l]);
        s->dweight[i + l] +=
            (double)((products[0][l] + products[1][l]) + (products[2][l] + products[3][l]));
    }
}

/* The same for one column. */
static NOINLINE void NAME(one_line_gradient)(const NAME(line_slopes) * s, int64_t i, int lines)
{
    ACC slopes[LINE_TILE] = {0}, products[LINE_TILE] = {0};
    for (int n = 0; n < lines; n++) {
        const NAME(line) v = s->line[n];
        const ACC d = NAME(load)(v.x[i]) - v.hi;
        slopes[n] = NAME(load)(v.dy[i]);
        products[n] = slopes[n] * (d * v.scale + v.shift);
        s->dx[n][i] = NAME(store)(((slopes[n] * v.weight[i] + d * s->k[n]) + s->c[n]) * v.scale);
    }
    s->dbias[i] +=
        ((double)slopes[0] + (double)slopes[1]) + ((double)slopes[2] + (double)slopes[3]);
    s->dweight[i] += (double)((products[0] + products[1]) + (products[2] + products[3]));
}

static inline ALWAYS_INLINE void NAME(walk_line_tile)(const NAME(line_slopes) * s, int64_t cols,
                                                      int streamed, int lines)
{
    int64_t j = 0;
    for (; streamed && j < cols; j += NAME(STEP)) {
        T values[LINE_TILE][NAME(STEP)];
        for (int p = 0; p < NAME(STEP); p += BNCORE_LANES) {
            T *to[LINE_TILE] = {values[0] + p, values[1] + p, values[2] + p, values[3] + p};
            NAME(line_gradients)(to, s, j + p, lines);
        }
        for (int n = 0; n < lines; n++) NAME(stream_step)(s->dx[n] + j, values[n]);
    }
    for (; j + BNCORE_LANES <= cols; j += BNCORE_LANES) {
        T *to[LINE_TILE] = {0};
        for (int n = 0; n < lines; n++) to[n] = s->dx[n] + j;
        NAME(line_gradients)(to, s, j, lines);
    }
    for (; j < cols; j++) NAME(one_line_gradient)(s, j, lines);
}

/* dx of lines, and dbias and dweight of their columns, to which they are added. */
static void NAME(line_grad_input)(const bncore_arrays *arrays, const void *coef, int64_t stride,
                                  const void *weight, double *dweight, double *dbias,
                                  const bncore_rows *t)
{
    const ACC *k = coef;
    const int streamed = NAME(streams_lines)(arrays, t);
    const int64_t ahead = t->rows * t->stride * (int64_t)sizeof(T);
    for (int64_t r = 0; r < t->rows; r += LINE_TILE) {
        const int lines = (int)bncore_min(t->rows - r, LINE_TILE);
        NAME(line_slopes) s = {.dweight = dweight, .dbias = dbias, .ahead = ahead};
        for (int n = 0; n < lines; n++) {
            s.line[n] = NAME(line_at)(arrays, coef, stride, weight, r + n, t);
            s.dx[n] = (T *)arrays->dst + (r + n) * t->stride;
            s.k[n] = k[(NORMALIZE_FIELDS + 2) * stride + r + n];
            s.c[n] = k[(NORMALIZE_FIELDS + 3) * stride + r + n];
        }
        if (lines == LINE_TILE && streamed)
            NAME(walk_line_tile)(&s, t->cols, 1, LINE_TILE);
        else if (lines == LINE_TILE)
            NAME(walk_line_tile)(&s, t->cols, 0, LINE_TILE);
        else
            NAME(walk_line_tile)(&s, t->cols, 0, lines);
    }
    if (streamed) stream_end();
}
