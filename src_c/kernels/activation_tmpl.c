/* What is fused with batch norm, for storage type T and arithmetic in ACC: z = bn(x) + residual, and its activation.
 * `fused`, a sum of variants (kernels.h), is a constant wherever these are inlined. */

/* Where the values of a run begin. Not read: dy without BACKWARD, r without RESIDUAL, dr without STORED. */
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

/* z of value i, d being x - hi. */
static inline ALWAYS_INLINE ACC NAME(z_of)(NAME(values) v, int64_t i, ACC d, ACC scale, ACC shift,
                                           int fused)
{
    const ACC z = d * scale + shift;
    return fused & RESIDUAL ? z + (ACC)v.r[i] : z;
}

/* `value` where z is positive or NaN; else slope * value, or for relu exactly 0, whatever the value is. That no z reaches
 * relu's `least` says so without a branch, for which GCC would make every loop twice. */
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

/* The gradient by z of value i. */
static inline ALWAYS_INLINE ACC NAME(g_of)(NAME(values) v, int64_t i, ACC d, ACC scale, ACC shift,
                                           int fused)
{
    if (!(fused & ACTIVATION)) return (ACC)v.dy[i];
    return NAME(activated)(v, NAME(z_of)(v, i, d, scale, shift, fused), (ACC)v.dy[i]);
}
