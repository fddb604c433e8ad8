/* bncore: batch normalization for CPUs. The public C interface (C11, C++17).
 *
 * Every array is (outer, channels, inner), C-contiguous: NCHW is (N, C, H*W), NHWC is (N*H*W, C, 1).
 * x, dy, y, dx are float or double, as problem->dtype says; statistics and parameters are double[channels]. The
 * addresses of x, dy, y, dx and of residuals are multiples of their values' size, those of the others and of scratch are
 * aligned as double is (BNCORE_ERROR_ALIGNMENT).
 * y and dx may be the same memory as x, dy or a residual (in place); other overlap of an output is undefined.
 * A call takes at most 40 KiB of its thread's stack, and so does a task on a thread of an executor.
 * Arguments are in the order: problem, outputs, inputs, parameters. NULL is allowed only where a
 * function says so. Every function is re-entrant, takes scratch of O(channels) (bncore_scratch_size), and gives the
 * same bits for any number of threads, executor, instruction set and place in memory (of a NaN, only that it is one).
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

#define BNCORE_VERSION "0.1.0"

/* Grows when a program that was compiled against an older header must be compiled again; the shared library is
 * libbncore.so.<this>. A host that loads the library by hand compares it with bncore_abi_version(). */
#define BNCORE_ABI_VERSION 2

typedef enum bncore_dtype { BNCORE_FLOAT32 = 0, BNCORE_FLOAT64 = 1 } bncore_dtype;

/* Every status: its name, its number, and what bncore_status_string() says. A number never changes its meaning. */
/* clang-format off */
#define BNCORE_STATUS_LIST(STATUS)                                                                   \
    STATUS(BNCORE_OK, 0, "ok")                                                                       \
    STATUS(BNCORE_ERROR_NULL, 1, "a pointer that must not be NULL is NULL")                          \
    STATUS(BNCORE_ERROR_SIZE, 2, "a size is negative, or the arrays are larger than memory can be")  \
    STATUS(BNCORE_ERROR_DTYPE, 3, "dtype is not one of bncore_dtype")                                \
    STATUS(BNCORE_ERROR_EPS, 4, "eps is negative, infinite or NaN")                                  \
    STATUS(BNCORE_ERROR_THREADS, 5, "n_threads is below 1")                                          \
    STATUS(BNCORE_ERROR_COUNT, 6, "count is not above 0")                                            \
    STATUS(BNCORE_ERROR_SCRATCH, 7, "scratch is smaller than bncore_scratch_size() says")            \
    STATUS(BNCORE_ERROR_MEMORY, 8, "there is no memory for scratch")                                 \
    STATUS(BNCORE_ERROR_ISA, 9, "there is no such instruction set, or this processor lacks it")      \
    STATUS(BNCORE_ERROR_FUSION, 10, "activation is not one of bncore_activation, or the slope of "   \
                                    "leaky relu is beyond the range of dtype")                       \
    STATUS(BNCORE_ERROR_EXECUTOR, 11, "there is no executor of this name, or it is not built in")    \
    STATUS(BNCORE_ERROR_STRUCT, 12, "a struct was not initialized, or it sets a field that this "    \
                                    "version of bncore does not know")                               \
    STATUS(BNCORE_ERROR_ALIGNMENT, 13, "an array is not aligned to the size of its values")
/* clang-format on */

#define BNCORE_STATUS_ENTRY(name, number, text) name = number,
typedef enum bncore_status { BNCORE_STATUS_LIST(BNCORE_STATUS_ENTRY) } bncore_status;

/* A host's own parallel-for: call task(arg, i) once for each i in [0, tasks), in any order and on
 * up to `threads` threads at once, and return when all are done; no exception may leave it. */
typedef struct bncore_executor {
    void (*parallel_for)(void *context, int64_t tasks, int32_t threads,
                         void (*task)(void *arg, int64_t i), void *arg);
    void *context;
} bncore_executor;

/* z <= 0 is the negative side, where relu gives 0 and leaky relu slope * z; a NaN is on the other side. */
typedef enum bncore_activation {
    BNCORE_NO_ACTIVATION = 0,
    BNCORE_RELU = 1,
    BNCORE_LEAKY_RELU = 2
} bncore_activation;

/* What bncore_normalize and bncore_train do to y = bn(x) before they write it, and what their backward functions
 * (bncore_train_backward, bncore_infer_backward) undo; the others only check it. With z = bn(x) + residual:
 *   forward:  y = activation(z)
 *   backward: g = dy * activation'(z) takes the place of dy in every formula, and goes to dresidual.
 * No mask is stored: backward computes z again by the same operations, from x, weight, bias and residual. */
