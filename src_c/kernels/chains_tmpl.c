/* Sums of 16-bit values, for storage type T: short chains of float32, which are then added in float64. Most digits of a
 * difference to the pivot are 0, so that a chain loses next to nothing, and it needs a third of the instructions.
 *
 * A chain takes the values of one lane in up to eight vectors (planes) or one column in up to eight rows, and adds their
 * terms as a tree: ((0+1) + (2+3)) + ((4+5) + (6+7)). What is left of a run makes a chain of four, and then one of up to
 * three whole vectors and, as its fourth term, the values that do not fill a vector. A missing term is 0.
 *
 * The terms are computed by a function that is a constant wherever these functions are inlined, as `fused` is. */

/* What the terms of each lane need: the pivot, or the mean and the scale of xhat, and the coefficients of a mask. */
typedef struct NAME(about) {
    float centre[BNCORE_LANES], scale[BNCORE_LANES];
    float mask_scale[BNCORE_LANES], mask_hi[BNCORE_LANES], mask_shift[BNCORE_LANES];
} NAME(about);

/* Compute the two terms of CHAIN_WIDTH lanes from lane h on. v begins at lane h. Lanes below `skip` have no value. */
typedef void NAME(term_function)(chain_terms *to, const NAME(about) * about, int h, NAME(values) v,
                                 int skip, int fused);

/* A chain of four or eight whole vectors, `step` values apart, for CHAIN_WIDTH lanes. */
static inline ALWAYS_INLINE void NAME(add_chain_at)(double *restrict a, double *restrict b,
                                                    const NAME(about) * about, int h,
                                                    NAME(values) v, int64_t step, int terms,
                                                    NAME(term_function) * term, int fused)
{
    chain_terms sum, other, third, fourth;
    v = NAME(values_at)(v, h, fused);
    term(&sum, about, h, v, 0, fused);
    term(&other, about, h, NAME(values_after)(v, 1, step, fused), 0, fused);
    add_terms(&sum, &other);
    term(&other, about, h, NAME(values_after)(v, 2, step, fused), 0, fused);
    term(&third, about, h, NAME(values_after)(v, 3, step, fused), 0, fused);
    add_terms(&other, &third);
    add_terms(&sum, &other);
    if (terms == CHAIN) {
        term(&other, about, h, NAME(values_after)(v, 4, step, fused), 0, fused);
        term(&third, about, h, NAME(values_after)(v, 5, step, fused), 0, fused);
        add_terms(&other, &third);
        term(&third, about, h, NAME(values_after)(v, 6, step, fused), 0, fused);
        term(&fourth, about, h, NAME(values_after)(v, 7, step, fused), 0, fused);
        add_terms(&third, &fourth);
        add_terms(&other, &third);
        add_terms(&sum, &other);
    }
    widen_terms(a + h, b + h, &sum);
}

static inline ALWAYS_INLINE void NAME(add_chain)(double *restrict a, double *restrict b,
                                                 const NAME(about) * about, NAME(values) v,
                                                 int64_t step, int terms,
                                                 NAME(term_function) * term, int fused)
{
    NAME(add_chain_at)(a, b, about, 0, v, step, terms, term, fused);
    if ((int)CHAIN_WIDTH < (int)BNCORE_LANES)
        NAME(add_chain_at)(a, b, about, BNCORE_LANES - CHAIN_WIDTH, v, step, terms, term, fused);
}

/* The last chain of a run: `whole` vectors, three at most, and the values of `tail` in its last `left` lanes. For a term
 * that is missing, lanes are read whose values are not used. */
static inline ALWAYS_INLINE void NAME(add_rest_at)(double *restrict a, double *restrict b,
                                                   const NAME(about) * about, int h, NAME(values) v,
                                                   int64_t step, int whole, NAME(values) tail,
                                                   int left, NAME(term_function) * term, int fused)
{
    chain_terms sum, other, third;
    v = NAME(values_at)(v, h, fused);
    tail = NAME(values_at)(tail, h, fused);
    term(&sum, about, h, v, 0, fused);
    term(&other, about, h, NAME(values_after)(v, whole > 1, step, fused),
         whole > 1 ? 0 : BNCORE_LANES, fused);
    add_terms(&sum, &other);
    term(&other, about, h, NAME(values_after)(v, whole > 2 ? 2 : 0, step, fused),
         whole > 2 ? 0 : BNCORE_LANES, fused);
    term(&third, about, h, tail, BNCORE_LANES - left, fused);
    add_terms(&other, &third);
    add_terms(&sum, &other);
    widen_terms(a + h, b + h, &sum);
}

static inline ALWAYS_INLINE void NAME(add_tail_at)(double *restrict a, double *restrict b,
                                                   const NAME(about) * about, int h,
                                                   NAME(values) tail, int left,
                                                   NAME(term_function) * term, int fused)
{
    chain_terms sum;
    term(&sum, about, h, NAME(values_at)(tail, h, fused), BNCORE_LANES - left, fused);
    widen_terms(a + h, b + h, &sum);
}

static inline ALWAYS_INLINE void NAME(add_rest)(double *restrict a, double *restrict b,
                                                const NAME(about) * about, NAME(values) v,
                                                int64_t step, int whole, NAME(values) tail,
                                                int left, NAME(term_function) * term, int fused)
{
    enum { H = BNCORE_LANES - CHAIN_WIDTH };
    if (whole) {
        NAME(add_rest_at)(a, b, about, 0, v, step, whole, tail, left, term, fused);
        if (H) NAME(add_rest_at)(a, b, about, H, v, step, whole, tail, left, term, fused);
    } else if (left) {
        NAME(add_tail_at)(a, b, about, 0, tail, left, term, fused);
        if (H) NAME(add_tail_at)(a, b, about, H, tail, left, term, fused);
    }
}

