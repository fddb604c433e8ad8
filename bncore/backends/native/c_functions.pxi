# The functions that binding.pxd declares.

from bncore.backends.native cimport c_bncore


cdef bncore_status bncore_problem_init(bncore_problem *problem, size_t size, bncore_dtype dtype,
                                       int64_t outer, int64_t channels,
                                       int64_t inner) noexcept nogil:
    return c_bncore.bncore_problem_init(problem, size, dtype, outer, channels, inner)

cdef bncore_status bncore_fusion_init(bncore_fusion *fusion, size_t size) noexcept nogil:
    return c_bncore.bncore_fusion_init(fusion, size)

cdef bncore_status bncore_weights_init(bncore_weights *weights, size_t size) noexcept nogil:
    return c_bncore.bncore_weights_init(weights, size)

cdef size_t bncore_scratch_size(const bncore_problem *problem) noexcept nogil:
    return c_bncore.bncore_scratch_size(problem)

cdef bncore_status bncore_moments(const bncore_problem *problem, double *mean, double *m2,
                                  const void *x) noexcept nogil:
    return c_bncore.bncore_moments(problem, mean, m2, x)

cdef bncore_status bncore_normalize(const bncore_problem *problem, void *y, const void *x,
                                    const double *mean, const double *var, const double *weight,
                                    const double *bias) noexcept nogil:
    return c_bncore.bncore_normalize(problem, y, x, mean, var, weight, bias)

cdef bncore_status bncore_train(const bncore_problem *problem, void *y, double *mean, double *m2,
                                const void *x, const double *weight,
                                const double *bias) noexcept nogil:
    return c_bncore.bncore_train(problem, y, mean, m2, x, weight, bias)

cdef bncore_status bncore_grad_sums(const bncore_problem *problem, double *sum_dy,
                                    double *sum_dy_xhat, const void *dy, const void *x,
                                    const double *mean, const double *var) noexcept nogil:
    return c_bncore.bncore_grad_sums(problem, sum_dy, sum_dy_xhat, dy, x, mean, var)

cdef bncore_status bncore_grad_input(const bncore_problem *problem, void *dx, const void *dy,
                                     const void *x, const double *mean, const double *var,
                                     const double *sum_dy, const double *sum_dy_xhat,
                                     const double *count,
                                     const double *weight) noexcept nogil:
    return c_bncore.bncore_grad_input(problem, dx, dy, x, mean, var, sum_dy, sum_dy_xhat, count,
                                      weight)

cdef bncore_status bncore_train_backward(const bncore_problem *problem, void *dx, double *sum_dy,
                                         double *sum_dy_xhat, const void *dy, const void *x,
                                         const double *mean, const double *var,
                                         const double *weight) noexcept nogil:
    return c_bncore.bncore_train_backward(problem, dx, sum_dy, sum_dy_xhat, dy, x, mean, var,
                                          weight)

cdef bncore_status bncore_infer_backward(const bncore_problem *problem, void *dx, double *sum_dy,
                                         double *sum_dy_xhat, const void *dy, const void *x,
                                         const double *mean, const double *var,
                                         const double *weight) noexcept nogil:
    return c_bncore.bncore_infer_backward(problem, dx, sum_dy, sum_dy_xhat, dy, x, mean, var,
                                          weight)

cdef bncore_status bncore_group_norm(const bncore_problem *problem, int64_t samples, int64_t groups,
                                     void *y, double *mean, double *m2, const void *x,
                                     const double *weight, const double *bias) noexcept nogil:
    return c_bncore.bncore_group_norm(problem, samples, groups, y, mean, m2, x, weight, bias)

cdef bncore_status bncore_group_norm_backward(const bncore_problem *problem, int64_t samples,
                                              int64_t groups, void *dx, double *sum_dy,
                                              double *sum_dy_xhat, const void *dy, const void *x,
                                              const double *mean, const double *var,
                                              const double *weight) noexcept nogil:
    return c_bncore.bncore_group_norm_backward(problem, samples, groups, dx, sum_dy, sum_dy_xhat,
                                               dy, x, mean, var, weight)

cdef const char *bncore_status_string(bncore_status status) noexcept nogil:
    return c_bncore.bncore_status_string(status)

cdef const char *bncore_version() noexcept nogil:
    return c_bncore.bncore_version()

cdef int bncore_abi_version() noexcept nogil:
    return c_bncore.bncore_abi_version()

cdef const char *bncore_isa() noexcept nogil:
    return c_bncore.bncore_isa()

cdef const char *bncore_isa_available(int i) noexcept nogil:
    return c_bncore.bncore_isa_available(i)

cdef bncore_status bncore_isa_set(const char *name) noexcept nogil:
    return c_bncore.bncore_isa_set(name)

cdef bncore_status bncore_isa_init() noexcept nogil:
    return c_bncore.bncore_isa_init()

cdef bncore_status bncore_executor_choose(const char *name) noexcept nogil:
    return c_bncore.bncore_executor_choose(name)

cdef bncore_status bncore_executor_init() noexcept nogil:
    return c_bncore.bncore_executor_init()

cdef const char *bncore_executor_name() noexcept nogil:
    return c_bncore.bncore_executor_name()

cdef const char *bncore_executor_available(int i) noexcept nogil:
    return c_bncore.bncore_executor_available(i)

cdef bncore_status bncore_max_threads_set(int32_t threads) noexcept nogil:
    return c_bncore.bncore_max_threads_set(threads)

cdef int32_t bncore_max_threads() noexcept nogil:
    return c_bncore.bncore_max_threads()

cdef int bncore_workers() noexcept nogil:
    return c_bncore.bncore_workers()

cdef void bncore_environment_enter(bncore_environment *own) noexcept nogil:
    c_bncore.bncore_environment_enter(own)

cdef void bncore_environment_leave(const bncore_environment *own) noexcept nogil:
    c_bncore.bncore_environment_leave(own)

cdef bncore_status bncore_executor_set(const bncore_executor *executor) noexcept nogil:
    return c_bncore.bncore_executor_set(executor)

cdef const bncore_executor *bncore_executor_now() noexcept nogil:
    return c_bncore.bncore_executor_now()

cdef int bncore_openmp_max_threads() noexcept nogil:
    return c_bncore.bncore_openmp_max_threads()

cdef int bncore_has_openmp() noexcept nogil:
    return c_bncore.bncore_has_openmp()

cdef int bncore_in_forked_child() noexcept nogil:
    return c_bncore.bncore_in_forked_child()
