/* What a caller asks about a problem and about the library. */
#include "job.h"

bncore_status bncore_problem_init(bncore_problem *problem, bncore_dtype dtype, int64_t outer,
                                  int64_t channels, int64_t inner)
{
    if (!problem) return BNCORE_ERROR_NULL;
    *problem = (bncore_problem){.outer = outer,
                                .channels = channels,
                                .inner = inner,
                                .eps = 1e-5,
                                .dtype = (int32_t)dtype,
                                .n_threads = 1};
    return BNCORE_OK;
}

size_t bncore_scratch_size(const bncore_problem *problem)
{
    const bncore_geometry g = bncore_partition(problem->outer, problem->channels, problem->inner);
    return bncore_job_scratch(&g, problem->fusion != NULL);
}

const char *bncore_status_string(bncore_status status)
{
    switch (status) {
    case BNCORE_OK:
        return "ok";
    case BNCORE_ERROR_NULL:
        return "a pointer that must not be NULL is NULL";
    case BNCORE_ERROR_SIZE:
        return "a size is negative, or the array is larger than memory can be";
    case BNCORE_ERROR_DTYPE:
        return "dtype is neither BNCORE_FLOAT32 nor BNCORE_FLOAT64";
    case BNCORE_ERROR_EPS:
        return "eps is negative, infinite or NaN";
    case BNCORE_ERROR_THREADS:
        return "n_threads is below 1";
    case BNCORE_ERROR_COUNT:
        return "count is not above 0";
    case BNCORE_ERROR_SCRATCH:
        return "scratch is smaller than bncore_scratch_size() says";
    case BNCORE_ERROR_MEMORY:
        return "no memory for scratch";
    case BNCORE_ERROR_ISA:
        return "no such instruction set, or this processor lacks it";
    case BNCORE_ERROR_FUSION:
        return "activation is not of bncore_activation, or its slope is infinite or NaN";
    }
    return "unknown status";
}

const char *bncore_version(void)
{
    return BNCORE_VERSION;
}
