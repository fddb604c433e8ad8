/* Drives src_c/learning.c alone, with jobs that take as long as each mode says; test_learning.py says what each mode
 * proves. The clock is a number here, so nothing depends on the machine. Exit status 0: all went well. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "learning.h"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

enum { MICROSECOND = 1000, MILLISECOND = 1000 * MICROSECOND, ALONE = 100 * MICROSECOND };

static int64_t now = 1;

/* Jobs of ALONE, one after the other, for so many milliseconds. On workers a job takes `awake`, and the first one
 * after jobs without workers takes `asleep`. Returns the percentage of the jobs that called workers. */
static int run(int64_t milliseconds, int64_t asleep, int64_t awake)
{
    const int64_t end = now + milliseconds * MILLISECOND;
    int64_t jobs = 0, on_workers = 0;
    for (int sleeping = 1; now < end; jobs++) {
        if (!bncore_threads_pay(now)) {
            now += ALONE;
            sleeping = 1;
            continue;
        }
        const int64_t took = sleeping ? asleep : awake;
        now += took;
        bncore_threads_learn(now, ALONE, took);
        on_workers++;
        sleeping = 0;
    }
    return (int)(100 * on_workers / jobs);
}

static int idle(int64_t milliseconds)
{
    return run(milliseconds, ALONE + 20 * MICROSECOND, ALONE - 40 * MICROSECOND);
}

static int busy(int64_t milliseconds)
{
    return run(milliseconds, 10 * MILLISECOND, 10 * MILLISECOND);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    if (strcmp(argv[1], "idle") == 0) {
        CHECK(idle(1000) >= 99);
    } else if (strcmp(argv[1], "busy") == 0) {
        busy(10000);
        CHECK(busy(10000) <= 1);
    } else if (strcmp(argv[1], "recovers") == 0) {
        busy(10000);
        idle(1000); /* the longest pause ends in this time */
        CHECK(idle(1000) >= 99);
    } else if (strcmp(argv[1], "never pays") == 0) {
        const int64_t took = ALONE + 20 * MICROSECOND;
        run(10000, took, took);
        CHECK(run(10000, took, took) <= 1);
    } else {
        return 2;
    }
    return 0;
}
