/* Elementwise kernels of weighted values, for storage type T. They compute some values of a run after the other into a
 * buffer, which streams whole lines where the output passes the caches by. Everything may be fused: what is not there
 * changes nothing (weighted_runs_tmpl.c, run.c). */

enum { NAME(EVERYTHING) = ACTIVATION | RESIDUAL | WEIGHTED };

/* ---- arithmetic, as normalize and grad_input have it ---- */

/* Compute WIDTH values, of which `fill` replaces those without weight (frozen is not used). */
static inline ALWAYS_INLINE void NAME(weighted_normalize)(T *to, NAME(values) v, const ACC *coef,
                                                          int64_t stride, int by_column, ACC fill,
                                                          int frozen)
{
    NAME(inputs) in;
    ACC y[NAME(WIDTH)];
    (void)frozen;
    NAME(take)(&in, v, NAME(WIDTH), NAME(EVERYTHING));
#pragma omp simd
    for (int l = 0; l < NAME(WIDTH); l++) {
        const ACC *k = coef + l * by_column;
        const ACC plain =
            NAME(y_of)(v, in.x[l] - k[0], in.r[l], k[stride], k[2 * stride], NAME(EVERYTHING));
        y[l] = v.flags[l] ? plain : fill;
    }
    NAME(store_many)(to, y, NAME(WIDTH));
}

/* dx = ((g + w * ((x - hi) * k)) + w * shift) * a; where there is no weight or, if `frozen`, everywhere it is g * a, and 0
 * where the value takes no part. */
static inline ALWAYS_INLINE void NAME(weighted_grad_input)(T *to, NAME(values) v, const ACC *coef,
                                                           int64_t stride, int by_column, ACC fill,
                                                           int frozen)
{
    const int fused = NAME(EVERYTHING) | BACKWARD;
    NAME(inputs) in;
    ACC g[NAME(WIDTH)], dx[NAME(WIDTH)];
    (void)fill;
    NAME(take)(&in, v, NAME(WIDTH), fused);
    NAME(mask_gradients)(g, &in, v, coef, stride, by_column, fused);
#pragma omp simd
    for (int l = 0; l < NAME(WIDTH); l++) {
        const ACC *k = coef + l * by_column;
        const ACC w = v.weights[l], d = in.x[l] - k[stride];
        const ACC sum = (g[l] + w * (d * k[2 * stride])) + w * k[3 * stride];
        const ACC value = (v.flags[l] && !frozen ? sum : g[l]) * k[0];
        dx[l] = NAME(takes_part)(v, l, g[l], fused) ? value : (ACC)0;
    }
    NAME(store_many)(to, dx, NAME(WIDTH));
}

typedef void NAME(weighted_arithmetic)(T *to, NAME(values) v, const ACC *coef, int64_t stride,
                                       int by_column, ACC fill, int frozen);

/* ---- the output ---- */

/* Values that were computed, and not yet written to `to`. */
typedef struct NAME(writer) {
    T *to;
    int64_t pending;
    int stream;
    T values[MOST_WEIGHTS + NAME(IN_LINE) + NAME(WIDTH)];
} NAME(writer);

static inline void NAME(write_first)(NAME(writer) * w, int64_t n)
{
    memcpy(w->to, w->values, (size_t)n * sizeof(T));
    w->to += n;
    w->pending -= n;
    memmove(w->values, w->values + n, (size_t)w->pending * sizeof(T));
}

/* Write all values, or those of whole lines if they are streamed. */
static ONCE_ONLY void NAME(write_lines)(NAME(writer) * w)
{
    if (!w->stream) {
        NAME(write_first)(w, w->pending);
        return;
    }
    const int64_t before = bncore_min(NAME(to_line)(w->to), w->pending);
    if (before) NAME(write_first)(w, before);
    int64_t i = 0;
    for (; i + NAME(IN_LINE) <= w->pending; i += NAME(IN_LINE))
        NAME(stream_parts)(w->to + i, w->values + i, NAME(PARTS));
    w->to += i;
    w->pending -= i;
    memmove(w->values, w->values + i, (size_t)w->pending * sizeof(T));
}

