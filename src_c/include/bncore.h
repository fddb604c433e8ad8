/* bncore: batch normalization for CPUs. This is the public C interface (C11, C++17).
 *
 * Every array has the shape (outer, channels, inner) and is C-contiguous: NCHW is (N, C, H*W), NHWC is
 * (N*H*W, C, 1). x, dy, y, dx and residuals all have the type that problem->dtype says: float, double, or the 16 bits of
 * a float16 or bfloat16. Statistics and parameters are double[channels]. In bncore_moments and bncore_normalize, x may have
 * integers; then y and a residual have floats.
 *
 * A value of 16 bits is computed with as a float, which holds it exactly, and a result is rounded once, to nearest even,
 * where it is stored. Subnormal numbers are kept, what is too large becomes an infinity, and a NaN stays a NaN.
 *
 * The addresses of x, dy, y, dx and of residuals must be multiples of the size of their values. The addresses of all
 * other arrays and of scratch must be aligned as double is. A call refuses any other address (BNCORE_ERROR_ALIGNMENT).
 *
 * A pointer may be NULL only where the description of a function or a field says so, or where the array holds no value.
 * y and dx may be the same memory as x, dy or a residual; the operation then works in place. If an output overlaps with
 * another array in any other way, the results are undefined.
 *
 * The arguments of every operation have the order: problem, outputs, inputs, parameters. Every operation is
 * re-entrant and takes scratch of O(channels) (bncore_scratch_size). It gives the same bits for any number of threads,
 * executor, instruction set and place in memory; only the bits of a NaN may differ.
 *
 * A call takes at most 40 KiB of its thread's stack, and so does a task on a thread of an executor.
 */
#ifndef BNCORE_H
#define BNCORE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define BNCORE_API
#else
#define BNCORE_API __attribute__((visibility("default")))
#endif

/* The version of this header. bncore_version() returns that of the library. */
#define BNCORE_VERSION "0.2.0"

/* This number grows when programs that were compiled against an older header must be compiled again. The shared library
 * is named libbncore.so.<this number>. A host that loads the library by hand compares the number with
 * bncore_abi_version(). */
#define BNCORE_ABI_VERSION 2

/* What arrays of x's shape consist of. */
typedef enum bncore_dtype {
    BNCORE_FLOAT32 = 0,
    BNCORE_FLOAT64 = 1,
    BNCORE_FLOAT16 = 2,  /* IEEE 754's binary16, 2 bytes */
    BNCORE_BFLOAT16 = 3, /* the upper half of a float, 2 bytes */
    /* Integers, which bncore_moments and bncore_normalize read as they are. A bool is a BNCORE_UINT8 of 0 or 1. */
    BNCORE_UINT8 = 4,
    BNCORE_INT8 = 5,
    BNCORE_UINT16 = 6,
    BNCORE_INT16 = 7,
    BNCORE_UINT32 = 8,
    BNCORE_INT32 = 9
} bncore_dtype;

/* bncore_problem.flags is a sum of these. */
typedef enum bncore_flag {
    /* Add up the moments as those of the same values in BNCORE_FLOAT64, whatever the dtype is. Without it, values of 16
     * bits may be added in short chains of float first, which is faster and costs the variance digits beyond 2^-22, and
     * values of BNCORE_FLOAT32 may be added about 0, which changes last bits. It changes no gradient. */
    BNCORE_FLOAT64_SUMS = 1
} bncore_flag;

/* Every status has a name, a number, and a text that bncore_status_string() returns. A number never changes its
 * meaning. */
