# The functions of bncore.h as functions of this module, so that other Cython modules can use them without linking to
# the C library. Within this module the compiler turns a call of one into a call of the C function itself.

from bncore.backends.native.c_bncore cimport (
    BNCORE_OK, BNCORE_ERROR_NULL, BNCORE_ERROR_SIZE, BNCORE_ERROR_DTYPE, BNCORE_ERROR_EPS,
    BNCORE_ERROR_THREADS, BNCORE_ERROR_COUNT, BNCORE_ERROR_SCRATCH, BNCORE_ERROR_MEMORY,
    BNCORE_ERROR_ISA, BNCORE_ERROR_FUSION, BNCORE_ERROR_EXECUTOR, BNCORE_ERROR_STRUCT,
    BNCORE_ERROR_ALIGNMENT, BNCORE_FLOAT32, BNCORE_FLOAT64, BNCORE_FLOAT16, BNCORE_BFLOAT16,
    BNCORE_UINT8, BNCORE_INT8, BNCORE_UINT16, BNCORE_INT16, BNCORE_UINT32, BNCORE_INT32,
    BNCORE_FLOAT64_SUMS, BNCORE_NO_ACTIVATION, BNCORE_RELU, BNCORE_LEAKY_RELU,
    BNCORE_WEIGHT_FLOAT64, BNCORE_WEIGHT_UINT8, bncore_activation, bncore_dtype, bncore_environment,
    bncore_executor, bncore_fusion, bncore_problem, bncore_status, bncore_weights,
)
from libc.stdint cimport int32_t, int64_t

cdef bncore_status bncore_problem_init(bncore_problem *problem, size_t size, bncore_dtype dtype,
                                       int64_t outer, int64_t channels,
                                       int64_t inner) noexcept nogil
cdef bncore_status bncore_fusion_init(bncore_fusion *fusion, size_t size) noexcept nogil
cdef bncore_status bncore_weights_init(bncore_weights *weights, size_t size) noexcept nogil
cdef size_t bncore_scratch_size(const bncore_problem *problem) noexcept nogil
cdef bncore_status bncore_moments(const bncore_problem *problem, double *mean, double *m2,
                                  const void *x) noexcept nogil
cdef bncore_status bncore_normalize(const bncore_problem *problem, void *y, const void *x,
                                    const double *mean, const double *var, const double *weight,
                                    const double *bias) noexcept nogil
cdef bncore_status bncore_train(const bncore_problem *problem, void *y, double *mean, double *m2,
                                const void *x, const double *weight,
                                const double *bias) noexcept nogil
cdef bncore_status bncore_grad_sums(const bncore_problem *problem, double *sum_dy,
                                    double *sum_dy_xhat, const void *dy, const void *x,
                                    const double *mean, const double *var) noexcept nogil
cdef bncore_status bncore_grad_input(const bncore_problem *problem, void *dx, const void *dy,
                                     const void *x, const double *mean, const double *var,
                                     const double *sum_dy, const double *sum_dy_xhat,
                                     const double *count,
                                     const double *weight) noexcept nogil
cdef bncore_status bncore_train_backward(const bncore_problem *problem, void *dx, double *sum_dy,
                                         double *sum_dy_xhat, const void *dy, const void *x,
                                         const double *mean, const double *var,
                                         const double *weight) noexcept nogil
cdef bncore_status bncore_infer_backward(const bncore_problem *problem, void *dx, double *sum_dy,
                                         double *sum_dy_xhat, const void *dy, const void *x,
                                         const double *mean, const double *var,
                                         const double *weight) noexcept nogil
cdef bncore_status bncore_group_norm(const bncore_problem *problem, int64_t samples, int64_t groups,
                                     void *y, double *mean, double *m2, const void *x,
                                     const double *weight, const double *bias) noexcept nogil
cdef bncore_status bncore_group_norm_backward(const bncore_problem *problem, int64_t samples,
                                              int64_t groups, void *dx, double *sum_dy,
                                              double *sum_dy_xhat, const void *dy, const void *x,
                                              const double *mean, const double *var,
                                              const double *weight) noexcept nogil
cdef const char *bncore_status_string(bncore_status status) noexcept nogil
cdef const char *bncore_version() noexcept nogil
cdef int bncore_abi_version() noexcept nogil
cdef const char *bncore_isa() noexcept nogil
cdef const char *bncore_isa_available(int i) noexcept nogil
cdef bncore_status bncore_isa_set(const char *name) noexcept nogil
cdef bncore_status bncore_isa_init() noexcept nogil
cdef bncore_status bncore_executor_choose(const char *name) noexcept nogil
cdef bncore_status bncore_executor_init() noexcept nogil
cdef const char *bncore_executor_name() noexcept nogil
cdef const char *bncore_executor_available(int i) noexcept nogil
cdef bncore_status bncore_max_threads_set(int32_t threads) noexcept nogil
cdef int32_t bncore_max_threads() noexcept nogil
cdef int bncore_workers() noexcept nogil
cdef void bncore_environment_enter(bncore_environment *own) noexcept nogil
cdef void bncore_environment_leave(const bncore_environment *own) noexcept nogil
cdef bncore_status bncore_executor_set(const bncore_executor *executor) noexcept nogil
cdef const bncore_executor *bncore_executor_now() noexcept nogil
cdef int bncore_openmp_max_threads() noexcept nogil
cdef int bncore_has_openmp() noexcept nogil
cdef int bncore_in_forked_child() noexcept nogil
