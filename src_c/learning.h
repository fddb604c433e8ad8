/* Whether more threads than one are worth it at the moment. */
#ifndef BNCORE_LEARNING_H
#define BNCORE_LEARNING_H

#include <stdint.h>

/* Whether jobs that begin now, at `now` nanoseconds, call workers. */
int bncore_threads_pay(int64_t now);

/* A job took `took` nanoseconds until `now`, and would have taken `alone` on one thread. */
void bncore_threads_learn(int64_t now, int64_t alone, int64_t took);

#endif
