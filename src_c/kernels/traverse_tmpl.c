/* The order in which an elementwise kernel for storage type T goes through memory, and how it writes. The arithmetic
 * is a function of normalize_tmpl.c, grad_input_tmpl.c or weighted_arithmetic_tmpl.c in the variant `fused`; both are
 * constants here. `to` may be an input itself, because value i of the result depends only on value i of the inputs. */

/* Compute WIDTH values, or with PAIRS a line of them, and write them to `to`, after all inputs were read. coef has one value
 * per field (planes), or with by_column and without PAIRS one per value (rows). */
typedef void NAME(arithmetic)(T *to, NAME(values) v, const ACC *coef, int64_t stride, int by_column,
                              int fused);

/* The same for fewer than WIDTH values. */
typedef void NAME(few_values)(T *to, NAME(values) v, int64_t len, const ACC *coef, int64_t stride);

/* Copy fewer than WIDTH values; the others become 0. */
static inline ALWAYS_INLINE const T *NAME(padded)(T to[NAME(WIDTH)], const T *from, int64_t len)
{
    for (int64_t l = 0; l < NAME(WIDTH); l++) to[l] = l < len ? from[l] : (T)0;
    return to;
}

static inline ALWAYS_INLINE void NAME(few)(T *to, NAME(values) v, int64_t len, const ACC *coef,
                                           int64_t stride, NAME(arithmetic) * compute,
                                           int by_column, int fused)
{
    T dy[NAME(WIDTH)], x[NAME(WIDTH)], r[NAME(WIDTH)], result[NAME(WIDTH)];
    uint8_t flags[NAME(WIDTH)];
    if (fused & WEIGHTED) {
        for (int64_t l = 0; l < NAME(WIDTH); l++) flags[l] = l < len ? v.flags[l] : 0;
        v.flags = flags;
    }
    if (fused & BACKWARD) v.dy = NAME(padded)(dy, v.dy, len);
    v.x = NAME(padded)(x, v.x, len);
    if (fused & RESIDUAL) v.r = NAME(padded)(r, v.r, len);
    compute(result, v, coef, stride, by_column, fused);
    for (int64_t l = 0; l < len; l++) to[l] = result[l];
}

/* All inputs. Flags lie in memory, or a vector of them stands for all; run_at sets those that channels share. */
static inline ALWAYS_INLINE NAME(values) NAME(inputs_of)(const bncore_arrays *a, int fused)
{
    if (!(fused & WEIGHTED)) return NAME(values_of)(a);
    NAME(values) v = NAME(weighted_values_of)(a);
    if (!a->weighting->values || !a->weighting->per_channel) return v;
    v.flags = (const uint8_t *)a->weighting->values + a->at;
    v.flags_by = 1;
    return v;
}

/* PAIRS where lines of a run may be computed in pairs. Weights are read in the order of the values. */
static inline ALWAYS_INLINE int NAME(pairs)(int fused)
{
    return NAME(IS_PAIRED) && !(fused & WEIGHTED) ? PAIRS : 0;
}

static inline ALWAYS_INLINE void NAME(copy)(T *to, const T *from)
{
#pragma omp simd
    for (int l = 0; l < NAME(WIDTH); l++) to[l] = from[l];
}

/* Read inputs of 16 bits ahead, which the processor does not do early enough: a vector of theirs is half as long as one of
 * the arithmetic. */
static inline ALWAYS_INLINE void NAME(fetch_ahead)(NAME(values) v, int fused)
{
    if (NAME(PARTS) == 1) return;
    fetch(v.x, STREAM_AHEAD, LEVEL_1);
    if (fused & BACKWARD) fetch(v.dy, STREAM_AHEAD, LEVEL_1);
}

/* Let values pass the caches by: a whole line, or one part of it, whose other parts are expected before or behind. */
static inline ALWAYS_INLINE void NAME(stream_parts)(T *dst, const T *values, int parts)
{
    const int part = NAME(WIDTH) * (int)sizeof(T);
    for (int p = 0; p < parts; p++) stream(dst + p * NAME(WIDTH), values + p * NAME(WIDTH), part);
}

/* How many values lie between p and the next start of WIDTH values in a line. There are fewer than WIDTH, and so a run that
 * meets another one is longer. */
static inline int64_t NAME(to_part)(const T *p)
{
    const uintptr_t part = NAME(WIDTH) * sizeof(T);
    return (int64_t)((part - (uintptr_t)p % part) % part / sizeof(T));
}

/* How many values lie between p and the next start of a line. */
static inline int64_t NAME(to_line)(const T *p)
{
    return (int64_t)((LINE - (uintptr_t)p % LINE) % LINE / sizeof(T));
}

