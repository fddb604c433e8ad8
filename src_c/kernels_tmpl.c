/* All kernels for one storage type: kernels.c defines T and NAME() and includes this file once per type. */

#include "gradient_tmpl.c"
#include "moments_tmpl.c"
#include "normalize_tmpl.c"

static const bncore_kernel_set NAME(kernel_set) = {
    .moments_planes = NAME(moments_planes),
    .moments_rows = NAME(moments_rows),
    .grad_sums_planes = NAME(grad_sums_planes),
    .grad_sums_rows = NAME(grad_sums_rows),
    .merge_moments = merge_moments,
    .merge_sums = merge_sums,
    .normalize_planes = NAME(normalize_planes),
    .normalize_rows = NAME(normalize_rows),
    .grad_input_planes = NAME(grad_input_planes),
    .grad_input_rows = NAME(grad_input_rows),
    .grad_frozen_planes = NAME(grad_frozen_planes),
    .grad_frozen_rows = NAME(grad_frozen_rows),
    .inverse_std = inverse_std,
    .normalize_coefs = NAME(normalize_coefs),
    .grad_input_coefs = NAME(grad_input_coefs),
    .grad_frozen_coefs = NAME(grad_frozen_coefs),
};
