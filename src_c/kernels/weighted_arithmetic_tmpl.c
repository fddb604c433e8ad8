/* The arithmetic of weighted values, for storage type T, as normalize and grad_input have it. Everything may be fused: what is
 * not there changes nothing (weighted_runs_tmpl.c, run.c). */

enum { NAME(EVERYTHING) = ACTIVATION | RESIDUAL | WEIGHTED | DOUBLES };

/* Whether a value takes no part because it is NaN. */
static inline ALWAYS_INLINE int NAME(is_omitted)(NAME(values) v, ACC x)
{
    const ACC looked_at = v.omit_nan ? x : (ACC)0;
    return looked_at != looked_at;
}

/* Compute WIDTH values, of which `fill` replaces those without weight. */
static inline ALWAYS_INLINE void NAME(weighted_normalize)(T *to, NAME(values) v, const ACC *coef,
                                                          int64_t stride, int by_column, int fused)
{
    NAME(inputs) in;
    ACC y[NAME(WIDTH)], fills[NAME(WIDTH)];
    NAME(take)(&in, v, NAME(WIDTH), fused);
#pragma omp simd
    for (int l = 0; l < NAME(WIDTH); l++) {
        const ACC *k = coef + l * by_column;
        const ACC plain = NAME(y_of)(v, in.x[l] - k[0], in.r[l], k[stride], k[2 * stride], fused);
        y[l] = NAME(is_omitted)(v, in.x[l]) ? v.fill : plain;
        fills[l] = v.fill;
    }
    NAME(replace)(y, fills, v.flags, NAME(WIDTH));
    NAME(store_many)(to, y, NAME(WIDTH));
}

/* dx = ((g + w * ((x - hi) * k)) + w * shift) * a; where there is no weight or, if `frozen`, everywhere it is g * a, and 0
 * where the value takes no part. */
static inline ALWAYS_INLINE void NAME(weighted_grad_input)(T *to, NAME(values) v, const ACC *coef,
                                                           int64_t stride, int by_column, int fused)
{
    NAME(inputs) in;
    ACC g[NAME(WIDTH)], dx[NAME(WIDTH)], alone[NAME(WIDTH)];
    NAME(take)(&in, v, NAME(WIDTH), fused);
    NAME(mask_gradients)(g, &in, v, coef, stride, by_column, fused);
#pragma omp simd
    for (int l = 0; l < NAME(WIDTH); l++) {
        const ACC *k = coef + l * by_column;
        const ACC w = fused & DOUBLES ? v.weights[l] : (ACC)1, d = in.x[l] - k[stride];
        const ACC sum = (g[l] + w * (d * k[2 * stride])) + w * k[3 * stride];
        const ACC counts = v.unfilled ? g[l] : (ACC)0, value = (v.frozen ? g[l] : sum) * k[0];
        alone[l] = counts != (ACC)0 ? counts * k[0] : (ACC)0;
        dx[l] = NAME(is_omitted)(v, in.x[l]) ? alone[l] : value;
    }
    NAME(replace)(dx, alone, v.flags, NAME(WIDTH));
    NAME(store_many)(to, dx, NAME(WIDTH));
}