/* Write one run of `len` values. Its last values, which do not fill a vector, are written with those before them; they
 * are computed first of all, as long as all inputs are there. */
static inline ALWAYS_INLINE void NAME(write_run)(T *to, NAME(values) v, int64_t len,
                                                 const ACC *coef, int64_t stride,
                                                 NAME(arithmetic) * compute,
                                                 NAME(few_values) * compute_few, int fused)
{
    const int64_t tail = len - NAME(WIDTH), left = len % NAME(WIDTH);
    T last[NAME(WIDTH)];
    if (tail < 0) {
        compute_few(to, v, len, coef, stride);
        return;
    }
    if (left) compute(last, NAME(values_at)(v, tail, fused), coef, stride, 0, fused);
    int64_t i = 0;
    if (NAME(pairs)(fused) && len >= LONG_IN_PAIRS)
        for (; i + NAME(IN_LINE) <= len; i += NAME(IN_LINE))
            compute(to + i, NAME(values_at)(v, i, fused), coef, stride, 0, fused | PAIRS);
    for (; i <= tail; i += NAME(WIDTH))
        compute(to + i, NAME(values_at)(v, i, fused), coef, stride, 0, fused);
    if (left) NAME(copy)(to + tail, last);
}

/* Write `runs` neighbouring runs of `len` values; whole lines pass the caches by. WIDTH values in which two runs meet
 * are computed with the coefficients of both. Three runs never meet there, because len >= WIDTH where there are several
 * runs. `ahead` is the distance in bytes at which the residual is prefetched, since, unlike x, no earlier pass has read
 * it. The flags of the next run lie v.flags_step values behind those of a run. */
static inline ALWAYS_INLINE void NAME(stream_runs)(T *dst, NAME(values) v, int64_t runs,
                                                   int64_t len, int64_t ahead, const ACC *coef,
                                                   int64_t stride, NAME(arithmetic) * compute,
                                                   NAME(few_values) * compute_few, int fields,
                                                   int fused)
{
    const int64_t line = NAME(to_line)(dst);
    const int pairs = NAME(pairs)(fused);
    int64_t i = bncore_min(NAME(to_part)(dst), len), end = len;
    if (i) compute_few(dst, v, i, coef, stride);
    for (int64_t c = 0; c < runs; c++, end += len) {
        if (fused & WEIGHTED && c) v.flags += v.flags_step - len;
        ACC k[COEF_FIELDS];
        T values[NAME(IN_LINE)], next[NAME(WIDTH)];
        for (int f = 0; f < fields; f++) k[f] = coef[f * stride + c];
        while (i + NAME(WIDTH) <= end) {
            if ((i - line) % NAME(IN_LINE) == 0)
                for (; i + NAME(IN_LINE) <= end; i += NAME(IN_LINE)) {
                    if (fused & RESIDUAL) fetch(v.r + i, ahead, ONCE);
                    NAME(fetch_ahead)(NAME(values_at)(v, i, fused), fused);
                    for (int p = 0; p < NAME(IN_LINE); p += NAME(at_once)(pairs))
                        compute(values + p, NAME(values_at)(v, i + p, fused), k, 1, 0,
                                fused | pairs);
                    NAME(stream_parts)(dst + i, values, NAME(PARTS));
                }
            if (NAME(PARTS) == 1 || i + NAME(WIDTH) > end) break;
            compute(values, NAME(values_at)(v, i, fused), k, 1, 0, fused);
            NAME(stream_parts)(dst + i, values, 1);
            i += NAME(WIDTH);
        }
        if (i == end || c == runs - 1) continue;
        if (fused & RESIDUAL) fetch(v.r + i, ahead, ONCE);
        compute(values, NAME(values_at)(v, i, fused), k, 1, 0, fused);
        compute(next, NAME(values_at)(v, i, fused), coef + c + 1, stride, 0, fused);
        const int here = (int)(end - i);
#pragma omp simd
        for (int l = 0; l < NAME(WIDTH); l++) values[l] = l < here ? values[l] : next[l];
        NAME(stream_parts)(dst + i, values, 1);
        i += NAME(WIDTH);
    }
    if (i < runs * len)
        compute_few(dst + i, NAME(values_at)(v, i, fused), runs * len - i, coef + runs - 1, stride);
}

/* The flags of a run, which all channels share. Where the output is streamed, they begin once more behind the end of the run,
 * in `room`, if they fit: then neighbouring runs can be streamed at once. */
