/* A case is one call of an operation of bncore.h, with everything about it that may vary.
 *
 * The programs in this folder make cases from lists, random numbers or the bytes of a fuzzer. They run them on arrays
 * that are surrounded by guarded memory, and compare the results with a plain loop (expected.c) and with each other. */
#ifndef CASES_H
#define CASES_H

#include <stddef.h>
#include <stdint.h>

#include "bncore.h"

typedef enum operation {
    MOMENTS,
    NORMALIZE,
    TRAIN,
    GRAD_SUMS,
    GRAD_INPUT,
    TRAIN_BACKWARD,
    INFER_BACKWARD,
    OPERATIONS
} operation;

/* What the arrays hold. SPECIAL sprinkles NaN, infinities and the largest numbers into every other channel. */
typedef enum contents { NORMAL, CONSTANT, FAR_FROM_ZERO, SUBNORMAL, SPECIAL, CONTENTS } contents;

/* The array that y or dx shares its memory with. */
typedef enum place { APART, OVER_X, OVER_DY, OVER_RESIDUAL, PLACES } place;

/* What runs the tasks: the library, a host that takes them backwards, or a host with threads. */
typedef enum host { NO_HOST, BACKWARDS, ON_THREADS, HOSTS } host;

/* Masks and other weights, one for all channels or (of x) one for each value. */
typedef enum weight_kind {
    NO_WEIGHTS,
    MASK,
    MASK_OF_X,
    NUMBERS,
    NUMBERS_OF_X,
    ONLY_NANS, /* all are 1 but for the NaNs of x */
    WEIGHT_KINDS
} weight_kind;

typedef struct test_case {
    operation operation;
    bncore_dtype dtype;
    int64_t outer, channels, inner;
    double eps;
    contents contents;
    uint64_t seed;
    int weight, bias; /* whether they are given */
    bncore_activation activation;
    double slope;
    int residual, dresidual; /* whether they are given */
    weight_kind weights;
    int omit_nan, filled, float64_sums;

    /* The settings that must not change any bit of the results. */
    place place, dresidual_place;
    host host;
    int32_t threads;
    int own_scratch; /* the caller gives scratch of exactly the size that bncore_scratch_size returns */
    int64_t shift; /* all arrays start so many items behind a multiple of 64 bytes */
} test_case;

/* The inputs of a case. The arrays x, dy and residual hold `bytes` bytes; statistics and parameters hold one double per
 * channel. They depend only on the sizes, dtype, contents and seed of the case. */
typedef struct inputs {
    size_t bytes;
    void *x, *dy, *residual, *weights;
    double *mean, *var, *weight, *bias, *sum_dy, *sum_dy_xhat, *count;
} inputs;

enum { FILL = 3 }; /* what y is where there is no weight and the weights are filled */

/* The outputs of a case: y or dx, dresidual, the two results per channel, and the count of weights. NULL where the operation has none. */
typedef struct outputs {
    void *dst, *dresidual;
    double *results[2], *count;
} outputs;

size_t item_size(const test_case *c);
double read_value(bncore_dtype dtype, const void *array, int64_t i);
void write_value(bncore_dtype dtype, void *array, int64_t i, double value); /* rounds to dtype */
double last_digit(bncore_dtype dtype, double value); /* the distance to the next larger size */
int64_t values(const test_case *c);
int is_backward(operation o);   /* it reads dy */
int writes_array(operation o);  /* it writes y or dx */
int gives_results(operation o); /* it writes two numbers per channel */
int takes_fusion(operation o);  /* activation and residual mean something to it */
int gives_dresidual(const test_case *c);
int gives_moments(operation o);

/* Resets the settings that the header forbids or that the operation does not have, so that any combination becomes
 * valid. */
void make_valid(test_case *c);

/* Weights: bytes of all and of one, that of value e of a channel, and how they are made. What has no weight becomes any
 * number. */
size_t weight_bytes(const test_case *c);
size_t weight_size(const test_case *c);
double weight_at(const test_case *c, const inputs *in, int64_t ch, int64_t e);
void make_weights(const test_case *c, inputs *in, uint64_t *state);

inputs make_inputs(const test_case *c);
void free_inputs(inputs *in);

/* Runs the case on copies of the inputs. On success the results are in *out, for free_outputs; on an error *out is
 * empty. Ends the program where the call wrote beside its outputs, or wrote anything and then failed. */
bncore_status run_case(const test_case *c, const inputs *in, outputs *out);
void free_outputs(outputs *out);

/* run_case calls this function with 1 just before it calls the library, and with 0 just after, so that a program can
 * watch only what the library does. NULL: it calls no function. */
extern void (*around_call)(int inside);

/* Where the results are wrong, these two functions describe the case and end the program. */
void check_against_plain_loop(const test_case *c, const inputs *in, const outputs *out);
void check_same_bits(const test_case *c, const outputs *got, const outputs *expected);

/* Prints the case and what is wrong with it, and ends the program. */
_Noreturn void fail(const test_case *c, const char *what, ...)
    __attribute__((format(printf, 2, 3)));

/* The executor of a host; NULL for NO_HOST. */
const bncore_executor *executor_of(host h);

/* Allocates memory, or ends the program where there is none. */
void *must_have(size_t bytes);

/* Adds n values to a digest (FNV-1a), which begins with DIGEST. Any NaN is the same. */
#define DIGEST UINT64_C(0xcbf29ce484222325)
uint64_t digest(uint64_t state, bncore_dtype dtype, const void *array, int64_t n);

/* A random number generator (xorshift64*), the same on every machine. */
uint64_t random_bits(uint64_t *state);

#endif
