/* Elementwise kernels for storage type T: y from x, dx from dy and x. The arithmetic is in T; what needs more
 * digits was folded into the coefficients in double. dst may be an input itself: element i depends on element i. */

/* A shift in which what rounding the mean to hi lost, times the factor of x - hi, is made up for. */
static inline T NAME(shifted)(double shift, double mean, T hi, T factor)
{
    const double lo = mean - (double)hi;
    return (T)(lo == 0.0 ? shift : shift - lo * (double)factor);
}

/* y = (x - hi) * scale + shift: hi is the mean rounded to T, and what rounding lost is in shift, so that
 * |mean| >> std costs no digits. Fields: hi, scale, shift. */
static void NAME(normalize_coef)(void *coef_, int64_t stride, int64_t j, double mean, double scale,
                                 double bias)
{
    T *coef = coef_;
    const T hi = (T)mean, sc = (T)scale;
    coef[j] = hi;
    coef[stride + j] = sc;
    coef[2 * stride + j] = NAME(shifted)(bias, mean, hi, sc);
}

/* dx = (dy * a + (x - hi) * k) + c. Fields: a, hi, k, c. */
static void NAME(grad_input_coef)(void *coef_, int64_t stride, int64_t j, double mean, double a,
                                  double k, double c)
{
    T *coef = coef_;
    const T hi = (T)mean, k_T = (T)k;
    coef[j] = (T)a;
    coef[stride + j] = hi;
    coef[2 * stride + j] = k_T;
    coef[3 * stride + j] = NAME(shifted)(c, mean, hi, k_T);
}

/* The fields of normalize's coefficients where grad_input has them. */
static void NAME(mask_coef)(void *coef_, int64_t stride, int64_t j, double mean, double scale,
                            double bias)
{
    T *coef = coef_;
    const T hi = (T)mean, sc = (T)scale;
    coef[j] = sc;
    coef[stride + j] = hi;
    coef[MASK_SHIFT * stride + j] = NAME(shifted)(bias, mean, hi, sc);
}

/* One run of values, with coefficients of one channel (planes) or of one per value (rows). */
static inline ALWAYS_INLINE void NAME(normalize_run)(T *to, NAME(values) v, int64_t len,
                                                     const T *coef, int64_t stride, int fused)
{
    const T hi = coef[0], scale = coef[stride], shift = coef[2 * stride];
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = NAME(y_of)(v, i, v.x[i] - hi, scale, shift, fused);
}

static inline ALWAYS_INLINE void NAME(normalize_row)(T *to, NAME(values) v, int64_t len,
                                                     const T *coef, int64_t stride, int fused)
{
    const T *hi = coef, *scale = hi + stride, *shift = scale + stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++)
        to[i] = NAME(y_of)(v, i, v.x[i] - hi[i], scale[i], shift[i], fused);
}

static inline ALWAYS_INLINE void NAME(grad_input_run)(T *to, NAME(values) v, int64_t len,
                                                      const T *coef, int64_t stride, int fused)
{
    const T a = coef[0], hi = coef[stride], k = coef[2 * stride], c = coef[3 * stride];
    const T shift = fused & ACTIVATION ? coef[MASK_SHIFT * stride] : (T)0;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) {
        const T d = v.x[i] - hi;
        to[i] = (NAME(g_of)(v, i, d, a, shift, fused) * a + d * k) + c;
    }
}

static inline ALWAYS_INLINE void NAME(grad_input_row)(T *to, NAME(values) v, int64_t len,
                                                      const T *coef, int64_t stride, int fused)
{
    const T *a = coef, *hi = a + stride, *k = hi + stride, *c = k + stride;
    const T *shift = coef + MASK_SHIFT * stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) {
        const T d = v.x[i] - hi[i];
        const T g = NAME(g_of)(v, i, d, a[i], fused & ACTIVATION ? shift[i] : (T)0, fused);
        to[i] = (g * a[i] + d * k[i]) + c[i];
    }
}

/* Frozen statistics: dx = dy * a, with grad_input's coefficients. */
static inline ALWAYS_INLINE void NAME(grad_frozen_run)(T *to, NAME(values) v, int64_t len,
                                                       const T *coef, int64_t stride, int fused)
{
    const T a = coef[0], hi = coef[stride];
    const T shift = fused & ACTIVATION ? coef[MASK_SHIFT * stride] : (T)0;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) to[i] = NAME(g_of)(v, i, v.x[i] - hi, a, shift, fused) * a;
}

static inline ALWAYS_INLINE void NAME(grad_frozen_row)(T *to, NAME(values) v, int64_t len,
                                                       const T *coef, int64_t stride, int fused)
{
    const T *a = coef, *hi = a + stride, *shift = coef + MASK_SHIFT * stride;
#pragma omp simd
    for (int64_t i = 0; i < len; i++) {
        const T z_shift = fused & ACTIVATION ? shift[i] : (T)0;
        to[i] = NAME(g_of)(v, i, v.x[i] - hi[i], a[i], z_shift, fused) * a[i];
    }
}

typedef void NAME(run_function)(T *to, NAME(values) v, int64_t len, const T *coef, int64_t stride,
                                int fused);