static inline const uint8_t *NAME(shared_flags)(uint8_t room[MOST_FLAGS], const bncore_arrays *a,
                                                int64_t e, int64_t len)
{
    const uint8_t *flags = (const uint8_t *)a->weighting->values + e;
    if (!a->stream || len + NAME(IN_LINE) > MOST_FLAGS) return flags;
    for (int64_t i = 0, n; i < len + NAME(IN_LINE); i += n) {
        n = bncore_min(len, len + NAME(IN_LINE) - i);
        memcpy(room + i, flags, (size_t)n);
    }
    return room;
}

/* The values of a run that begins at value i of x; its flags, if given, are shared. */
static inline ALWAYS_INLINE NAME(values)
    NAME(run_at)(NAME(values) v, int64_t i, const uint8_t *flags, int fused)
{
    v = NAME(values_at)(v, i, fused);
    if (!(fused & WEIGHTED) || !flags) return v;
    v.flags = flags;
    v.flags_by = 1;
    return v;
}

/* The last image comes first, because the reduction read it last and it is still in the cache. Within an image,
 * memory is walked forwards. */
static inline ALWAYS_INLINE void NAME(walk_planes)(const bncore_arrays *arrays, const ACC *coef,
                                                   int64_t stride, const bncore_planes *t,
                                                   NAME(arithmetic) * compute,
                                                   NAME(few_values) * compute_few, int fields,
                                                   int fused)
{
    NAME(values) values = NAME(inputs_of)(arrays, fused);
    const int shared =
        fused & WEIGHTED && arrays->weighting->values && !arrays->weighting->per_channel;
    const int64_t ahead = residual_ahead(t, sizeof(T));
    const int copied = fused & BACKWARD && fused & ACTIVATION ? COEF_FIELDS : fields;
    T *dst = arrays->dst;
    uint8_t room[MOST_FLAGS];
    piece p;
    for (int64_t e = t->end; e > t->begin; e -= p.len) {
        p = piece_before(t, e);
        const uint8_t *flags = shared ? NAME(shared_flags)(room, arrays, e - p.len, p.len) : NULL;
        values.flags_step = shared ? 0 : p.len;
        if (arrays->stream) {
            const int whole = p.len == t->inner && (!shared || flags == room);
            for (int64_t c = 0; c < t->channels; c += whole ? t->channels : 1) {
                const int64_t at = c * t->inner + p.offset;
                NAME(stream_runs)(dst + at, NAME(run_at)(values, at, flags, fused),
                                  whole ? t->channels : 1, p.len, ahead, coef + c, stride, compute,
                                  compute_few, copied, fused);
            }
            continue;
        }
        for (int64_t c = 0; c < t->channels; c++) {
            const int64_t at = c * t->inner + p.offset;
            ACC k[COEF_FIELDS];
            for (int f = 0; f < copied; f++) k[f] = coef[f * stride + c];
            NAME(write_run)(dst + at, NAME(run_at)(values, at, flags, fused), p.len, k, 1, compute,
                            compute_few, fused);
        }
    }
    if (arrays->stream) stream_end();
}

/* Write `rows` rows whose width is a multiple of WIDTH (streamed: of a line), so many columns at a time, so that their
 * coefficients are loaded once for all rows. */
static inline ALWAYS_INLINE void NAME(walk_columns)(const bncore_arrays *arrays, int64_t at,
                                                    const ACC *coef, int64_t stride, int64_t cols,
                                                    int rows, int streamed,
                                                    NAME(arithmetic) * compute, int fused)
{
    const NAME(values) values = NAME(values_at)(NAME(inputs_of)(arrays, fused), at, fused);
    T *dst = (T *)arrays->dst + at;
    const int width = streamed ? NAME(IN_LINE) : NAME(WIDTH);
    for (int64_t j = 0; j < cols; j += width) {
        T tile[ROW_TILE][NAME(IN_LINE)];
        for (int p = 0; p < width; p += NAME(WIDTH))
            for (int r = 0; r < rows; r++)
                compute(tile[r] + p, NAME(values_at)(values, r * cols + j + p, fused), coef + j + p,
                        stride, 1, fused);
        for (int r = 0; r < rows; r++) {
            T *to = dst + r * cols + j;
            if (streamed)
                NAME(stream_parts)(to, tile[r], NAME(PARTS));
            else
                NAME(copy)(to, tile[r]);
        }
    }
}

