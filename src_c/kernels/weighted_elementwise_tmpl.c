/* Elementwise kernels of weighted values, for storage type T. Where flags can be read as they lie in
 * memory, they take the traversals of plain values (traverse_tmpl.c). Elsewhere they compute some values of a run after
 * the other into a buffer, which streams whole lines where the output passes the caches by. */

/* ---- the output ---- */

enum {
    NAME(BUFFERED) = 256, /* values that are streamed at once, at least */
    NAME(BUFFER) = NAME(BUFFERED) + 4 * NAME(IN_LINE)
};

/* Streamed values that were computed, and not yet written to `to`. */
typedef struct NAME(writer) {
    T *to;
    int64_t pending;
    int stream;
    T values[NAME(BUFFER)];
} NAME(writer);

/* Write the first n values to the caches, fewer than a line. */
static inline void NAME(write_first)(NAME(writer) * w, int64_t n)
{
    for (int64_t i = 0; i < n; i++) w->to[i] = w->values[i];
    w->to += n;
    w->pending -= n;
}

/* Stream whole lines. What is left is less than a line. */
static ONCE_ONLY void NAME(write_lines)(NAME(writer) * w)
{
    int64_t i = bncore_min(NAME(to_line)(w->to), w->pending);
    NAME(write_first)(w, i);
    T *to = w->to - i;
    const int64_t all = i + w->pending;
    for (; i + NAME(IN_LINE) <= all; i += NAME(IN_LINE))
        NAME(stream_parts)(to + i, w->values + i, NAME(PARTS));
    memmove(w->values, w->values + i, LINE);
    w->to = to + i;
    w->pending = all - i;
}

/* Count n more values in the buffer. */
static inline void NAME(written)(NAME(writer) * w, int64_t n)
{
    w->pending += n;
    if (w->pending >= NAME(BUFFERED)) NAME(write_lines)(w);
}

/* Write all values. */
static ONCE_ONLY void NAME(write_rest)(NAME(writer) * w)
{
    NAME(write_lines)(w);
    NAME(write_first)(w, w->pending);
}

/* ---- the inputs ---- */

/* The weights of the values that were taken last; all are 1 if the weights are flags. */
typedef struct NAME(weight_buffer) {
    double room[MOST_WEIGHTS];
    ACC weights[MOST_WEIGHTS];
} NAME(weight_buffer);

/* Take up to `left` weights that are doubles, with flags that say which are not 0. Returns how many. */
static ONCE_ONLY int64_t NAME(next_weights)(NAME(weight_buffer) * b, uint8_t *flags,
                                            const bncore_weighting *w, int64_t at, const T *x,
                                            int64_t left)
{
    const int64_t n = some_of(left);
    const double *from = NAME(weights_in)(b->room, w, at, x, n);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) b->weights[i] = (ACC)from[i];
#pragma omp simd
    for (int64_t i = 0; i < n; i++) flags[i] = from[i] != 0.0;
    return n;
}

/* Copies of fewer than WIDTH values, so that a vector can be computed. */
typedef struct NAME(copies) {
    T dy[NAME(WIDTH)], x[NAME(WIDTH)], r[NAME(WIDTH)];
    uint8_t flags[NAME(WIDTH)];
} NAME(copies);

static NOINLINE NAME(values) NAME(copied)(NAME(copies) * to, NAME(values) v, int64_t len, int fused)
{
    if (fused & BACKWARD) v.dy = NAME(padded)(to->dy, v.dy, len);
    v.x = NAME(padded)(to->x, v.x, len);
    if (fused & RESIDUAL) v.r = NAME(padded)(to->r, v.r, len);
    for (int64_t l = 0; l < NAME(WIDTH); l++) to->flags[l] = l < len ? v.flags[l] : 0;
    v.flags = to->flags;
    return v;
}

/* ---- traversal ---- */

/* Everything that a kernel needs but its arithmetic. */
typedef struct NAME(weighted_walk) {
    NAME(writer) writer;
    NAME(run_flags) flags;
    NAME(weight_buffer) weights;
    int64_t weights_by; /* 0: a vector of ones stands for all weights */
} NAME(weighted_walk);

