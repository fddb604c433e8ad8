/* Many threads of a host call the library at once, each on its own arrays, while another thread changes the process's
 * executor. The first calls of the process are among them. ThreadSanitizer looks for races, and the program compares
 * the bits of the results with those of one thread. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "cases.h"

enum { CALLERS = 8, CALLS = 24 };

static const int64_t shapes[][3] = {
    {8, 32, 784}, {3000, 48, 1}, {4, 7, 49}, {2, 3, 40000}, {700, 64, 4}, {16, 8, 1},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

typedef struct one_call {
    test_case c;
    inputs in;
    outputs out;
    bncore_status status;
} one_call;

static one_call all[CALLERS][CALLS];
static atomic_int working = CALLERS;

static one_call make_call(uint64_t *random)
{
    const int64_t *shape = shapes[random_bits(random) % SHAPES];
    test_case c = {.operation = (operation)(random_bits(random) % OPERATIONS),
                   .dtype = (bncore_dtype)(random_bits(random) % 2),
                   .outer = shape[0],
                   .channels = shape[1],
                   .inner = shape[2],
                   .eps = 1e-5,
                   .seed = random_bits(random),
                   .weight = 1,
                   .bias = 1,
                   .activation = (bncore_activation)(random_bits(random) % 3),
                   .slope = 0.25,
                   .residual = (int)(random_bits(random) % 2),
                   .dresidual = (int)(random_bits(random) % 2),
                   .place = (place)(random_bits(random) % PLACES),
                   .host = random_bits(random) % 4 ? NO_HOST : ON_THREADS,
                   .threads = (int32_t)(1 + random_bits(random) % 4),
                   .own_scratch = (int)(random_bits(random) % 2)};
    make_valid(&c);
    return (one_call){.c = c, .in = make_inputs(&c)};
}

static void *call_all(void *argument)
{
    one_call *calls = argument;
    for (int i = 0; i < CALLS; i++)
        calls[i].status = run_case(&calls[i].c, &calls[i].in, &calls[i].out);
    atomic_fetch_sub(&working, 1);
    return NULL;
}

/* Set the host's executor and reset it, in turn, until all threads have called. */
static void *change_executors(void *unused)
{
    static const struct timespec a_while = {.tv_nsec = 1000000};
    while (atomic_load(&working) > 0) {
        bncore_executor_set(executor_of(ON_THREADS));
        nanosleep(&a_while, NULL);
        bncore_executor_set(NULL);
        nanosleep(&a_while, NULL);
    }
    return unused;
}

static void start(pthread_t *thread, void *(*function)(void *), void *argument)
{
    if (pthread_create(thread, NULL, function, argument) == 0) return;
    fprintf(stderr, "no thread\n");
    exit(1);
}

/* Compare the results with those of the same call on one thread, while no other runs. */
static void compare(one_call *call)
{
    if (call->status != BNCORE_OK)
        fail(&call->c, "the call fails: %s", bncore_status_string(call->status));
    test_case alone = call->c;
    alone.threads = 1;
    alone.host = NO_HOST;
    outputs expected;
    if (run_case(&alone, &call->in, &expected) != BNCORE_OK) fail(&alone, "the call fails alone");
    check_same_bits(&call->c, &call->out, &expected);
    free_outputs(&expected);
    free_outputs(&call->out);
    free_inputs(&call->in);
}

int main(void)
{
    pthread_t callers[CALLERS], changer;
    uint64_t random = 7;
    for (int i = 0; i < CALLERS; i++)
        for (int k = 0; k < CALLS; k++) all[i][k] = make_call(&random);
    start(&changer, change_executors, NULL);
    for (int i = 0; i < CALLERS; i++) start(&callers[i], call_all, all[i]);
    for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], NULL);
    pthread_join(changer, NULL);
    for (int i = 0; i < CALLERS; i++)
        for (int k = 0; k < CALLS; k++) compare(&all[i][k]);
    printf("%d calls of %d threads: the bits of one thread\n", CALLERS * CALLS, CALLERS);
    return 0;
}
