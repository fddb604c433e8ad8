/* Prints whether an output that is too large for the caches is streamed, first for kernels that can stream and then for
 * kernels that cannot. */
#include <stdio.h>

#include "run.h"

int main(void)
{
    const int64_t n = 64, channels = 512, inner = 56 * 56;
    static float x, y; /* their addresses are looked at, their values are not */
    bncore_problem problem;
    if (bncore_problem_init(&problem, sizeof problem, BNCORE_FLOAT32, n, channels, inner)) return 2;
    for (int streams = 1; streams >= 0; streams--) {
        bncore_kernel_set kernels = *bncore_kernels_now()->set[BNCORE_FLOAT32];
        kernels.streams = streams;
        operation op = {.problem = &problem,
                        .kernels = &kernels,
                        .g = bncore_partition(n, channels, inner),
                        .arrays = {.dst = &y, .x = &x},
                        .item = sizeof(float),
                        .apply_planes = kernels.normalize_planes[0]};
        bncore_schedule(&op);
        printf("%d\n", op.arrays.stream);
    }
    return 0;
}
