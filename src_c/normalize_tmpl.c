/* Elementwise kernels for storage type T: y from x, dx from dy and x. The arithmetic is in T; what needs more
 * digits was folded into the coefficients in double. dst may be x or dy itself: element i depends on element i. */

/* y = (x - hi) * scale + shift: hi is the mean rounded to T, and what rounding lost is in shift, so that
 * |mean| >> std costs no digits. Fields: hi, scale, shift. */
static void NAME(normalize_coefs)(void *coef, int64_t stride, int64_t n,
                                  const double *restrict mean, const double *restrict invstd,
                                  const double *restrict weight, const double *restrict bias)
{
    T *restrict hi = coef, *restrict scale = hi + stride, *restrict shift = scale + stride;
#pragma omp simd
    for (int64_t c = 0; c < n; c++) {
        hi[c] = (T)mean[c];
        scale[c] = (T)(weight ? weight[c] * invstd[c] : invstd[c]);
        const double lo = mean[c] - (double)hi[c], b = bias ? bias[c] : 0.0;
        shift[c] = (T)(lo == 0.0 ? b : b - lo * (double)scale[c]);
    }
}

/* dx = ((dy + (x - hi) * k) + shift) * a: the common factor last, since invstd squared would leave the range of float
 * for a std beyond 1e19. Fields: a, hi, k, shift. */
static void NAME(grad_input_coefs)(void *coef, int64_t stride, int64_t n,
                                   const double *restrict mean, const double *restrict invstd,
                                   const double *restrict weight, const double *restrict sum_dy,
                                   const double *restrict sum_dy_xhat, double count)
{
    T *restrict a_ = coef, *restrict hi = a_ + stride, *restrict k_ = hi + stride,
                *restrict shift_ = k_ + stride;
#pragma omp simd
    for (int64_t c = 0; c < n; c++) {
        const double shift = -(sum_dy[c] / count);
        a_[c] = (T)(weight ? weight[c] * invstd[c] : invstd[c]);
        hi[c] = (T)mean[c];
        k_[c] = (T)(-invstd[c] * (sum_dy_xhat[c] / count));
        const double lo = mean[c] - (double)hi[c];
        shift_[c] = (T)(lo == 0.0 ? shift : shift - lo * (double)k_[c]);
    }
}

/* Frozen statistics: the field a alone. */
static void NAME(grad_frozen_coefs)(void *coef, int64_t n, const double *restrict invstd,
                                    const double *restrict weight)
{
    T *restrict a = coef;
#pragma omp simd
    for (int64_t c = 0; c < n; c++) a[c] = (T)(weight ? weight[c] * invstd[c] : invstd[c]);
}

/* One run of values, with coefficients of one channel (planes) or of one per value (rows): to[i] from dy[i], x[i]. */
static inline void NAME(normalize_run)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                       int64_t stride)
{
    (void)dy;
    const T hi = coef[0], scale = coef[stride], shift = coef[2 * stride];
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = (x[i] - hi) * scale + shift;
}

static inline void NAME(normalize_row)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                       int64_t stride)
{
    (void)dy;
    const T *hi = coef, *scale = hi + stride, *shift = scale + stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = (x[i] - hi[i]) * scale[i] + shift[i];
}

static inline void NAME(grad_input_run)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                        int64_t stride)
{
    const T a = coef[0], hi = coef[stride], k = coef[2 * stride], c = coef[3 * stride];
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = ((dy[i] + (x[i] - hi) * k) + c) * a;
}

static inline void NAME(grad_input_row)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                        int64_t stride)
{
    const T *a = coef, *hi = a + stride, *k = hi + stride, *c = k + stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = ((dy[i] + (x[i] - hi[i]) * k[i]) + c[i]) * a[i];
}

/* Frozen statistics: dx = dy * a, the first field of grad_input's coefficients. */
static inline void NAME(grad_frozen_run)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                         int64_t stride)
{
    (void)x, (void)stride;
    const T a = coef[0];
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = dy[i] * a;
}

static inline void NAME(grad_frozen_row)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                         int64_t stride)
{
    (void)x, (void)stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = dy[i] * coef[i];
}

typedef void NAME(run_function)(T *to, const T *dy, const T *x, int64_t len, const T *coef,
                                int64_t stride);

#include "walk_tmpl.c"

static void NAME(normalize_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                                   const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(normalize_run));
}

static void NAME(normalize_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                                 const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(normalize_row));
}

static void NAME(grad_input_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                                    const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(grad_input_run));
}

static void NAME(grad_input_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                                  const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(grad_input_row));
}

static void NAME(grad_frozen_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                                     const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(grad_frozen_run));
}

static void NAME(grad_frozen_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                                   const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(grad_frozen_row));
}
