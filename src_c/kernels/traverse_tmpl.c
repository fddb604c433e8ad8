/* The order in which an elementwise kernel for storage type T goes through memory, and how it writes. The arithmetic
 * is a NAME(run_function) of normalize_tmpl.c or grad_input_tmpl.c in the variant `fused`; both are constants here.
 * `to` may be an input itself, because value i of the result depends only on value i of the inputs. */

typedef void NAME(run_function)(T *to, NAME(values) v, int64_t len, const ACC *coef, int64_t stride,
                                int fused);

enum { NAME(LINE) = LINE / sizeof(T) }; /* values of a line */

/* How many values lie between p and the next start of a line. */
static inline int64_t NAME(to_line)(const T *p)
{
    return (int64_t)((LINE - (uintptr_t)p % LINE) % LINE / sizeof(T));
}

/* Write `runs` neighbouring runs of `len` values; whole lines pass the caches by. A line in which two runs meet is
 * computed with the coefficients of both. Three runs never meet in a line, because len >= LINE where there are
 * several runs. `ahead` is the distance in bytes at which the residual is prefetched, since, unlike x, no earlier
 * pass has read it. */
static inline ALWAYS_INLINE void NAME(stream_runs)(T *dst, NAME(values) v, int64_t runs,
                                                   int64_t len, int64_t ahead, const ACC *coef,
                                                   int64_t stride, NAME(run_function) * run,
                                                   int fused)
{
    int64_t i = bncore_min(NAME(to_line)(dst), len), end = len;
    run(dst, v, i, coef, stride, fused);
    for (int64_t c = 0; c < runs; c++, end += len) {
        T line[NAME(LINE)], next[NAME(LINE)];
        for (; i + NAME(LINE) <= end; i += NAME(LINE)) {
            if (fused & RESIDUAL) fetch(v.r + i, ahead, ONCE);
            run(line, NAME(values_at)(v, i, fused), NAME(LINE), coef + c, stride, fused);
            stream_line(dst + i, line);
        }
        if (i == end || c == runs - 1) continue;
        if (fused & RESIDUAL) fetch(v.r + i, ahead, ONCE);
        run(line, NAME(values_at)(v, i, fused), NAME(LINE), coef + c, stride, fused);
        run(next, NAME(values_at)(v, i, fused), NAME(LINE), coef + c + 1, stride, fused);
        const int here = (int)(end - i);
#pragma omp simd
        for (int l = 0; l < NAME(LINE); l++) line[l] = l < here ? line[l] : next[l];
        stream_line(dst + i, line);
        i += NAME(LINE);
    }
    run(dst + i, NAME(values_at)(v, i, fused), runs * len - i, coef + runs - 1, stride, fused);
}

/* The last image comes first, because the reduction read it last and it is still in the cache. Within an image,
 * memory is walked forwards. */
static inline ALWAYS_INLINE void NAME(walk_planes)(const bncore_arrays *arrays, const ACC *coef,
                                                   int64_t stride, const bncore_planes *t,
                                                   NAME(run_function) * run, int fused)
{
    const NAME(values) values = NAME(values_of)(arrays);
    const int64_t ahead = residual_ahead(t, sizeof(T));
    T *dst = arrays->dst;
    piece p;
    for (int64_t e = t->end; e > t->begin; e -= p.len) {
        p = piece_before(t, e);
        if (arrays->stream && p.len == t->inner) {
            NAME(stream_runs)(dst + p.offset, NAME(values_at)(values, p.offset, fused), t->channels,
                              t->inner, ahead, coef, stride, run, fused);
            continue;
        }
        for (int64_t c = 0; c < t->channels; c++) {
            const int64_t at = c * t->inner + p.offset;
            const NAME(values) v = NAME(values_at)(values, at, fused);
            if (arrays->stream)
                NAME(stream_runs)(dst + at, v, 1, p.len, ahead, coef + c, stride, run, fused);
            else
                run(dst + at, v, p.len, coef + c, stride, fused);
        }
    }
    if (arrays->stream) stream_end();
}