/* clang-format off */
#define BNCORE_STATUS_LIST(STATUS)                                                                   \
    STATUS(BNCORE_OK, 0, "ok")                                                                       \
    STATUS(BNCORE_ERROR_NULL, 1, "a pointer that must not be NULL is NULL")                          \
    STATUS(BNCORE_ERROR_SIZE, 2, "a size is negative, or the arrays are larger than memory can be")  \
    STATUS(BNCORE_ERROR_DTYPE, 3, "dtype is not one of bncore_dtype, or not one of the operation's") \
    STATUS(BNCORE_ERROR_EPS, 4, "eps is negative, infinite or NaN")                                  \
    STATUS(BNCORE_ERROR_THREADS, 5, "n_threads is below 1")                                          \
    STATUS(BNCORE_ERROR_COUNT, 6, "a count is not above 0, or, with weights, not 0 or more")         \
    STATUS(BNCORE_ERROR_SCRATCH, 7, "scratch is smaller than bncore_scratch_size() says")            \
    STATUS(BNCORE_ERROR_MEMORY, 8, "there is no memory for scratch")                                 \
    STATUS(BNCORE_ERROR_ISA, 9, "there is no such instruction set, or this processor lacks it")      \
    STATUS(BNCORE_ERROR_FUSION, 10, "activation is not one of bncore_activation, or the slope of "   \
                                    "leaky relu is beyond the range of dtype")                       \
    STATUS(BNCORE_ERROR_EXECUTOR, 11, "there is no executor of this name, or it is not built in")    \
    STATUS(BNCORE_ERROR_STRUCT, 12, "a struct was not initialized, or it sets a field or a flag "    \
                                    "that this version of bncore does not know")                               \
    STATUS(BNCORE_ERROR_ALIGNMENT, 13, "an array is not aligned to the size of its values")
/* clang-format on */

#define BNCORE_STATUS_ENTRY(name, number, text) name = number,
typedef enum bncore_status { BNCORE_STATUS_LIST(BNCORE_STATUS_ENTRY) } bncore_status;

/* A host's own parallel-for. It calls task(arg, i) once for each i in [0, tasks), in any order and on up to `threads`
 * threads at once, and returns when all tasks are done. No exception may leave it. */
typedef struct bncore_executor {
    /* Gets context and arg as they are. */
    void (*parallel_for)(void *context, int64_t tasks, int32_t threads,
                         void (*task)(void *arg, int64_t i), void *arg);
    void *context; /* the host's own; may be NULL */
} bncore_executor;

/* Where z <= 0, relu gives 0 and leaky relu gives slope * z. Both leave any other z, a NaN included, as it is. */
typedef enum bncore_activation {
    BNCORE_NO_ACTIVATION = 0,
    BNCORE_RELU = 1,
    BNCORE_LEAKY_RELU = 2
} bncore_activation;

/* What the operations compute together with batch normalization, in the same pass over memory. With
 * z = bn(x) + residual:
 *   forward (bncore_normalize, bncore_train): y = activation(z);
 *   backward (bncore_train_backward, bncore_infer_backward): g = dy * activation'(z) takes the place of dy in every
 *   formula, and is written to dresidual.
 * The other operations only check the struct. Forward stores no mask: backward computes z again, with the same
 * operations, from x, weight, bias and residual. */
typedef struct bncore_fusion {
    uint32_t size;      /* sizeof(bncore_fusion) in the header that the caller was compiled with */
    int32_t activation; /* bncore_activation */
    double
        slope; /* of BNCORE_LEAKY_RELU; finite. It is rounded to double or float, as computed with */
    const void *residual; /* of the shape and dtype of x; NULL: there is none */
    /* For backward: of the shape and dtype of x. It may be the same memory as dy or residual, and must share no memory
     * with x and dx. NULL: it is not wanted. */
    void *dresidual;
    const double *bias;   /* for backward: double[channels], the bias of forward; NULL for 0 */
    uint64_t reserved[4]; /* must be zero; fields of later versions will stand here */
} bncore_fusion;

/* What the weights of values are. */
typedef enum bncore_weight_dtype {
    BNCORE_WEIGHT_UINT8 = 0,  /* 0 or 1: a mask */
    BNCORE_WEIGHT_FLOAT64 = 1 /* finite, >= 0 */
} bncore_weight_dtype;

/* How much each value of x counts: as so many copies of it. A value of weight 0 takes no part in any statistic, whatever it
 * is, a NaN included. With w for the weight of a value, and all sums over a channel,
 *   count = sum(w), mean = sum(w * x) / count, m2 = sum(w * (x - mean)^2).
 * A channel whose weights are all 0 has the count 0, the mean NaN and the m2 0.
 *
 * Forward computes y of every value, whatever its weight is, unless `filled` is set. Backward takes the gradient of every
 * y, and gives dx = a * (g - w / count * (sum_dy + xhat * sum_dy_xhat)) with a = weight / sqrt(var + eps). But a value of
 * weight 0 adds nothing to the sums and has dx = 0 if its g is 0 or `filled` is set. So what x holds there reaches no result
 * unless the loss depends on that y.
 *
 * bncore_normalize and bncore_infer_backward, whose statistics are given, use the weights for this alone. Weights that are
 * all 1 give the bits of a call without weights. No call checks the values. */