typedef struct bncore_fusion {
    uint32_t size;        /* sizeof(bncore_fusion), as the caller was compiled */
    int32_t activation;   /* bncore_activation */
    double slope;         /* of BNCORE_LEAKY_RELU, rounded to dtype; finite */
    const void *residual; /* as x; NULL: none */
    /* Backward, as x: it may be the same memory as dy or residual, and shares none with x and dx; NULL: not wanted. */
    void *dresidual;
    const double *bias;   /* backward: double[channels] as in forward; NULL for 0 */
    uint64_t reserved[4]; /* zero: later versions take their fields from here */
} bncore_fusion;

/* Start from bncore_problem_init(). A call refuses (BNCORE_ERROR_STRUCT) a struct that was never initialized and one with
 * a reserved field that is not zero: it asks for something that this version does not know. A caller that was compiled
 * against a later header may have a longer struct, as long as all that this version does not know in it is zero. */
typedef struct bncore_problem {
    uint32_t size; /* sizeof(bncore_problem), as the caller was compiled */
    int32_t dtype; /* bncore_dtype */
    int64_t outer, channels, inner;
    double eps;                      /* added to the variance, >= 0 */
    int32_t n_threads;               /* at most so many threads, >= 1; small problems take fewer */
    uint32_t flags;                  /* zero: none is defined yet */
    const bncore_executor *executor; /* NULL: the process's (bncore_executor_set) */
    void *scratch;                   /* NULL: the call allocates and frees its own */
    size_t scratch_size;             /* bytes at scratch */
    const bncore_fusion *fusion;     /* NULL: none */
    uint64_t reserved[8];            /* zero: later versions take their fields from here */
} bncore_problem;

/* Fill *problem, of `size` = sizeof(bncore_problem) bytes: the sizes, eps = 1e-5, one thread, the default executor, no
 * scratch, no fusion, and zero elsewhere. Returns what an operation would say of it. */
BNCORE_API bncore_status bncore_problem_init(bncore_problem *problem, size_t size,
                                             bncore_dtype dtype, int64_t outer, int64_t channels,
                                             int64_t inner);

/* Fill *fusion, of `size` = sizeof(bncore_fusion) bytes: no activation, no residual, and zero elsewhere. */
BNCORE_API bncore_status bncore_fusion_init(bncore_fusion *fusion, size_t size);

/* The outer, channels and inner of a contiguous array, in this order, from the sizes of its axes, slowest in memory
 * first. The channels are the axes from `start` up to, but not including, `stop`. Nothing is checked. */
static inline void bncore_canonical(const int64_t *sizes, int rank, int start, int stop,
                                    int64_t canonical[3])
{
    canonical[0] = canonical[1] = canonical[2] = 1;
    for (int i = 0; i < rank; i++) canonical[(i >= start) + (i >= stop)] *= sizes[i];
}

/* Bytes of scratch that any of the operations below needs: at most 64 partial results per channel where inner >= 16
 * (2 KiB). Else as many per column, of which a channel has inner, or up to 240 where channels * inner <= 256 and rows
 * are read several at a time (0.5 MiB per channel, 9 MiB in all). 0 for a problem that no operation accepts. */
BNCORE_API size_t bncore_scratch_size(const bncore_problem *problem);

/* Per channel the mean and m2, the sum of squared deviations from it, of n = outer * inner values. n = 0: both 0. */
BNCORE_API bncore_status bncore_moments(const bncore_problem *problem, double *mean, double *m2,
                                        const void *x);

/* y = (x - mean) * weight / sqrt(var + eps) + bias. weight, bias: NULL for 1 and 0. Also inference. */
BNCORE_API bncore_status bncore_normalize(const bncore_problem *problem, void *y, const void *x,
                                          const double *mean, const double *var,
                                          const double *weight, const double *bias);

/* bncore_moments, then bncore_normalize with var = m2 / n, to the bit. */
BNCORE_API bncore_status bncore_train(const bncore_problem *problem, void *y, double *mean,
                                      double *m2, const void *x, const double *weight,
                                      const double *bias);

/* Per channel sum(dy) and sum(dy * xhat), xhat = (x - mean) / sqrt(var + eps): the gradients of bias and weight. */
BNCORE_API bncore_status bncore_grad_sums(const bncore_problem *problem, double *sum_dy,
                                          double *sum_dy_xhat, const void *dy, const void *x,
                                          const double *mean, const double *var);

/* dx = weight / sqrt(var + eps) * (dy - sum_dy / count - xhat * sum_dy_xhat / count). weight: NULL for 1.
 * count: how many values per channel the sums and the statistics were taken over (all ranks and pieces). */
