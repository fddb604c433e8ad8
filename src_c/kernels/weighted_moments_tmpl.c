/* Moments of weighted values, for storage type T: those of moments_tmpl.c, where a value adds w * d and w * d * d. A value
 * without weight adds 0, whatever it is. Values of 16 bits are added in chains where all weights of a block are 1. */

/* ---- planes ---- */

/* Add the values whose flag is 1, as add_vectors does. */
static inline ALWAYS_INLINE void NAME(add_flagged)(lanes *restrict acc, const T *restrict x,
                                                   const uint8_t *restrict flags, int64_t len,
                                                   double pivot, int64_t ahead)
{
    const int left = (int)(len % BNCORE_LANES);
    double s[BNCORE_LANES], q[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) s[l] = acc->a[l], q[l] = acc->b[l];
    for (int64_t i = 0; i + BNCORE_LANES <= len; i += BNCORE_LANES) {
        double d[BNCORE_LANES];
        fetch(x + i, ahead, LEVEL_1);
        NAME(load_doubles)(d, x + i, BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) d[l] -= pivot;
        keep_flagged(d, flags + i);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            s[l] += d[l];
            q[l] += d[l] * d[l];
        }
    }
    if (left) {
        double last[BNCORE_LANES];
        NAME(load_doubles)(last, x + len - BNCORE_LANES, BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++)
            last[l] = l >= BNCORE_LANES - left ? last[l] - pivot : 0.0;
        keep_flagged(last, flags + len - BNCORE_LANES);
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            s[l] += last[l];
            q[l] += last[l] * last[l];
        }
    }
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) acc->a[l] = s[l], acc->b[l] = q[l];
}

/* What a task keeps of a channel: the sums of a block, with that of its weights. */
typedef struct NAME(weighted_channel) {
    running w;
    lanes acc;
    double n[BNCORE_LANES]; /* of weights that are doubles */
    int64_t count;          /* of flags */
    int empty;              /* no value of the segment has weight */
    int chained, ones;      /* 16-bit values: whether the block is added in chains */
} NAME(weighted_channel);

static ONCE_ONLY void NAME(add_weights)(NAME(weighted_channel) * c, const T *x,
                                        const double *weights, int64_t len)
{
    const int64_t whole = len / BNCORE_LANES * BNCORE_LANES;
    for (int64_t i = 0; i < len; i += BNCORE_LANES) {
        double v[BNCORE_LANES] = {0}, w[BNCORE_LANES] = {0};
        if (i < whole) {
            NAME(load_doubles)(v, x + i, BNCORE_LANES);
#pragma omp simd
            for (int l = 0; l < BNCORE_LANES; l++) w[l] = weights[i + l];
        } else {
            const int64_t skip =
                BNCORE_LANES - (len - i); /* the last values go to the last lanes */
            for (int64_t l = skip; l < BNCORE_LANES; l++) {
                v[l] = (double)NAME(load)(x[i + l - skip]);
                w[l] = weights[i + l - skip];
            }
        }
#pragma omp simd
        for (int l = 0; l < BNCORE_LANES; l++) {
            const double d = w[l] != 0.0 ? v[l] - c->w.pivot : 0.0, t = w[l] * d;
            c->acc.a[l] += t;
            c->acc.b[l] += t * d;
            c->n[l] += w[l];
        }
    }
}

/* Add a run of which `count` flags are 1. */
static ONCE_ONLY void NAME(add_flags)(NAME(weighted_channel) * c, const T *x, const uint8_t *flags,
                                      int64_t len, int64_t count, int64_t ahead)
{
    c->count += count;
    if (count == 0) return;
    if (count == len) {
        NAME(add_run)(&c->acc, x, len, c->w.pivot, ahead);
    } else if (len >= BNCORE_LANES) {
        NAME(add_flagged)(&c->acc, x, flags, len, c->w.pivot, ahead);
    } else {
        for (int64_t i = 0; i < len; i++) {
            const double d = flags[i] ? (double)NAME(load)(x[i]) - c->w.pivot : 0.0;
            c->acc.a[BNCORE_LANES - len + i] += d;
            c->acc.b[BNCORE_LANES - len + i] += d * d;
        }
    }
}