/* Any chain: of 8, 4 or fewer vectors, and in the last case with the values of `tail` in its last `left` lanes. The terms are
 * computed in a loop, so that weighted kernels do not take the compiler so long. */
static inline ALWAYS_INLINE void NAME(add_any_chain)(double *restrict a, double *restrict b,
                                                     const NAME(about) * about, NAME(values) v,
                                                     int64_t step, int whole, NAME(values) tail,
                                                     int left, NAME(term_function) * term,
                                                     int fused)
{
    for (int h = 0; h < BNCORE_LANES; h += CHAIN_WIDTH) {
        chain_terms t[CHAIN] = {0};
        for (int i = 0; i < CHAIN; i++) {
            const int last = left && i == CHAIN / 2 - 1;
            if (i >= whole && !last) continue;
            const NAME(values) from = last ? tail : NAME(values_after)(v, i, step, fused);
            term(&t[i], about, h, NAME(values_at)(from, h, fused), last ? BNCORE_LANES - left : 0,
                 fused);
        }
        for (int near = 1; near < CHAIN; near *= 2)
            for (int i = 0; i < CHAIN; i += 2 * near) add_terms(&t[i], &t[i + near]);
        widen_terms(a + h, b + h, &t[0]);
    }
}

/* How many of the `left` rows of a block, or vectors of a run, make the next chain. */
static inline int NAME(chain_rows)(int64_t left)
{
    return left >= CHAIN ? CHAIN : left >= CHAIN / 2 ? CHAIN / 2 : (int)left;
}

static inline ALWAYS_INLINE void NAME(any_chains)(double *restrict a, double *restrict b,
                                                  const NAME(about) * about, NAME(values) values,
                                                  int64_t len, int64_t ahead,
                                                  NAME(term_function) * term, int fused)
{
    const NAME(values) end = NAME(values_at)(values, len - BNCORE_LANES, fused);
    for (int64_t i = 0, n; i < len; i += n) {
        const int whole = NAME(chain_rows)((len - i) / BNCORE_LANES);
        const int left = whole < CHAIN / 2 ? (int)(len % BNCORE_LANES) : 0;
        const NAME(values) v = NAME(values_at)(values, i, fused);
        NAME(fetch_values)(v, ahead, LEVEL_1, fused);
        NAME(add_any_chain)(a, b, about, v, BNCORE_LANES, whole, end, left, term, fused);
        n = whole * BNCORE_LANES + left;
    }
}

static inline ALWAYS_INLINE void NAME(fetch_chain)(NAME(values) v, int64_t ahead, int terms,
                                                   int fused)
{
    for (int i = 0; i < terms * BNCORE_LANES; i += LINE / (int)sizeof(T))
        NAME(fetch_values)(NAME(values_at)(v, i, fused), ahead, LEVEL_1, fused);
}

/* Planes: add a run of at least a vector to the lanes. */
static inline ALWAYS_INLINE void NAME(chain_run)(lanes *restrict acc, const NAME(about) * about,
                                                 NAME(values) values, int64_t len, int64_t ahead,
                                                 NAME(term_function) * term, int fused)
{
    enum { MOST = CHAIN * BNCORE_LANES };
    double a[BNCORE_LANES], b[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) a[l] = acc->a[l], b[l] = acc->b[l];
    if (fused & WEIGHTED) {
        NAME(any_chains)(acc->a, acc->b, about, values, len, ahead, term, fused);
        return;
    }
    NAME(values) v = values;
    int64_t i = 0;
    for (; i + MOST <= len; i += MOST) {
        NAME(fetch_chain)(v, ahead, CHAIN, fused);
        NAME(add_chain)(a, b, about, v, BNCORE_LANES, CHAIN, term, fused);
        v = NAME(values_at)(v, MOST, fused);
    }
    if (i + MOST / 2 <= len) {
        NAME(fetch_chain)(v, ahead, CHAIN / 2, fused);
        NAME(add_chain)(a, b, about, v, BNCORE_LANES, CHAIN / 2, term, fused);
        v = NAME(values_at)(v, MOST / 2, fused);
        i += MOST / 2;
    }
    NAME(fetch_chain)(v, ahead, CHAIN / 2, fused);
    NAME(add_rest)(a, b, about, v, BNCORE_LANES, (int)(len - i) / BNCORE_LANES,
                   NAME(values_at)(values, len - BNCORE_LANES, fused), (int)(len % BNCORE_LANES),
                   term, fused);
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) acc->a[l] = a[l], acc->b[l] = b[l];
}

/* Rows: add a chain of `rows` rows, `stride` values apart, to LANES columns. */
static inline ALWAYS_INLINE void NAME(chain_strip)(double *restrict a_, double *restrict b_,
                                                   const NAME(about) * about, NAME(values) v,
                                                   int64_t stride, int rows,
                                                   NAME(term_function) * term, int fused)
{
    double a[BNCORE_LANES], b[BNCORE_LANES];
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) a[l] = a_[l], b[l] = b_[l];
    if (fused & WEIGHTED)
        NAME(add_any_chain)(a, b, about, v, stride, rows, v, 0, term, fused);
    else if (rows >= CHAIN / 2)
        NAME(add_chain)(a, b, about, v, stride, rows, term, fused);
    else
        NAME(add_rest)(a, b, about, v, stride, rows, v, 0, term, fused);
#pragma omp simd
    for (int l = 0; l < BNCORE_LANES; l++) a_[l] = a[l], b_[l] = b[l];
}
