/* Who runs the tasks of a parallel loop. The first that there is: the executor of the problem; the executor that the
 * host has set for the process; the default, which has a name: the library's own workers, OpenMP, or the calling
 * thread. */
#include "parallel_for.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "float_env.h"
#include "workers.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

/* The process's executor; its memory is the host's. */
static const bncore_executor *_Atomic of_process = NULL;

/* The most threads of a loop that no host's executor runs; 0: as many as the problem says. */
static _Atomic int32_t most_threads = 0;

/* ---- the default ---- */

enum { NOT_CHOSEN = -1, OWN, OPENMP, SERIAL, CHOICES };

static const char *const choices[CHOICES] = {"own", "openmp", "serial"};
static _Atomic int chosen = NOT_CHOSEN;

static int is_there(int choice)
{
    return choice == SERIAL || (choice == OWN ? BNCORE_HAVE_WORKERS : bncore_has_openmp());
}

const char *bncore_executor_available(int i)
{
    for (int choice = 0; choice < CHOICES; choice++)
        if (is_there(choice) && i-- == 0) return choices[choice];
    return NULL;
}

bncore_status bncore_executor_choose(const char *name)
{
    if (!name || !*name) name = bncore_executor_available(0);
    for (int choice = 0; choice < CHOICES; choice++) {
        if (!is_there(choice) || strcmp(name, choices[choice]) != 0) continue;
        atomic_store_explicit(&chosen, choice, memory_order_relaxed);
        return BNCORE_OK;
    }
    return BNCORE_ERROR_EXECUTOR;
}

bncore_status bncore_executor_init(void)
{
    if (atomic_load_explicit(&chosen, memory_order_relaxed) != NOT_CHOSEN) return BNCORE_OK;
    return bncore_executor_choose(getenv("BNCORE_EXECUTOR"));
}

const char *bncore_executor_name(void)
{
    if (bncore_executor_init() != BNCORE_OK) return NULL;
    return choices[atomic_load_explicit(&chosen, memory_order_relaxed)];
}

/* ---- fork ---- */

#if !defined(_WIN32)

/* After fork() the child has none of the parent's threads, OpenMP's or the host's, and a parallel loop would wait for
 * them for ever. OpenMP's loops run serially there; the library's own workers are created anew. */
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

/* ---- running ---- */

/* A task that runs on a thread whose floating-point environment is somebody else's. */
typedef struct guarded {
    void (*task)(void *, int64_t);
    void *arg;
} guarded;

static void run_guarded(void *arg, int64_t i)
{
    const guarded *g = arg;
    const bncore_float_env own = bncore_float_env_enter();
    g->task(g->arg, i);
    bncore_float_env_leave(&own);
}

static void run_serial(int64_t tasks, void (*task)(void *, int64_t), void *arg)
{
    for (int64_t i = 0; i < tasks; i++) task(arg, i);
}

#if defined(_OPENMP) && BNCORE_HAVE_WORKERS

enum { MOST_CREATED = 255 };

static void *wait_for_release(void *mutex)
{
    pthread_mutex_lock(mutex);
    pthread_mutex_unlock(mutex);
    return NULL;
}

/* How many of so many threads the system creates at the same time. */
static int32_t creatable(int32_t wanted)
{
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_t threads[MOST_CREATED];
    int32_t created = 0;
    pthread_mutex_lock(&mutex);
    while (created < (wanted < MOST_CREATED ? wanted : MOST_CREATED) &&
           pthread_create(&threads[created], NULL, wait_for_release, &mutex) == 0)
        created++;
    pthread_mutex_unlock(&mutex);
    for (int32_t i = 0; i < created; i++) pthread_join(threads[i], NULL);
    return created;
}

/* An OpenMP runtime ends the process where it cannot create a thread. It keeps threads for each calling thread, so before
 * a calling thread has more of them than ever, this tries whether the system allows it. */
static int32_t openmp_threads(int32_t wanted)
{
    static _Thread_local int32_t allowed = 1;
    if (wanted > allowed) allowed += creatable(wanted - allowed);
    return wanted < allowed ? wanted : allowed;
}

#else

static int32_t openmp_threads(int32_t wanted)
{
    return wanted;
}

#endif

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

static void run_by_default(int64_t tasks, int32_t threads, int mirrored,
                           void (*task)(void *, int64_t), void *arg)
{
    guarded g = {task, arg};
    switch (atomic_load_explicit(&chosen, memory_order_relaxed)) {
    case OWN:
        bncore_workers_run(tasks, threads, mirrored, task, arg);
        return;
    case OPENMP:
        if (forked) break;
        run_openmp(tasks, openmp_threads(threads), run_guarded, &g);
        return;
    default:
        break;
    }
    run_serial(tasks, task, arg);
}

void bncore_parallel_for(const bncore_executor *executor, int64_t tasks, int32_t threads,
                         int mirrored, void (*task)(void *, int64_t), void *arg)
{
    guarded g = {task, arg};
    if (!executor) executor = bncore_executor_now();
    const int32_t most = atomic_load_explicit(&most_threads, memory_order_relaxed);
    if (!executor && most > 0 && threads > most) threads = most;
    if (threads <= 1 || tasks <= 1)
        run_serial(tasks, task, arg);
    else if (executor)
        executor->parallel_for(executor->context, tasks, threads, run_guarded, &g);
    else
        run_by_default(tasks, threads, mirrored, task, arg);
}

bncore_status bncore_max_threads_set(int32_t threads)
{
    if (threads < 0) return BNCORE_ERROR_THREADS;
    atomic_store_explicit(&most_threads, threads, memory_order_relaxed);
    return BNCORE_OK;
}

int32_t bncore_max_threads(void)
{
    return atomic_load_explicit(&most_threads, memory_order_relaxed);
}

int bncore_workers(void)
{
    return bncore_workers_count();
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
