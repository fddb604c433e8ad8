/* Drives src_c/workers.c alone; test_workers.py compiles both and says what each mode proves. Exit status 0: all went well.
 *
 * It brings its own learning.h, so that every job calls workers, and wraps pthread_create (--wrap), so that threads can be
 * refused, and can start late. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "learning.h"
#include "shares.h"
#include "workers.h"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

int bncore_threads_pay(int64_t now)
{
    (void)now;
    return 1;
}

void bncore_threads_learn(int64_t now, int64_t alone, int64_t took)
{
    (void)now;
    CHECK(alone >= 0 && took >= 0);
}

/* ---- threads that the system refuses, or starts late ---- */

static _Atomic int refuse = 0;
static _Atomic int seconds_late = 0;
static _Atomic int creating_slowly = 0; /* 1: the next creation takes a while; 2: it has begun */

int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

typedef struct beginning {
    void *(*run)(void *);
    void *arg;
} beginning;

static void *begin_late(void *arg)
{
    const beginning b = *(beginning *)arg;
    free(arg);
    sleep((unsigned)atomic_load(&seconds_late));
    return b.run(b.arg);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *arg)
{
    int slowly = 1;
    if (atomic_load(&refuse)) return EAGAIN;
    if (atomic_compare_exchange_strong(&creating_slowly, &slowly, 2)) sleep(1);
    if (!atomic_load(&seconds_late)) return __real_pthread_create(thread, attributes, run, arg);
    beginning *b = malloc(sizeof *b);
    CHECK(b);
    *b = (beginning){run, arg};
    return __real_pthread_create(thread, attributes, begin_late, b);
}

/* ---- jobs ---- */

enum { MOST = 3000 };

typedef struct job {
    unsigned char times[MOST]; /* how often each task ran */
    int nested;
} job;

static void task(void *arg, int64_t i)
{
    job *j = arg;
    j->times[i]++;
    if (!j->nested) return;
    job *inner = calloc(1, sizeof *inner);
    CHECK(inner);
    bncore_workers_run(9, 3, 0, task, inner);
    for (int k = 0; k < 9; k++) CHECK(inner->times[k] == 1);
    free(inner);
}

static void call(job *j, int64_t tasks, int32_t threads, int mirrored)
{
    memset(j->times, 0, sizeof j->times);
    bncore_workers_run(tasks, threads, mirrored, task, j);
    for (int64_t i = 0; i < MOST; i++) CHECK(j->times[i] == (i < tasks));
}

static void *many_calls(void *arg)
{
    static const int64_t sizes[] = {0, 1, 2, 7, 16, 100, 1000, MOST};
    const intptr_t first = (intptr_t)arg;
    job *j = calloc(1, sizeof *j);
    CHECK(j);
    for (intptr_t c = first; c < first + 1000; c++) {
        j->nested = c % 100 == 0;
        call(j, sizes[c % 8], (int32_t)(2 + c % 4), (int)(c & 1));
    }
    free(j);
    return NULL;
}

/* Many threads, each of which calls many times; the process is forked in the midst of it. */
static void hosts(int threads, int forks)
{
    pthread_t host[64];
    CHECK(threads <= 64);
    for (intptr_t i = 0; i < threads; i++)
        CHECK(__real_pthread_create(&host[i], NULL, many_calls, (void *)i) == 0);
    for (int i = 0; i < forks; i++) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(60);
            CHECK(bncore_workers_count() == 0);
            many_calls((void *)1);
            CHECK(bncore_workers_count() == 4);
            exit(0); /* joins the child's workers */
        }
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    }
    for (int i = 0; i < threads; i++) pthread_join(host[i], NULL);
}

static void *one_call(void *arg)
{
    job *j = arg;
    call(j, 64, 3, 0);
    return NULL;
}

static void short_lived_callers(void)
{
    job j = {.nested = 0};
    for (int i = 0; i < 10000; i++) {
        pthread_t caller;
        CHECK(__real_pthread_create(&caller, NULL, one_call, &j) == 0);
        pthread_join(caller, NULL);
    }
    CHECK(bncore_workers_count() == 2);
}

