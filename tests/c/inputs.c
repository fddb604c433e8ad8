/* Cases: their inputs, and how they are named in messages. */
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

/* The digits of a dtype's fraction, and the exponent of its subnormal numbers. */
typedef struct format {
    const char *name;
    size_t bytes;
    int digits, least;
    double smallest; /* what SUBNORMAL contents are multiplied by */
} format;

static const format formats[] = {{"float32", 4, 23, -126, 0x1p-140},
                                 {"float64", 8, 52, -1022, 0x1p-1060},
                                 {"float16", 2, 10, -14, 0x1p-16},
                                 {"bfloat16", 2, 7, -126, 0x1p-128}};

static const char *const operation_names[OPERATIONS] = {
    "moments", "normalize", "train", "grad_sums", "grad_input", "train_backward", "infer_backward"};

_Noreturn void fail(const test_case *c, const char *what, ...)
{
    va_list arguments;
    va_start(arguments, what);
    vfprintf(stderr, what, arguments);
    va_end(arguments);
    fprintf(stderr,
            "\n  %s %s (%lld, %lld, %lld), eps %g, contents %d, seed %llu, weight %d, bias %d,\n"
            "  activation %d, slope %g, residual %d, dresidual %d, place %d, host %d, threads %d,\n"
            "  own scratch %d, shift %lld, instruction set %s\n",
            operation_names[c->operation], formats[c->dtype].name, (long long)c->outer,
            (long long)c->channels, (long long)c->inner, c->eps, c->contents,
            (unsigned long long)c->seed, c->weight, c->bias, c->activation, c->slope, c->residual,
            c->dresidual, c->place, c->host, c->threads, c->own_scratch, (long long)c->shift,
            bncore_isa());
    abort();
}

void *must_have(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        abort();
    }
    return memory;
}

uint64_t random_bits(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1DULL;
}

/* Between -1 and 1. */
static double uniform(uint64_t *state)
{
    return (double)(random_bits(state) >> 11) * 0x1p-52 - 1.0;
}

size_t item_size(const test_case *c)
{
    return formats[c->dtype].bytes;
}

double last_digit(bncore_dtype dtype, double value)
{
    const format *f = &formats[dtype];
    const int exponent = value != 0.0 && isfinite(value) ? ilogb(value) : f->least;
    return ldexp(1.0, (exponent > f->least ? exponent : f->least) - f->digits);
}

static double from_bits(const format *f, uint16_t bits)
{
    const int all = 0x7FFF >> f->digits, field = bits >> f->digits & all;
    const int fraction = bits & ((1 << f->digits) - 1);
    double size = ldexp(fraction + ldexp(field > 0, f->digits),
                        f->least - f->digits + (field ? field - 1 : 0));
    if (field == all) size = fraction ? NAN : INFINITY;
    return bits >> 15 ? -size : size;
}

static uint16_t to_bits(bncore_dtype dtype, double value)
{
    const format *f = &formats[dtype];
    const uint16_t infinity = (uint16_t)(0x7FFF >> f->digits << f->digits);
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    const double digit = last_digit(dtype, value), steps = nearbyint(fabs(value) / digit);
    const double largest = from_bits(f, (uint16_t)(infinity - 1));
    if (isnan(value)) return infinity | 1;
    if (isinf(value) || steps * digit > largest) return sign | infinity;
    /* A carry to the next exponent is right by itself. */
    const int exponent = ilogb(digit) + f->digits - f->least;
    return (uint16_t)(sign | ((exponent << f->digits) + (int)steps));
}

double read_value(bncore_dtype dtype, const void *array, int64_t i)
{
    if (dtype == BNCORE_FLOAT32) return ((const float *)array)[i];
    if (dtype == BNCORE_FLOAT64) return ((const double *)array)[i];
    return from_bits(&formats[dtype], ((const uint16_t *)array)[i]);
}

