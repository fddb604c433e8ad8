/* The library's own executor.
 *
 * A. Slots and shares. A parallel loop (a job) takes one of a fixed number of static slots, so that no call allocates
 *    and no memory that a late worker may look at is ever freed. Where all slots are taken the caller does the job
 *    alone. Its tasks are cut into as many contiguous shares as it wants threads. Thread k begins with share k: in
 *    both passes of a call, and from call to call, the same thread finds the same memory in its own cache. A thread
 *    that has emptied its share helps with the others', from their far end.
 *
 * B. Taking a task. A share is one 64-bit word {generation, front, back}: the units front .. back - 1 are left. (A
 *    unit is one task, or several where there are more tasks than the word can count.) A thread takes a unit by a
 *    compare-and-swap of this word. Every job has another generation, so a worker that was put aside between looking
 *    and taking fails when the job is over or the slot belongs to another job: it holds no claim, and nobody has to
 *    wait for it. The fields that are not atomic are read after a unit was taken alone, since the job cannot end
 *    before this unit is done.
 *
 * C. Mail. Every worker has a word of its own: it is idle and spins, it sleeps, it is told to quit, or it has mail,
 *    which names a slot and the low bits of the generation. The caller sends mail by a compare-and-swap to workers
 *    that are idle, that sleep (and wakes them), or whose mail names a job that is over. So a worker which has not
 *    come yet is found by the next job, and a worker can always be told to quit.
 *
 * D. The end. `left` counts the units that are not done. When no unit can be taken any more, the caller waits until
 *    left is 0, which is only for units that other threads are computing at this moment. It spins for some
 *    microseconds, then sets WAITING in the same word and sleeps; who brings the word to WAITING wakes it.
 *
 * E. No deadlock. Nobody ever waits for a worker that has not taken a unit, every unit is computed without waiting
 *    for anything, and the only lock (to create workers) is tried and never waited for. So any number of host threads
 *    can call at once, from within tasks of their own, or while workers cannot be created: they do more of the work
 *    themselves.
 *
 * F. Learning. A caller compares how long a job took with how long its own share of the work says that the job would
 *    have taken on one thread. Where the difference adds up to a loss (a busy machine, whose workers are put aside
 *    while they compute) jobs run on one thread for a while; see learning.c.
 *
 * G. Fork, unloading, exit. A forked child has no workers and free slots, and creates its own. When the library is
 *    unloaded or the process exits, the workers are told to quit and joined: each finishes its unit at most.
 *
 * H. Processors. Linux may wake a worker on its caller's processor though others are idle, and leave both there for
 *    milliseconds, in which the call takes longer than on one thread. So the caller moves workers away from its own
 *    processor: a few of those that it wakes, or that have not come since they were called. */
#include "workers.h"

#if !BNCORE_HAVE_WORKERS

void bncore_workers_run(int64_t tasks, int32_t threads, int mirrored, void (*task)(void *, int64_t),
                        void *arg)
{
    (void)threads;
    (void)mirrored;
    for (int64_t i = 0; i < tasks; i++) task(arg, i);
}

int bncore_workers_count(void)
{
    return 0;
}

#else

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "float_env.h"
#include "learning.h"
#include "parking.h"
#include "shares.h"
#include "system_thread.h"

enum {
    SLOTS = 16,           /* jobs at once; further ones run on their callers alone */
    MOST_THREADS = 256,   /* of a job, the caller included */
    STACK = 512 * 1024,   /* bytes of a worker's stack: its tasks need less than 64 KiB */
    SPIN_WORKER = 20000,  /* nanoseconds that an idle worker looks for mail before it sleeps */
    SPIN_CALLER = 50000,  /* nanoseconds that a caller waits for the last units before it sleeps */
    REFUSED_CALLS = 1000, /* jobs that do not try to create workers after the system refused to */
    MOST_MOVES = 3,       /* workers that a job moves to other processors */
};

/* What a worker's word says, if it is no mail. */
enum { IDLE = 0, ASLEEP = 1, QUIT = 2 };

/* Mail: 1, generation, slot, MAIL. */
enum { MAIL = 4, SLOT_SHIFT = 3, SLOT_BITS = 4, GENERATION_SHIFT = SLOT_SHIFT + SLOT_BITS };

