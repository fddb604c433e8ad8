/* The kernels of one instruction set. Built once per line of isa.def, with that line's flags and
 * -DBNCORE_ISA_NAME=<name>; always with -ffp-contract=off, so that all of them give the same bits. */
#define ALWAYS_INLINE __attribute__((always_inline))
#define NOINLINE __attribute__((noinline, cold))

#include "stream.h"
#include "welford.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

enum {
    STRIP =
        1024, /* rows: columns whose sums stay in L1 and L2 beside the data, and fit the stack */
    ROW_TILE = 4, /* rows: rows added between a load and a store of that state */
    /* Rows: columns from which streamed rows are taken ROW_TILE at a time: the coefficients of fewer stay in L1. */
    TILED_COLS = 2048,
    AHEAD = 65536 /* rows: bytes from the values under way to those that are being fetched */
};

/* Rows: s and q of STRIP columns in the block under way. */
typedef struct running_columns {
    double s[STRIP], q[STRIP];
} running_columns;

#define T float
#define ACC float
#define NAME(function) function##_f32
#include "kernels_tmpl.c"
#undef T
#undef ACC
#undef NAME

#define T double
#define ACC double
#define NAME(function) function##_f64
#include "kernels_tmpl.c"
#undef T
#undef ACC
#undef NAME

#define STRING_(a) #a
#define STRING(a) STRING_(a)

extern const bncore_kernels JOIN(bncore_kernels, BNCORE_ISA_NAME);
const bncore_kernels JOIN(bncore_kernels, BNCORE_ISA_NAME) = {STRING(BNCORE_ISA_NAME),
                                                              {&kernel_set_f32, &kernel_set_f64}};