void write_value(bncore_dtype dtype, void *array, int64_t i, double value)
{
    if (dtype == BNCORE_FLOAT32)
        ((float *)array)[i] = (float)value;
    else if (dtype == BNCORE_FLOAT64)
        ((double *)array)[i] = value;
    else
        ((uint16_t *)array)[i] = to_bits(dtype, value);
}

int64_t values(const test_case *c)
{
    return c->outer * c->channels * c->inner;
}

int is_backward(operation o)
{
    return o >= GRAD_SUMS;
}

int writes_array(operation o)
{
    return o != MOMENTS && o != GRAD_SUMS;
}

int takes_fusion(operation o)
{
    return o == NORMALIZE || o == TRAIN || o == TRAIN_BACKWARD || o == INFER_BACKWARD;
}

int gives_results(operation o)
{
    return o != NORMALIZE && o != GRAD_INPUT;
}

int gives_dresidual(const test_case *c)
{
    return c->dresidual && is_backward(c->operation) && takes_fusion(c->operation);
}

void make_valid(test_case *c)
{
    const int has[PLACES] = {1, 1, is_backward(c->operation),
                             c->residual && takes_fusion(c->operation)};
    if (!has[c->place] || !writes_array(c->operation)) c->place = APART;
    if (!has[c->dresidual_place] || !gives_dresidual(c)) c->dresidual_place = APART;
    if (c->dresidual_place == OVER_X) c->dresidual_place = APART;
    if (c->dresidual_place == c->place) c->dresidual_place = APART;
}

static double special(uint64_t *state)
{
    static const double choices[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 0.0, -0.0, 1.0};
    return choices[random_bits(state) % (sizeof choices / sizeof *choices)];
}

static double value_of(const test_case *c, int64_t channel, uint64_t *state)
{
    switch (c->contents) {
    case CONSTANT:
        return 0.1 * (double)(channel + 1);
    case FAR_FROM_ZERO:
        return 1000.0 + uniform(state);
    case SUBNORMAL:
        return formats[c->dtype].smallest * uniform(state);
    case SPECIAL:
        if (channel % 2 && random_bits(state) % 8 == 0) return special(state);
        return uniform(state);
    default:
        return 2.0 * uniform(state) + 0.25 * (double)(channel % 7);
    }
}

static void *make_array(const test_case *c, uint64_t *state)
{
    void *array = must_have((size_t)values(c) * item_size(c));
    for (int64_t i = 0; i < values(c); i++) {
        const double value = value_of(c, i / c->inner % c->channels, state);
        write_value(c->dtype, array, i, value);
    }
    return array;
}

static double *make_parameter(const test_case *c, double centre, double spread, uint64_t *state)
{
    double *parameter = must_have((size_t)c->channels * sizeof(double));
    for (int64_t i = 0; i < c->channels; i++) parameter[i] = centre + spread * uniform(state);
    return parameter;
}

inputs make_inputs(const test_case *c)
{
    uint64_t state = c->seed | 1;
    inputs in = {.bytes = (size_t)values(c) * item_size(c)};
    in.x = make_array(c, &state);
    in.dy = make_array(c, &state);
    in.residual = make_array(c, &state);
    const double centre = c->contents == FAR_FROM_ZERO ? 1000.0 : 0.25;
    in.mean = make_parameter(c, centre, 0.25, &state);
    in.var = make_parameter(c, 1.0, 0.5, &state);
    in.weight = make_parameter(c, 0.0, 2.0, &state);
    in.bias = make_parameter(c, 0.0, 1.0, &state);
    in.sum_dy = make_parameter(c, 0.0, 3.0, &state);
    in.sum_dy_xhat = make_parameter(c, 0.0, 3.0, &state);
    in.count = make_parameter(c, 100.0, 50.0, &state);
    return in;
}

void free_inputs(inputs *in)
{
    void *const all[] = {in->x,      in->dy,   in->residual, in->mean,        in->var,
                         in->weight, in->bias, in->sum_dy,   in->sum_dy_xhat, in->count};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    *in = (inputs){0};
}
