# The C interface for Cython: `from bncore cimport bncore_problem, bncore_train`. docs/embedding.md has an example.
#
# The functions are those of the compiled module. They are found when the importing module is loaded, so nothing is
# linked. For the types, the C compiler needs bncore.get_include().

from bncore.backends.native.c_bncore cimport (
    BNCORE_VERSION, BNCORE_ABI_VERSION, BNCORE_OK, BNCORE_ERROR_NULL, BNCORE_ERROR_SIZE,
    BNCORE_ERROR_DTYPE, BNCORE_ERROR_EPS, BNCORE_ERROR_THREADS, BNCORE_ERROR_COUNT,
    BNCORE_ERROR_SCRATCH, BNCORE_ERROR_MEMORY, BNCORE_ERROR_ISA, BNCORE_ERROR_FUSION,
    BNCORE_ERROR_EXECUTOR, BNCORE_ERROR_STRUCT, BNCORE_ERROR_ALIGNMENT,
    BNCORE_FLOAT32, BNCORE_FLOAT64, BNCORE_FLOAT16, BNCORE_BFLOAT16, BNCORE_UINT8, BNCORE_INT8,
    BNCORE_UINT16, BNCORE_INT16, BNCORE_UINT32, BNCORE_INT32,
    BNCORE_NO_ACTIVATION, BNCORE_RELU, BNCORE_LEAKY_RELU,
    BNCORE_WEIGHT_FLOAT64, BNCORE_WEIGHT_UINT8, bncore_activation, bncore_dtype, bncore_environment,
    bncore_executor, bncore_fusion, bncore_problem, bncore_status, bncore_weights,
)
from bncore.backends.native.binding cimport (
    bncore_problem_init, bncore_fusion_init, bncore_weights_init, bncore_scratch_size,
    bncore_moments, bncore_normalize, bncore_train,
    bncore_grad_sums, bncore_grad_input, bncore_train_backward, bncore_infer_backward,
    bncore_group_norm, bncore_group_norm_backward,
    bncore_status_string, bncore_version, bncore_abi_version, bncore_isa, bncore_isa_available,
    bncore_isa_set, bncore_isa_init, bncore_executor_choose, bncore_executor_init,
    bncore_executor_name, bncore_executor_available, bncore_max_threads_set, bncore_max_threads,
    bncore_workers, bncore_environment_enter, bncore_environment_leave, bncore_executor_set, bncore_executor_now,
    bncore_openmp_max_threads, bncore_has_openmp, bncore_in_forked_child,
)
