/* How an elementwise kernel for storage type T walks through memory, and how it writes. The arithmetic is
 * that of a NAME(run_function) of normalize_tmpl.c, in the variant `fused`; both are constants here. */

enum { NAME(LINE) = LINE / sizeof(T) }; /* values of a line */

/* A destination too large for the caches is written past them, a whole line at a time. A line in which two runs meet
 * gathers in parts[which], its first value at NAME(LINE): whole vectors may be stored around a run's end there. */
typedef struct NAME(writer) {
    T *next;       /* where the next value goes */
    int64_t begin; /* the first value of next's line that is this writer's */
    int which;
    T parts[2][3 * NAME(LINE)];
} NAME(writer);

static inline int64_t NAME(place_in_line)(const T *p)
{
    return (int64_t)((uintptr_t)p % LINE / sizeof(T));
}

static inline void NAME(write_from)(NAME(writer) * w, T *dst)
{
    w->next = dst;
    w->begin = NAME(place_in_line)(dst);
    w->which = 0;
}

/* What has gathered of the last line, by ordinary stores. */
static inline void NAME(write_rest)(NAME(writer) * w)
{
    const int64_t end = NAME(place_in_line)(w->next);
    for (int64_t i = w->begin; i < end; i++) w->next[i - end] = w->parts[w->which][NAME(LINE) + i];
    w->begin = end;
}

/* run() on a run of `len` values that go behind the writer's last ones; per_value: each has coefficients of its own.
 * A line completed by the first values is written last: its two halves are then past the store buffer. */
static inline ALWAYS_INLINE void NAME(write_run)(NAME(writer) * w, NAME(run_function) * run,
                                                 NAME(values) v, int64_t len, const T *coef,
                                                 int64_t stride, int per_value, int fused)
{
    T *to = w->next, *line = w->parts[w->which] + NAME(LINE), *full = NULL;
    const int64_t at = NAME(place_in_line)(to);
    const int vectors = len >= NAME(LINE); /* else the run is shorter than a vector */
    int64_t i = 0;
    w->next = to + len;
    if (at) {
        i = NAME(LINE) - at;
        if (vectors)
            run(line + at, v, NAME(LINE), coef, stride, fused);
        else
            run(line + at, v, len, coef, stride, fused);
        if (len < i) return;
        if (w->begin == 0) full = line;
        for (int64_t k = w->begin; !full && k < NAME(LINE); k++) to[k - at] = line[k];
        w->which = !w->which;
        line = w->parts[w->which] + NAME(LINE);
    }
    w->begin = 0;
    for (; i + NAME(LINE) <= len; i += NAME(LINE)) {
        T whole[NAME(LINE)];
        run(whole, NAME(values_at)(v, i, fused), NAME(LINE), per_value ? coef + i : coef, stride,
            fused);
        stream_line(to + i, whole);
    }
    const int64_t left = len - i, last = vectors ? len - NAME(LINE) : i;
    const NAME(values) v_last = NAME(values_at)(v, last, fused);
    const T *coef_last = per_value ? coef + last : coef;
    if (left && vectors)
        run(line + left - NAME(LINE), v_last, NAME(LINE), coef_last, stride, fused);
    else
        run(line, v_last, left, coef_last, stride, fused);
    if (full) stream_line(to - at, full);
}

/* The last image first: what was read last is still in cache. Within an image, memory forwards. */
static inline ALWAYS_INLINE void NAME(walk_planes)(const bncore_arrays *arrays, const T *coef,
                                                   int64_t stride, const bncore_planes *t,
                                                   NAME(run_function) * run, int fused)
{
    const NAME(values) values = NAME(values_of)(arrays);
    T *dst = arrays->dst;
    NAME(writer) w;
    piece p;
    for (int64_t e = t->end; e > t->begin; e -= p.len) {
        p = piece_before(t, e);
        NAME(write_from)(&w, dst + p.offset);
        for (int64_t c = 0; c < t->channels; c++) {
            const int64_t at = c * t->inner + p.offset;
            const NAME(values) v = NAME(values_at)(values, at, fused);
            if (!arrays->stream) {
                run(dst + at, v, p.len, coef + c, stride, fused);
                continue;
            }
            if (w.next != dst + at) { /* this image is not whole: runs do not join */
                NAME(write_rest)(&w);
                NAME(write_from)(&w, dst + at);
            }
            NAME(write_run)(&w, run, v, p.len, coef + c, stride, 0, fused);
        }
        if (arrays->stream) NAME(write_rest)(&w);
    }
    if (arrays->stream) stream_end();
}

/* `rows` rows of whole lines, a line of columns at a time, so that its coefficients are loaded once for all. */
static inline ALWAYS_INLINE void NAME(walk_columns)(const bncore_arrays *arrays, int64_t at,
                                                    const T *coef, int64_t stride, int64_t cols,
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
                                                  const T *coef, int64_t stride, int64_t cols,
                                                  int64_t rows, int stream,
                                                  NAME(run_function) * run, int fused)
{
    int64_t r = 0;
    for (; r + ROW_TILE <= rows; r += ROW_TILE)
        NAME(walk_columns)(arrays, at + r * cols, coef, stride, cols, ROW_TILE, stream, run, fused);
    for (; r < rows; r++)
        NAME(walk_columns)(arrays, at + r * cols, coef, stride, cols, 1, stream, run, fused);
}

/* Streamed tiles start at the first whole line; a row then ends in the next one's first columns, whose coefficients
 * follow those of the last (job.c repeats them there). */
static inline ALWAYS_INLINE void NAME(stream_tiles)(const bncore_arrays *arrays, const T *coef,
                                                    int64_t stride, const bncore_rows *t,
                                                    NAME(run_function) * run, int fused)
{
    const NAME(values) v = NAME(values_of)(arrays);
    T *dst = arrays->dst;
    const int64_t place = NAME(place_in_line)(dst), first = place ? NAME(LINE) - place : 0;
    const int64_t rows = first ? t->rows - 1 : t->rows, last = rows * t->cols + first;
    run(dst, v, first, coef, stride, fused);
    NAME(walk_tiles)(arrays, first, coef + first, stride, t->cols, rows, 1, run, fused);
    run(dst + last, NAME(values_at)(v, last, fused), t->rows * t->cols - last, coef + first, stride,
        fused);
    stream_end();
}

static inline ALWAYS_INLINE void NAME(walk_rows)(const bncore_arrays *arrays, const T *coef,
                                                 int64_t stride, const bncore_rows *t,
                                                 NAME(run_function) * run, int fused)
{
    if (t->cols % NAME(LINE) == 0 && !arrays->stream) {
        NAME(walk_tiles)(arrays, 0, coef, stride, t->cols, t->rows, 0, run, fused);
        return;
    }
    if (t->cols % NAME(LINE) == 0 && t->cols >= TILED_COLS) {
        NAME(stream_tiles)(arrays, coef, stride, t, run, fused);
        return;
    }
    const NAME(values) values = NAME(values_of)(arrays);
    T *dst = arrays->dst;
    NAME(writer) w;
    NAME(write_from)(&w, dst);
    for (int64_t at = 0; at < t->rows * t->cols; at += t->cols) {
        const NAME(values) v = NAME(values_at)(values, at, fused);
        if (arrays->stream)
            NAME(write_run)(&w, run, v, t->cols, coef, stride, 1, fused);
        else
            run(dst + at, v, t->cols, coef, stride, fused);
    }
    if (!arrays->stream) return;
    NAME(write_rest)(&w);
    stream_end();
}