/* Go on at `to`, which may be where the last values end. */
static ONCE_ONLY void NAME(write_at)(NAME(writer) * w, T *to)
{
    if (w->to + w->pending == to) return;
    NAME(write_first)(w, w->pending);
    w->to = to;
}

/* ---- the inputs ---- */

/* The weights of the values that were taken last; all are 1 if the weights are flags. */
typedef struct NAME(weight_buffer) {
    double room[MOST_WEIGHTS];
    ACC weights[MOST_WEIGHTS];
} NAME(weight_buffer);

static inline void NAME(start_weights)(NAME(weight_buffer) * b)
{
    for (int i = 0; i < MOST_WEIGHTS; i++) b->weights[i] = (ACC)1;
}

static ONCE_ONLY const ACC *NAME(next_weights)(NAME(weight_buffer) * b, const bncore_weighting *w,
                                               int64_t at, int64_t len)
{
    if (!w->doubles) return b->weights;
    const double *from = doubles_of(b->room, w, at, len);
    for (int64_t i = 0; i < len; i++) b->weights[i] = (ACC)from[i];
    return b->weights;
}

/* Copies of fewer than WIDTH values, so that a vector can be computed. */
typedef struct NAME(copies) {
    T dy[NAME(WIDTH)], x[NAME(WIDTH)], r[NAME(WIDTH)];
    uint8_t flags[NAME(WIDTH)];
} NAME(copies);

static NOINLINE NAME(values)
    NAME(copied)(NAME(copies) * to, NAME(values) v, int64_t len, int backward)
{
    if (backward) v.dy = NAME(padded)(to->dy, v.dy, len);
    v.x = NAME(padded)(to->x, v.x, len);
    v.r = NAME(padded)(to->r, v.r, len);
    for (int64_t l = 0; l < NAME(WIDTH); l++) to->flags[l] = l < len ? v.flags[l] : 0;
    v.flags = to->flags;
    return v;
}

/* Compute the n values v. The last ones, which do not fill a vector, are computed with those before them. */
static inline ALWAYS_INLINE void NAME(compute_some)(NAME(writer) * w, NAME(values) v, int64_t n,
                                                    const ACC *coef, int64_t stride, int by_column,
                                                    ACC fill, int frozen,
                                                    NAME(weighted_arithmetic) * compute,
                                                    int backward)
{
    const int fused = NAME(EVERYTHING) | (backward ? BACKWARD : 0);
    T *to = w->values + w->pending;
    NAME(copies) copies;
    if (n < NAME(WIDTH)) v = NAME(copied)(&copies, v, n, backward);
    const int64_t tail = bncore_max(n - NAME(WIDTH), 0);
    for (int64_t i = 0; i < n; i += NAME(WIDTH)) {
        const int64_t at = bncore_min(i, tail);
        NAME(values) here = NAME(values_at)(v, at, fused);
        here.weights += at;
        compute(to + at, here, coef + at * by_column, stride, by_column, fill, frozen);
    }
    w->pending += n;
    NAME(write_lines)(w);
}

/* ---- traversal ---- */

/* Everything that a kernel needs but its arithmetic. */
typedef struct NAME(weighted_walk) {
    NAME(writer) writer;
    NAME(weighted_run) run;
    NAME(weight_buffer) weights;
    ACC fill;
    int frozen;
} NAME(weighted_walk);

static NOINLINE void NAME(start_walk)(NAME(weighted_walk) * w, const bncore_arrays *a)
{
    w->writer.to = a->dst;
    w->writer.pending = 0;
    w->writer.stream = a->stream;
    w->fill = NAME(coefficient)(a->weighting->fill);
    w->frozen = a->weighting->frozen;
    NAME(start_runs)(&w->run, a, RESIDUAL);
    NAME(start_weights)(&w->weights);
}

static void NAME(end_walk)(NAME(weighted_walk) * w)
{
    NAME(write_first)(&w->writer, w->writer.pending);
    if (w->writer.stream) stream_end();
}