typedef struct bncore_weights {
    uint32_t size; /* sizeof(bncore_weights) in the header that the caller was compiled with */
    int32_t dtype; /* bncore_weight_dtype, of values */
    /* 0: the shape of values is (outer, 1, inner), one weight for all channels. 1: it is that of x. */
    int32_t per_channel;
    int32_t omit_nan;   /* 1: a NaN of x has the weight 0 */
    int32_t filled;     /* 1: where the weight is 0, y is `fill`, and dx and dresidual are 0 */
    int32_t unused;     /* must be zero */
    const void *values; /* C-contiguous, aligned to the size of its values. NULL: all are 1 */
    /* double[channels]: bncore_moments and bncore_train write the count of each channel, and bncore_train_backward reads
     * it. The other operations do not look at it. */
    double *count;
    double fill;          /* is rounded as y is */
    uint64_t reserved[4]; /* must be zero; fields of later versions will stand here */
} bncore_weights;

/* bncore_problem_init() fills this struct first; the caller then changes what it needs. A call refuses a struct that
 * was never initialized, and one whose reserved fields are not all zero, because it asks for something that this
 * version does not know (BNCORE_ERROR_STRUCT). A caller that was compiled with a later header may pass a longer
 * struct, as long as all fields that this version does not know are zero. The same holds for bncore_fusion and
 * bncore_weights. */
typedef struct bncore_problem {
    uint32_t size; /* sizeof(bncore_problem) in the header that the caller was compiled with */
    int32_t dtype; /* bncore_dtype */
    int64_t outer, channels, inner; /* the sizes of x, >= 0; bncore_canonical() computes them */
    double eps;                     /* is added to the variance; finite, >= 0 */
    int32_t n_threads; /* the most threads of a call, >= 1; small problems take fewer */
    uint32_t flags;    /* of bncore_flag; all other bits must be zero */
    const bncore_executor *executor; /* NULL: the process's executor (bncore_executor_set) */
    void *scratch;                   /* NULL: the call allocates scratch and frees it */
    size_t scratch_size;             /* bytes at scratch; at least bncore_scratch_size() */
    const bncore_fusion *fusion;     /* NULL: batch normalization alone */
    const bncore_weights *weights;   /* NULL: every value counts once */
    const void *unused;              /* must be NULL */
    uint64_t reserved[6];            /* must be zero; fields of later versions will stand here */
} bncore_problem;

/* Fill *problem, which has `size` = sizeof(bncore_problem) bytes, with the dtype and the sizes given, eps = 1e-5, one
 * thread, the process's executor, no scratch, no fusion and no weights; all else becomes zero. Returns the status that an
 * operation would return for this problem. */
BNCORE_API bncore_status bncore_problem_init(bncore_problem *problem, size_t size,
                                             bncore_dtype dtype, int64_t outer, int64_t channels,
                                             int64_t inner);

/* Fill *fusion, which has `size` = sizeof(bncore_fusion) bytes: no activation, no residual; all else becomes zero.
 * Returns the status that an operation would return for this struct. */
BNCORE_API bncore_status bncore_fusion_init(bncore_fusion *fusion, size_t size);

/* Fill *weights, which has `size` = sizeof(bncore_weights) bytes: all weights are 1, and count is NULL; all else becomes
 * zero. Returns the status that bncore_normalize would return for this struct. */
BNCORE_API bncore_status bncore_weights_init(bncore_weights *weights, size_t size);

/* Compute outer, channels and inner, in this order, of a contiguous array from the sizes of its axes. The axis that is
 * slowest in memory comes first. The channels are the axes from `start` up to, but not including, `stop`. The function
 * checks nothing. */
static inline void bncore_canonical(const int64_t *sizes, int rank, int start, int stop,
                                    int64_t canonical[3])
{
    canonical[0] = canonical[1] = canonical[2] = 1;
    for (int i = 0; i < rank; i++) canonical[(i >= start) + (i >= stop)] *= sizes[i];
}

/* Return the bytes of scratch that are enough for each of the operations below. Where inner >= 16, they hold at most
 * 64 partial results per channel (2 KiB). Otherwise they hold at most 64 per column. A channel has `inner` columns,
 * or up to 240 where channels * inner <= 256, because several rows are then read as one (0.5 MiB per channel, 9 MiB
 * in all). Returns 0 for a problem that no operation accepts. */
BNCORE_API size_t bncore_scratch_size(const bncore_problem *problem);