static const uint32_t WAITING = UINT32_C(1) << 31;

typedef struct slot {
    _Alignas(BNCORE_CACHE_LINE) atomic_flag taken;
    _Atomic uint64_t generation; /* odd: of the job that runs here; even: none does */
    _Atomic int32_t shares_used;
    _Atomic int mirrored;
    /* See B: of the job, written before its shares are. */
    void (*task)(void *, int64_t);
    void *arg;
    int64_t tasks, units, per_unit;
    _Alignas(BNCORE_CACHE_LINE) bncore_parking left;
    bncore_share shares[MOST_THREADS];
} slot;

typedef struct worker {
    _Alignas(BNCORE_CACHE_LINE) bncore_parking mail;
    pthread_t thread;
    _Atomic int number; /* the system's; 0: it has not begun, or is being moved */
} worker;

static slot slots[SLOTS];
static worker workers[MOST_THREADS]; /* workers[0] stands for the callers, and is not used */

static _Atomic int count = 0; /* of workers, which are workers[1 .. count] */
static atomic_flag creating = ATOMIC_FLAG_INIT;
static _Atomic int closing = 0;
static _Atomic int refused = 0; /* jobs that are still not to try to create workers */

/* ---- units ---- */

static int64_t first_unit(int64_t units, int32_t shares, int32_t k)
{
    return units * k / shares;
}

static void run_unit(const slot *s, int64_t unit)
{
    const int64_t begin = unit * s->per_unit, end = begin + s->per_unit;
    for (int64_t i = begin; i < end && i < s->tasks; i++) s->task(s->arg, i);
}

/* One unit less to do; wakes the caller, if it sleeps, by the last one. */
static void report(slot *s)
{
    const uint32_t before = atomic_fetch_sub_explicit(&s->left.word, 1, memory_order_acq_rel);
    if (before - 1 == WAITING) bncore_unpark(&s->left);
}

/* Does units, of the own share first, until none can be taken; how many. The caller reports its own together. */
static int64_t work(slot *s, uint64_t generation, int32_t own, int is_caller)
{
    const int32_t shares = atomic_load_explicit(&s->shares_used, memory_order_relaxed);
    int64_t done = 0;
    for (int32_t i = 0; i < shares; i++) {
        const int32_t k = (own + i) % shares;
        for (;;) {
            const int64_t unit = bncore_share_take(&s->shares[k], generation, i == 0);
            if (unit < 0) break;
            run_unit(s, first_unit(s->units, shares, k) + unit);
            done++;
            if (!is_caller) report(s);
        }
    }
    return done;
}

/* ---- a worker ---- */

static uint32_t mail_of(const slot *s, uint64_t generation)
{
    return (uint32_t)(generation << GENERATION_SHIFT) | (uint32_t)(s - slots) << SLOT_SHIFT | MAIL;
}

/* The job that mail names: its slot, and its generation, or 0 where it is over. */
static slot *addressed(uint32_t mail, uint64_t *generation)
{
    slot *s = &slots[mail >> SLOT_SHIFT & (SLOTS - 1)];
    const uint64_t now = atomic_load_explicit(&s->generation, memory_order_acquire);
    *generation = now & 1 && mail_of(s, now) == mail ? now : 0;
    return s;
}

static int is_mail(uint32_t word)
{
    return (word & MAIL) != 0;
}

/* The worker's word as soon as it is mail or QUIT. */
static uint32_t next_mail(bncore_parking *p)
{
    for (;;) {
        uint32_t word = bncore_spin(p, IDLE, SPIN_WORKER);
        if (word == IDLE && atomic_compare_exchange_strong(&p->word, &word, ASLEEP)) word = ASLEEP;
        while (word == ASLEEP) {
            bncore_park(p, ASLEEP);
            word = atomic_load_explicit(&p->word, memory_order_acquire);
        }
        if (word != IDLE) return word;
    }
}

