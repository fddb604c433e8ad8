/* Elementwise kernels for storage type T: y from x, dx from dy and x. The arithmetic is in T; what needs more
 * digits was folded into the coefficients in double. dst may be x or dy itself: element i depends on element i. */

/* y = (x - hi) * scale + shift: hi is the mean rounded to T, and what rounding lost is in shift, so that
 * |mean| >> std costs no digits. Fields: hi, scale, shift. */
static void NAME(normalize_coef)(void *coef_, int64_t stride, int64_t j, double mean, double scale,
                                 double bias)
{
    T *coef = coef_;
    const T hi = (T)mean, sc = (T)scale;
    const double lo = mean - (double)hi;
    coef[j] = hi;
    coef[stride + j] = sc;
    coef[2 * stride + j] = (T)(lo == 0.0 ? bias : bias - lo * (double)sc);
}

/* dx = (dy * a + (x - hi) * k) + c. Fields: a, hi, k, c. */
static void NAME(grad_input_coef)(void *coef_, int64_t stride, int64_t j, double mean, double a,
                                  double k, double c)
{
    T *coef = coef_;
    const T hi = (T)mean, k_T = (T)k;
    const double lo = mean - (double)hi;
    coef[j] = (T)a;
    coef[stride + j] = hi;
    coef[2 * stride + j] = k_T;
    coef[3 * stride + j] = (T)(lo == 0.0 ? c : c - lo * (double)k_T);
}

/* One run of values, with coefficients of one channel (planes) or of one per value (rows): to[i] from dy[i], x[i]. */
static inline void NAME(normalize_run)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                       int64_t stride)
{
    (void)dy;
    const T hi = coef[0], scale = coef[stride], shift = coef[2 * stride];
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = (x[i] - hi) * scale + shift;
}

static inline void NAME(normalize_row)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                       int64_t stride)
{
    (void)dy;
    const T *hi = coef, *scale = hi + stride, *shift = scale + stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = (x[i] - hi[i]) * scale[i] + shift[i];
}

static inline void NAME(grad_input_run)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                        int64_t stride)
{
    const T a = coef[0], hi = coef[stride], k = coef[2 * stride], c = coef[3 * stride];
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = (dy[i] * a + (x[i] - hi) * k) + c;
}

static inline void NAME(grad_input_row)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                        int64_t stride)
{
    const T *a = coef, *hi = a + stride, *k = hi + stride, *c = k + stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = (dy[i] * a[i] + (x[i] - hi[i]) * k[i]) + c[i];
}

/* Frozen statistics: dx = dy * a, the first field of grad_input's coefficients. */
static inline void NAME(grad_frozen_run)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                         int64_t stride)
{
    (void)x, (void)stride;
    const T a = coef[0];
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = dy[i] * a;
}

static inline void NAME(grad_frozen_row)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                         int64_t stride)
{
    (void)x, (void)stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = dy[i] * coef[i];
}

typedef void NAME(run_function)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                int64_t stride);

/* A destination too large for the caches is written through a tile in L1, past them. The tile mirrors whole lines of
 * memory, so that each is written at once; it lies in one page, since a store across two is slow. */
enum {
    NAME(LINE) = LINE / sizeof(T),
    NAME(TILE) = STREAM_TILE / sizeof(T),
    NAME(ROOM) = NAME(TILE) - NAME(LINE) /* so that what is moved to the start is always a line */
};

typedef struct NAME(writer) {
    T *line;            /* where tile[0] goes: the start of a line */
    int64_t begin, end; /* the values of the tile that are not in memory yet */
    _Alignas(STREAM_TILE) T tile[NAME(TILE)];
} NAME(writer);

static inline void NAME(write_from)(NAME(writer) * w, T *dst)
{
    w->begin = w->end = (int64_t)((uintptr_t)dst % LINE / sizeof(T));
    w->line = dst - w->begin;
}

