/* Prints the mean and m2 for each line of sums: of x and of x * x, as halves, the number of values, and the flip. */
#include <inttypes.h>
#include <stdio.h>

#include "wide.h"

int main(void)
{
    bncore_wide sum, squares;
    uint64_t n, flip;
    while (scanf("%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &sum.high,
                 &sum.low, &squares.high, &squares.low, &n, &flip) == 6) {
        double mean, m2;
        wide_moments(&mean, &m2, sum, squares, n, flip);
        printf("%a %a\n", mean, m2);
    }
    return 0;
}
