/* What the system knows of a thread: its name, its number, and where it runs. On other systems than Linux, and on
 * more than 1024 processors, nothing is told or changed. */
#ifndef BNCORE_SYSTEM_THREAD_H
#define BNCORE_SYSTEM_THREAD_H

#include <stdatomic.h>

#if defined(__linux__)

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Names the calling thread as worker k, for debuggers; its number. */
static inline int bncore_begin_thread(int k)
{
    char name[16];
    snprintf(name, sizeof name, "bncore-%d", k);
    prctl(PR_SET_NAME, name);
    return (int)syscall(SYS_gettid);
}

/* Whether the system refused to change where a thread runs: then it is not asked again. */
static _Atomic int bncore_bound = 0;

/* Sets where a thread may run; whether that succeeded. */
static inline int bncore_allow(int thread, const cpu_set_t *processors)
{
    if (sched_setaffinity(thread, sizeof *processors, processors) == 0) return 1;
    if (errno == EPERM || errno == ENOSYS)
        atomic_store_explicit(&bncore_bound, 1, memory_order_relaxed);
    return 0;
}

/* Takes the caller's processor from those on which a thread may run, and gives it back. A thread that waits for it goes on by
 * another one. Where nobody had bound the thread, it is allowed all processors, and not those of this moment alone: the
 * system remembers that when a container gets more of them. */
static inline void bncore_change_processor(int thread)
{
    cpu_set_t allowed, others, all, now;
    const int own = sched_getcpu();
    if (own < 0 || sched_getaffinity(thread, sizeof allowed, &allowed) != 0) return;
    if (!CPU_ISSET((size_t)own, &allowed) || CPU_COUNT(&allowed) < 2) return;
    others = allowed;
    CPU_CLR((size_t)own, &others);
    if (!bncore_allow(thread, &others)) return;
    memset(&all, 0xff, sizeof all);
    if (!bncore_allow(thread, &all) || sched_getaffinity(thread, sizeof now, &now) != 0 ||
        !CPU_EQUAL(&now, &allowed))
        bncore_allow(thread, &allowed);
}

/* Moves a thread away from the caller's processor. Who does it holds the thread's number, and leaves 0 in its place: two at
 * once would take each other's change for what is allowed. */
static inline void bncore_move_away(_Atomic int *number)
{
    if (atomic_load_explicit(&bncore_bound, memory_order_relaxed)) return;
    const int thread = atomic_exchange_explicit(number, 0, memory_order_acquire);
    if (thread == 0) return;
    bncore_change_processor(thread);
    atomic_store_explicit(number, thread, memory_order_release);
}

#else

static inline int bncore_begin_thread(int k)
{
    (void)k;
    return 0;
}

static inline void bncore_move_away(_Atomic int *number)
{
    (void)number;
}

#endif

#endif