/* Write `rows` rows of whole lines, one line of columns at a time, so that its coefficients are loaded once for all
 * rows. */
static inline ALWAYS_INLINE void NAME(walk_columns)(const bncore_arrays *arrays, int64_t at,
                                                    const ACC *coef, int64_t stride, int64_t cols,
                                                    int rows, int stream, NAME(run_function) * run,
                                                    int fused)
{
    const NAME(values) values = NAME(values_at)(NAME(values_of)(arrays), at, fused);
    T *dst = (T *)arrays->dst + at;
    for (int64_t j = 0; j < cols; j += NAME(LINE)) {
        T tile[ROW_TILE][NAME(LINE)];
        for (int r = 0; r < rows; r++)
            run(tile[r], NAME(values_at)(values, r * cols + j, fused), NAME(LINE), coef + j, stride,
                fused);
        for (int r = 0; r < rows; r++) {
            T *to = dst + r * cols + j;
            if (stream)
                stream_line(to, tile[r]);
            else
#pragma omp simd
                for (int l = 0; l < NAME(LINE); l++) to[l] = tile[r][l];
        }
    }
}

static inline ALWAYS_INLINE void NAME(walk_tiles)(const bncore_arrays *arrays, int64_t at,
                                                  const ACC *coef, int64_t stride, int64_t cols,
                                                  int64_t rows, int stream,
                                                  NAME(run_function) * run, int fused)
{
    int64_t r = 0;
    for (; r + ROW_TILE <= rows; r += ROW_TILE)
        NAME(walk_columns)(arrays, at + r * cols, coef, stride, cols, ROW_TILE, stream, run, fused);
    for (; r < rows; r++)
        NAME(walk_columns)(arrays, at + r * cols, coef, stride, cols, 1, stream, run, fused);
}

/* Stream rows that are at least a line wide, from the first whole line on. A line may hold the last columns of a row
 * and the first ones of the next row. The coefficients of those follow the coefficients of the last column, where
 * run.c repeats them. */
static inline ALWAYS_INLINE void NAME(stream_rows)(const bncore_arrays *arrays, const ACC *coef,
                                                   int64_t stride, const bncore_rows *t,
                                                   NAME(run_function) * run, int fused)
{
    const NAME(values) v = NAME(values_of)(arrays);
    T *dst = arrays->dst;
    const int64_t first = NAME(to_line)(dst), all = t->rows * t->cols;
    int64_t i = first, column = first;
    run(dst, v, first, coef, stride, fused);
    if (t->cols % NAME(LINE) == 0 && t->cols >= TILED_COLS) {
        const int64_t rows = t->rows - (first > 0);
        NAME(walk_tiles)(arrays, first, coef + first, stride, t->cols, rows, 1, run, fused);
        i += rows * t->cols;
    }
    for (; i + NAME(LINE) <= all; i += NAME(LINE)) {
        T line[NAME(LINE)];
        run(line, NAME(values_at)(v, i, fused), NAME(LINE), coef + column, stride, fused);
        stream_line(dst + i, line);
        column += NAME(LINE);
        column -= column >= t->cols ? t->cols : 0;
    }
    run(dst + i, NAME(values_at)(v, i, fused), all - i, coef + column, stride, fused);
    stream_end();
}

static inline ALWAYS_INLINE void NAME(walk_rows)(const bncore_arrays *arrays, const ACC *coef,
                                                 int64_t stride, const bncore_rows *t,
                                                 NAME(run_function) * run, int fused)
{
    if (arrays->stream && t->cols >= NAME(LINE)) {
        NAME(stream_rows)(arrays, coef, stride, t, run, fused);
        return;
    }
    if (t->cols % NAME(LINE) == 0) {
        NAME(walk_tiles)(arrays, 0, coef, stride, t->cols, t->rows, 0, run, fused);
        return;
    }
    const NAME(values) v = NAME(values_of)(arrays);
    for (int64_t at = 0; at < t->rows * t->cols; at += t->cols)
        run((T *)arrays->dst + at, NAME(values_at)(v, at, fused), t->cols, coef, stride, fused);
}
