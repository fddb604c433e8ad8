/* A share of a job's units, from which threads take them without locks. workers.c (B) says why it is made so. */
#ifndef BNCORE_SHARES_H
#define BNCORE_SHARES_H

#include <stdatomic.h>
#include <stdint.h>

enum {
    BNCORE_CACHE_LINE = 64, /* bytes */
    BNCORE_UNIT_BITS = 10,
    BNCORE_MOST_UNITS = (1 << BNCORE_UNIT_BITS) - 1 /* of a share */
};

/* {generation of the job, front, back}: the units front .. back - 1 are left. */
typedef struct bncore_share {
    _Alignas(BNCORE_CACHE_LINE) _Atomic uint64_t word;
} bncore_share;

static inline uint64_t bncore_share_word(uint64_t generation, uint64_t front, uint64_t back)
{
    return generation << (2 * BNCORE_UNIT_BITS) | front << BNCORE_UNIT_BITS | back;
}

/* Takes a unit, by its number within the share: its owner the first one that is left, others the last one. -1: none is
 * left, or the job is over. */
static inline int64_t bncore_share_take(bncore_share *from, uint64_t generation, int is_owner)
{
    const uint64_t of_job = bncore_share_word(generation, 0, 0);
    uint64_t word = atomic_load_explicit(&from->word, memory_order_relaxed);
    for (;;) {
        const uint64_t front = word >> BNCORE_UNIT_BITS & BNCORE_MOST_UNITS;
        const uint64_t back = word & BNCORE_MOST_UNITS;
        if (word - bncore_share_word(0, front, back) != of_job || front == back) return -1;
        const uint64_t next = of_job | (is_owner ? bncore_share_word(0, front + 1, back)
                                                 : bncore_share_word(0, front, back - 1));
        if (atomic_compare_exchange_weak_explicit(&from->word, &word, next, memory_order_acquire,
                                                  memory_order_relaxed))
            return (int64_t)(is_owner ? front : back - 1);
    }
}

#endif
