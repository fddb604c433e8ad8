/* Moments of weighted values, for storage type T: those of moments_tmpl.c, where a value adds w * d and w * d * d. A value
 * without weight adds 0, whatever it is. Values of 16 bits are added in chains where all weights of a block are 1. */

/* ---- planes ---- */

/* What a task keeps of a channel: the sums of a block, with that of its weights. */
typedef struct NAME(weighted_channel) {
    running w;
    lanes acc;
    double n[BNCORE_LANES]; /* of weights that are doubles, and of numbers */
    int64_t count;          /* of flags */
    int empty;              /* no value of the segment has weight */
    int chained, ones;      /* 16-bit values: whether the block is added in chains */
} NAME(weighted_channel);

/* The weights of a run: `flags` or `weights`, as `from` says. */
typedef struct NAME(weighted_run) {
    const T *x;
    const uint8_t *flags;
    const double *weights;
} NAME(weighted_run);

static inline ALWAYS_INLINE NAME(weighted_run)
    NAME(run_from)(NAME(weighted_run) run, int64_t i, int from)
{
    return (NAME(weighted_run)){run.x + i, from == FLAGS ? run.flags + i : NULL,
                                from == WEIGHTS ? run.weights + i : NULL};
}

/* Add LANES values, the first `skip` of which take no part. Returns how many flags were 1. */
static inline ALWAYS_INLINE int NAME(add_weighted_vector)(double *restrict s, double *restrict q,
                                                          double *restrict n,
                                                          NAME(weighted_run) run, double pivot,
                                                          int skip, int from)
{
    double d[BNCORE_LANES], t[BNCORE_LANES], w[BNCORE_LANES];
    int count = 0;
    NAME(load_doubles)(d, run.x, BNCORE_LANES);
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) d[l] -= pivot;
    if (from == FLAGS) count = keep_and_count(d, run.flags, skip);
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        w[l] = from == WEIGHTS ? run.weights[l] : from == NUMBERS && d[l] == d[l] ? 1.0 : 0.0;
        if (from != FLAGS) w[l] = l < skip ? 0.0 : w[l];
        if (from != FLAGS) d[l] = w[l] != 0.0 ? d[l] : 0.0;
        t[l] = from == WEIGHTS ? w[l] * d[l] : d[l];
        s[l] += t[l];
        q[l] += t[l] * d[l];
        if (from != FLAGS) n[l] += w[l];
    }
    return count;
}

/* Add a run of at least LANES values, as add_vectors does. The last vector is always added by itself, whole or not, so that
 * the lanes stay in registers. */
static inline ALWAYS_INLINE void NAME(add_weighted_vectors)(NAME(weighted_channel) *restrict c,
                                                            NAME(weighted_run) run, int64_t len,
                                                            int64_t ahead, int from)
{
    const int64_t last = len - BNCORE_LANES;
    const int skip = (int)(-len & (BNCORE_LANES - 1));
    const double pivot = c->w.pivot;
    double s[BNCORE_LANES], q[BNCORE_LANES], n[BNCORE_LANES];
    int64_t count = 0;
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++)
        s[l] = c->acc.a[l], q[l] = c->acc.b[l], n[l] = from == FLAGS ? 0.0 : c->n[l];
    for (int64_t i = 0; i < last; i += BNCORE_LANES) {
        const NAME(weighted_run) here = NAME(run_from)(run, i, from);
        fetch(here.x, ahead, LEVEL_1);
        count += NAME(add_weighted_vector)(s, q, n, here, pivot, 0, from);
    }
    count += NAME(add_weighted_vector)(s, q, n, NAME(run_from)(run, last, from), pivot, skip, from);
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) {
        c->acc.a[l] = s[l], c->acc.b[l] = q[l];
        if (from != FLAGS) c->n[l] = n[l];
    }
    c->count += count;
}

/* Add a run that is shorter than a vector. */
static NOINLINE void NAME(add_short_weighted_run)(NAME(weighted_channel) * c, const T *x,
                                                  const uint8_t *flags, const double *weights,
                                                  int64_t len)
{
    for (int64_t i = 0, l = BNCORE_LANES - len; i < len; i++, l++) {
        const double one = flags ? flags[i] : NAME(is_number)(x[i]), w = weights ? weights[i] : one;
        const double d = w != 0.0 ? (double)NAME(load)(x[i]) - c->w.pivot : 0.0, t = w * d;
        c->acc.a[l] += t;
        c->acc.b[l] += t * d;
        c->n[l] += w;
    }
}

