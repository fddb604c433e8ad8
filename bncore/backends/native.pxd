# The C interface, as src_c/bncore.h documents it.

from libc.stdint cimport int32_t, int64_t

cdef extern from "bncore.h" nogil:
    ctypedef enum bncore_dtype:
        BNCORE_FLOAT32
        BNCORE_FLOAT64

    ctypedef enum bncore_status:
        BNCORE_OK
        BNCORE_ERROR_MEMORY

    ctypedef enum bncore_activation:
        BNCORE_NO_ACTIVATION
        BNCORE_RELU
        BNCORE_LEAKY_RELU

    ctypedef struct bncore_fusion:
        int32_t activation
        double slope
        const void *residual
        void *dresidual
        const double *bias

    ctypedef struct bncore_problem:
        int64_t outer
        int64_t channels
        int64_t inner
        double eps
        int32_t n_threads
        const bncore_fusion *fusion

    bncore_status bncore_problem_init(bncore_problem *problem, bncore_dtype dtype, int64_t outer,
                                      int64_t channels, int64_t inner)
    bncore_status bncore_moments(const bncore_problem *problem, double *mean, double *m2,
                                 const void *x)
    bncore_status bncore_normalize(const bncore_problem *problem, void *y, const void *x,
                                   const double *mean, const double *var, const double *weight,
                                   const double *bias)
    bncore_status bncore_train(const bncore_problem *problem, void *y, double *mean, double *m2,
                               const void *x, const double *weight, const double *bias)
    bncore_status bncore_grad_sums(const bncore_problem *problem, double *sum_dy,
                                   double *sum_dy_xhat, const void *dy, const void *x,
                                   const double *mean, const double *var)
    bncore_status bncore_grad_input(const bncore_problem *problem, void *dx, const void *dy,
                                    const void *x, const double *mean, const double *var,
                                    const double *sum_dy, const double *sum_dy_xhat, double count,
                                    const double *weight)
    bncore_status bncore_train_backward(const bncore_problem *problem, void *dx, double *sum_dy,
                                        double *sum_dy_xhat, const void *dy, const void *x,
                                        const double *mean, const double *var,
                                        const double *weight)
    bncore_status bncore_infer_backward(const bncore_problem *problem, void *dx, double *sum_dy,
                                        double *sum_dy_xhat, const void *dy, const void *x,
                                        const double *mean, const double *var,
                                        const double *weight)
    const char *bncore_status_string(bncore_status status)
    const char *bncore_isa()
    const char *bncore_isa_available(int i)
    bncore_status bncore_isa_set(const char *name)
    bncore_status bncore_isa_init()
    int bncore_openmp_max_threads()
    int bncore_has_openmp()
    int bncore_in_forked_child()