/* Add a run, of which value 0 has the weight at place `at`. */
static void NAME(add_weighted_run)(NAME(weighted_channel) * c, const bncore_weighting *w,
                                   int64_t at, const T *x, int64_t len, int64_t ahead)
{
    const int at_once = NAME(has_flags)(w);
    for (int64_t i = 0, n; i < len; i += n) {
        uint8_t room[MOST_WEIGHTS];
        double weights[MOST_WEIGHTS];
        n = at_once ? len : some_of(len - i);
        if (w->doubles) {
            NAME(add_weights)(c, x + i, NAME(weights_in)(weights, w, at + i, x + i, n), n);
            continue;
        }
        const uint8_t *flags = NAME(flags_in)(room, w, at + i, x + i, n);
        NAME(add_flags)(c, x + i, flags, n, count_flags(flags, n), ahead);
    }
}

/* The first value of a channel in the segment that has weight; t->end: none has. */
static NOINLINE int64_t NAME(first_weighted)(const bncore_arrays *a, const bncore_planes *t,
                                             int64_t c)
{
    const T *x = (const T *)a->x + c * t->inner;
    for (int64_t e = t->begin; e < t->end;) {
        const piece p = piece_at(t, e, t->inner);
        const int64_t at = NAME(plane_place)(a, t, c, e);
        for (int64_t i = 0; i < p.len; i++)
            if (NAME(weight_at)(a->weighting, at + i, x[p.offset + i]) != 0.0) return e + i;
        e += p.len;
    }
    return t->end;
}

/* Start a channel with its first pivot. */
static NOINLINE void NAME(start_weighted)(NAME(weighted_channel) * channel, const bncore_arrays *a,
                                          const bncore_planes *t, int64_t c)
{
    *channel = (NAME(weighted_channel)){.empty = 1};
    const int64_t e = NAME(first_weighted)(a, t, c);
    if (e == t->end) return;
    const piece p = piece_at(t, e, BNCORE_LANES);
    const T *x = (const T *)a->x + c * t->inner + p.offset;
    uint8_t room[MOST_WEIGHTS];
    const uint8_t *flags =
        NAME(flags_in)(room, a->weighting, NAME(plane_place)(a, t, c, e), x, p.len);
    channel->empty = 0;
    channel->w.pivot = NAME(weighted_pivot)(x, flags, p.len, 1);
#if CHAINED
    if (a->float64_sums) return;
    channel->w.pivot = NAME(rounded_pivot)(channel->w.pivot);
    channel->chained = is_chained(NAME(weighted_square)(x, flags, p.len, 1, channel->w.pivot));
#endif
}

#if CHAINED
/* Whether all weights of values begin .. end - 1 of a channel are 1. */
static ONCE_ONLY int NAME(all_ones)(const bncore_arrays *a, const bncore_planes *t, int64_t c,
                                    int64_t begin, int64_t end)
{
    const bncore_weighting *w = a->weighting;
    for (int64_t e = begin; e < end;) {
        const piece p = piece_at(t, e, SOME_WEIGHTS);
        const int64_t len = bncore_min(p.len, end - e), at = NAME(plane_place)(a, t, c, e);
        const T *x = (const T *)a->x + c * t->inner + p.offset;
        uint8_t flags[MOST_WEIGHTS];
        if (count_flags(NAME(flags_in)(flags, w, at, x, len), len) < len) return 0;
        if (w->doubles)
            for (int64_t i = 0; i < len; i++)
                if (weight_of(w, at + i) != 1.0) return 0;
        e += len;
    }
    return 1;
}

/* Choose how the block of values begin .. end - 1 is added, for every channel. */
static void NAME(choose_chains)(NAME(weighted_channel) * channels, const bncore_arrays *a,
                                const bncore_planes *t, int64_t begin, int64_t end)
{
    const int shared = !a->weighting->per_channel && !a->weighting->omit_nan;
    for (int64_t c = 0; c < t->channels; c++)
        channels[c].ones = c && shared ? channels[0].ones : NAME(all_ones)(a, t, c, begin, end);
}

