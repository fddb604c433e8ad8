#include "executor.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(_OPENMP) && !defined(_WIN32)
#include <pthread.h>

/* After fork() the child has none of the parent's OpenMP threads, and entering a parallel region would wait for
 * them for ever: the child runs serially. */
static int forked = 0;

static void note_fork(void)
{
    forked = 1;
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, note_fork);
}
#else
enum { forked = 0 };
#endif

static void run_serial(int64_t tasks, void (*task)(void *, int64_t), void *arg)
{
    for (int64_t i = 0; i < tasks; i++) task(arg, i);
}

static void run_openmp(int64_t tasks, int32_t threads, void (*task)(void *, int64_t), void *arg)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < tasks; i++) task(arg, i);
#else
    (void)threads;
    run_serial(tasks, task, arg);
#endif
}

void bncore_parallel_for(const bncore_executor *executor, int64_t tasks, int32_t threads,
                         void (*task)(void *, int64_t), void *arg)
{
    if (threads <= 1 || tasks <= 1)
        run_serial(tasks, task, arg);
    else if (executor)
        executor->parallel_for(executor->context, tasks, threads, task, arg);
    else if (forked)
        run_serial(tasks, task, arg);
    else
        run_openmp(tasks, threads, task, arg);
}

int bncore_openmp_max_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

int bncore_has_openmp(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

int bncore_in_forked_child(void)
{
    return forked;
}
