/* What a caller asks about a problem and about the library. */
#include <float.h>
#include <math.h>

#include "run.h"

static bncore_status check_fusion(const bncore_fusion *f, int32_t dtype)
{
    const double most = dtype == BNCORE_FLOAT32 ? (double)FLT_MAX : DBL_MAX;
    if (f->activation < BNCORE_NO_ACTIVATION || f->activation > BNCORE_LEAKY_RELU)
        return BNCORE_ERROR_FUSION;
    if (f->activation == BNCORE_LEAKY_RELU && !(fabs(f->slope) <= most)) return BNCORE_ERROR_FUSION;
    return BNCORE_OK;
}

bncore_status bncore_problem_check(const bncore_problem *p)
{
    if (!p) return BNCORE_ERROR_NULL;
    if (p->dtype != BNCORE_FLOAT32 && p->dtype != BNCORE_FLOAT64) return BNCORE_ERROR_DTYPE;
    if (p->outer < 0 || p->channels < 0 || p->inner < 0) return BNCORE_ERROR_SIZE;
    const int64_t most = INT64_MAX / 64; /* bytes of x, and of scratch beside it */
    if (p->outer && p->inner > most / p->outer) return BNCORE_ERROR_SIZE;
    const int64_t n = p->outer * p->inner;
    if (p->channels && bncore_max(n, 1) > most / p->channels) return BNCORE_ERROR_SIZE;
    if (!(p->eps >= 0.0 && isfinite(p->eps))) return BNCORE_ERROR_EPS;
    if (p->n_threads < 1) return BNCORE_ERROR_THREADS;
    if (p->executor && !p->executor->parallel_for) return BNCORE_ERROR_NULL;
    return p->fusion ? check_fusion(p->fusion, p->dtype) : BNCORE_OK;
}

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
    return bncore_problem_check(problem);
}

size_t bncore_scratch_size(const bncore_problem *problem)
{
    if (bncore_problem_check(problem) != BNCORE_OK) return 0;
    const bncore_geometry g = bncore_partition(problem->outer, problem->channels, problem->inner);
    return bncore_job_scratch(&g);
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
    case BNCORE_ERROR_EXECUTOR:
        return "no executor of this name, or it is not built in";
    case BNCORE_ERROR_FUSION:
        return "activation is not of bncore_activation, or the slope of a leaky relu leaves "
               "dtype's range";
    }
    return "unknown status";
}

const char *bncore_version(void)
{
    return BNCORE_VERSION;
}

int bncore_abi_version(void)
{
    return BNCORE_ABI_VERSION;
}
