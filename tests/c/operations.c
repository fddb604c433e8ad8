/* Runs every operation over shapes, dtypes, contents, places in memory, instruction sets, threads and hosts. The
 * results must agree with the plain loop, and must have the same bits in every setting. With --digests the program
 * prints a digest of the results of each case instead, which is the same on every machine. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cases.h"

/* These shapes take all paths through the library: planes and rows, rows that are read several at a time or not, one
 * channel, vectors with and without a remainder, several segments, more channels than a group, and no value at all. */
static const int64_t shapes[][3] = {
    {0, 3, 4},     {3, 0, 4},    {3, 4, 0},    {1, 1, 1},      {1, 3, 1},     {2, 3, 15},
    {5, 2, 16},    {3, 5, 17},   {7, 33, 49},  {2, 1, 40000},  {1, 3, 70001}, {4, 64, 784},
    {600, 1, 1},   {64, 7, 1},   {300, 4, 3},  {1025, 16, 1},  {130, 257, 1}, {513, 64, 2},
    {3000, 17, 1}, {40, 300, 4}, {9, 1000, 1}, {12, 40, 1024}, {5000, 24, 1},
};

/* These shapes are so large that the outputs pass the caches by. */
static const int64_t large[][3] = {{2, 3, 530003}, {28411, 112, 1}};

static long calls;
static int digests; /* they are printed, and nothing is checked */

static void run_checked(const test_case *c, const inputs *in, outputs *out)
{
    const bncore_status status = run_case(c, in, out);
    if (status != BNCORE_OK) fail(c, "the call fails: %s", bncore_status_string(status));
    calls++;
}

static void print_digest(const test_case *c, const outputs *out)
{
    uint64_t state = digest(DIGEST, c->dtype, out->dst, values(c));
    state = digest(state, c->dtype, out->dresidual, values(c));
    for (int i = 0; i < 2; i++) state = digest(state, BNCORE_FLOAT64, out->results[i], c->channels);
    state = digest(state, BNCORE_FLOAT64, out->count, c->channels);
    printf("operation %d, dtype %d, (%lld, %lld, %lld), seed %016llx: %016llx\n", c->operation,
           c->dtype, (long long)c->outer, (long long)c->channels, (long long)c->inner,
           (unsigned long long)c->seed, (unsigned long long)state);
}

/* Run the same case in other settings, which must not change any bit. */
static void vary(const test_case *c, const inputs *in, const outputs *expected, uint64_t *random)
{
    for (int i = 0; bncore_isa_available(i); i++) {
        test_case other = *c;
        bncore_isa_set(bncore_isa_available(i));
        other.place = (place)(random_bits(random) % PLACES);
        other.dresidual_place = (place)(random_bits(random) % PLACES);
        other.host = (host)(random_bits(random) % HOSTS);
        other.threads = (int32_t)(1 + random_bits(random) % 4);
        other.own_scratch = (int)(random_bits(random) % 2);
        other.shift = (int64_t)(random_bits(random) % 16);
        make_valid(&other);
        outputs got;
        run_checked(&other, in, &got);
        check_same_bits(&other, &got, expected);
        free_outputs(&got);
    }
    bncore_isa_set(NULL);
}

static void check_case(const test_case *c, uint64_t *random)
{
    inputs in = make_inputs(c);
    outputs out;
    run_checked(c, &in, &out);
    if (digests) {
        print_digest(c, &out);
    } else {
        check_against_plain_loop(c, &in, &out);
        vary(c, &in, &out, random);
    }
    free_outputs(&out);
    free_inputs(&in);
}

/* Choose everything that changes the results by the bits of a random number. */
static test_case choose(const int64_t shape[3], operation o, bncore_dtype dtype, uint64_t *random)
{
    static const double slopes[] = {0.01, -1.5, 0.0, 0.25};
    const uint64_t r = random_bits(random);
    return (test_case){.operation = o,
                       .dtype = dtype,
                       .outer = shape[0],
                       .channels = shape[1],
                       .inner = shape[2],
                       .eps = r & 1 ? 1e-5 : 1e-3,
                       .contents = (contents)((r >> 8) % CONTENTS),
                       .seed = r,
                       .weight = r >> 1 & 1,
                       .bias = r >> 2 & 1,
                       .activation = (bncore_activation)((r >> 16) % 3),
                       .slope = slopes[r >> 20 & 3],
                       .residual = r >> 3 & 1,
                       .dresidual = r >> 4 & 1,
                       .threads = 1};
}

/* Give the case weights of some kind. */
static void weigh(test_case *c, uint64_t *random)
{
    const uint64_t r = random_bits(random);
    c->weights = (weight_kind)(1 + r % (WEIGHT_KINDS - 1));
    c->omit_nan = r >> 8 & 1;
    c->filled = r >> 9 & 1;
    c->float64_sums = r >> 10 & 1;
    make_valid(c);
}

static void check_shape(const int64_t shape[3], uint64_t *random)
{
    const int small = shape[0] * shape[1] * shape[2] < 20000;
    for (int o = 0; o < OPERATIONS; o++)
        for (int dtype = BNCORE_FLOAT32; dtype <= BNCORE_BFLOAT16; dtype++) {
            const int full = dtype <= BNCORE_FLOAT64, rounds = (full ? 2 : 1) * (small ? 2 : 1);
            for (int round = 0; round < rounds; round++) {
                test_case c = choose(shape, (operation)o, (bncore_dtype)dtype, random);
                check_case(&c, random);
                weigh(&c, random);
                check_case(&c, random);
            }
        }
}

int main(int argc, char **argv)
{
    uint64_t random = 1;
    digests = argc > 1 && strcmp(argv[1], "--digests") == 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) check_shape(shapes[i], &random);
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        test_case c = choose(large[i], NORMALIZE, BNCORE_FLOAT32, &random);
        check_case(&c, &random);
        c.operation = TRAIN_BACKWARD;
        check_case(&c, &random);
        for (int kind = MASK; kind <= NUMBERS; kind++) {
            c.operation = kind == MASK ? NORMALIZE : TRAIN_BACKWARD;
            c.weights = (weight_kind)kind;
            c.filled = kind != NUMBERS;
            check_case(&c, &random);
        }
    }
    if (!digests) printf("%ld calls: right, and the same bits in every setting\n", calls);
    return 0;
}