/* Flush the block as flush_chained does; its weights are all 1. */
static NOINLINE void NAME(flush_ones)(NAME(weighted_channel) * channel, const bncore_arrays *a,
                                      const bncore_planes *t, int64_t c, int64_t begin, int64_t end)
{
    const double n = (double)(end - begin);
    lanes *acc = &channel->acc;
    if (channel->chained && !keeps_digits(fold_lanes(acc->a), fold_lanes(acc->b), n)) {
        *acc = (lanes){0};
        for (int64_t e = begin; e < end;) {
            const piece p = piece_at(t, e, BNCORE_BLOCK);
            NAME(add_run)(acc, (const T *)a->x + c * t->inner + p.offset, p.len, channel->w.pivot,
                          bytes_ahead(t, sizeof(T)));
            e += p.len;
        }
    }
    channel->w = NAME(flush_rounded)(channel->w, fold_lanes(acc->a), fold_lanes(acc->b), n);
}
#endif

/* Flush the block of values begin .. end - 1. */
static ONCE_ONLY void NAME(flush_weighted)(NAME(weighted_channel) * channel, const bncore_arrays *a,
                                           const bncore_planes *t, int64_t c, int64_t begin,
                                           int64_t end)
{
    const double n = a->weighting->doubles ? fold_lanes(channel->n) : (double)channel->count;
    const double s = fold_lanes(channel->acc.a), q = fold_lanes(channel->acc.b);
#if CHAINED
    if (channel->ones)
        NAME(flush_ones)(channel, a, t, c, begin, end);
    else if (n != 0.0)
        channel->w = a->float64_sums ? running_flush(channel->w, s, q, n)
                                     : NAME(flush_rounded)(channel->w, s, q, n);
    if (channel->ones || n != 0.0) channel->chained = is_chained(channel->w.Q / channel->w.n);
#else
    (void)t, (void)c, (void)begin, (void)end;
    if (n != 0.0) channel->w = running_flush(channel->w, s, q, n);
#endif
    channel->acc = (lanes){0};
    channel->count = 0;
    memset(channel->n, 0, sizeof channel->n);
}

/* Add the pieces of all channels that begin with value e. Returns their length. */
static ONCE_ONLY int64_t NAME(add_pieces)(NAME(weighted_channel) * channels, const bncore_arrays *a,
                                          const bncore_planes *t, int64_t e, int64_t ahead)
{
    const bncore_weighting *w = a->weighting;
    const piece p = piece_at(t, e, BNCORE_BLOCK);
    const int64_t at = NAME(plane_place)(a, t, 0, e), apart = w->per_channel ? t->inner : 0;
    const int shared = NAME(has_flags)(w) && !w->per_channel;
    const uint8_t *flags = shared ? (const uint8_t *)w->values + at : NULL;
    const int64_t count = shared ? count_flags(flags, p.len) : 0;
    for (int64_t c = 0; c < t->channels; c++) {
        NAME(weighted_channel) *channel = &channels[c];
        const T *x = (const T *)a->x + c * t->inner + p.offset;
        if (channel->empty) continue;
#if CHAINED
        if (channel->ones && channel->chained) {
            NAME(chain_moments_run)(&channel->acc, x, p.len, (float)channel->w.pivot, ahead);
            continue;
        }
#endif
        if (shared)
            NAME(add_flags)(channel, x, flags, p.len, count, ahead);
        else
            NAME(add_weighted_run)(channel, w, at + c * apart, x, p.len, ahead);
    }
    return p.len;
}

static void NAME(weighted_moments_planes)(bncore_partial partial, const bncore_arrays *a,
                                          const double *unused, const bncore_planes *t)
{
    (void)unused;
    NAME(weighted_channel) channels[BNCORE_GROUP];
    const int64_t ahead = bytes_ahead(t, sizeof(T));
    for (int64_t c = 0; c < t->channels; c++) NAME(start_weighted)(&channels[c], a, t, c);
    for (int64_t begin = t->begin, end = begin; begin < t->end; begin = end) {
        while (end < t->end && end - begin < BNCORE_BLOCK)
            end += piece_at(t, end, BNCORE_BLOCK).len;
#if CHAINED
        if (!a->float64_sums) NAME(choose_chains)(channels, a, t, begin, end);
#endif
        for (int64_t e = begin; e < end;) e += NAME(add_pieces)(channels, a, t, e, ahead);
        for (int64_t c = 0; c < t->channels; c++)
            if (!channels[c].empty) NAME(flush_weighted)(&channels[c], a, t, c, begin, end);
    }
    for (int64_t c = 0; c < t->channels; c++) {
        if (channels[c].empty)
            for (int f = 0; f < MOMENTS_FIELDS; f++) partial.at[f * partial.stride + c] = 0.0;
        else
            running_finish(&channels[c].w, partial, c);
    }
}
