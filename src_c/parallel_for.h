/* How tasks are spread over threads: by the host's own parallel-for, or by the default executor. */
#ifndef BNCORE_PARALLEL_FOR_H
#define BNCORE_PARALLEL_FOR_H

#include "include/bncore.h"

/* Runs task(arg, i) once for each i in [0, tasks) on at most `threads` threads, each in the default floating-point
 * environment; the caller is in it already. executor NULL: the process's, or else the default one. mirrored: i counts
 * from the end of what is computed, so a thread that keeps its share of memory takes its share from the other end. */
void bncore_parallel_for(const bncore_executor *executor, int64_t tasks, int32_t threads,
                         int mirrored, void (*task)(void *arg, int64_t i), void *arg);

#endif
