#include "parallel_for.h"

#include <stdatomic.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* The process's executor; its memory is the host's. */
static const bncore_executor *_Atomic of_process = NULL;

#if !defined(_WIN32)
#include <pthread.h>

/* After fork() the child has none of the parent's threads, OpenMP's or the host's, and a parallel loop would wait for
 * them for ever: the child runs serially, until it sets an executor of its own. */
static int forked = 0;

static void note_fork(void)
{
    forked = 1;
    atomic_store_explicit(&of_process, NULL, memory_order_release);
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
    if (!executor) executor = bncore_executor_now();
    if (threads <= 1 || tasks <= 1)
        run_serial(tasks, task, arg);
    else if (executor)
        executor->parallel_for(executor->context, tasks, threads, task, arg);
    else if (forked)
        run_serial(tasks, task, arg);
    else
        run_openmp(tasks, threads, task, arg);
}

bncore_status bncore_executor_set(const bncore_executor *executor)
{
    if (executor && !executor->parallel_for) return BNCORE_ERROR_NULL;
    atomic_store_explicit(&of_process, executor, memory_order_release);
    return BNCORE_OK;
}

const bncore_executor *bncore_executor_now(void)
{
    return atomic_load_explicit(&of_process, memory_order_acquire);
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