static void *worker_main(void *index)
{
    const int32_t k = (int32_t)(intptr_t)index;
    (void)bncore_float_env_enter(); /* the creator's may be another; it is inherited */
    atomic_store_explicit(&workers[k].number, bncore_begin_thread(k), memory_order_relaxed);
    bncore_parking *p = &workers[k].mail;
    for (;;) {
        uint32_t mail = next_mail(p);
        if (mail == QUIT) return NULL;
        uint64_t generation;
        slot *s = addressed(mail, &generation);
        const int32_t shares = atomic_load_explicit(&s->shares_used, memory_order_relaxed);
        if (generation && shares > 0) {
            const int32_t own = k % shares;
            const int mirrored = atomic_load_explicit(&s->mirrored, memory_order_relaxed);
            work(s, generation, mirrored ? shares - 1 - own : own, 0);
        }
        /* Where there is other mail by now, that is next. */
        atomic_compare_exchange_strong(&p->word, &mail, IDLE);
    }
}

/* ---- creating workers ---- */

static int start_thread(worker *w, int32_t index, size_t stack)
{
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return 0;
    if (stack) pthread_attr_setstacksize(&attributes, stack);
    const int error = pthread_create(&w->thread, &attributes, worker_main, (void *)(intptr_t)index);
    pthread_attr_destroy(&attributes);
    return error == 0;
}

/* Has `wanted` workers, or as many as the system allows. Signals are for the host's threads. */
static void create_workers(int wanted)
{
    if (wanted > MOST_THREADS - 1) wanted = MOST_THREADS - 1;
    if (atomic_load_explicit(&count, memory_order_relaxed) >= wanted) return;
    if (atomic_load_explicit(&refused, memory_order_relaxed) > 0) {
        atomic_fetch_sub_explicit(&refused, 1, memory_order_relaxed);
        return;
    }
    if (atomic_flag_test_and_set_explicit(&creating, memory_order_acquire)) return;
    sigset_t all, own;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &own);
    for (int k = atomic_load(&count) + 1; k <= wanted && !atomic_load(&closing); k++) {
        atomic_store(&workers[k].mail.word, IDLE);
        /* A small stack is refused where the host's thread-local variables do not leave it enough. */
        if (!start_thread(&workers[k], k, STACK) && !start_thread(&workers[k], k, 0)) {
            atomic_store(&refused, REFUSED_CALLS);
            break;
        }
        atomic_store_explicit(&count, k, memory_order_release);
    }
    pthread_sigmask(SIG_SETMASK, &own, NULL);
    atomic_flag_clear_explicit(&creating, memory_order_release);
}

/* ---- a job ---- */

/* Sends mail to worker k, where it has nothing to do; whether it was sent. `moves`: how many workers may still be moved. */
static int send(int k, uint32_t mail, int *moves)
{
    bncore_parking *p = &workers[k].mail;
    uint32_t word = atomic_load_explicit(&p->word, memory_order_relaxed);
    for (;;) {
        uint64_t generation = 0;
        if (is_mail(word)) addressed(word, &generation);
        if (word == QUIT || generation) return 0;
        const uint32_t before = word;
        if (!atomic_compare_exchange_weak(&p->word, &word, mail)) continue;
        if (before == ASLEEP) bncore_unpark(p);
        if (before != IDLE && (*moves)-- > 0) bncore_move_away(&workers[k].number);
        return 1;
    }
}

/* Calls threads - 1 workers to the job: those whose shares it has, and others in the place of the busy ones. */
static void call_workers(uint32_t mail, int32_t threads)
{
    create_workers(threads - 1);
    const int there = atomic_load_explicit(&count, memory_order_acquire);
    int missing = 0, moves = MOST_MOVES;
    for (int k = 1; k < threads; k++)
        if (k > there || !send(k, mail, &moves)) missing++;
    for (int k = threads; k <= there && missing > 0; k++) missing -= send(k, mail, &moves);
}

/* A free slot, or NULL. */
static slot *take_slot(void)
{
    for (int i = 0; i < SLOTS; i++)
        if (!atomic_flag_test_and_set_explicit(&slots[i].taken, memory_order_acquire))
            return &slots[i];
    return NULL;
}

static void publish(slot *s, uint64_t generation, int32_t shares, int mirrored)
{
    atomic_store_explicit(&s->left.word, (uint32_t)s->units, memory_order_relaxed);
    atomic_store_explicit(&s->shares_used, shares, memory_order_relaxed);
    atomic_store_explicit(&s->mirrored, mirrored, memory_order_relaxed);
    for (int32_t k = 0; k < shares; k++) {
        const int64_t units = first_unit(s->units, shares, k + 1) - first_unit(s->units, shares, k);
        atomic_store_explicit(&s->shares[k].word, bncore_share_word(generation, 0, (uint64_t)units),
                              memory_order_release);
    }
    atomic_store_explicit(&s->generation, generation, memory_order_release);
}

