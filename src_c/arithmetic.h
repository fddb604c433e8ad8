/* Refuses to be compiled where arithmetic is not that of IEEE 754 as it is written: bncore's results, and that they are the
 * same bits everywhere, rest on it. setup.py and CMakeLists.txt cancel these modes after whatever flags the user gives;
 * this is for other builds. One mode has no macro: compile with -ffp-contract=off. */
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
/* GCC says so for every other mode of its own, such as -fsingle-precision-constant. */
#if defined(__GCC_IEC_559) && __GCC_IEC_559 == 0
#error "bncore's results rest on IEEE arithmetic: this compiler was told to give it up"
#endif
/* 1 and 2: intermediate results have more digits (x87; s390x in ISO mode). -1: nobody knows. 16: _Float16 is apart. */
#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "bncore's results rest on FLT_EVAL_METHOD 0; on 32-bit x86 add -msse2 -mfpmath=sse"
#endif

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

#endif
