/* The library's own executor: a persistent set of worker threads. workers.c says how it works. */
#ifndef BNCORE_WORKERS_H
#define BNCORE_WORKERS_H

#include <stdint.h>

/* Whether it exists on this system; elsewhere bncore_workers_run does everything on the calling thread. */
#if defined(_WIN32)
#define BNCORE_HAVE_WORKERS 0
#else
#define BNCORE_HAVE_WORKERS 1
#endif

/* Runs task(arg, i) once for each i in [0, tasks), on the calling thread and at most threads - 1 workers, and returns
 * when all are done. The k-th thread begins with the k-th of `threads` equal shares of the tasks, the caller being
 * the first; `mirrored` gives it the k-th from the end. Fewer threads take part where workers are busy or cannot be
 * created. */
void bncore_workers_run(int64_t tasks, int32_t threads, int mirrored,
                        void (*task)(void *arg, int64_t i), void *arg);

/* How many workers exist now. */
int bncore_workers_count(void);

#endif
