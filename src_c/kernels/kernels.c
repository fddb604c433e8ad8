/* The kernels of one instruction set. This file is compiled once for each line of isa.def, with the flags of that
 * line and -DBNCORE_ISA_NAME=<name>, and always with -ffp-contract=off, so that all instruction sets give the same
 * bits. With -DBNCORE_STORAGE=<number of a bncore_dtype> it holds the kernels of this storage type alone: a build that
 * compiles the four apart can use more processors. */
#ifndef BNCORE_STORAGE
#define STORED_AS(dtype) 1
#else
#define STORED_AS(dtype) (BNCORE_STORAGE == (dtype))
#endif

#define NOINLINE __attribute__((noinline, cold))
/* For what is called often, but not from the innermost loop: a copy for each caller would take the compiler long. */
#define ONCE_ONLY __attribute__((noinline))

#include "storage.h"

#include "chains.h"
#include "pairs.h"
#include "stream.h"
#include "weights.h"
#include "welford.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

enum {
    STRIP =
        1024, /* rows: the sums of so many columns stay in L1 and L2 with the data, and fit the stack */
    WEIGHTED_STRIP =
        256,          /* the same with weights that are laid out, which take a part of the stack */
    FLAGGED_ROWS = 8, /* rows: a chain */
    TAKEN_ROWS = 64, /* rows: so many are taken at once where nothing has to be laid out for them */
    ONE_ABOVE = 2 *
        BNCORE_PIVOT_ROWS, /* more than BNCORE_PIVOT_ROWS ones: a sum keeps both counts */
    SUM_ROWS = 8,          /* the same of moments, which need fewer registers */
    ROW_TILE = 4,          /* rows: rows that are added between a load and a store of these sums */
    /* Rows: from so many columns on, streamed rows are taken ROW_TILE at a time. The coefficients of fewer columns stay
     * in L1 anyway. */
    TILED_COLS = 2048,
    /* How many coefficients an elementwise kernel has; a mask makes them COEF_FIELDS. */
    FIELDS_normalize = NORMALIZE_FIELDS,
    FIELDS_grad_input = GRAD_INPUT_FIELDS,
    FIELDS_grad_frozen = GRAD_FROZEN_FIELDS,
    FIELDS_grad_group = GRAD_GROUP_FIELDS,
    LONG_IN_PAIRS = 96,    /* values of a run whose lines are computed in pairs */
    STREAM_AHEAD = 4096,   /* bytes, for inputs of 16 bits while the output is streamed */
    WEIGHTED_AHEAD = 1024, /* bytes, for inputs of weighted elementwise kernels */
    AHEAD = 65536          /* rows: bytes from the current values to those that are prefetched */
};

/* What weighted columns add up of their first values. */
enum { DIFFERENCES, SQUARES, SIGNS };

/* Rows: the sums of some columns in the current block. */
typedef struct running_columns {
    double *s, *q;
} running_columns;

#define CHAINED 0
#if STORED_AS(0)
#define T float
#define ACC float
#define MINUS_ZERO -0.0F
#define NAME(function) function##_f32
#include "kernels_tmpl.c"
#undef T
#undef ACC
#undef MINUS_ZERO
#undef NAME

/* Integers are computed with as float. */
#include "integers_kernels.c"
#endif

#if STORED_AS(1)
#define T double
#define ACC double
#define MINUS_ZERO -0.0
#define NAME(function) function##_f64
#include "kernels_tmpl.c"
#undef T
#undef ACC
#undef MINUS_ZERO
#undef NAME
#endif
#undef CHAINED

/* The reductions of 16-bit values add in chains. */
#define CHAINED 1
#define T uint16_t
#define ACC float
#define MINUS_ZERO 0x8000
#if STORED_AS(2)
#define NAME(function) function##_f16
#include "kernels_tmpl.c"
#undef NAME
#endif

#if STORED_AS(3)
#define NAME(function) function##_bf16
#include "kernels_tmpl.c"
#endif