static inline ALWAYS_INLINE void NAME(walk_tiles)(const bncore_arrays *arrays, int64_t at,
                                                  const ACC *coef, int64_t stride, int64_t cols,
                                                  int64_t rows, int streamed,
                                                  NAME(arithmetic) * compute, int fused)
{
    int64_t r = 0;
    for (; r + ROW_TILE <= rows; r += ROW_TILE)
        NAME(walk_columns)(arrays, at + r * cols, coef, stride, cols, ROW_TILE, streamed, compute,
                           fused);
    for (; r < rows; r++)
        NAME(walk_columns)(arrays, at + r * cols, coef, stride, cols, 1, streamed, compute, fused);
}

/* Write values first .. all - 1 of rows that are at least WIDTH values wide. WIDTH values may be the last columns of a row
 * and the first ones of the next row. The coefficients of those follow the coefficients of the last column, where
 * run.c repeats them. */
static inline ALWAYS_INLINE void NAME(walk_on)(const bncore_arrays *arrays, int64_t first,
                                               int64_t all, const ACC *coef, int64_t stride,
                                               int64_t cols, int streamed,
                                               NAME(arithmetic) * compute,
                                               NAME(few_values) * compute_few, int fused)
{
    const NAME(values) v = NAME(inputs_of)(arrays, fused);
    T *dst = arrays->dst;
    int64_t i = first, column = first % cols;
    const int width = streamed ? NAME(IN_LINE) : NAME(WIDTH);
    for (; i + width <= all; i += width) {
        T values[NAME(IN_LINE)], *to = streamed ? values : dst + i;
        if (streamed) NAME(fetch_ahead)(NAME(values_at)(v, i, fused), fused);
        for (int p = 0; p < width; p += NAME(WIDTH)) {
            compute(to + p, NAME(values_at)(v, i + p, fused), coef + column, stride, 1, fused);
            column += NAME(WIDTH);
            column -= column >= cols ? cols : 0;
        }
        if (streamed) NAME(stream_parts)(dst + i, values, NAME(PARTS));
    }
    if (streamed && all - i >= NAME(WIDTH)) {
        compute(dst + i, NAME(values_at)(v, i, fused), coef + column, stride, 1, fused);
        i += NAME(WIDTH);
        column += NAME(WIDTH);
        column -= column >= cols ? cols : 0;
    }
    if (i < all) compute_few(dst + i, NAME(values_at)(v, i, fused), all - i, coef + column, stride);
}

/* Stream rows that are at least WIDTH values wide, from the first whole line on. */
static inline ALWAYS_INLINE void NAME(stream_rows)(const bncore_arrays *arrays, const ACC *coef,
                                                   int64_t stride, const bncore_rows *t,
                                                   NAME(arithmetic) * compute,
                                                   NAME(few_values) * compute_few, int fused)
{
    const int64_t all = t->rows * t->cols, first = bncore_min(NAME(to_line)(arrays->dst), all);
    int64_t i = first;
    NAME(walk_on)(arrays, 0, first, coef, stride, t->cols, 0, compute, compute_few, fused);
    if (t->cols % (LINE / (int)sizeof(T)) == 0 && t->cols >= TILED_COLS) {
        const int64_t rows = t->rows - (first > 0);
        NAME(walk_tiles)(arrays, first, coef + first, stride, t->cols, rows, 1, compute, fused);
        i += rows * t->cols;
    }
    NAME(walk_on)(arrays, i, all, coef, stride, t->cols, 1, compute, compute_few, fused);
    stream_end();
}

/* Tiles load the coefficients less often, which shows where the values are in a near cache. From anywhere else memory is
 * faster in one run than in four that lie a row apart. */
static inline ALWAYS_INLINE void NAME(walk_rows)(const bncore_arrays *arrays, const ACC *coef,
                                                 int64_t stride, const bncore_rows *t,
                                                 NAME(arithmetic) * compute,
                                                 NAME(few_values) * compute_few, int fused)
{
    const int64_t all = t->rows * t->cols;
    const NAME(values) v = NAME(inputs_of)(arrays, fused);
    if (t->cols < NAME(WIDTH))
        for (int64_t at = 0; at < all; at += t->cols)
            compute_few((T *)arrays->dst + at, NAME(values_at)(v, at, fused), t->cols, coef,
                        stride);
    else if (arrays->stream)
        NAME(stream_rows)(arrays, coef, stride, t, compute, compute_few, fused);
    else if (t->cols % NAME(WIDTH) == 0 && (arrays->near || t->cols >= TILED_COLS))
        NAME(walk_tiles)(arrays, 0, coef, stride, t->cols, t->rows, 0, compute, fused);
    else
        NAME(walk_on)(arrays, 0, all, coef, stride, t->cols, 0, compute, compute_few, fused);
}