/* Write a run of `len` values, of which the first has its weight at `at`. */
static inline ALWAYS_INLINE void NAME(walk_run)(NAME(weighted_walk) * w, T *dst, NAME(values) v,
                                                int64_t at, int64_t len, const ACC *coef,
                                                int64_t stride, int by_column,
                                                NAME(weighted_arithmetic) * compute, int backward)
{
    const int fused = NAME(EVERYTHING) | (backward ? BACKWARD : 0);
    NAME(write_at)(&w->writer, dst);
    NAME(start_run)(&w->run, v, at, len);
    for (int64_t i = 0; w->run.left > 0;) {
        const int64_t n = NAME(next_of_run)(&w->run);
        NAME(values) some = NAME(take_from_run)(&w->run, n, fused);
        some.weights = NAME(next_weights)(&w->weights, w->run.weighting, at + i, n);
        NAME(compute_some)(&w->writer, some, n, coef + i * by_column, stride, by_column, w->fill,
                           w->frozen, compute, backward);
        i += n;
    }
}

/* The last image comes first, as in walk_planes. */
static inline ALWAYS_INLINE void NAME(weighted_planes)(const bncore_arrays *a, const ACC *coef,
                                                       int64_t stride, const bncore_planes *t,
                                                       NAME(weighted_arithmetic) * compute,
                                                       int backward)
{
    const int fused = NAME(EVERYTHING) | (backward ? BACKWARD : 0);
    const NAME(values) values = NAME(values_of)(a);
    NAME(weighted_walk) w;
    NAME(start_walk)(&w, a);
    piece p;
    for (int64_t e = t->end; e > t->begin; e -= p.len) {
        p = piece_before(t, e);
        for (int64_t c = 0; c < t->channels; c++) {
            const int64_t i = c * t->inner + p.offset;
            ACC k[COEF_FIELDS];
            for (int f = 0; f < (backward ? COEF_FIELDS : NORMALIZE_FIELDS); f++)
                k[f] = coef[f * stride + c];
            NAME(walk_run)(&w, (T *)a->dst + i, NAME(values_at)(values, i, fused),
                           NAME(plane_place)(a, t, c, e - p.len), p.len, k, 1, 0, compute,
                           backward);
        }
    }
    NAME(end_walk)(&w);
}

/* Every row is a run. */
static inline ALWAYS_INLINE void NAME(weighted_rows)(const bncore_arrays *a, const ACC *coef,
                                                     int64_t stride, const bncore_rows *t,
                                                     NAME(weighted_arithmetic) * compute,
                                                     int backward)
{
    const int fused = NAME(EVERYTHING) | (backward ? BACKWARD : 0);
    const NAME(values) values = NAME(values_of)(a);
    NAME(weighted_walk) w;
    NAME(start_walk)(&w, a);
    for (int64_t r = 0; r < t->rows; r++) {
        const int64_t i = r * t->cols;
        NAME(walk_run)(&w, (T *)a->dst + i, NAME(values_at)(values, i, fused), a->at + i, t->cols,
                       coef, stride, 1, compute, backward);
    }
    NAME(end_walk)(&w);
}

static void NAME(weighted_normalize_planes)(const bncore_arrays *a, const void *coef,
                                            int64_t stride, const bncore_planes *t)
{
    NAME(weighted_planes)(a, coef, stride, t, NAME(weighted_normalize), 0);
}

static void NAME(weighted_normalize_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                                          const bncore_rows *t)
{
    NAME(weighted_rows)(a, coef, stride, t, NAME(weighted_normalize), 0);
}

static void NAME(weighted_grad_input_planes)(const bncore_arrays *a, const void *coef,
                                             int64_t stride, const bncore_planes *t)
{
    NAME(weighted_planes)(a, coef, stride, t, NAME(weighted_grad_input), 1);
}

static void NAME(weighted_grad_input_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                                           const bncore_rows *t)
{
    NAME(weighted_rows)(a, coef, stride, t, NAME(weighted_grad_input), 1);
}
