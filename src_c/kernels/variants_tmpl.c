/* The kernels of the table for storage type T: each walk or sum with its arithmetic, once per variant. "relu" is either
 * activation. */

static void NAME(grad_sums_planes)(bncore_partial partial, const bncore_arrays *a,
                                   const double *mean, const bncore_planes *t)
{
    NAME(sum_planes)(partial, a, mean, t, BACKWARD);
}

static void NAME(grad_sums_planes_relu)(bncore_partial partial, const bncore_arrays *a,
                                        const double *mean, const bncore_planes *t)
{
    NAME(sum_planes)(partial, a, mean, t, BACKWARD | ACTIVATION);
}

static void NAME(grad_sums_planes_add_relu)(bncore_partial partial, const bncore_arrays *a,
                                            const double *mean, const bncore_planes *t)
{
    NAME(sum_planes)(partial, a, mean, t, BACKWARD | ACTIVATION | RESIDUAL);
}

static void NAME(grad_sums_planes_relu_stored)(bncore_partial partial, const bncore_arrays *a,
                                               const double *mean, const bncore_planes *t)
{
    NAME(sum_planes)(partial, a, mean, t, BACKWARD | ACTIVATION | STORED);
}

static void NAME(grad_sums_planes_add_relu_stored)(bncore_partial partial, const bncore_arrays *a,
                                                   const double *mean, const bncore_planes *t)
{
    NAME(sum_planes)(partial, a, mean, t, BACKWARD | ACTIVATION | RESIDUAL | STORED);
}

static void NAME(grad_sums_rows)(bncore_partial partial, const bncore_arrays *a, const double *mean,
                                 const bncore_rows *t)
{
    NAME(sum_rows)(partial, a, mean, t, BACKWARD);
}

static void NAME(grad_sums_rows_relu)(bncore_partial partial, const bncore_arrays *a,
                                      const double *mean, const bncore_rows *t)
{
    NAME(sum_rows)(partial, a, mean, t, BACKWARD | ACTIVATION);
}

static void NAME(grad_sums_rows_add_relu)(bncore_partial partial, const bncore_arrays *a,
                                          const double *mean, const bncore_rows *t)
{
    NAME(sum_rows)(partial, a, mean, t, BACKWARD | ACTIVATION | RESIDUAL);
}

static void NAME(grad_sums_rows_relu_stored)(bncore_partial partial, const bncore_arrays *a,
                                             const double *mean, const bncore_rows *t)
{
    NAME(sum_rows)(partial, a, mean, t, BACKWARD | ACTIVATION | STORED);
}

static void NAME(grad_sums_rows_add_relu_stored)(bncore_partial partial, const bncore_arrays *a,
                                                 const double *mean, const bncore_rows *t)
{
    NAME(sum_rows)(partial, a, mean, t, BACKWARD | ACTIVATION | RESIDUAL | STORED);
}

static void NAME(normalize_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                                   const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(normalize_run), 0);
}

static void NAME(normalize_planes_relu)(const bncore_arrays *a, const void *coef, int64_t stride,
                                        const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(normalize_run), ACTIVATION);
}

static void NAME(normalize_planes_add)(const bncore_arrays *a, const void *coef, int64_t stride,
                                       const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(normalize_run), RESIDUAL);
}

static void NAME(normalize_planes_add_relu)(const bncore_arrays *a, const void *coef,
                                            int64_t stride, const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(normalize_run), ACTIVATION | RESIDUAL);
}

static void NAME(normalize_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                                 const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(normalize_row), 0);
}

static void NAME(normalize_rows_relu)(const bncore_arrays *a, const void *coef, int64_t stride,
                                      const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(normalize_row), ACTIVATION);
}

static void NAME(normalize_rows_add)(const bncore_arrays *a, const void *coef, int64_t stride,
                                     const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(normalize_row), RESIDUAL);
}

static void NAME(normalize_rows_add_relu)(const bncore_arrays *a, const void *coef, int64_t stride,
                                          const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(normalize_row), ACTIVATION | RESIDUAL);
}

static void NAME(grad_input_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                                    const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(grad_input_run), BACKWARD);
}

static void NAME(grad_input_planes_relu)(const bncore_arrays *a, const void *coef, int64_t stride,
                                         const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(grad_input_run), BACKWARD | ACTIVATION);
}

static void NAME(grad_input_planes_add_relu)(const bncore_arrays *a, const void *coef,
                                             int64_t stride, const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(grad_input_run), BACKWARD | ACTIVATION | RESIDUAL);
}

static void NAME(grad_input_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                                  const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(grad_input_row), BACKWARD);
}

static void NAME(grad_input_rows_relu)(const bncore_arrays *a, const void *coef, int64_t stride,
                                       const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(grad_input_row), BACKWARD | ACTIVATION);
}

static void NAME(grad_input_rows_add_relu)(const bncore_arrays *a, const void *coef, int64_t stride,
                                           const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(grad_input_row), BACKWARD | ACTIVATION | RESIDUAL);
}

static void NAME(grad_frozen_planes)(const bncore_arrays *a, const void *coef, int64_t stride,
                                     const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(grad_frozen_run), BACKWARD);
}

static void NAME(grad_frozen_planes_relu)(const bncore_arrays *a, const void *coef, int64_t stride,
                                          const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(grad_frozen_run), BACKWARD | ACTIVATION);
}

static void NAME(grad_frozen_planes_add_relu)(const bncore_arrays *a, const void *coef,
                                              int64_t stride, const bncore_planes *t)
{
    NAME(walk_planes)(a, coef, stride, t, NAME(grad_frozen_run), BACKWARD | ACTIVATION | RESIDUAL);
}

static void NAME(grad_frozen_rows)(const bncore_arrays *a, const void *coef, int64_t stride,
                                   const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(grad_frozen_row), BACKWARD);
}

static void NAME(grad_frozen_rows_relu)(const bncore_arrays *a, const void *coef, int64_t stride,
                                        const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(grad_frozen_row), BACKWARD | ACTIVATION);
}

static void NAME(grad_frozen_rows_add_relu)(const bncore_arrays *a, const void *coef,
                                            int64_t stride, const bncore_rows *t)
{
    NAME(walk_rows)(a, coef, stride, t, NAME(grad_frozen_row), BACKWARD | ACTIVATION | RESIDUAL);
}
