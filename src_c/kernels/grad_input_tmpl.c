/* Backward, for storage type T: dx from dy and x. grad_input differentiates through the statistics of the batch
 * (Ioffe & Szegedy, 2015, section 3), grad_frozen takes them as constants. g is dy, or what an activation leaves of
 * it. The arithmetic is in ACC; the coefficients were computed in double, since they need more digits. */

/* The coefficients of dx = ((dy + (x - hi) * k) + shift) * a. The common factor a comes last because invstd squared
 * would leave the range of float for a std beyond 1e19. Fields: a, hi, k, shift. */
static void NAME(grad_input_coefs)(void *coef, int64_t stride, int64_t n,
                                   const double *restrict mean, const double *restrict invstd,
                                   const double *restrict weight, const double *restrict sum_dy,
                                   const double *restrict sum_dy_xhat,
                                   const double *restrict counts, double count)
{
    ACC *restrict a_ = coef, *restrict hi = a_ + stride, *restrict k_ = hi + stride,
                  *restrict shift_ = k_ + stride;
#pragma omp simd
    for (int64_t c = 0; c < n; c++) {
        const double of_all = counts ? counts[c] : count;
        const double shift = -(sum_dy[c] / of_all);
        a_[c] = NAME(coefficient)(weight ? weight[c] * invstd[c] : invstd[c]);
        hi[c] = NAME(coefficient)(mean[c]);
        k_[c] = NAME(coefficient)(-invstd[c] * (sum_dy_xhat[c] / of_all));
        const double lo = mean[c] - (double)hi[c];
        shift_[c] = NAME(coefficient)(lo == 0.0 ? shift : shift - lo * (double)k_[c]);
    }
}

/* For frozen statistics, only the field a. */
static void NAME(grad_frozen_coefs)(void *coef, int64_t n, const double *restrict invstd,
                                    const double *restrict weight)
{
    ACC *restrict a = coef;
#pragma omp simd
    for (int64_t c = 0; c < n; c++)
        a[c] = NAME(coefficient)(weight ? weight[c] * invstd[c] : invstd[c]);
}

/* The gradients by z of as many values as are computed at once. Without an activation the coefficients hi and shift may be
 * missing. */
static inline ALWAYS_INLINE void NAME(mask_gradients)(ACC *g, const NAME(inputs) * in,
                                                      NAME(values) v, const ACC *coef,
                                                      int64_t stride, int by_column, int fused)
{
    const int n = NAME(at_once)(fused);
#pragma omp simd
    for (int l = 0; l < n; l++) {
        const ACC *k = coef + l * by_column;
        const ACC hi = fused & ACTIVATION ? k[stride] : (ACC)0;
        const ACC shift = fused & ACTIVATION ? k[MASK_SHIFT * stride] : (ACC)0;
        g[l] = NAME(g_of)(v, in->dy[l], in->x[l] - hi, in->r[l], k[0], shift, fused);
    }
    NAME(round_g)(g, n, fused);
}

/* As many values as NAME(arithmetic) in traverse_tmpl.c says. */
static inline ALWAYS_INLINE void NAME(grad_input)(T *to, NAME(values) v, const ACC *coef,
                                                  int64_t stride, int by_column, int fused)
{
    const int n = NAME(at_once)(fused);
    NAME(inputs) in;
    ACC g[NAME(MOST_AT_ONCE)], dx[NAME(MOST_AT_ONCE)];
    NAME(take)(&in, v, n, fused);
    NAME(mask_gradients)(g, &in, v, coef, stride, by_column, fused);
#pragma omp simd
    for (int l = 0; l < n; l++) {
        const ACC *k = coef + l * by_column;
        const ACC d = in.x[l] - k[stride];
        dx[l] = ((g[l] + d * k[2 * stride]) + k[3 * stride]) * k[0];
    }
    NAME(store_values)(to, dx, n, fused);
}

/* For frozen statistics: dx = dy * a. The fields of the coefficients are those of grad_input. */
static inline ALWAYS_INLINE void NAME(grad_frozen)(T *to, NAME(values) v, const ACC *coef,
                                                   int64_t stride, int by_column, int fused)
{
    const int n = NAME(at_once)(fused);
    NAME(inputs) in;
    ACC g[NAME(MOST_AT_ONCE)], dx[NAME(MOST_AT_ONCE)];
    NAME(take)(&in, v, n, fused);
    NAME(mask_gradients)(g, &in, v, coef, stride, by_column, fused);
#pragma omp simd
    for (int l = 0; l < n; l++) dx[l] = g[l] * coef[l * by_column];
    NAME(store_values)(to, dx, n, fused);
}

/* ---- groups of channels that share their statistics (Wu & He, 2018) ---- */

/* dx = ((dy * w + (x - hi) * k) + c) * a. Each channel has a weight w, and the sums of its group contain the weights, so w
 * is no common factor. Fields: a, hi, k, c, w. */
static void NAME(grad_group_coefs)(void *coef, int64_t stride, int64_t n,
                                   const double *restrict mean, const double *restrict invstd,
                                   const double *restrict weight, const double *restrict sum_dy,
                                   const double *restrict sum_dy_xhat, double count)
{
    ACC *restrict w = (ACC *)coef + 4 * stride;
    NAME(grad_input_coefs)(coef, stride, n, mean, invstd, NULL, sum_dy, sum_dy_xhat, NULL, count);
#pragma omp simd
    for (int64_t c = 0; c < n; c++) w[c] = NAME(coefficient)(weight ? weight[c] : 1.0);
}

static inline ALWAYS_INLINE void NAME(grad_group)(T *to, NAME(values) v, const ACC *coef,
                                                  int64_t stride, int by_column, int fused)
{
    const int n = NAME(at_once)(fused);
    NAME(inputs) in;
    ACC dx[NAME(MOST_AT_ONCE)];
    NAME(take)(&in, v, n, fused);
#pragma omp simd
    for (int l = 0; l < n; l++) {
        const ACC *k = coef + l * by_column;
        const ACC d = in.x[l] - k[stride];
        dx[l] = ((in.dy[l] * k[4 * stride] + d * k[2 * stride]) + k[3 * stride]) * k[0];
    }
    NAME(store_values)(to, dx, n, fused);
}

static void NAME(convert)(void *to, int64_t n, const double *from, double otherwise)
{
    ACC *values = to;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) values[i] = NAME(coefficient)(from ? from[i] : otherwise);
}