static NOINLINE void NAME(start_walk)(NAME(weighted_walk) * w, const bncore_arrays *a)
{
    w->writer.to = a->dst;
    w->writer.pending = 0;
    w->writer.stream = a->stream;
    w->weights_by = a->weighting->doubles;
    NAME(start_runs)(&w->flags, a);
    for (int i = 0; i < BNCORE_LANES; i++) w->weights.weights[i] = (ACC)1;
}

static void NAME(end_walk)(NAME(weighted_walk) * w)
{
    if (!w->writer.stream) return;
    NAME(write_rest)(&w->writer);
    stream_end();
}

/* Compute a vector of the values v, which is not a whole one, and copy its `left` values to `to`. If there are values before
 * them, `before` of these are computed once more; dst may hold their results already. */
static inline ALWAYS_INLINE void NAME(compute_rest)(T *to, NAME(values) v, int64_t before,
                                                    int64_t left, const ACC *coef, int64_t stride,
                                                    int by_column, NAME(arithmetic) * compute,
                                                    int fused)
{
    T out[NAME(WIDTH)];
    NAME(copies) copies;
    if (before == 0) v = NAME(copied)(&copies, v, left, fused);
    compute(out, v, coef, stride, by_column, fused);
    for (int64_t l = 0; l < left; l++) to[l] = out[before + l];
}

/* Compute WIDTH values from value i of v on. */
static inline ALWAYS_INLINE void NAME(compute_at)(const NAME(weighted_walk) * w, T *to,
                                                  NAME(values) v, int64_t i, const ACC *coef,
                                                  int64_t stride, int by_column,
                                                  NAME(arithmetic) * compute, int fused)
{
    NAME(values) here = NAME(values_at)(v, i, fused);
    if (fused & DOUBLES) here.weights += i * w->weights_by;
    compute(to, here, coef + i * by_column, stride, by_column, fused);
}

/* Stream the whole lines among the n values v, which are at least two lines. What lies before the first of them goes to the
 * buffer, and is written with what waits there. Returns how many values were computed. */
static inline ALWAYS_INLINE int64_t NAME(stream_lines)(NAME(weighted_walk) * w, T *dst,
                                                       NAME(values) v, int64_t n, const ACC *coef,
                                                       int64_t stride, int by_column,
                                                       NAME(arithmetic) * compute, int fused)
{
    NAME(writer) *writer = &w->writer;
    const int64_t head = NAME(to_line)(dst);
    for (int64_t i = 0; i < head; i += NAME(WIDTH))
        NAME(compute_at)(w, writer->values + writer->pending + i, v, i, coef, stride, by_column,
                         compute, fused);
    writer->pending += head;
    NAME(write_lines)(writer);
    int64_t i = head;
    for (; i + NAME(IN_LINE) <= n; i += NAME(IN_LINE)) {
        T line[NAME(IN_LINE)];
        NAME(fetch_values)(NAME(values_at)(v, i, fused), WEIGHTED_AHEAD, LEVEL_1,
                           fused & ~RESIDUAL);
        for (int part = 0; part < NAME(IN_LINE); part += NAME(WIDTH))
            NAME(compute_at)(w, line + part, v, i + part, coef, stride, by_column, compute, fused);
        NAME(stream_parts)(dst + i, line, NAME(PARTS));
    }
    writer->to = dst + i;
    return i;
}

