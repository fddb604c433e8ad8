/* Calls of the fuzz target that the header forbids: each must return the status that names the error, and write
 * nothing. */
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "cases.h"
#include "fuzz.h"

static unsigned bit(bncore_status status)
{
    return 1U << status;
}

static int is_size(const bncore_problem *p)
{
    const long double most =
        (long double)(INT64_MAX / 128); /* values: doubles of scratch are counted, too */
    if (p->outer < 0 || p->channels < 0 || p->inner < 0) return 0;
    const long double n = (long double)p->outer * (long double)p->inner;
    return n <= most && fmaxl(n, 1.0L) * (long double)p->channels <= most;
}

static int is_zero(const uint64_t *numbers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (numbers[i]) return 0;
    return 1;
}

static int is_weights(const bncore_weights *w)
{
    const int flags = w->per_channel >> 1 || w->omit_nan >> 1 || w->filled >> 1;
    return w->size == sizeof *w && w->dtype >> 1 == 0 && !flags && !w->unused &&
           is_zero(w->reserved, sizeof w->reserved / 8);
}

/* Whether the structs have the sizes of this header, and all fields that it reserves are zero. */
static int is_struct(const bncore_problem *p)
{
    const bncore_fusion *f = p->fusion;
    if (p->size != sizeof *p || p->flags & ~(uint32_t)BNCORE_FLOAT64_SUMS || p->unused ||
        !is_zero(p->reserved, sizeof p->reserved / 8))
        return 0;
    if (p->weights && !is_weights(p->weights)) return 0;
    return !f || (f->size == sizeof *f && is_zero(f->reserved, sizeof f->reserved / 8));
}

/* The statuses that a call may return for the problem, as bits; 0 for a valid problem. */
static unsigned deserved(const bncore_problem *p)
{
    unsigned bits = 0;
    if (!is_struct(p)) bits |= bit(BNCORE_ERROR_STRUCT);
    if (p->dtype < BNCORE_FLOAT32 || p->dtype > BNCORE_INT32) bits |= bit(BNCORE_ERROR_DTYPE);
    if (!is_size(p)) bits |= bit(BNCORE_ERROR_SIZE);
    if (!(p->eps >= 0.0 && p->eps <= DBL_MAX)) bits |= bit(BNCORE_ERROR_EPS);
    if (p->n_threads < 1) bits |= bit(BNCORE_ERROR_THREADS);
    if (p->executor && !p->executor->parallel_for) bits |= bit(BNCORE_ERROR_NULL);
    const bncore_fusion *f = p->fusion;
    if (f && (f->activation < BNCORE_NO_ACTIVATION || f->activation > BNCORE_LEAKY_RELU))
        bits |= bit(BNCORE_ERROR_FUSION);
    const double most = p->dtype == BNCORE_FLOAT64 ? DBL_MAX : (double)FLT_MAX;
    if (f && f->activation == BNCORE_LEAKY_RELU && !(fabs(f->slope) <= most))
        bits |= bit(BNCORE_ERROR_FUSION);
    return bits;
}

enum { ARRAY = 64 * sizeof(double), ARRAYS = 4 };

/* Call the operation on four arrays that follow each other in memory; the first one is every input. memory NULL: all
 * arrays are NULL. */
static bncore_status call(operation o, const bncore_problem *p, char *memory)
{
    const double *in = (void *)memory;
    void *dst = memory ? memory + ARRAY : NULL;
    double *first = memory ? (void *)(memory + 2 * ARRAY) : NULL;
    double *second = memory ? (void *)(memory + 3 * ARRAY) : NULL;
    switch (o) {
    case MOMENTS:
        return bncore_moments(p, first, second, in);
    case NORMALIZE:
        return bncore_normalize(p, dst, in, in, in, in, in);
    case TRAIN:
        return bncore_train(p, dst, first, second, in, in, in);
    case GRAD_SUMS:
        return bncore_grad_sums(p, first, second, in, in, in, in);
    case GRAD_INPUT:
        return bncore_grad_input(p, dst, in, in, in, in, in, in, in, in);
    case TRAIN_BACKWARD:
        return bncore_train_backward(p, dst, first, second, in, in, in, in, in);
    default:
        return bncore_infer_backward(p, dst, first, second, in, in, in, in, in);
    }
}

static void check_refused(operation o, const bncore_problem *p, size_t shift, unsigned expected)
{
    const test_case c = {.operation = o,
                         .dtype = (bncore_dtype)p->dtype,
                         .outer = p->outer,
                         .channels = p->channels,
                         .inner = p->inner,
                         .eps = p->eps,
                         .threads = p->n_threads};
    _Alignas(double) char memory[ARRAYS * ARRAY + sizeof(double)];
    memset(memory, 0x5A, sizeof memory);
    if (deserved(p) && bncore_scratch_size(p) != 0)
        fail(&c, "a problem that is refused needs scratch");
    const bncore_status status = call(o, p, memory + shift);
    if (!(bit(status) & expected))
        fail(&c, "the status is \"%s\", the bits of those expected are %x",
             bncore_status_string(status), expected);
    for (size_t i = 0; i < sizeof memory; i++)
        if (memory[i] != 0x5A) fail(&c, "a call that is refused wrote");
}

