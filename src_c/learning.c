/* On a busy machine the system puts a worker aside in the midst of a task, and the caller, who cannot take the task
 * back, waits for milliseconds. So the process keeps an account of what its workers have gained. A job whose workers
 * made it slower is a loss; one loss of CREDIT nanoseconds and of the time of two such jobs is forgiven to a process
 * that has gained so much before. After more than that, jobs run on their callers alone for LEAST_PAUSE, then for
 * twice as long each time, until workers have gained a full credit again. Results do not depend on it.
 *
 * After a pause the workers sleep, and waking them costs the first job more than it gains where jobs are small. So the
 * account starts again with TRIAL: enough to wake them and to see what they gain then. */
#include "learning.h"

#include <stdatomic.h>

enum {
    CREDIT = 1000 * 1000,
    TRIAL = 200 * 1000,
    LEAST_PAUSE = 5 * 1000 * 1000,
    MOST_PAUSE = 640 * 1000 * 1000
};

/* Threads change these without order among them: they decide about speed alone. */
static _Atomic int64_t credit = CREDIT, paused_until = 0, next_pause = LEAST_PAUSE;

int bncore_threads_pay(int64_t now)
{
    return now >= atomic_load_explicit(&paused_until, memory_order_relaxed);
}

void bncore_threads_learn(int64_t now, int64_t alone, int64_t took)
{
    const int64_t most = CREDIT + 2 * alone;
    int64_t left = atomic_load_explicit(&credit, memory_order_relaxed) + alone - took;
    if (left >= most) {
        left = most;
        atomic_store_explicit(&next_pause, LEAST_PAUSE, memory_order_relaxed);
    }
    if (left < 0) {
        const int64_t pause = atomic_load_explicit(&next_pause, memory_order_relaxed);
        atomic_store_explicit(&paused_until, now + pause, memory_order_relaxed);
        atomic_store_explicit(&next_pause, pause < MOST_PAUSE / 2 ? 2 * pause : MOST_PAUSE,
                              memory_order_relaxed);
        left = TRIAL;
    }
    atomic_store_explicit(&credit, left, memory_order_relaxed);
}
