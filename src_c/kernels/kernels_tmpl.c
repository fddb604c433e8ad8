/* All kernels for one storage type. kernels.c defines T, the type of the arithmetic (ACC) and NAME(), and includes
 * this file once per type. NAME(load), NAME(store) and the like are in storage.h. */

enum {
    NAME(WIDTH) = LINE / sizeof(ACC), /* elementwise kernels compute so many values at once */
    NAME(IN_LINE) = LINE / sizeof(T), /* values of a line */
    NAME(PARTS) = NAME(IN_LINE) / NAME(WIDTH), /* of a line: WIDTH values each */
    NAME(MOST_AT_ONCE) = NAME(IS_PAIRED) ? NAME(IN_LINE) : BNCORE_LANES,
    NAME(ABOUT_0) = sizeof(T) == sizeof(float) /* reductions add about 0 where that loses nothing */
};

/* The order matters: each uses those before it. */
#include "activation_tmpl.c"

#include "moments_tmpl.c"

#include "weights_tmpl.c"

#include "weighted_runs_tmpl.c"
#if CHAINED
#include "chains_tmpl.c"

#include "chain_grad_sums_tmpl.c"
#include "chain_moments_tmpl.c"
#define MOMENTS(layout) NAME(chained_moments_##layout)
#else
#include "grad_sums_tmpl.c"
#define MOMENTS(layout) NAME(moments_##layout)
#endif

#include "weighted_moments_tmpl.c"
#include "weighted_rows_tmpl.c"

#include "weighted_columns_tmpl.c"

#include "grad_input_tmpl.c"
#include "normalize_tmpl.c"

#include "traverse_tmpl.c"

#include "weighted_arithmetic_tmpl.c"

#include "flagged_rows_tmpl.c"
#include "weighted_elementwise_tmpl.c"

#include "variants_tmpl.c"

#include "lines_tmpl.c"

#define BNCORE_SUMS(operation, variant, fused, reads)                                              \
    .operation##_planes[fused] = NAME(operation##_planes_##variant),                               \
    .operation##_rows[fused] = NAME(operation##_rows_##variant),
#define BNCORE_ELEMENTWISE(operation, variant, fused, reads)                                       \
    BNCORE_SUMS(operation, variant, fused, reads)

extern const bncore_kernel_set JOIN(NAME(bncore_kernels), BNCORE_ISA_NAME);
const bncore_kernel_set JOIN(NAME(bncore_kernels), BNCORE_ISA_NAME) = {
    .item = sizeof(T),
    .coef_item = sizeof(ACC),
    .streams = STREAMS,
    .chained = CHAINED,
    .about_0 = NAME(ABOUT_0),
    .moments_planes = MOMENTS(planes),
    .moments_rows = MOMENTS(rows),
    .weighted_moments_planes = NAME(weighted_moments_planes),
    .weighted_moments_rows = NAME(weighted_moments_rows),
    .weighted_normalize_planes = {NAME(weighted_normalize_planes_plain),
                                  NAME(weighted_normalize_planes_fused)},
    .weighted_normalize_rows = {NAME(weighted_normalize_rows_plain),
                                NAME(weighted_normalize_rows_fused)},
    .weighted_grad_input_planes = {NAME(weighted_grad_input_planes_flagged),
                                   NAME(weighted_grad_input_planes_plain),
                                   NAME(weighted_grad_input_planes_fused)},
    .weighted_grad_input_rows = {NAME(weighted_grad_input_rows_flagged),
                                 NAME(weighted_grad_input_rows_plain),
                                 NAME(weighted_grad_input_rows_fused)},
#if !CHAINED
    .line_moments = NAME(line_moments),
#endif
    .line_normalize = NAME(line_normalize),
    .line_sums = NAME(line_sums),
    .line_grad_input = NAME(line_grad_input),
    .merge_moments = merge_moments,
    .merge_sums = merge_sums,
    .inverse_std = inverse_std,
    .normalize_coefs = NAME(normalize_coefs),
    .mask_coefs = NAME(mask_coefs),
    .grad_input_coefs = NAME(grad_input_coefs),
    .grad_frozen_coefs = NAME(grad_frozen_coefs),
    .grad_group_coefs = NAME(grad_group_coefs),
    .convert = NAME(convert),
#include "variants.def"
};

#undef BNCORE_SUMS
#undef BNCORE_ELEMENTWISE
#undef MOMENTS
