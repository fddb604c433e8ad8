/* Stops the compilation where the compiler may change the arithmetic that the code spells out, or where that is not IEEE
 * 754. bncore's results have the same bits everywhere only because of it. setup.py and CMakeLists.txt pass flags that
 * cancel these modes, behind the flags of the user; this file is for other builds.
 *
 * Some modes have no macro. With GCC it is contraction: compile with -ffp-contract=off. With clang they are contraction and
 * reassociation, which a pragma below cancels, and -freciprocal-math and -fno-signed-zeros: do not use these two. */
#ifndef BNCORE_ARITHMETIC_H
#define BNCORE_ARITHMETIC_H

#include <float.h>

#ifdef __FAST_MATH__
#error "bncore's results rest on IEEE arithmetic: compile it without -ffast-math"
#endif
#ifdef __ASSOCIATIVE_MATH__
#error "bncore's sums have a fixed order: compile it without -fassociative-math"
#endif
#ifdef __RECIPROCAL_MATH__
#error "bncore's quotients are rounded once: compile it without -freciprocal-math"
#endif
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "bncore keeps infinities and NaNs: compile it without -ffinite-math-only"
#endif
#ifdef __NO_SIGNED_ZEROS__
#error "bncore keeps the sign of zero: compile it without -fno-signed-zeros"
#endif
/* GCC's macro for all its other modes, such as -fsingle-precision-constant. */
#if defined(__GCC_IEC_559) && __GCC_IEC_559 == 0
#error "bncore's results rest on IEEE arithmetic: this compiler was told to give it up"
#endif
/* 1 and 2: intermediate results have more digits (x87, and s390x in ISO mode). -1: it is not known. 16 differs from 0
 * for _Float16 alone. */
#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error                                                                                             \
    "bncore's results rest on FLT_EVAL_METHOD 0; on 32-bit x86 add -msse2 -mfpmath=sse, on s390x -fexcess-precision=fast"
#endif

#ifdef __clang__
#pragma clang fp contract(off) reassociate(off)
#endif

#endif