static void wait_for_units(slot *s)
{
    const int64_t end = bncore_nanoseconds() + SPIN_CALLER;
    uint32_t left = atomic_load_explicit(&s->left.word, memory_order_acquire);
    while (left != 0 && bncore_nanoseconds() < end) left = bncore_spin(&s->left, left, SPIN_CALLER);
    while ((left & ~WAITING) != 0) {
        if (left & WAITING || atomic_compare_exchange_strong(&s->left.word, &left, left | WAITING))
            bncore_park(&s->left, left | WAITING);
        left = atomic_load_explicit(&s->left.word, memory_order_acquire);
    }
}

/* ---- the interface ---- */

int bncore_workers_count(void)
{
    return atomic_load(&count);
}

static void run_alone(int64_t tasks, void (*task)(void *, int64_t), void *arg)
{
    for (int64_t i = 0; i < tasks; i++) task(arg, i);
}

void bncore_workers_run(int64_t tasks, int32_t threads, int mirrored, void (*task)(void *, int64_t),
                        void *arg)
{
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads > tasks) threads = (int32_t)tasks;
    const int64_t start = bncore_nanoseconds();
    slot *s = NULL;
    if (threads > 1 && bncore_threads_pay(start) &&
        !atomic_load_explicit(&closing, memory_order_relaxed))
        s = take_slot();
    if (!s) {
        run_alone(tasks, task, arg);
        return;
    }
    s->task = task;
    s->arg = arg;
    s->tasks = tasks;
    s->per_unit = 1 + (tasks - 1) / ((int64_t)threads * BNCORE_MOST_UNITS);
    s->units = 1 + (tasks - 1) / s->per_unit;
    if (threads > s->units) threads = (int32_t)s->units;
    const uint64_t generation = atomic_load_explicit(&s->generation, memory_order_relaxed) + 1;
    publish(s, generation, threads, mirrored);
    call_workers(mail_of(s, generation), threads);
    const int64_t begin = bncore_nanoseconds();
    const int64_t units = s->units, own = work(s, generation, mirrored ? threads - 1 : 0, 1);
    const int64_t out = bncore_nanoseconds();
    atomic_fetch_sub_explicit(&s->left.word, (uint32_t)own, memory_order_acq_rel);
    wait_for_units(s);
    atomic_store_explicit(&s->generation, generation + 1, memory_order_release);
    atomic_flag_clear_explicit(&s->taken, memory_order_release);
    const int64_t end = bncore_nanoseconds();
    if (own > 0) bncore_threads_learn(end, (out - begin) * units / own, end - start);
}

/* ---- fork, unloading, exit ---- */

/* In the child: only this thread is there, and it runs no job. */
static void start_again(void)
{
    for (int i = 0; i < SLOTS; i++) {
        const uint64_t generation = atomic_load(&slots[i].generation);
        atomic_store(&slots[i].generation, generation + (generation & 1));
        atomic_flag_clear(&slots[i].taken);
        bncore_parking_init(&slots[i].left);
    }
    for (int k = 0; k < MOST_THREADS; k++) {
        bncore_parking_init(&workers[k].mail);
        atomic_store(&workers[k].number, 0);
    }
    atomic_store(&count, 0);
    atomic_store(&refused, 0);
    atomic_flag_clear(&creating);
}

__attribute__((constructor)) static void begin(void)
{
    start_again();
    pthread_atfork(NULL, NULL, start_again);
}

__attribute__((destructor)) static void end(void)
{
    atomic_store(&closing, 1);
    while (atomic_flag_test_and_set_explicit(&creating, memory_order_acquire)) bncore_pause();
    const int there = atomic_load(&count);
    for (int k = 1; k <= there; k++)
        if (atomic_exchange(&workers[k].mail.word, QUIT) == ASLEEP) bncore_unpark(&workers[k].mail);
    for (int k = 1; k <= there; k++) pthread_join(workers[k].thread, NULL);
    atomic_store(&count, 0);
}

#endif
