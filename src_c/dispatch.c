/* Chooses the kernels: the best that this processor can run, or those that BNCORE_ISA names. The library's global
 * state is this choice and the state of parallel_for.c and workers.c, which have the executors and the worker
 * threads. */
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "include/bncore.h"
#include "kernels/kernels.h"

#define BNCORE_ISA(name, flags, supported)                                                         \
    extern const bncore_kernel_set bncore_kernels_f32_##name, bncore_kernels_f64_##name,           \
        bncore_kernels_f16_##name, bncore_kernels_bf16_##name;                                     \
    extern const bncore_integer_set bncore_integers_##name[3];                                     \
    static const bncore_kernels kernels_##name = {                                                 \
        #name,                                                                                     \
        {&bncore_kernels_f32_##name, &bncore_kernels_f64_##name, &bncore_kernels_f16_##name,       \
         &bncore_kernels_bf16_##name},                                                             \
        bncore_integers_##name};
#include "kernels/isa.def"
#undef BNCORE_ISA

#define HAS(feature) __builtin_cpu_supports(feature)

/* x86-64-v3. Not every compiler's builtin knows that name or the names of its last three features. */
#define HAS_V3                                                                                     \
    (HAS("avx2") && HAS("fma") && HAS("bmi") && HAS("bmi2") && (cpuid_ecx(1) & bit_F16C) &&        \
     (cpuid_ecx(1) & bit_MOVBE) && (cpuid_ecx(0x80000001) & bit_LZCNT))

#if defined(__x86_64__)
__attribute__((unused)) static unsigned cpuid_ecx(unsigned leaf)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(leaf, &eax, &ebx, &ecx, &edx) ? ecx : 0;
}
#endif

enum { MOST_ISAS = 8 };

/* The instruction sets that this processor has, best first. */
static int list_available(const bncore_kernels *available[MOST_ISAS])
{
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#define BNCORE_ISA(name, flags, supported)                                                         \
    if (supported) available[count++] = &kernels_##name;
#include "kernels/isa.def"
#undef BNCORE_ISA
    return count;
}

static const bncore_kernels *_Atomic chosen =
    NULL; /* several first calls may choose at once, and all choose the same */

static const bncore_kernels *find(const char *name)
{
    const bncore_kernels *available[MOST_ISAS];
    const int count = list_available(available);
    if (!name || !*name) return available[0];
    for (int i = 0; i < count; i++)
        if (strcmp(available[i]->name, name) == 0) return available[i];
    return NULL;
}

bncore_status bncore_isa_set(const char *name)
{
    const bncore_kernels *found = find(name);
    if (!found) return BNCORE_ERROR_ISA;
    chosen = found;
    return BNCORE_OK;
}

bncore_status bncore_isa_init(void)
{
    return chosen ? BNCORE_OK : bncore_isa_set(getenv("BNCORE_ISA"));
}

const bncore_kernels *bncore_kernels_now(void)
{
    return bncore_isa_init() == BNCORE_OK ? chosen : NULL;
}

const char *bncore_isa(void)
{
    const bncore_kernels *now = bncore_kernels_now();
    return now ? now->name : NULL;
}

const char *bncore_isa_available(int i)
{
    const bncore_kernels *available[MOST_ISAS];
    const int count = list_available(available);
    return i >= 0 && i < count ? available[i]->name : NULL;
}