typedef struct after_char {
    char before;
    double value;
} after_char;

void try_misaligned(reader *r)
{
    bncore_problem p;
    const operation o = (operation)below(r, OPERATIONS);
    bncore_problem_init(&p, sizeof p, (bncore_dtype)below(r, 4), 2, 3, 4);
    /* 32-bit x86 aligns doubles to 4 bytes, and takes those at other multiples of 4. */
    const size_t alignment =
        p.dtype == BNCORE_FLOAT64 ? sizeof(double) : offsetof(after_char, value);
    check_refused(o, &p, 1 + (size_t)below(r, alignment - 1), bit(BNCORE_ERROR_ALIGNMENT));
}

static int is_huge(const bncore_problem *p)
{
    const long double n = (long double)p->outer * (long double)p->inner;
    return fmaxl(n, 1.0L) * (long double)p->channels > 1e15L;
}

/* Call with a valid problem and NULL for all arrays. The call must be refused wherever there is a channel. */
static void check_nulls(operation o, const bncore_problem *p)
{
    const test_case c = {.operation = o,
                         .dtype = (bncore_dtype)p->dtype,
                         .outer = p->outer,
                         .channels = p->channels,
                         .inner = p->inner,
                         .threads = p->n_threads};
    const bncore_status status = call(o, p, NULL);
    const int takes = p->dtype < BNCORE_UINT8 || o == MOMENTS || o == NORMALIZE;
    const bncore_status valid = p->channels ? BNCORE_ERROR_NULL : BNCORE_OK;
    const bncore_status expected = takes ? valid : BNCORE_ERROR_DTYPE;
    /* Its scratch may be larger than memory can be. */
    if (status == BNCORE_ERROR_SIZE && is_huge(p)) return;
    if (status != expected)
        fail(&c, "without arrays: \"%s\", expected \"%s\"", bncore_status_string(status),
             bncore_status_string(expected));
    if (p->channels && p->outer && p->inner && bncore_scratch_size(p) == 0)
        fail(&c, "a problem with values needs no scratch");
}

static void change_weights(reader *r, bncore_weights *w)
{
    int32_t *const numbers[] = {&w->dtype, &w->per_channel, &w->omit_nan, &w->filled, &w->unused};
    const uint64_t which = below(r, 6);
    if (which < 5)
        *numbers[which] = below(r, 2) ? (int32_t)below(r, 3) : (int32_t)any_size(r);
    else
        w->reserved[below(r, sizeof w->reserved / 8)] = next(r, 8);
}

void try_anything(reader *r)
{
    const bncore_executor no_loop = {NULL, NULL};
    bncore_problem p;
    bncore_fusion f;
    bncore_weights w;
    bncore_fusion_init(&f, sizeof f);
    bncore_weights_init(&w, sizeof w);
    bncore_problem_init(&p, sizeof p, BNCORE_FLOAT32, 2, 3, 4);
    const operation o = (operation)below(r, OPERATIONS);
    for (uint64_t changes = below(r, 4); changes < 4; changes++) switch (below(r, 13)) {
        case 0:
            p.outer = any_size(r);
            break;
        case 1:
            p.channels = any_size(r);
            break;
        case 2:
            p.inner = any_size(r);
            break;
        case 3:
            p.eps = any_double(r);
            break;
        case 4:
            p.dtype = (int32_t)any_size(r);
            break;
        case 5:
            p.n_threads = (int32_t)any_size(r);
            break;
        case 6:
            p.executor = &no_loop;
            break;
        case 7: /* no size beyond the struct, for then the call would read the memory behind it */
            p.size = (uint32_t)(next(r, 1) % sizeof p);
            break;
        case 8:
            p.flags = (uint32_t)next(r, 4);
            break;
        case 9:
            p.reserved[below(r, sizeof p.reserved / 8)] = next(r, 8);
            break;
        case 10:
            f.reserved[below(r, sizeof f.reserved / 8)] = next(r, 8);
            break;
        case 11:
            change_weights(r, &w);
            p.weights = &w;
            break;
        default:
            f.activation = (int32_t)below(r, 2) ? (int32_t)below(r, 3) : (int32_t)any_size(r);
            f.slope = any_double(r);
            p.fusion = &f;
        }
    const unsigned expected = deserved(&p);
    if (expected)
        check_refused(o, &p, 0, expected);
    else
        check_nulls(o, &p);
}
