/* Runs of weighted values, for storage type T, as grad_sums and the elementwise kernels take them: as many values at a time
 * as there are flags for. */

/* A residual that changes nothing. */
static const T NAME(no_residual)[BNCORE_LANES] = {
    MINUS_ZERO, MINUS_ZERO, MINUS_ZERO, MINUS_ZERO, MINUS_ZERO, MINUS_ZERO, MINUS_ZERO, MINUS_ZERO,
    MINUS_ZERO, MINUS_ZERO, MINUS_ZERO, MINUS_ZERO, MINUS_ZERO, MINUS_ZERO, MINUS_ZERO, MINUS_ZERO};

static inline NAME(values) NAME(weighted_values_of)(const bncore_arrays *a)
{
    NAME(values) v = NAME(values_of)(a);
    v.flags = flags_of_row[1];
    v.omit_nan = a->weighting->omit_nan;
    v.fill = NAME(coefficient)(a->weighting->fill);
    v.unfilled = !a->weighting->filled;
    v.frozen = a->weighting->frozen;
    v.r_by = a->residual != NULL;
    if (!a->residual) v.r = NAME(no_residual);
    return v;
}

/* Where the flags of runs come from. */
typedef struct NAME(run_flags) {
    const bncore_weighting *weighting;
    int in_memory; /* whether flags can be read as they are */
    uint8_t flags[MOST_FLAGS];
} NAME(run_flags);

/* Begin with the runs of a call. */
static inline void NAME(start_runs)(NAME(run_flags) * f, const bncore_arrays *a)
{
    f->weighting = a->weighting;
    f->in_memory = NAME(has_flags)(a->weighting);
}

/* Take values of a run that has `left` of them, and give them flags; the weight of the first one is at `at`. Returns how many
 * were taken. */
static inline ALWAYS_INLINE int64_t NAME(next_flags)(NAME(run_flags) * f, NAME(values) * v,
                                                     int64_t at, int64_t left)
{
    v->flags_by = 1;
    v->flags_step = BNCORE_LANES;
    if (f->in_memory) {
        v->flags = (const uint8_t *)f->weighting->values + at;
        return left;
    }
    const int64_t n = f->weighting->doubles ? some_of(left) : some_flags_of(left);
    v->flags = NAME(flags_in)(f->flags, f->weighting, at, v->x, n);
    return n;
}

/* Rows: the flags of some rows of a strip, which lie `step` apart. Where a row has one flag, a vector of it is enough. */
typedef struct NAME(row_flags) {
    const bncore_weighting *weighting;
    int64_t at;  /* the place in x of the first value of the strip */
    int64_t row; /* the first row of the strip among those of x */
    int in_rows, in_memory;
    int64_t ahead; /* bytes from the current flags to those that are prefetched */
    const uint8_t *first;
    int64_t step;
    uint8_t room[FLAGGED_ROWS][WEIGHTED_STRIP];
} NAME(row_flags);

static inline void NAME(start_row_flags)(NAME(row_flags) * f, const bncore_arrays *a,
                                         const bncore_rows *t)
{
    f->weighting = a->weighting;
    f->in_rows = has_row_flags(a->weighting, t->stride);
    f->row = a->at / t->stride;
    f->in_memory = NAME(has_flags)(a->weighting);
    f->ahead = f->in_memory ? AHEAD / (int)sizeof(T) : 0;
    f->first = f->room[0];
    f->step = f->in_memory ? t->stride : WEIGHTED_STRIP;
}

/* Find the flags of rows from row `first` of the strip on, or lay them out. Returns whether all are known to be 1. */
static inline int NAME(find_flags)(NAME(row_flags) * f, const T *x, int64_t first,
                                   const bncore_rows *t, int rows)
{
    int all = f->in_rows;
    if (f->in_memory) {
        f->first = (const uint8_t *)f->weighting->values + f->at + first * t->stride;
        return 0;
    }
    for (int r = 0; r < rows; r++) {
        uint8_t *to = f->room[r];
        if (f->in_rows) {
            const int flag = ((const uint8_t *)f->weighting->values)[f->row + first + r] != 0;
            memcpy(to, flags_of_row[flag], sizeof flags_of_row[flag]);
            all &= flag;
            continue;
        }
        const int64_t i = r * t->stride, at = f->at + first * t->stride + i;
        const uint8_t *flags = NAME(flags_in)(to, f->weighting, at, x + i, t->cols);
        if (flags != to) memcpy(to, flags, (size_t)t->cols);
    }
    return all;
}

/* The values v of row r and column j, with their flags. */
static inline ALWAYS_INLINE NAME(values)
    NAME(row_values)(NAME(values) v, const NAME(row_flags) * f, int r, int64_t j, int fused)
{
    if (!(fused & WEIGHTED)) return v;
    v.flags_by = !f->in_rows;
    v.flags = f->first + r * f->step + j * v.flags_by;
    v.flags_step = f->step;
    return v;
}
