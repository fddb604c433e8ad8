/* A 32-bit word on whose change threads wait: they spin first, then sleep. They sleep on a futex on Linux, on a
 * condition variable elsewhere. */
#ifndef BNCORE_PARKING_H
#define BNCORE_PARKING_H

#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

static inline int64_t bncore_nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void bncore_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

#if defined(__linux__) && !defined(BNCORE_WITHOUT_FUTEX)

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct bncore_parking {
    _Atomic uint32_t word;
} bncore_parking;

static inline void bncore_parking_init(bncore_parking *p)
{
    atomic_init(&p->word, 0);
}

/* Sleeps while the word is `value`; may return sooner. */
static inline void bncore_park(bncore_parking *p, uint32_t value)
{
    syscall(SYS_futex, &p->word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

/* Wakes the one thread that sleeps here, after the word was changed. */
static inline void bncore_unpark(bncore_parking *p)
{
    syscall(SYS_futex, &p->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

#else

#include <pthread.h>

typedef struct bncore_parking {
    _Atomic uint32_t word;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} bncore_parking;

static inline void bncore_parking_init(bncore_parking *p)
{
    atomic_init(&p->word, 0);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->changed, NULL);
}

static inline void bncore_park(bncore_parking *p, uint32_t value)
{
    pthread_mutex_lock(&p->mutex);
    while (atomic_load(&p->word) == value) pthread_cond_wait(&p->changed, &p->mutex);
    pthread_mutex_unlock(&p->mutex);
}

static inline void bncore_unpark(bncore_parking *p)
{
    pthread_mutex_lock(&p->mutex);
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->mutex);
}

#endif

/* Looks at the word until it is not `value` any more, for `most` nanoseconds at most; what it is then. */
static inline uint32_t bncore_spin(const bncore_parking *p, uint32_t value, int64_t most)
{
    uint32_t now = atomic_load_explicit(&p->word, memory_order_acquire);
    if (now != value) return now;
    const int64_t end = bncore_nanoseconds() + most;
    do {
        for (int looks = 0; looks < 16; looks++) {
            bncore_pause();
            now = atomic_load_explicit(&p->word, memory_order_acquire);
            if (now != value) return now;
        }
    } while (bncore_nanoseconds() < end);
    return now;
}

#endif
