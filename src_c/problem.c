/* Checks a problem, and tells how much scratch it takes. Every limit on sizes is here: after this check no
 * computation with the sizes overflows int64_t or size_t. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "run.h"

enum {
    /* The structs of this ABI never become shorter, and none of a later version is longer than this. */
    LARGEST_STRUCT = 1024
};

/* The most values of one array. The bytes of so many values, and of the scratch for them, still fit int64_t. */
#define MOST_VALUES (INT64_MAX / 128)

/* Bytes of a value; 0 for what is no bncore_dtype. */
static int64_t item_of(int32_t dtype)
{
    switch (dtype) {
    case BNCORE_FLOAT32:
    case BNCORE_UINT8: /* y has floats */
    case BNCORE_INT8:
    case BNCORE_UINT16:
    case BNCORE_INT16:
    case BNCORE_UINT32:
    case BNCORE_INT32:
        return sizeof(float);
    case BNCORE_FLOAT64:
        return sizeof(double);
    case BNCORE_FLOAT16:
    case BNCORE_BFLOAT16:
        return sizeof(uint16_t);
    default:
        return 0;
    }
}

static int all_zero(const void *bytes, size_t size)
{
    const unsigned char *byte = bytes;
    for (size_t i = 0; i < size; i++)
        if (byte[i]) return 0;
    return 1;
}

/* Check a struct that says it has `size` bytes, of which this library knows the first `known`. */
static bncore_status check_struct(const void *given, uint32_t size, size_t known)
{
    /* All structs have fields of 64 bits, which 32-bit x86 aligns to 4 bytes. */
    if (size < known || size > LARGEST_STRUCT || size % _Alignof(bncore_problem))
        return BNCORE_ERROR_STRUCT;
    return all_zero((const char *)given + known, size - known) ? BNCORE_OK : BNCORE_ERROR_STRUCT;
}

static bncore_status check_fusion(const bncore_fusion *f, int32_t dtype)
{
    const double most = dtype == BNCORE_FLOAT64 ? DBL_MAX : (double)FLT_MAX;
    const bncore_status status = check_struct(f, f->size, sizeof *f);
    if (status != BNCORE_OK) return status;
    if (!all_zero(f->reserved, sizeof f->reserved)) return BNCORE_ERROR_STRUCT;
    if (f->activation < BNCORE_NO_ACTIVATION || f->activation > BNCORE_LEAKY_RELU)
        return BNCORE_ERROR_FUSION;
    if (f->activation == BNCORE_LEAKY_RELU && !(fabs(f->slope) <= most)) return BNCORE_ERROR_FUSION;
    return BNCORE_OK;
}

static bncore_status check_weights(const bncore_weights *w)
{
    const bncore_status status = check_struct(w, w->size, sizeof *w);
    if (status != BNCORE_OK) return status;
    if (w->unused || !all_zero(w->reserved, sizeof w->reserved)) return BNCORE_ERROR_STRUCT;
    if (w->dtype != BNCORE_WEIGHT_UINT8 && w->dtype != BNCORE_WEIGHT_FLOAT64)
        return BNCORE_ERROR_STRUCT;
    const uint32_t flags = (uint32_t)w->per_channel | (uint32_t)w->omit_nan | (uint32_t)w->filled;
    return flags > 1 ? BNCORE_ERROR_STRUCT : BNCORE_OK;
}

/* Whether the arrays fit the address space. Where the arrays hold no value, the parameters still have one per
 * channel. */
static bncore_status check_sizes(const bncore_problem *p)
{
    const int64_t most = bncore_min(MOST_VALUES, PTRDIFF_MAX / item_of(p->dtype));
    if (p->outer < 0 || p->channels < 0 || p->inner < 0) return BNCORE_ERROR_SIZE;
    if (p->outer && p->inner > most / p->outer) return BNCORE_ERROR_SIZE;
    const int64_t n = bncore_max(p->outer * p->inner, 1);
    if (p->channels > most / n) return BNCORE_ERROR_SIZE;
    return BNCORE_OK;
}

bncore_status bncore_problem_open(const bncore_problem *p, bncore_geometry *g)
{
    if (!p) return BNCORE_ERROR_NULL;
    bncore_status status = check_struct(p, p->size, sizeof *p);
    if (status != BNCORE_OK) return status;
    if (p->flags & ~(uint32_t)BNCORE_FLOAT64_SUMS) return BNCORE_ERROR_STRUCT;
    if (p->unused || !all_zero(p->reserved, sizeof p->reserved)) return BNCORE_ERROR_STRUCT;
    if (!item_of(p->dtype)) return BNCORE_ERROR_DTYPE;
    status = check_sizes(p);
    if (status != BNCORE_OK) return status;
    if (!(p->eps >= 0.0 && isfinite(p->eps))) return BNCORE_ERROR_EPS;
    if (p->n_threads < 1) return BNCORE_ERROR_THREADS;
    if (p->executor && !p->executor->parallel_for) return BNCORE_ERROR_NULL;
    status = p->fusion ? check_fusion(p->fusion, p->dtype) : BNCORE_OK;
    if (status != BNCORE_OK) return status;
    status = p->weights ? check_weights(p->weights) : BNCORE_OK;
    if (status != BNCORE_OK) return status;
    if (p->weights && p->dtype >= BNCORE_UINT8) return BNCORE_ERROR_DTYPE;
    *g = bncore_partition(p->outer, p->channels, p->inner);
    if (bncore_scratch_doubles(g) > PTRDIFF_MAX / (int64_t)sizeof(double)) return BNCORE_ERROR_SIZE;
    return BNCORE_OK;
}

bncore_status bncore_problem_init(bncore_problem *problem, size_t size, bncore_dtype dtype,
                                  int64_t outer, int64_t channels, int64_t inner)
{
    bncore_geometry g;
    if (!problem) return BNCORE_ERROR_NULL;
    if (size < sizeof *problem || size > LARGEST_STRUCT) return BNCORE_ERROR_STRUCT;
    memset(problem, 0, size);
    problem->size = (uint32_t)size;
    problem->dtype = (int32_t)dtype;
    problem->outer = outer;
    problem->channels = channels;
    problem->inner = inner;
    problem->eps = 1e-5;
    problem->n_threads = 1;
    return bncore_problem_open(problem, &g);
}

bncore_status bncore_fusion_init(bncore_fusion *fusion, size_t size)
{
    if (!fusion) return BNCORE_ERROR_NULL;
    if (size < sizeof *fusion || size > LARGEST_STRUCT) return BNCORE_ERROR_STRUCT;
    memset(fusion, 0, size);
    fusion->size = (uint32_t)size;
    return check_struct(fusion, fusion->size, sizeof *fusion);
}

bncore_status bncore_weights_init(bncore_weights *weights, size_t size)
{
    if (!weights) return BNCORE_ERROR_NULL;
    if (size < sizeof *weights || size > LARGEST_STRUCT) return BNCORE_ERROR_STRUCT;
    memset(weights, 0, size);
    weights->size = (uint32_t)size;
    return check_struct(weights, weights->size, sizeof *weights);
}

size_t bncore_scratch_size(const bncore_problem *problem)
{
    bncore_geometry g;
    if (bncore_problem_open(problem, &g) != BNCORE_OK) return 0;
    return (size_t)bncore_scratch_doubles(&g) * sizeof(double);
}
