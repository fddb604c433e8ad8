/* Turns any bytes into a call of the C interface. A call that the header allows must give the result of the plain
 * loop, and the same bits in another setting; fuzz_refused.c makes those that it forbids. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"
#include "fuzz.h"

enum { MOST_VALUES = 20000 };

static int64_t some_size(reader *r)
{
    return (int64_t)(next(r, 2) & ((1U << below(r, 13)) - 1));
}

static void shrink(test_case *c)
{
    while (values(c) > MOST_VALUES) {
        int64_t *largest = &c->outer;
        if (c->channels > *largest) largest = &c->channels;
        if (c->inner > *largest) largest = &c->inner;
        *largest /= 2;
    }
}

/* Read the settings that must not change any bit of the results. */
static void read_setting(reader *r, test_case *c)
{
    c->place = (place)below(r, PLACES);
    c->dresidual_place = (place)below(r, PLACES);
    c->host = (host)below(r, HOSTS);
    c->threads = below(r, 8) ? (int32_t)(1 + below(r, 5)) : INT32_MAX;
    c->own_scratch = (int)below(r, 2);
    c->shift = (int64_t)below(r, 16);
    make_valid(c);
}

static test_case read_case(reader *r)
{
    static const double slopes[] = {0.01, -1.5, 0.0, 0.25};
    test_case c = {.operation = (operation)below(r, OPERATIONS),
                   .dtype = (bncore_dtype)below(r, 4),
                   .outer = some_size(r),
                   .channels = some_size(r),
                   .inner = some_size(r),
                   .eps = below(r, 4) ? 1e-5 : fabs(any_double(r)),
                   .contents = (contents)below(r, CONTENTS),
                   .seed = next(r, 2),
                   .weight = (int)below(r, 2),
                   .bias = (int)below(r, 2),
                   .activation = (bncore_activation)below(r, 3),
                   .slope = slopes[below(r, 4)],
                   .residual = (int)below(r, 2),
                   .dresidual = (int)below(r, 2),
                   .weights = below(r, 2) ? NO_WEIGHTS : (weight_kind)below(r, WEIGHT_KINDS),
                   .omit_nan = (int)below(r, 2),
                   .filled = (int)below(r, 2),
                   .float64_sums = (int)below(r, 2)};
    if (!isfinite(c.eps)) c.eps = 1.0;
    shrink(&c);
    read_setting(r, &c);
    return c;
}

/* Write numbers of the fuzzer into the arrays: small ones, or any bits. */
static void overwrite(reader *r, const test_case *c, const inputs *in)
{
    const uint64_t how = below(r, 3);
    void *const arrays[] = {in->x, in->dy};
    const size_t item = item_size(c);
    for (int k = 0; how && k < 2; k++)
        for (int64_t i = 0; i < values(c) && r->left; i++) {
            char *at = (char *)arrays[k] + (size_t)i * item;
            const uint64_t bits = next(r, how == 1 ? 2 : item);
            const uint32_t low_half = (uint32_t)bits;
            const uint16_t low_quarter = (uint16_t)bits;
            if (how == 1)
                write_value(c->dtype, arrays[k], i, (double)(int16_t)bits / 64.0);
            else
                memcpy(at,
                       item == 2   ? (const void *)&low_quarter
                       : item == 4 ? (const void *)&low_half
                                   : &bits,
                       item);
        }
}

static void run_allowed(reader *r, const test_case *c, const inputs *in, outputs *out)
{
    for (int i = (int)below(r, 4); i >= 0; i--)
        if (bncore_isa_available(i)) {
            bncore_isa_set(bncore_isa_available(i));
            break;
        }
    const bncore_status status = run_case(c, in, out);
    if (status != BNCORE_OK) fail(c, "the call fails: %s", bncore_status_string(status));
}

static void try_allowed(reader *r)
{
    const test_case c = read_case(r);
    test_case other = c;
    read_setting(r, &other);
    inputs in = make_inputs(&c);
    outputs out, again;
    run_allowed(r, &c, &in, &out);
    run_allowed(r, &other, &in, &again);
    check_same_bits(&other, &again, &out);
    free_outputs(&again);
    free_outputs(&out);
    overwrite(r, &c, &in);
    run_allowed(r, &c, &in, &out);
    run_allowed(r, &other, &in, &again);
    check_same_bits(&other, &again, &out);
    check_against_plain_loop(&c, &in, &out);
    free_outputs(&again);
    free_outputs(&out);
    free_inputs(&in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    reader r = {data, size};
    switch (below(&r, 16)) {
    case 0:
        try_misaligned(&r);
        break;
    case 1:
    case 2:
    case 3:
        try_anything(&r);
        break;
    default:
        try_allowed(&r);
    }
    return 0;
}
