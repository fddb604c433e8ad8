/* What the system knows of a thread: its name, its number, and where it runs. On other systems than Linux nothing is told
 * or changed. */
#ifndef BNCORE_SYSTEM_THREAD_H
#define BNCORE_SYSTEM_THREAD_H

#if defined(__linux__)

#include <sched.h>
#include <stdio.h>
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

/* Moves a thread that waits for the caller's processor to another one on which it may run. Later it may run where it might
 * before. 0 is the number of no thread; that of a thread which has ended is no error. */
static inline void bncore_move_away(int thread)
{
    cpu_set_t allowed;
    const int own = sched_getcpu();
    if (own < 0 || thread <= 0) return;
    if (sched_getaffinity(thread, sizeof allowed, &allowed) != 0) return;
    cpu_set_t others = allowed;
    CPU_CLR((size_t)own, &others);
    if (CPU_COUNT(&others) == 0) return;
    if (sched_setaffinity(thread, sizeof others, &others) == 0)
        sched_setaffinity(thread, sizeof allowed, &allowed);
}

#else

static inline int bncore_begin_thread(int k)
{
    (void)k;
    return 0;
}

static inline void bncore_move_away(int thread)
{
    (void)thread;
}

#endif

#endif
