/* What operations.c checks of a call before it writes anything. */
#ifndef BNCORE_ARGUMENTS_H
#define BNCORE_ARGUMENTS_H

#include "run.h"

/* Check the problem, with its fusion's and its weights' arrays and its scratch, and begin *op with it: an operation that takes
 * integers, too, or one that does not. */
bncore_status bncore_start_any(operation *op, const bncore_problem *p, void *dst, const void *dy,
                               const void *x);
bncore_status bncore_start(operation *op, const bncore_problem *p, void *dst, const void *dy,
                           const void *x);

/* Check arrays of x's size. Where they hold no value, they may be NULL, and nobody looks at them. */
bncore_status bncore_check_data(const operation *op, int count, const void *const arrays[]);

/* Check arrays of double[channels], which may be NULL where there is no channel, or (optional) everywhere. */
bncore_status bncore_check_channels(const operation *op, int count, const void *const arrays[]);
bncore_status bncore_check_optional(int count, const void *const arrays[]);

/* Check the count of the weights, which the operation reads or writes. */
bncore_status bncore_check_count(const operation *op);

/* Check the numbers of values that grad_input is given. */
bncore_status bncore_check_counts(const operation *op, const double *count);

#endif
