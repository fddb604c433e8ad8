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
        hi[c] = (ACC)mean[c];
        scale[c] = (ACC)(weight ? weight[c] * invstd[c] : invstd[c]);
        const double lo = mean[c] - (double)hi[c], b = bias ? bias[c] : 0.0;
        shift[c] = (ACC)(lo == 0.0 ? b : b - lo * (double)scale[c]);
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

/* One run of values, with coefficients of one channel (planes) or of one per value (rows). */
static inline ALWAYS_INLINE void NAME(normalize_run)(T *to, NAME(values) v, int64_t len,
                                                     const ACC *coef, int64_t stride, int fused)
{
    const ACC hi = coef[0], scale = coef[stride], shift = coef[2 * stride];
#pragma omp simd
    for (int64_t i = 0; i < len; i++)
        to[i] = (T)NAME(y_of)(v, i, (ACC)v.x[i] - hi, scale, shift, fused);
}

static inline ALWAYS_INLINE void NAME(normalize_row)(T *to, NAME(values) v, int64_t len,
                                                     const ACC *coef, int64_t stride, int fused)
{
    const ACC *hi = coef, *scale = hi + stride, *shift = scale + stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++)
        to[i] = (T)NAME(y_of)(v, i, (ACC)v.x[i] - hi[i], scale[i], shift[i], fused);
}
