/* What is fused with batch norm: z = bn(x) + residual, and its activation, for storage type T and arithmetic in ACC.
 * `fused` is a sum of variants (kernels.h) and a constant wherever these functions are inlined. */

/* Where the values of a run begin. dy is used with BACKWARD only, r with RESIDUAL, and dr with STORED. */
typedef struct NAME(values) {
    const T *dy, *x, *r;
    T *dr;
    ACC slope, least;
} NAME(values);

static inline ALWAYS_INLINE NAME(values) NAME(values_of)(const bncore_arrays *a)
{
    return (NAME(values)){a->dy, a->x, a->residual, a->dresidual, (ACC)a->slope, (ACC)a->least};
}

static inline ALWAYS_INLINE NAME(values) NAME(values_at)(NAME(values) v, int64_t i, int fused)
{
    if (fused & BACKWARD) v.dy += i;
    v.x += i;
    if (fused & RESIDUAL) v.r += i;
    if (fused & STORED) v.dr += i;
    return v;
}

/* The z of value i, where d is x - hi. */
static inline ALWAYS_INLINE ACC NAME(z_of)(NAME(values) v, int64_t i, ACC d, ACC scale, ACC shift,
                                           int fused)
{
    const ACC z = d * scale + shift;
    return fused & RESIDUAL ? z + (ACC)v.r[i] : z;
}

/* Returns `value` where z is positive or NaN, and slope * value elsewhere. Relu gives exactly 0 there, whatever the
 * value is: its `least` is infinite, so that no z <= 0 reaches it. A branch on the kind of activation would make GCC
 * compile every loop twice. */
static inline ALWAYS_INLINE ACC NAME(activated)(NAME(values) v, ACC z, ACC value)
{
    const ACC below = z >= v.least ? v.slope * value : (ACC)0;
    return z <= (ACC)0 ? below : value;
}

static inline ALWAYS_INLINE ACC NAME(y_of)(NAME(values) v, int64_t i, ACC d, ACC scale, ACC shift,
                                           int fused)
{
    const ACC z = NAME(z_of)(v, i, d, scale, shift, fused);
    return fused & ACTIVATION ? NAME(activated)(v, z, z) : z;
}

/* The gradient by z, for value i. */
static inline ALWAYS_INLINE ACC NAME(g_of)(NAME(values) v, int64_t i, ACC d, ACC scale, ACC shift,
                                           int fused)
{
    if (!(fused & ACTIVATION)) return (ACC)v.dy[i];
    return NAME(activated)(v, NAME(z_of)(v, i, d, scale, shift, fused), (ACC)v.dy[i]);
}
