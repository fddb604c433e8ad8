/* All kernels for one storage type: kernels.c defines T and NAME() and includes this file once per type. */

/* The last `left` values of a run of len, in the last lanes of a vector: the vector that ends with the run, or
 * where the run is shorter than a vector, a padded copy. The lanes before them hold anything. */
static inline const T *NAME(last_vector)(T *padded, const T *x, int64_t len, int left)
{
    if (len >= BNCORE_LANES) return x + len - BNCORE_LANES;
    for (int l = 0; l < BNCORE_LANES; l++) padded[l] = (T)0;
    for (int l = 0; l < left; l++) padded[BNCORE_LANES - left + l] = x[l];
    return padded;
}

#include "gradient_tmpl.c"
#include "moments_tmpl.c"
#include "normalize_tmpl.c"

static const bncore_kernel_set NAME(kernel_set) = {
    .moments_planes = NAME(moments_planes),
    .moments_rows = NAME(moments_rows),
    .grad_sums_planes = NAME(grad_sums_planes),
    .grad_sums_rows = NAME(grad_sums_rows),
    .normalize_planes = NAME(normalize_planes),
    .normalize_rows = NAME(normalize_rows),
    .grad_input_planes = NAME(grad_input_planes),
    .grad_input_rows = NAME(grad_input_rows),
    .grad_frozen_planes = NAME(grad_frozen_planes),
    .grad_frozen_rows = NAME(grad_frozen_rows),
    .normalize_coef = NAME(normalize_coef),
    .grad_input_coef = NAME(grad_input_coef),
};
