/* All kernels for one storage type: kernels.c defines T, the type of the arithmetic ACC and NAME() and includes this file once per type. */

/* In this order: each uses those before it. */
#include "activation_tmpl.c"

#include "gradient_tmpl.c"
#include "moments_tmpl.c"
#include "normalize_tmpl.c"

#include "traverse_tmpl.c"

#include "variants_tmpl.c"

static const bncore_kernel_set NAME(kernel_set) = {
    .item = sizeof(T),
    .coef_item = sizeof(ACC),
    .moments_planes = NAME(moments_planes),
    .moments_rows = NAME(moments_rows),
    .grad_sums_planes =
        {
            [0] = NAME(grad_sums_planes),
            [ACTIVATION] = NAME(grad_sums_planes_relu),
            [ACTIVATION | RESIDUAL] = NAME(grad_sums_planes_add_relu),
            [ACTIVATION | STORED] = NAME(grad_sums_planes_relu_stored),
            [ACTIVATION | RESIDUAL | STORED] = NAME(grad_sums_planes_add_relu_stored),
        },
    .grad_sums_rows =
        {
            [0] = NAME(grad_sums_rows),
            [ACTIVATION] = NAME(grad_sums_rows_relu),
            [ACTIVATION | RESIDUAL] = NAME(grad_sums_rows_add_relu),
            [ACTIVATION | STORED] = NAME(grad_sums_rows_relu_stored),
            [ACTIVATION | RESIDUAL | STORED] = NAME(grad_sums_rows_add_relu_stored),
        },
    .merge_moments = merge_moments,
    .merge_sums = merge_sums,
    .normalize_planes =
        {
            [0] = NAME(normalize_planes),
            [ACTIVATION] = NAME(normalize_planes_relu),
            [RESIDUAL] = NAME(normalize_planes_add),
            [ACTIVATION | RESIDUAL] = NAME(normalize_planes_add_relu),
        },
    .normalize_rows =
        {
            [0] = NAME(normalize_rows),
            [ACTIVATION] = NAME(normalize_rows_relu),
            [RESIDUAL] = NAME(normalize_rows_add),
            [ACTIVATION | RESIDUAL] = NAME(normalize_rows_add_relu),
        },
    .grad_input_planes =
        {
            [0] = NAME(grad_input_planes),
            [ACTIVATION] = NAME(grad_input_planes_relu),
            [ACTIVATION | RESIDUAL] = NAME(grad_input_planes_add_relu),
        },
    .grad_input_rows =
        {
            [0] = NAME(grad_input_rows),
            [ACTIVATION] = NAME(grad_input_rows_relu),
            [ACTIVATION | RESIDUAL] = NAME(grad_input_rows_add_relu),
        },
    .grad_frozen_planes =
        {
            [0] = NAME(grad_frozen_planes),
            [ACTIVATION] = NAME(grad_frozen_planes_relu),
            [ACTIVATION | RESIDUAL] = NAME(grad_frozen_planes_add_relu),
        },
    .grad_frozen_rows =
        {
            [0] = NAME(grad_frozen_rows),
            [ACTIVATION] = NAME(grad_frozen_rows_relu),
            [ACTIVATION | RESIDUAL] = NAME(grad_frozen_rows_add_relu),
        },
    .inverse_std = inverse_std,
    .normalize_coefs = NAME(normalize_coefs),
    .mask_coefs = NAME(mask_coefs),
    .grad_input_coefs = NAME(grad_input_coefs),
    .grad_frozen_coefs = NAME(grad_frozen_coefs),
};
