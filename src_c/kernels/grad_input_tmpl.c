/* Backward, for storage type T: dx from dy and x. grad_input differentiates through the statistics of the batch
 * (Ioffe & Szegedy, 2015, section 3), grad_frozen takes them as constants. g is dy, or what an activation leaves of
 * it. The arithmetic is in ACC; the coefficients were computed in double, since they need more digits. */

/* The coefficients of dx = ((dy + (x - hi) * k) + shift) * a. The common factor a comes last because invstd squared
 * would leave the range of float for a std beyond 1e19. Fields: a, hi, k, shift. */
static void NAME(grad_input_coefs)(void *coef, int64_t stride, int64_t n,
                                   const double *restrict mean, const double *restrict invstd,
                                   const double *restrict weight, const double *restrict sum_dy,
                                   const double *restrict sum_dy_xhat, double count)
{
    ACC *restrict a_ = coef, *restrict hi = a_ + stride, *restrict k_ = hi + stride,
                  *restrict shift_ = k_ + stride;
#pragma omp simd
    for (int64_t c = 0; c < n; c++) {
        const double shift = -(sum_dy[c] / count);
        a_[c] = (ACC)(weight ? weight[c] * invstd[c] : invstd[c]);
        hi[c] = (ACC)mean[c];
        k_[c] = (ACC)(-invstd[c] * (sum_dy_xhat[c] / count));
        const double lo = mean[c] - (double)hi[c];
        shift_[c] = (ACC)(lo == 0.0 ? shift : shift - lo * (double)k_[c]);
    }
}

/* For frozen statistics, only the field a. */
static void NAME(grad_frozen_coefs)(void *coef, int64_t n, const double *restrict invstd,
                                    const double *restrict weight)
{
    ACC *restrict a = coef;
#pragma omp simd
    for (int64_t c = 0; c < n; c++) a[c] = (ACC)(weight ? weight[c] * invstd[c] : invstd[c]);
}

/* One run of values, with coefficients of one channel (planes) or of one per value (rows). */
static inline ALWAYS_INLINE void NAME(grad_input_run)(T *to, NAME(values) v, int64_t len,
                                                      const ACC *coef, int64_t stride, int fused)
{
    const ACC a = coef[0], hi = coef[stride], k = coef[2 * stride], c = coef[3 * stride];
    const ACC shift = fused & ACTIVATION ? coef[MASK_SHIFT * stride] : (ACC)0;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) {
        const ACC d = (ACC)v.x[i] - hi;
        to[i] = (T)(((NAME(g_of)(v, i, d, a, shift, fused) + d * k) + c) * a);
    }
}

static inline ALWAYS_INLINE void NAME(grad_input_row)(T *to, NAME(values) v, int64_t len,
                                                      const ACC *coef, int64_t stride, int fused)
{
    const ACC *a = coef, *hi = a + stride, *k = hi + stride, *c = k + stride;
    const ACC *shift = coef + MASK_SHIFT * stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) {
        const ACC d = (ACC)v.x[i] - hi[i];
        const ACC g = NAME(g_of)(v, i, d, a[i], fused & ACTIVATION ? shift[i] : (ACC)0, fused);
        to[i] = (T)(((g + d * k[i]) + c[i]) * a[i]);
    }
}

/* For frozen statistics: dx = dy * a. The fields of the coefficients are those of grad_input. */
static inline ALWAYS_INLINE void NAME(grad_frozen_run)(T *to, NAME(values) v, int64_t len,
                                                       const ACC *coef, int64_t stride, int fused)
{
    const ACC a = coef[0], hi = fused & ACTIVATION ? coef[stride] : (ACC)0;
    const ACC shift = fused & ACTIVATION ? coef[MASK_SHIFT * stride] : (ACC)0;
#pragma omp simd
    for (int64_t i = 0; i < len; i++)
        to[i] = (T)(NAME(g_of)(v, i, (ACC)v.x[i] - hi, a, shift, fused) * a);
}

static inline ALWAYS_INLINE void NAME(grad_frozen_row)(T *to, NAME(values) v, int64_t len,
                                                       const ACC *coef, int64_t stride, int fused)
{
    const ACC *a = coef, *hi = a + stride, *shift = coef + MASK_SHIFT * stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) {
        const ACC z_hi = fused & ACTIVATION ? hi[i] : (ACC)0;
        const ACC z_shift = fused & ACTIVATION ? shift[i] : (ACC)0;
        to[i] = (T)(NAME(g_of)(v, i, (ACC)v.x[i] - z_hi, a[i], z_shift, fused) * a[i]);
    }
}
