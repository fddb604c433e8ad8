/* Normalize a small batch from C, and take the statistics of a part of it. docs/embedding.md has the commands that build it. */
#include <stdio.h>

#include "bncore.h"

enum { IMAGES = 4, CHANNELS = 3, PLANE = 5, SIZE = IMAGES * CHANNELS * PLANE };

int main(void)
{
    float x[SIZE], y[SIZE]; /* NCHW: outer = IMAGES, channels = CHANNELS, inner = PLANE */
    double mean[CHANNELS], m2[CHANNELS];
    const double weight[CHANNELS] = {1.0, 2.0, 3.0}, bias[CHANNELS] = {0.0, 10.0, 20.0};
    for (int i = 0; i < SIZE; i++) x[i] = (float)(i * i % 17);

    bncore_problem problem;
    bncore_status status =
        bncore_problem_init(&problem, sizeof problem, BNCORE_FLOAT32, IMAGES, CHANNELS, PLANE);
    problem.n_threads = 2; /* at most; a problem as small as this one takes one */
    if (status == BNCORE_OK) status = bncore_train(&problem, y, mean, m2, x, weight, bias);
    if (status != BNCORE_OK) {
        fprintf(stderr, "%s\n", bncore_status_string(status));
        return 1;
    }
    fprintf(stderr, "bncore %s, kernels for %s\n", bncore_version(), bncore_isa());
    for (int c = 0; c < CHANNELS; c++)
        printf("channel %d: mean %.17g, variance %.17g, first value %.9g\n", c, mean[c],
               m2[c] / (IMAGES * PLANE), y[c * PLANE]);

    uint8_t mask[IMAGES * PLANE]; /* one for all channels: the last image is padding */
    double count[CHANNELS];
    for (int i = 0; i < IMAGES * PLANE; i++) mask[i] = i < (IMAGES - 1) * PLANE;

    bncore_weights weights;
    bncore_weights_init(&weights, sizeof weights);
    weights.values = mask;
    weights.count = count;
    problem.weights = &weights;
    status = bncore_moments(&problem, mean, m2, x);
    if (status != BNCORE_OK) return 1;
    for (int c = 0; c < CHANNELS; c++)
        printf("without padding: count %g, mean %.17g\n", count[c], mean[c]);
    return 0;
}
