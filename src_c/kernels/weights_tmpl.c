/* The weights of values of storage type T, where a NaN may have the weight 0. */

/* Take the weight from each NaN; without flags, every value has weight before. */
static ONCE_ONLY void NAME(omit_nans)(uint8_t *to, const uint8_t *flags, const T *x, int64_t len)
{
    if (flags)
#pragma omp simd
        for (int64_t i = 0; i < len; i++) to[i] = flags[i] & NAME(is_number)(x[i]);
    else
#pragma omp simd
        for (int64_t i = 0; i < len; i++) to[i] = NAME(is_number)(x[i]);
}

/* Whether flags lie in memory as they are, so that any number of them can be read at once. */
static inline int NAME(has_flags)(const bncore_weighting *w)
{
    return w->values && !w->doubles && !w->omit_nan && !w->width;
}

/* Whether flags, if there are some, lie in memory as they are, and NaN may have to be left out besides. */
static inline int NAME(reads_flags)(const bncore_weighting *w)
{
    return w->values ? !w->doubles && !w->width : w->omit_nan;
}

/* The flags of `len` values that follow each other, of which the first is value `at` of x. Where they do not lie in
 * memory, they are written to `room`, and there may be at most MOST_FLAGS, or MOST_WEIGHTS if the weights
 * are doubles. */
static inline const uint8_t *NAME(flags_in)(uint8_t *room, const bncore_weighting *w, int64_t at,
                                            const T *x, int64_t len)
{
    if (NAME(has_flags)(w)) return (const uint8_t *)w->values + at;
    const uint8_t *flags = w->values || !w->omit_nan ? flags_of(room, w, at, len) : NULL;
    if (!w->omit_nan) return flags;
    NAME(omit_nans)(room, flags, x, len);
    return room;
}

/* The same for weights that are doubles. */
static ONCE_ONLY const double *NAME(weights_in)(double *room, const bncore_weighting *w, int64_t at,
                                                const T *x, int64_t len)
{
    const double *weights = doubles_of(room, w, at, len);
    if (!w->omit_nan) return weights;
    for (int64_t i = 0; i < len; i++) room[i] = NAME(is_number)(x[i]) ? weights[i] : 0.0;
    return room;
}

static inline double NAME(weight_at)(const bncore_weighting *w, int64_t i, T x)
{
    return w->omit_nan && !NAME(is_number)(x) ? 0.0 : weight_of(w, i);
}

/* Planes: the place of the weight of value e of channel c. */
static inline int64_t NAME(plane_place)(const bncore_arrays *a, const bncore_planes *t, int64_t c,
                                        int64_t e)
{
    if (!a->weighting->per_channel) return e;
    return a->at + c * t->inner + e / t->inner * t->image_stride + e % t->inner;
}

/* first_pivot of the values with weight among k, of which the first one has weight. */
static ONCE_ONLY double NAME(weighted_pivot)(const T *x, const uint8_t *flags, int64_t k,
                                             int about_0)
{
    T taken[BNCORE_LANES] = {0};
    int64_t n = 0;
    for (int64_t i = 0; i < k; i++)
        if (flags[i]) taken[n++] = x[i];
    return NAME(first_pivot)(taken, n, about_0);
}

#if CHAINED
/* The mean square of these values about the pivot. */
static NOINLINE double NAME(weighted_square)(const T *x, const uint8_t *flags, int64_t k,
                                             double pivot)
{
    double squares = 0.0, count = 0.0;
    for (int64_t i = 0; i < k; i++) {
        if (!flags[i]) continue;
        const double d = (double)NAME(load)(x[i]) - pivot;
        squares += d * d;
        count += 1.0;
    }
    return squares / count;
}
#endif
