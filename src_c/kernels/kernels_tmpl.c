/* All kernels for one storage type. kernels.c defines T, the type of the arithmetic (ACC) and NAME(), and includes
 * this file once per type. NAME(load), NAME(store) and the like are in storage.h. */

/* Elementwise kernels compute so many values at once. */
enum { NAME(WIDTH) = LINE / sizeof(ACC) };

/* The order matters: each uses those before it. */
#include "activation_tmpl.c"

#include "grad_sums_tmpl.c"
#include "moments_tmpl.c"

#include "grad_input_tmpl.c"
#include "normalize_tmpl.c"

#include "traverse_tmpl.c"

#include "variants_tmpl.c"

#define BNCORE_SUMS(operation, variant, fused, reads)                                              \
    .operation##_planes[fused] = NAME(operation##_planes_##variant),                               \
    .operation##_rows[fused] = NAME(operation##_rows_##variant),
#define BNCORE_ELEMENTWISE(operation, variant, fused, reads)                                       \
    BNCORE_SUMS(operation, variant, fused, reads)

static const bncore_kernel_set NAME(kernel_set) = {
    .item = sizeof(T),
    .coef_item = sizeof(ACC),
    .streams = STREAMS,
    .moments_planes = NAME(moments_planes),
    .moments_rows = NAME(moments_rows),
    .merge_moments = merge_moments,
    .merge_sums = merge_sums,
    .inverse_std = inverse_std,
    .normalize_coefs = NAME(normalize_coefs),
    .mask_coefs = NAME(mask_coefs),
    .grad_input_coefs = NAME(grad_input_coefs),
    .grad_frozen_coefs = NAME(grad_frozen_coefs),
#include "variants.def"
};

#undef BNCORE_SUMS
#undef BNCORE_ELEMENTWISE
