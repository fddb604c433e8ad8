/* The floating-point environment: rounding mode, treatment of subnormal numbers, masks of exceptions.
 *
 * Each thread has its own, and a host may have changed it: torch.set_flush_denormal(True) and XLA make subnormal
 * numbers zero, and new threads inherit what their creator had. The library computes in the default environment
 * (round to nearest, subnormal numbers kept, exceptions masked), so that its results are the same bits on every
 * thread, and gives each thread its own environment back, status flags included.
 *
 * Between enter and leave stand calls of functions in other files, so that the compiler moves no arithmetic out. */
#ifndef BNCORE_FLOAT_ENV_H
#define BNCORE_FLOAT_ENV_H

#include <stdint.h>

#if defined(__SSE2__)

/* MXCSR: six sticky status flags, then what controls arithmetic. */
enum { BNCORE_MXCSR_DEFAULT = 0x1f80, BNCORE_MXCSR_FLAGS = 0x3f };

typedef struct bncore_float_env {
    uint32_t mxcsr;
} bncore_float_env;

static inline bncore_float_env bncore_float_env_enter(void)
{
    const bncore_float_env own = {__builtin_ia32_stmxcsr()};
    if ((own.mxcsr & ~(uint32_t)BNCORE_MXCSR_FLAGS) != BNCORE_MXCSR_DEFAULT)
        __builtin_ia32_ldmxcsr(BNCORE_MXCSR_DEFAULT);
    return own;
}

static inline void bncore_float_env_leave(const bncore_float_env *own)
{
    if (__builtin_ia32_stmxcsr() != own->mxcsr) __builtin_ia32_ldmxcsr(own->mxcsr);
}

#elif defined(__aarch64__)

/* FPCR controls arithmetic, and its default is 0; FPSR holds the status flags. */
typedef struct bncore_float_env {
    uint64_t fpcr, fpsr;
} bncore_float_env;

static inline bncore_float_env bncore_float_env_now(void)
{
    bncore_float_env now;
    __asm__ volatile("mrs %0, fpcr" : "=r"(now.fpcr));
    __asm__ volatile("mrs %0, fpsr" : "=r"(now.fpsr));
    return now;
}

static inline bncore_float_env bncore_float_env_enter(void)
{
    const bncore_float_env own = bncore_float_env_now();
    if (own.fpcr != 0) __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0) : "memory");
    return own;
}

static inline void bncore_float_env_leave(const bncore_float_env *own)
{
    const bncore_float_env now = bncore_float_env_now();
    if (now.fpcr != own->fpcr) __asm__ volatile("msr fpcr, %0" : : "r"(own->fpcr) : "memory");
    if (now.fpsr != own->fpsr) __asm__ volatile("msr fpsr, %0" : : "r"(own->fpsr) : "memory");
}

#else

#include <fenv.h>

typedef struct bncore_float_env {
    fenv_t env;
} bncore_float_env;

static inline bncore_float_env bncore_float_env_enter(void)
{
    bncore_float_env own;
    fegetenv(&own.env);
    fesetenv(FE_DFL_ENV);
    return own;
}

static inline void bncore_float_env_leave(const bncore_float_env *own)
{
    fesetenv(&own->env);
}

#endif

#endif
