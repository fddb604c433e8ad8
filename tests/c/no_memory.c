/* Tests calls that run out of memory or threads: the k-th request of a call fails, for every k, each in a new
 * process.
 *
 * The linker redirects the library's requests to the functions below (--wrap). A call that gets no memory for its
 * scratch must return BNCORE_ERROR_MEMORY and write nothing. A call that gets no thread, or no memory to manage
 * threads, must do the work on fewer threads. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cases.h"

static _Atomic int watching;        /* requests of the library, not of this program */
static _Atomic long requests, held; /* how many there were; memory that was not given back */
static long fails_at = -1;          /* the request that fails; -1: none */
static int all_after;               /* whether all requests after it fail, too */

static int refused(void)
{
    if (!watching) return 0;
    const long i = requests++;
    return fails_at >= 0 && (i == fails_at || (all_after && i > fails_at));
}

static void *counted(void *memory)
{
    if (watching && memory) held++;
    return memory;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **memory, size_t alignment, size_t size);
void __real_free(void *memory);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument);

void *__wrap_malloc(size_t size)
{
    return refused() ? NULL : counted(__real_malloc(size));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return refused() ? NULL : counted(__real_calloc(n, size));
}

void *__wrap_realloc(void *old, size_t size)
{
    if (refused()) return NULL;
    return old ? __real_realloc(old, size) : counted(__real_realloc(old, size));
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return refused() ? NULL : counted(__real_aligned_alloc(alignment, size));
}

int __wrap_posix_memalign(void **memory, size_t alignment, size_t size)
{
    if (refused()) return ENOMEM;
    const int error = __real_posix_memalign(memory, alignment, size);
    if (!error) counted(*memory);
    return error;
}

void __wrap_free(void *memory)
{
    if (watching && memory) held--;
    __real_free(memory);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument)
{
    if (refused()) return EAGAIN;
    return __real_pthread_create(thread, attributes, start, argument);
}

static void watch(int inside)
{
    watching = inside;
}

/* Planes and rows whose scratch is too large for the stack, with and without threads, and one that allocates no
 * scratch. */
static const test_case cases[] = {
    {.operation = TRAIN, .outer = 4, .channels = 3000, .inner = 20, .threads = 1},
    {.operation = TRAIN, .outer = 40, .channels = 300, .inner = 20, .threads = 4},
    {.operation = TRAIN_BACKWARD, .outer = 900, .channels = 300, .inner = 1, .threads = 4},
    {.operation = MOMENTS, .outer = 4000, .channels = 100, .inner = 1, .threads = 3},
    {.operation = INFER_BACKWARD, .outer = 64, .channels = 700, .inner = 4, .threads = 2},
    {.operation = GRAD_INPUT, .outer = 50, .channels = 4000, .inner = 1, .threads = 2},
    {.operation = TRAIN, .outer = 40, .channels = 300, .inner = 20, .threads = 4, .weights = MASK},
    {.operation = TRAIN_BACKWARD,
     .outer = 900,
     .channels = 300,
     .inner = 1,
     .threads = 4,
     .weights = NUMBERS_OF_X},
    {.operation = NORMALIZE, .outer = 8, .channels = 16, .inner = 900, .threads = 3},
};
enum { CASES = sizeof cases / sizeof *cases };

/* Run case `which` while request `fail_at` is refused. Returns 1 where the call made fewer requests, 2 where it
 * returned BNCORE_ERROR_MEMORY, and 0 where it did its work without what was refused. */
static int run_one(int which, long fail_at, int and_all_after)
{
    test_case c = cases[which];
    c.eps = 1e-5;
    c.seed = 5;
    c.weight = c.bias = 1;
    inputs in = make_inputs(&c);
    outputs out, again;
    around_call = watch;
    fails_at = fail_at;
    all_after = and_all_after;
    const bncore_status status = run_case(&c, &in, &out);
    const long made = requests;
    if (status != BNCORE_OK && status != BNCORE_ERROR_MEMORY)
        fail(&c, "with request %ld refused: %s", fail_at, bncore_status_string(status));
    if (status == BNCORE_OK) check_against_plain_loop(&c, &in, &out);
    /* With memory again the call does its work, and gives back all that it takes. */
    fails_at = -1;
    const bncore_status second = run_case(&c, &in, &again);
    if (second != BNCORE_OK) fail(&c, "with memory again: %s", bncore_status_string(second));
    check_against_plain_loop(&c, &in, &again);
    if (status == BNCORE_OK) check_same_bits(&c, &out, &again);
    free_outputs(&again);
    held = 0;
    if (run_case(&c, &in, &again) != BNCORE_OK || held != 0)
        fail(&c, "a call keeps %ld pieces of memory", held);
    free_outputs(&again);
    if (status == BNCORE_OK) free_outputs(&out);
    free_inputs(&in);
    return fail_at >= 0 && made <= fail_at ? 1 : status == BNCORE_OK ? 0 : 2;
}

/* run_one() in a process that has called nothing yet. */
static int in_a_new_process(const char *program, int which, long fail_at, int and_all_after)
{
    char numbers[3][24];
    snprintf(numbers[0], sizeof numbers[0], "%d", which);
    snprintf(numbers[1], sizeof numbers[1], "%ld", fail_at);
    snprintf(numbers[2], sizeof numbers[2], "%d", and_all_after);
    const pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", program, numbers[0], numbers[1], numbers[2], (char *)NULL);
        _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) ||
        WEXITSTATUS(status) > 2) {
        fprintf(stderr, "case %d fails with request %ld refused\n", which, fail_at);
        exit(1);
    }
    return WEXITSTATUS(status);
}

int main(int count, char **arguments)
{
    if (count == 4) return run_one(atoi(arguments[1]), atol(arguments[2]), atoi(arguments[3]));
    long refusals = 0, errors = 0;
    for (int which = 0; which < CASES; which++)
        for (int and_all_after = 0; and_all_after < 2; and_all_after++)
            for (long k = 0;; k++) {
                const int result = in_a_new_process(arguments[0], which, k, and_all_after);
                if (result == 1) break; /* the call makes fewer requests */
                refusals++;
                errors += result == 2;
            }
    printf("%ld requests refused, %ld of them reported, the others done without\n", refusals,
           errors);
    if (errors == 0) {
        fprintf(stderr, "expected calls that need memory, found none\n");
        return 1;
    }
    return 0;
}
