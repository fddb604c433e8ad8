# The C interface, which src_c/include/bncore.h documents. binding.pxd has the same functions for other Cython modules.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from "bncore.h" nogil:
    const char *BNCORE_VERSION
    const int BNCORE_ABI_VERSION
    const int BNCORE_FLOAT64_SUMS

    ctypedef enum bncore_dtype:
        BNCORE_FLOAT32
        BNCORE_FLOAT64
        BNCORE_FLOAT16
        BNCORE_BFLOAT16
        BNCORE_UINT8
        BNCORE_INT8
        BNCORE_UINT16
        BNCORE_INT16
        BNCORE_UINT32
        BNCORE_INT32

    ctypedef enum bncore_status:
        BNCORE_OK
        BNCORE_ERROR_NULL
        BNCORE_ERROR_SIZE
        BNCORE_ERROR_DTYPE
        BNCORE_ERROR_EPS
        BNCORE_ERROR_THREADS
        BNCORE_ERROR_COUNT
        BNCORE_ERROR_SCRATCH
        BNCORE_ERROR_MEMORY
        BNCORE_ERROR_ISA
        BNCORE_ERROR_FUSION
        BNCORE_ERROR_EXECUTOR
        BNCORE_ERROR_STRUCT
        BNCORE_ERROR_ALIGNMENT

    ctypedef enum bncore_activation:
        BNCORE_NO_ACTIVATION
        BNCORE_RELU
        BNCORE_LEAKY_RELU

    ctypedef struct bncore_executor:
        void (*parallel_for)(void *context, int64_t tasks, int32_t threads,
                             void (*task)(void *arg, int64_t i) noexcept nogil,
                             void *arg) noexcept nogil
        void *context

    ctypedef struct bncore_fusion:
        uint32_t size
        int32_t activation
        double slope
        const void *residual
        void *dresidual
        const double *bias
        uint64_t reserved[4]

    ctypedef enum bncore_weight_dtype:
        BNCORE_WEIGHT_UINT8
        BNCORE_WEIGHT_FLOAT64

    ctypedef struct bncore_weights:
        uint32_t size
        int32_t dtype
        int32_t per_channel
        int32_t omit_nan
        int32_t filled
        int32_t unused
        const void *values
        double *count
        double fill
        uint64_t reserved[4]

    ctypedef struct bncore_problem:
        uint32_t size
        int32_t dtype
        int64_t outer
        int64_t channels
        int64_t inner
        double eps
        int32_t n_threads
        uint32_t flags
        const bncore_executor *executor
        void *scratch
        size_t scratch_size
        const bncore_fusion *fusion
        const bncore_weights *weights
        const void *unused
        uint64_t reserved[6]

    ctypedef struct bncore_environment:
        uint64_t saved[8]

    void bncore_canonical(const int64_t *sizes, int rank, int start, int stop, int64_t *canonical)
    bncore_status bncore_problem_init(bncore_problem *problem, size_t size, bncore_dtype dtype,
                                      int64_t outer, int64_t channels, int64_t inner)
    bncore_status bncore_fusion_init(bncore_fusion *fusion, size_t size)
    bncore_status bncore_weights_init(bncore_weights *weights, size_t size)
    size_t bncore_scratch_size(const bncore_problem *problem)
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
                                    const double *sum_dy, const double *sum_dy_xhat,
                                    const double *count,
                                    const double *weight)
    bncore_status bncore_train_backward(const bncore_problem *problem, void *dx, double *sum_dy,
                                        double *sum_dy_xhat, const void *dy, const void *x,
                                        const double *mean, const double *var, const double *weight)
    bncore_status bncore_infer_backward(const bncore_problem *problem, void *dx, double *sum_dy,
                                        double *sum_dy_xhat, const void *dy, const void *x,
                                        const double *mean, const double *var, const double *weight)
    bncore_status bncore_group_norm(const bncore_problem *problem, int64_t samples, int64_t groups,
                                    void *y, double *mean, double *m2, const void *x,
                                    const double *weight, const double *bias)
    bncore_status bncore_group_norm_backward(const bncore_problem *problem, int64_t samples,
                                             int64_t groups, void *dx, double *sum_dy,
                                             double *sum_dy_xhat, const void *dy, const void *x,
                                             const double *mean, const double *var,
                                             const double *weight)
    const char *bncore_status_string(bncore_status status)
    const char *bncore_version()
    int bncore_abi_version()
    const char *bncore_isa()
    const char *bncore_isa_available(int i)
    bncore_status bncore_isa_set(const char *name)
    bncore_status bncore_isa_init()
    bncore_status bncore_executor_choose(const char *name)
    bncore_status bncore_executor_init()
    const char *bncore_executor_name()
    const char *bncore_executor_available(int i)
    bncore_status bncore_max_threads_set(int32_t threads)
    int32_t bncore_max_threads()
    int bncore_workers()
    void bncore_environment_enter(bncore_environment *own)
    void bncore_environment_leave(const bncore_environment *own)
    bncore_status bncore_executor_set(const bncore_executor *executor)
    const bncore_executor *bncore_executor_now()
    int bncore_openmp_max_threads()
    int bncore_has_openmp()
    int bncore_in_forked_child()