/* Compute for each channel, over its n = outer * inner values, the mean and m2, the sum of the squared deviations
 * from the mean. Where n = 0, they are NaN and 0. Of integers they are the exact mean and m2, each rounded once;
 * integers take no weights. */
BNCORE_API bncore_status bncore_moments(const bncore_problem *problem, double *mean, double *m2,
                                        const void *x);

/* y = (x - mean) * weight / sqrt(var + eps) + bias. This is inference, too. weight NULL: 1; bias NULL: 0. Integers are
 * computed with as floats. Those of 32 bits, which float does not hold, are subtracted from the mean in double first. y is
 * not in the memory of an x of integers. */
BNCORE_API bncore_status bncore_normalize(const bncore_problem *problem, void *y, const void *x,
                                          const double *mean, const double *var,
                                          const double *weight, const double *bias);

/* Compute what bncore_moments and then bncore_normalize with var = m2 / n compute, with the same bits. With weights, n
 * is the count of each channel. */
BNCORE_API bncore_status bncore_train(const bncore_problem *problem, void *y, double *mean,
                                      double *m2, const void *x, const double *weight,
                                      const double *bias);

/* Compute for each channel sum(dy) and sum(dy * xhat), where xhat = (x - mean) / sqrt(var + eps). They are the
 * gradients by bias and by weight. */
BNCORE_API bncore_status bncore_grad_sums(const bncore_problem *problem, double *sum_dy,
                                          double *sum_dy_xhat, const void *dy, const void *x,
                                          const double *mean, const double *var);

/* dx = weight / sqrt(var + eps) * (dy - sum_dy / count - xhat * sum_dy_xhat / count). weight NULL: 1.
 * count is, for each channel, the number of values that the sums and the statistics were taken over, or the sum of their
 * weights. Where the batch is spread over ranks or pieces, these are the values of all of them. A count is > 0; with
 * weights it may be 0. */
BNCORE_API bncore_status bncore_grad_input(const bncore_problem *problem, void *dx, const void *dy,
                                           const void *x, const double *mean, const double *var,
                                           const double *sum_dy, const double *sum_dy_xhat,
                                           const double *count, const double *weight);

/* Compute what bncore_grad_sums and then bncore_grad_input with count = outer * inner, or the count of the weights,
 * compute, with the same bits. */
BNCORE_API bncore_status bncore_train_backward(const bncore_problem *problem, void *dx,
                                               double *sum_dy, double *sum_dy_xhat, const void *dy,
                                               const void *x, const double *mean, const double *var,
                                               const double *weight);

/* The same with frozen statistics, which do not depend on x: dx = dy * weight / sqrt(var + eps). */
BNCORE_API bncore_status bncore_infer_backward(const bncore_problem *problem, void *dx,
                                               double *sum_dy, double *sum_dy_xhat, const void *dy,
                                               const void *x, const double *mean, const double *var,
                                               const double *weight);

/* Group norm: every group of channels of every sample has its own statistics. `samples` samples follow one another in memory,
 * and the problem has the sizes of one: the shape of x is (samples, outer, channels, inner). The channels are divided into
 * `groups` groups of neighbouring ones, of which one value each is in mean and m2 (double[samples * groups]); weight and bias
 * are double[channels].
 *
 * With as many groups as channels this is instance norm. With one group and outer = inner = 1 it is layer norm over the last
 * axis, whose values each have a weight.
 *
 * The problem must have no fusion and no weights (BNCORE_ERROR_STRUCT), and its scratch is not used. */
BNCORE_API bncore_status bncore_group_norm(const bncore_problem *problem, int64_t samples,
                                           int64_t groups, void *y, double *mean, double *m2,
                                           const void *x, const double *weight, const double *bias);

/* The gradients of bncore_group_norm. sum_dy and sum_dy_xhat, double[channels], are those by bias and by weight, and
 * dx = (weight * dy - (a + xhat * b) / n) / sqrt(var + eps), where a and b are the sums of weight * dy and of weight * dy * xhat
 * over the n = outer * channels / groups * inner values of a group. var is m2 / n. */
BNCORE_API bncore_status bncore_group_norm_backward(const bncore_problem *problem, int64_t samples,
                                                    int64_t groups, void *dx, double *sum_dy,
                                                    double *sum_dy_xhat, const void *dy,
                                                    const void *x, const double *mean,
                                                    const double *var, const double *weight);