static void refused(void)
{
    job j = {.nested = 0};
    atomic_store(&refuse, 1);
    for (int i = 0; i < 10; i++) call(&j, 100, 8, 0);
    CHECK(bncore_workers_count() == 0);
    atomic_store(&refuse, 0);
    for (int i = 0; i < 2000; i++) call(&j, 100, 8, 0);
    CHECK(bncore_workers_count() == 7);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Workers have mail, and do not come for two seconds. */
static void late(void)
{
    job j = {.nested = 0};
    atomic_store(&seconds_late, 2);
    const double start = now();
    for (int i = 0; i < 100; i++) call(&j, 1000, 4, 0);
    CHECK(now() - start < 1.0);
    sleep(3);
    call(&j, 1000, 4, 0);
}

/* ---- shares ---- */

typedef struct trace {
    pthread_t caller;
    _Atomic int64_t first_of_caller, first_of_worker; /* -1: none yet */
} trace;

static void task_trace(void *arg, int64_t i)
{
    trace *t = arg;
    int64_t none = -1;
    _Atomic int64_t *first =
        pthread_equal(pthread_self(), t->caller) ? &t->first_of_caller : &t->first_of_worker;
    atomic_compare_exchange_strong(first, &none, i);
    const struct timespec ms = {0, 1000000};
    nanosleep(&ms, NULL);
}

static void shares(void)
{
    int came = 0;
    for (int mirrored = 0; mirrored < 2; mirrored++)
        for (int i = 0; i < 20; i++) {
            trace t = {.caller = pthread_self(), .first_of_caller = -1, .first_of_worker = -1};
            bncore_workers_run(20, 2, mirrored, task_trace, &t);
            CHECK(atomic_load(&t.first_of_caller) == (mirrored ? 10 : 0));
            if (atomic_load(&t.first_of_worker) < 0) continue;
            came++;
            CHECK(atomic_load(&t.first_of_worker) == (mirrored ? 0 : 10));
        }
    CHECK(came > 0);
}

/* ---- what a worker is ---- */

typedef struct looks {
    pthread_t caller;
    _Atomic int seen, right;
} looks;

static void task_look(void *arg, int64_t i)
{
    (void)i;
    looks *l = arg;
    const struct timespec ms = {0, 1000000};
    nanosleep(&ms, NULL);
    if (pthread_equal(pthread_self(), l->caller)) return;
    char name[32] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    atomic_fetch_add(&l->seen, 1);
    if (strncmp(name, "bncore-", 7) == 0 && sigismember(&blocked, SIGINT) &&
        sigismember(&blocked, SIGTERM) && sigismember(&blocked, SIGUSR1))
        atomic_fetch_add(&l->right, 1);
}

static void names_and_signals(void)
{
    sigset_t before, after;
    pthread_sigmask(SIG_BLOCK, NULL, &before);
    looks l = {.caller = pthread_self()};
    for (int i = 0; i < 100 && !atomic_load(&l.seen); i++)
        bncore_workers_run(20, 3, 0, task_look, &l);
    CHECK(atomic_load(&l.seen) > 0 && atomic_load(&l.seen) == atomic_load(&l.right));
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    for (int s = 1; s < 32; s++) CHECK(sigismember(&before, s) == sigismember(&after, s));
}

/* A worker that sleeps comes when it is called. The first job creates the worker, which is awake then. */
static void asleep(void)
{
    int came = 0;
    for (int i = 0; i < 20; i++) {
        looks l = {.caller = pthread_self()};
        bncore_workers_run(20, 2, 0, task_look, &l);
        came += i > 0 && atomic_load(&l.seen) > 0;
        const struct timespec pause = {0, 5000000};
        nanosleep(&pause, NULL);
    }
    CHECK(came > 0);
}

/* ---- all slots taken ---- */

enum { SLOTS = 16 };
static _Atomic int held = 0, let_go = 0; /* held: the callers that are in a task */

static void task_hold(void *arg, int64_t i)
{
    (void)i;
    const pthread_t *caller = arg;
    if (pthread_equal(pthread_self(), *caller)) atomic_fetch_add(&held, 1);
    const struct timespec ms = {0, 1000000};
    while (!atomic_load(&let_go)) nanosleep(&ms, NULL);
}

static void *hold_slot(void *arg)
{
    (void)arg;
    pthread_t caller = pthread_self();
    bncore_workers_run(2, 2, 0, task_hold, &caller);
    return NULL;
}

/* One job more than there are slots for runs on its caller. A child that is forked meanwhile has all slots, and its
 * workers take part. */
static void full(void)
{
    pthread_t host[SLOTS];
    for (int i = 0; i < SLOTS; i++)
        CHECK(__real_pthread_create(&host[i], NULL, hold_slot, NULL) == 0);
    const struct timespec ms = {0, 1000000};
    while (atomic_load(&held) < SLOTS) nanosleep(&ms, NULL);
    job j = {.nested = 0};
    call(&j, 100, 4, 0);
    CHECK(bncore_workers_count() == 1);
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        looks l = {.caller = pthread_self()};
        for (int i = 0; i < 100 && !atomic_load(&l.seen); i++)
            bncore_workers_run(20, 3, 0, task_look, &l);
        CHECK(atomic_load(&l.seen) > 0);
        exit(0);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    atomic_store(&let_go, 1);
    for (int i = 0; i < SLOTS; i++) pthread_join(host[i], NULL);
}

/* The process is forked while another thread creates a worker, and so keeps the others from it. */
static void creating(void)
{
    pthread_t host;
    job j = {.nested = 0};
    atomic_store(&creating_slowly, 1);
    CHECK(__real_pthread_create(&host, NULL, one_call, &j) == 0);
    const struct timespec ms = {0, 1000000};
    while (atomic_load(&creating_slowly) != 2) nanosleep(&ms, NULL);
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        job own = {.nested = 0};
        call(&own, 64, 3, 0);
        CHECK(bncore_workers_count() == 2);
        exit(0);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    pthread_join(host, NULL);
}

/* ---- claims ---- */

/* The owner takes from the front, others from the back, and who comes from another job takes nothing. */
static void claims(void)
{
    bncore_share share;
    atomic_init(&share.word, bncore_share_word(5, 0, 3));
    for (uint64_t generation = 0; generation < 10; generation++) {
        if (generation == 5) continue;
        for (int is_owner = 0; is_owner < 2; is_owner++)
            CHECK(bncore_share_take(&share, generation, is_owner) == -1);
    }
    CHECK(atomic_load(&share.word) == bncore_share_word(5, 0, 3));
    CHECK(bncore_share_take(&share, 5, 1) == 0);
    CHECK(bncore_share_take(&share, 5, 0) == 2);
    CHECK(bncore_share_take(&share, 5, 1) == 1);
    CHECK(bncore_share_take(&share, 5, 1) == -1 && bncore_share_take(&share, 5, 0) == -1);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    alarm(300);
    const char *mode = argv[1];
    if (strcmp(mode, "hosts") == 0)
        hosts(64, 0);
    else if (strcmp(mode, "forks") == 0)
        hosts(8, 20);
    else if (strcmp(mode, "callers") == 0)
        short_lived_callers();
    else if (strcmp(mode, "refused") == 0)
        refused();
    else if (strcmp(mode, "late") == 0)
        late();
    else if (strcmp(mode, "shares") == 0)
        shares();
    else if (strcmp(mode, "names") == 0)
        names_and_signals();
    else if (strcmp(mode, "asleep") == 0)
        asleep();
    else if (strcmp(mode, "full") == 0)
        full();
    else if (strcmp(mode, "creating") == 0)
        creating();
    else if (strcmp(mode, "claims") == 0)
        claims();
    else
        return 2;
    return 0;
}