/* Write the whole lines; the values after them move to the tile's start. */
static inline void NAME(flush)(NAME(writer) * w)
{
    const int64_t whole = w->end - w->end % NAME(LINE);
    int64_t i = 0;
    for (; w->begin > 0 && i < NAME(LINE); i++) /* a first line that began before dst */
        if (i >= w->begin) w->line[i] = w->tile[i];
    stream_lines(w->line + i, w->tile + i, (size_t)((whole - i) / NAME(LINE)));
    memcpy(w->tile, w->tile + whole, LINE);
    w->line += whole;
    w->end -= whole;
    w->begin = 0;
}

/* The rest, less than a line or not: by ordinary stores. */
static inline void NAME(write_rest)(NAME(writer) * w)
{
    if (w->end >= NAME(LINE)) NAME(flush)(w);
    for (; w->begin < w->end; w->begin++) w->line[w->begin] = w->tile[w->begin];
}

/* run() on `len` values that go behind the writer's last ones; per_value: each value has coefficients of its own. */
static inline void NAME(write_run)(NAME(writer) * w, NAME(run_function) * run, const T *dy,
                                   const T *x, int64_t len, const T *coef, int64_t stride,
                                   int per_value)
{
    for (int64_t i = 0, most; i < len; i += most) {
        const int64_t room = NAME(ROOM) - w->end;
        if (room < len - i && room < NAME(ROOM) / 2) NAME(flush)(w); /* keeps a short run whole */
        most = bncore_min(len - i, NAME(ROOM) - w->end);
        run(w->tile + w->end, dy ? dy + i : NULL, x + i, most, per_value ? coef + i : coef, stride);
        w->end += most;
    }
}

/* The last image first: what was read last is still in cache. Within an image, memory forwards. */
static inline ALWAYS_INLINE void NAME(walk_planes)(const bncore_arrays *arrays, const T *coef,
                                                   int64_t stride, const bncore_planes *t,
                                                   NAME(run_function) * run)
{
    const T *dy = arrays->dy, *x = arrays->x;
    T *dst = arrays->dst;
    NAME(writer) w;
    piece p;
    for (int64_t e = t->end; e > t->begin; e -= p.len) {
        p = piece_before(t, e);
        NAME(write_from)(&w, dst + p.offset);
        for (int64_t c = 0; c < t->channels; c++) {
            const int64_t at = c * t->inner + p.offset;
            const T *dy_at = dy ? dy + at : NULL;
            if (!arrays->stream) {
                run(dst + at, dy_at, x + at, p.len, coef + c, stride);
                continue;
            }
            if (w.line + w.end != dst + at) { /* this image is not whole: runs do not join */
                NAME(write_rest)(&w);
                NAME(write_from)(&w, dst + at);
            }
            NAME(write_run)(&w, run, dy_at, x + at, p.len, coef + c, stride, 0);
        }
        if (arrays->stream) NAME(write_rest)(&w);
    }
    if (arrays->stream) stream_end();
}

static inline ALWAYS_INLINE void NAME(walk_rows)(const bncore_arrays *arrays, const T *coef,
                                                 int64_t stride, const bncore_rows *t,
                                                 NAME(run_function) * run)
{
    const T *dy = arrays->dy, *x = arrays->x;
    T *dst = arrays->dst;
    const int stream = arrays->stream && t->cols == t->stride;
    NAME(writer) w;
    NAME(write_from)(&w, dst);
    for (int64_t at = 0; at < t->rows * t->stride; at += t->stride) {
        const T *dy_at = dy ? dy + at : NULL;
        if (stream)
            NAME(write_run)(&w, run, dy_at, x + at, t->cols, coef, stride, 1);
        else
            run(dst + at, dy_at, x + at, t->cols, coef, stride);
    }
    if (!stream) return;
    NAME(write_rest)(&w);
    stream_end();
}

static void NAME(normalize_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                                   const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(normalize_run));
}

static void NAME(normalize_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                                 const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(normalize_row));
}

static void NAME(grad_input_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                                    const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(grad_input_run));
}

static void NAME(grad_input_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                                  const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(grad_input_row));
}

static void NAME(grad_frozen_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                                     const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(grad_frozen_run));
}

static void NAME(grad_frozen_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                                   const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(grad_frozen_row));
}