/* Return what a status means, in English. */
BNCORE_API const char *bncore_status_string(bncore_status status);

/* Return the BNCORE_VERSION and the BNCORE_ABI_VERSION that the library was compiled with. */
BNCORE_API const char *bncore_version(void);
BNCORE_API int bncore_abi_version(void);

/* The name of the instruction set in use (NULL while BNCORE_ISA is wrong), and that of the i-th that this processor can
 * run, the best first (NULL past the last). */
BNCORE_API const char *bncore_isa(void);
BNCORE_API const char *bncore_isa_available(int i);

/* Choose the instruction set by its name; NULL or "" chooses the best. Do not call it while an operation runs. The
 * environment variable BNCORE_ISA does the same before the first operation, and bncore_isa_init() reports its errors.
 * Operations return BNCORE_ERROR_ISA while it names something else. */
BNCORE_API bncore_status bncore_isa_set(const char *name);
BNCORE_API bncore_status bncore_isa_init(void);

/* The problem's executor runs the parallel loops of a call. Where the problem has none, the host's executor of the
 * process runs them (bncore_executor_set), and where that is not set, the default executor.
 *
 * The default executor has a name: "own" (the library's own worker threads; the first choice), "openmp" (where it was
 * built in) or "serial" (the calling thread alone). bncore_executor_choose chooses it by its name; NULL or "" is the
 * first choice. It may be called at any time and from any thread: each parallel loop takes the executor that is
 * chosen when the loop begins. The environment variable BNCORE_EXECUTOR does the same before the first operation, and
 * bncore_executor_init() reports its errors. Operations return BNCORE_ERROR_EXECUTOR while it names something else. */
BNCORE_API bncore_status bncore_executor_choose(const char *name);
BNCORE_API bncore_status bncore_executor_init(void);

/* The name of the default executor in use (NULL while BNCORE_EXECUTOR is wrong), and that of the i-th that can be
 * chosen (NULL past the last). */
BNCORE_API const char *bncore_executor_name(void);
BNCORE_API const char *bncore_executor_available(int i);

/* Limit the threads that the default executor uses for a call, whatever the problem says. 0, as at the start, is no
 * limit. Below 0 nothing changes, and the function returns BNCORE_ERROR_THREADS. */
BNCORE_API bncore_status bncore_max_threads_set(int32_t threads);
BNCORE_API int32_t bncore_max_threads(void);

/* The floating-point environment of a thread: the rounding mode, whether subnormal numbers are kept, and the masks of
 * exceptions. On every thread, an operation computes in the default environment (round to nearest, subnormal numbers
 * kept, exceptions masked), and then gives the thread its own environment back. A host that converts parameters or
 * results itself gets the same bits if it converts between these two calls: bncore_environment_enter saves the
 * calling thread's environment in *own and sets the default one; bncore_environment_leave sets what was saved. */
typedef struct bncore_environment {
    uint64_t saved[8]; /* of bncore_environment_enter(); not to be changed */
} bncore_environment;
BNCORE_API void bncore_environment_enter(bncore_environment *own);
BNCORE_API void bncore_environment_leave(const bncore_environment *own);

/* Return how many worker threads the library has. It creates them when a call first needs them, and they sleep between
 * calls. Their names are bncore-1, bncore-2, ... They end when the library is unloaded or the process exits. A forked
 * child starts without workers and creates its own. */
BNCORE_API int bncore_workers(void);

/* Set the host's executor for every call whose problem has none. NULL, as at the start, leaves these calls to the
 * default executor. The struct is not copied: it must stay valid and unchanged until another one is set and the calls
 * that began before have returned. The function may be called at any time and from any thread: each parallel loop
 * takes the executor that is set when the loop begins. An executor without parallel_for changes nothing, and the
 * function returns BNCORE_ERROR_NULL. A forked child starts without a host's executor. */
BNCORE_API bncore_status bncore_executor_set(const bncore_executor *executor);
BNCORE_API const bncore_executor *bncore_executor_now(void);

/* How many threads the OpenMP runtime would use now (1 where OpenMP was not built in), and whether it was built in. */
BNCORE_API int bncore_openmp_max_threads(void);
BNCORE_API int bncore_has_openmp(void);

/* Whether this process is a forked child. There the executor "openmp" runs on the calling thread alone, because the
 * threads of OpenMP were the parent's. */
BNCORE_API int bncore_in_forked_child(void);

#ifdef __cplusplus
}
#endif
#endif
