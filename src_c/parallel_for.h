/* How tasks are spread over threads: serially, by OpenMP, or by the host's own parallel-for. */
#ifndef BNCORE_EXECUTOR_H
#define BNCORE_EXECUTOR_H

#include "include/bncore.h"

/* Runs task(arg, i) for i in [0, tasks) on at most `threads` threads; executor NULL is the process's. */
void bncore_parallel_for(const bncore_executor *executor, int64_t tasks, int32_t threads,
                         void (*task)(void *arg, int64_t i), void *arg);

#endif
