/* What is fused with batch norm: z = bn(x) + residual, and its activation, for storage type T and arithmetic in ACC.
 * `fused` is a sum of variants (kernels.h) and a constant wherever these functions are inlined. */

/* Where the values of a run begin. dy is used with BACKWARD only, r with RESIDUAL, dr with STORED, and the rest with
 * WEIGHTED: flags that tell which values have weight, whether a NaN of x has no weight, weights for the gradient by x,
 * what fills the values of y without weight, whether a gradient counts without weight, and whether the statistics are
 * constants. With WEIGHTED dr may be NULL, and r and flags may be vectors that stand for all others (r_by, flags_by: 0,
 * else 1). */
typedef struct NAME(values) {
    const T *dy, *x, *r;
    T *dr;
    ACC slope, least;
    const uint8_t *flags;
    const ACC *weights;
    int64_t r_by, flags_by,
        flags_step; /* flags_step: from one vector, row or run of flags to the next */
    ACC fill;
    int omit_nan, unfilled, frozen;
} NAME(values);

static inline ALWAYS_INLINE NAME(values) NAME(values_of)(const bncore_arrays *a)
{
    return (NAME(values)){.dy = a->dy,
                          .x = a->x,
                          .r = a->residual,
                          .dr = a->dresidual,
                          .slope = (ACC)a->slope,
                          .least = (ACC)a->least};
}

static inline ALWAYS_INLINE NAME(values) NAME(values_at)(NAME(values) v, int64_t i, int fused)
{
    if (fused & BACKWARD) v.dy += i;
    v.x += i;
    if (fused & RESIDUAL) v.r += fused & WEIGHTED ? i * v.r_by : i;
    if (fused & STORED && !(fused & WEIGHTED && !v.dr)) v.dr += i;
    if (fused & WEIGHTED) v.flags += i & -v.flags_by;
    return v;
}

/* The n-th vector or row from v on; they lie `step` values apart. */
static inline ALWAYS_INLINE NAME(values)
    NAME(values_after)(NAME(values) v, int n, int64_t step, int fused)
{
    NAME(values) to = NAME(values_at)(v, n * step, fused);
    if (fused & WEIGHTED) to.flags = v.flags + n * v.flags_step;
    return to;
}

/* Whether a value with this flag and its gradient g take part in the sums. */
static inline ALWAYS_INLINE int NAME(takes_part)(NAME(values) v, ACC flag, ACC g)
{
    const ACC alone = v.unfilled ? g : (ACC)0;
    return (flag != (ACC)0) | (alone != (ACC)0);
}

/* Make 0 of the gradients of n values that are filled; n is a constant and a multiple of 8. */
static inline ALWAYS_INLINE void NAME(fill_gradients)(ACC *g, NAME(values) v, int n, int fused)
{
    if (!(fused & WEIGHTED) || v.unfilled) return;
    const ACC zeros[BNCORE_LANES] = {0};
    NAME(replace)(g, zeros, v.flags, n);
}

static inline ALWAYS_INLINE ACC NAME(filled_g)(NAME(values) v, ACC g, int fused)
{
    return !(fused & WEIGHTED) || v.flags[0] | v.unfilled ? g : (ACC)0;
}

/* The first values of a run, in the type of the arithmetic. */
typedef struct NAME(inputs) {
    ACC dy[NAME(MOST_AT_ONCE)], x[NAME(MOST_AT_ONCE)], r[NAME(MOST_AT_ONCE)];
} NAME(inputs);

static inline ALWAYS_INLINE void NAME(load_values)(ACC *to, const T *from, int n, int fused)
{
    if (fused & PAIRS)
        NAME(load_pairs)(to, from, n);
    else
        NAME(load_many)(to, from, n);
}

static inline ALWAYS_INLINE void NAME(store_values)(T *to, const ACC *from, int n, int fused)
{
    if (fused & PAIRS)
        NAME(store_pairs)(to, from, n);
    else
        NAME(store_many)(to, from, n);
}

/* Take n values of each array; n is a constant. r is 0 where there is no residual. */
static inline ALWAYS_INLINE void NAME(take)(NAME(inputs) * in, NAME(values) v, int n, int fused)
{
    if (fused & BACKWARD) NAME(load_values)(in->dy, v.dy, n, fused);
    NAME(load_values)(in->x, v.x, n, fused);
    if (fused & RESIDUAL)
        NAME(load_values)(in->r, v.r, n, fused);
    else
#pragma omp simd
        for (int l = 0; l < n; l++) in->r[l] = (ACC)0;
}

/* How many values an elementwise kernel computes at once: WIDTH, or a line in pairs. */
static inline ALWAYS_INLINE int NAME(at_once)(int fused)
{
    return fused & PAIRS ? NAME(IN_LINE) : NAME(WIDTH);
}

/* d is x - hi, and r the residual. */
static inline ALWAYS_INLINE ACC NAME(z_of)(ACC d, ACC r, ACC scale, ACC shift, int fused)
{
    const ACC z = d * scale + shift;
    return fused & RESIDUAL ? z + r : z;
}

/* Returns `value` where z is positive or NaN, and slope * value elsewhere. Relu gives exactly 0 there, whatever the
 * value is: its `least` is infinite, so that no z <= 0 reaches it. A branch on the kind of activation would make GCC
 * compile every loop twice. */
static inline ALWAYS_INLINE ACC NAME(activated)(NAME(values) v, ACC z, ACC value)
{
    const ACC below = z >= v.least ? v.slope * value : (ACC)0;
    return z <= (ACC)0 ? below : value;
}

static inline ALWAYS_INLINE ACC NAME(y_of)(NAME(values) v, ACC d, ACC r, ACC scale, ACC shift,
                                           int fused)
{
    const ACC z = NAME(z_of)(d, r, scale, shift, fused);
    return fused & ACTIVATION ? NAME(activated)(v, z, z) : z;
}

/* The gradient by z. Sums and dx take it as dresidual stores it, that is, after round_g. */
static inline ALWAYS_INLINE ACC NAME(g_of)(NAME(values) v, ACC dy, ACC d, ACC r, ACC scale,
                                           ACC shift, int fused)
{
    if (!(fused & ACTIVATION)) return dy;
    return NAME(activated)(v, NAME(z_of)(d, r, scale, shift, fused), dy);
}

static inline ALWAYS_INLINE void NAME(round_g)(ACC *g, int n, int fused)
{
    if (fused & ACTIVATION) NAME(round_many)(g, n);
}

/* The coefficients of z for one channel. */
typedef struct NAME(mask) {
    ACC scale, hi, shift;
} NAME(mask);

/* coef has the fields of grad_input's coefficients. It is not read without an activation. */
static inline ALWAYS_INLINE NAME(mask) NAME(mask_of)(const ACC *coef, int64_t stride, int fused)
{
    if (!(fused & ACTIVATION)) return (NAME(mask)){0};
    return (NAME(mask)){coef[0], coef[stride], coef[MASK_SHIFT * stride]};
}

static inline ALWAYS_INLINE void NAME(fetch_values)(NAME(values) v, int64_t ahead, int where,
                                                    int fused)
{
    if (fused & BACKWARD) fetch(v.dy, ahead, where);
    fetch(v.x, ahead, where);
    if (fused & RESIDUAL) fetch(v.r, ahead, where);
}