/* Compute the n values v, and write them to dst. */
static inline ALWAYS_INLINE void NAME(compute_some)(NAME(weighted_walk) * w, T *dst, NAME(values) v,
                                                    int64_t n, const ACC *coef, int64_t stride,
                                                    int by_column, NAME(arithmetic) * compute,
                                                    int fused)
{
    NAME(writer) *writer = &w->writer;
    int64_t i = 0;
    if (writer->stream && n >= 2 * NAME(IN_LINE))
        i = NAME(stream_lines)(w, dst, v, n, coef, stride, by_column, compute, fused);
    T *to = writer->stream ? writer->values + writer->pending - i : dst;
    const int64_t computed = i;
    for (; i + NAME(WIDTH) <= n; i += NAME(WIDTH)) {
        NAME(fetch_values)(NAME(values_at)(v, i, fused), WEIGHTED_AHEAD, LEVEL_1,
                           fused & ~RESIDUAL);
        NAME(compute_at)(w, to + i, v, i, coef, stride, by_column, compute, fused);
    }
    if (i < n) {
        const int64_t before = n >= NAME(WIDTH) ? NAME(WIDTH) - (n - i) : 0;
        NAME(values) here = NAME(values_at)(v, i - before, fused);
        if (fused & DOUBLES) here.weights += (i - before) * w->weights_by;
        NAME(compute_rest)(to + i, here, before, n - i, coef + (i - before) * by_column, stride,
                           by_column, compute, fused);
    }
    if (writer->stream) NAME(written)(writer, n - computed);
}

/* Write runs of `width` values that follow each other, `len` values in all. The weight of the first one is at `at`. */
static inline ALWAYS_INLINE void NAME(walk_runs)(NAME(weighted_walk) * w, T *dst, NAME(values) v,
                                                 int64_t at, int64_t len, int64_t width,
                                                 const ACC *coef, int64_t stride, int by_column,
                                                 NAME(arithmetic) * compute, int fused)
{
    if (w->writer.stream && w->writer.to + w->writer.pending != dst) {
        NAME(write_rest)(&w->writer);
        w->writer.to = dst;
    }
    v.weights = w->weights.weights;
    for (int64_t i = 0, n, column = 0; i < len; i += n) {
        NAME(values) some = NAME(values_at)(v, i, fused);
        if (fused & DOUBLES && w->weights_by) {
            some.flags = w->flags.flags;
            some.flags_by = 1;
            n = NAME(next_weights)(&w->weights, w->flags.flags, w->flags.weighting, at + i, some.x,
                                   len - i);
        } else {
            n = NAME(next_flags)(&w->flags, &some, at + i, len - i);
        }
        for (int64_t j = 0, part; j < n; j += part) {
            part = bncore_min(width - column, n - j);
            NAME(values) here = NAME(values_at)(some, j, fused);
            if (fused & DOUBLES) here.weights += j * w->weights_by;
            NAME(compute_some)(w, dst + i + j, here, part, coef + column * by_column, stride,
                               by_column, compute, fused);
            column = column + part < width ? column + part : 0;
        }
    }
}

/* The last image comes first, as in walk_planes. */
static inline ALWAYS_INLINE void NAME(weighted_planes)(const bncore_arrays *a, const ACC *coef,
                                                       int64_t stride, const bncore_planes *t,
                                                       NAME(arithmetic) * compute, int fused)
{
    const NAME(values) values = NAME(weighted_values_of)(a);
    NAME(weighted_walk) w;
    NAME(start_walk)(&w, a);
    piece p;
    for (int64_t e = t->end; e > t->begin; e -= p.len) {
        p = piece_before(t, e);
        const int64_t first = NAME(plane_place)(a, t, 0, e - p.len);
        const int64_t apart = a->weighting->per_channel ? t->inner : 0;
        for (int64_t c = 0; c < t->channels; c++) {
            const int64_t i = c * t->inner + p.offset;
            ACC k[COEF_FIELDS];
            for (int f = 0; f < (fused & BACKWARD ? COEF_FIELDS : NORMALIZE_FIELDS); f++)
                k[f] = coef[f * stride + c];
            NAME(walk_runs)(&w, (T *)a->dst + i, NAME(values_at)(values, i, fused),
                            first + c * apart, p.len, p.len, k, 1, 0, compute, fused);
        }
    }
    NAME(end_walk)(&w);
}

static inline ALWAYS_INLINE void NAME(weighted_rows)(const bncore_arrays *a, const ACC *coef,
                                                     int64_t stride, const bncore_rows *t,
                                                     NAME(arithmetic) * compute, int fused)
{
    NAME(weighted_walk) w;
    NAME(start_walk)(&w, a);
    NAME(walk_runs)(&w, a->dst, NAME(weighted_values_of)(a), a->at, t->rows * t->cols, t->cols,
                    coef, stride, 1, compute, fused);
    NAME(end_walk)(&w);
}

