/* Runs of weighted values, for storage type T, as grad_sums and the elementwise kernels take them: some values at a time,
 * with their flags. */

typedef struct NAME(weighted_run) {
    const bncore_weighting *weighting;
    NAME(values) rest; /* what was not taken yet */
    int64_t at, left;  /* the place of its first weight, and its values */
    int64_t most;      /* values that are taken at a time; 0: as some_of says */
    uint8_t flags[MOST_WEIGHTS];
    T none[MOST_WEIGHTS]; /* a residual that changes nothing */
} NAME(weighted_run);

/* Begin with the runs of a call. */
static inline void NAME(start_runs)(NAME(weighted_run) * run, const bncore_arrays *a, int fused)
{
    run->weighting = a->weighting;
    run->most = NAME(has_flags)(a->weighting) && !(fused & RESIDUAL) ? INT64_MAX : 0;
    if (fused & RESIDUAL)
        for (int i = 0; i < MOST_WEIGHTS; i++) run->none[i] = NAME(store)((ACC)-0.0);
}

/* Begin a run of `len` values from v on. */
static inline void NAME(start_run)(NAME(weighted_run) * run, NAME(values) v, int64_t at,
                                   int64_t len)
{
    run->rest = v;
    run->at = at;
    run->left = len;
}

static inline int64_t NAME(next_of_run)(const NAME(weighted_run) * run)
{
    return run->most ? bncore_min(run->left, run->most) : some_of(run->left);
}

/* Take the next n values of a run. */
static inline NAME(values) NAME(take_from_run)(NAME(weighted_run) * run, int64_t n, int fused)
{
    NAME(values) v = run->rest;
    v.flags = NAME(flags_in)(run->flags, run->weighting, run->at, v.x, n);
    v.flags_step = BNCORE_LANES;
    v.unfilled = !run->weighting->filled;
    v.steady = 0;
    run->rest = NAME(values_at)(run->rest, n, fused);
    if (fused & RESIDUAL && !v.r) v.r = run->none;
    run->at += n;
    run->left -= n;
    return v;
}

/* Rows: the flags of some rows of a strip. */
typedef struct NAME(row_flags) {
    const bncore_weighting *weighting;
    int64_t at;        /* the place in x of the first value of the strip */
    int with_residual; /* otherwise `none` takes its place */
    uint8_t flags[MOST_ROWS][WEIGHTED_STRIP];
    T none[BNCORE_LANES];
} NAME(row_flags);

static inline void NAME(start_row_flags)(NAME(row_flags) * f, const bncore_arrays *a)
{
    f->weighting = a->weighting;
    f->with_residual = a->residual != NULL;
    for (int l = 0; l < BNCORE_LANES; l++) f->none[l] = NAME(store)((ACC)-0.0);
}

/* Lay out the flags of rows whose first value lies `from` values behind the first one of the strip. */
static inline void NAME(lay_out_flags)(NAME(row_flags) * f, const T *x, int64_t from,
                                       const bncore_rows *t, int rows)
{
    for (int r = 0; r < rows; r++) {
        uint8_t *to = f->flags[r];
        const int64_t i = r * t->stride;
        const uint8_t *flags = NAME(flags_in)(to, f->weighting, f->at + from + i, x + i, t->cols);
        if (flags != to) memcpy(to, flags, (size_t)t->cols);
    }
}

/* The values v of row r and column j, with their flags. */
static inline ALWAYS_INLINE NAME(values)
    NAME(row_values)(NAME(values) v, const NAME(row_flags) * f, int r, int64_t j, int fused)
{
    if (!(fused & WEIGHTED)) return v;
    v.flags = f->flags[r] + j;
    v.flags_step = WEIGHTED_STRIP;
    v.unfilled = !f->weighting->filled;
    v.steady = fused & RESIDUAL && !f->with_residual;
    if (v.steady) v.r = f->none;
    return v;
}
