/* The kernels of variants.def for storage type T. Each is a traversal or a sum with its arithmetic, compiled for one
 * variant. */

#define BNCORE_SUMS(operation, variant, fused, reads)                                              \
    static void NAME(operation##_planes_##variant)(bncore_partial partial, const bncore_arrays *a, \
                                                   const double *mean, const bncore_planes *t)     \
    {                                                                                              \
        NAME(sum_planes)(partial, a, mean, t, (fused) | (reads));                                  \
    }                                                                                              \
    static void NAME(operation##_rows_##variant)(bncore_partial partial, const bncore_arrays *a,   \
                                                 const double *mean, const bncore_rows *t)         \
    {                                                                                              \
        NAME(sum_rows)(partial, a, mean, t, (fused) | (reads));                                    \
    }
#define BNCORE_ELEMENTWISE(operation, variant, fused, reads)                                       \
    static NOINLINE void NAME(few_##operation##_planes_##variant)(                                 \
        T * to, NAME(values) v, int64_t len, const ACC *coef, int64_t stride)                      \
    {                                                                                              \
        NAME(few)(to, v, len, coef, stride, NAME(operation), 0, (fused) | (reads));                \
    }                                                                                              \
    static NOINLINE void NAME(few_##operation##_rows_##variant)(                                   \
        T * to, NAME(values) v, int64_t len, const ACC *coef, int64_t stride)                      \
    {                                                                                              \
        NAME(few)(to, v, len, coef, stride, NAME(operation), 1, (fused) | (reads));                \
    }                                                                                              \
    static void NAME(operation##_planes_##variant)(const bncore_arrays *a, const void *coef,       \
                                                   int64_t stride, const bncore_planes *t)         \
    {                                                                                              \
        NAME(walk_planes)(a, coef, stride, t, NAME(operation),                                     \
                          NAME(few_##operation##_planes_##variant), FIELDS_##operation,            \
                          (fused) | (reads));                                                      \
    }                                                                                              \
    static void NAME(operation##_rows_##variant)(const bncore_arrays *a, const void *coef,         \
                                                 int64_t stride, const bncore_rows *t)             \
    {                                                                                              \
        NAME(walk_rows)(a, coef, stride, t, NAME(operation),                                       \
                        NAME(few_##operation##_rows_##variant), (fused) | (reads));                \
    }
#include "variants.def"
#undef BNCORE_SUMS
#undef BNCORE_ELEMENTWISE