/* Add a run with weights that are doubles, with flags, or of the values that are numbers if it has neither. */
static ONCE_ONLY void NAME(add_run_with)(NAME(weighted_channel) * c, const T *x,
                                         const uint8_t *flags, const double *weights, int64_t len,
                                         int64_t ahead)
{
    const NAME(weighted_run) run = {x, flags, weights};
    if (len < BNCORE_LANES)
        NAME(add_short_weighted_run)(c, x, flags, weights, len);
    else if (weights)
        NAME(add_weighted_vectors)(c, run, len, ahead, WEIGHTS);
    else if (flags)
        NAME(add_weighted_vectors)(c, run, len, ahead, FLAGS);
    else
        NAME(add_weighted_vectors)(c, run, len, ahead, NUMBERS);
}

/* Add a run in which all weights are 1. */
static ONCE_ONLY void NAME(add_ones)(NAME(weighted_channel) * c, const T *x, int64_t len,
                                     int64_t ahead)
{
    NAME(add_run)(&c->acc, x, len, c->w.pivot, ahead);
    c->count += len;
}

/* Add a run, of which value 0 has the weight at place `at`. */
static void NAME(add_weighted_run)(NAME(weighted_channel) * c, const bncore_weighting *w,
                                   int64_t at, const T *x, int64_t len, int64_t ahead)
{
    const double *weights = w->doubles ? (const double *)w->values + at : NULL;
    const uint8_t *flags = w->values && !w->doubles ? (const uint8_t *)w->values + at : NULL;
    if (w->values && w->omit_nan) {
        for (int64_t i = 0, n; i < len; i += n) {
            uint8_t flags_room[MOST_WEIGHTS];
            double weights_room[MOST_WEIGHTS];
            n = some_of(len - i);
            if (w->doubles)
                weights = NAME(weights_in)(weights_room, w, at + i, x + i, n);
            else
                flags = NAME(flags_in)(flags_room, w, at + i, x + i, n);
            NAME(add_run_with)(c, x + i, flags, weights, n, ahead);
        }
    } else if (flags ? len >= LONG_FLAGS && !memchr(flags, 0, (size_t)len)
                     : !w->values && !w->omit_nan) {
        NAME(add_ones)(c, x, len, ahead);
    } else {
        NAME(add_run_with)(c, x, flags, weights, len, ahead);
    }
}

/* The first value of a channel in the segment that has weight; t->end: none has. */
static ONCE_ONLY int64_t NAME(first_weighted)(const bncore_arrays *a, const bncore_planes *t,
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
static ONCE_ONLY void NAME(start_weighted)(NAME(weighted_channel) * channel, const bncore_arrays *a,
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
    channel->w.pivot = NAME(weighted_pivot)(x, flags, p.len, NAME(may_be_about_0)(a));
#if CHAINED
    if (a->float64_sums) return;
    channel->w.pivot = NAME(rounded_pivot)(channel->w.pivot);
    channel->chained = is_chained(NAME(weighted_square)(x, flags, p.len, channel->w.pivot));
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
    const double n = fold_lanes(channel->n) + (double)channel->count;
    const double s = fold_lanes(channel->acc.a), q = fold_lanes(channel->acc.b);
#if CHAINED
    if (channel->ones)
        NAME(flush_ones)(channel, a, t, c, begin, end);
    else if (n != 0.0)
        channel->w = a->float64_sums ? running_flush(channel->w, s, q, n, 0)
                                     : NAME(flush_rounded)(channel->w, s, q, n);
    if (channel->ones || n != 0.0) channel->chained = is_chained(channel->w.Q / channel->w.n);
#else
    (void)t, (void)c, (void)begin, (void)end;
    if (n != 0.0) channel->w = running_flush(channel->w, s, q, n, NAME(may_be_about_0)(a));
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
        if (!shared)
            NAME(add_weighted_run)(channel, w, at + c * apart, x, p.len, ahead);
        else if (count == p.len)
            NAME(add_ones)(channel, x, p.len, ahead);
        else if (count)
            NAME(add_run_with)(channel, x, flags, NULL, p.len, ahead);
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