BNCORE_API bncore_status bncore_grad_input(const bncore_problem *problem, void *dx, const void *dy,
                                           const void *x, const double *mean, const double *var,
                                           const double *sum_dy, const double *sum_dy_xhat,
                                           double count, const double *weight);

/* bncore_grad_sums, then bncore_grad_input with count = outer * inner, to the bit. */
BNCORE_API bncore_status bncore_train_backward(const bncore_problem *problem, void *dx,
                                               double *sum_dy, double *sum_dy_xhat, const void *dy,
                                               const void *x, const double *mean, const double *var,
                                               const double *weight);

/* The same with frozen statistics: dx = dy * weight / sqrt(var + eps). */
BNCORE_API bncore_status bncore_infer_backward(const bncore_problem *problem, void *dx,
                                               double *sum_dy, double *sum_dy_xhat, const void *dy,
                                               const void *x, const double *mean, const double *var,
                                               const double *weight);

/* One English sentence for a status. */
BNCORE_API const char *bncore_status_string(bncore_status status);
BNCORE_API const char *bncore_version(void);
BNCORE_API int bncore_abi_version(void);

/* The instruction set in use, and the i-th that this processor can run, best first (NULL past the last). */
BNCORE_API const char *bncore_isa(void);
BNCORE_API const char *bncore_isa_available(int i);

/* Choose by name; NULL or "": the best. Not to be called while an operation runs. The environment
 * variable BNCORE_ISA does the same before the first operation: bncore_isa_init() reports its errors. */
BNCORE_API bncore_status bncore_isa_set(const char *name);
BNCORE_API bncore_status bncore_isa_init(void);

/* Who runs the parallel loops: the problem's executor; else the host's that is set for the process; else the default.
 *
 * The default has a name: "own", the library's own worker threads, which is the first choice; "openmp", where it was
 * built in; "serial", the calling thread alone. Choose it by name; NULL or "" is the first choice. May be called at any
 * time, from any thread: each parallel loop takes what is chosen when it begins. The environment variable
 * BNCORE_EXECUTOR does the same before the first operation: bncore_executor_init() reports its errors. Calls return
 * BNCORE_ERROR_EXECUTOR while it names something else. */
BNCORE_API bncore_status bncore_executor_choose(const char *name);
BNCORE_API bncore_status bncore_executor_init(void);

/* The name of the default in use (NULL while BNCORE_EXECUTOR is wrong), and of the i-th that there is (NULL past the
 * last). */
BNCORE_API const char *bncore_executor_name(void);
BNCORE_API const char *bncore_executor_available(int i);

/* The most threads that the default executor uses for a call, whatever its problem says; 0, as at the start: no
 * limit of this kind. BNCORE_ERROR_THREADS, and nothing changes, where it is below 0. */
BNCORE_API bncore_status bncore_max_threads_set(int32_t threads);
BNCORE_API int32_t bncore_max_threads(void);

/* The floating-point environment of the calling thread: rounding mode, whether subnormal numbers are kept, exceptions.
 * Every operation computes in the default one (round to nearest, subnormal numbers kept, exceptions masked), on every
 * thread, and gives the caller its own back. A host that converts parameters or results itself does it between these
 * two, to have the same bits: enter saves the caller's in *own and sets the default, leave sets what was saved. */
typedef struct bncore_environment {
    uint64_t saved[8];
} bncore_environment;
BNCORE_API void bncore_environment_enter(bncore_environment *own);
BNCORE_API void bncore_environment_leave(const bncore_environment *own);

/* How many worker threads the library has created. They are created when a call first needs them, and sleep between
 * calls; their names are bncore-1, bncore-2, ... They end when the library is unloaded or the process exits. A forked
 * child has none, and creates its own. */
BNCORE_API int bncore_workers(void);

/* The host's executor of every call whose problem names none; NULL, as at the start: the default one.
 * The struct is not copied: it stays valid and unchanged until another one is set and the calls that began before have
 * returned. May be called at any time, from any thread: each parallel loop takes the one that is set when it begins.
 * BNCORE_ERROR_NULL, and nothing changes, where it has no parallel_for. A forked child starts with none. */
BNCORE_API bncore_status bncore_executor_set(const bncore_executor *executor);
BNCORE_API const bncore_executor *bncore_executor_now(void);

/* OpenMP: how many threads its runtime would use now (1 where it was not built in), and whether it is built in. */
BNCORE_API int bncore_openmp_max_threads(void);
BNCORE_API int bncore_has_openmp(void);

/* Whether this process is a forked child. OpenMP, if chosen, runs serially there: its threads were the parent's. */
BNCORE_API int bncore_in_forked_child(void);

#ifdef __cplusplus
}
#endif
#endif
