/* Forward, for storage type T: y from x. The arithmetic is in ACC; the coefficients were computed in double, since
 * they need more digits. */

/* The coefficients of y = (x - hi) * scale + shift. hi is the mean rounded to ACC, and shift makes up for the
 * rounding, so that no digits are lost where |mean| is much larger than std. */
static inline ALWAYS_INLINE void
NAME(normalize_fields)(ACC *restrict hi, ACC *restrict scale, ACC *restrict shift, int64_t n,
                       const double *restrict mean, const double *restrict invstd,
                       const double *restrict weight, const double *restrict bias)
{
#pragma omp simd
    for (int64_t c = 0; c < n; c++) {
        hi[c] = NAME(coefficient)(mean[c]);
        scale[c] = NAME(coefficient)(weight ? weight[c] * invstd[c] : invstd[c]);
        const double lo = mean[c] - (double)hi[c], b = bias ? bias[c] : 0.0;
        shift[c] = NAME(coefficient)(lo == 0.0 ? b : b - lo * (double)scale[c]);
    }
}

/* Fields: hi, scale, shift. */
static void NAME(normalize_coefs)(void *coef, int64_t stride, int64_t n, const double *mean,
                                  const double *invstd, const double *weight, const double *bias)
{
    ACC *hi = coef;
    NAME(normalize_fields)(hi, hi + stride, hi + 2 * stride, n, mean, invstd, weight, bias);
}

/* The same for the mask of backward, where the scale is the field a. */
static void NAME(mask_coefs)(void *coef, int64_t stride, int64_t n, const double *mean,
                             const double *invstd, const double *weight, const double *bias)
{
    ACC *a = coef;
    NAME(normalize_fields)(a + stride, a, a + MASK_SHIFT * stride, n, mean, invstd, weight, bias);
}

/* As many values as NAME(arithmetic) in traverse_tmpl.c says. */
static inline ALWAYS_INLINE void NAME(normalize)(T *to, NAME(values) v, const ACC *coef,
                                                 int64_t stride, int by_column, int fused)
{
    const int n = NAME(at_once)(fused);
    NAME(inputs) in;
    ACC y[NAME(MOST_AT_ONCE)];
    NAME(take)(&in, v, n, fused);
#pragma omp simd
    for (int l = 0; l < n; l++) {
        const ACC *k = coef + l * by_column;
        y[l] = NAME(y_of)(v, in.x[l] - k[0], in.r[l], k[stride], k[2 * stride], fused);
    }
    NAME(store_values)(to, y, n, fused);
}