/* Write planes whose flags lie in memory as plain values are written, or rows whose flags do. Returns whether they do. */
#define BNCORE_FLAGGED(operation, fused)                                                           \
    static NOINLINE void NAME(few_flagged_##operation##_planes)(                                   \
        T * to, NAME(values) v, int64_t len, const ACC *coef, int64_t stride)                      \
    {                                                                                              \
        NAME(few)(to, v, len, coef, stride, NAME(weighted_##operation), 0, fused);                 \
    }                                                                                              \
    static NOINLINE void NAME(few_flagged_##operation##_rows)(T * to, NAME(values) v, int64_t len, \
                                                              const ACC *coef, int64_t stride)     \
    {                                                                                              \
        NAME(few)(to, v, len, coef, stride, NAME(weighted_##operation), 1, fused);                 \
    }                                                                                              \
    static ONCE_ONLY int NAME(flagged_##operation##_planes)(                                       \
        const bncore_arrays *a, const void *coef, int64_t stride, const bncore_planes *t)          \
    {                                                                                              \
        if (!NAME(reads_flags)(a->weighting)) return 0;                                            \
        NAME(walk_planes)(a, coef, stride, t, NAME(weighted_##operation),                          \
                          NAME(few_flagged_##operation##_planes), FIELDS_##operation, fused);      \
        return 1;                                                                                  \
    }                                                                                              \
    static ONCE_ONLY int NAME(flagged_##operation##_rows)(                                         \
        const bncore_arrays *a, const void *coef, int64_t stride, const bncore_rows *t)            \
    {                                                                                              \
        if (!NAME(reads_flags)(a->weighting))                                                      \
            return NAME(write_flagged_rows)(a, coef, stride, t, NAME(weighted_##operation),        \
                                            NAME(operation), fused);                               \
        NAME(walk_rows)(a, coef, stride, t, NAME(weighted_##operation),                            \
                        NAME(few_flagged_##operation##_rows), fused);                              \
        return 1;                                                                                  \
    }
BNCORE_FLAGGED(normalize, WEIGHTED)
BNCORE_FLAGGED(grad_input, WEIGHTED | BACKWARD)
#undef BNCORE_FLAGGED

#define BNCORE_WEIGHTED(operation, variant, fused, try_planes, try_rows)                           \
    static void NAME(weighted_##operation##_planes_##variant)(                                     \
        const bncore_arrays *a, const void *coef, int64_t stride, const bncore_planes *t)          \
    {                                                                                              \
        if (try_planes(a, coef, stride, t)) return;                                                \
        NAME(weighted_planes)(a, coef, stride, t, NAME(weighted_##operation), fused);              \
    }                                                                                              \
    static void NAME(weighted_##operation##_rows_##variant)(                                       \
        const bncore_arrays *a, const void *coef, int64_t stride, const bncore_rows *t)            \
    {                                                                                              \
        if (try_rows(a, coef, stride, t)) return;                                                  \
        NAME(weighted_rows)(a, coef, stride, t, NAME(weighted_##operation), fused);                \
    }
#define NO_SHORTER_WAY(a, coef, stride, t) 0
BNCORE_WEIGHTED(normalize, plain, WEIGHTED, NAME(flagged_normalize_planes),
                NAME(flagged_normalize_rows))
BNCORE_WEIGHTED(normalize, fused, NAME(EVERYTHING) & ~DOUBLES, NO_SHORTER_WAY, NO_SHORTER_WAY)
BNCORE_WEIGHTED(grad_input, flagged, WEIGHTED | BACKWARD, NAME(flagged_grad_input_planes),
                NAME(flagged_grad_input_rows))
BNCORE_WEIGHTED(grad_input, plain, WEIGHTED | BACKWARD | DOUBLES, NO_SHORTER_WAY, NO_SHORTER_WAY)
BNCORE_WEIGHTED(grad_input, fused, NAME(EVERYTHING) | BACKWARD, NO_SHORTER_WAY, NO_SHORTER_WAY)
#undef BNCORE_WEIGHTED
#undef NO_SHORTER_WAY
