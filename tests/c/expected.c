/* The plain loop: batch normalization as the header describes it, in long double, and the largest errors that are
 * allowed. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

/* 16-bit data are computed with as float32, so float32's gates hold for them, and the rounding to dtype comes in
 * addition. */
static int is_float64(const test_case *c)
{
    return c->dtype == BNCORE_FLOAT64;
}

static int is_16_bit(const test_case *c)
{
    return c->dtype == BNCORE_FLOAT16 || c->dtype == BNCORE_BFLOAT16;
}

/* The gates of docs/numerics.md, which tests/tolerances.py explains. They are relative to the sizes that the page
 * names: |weight * xhat| + |bias| for forward, the largest term of dx for backward, and the sum of absolute values
 * for sums. */
#define FORWARD_FLOAT32 (3.0L * FLT_EPSILON)
#define FORWARD_FLOAT64 1e-15L
#define GRADIENT_FLOAT32 (8.0L * FLT_EPSILON)
#define GRADIENT_FLOAT64 1e-12L
#define MEAN (8.0L * DBL_EPSILON)
#define VARIANCE 1e-13L
#define MEAN_OUTLIER                                                                               \
    (128.0L * DBL_EPSILON) /* where a value is more than OUTLIER standard deviations away */
#define VARIANCE_OUTLIER 1e-12L
/* Of float32 data that lie on both sides of 0: docs/numerics.md, a first pivot of 0. */
#define VARIANCE_AROUND_0 1.2e-10L
#define OUTLIER 4.0L
#define OF_FARTHEST (16.0L * DBL_EPSILON) /* of the largest deviation, if there are weights */
#define SUMS 1e-12L

/* Data of 16 bits are added up in chains of float32 (docs/numerics.md has the error of each). */
#define MEAN_SIXTEEN                                                                               \
    (2.0L * FLT_EPSILON) /* of the largest deviation: a difference, three additions */
#define VARIANCE_SIXTEEN (48.0L * FLT_EPSILON) /* for any data in any order */
#define SUMS_SIXTEEN (4.0L * FLT_EPSILON)

/* Beyond it coefficients of float32 overflow, and only the bits of such channels are compared. */
#define LARGEST_SCALE 1e30

/* What the coefficients of a channel are computed from. */
typedef struct channel {
    long double mean, scale, invstd, weight, bias;
} channel;

static long double value(const test_case *c, const void *array, int64_t i)
{
    return read_value(c->dtype, array, i);
}

/* The place of value e of a channel. */
static int64_t place_of(const test_case *c, int64_t ch, int64_t e)
{
    return (e / c->inner * c->channels + ch) * c->inner + e % c->inner;
}

/* Whether a value of weight 0 is left out of the sums, and has no gradient. */
static int is_skipped(const test_case *c, const inputs *in, const void *g, int64_t ch, int64_t e)
{
    if (weight_at(c, in, ch, e) != 0.0) return 0;
    return c->filled || value(c, g, place_of(c, ch, e)) == 0.0L;
}

/* Whether all values that count for a channel are finite and so small that no formula overflows. */
static int is_tame(const test_case *c, const inputs *in, int64_t ch)
{
    const long double largest = 1e6L;
    for (int64_t e = 0; e < c->outer * c->inner; e++) {
        const int64_t i = place_of(c, ch, e);
        if (is_skipped(c, in, in->dy, ch, e)) continue;
        if (!(fabsl(value(c, in->x, i)) < largest) || !(fabsl(value(c, in->dy, i)) < largest) ||
            !(fabsl(value(c, in->residual, i)) < largest))
            return 0;
    }
    return 1;
}

/* The smallest subnormal number of the arithmetic, which is the step of rounding there. */
static long double smallest(const test_case *c)
{
    return is_float64(c) ? DBL_TRUE_MIN : FLT_TRUE_MIN;
}

static void check_value(const test_case *c, const char *name, int64_t i, long double got,
                        long double expected, long double allowed)
{
    if (!(fabsl(got - expected) <= allowed + 8.0L * smallest(c)))
        fail(c, "%s[%lld] is %.17Lg; the plain loop gives %.17Lg, and %.3Lg is allowed", name,
             (long long)i, got, expected, allowed);
}

/* Check a value of y or dx: `allowed` is for the arithmetic, before the result is rounded to dtype. */
static void check_stored(const test_case *c, const char *name, int64_t i, long double got,
                         long double expected, long double allowed)
{
    if (is_16_bit(c)) {
        const long double largest = fabsl(expected) + allowed;
        /* It may be an infinity, which stands for the next number after the largest. */
        const double beyond = c->dtype == BNCORE_FLOAT16 ? 0x1p16 : 0x1p128;
        if (isinf(got)) got = copysignl(beyond, got);
        allowed += last_digit(c->dtype, (double)fminl(largest, beyond / 2.0L)) / 2.0L;
        if (fabsl(expected) > beyond) expected = copysignl(beyond, expected);
    }
    check_value(c, name, i, got, expected, allowed);
}

/* ---- statistics ---- */

static void check_moments(const test_case *c, const inputs *in, const outputs *out, int64_t ch)
{
    const int64_t values_of_all = c->outer * c->inner;
    long double n = 0.0L, sum = 0.0L, m2 = 0.0L, farthest = 0.0L, least = 1.0L, most = -1.0L;
    for (int64_t e = 0; e < values_of_all; e++) {
        const long double w = weight_at(c, in, ch, e);
        n += w;
        if (w > 0.0L) sum += w * value(c, in->x, place_of(c, ch, e));
    }
    if (out->count) check_value(c, "count", ch, out->count[ch], n, SUMS * n);
    if (n == 0.0L) {
        if (!isnan(out->results[0][ch])) fail(c, "mean[%lld] is a number", (long long)ch);
        check_value(c, "m2", ch, out->results[1][ch], 0.0L, 0.0L);
        return;
    }
    const long double mean = sum / n;
    for (int64_t e = 0; e < values_of_all; e++) {
        const long double w = weight_at(c, in, ch, e);
        if (w == 0.0L) continue;
        const long double x = value(c, in->x, place_of(c, ch, e)), d = x - mean;
        m2 += w * d * d;
        least = fminl(least, x);
        most = fmaxl(most, x);
        farthest = fmaxl(farthest, fabsl(d));
    }
    const long double std = sqrtl(m2 / n);
    const int outlier = farthest > OUTLIER * std;
    const long double mean_gate = outlier ? MEAN_OUTLIER : MEAN;
    const long double of_chains = is_16_bit(c) ? MEAN_SIXTEEN * (std + farthest) : 0.0L;
    /* Values of little weight may decide the first pivot, far from the others. */
    const long double apart = c->weights >= NUMBERS ? OF_FARTHEST * farthest : 0.0L;
    check_value(c, "mean", ch, out->results[0][ch], mean,
                mean_gate * (fabsl(mean) + std) + of_chains + apart);
    /* A constant channel's deviations are the rounding of its mean. */
    const long double rounding = n * (MEAN * mean) * (MEAN * mean);
    long double variance_gate = outlier ? VARIANCE_OUTLIER : VARIANCE;
    if (is_16_bit(c)) variance_gate = VARIANCE_SIXTEEN;
    const int about_0 = c->dtype == BNCORE_FLOAT32 && !c->float64_sums;
    if (about_0 && least <= 0.0L && most >= 0.0L) variance_gate = VARIANCE_AROUND_0;
    /* A square below the normal numbers is rounded to a whole multiple of the smallest one. */
    check_value(c, "m2", ch, out->results[1][ch], m2,
                variance_gate * m2 + rounding + n * apart * farthest + n * DBL_TRUE_MIN);
}

/* The statistics that an operation normalizes with: those that were given, or those that it computed. */
static channel channel_of(const test_case *c, const inputs *in, const outputs *out, int64_t ch)
{
    const int own = c->operation == TRAIN;
    const long double n = own && out->count ? out->count[ch] : (long double)(c->outer * c->inner);
    const long double var = own ? out->results[1][ch] / n : in->var[ch];
    channel k = {.mean = own ? out->results[0][ch] : in->mean[ch],
                 .weight = c->weight ? in->weight[ch] : 1.0L,
                 .bias = c->bias ? in->bias[ch] : 0.0L};
    k.invstd = 1.0L / sqrtl(var + (long double)c->eps);
    k.scale = k.weight * k.invstd;
    return k;
}

/* How far rounding the mean to x's type moves a result, before the shift makes up for it. */
static long double of_mean(const test_case *c, const channel *k)
{
    const long double epsilon = is_float64(c) ? DBL_EPSILON : FLT_EPSILON;
    return fabsl(k->mean * k->scale) * epsilon;
}

/* ---- forward ---- */

static void check_forward(const test_case *c, const inputs *in, const outputs *out, int64_t ch,
                          const channel *k)
{
    const long double gate = is_float64(c) ? FORWARD_FLOAT64 : FORWARD_FLOAT32;
    const long double slope = c->activation == BNCORE_LEAKY_RELU ? c->slope : 0.0L;
    for (int64_t e = 0; e < c->outer * c->inner; e++) {
        const int64_t i = place_of(c, ch, e);
        if (weight_at(c, in, ch, e) == 0.0) {
            if (c->filled) check_value(c, "y", i, value(c, out->dst, i), FILL, 0.0L);
            continue;
        }
        const long double scaled = (value(c, in->x, i) - k->mean) * k->scale;
        const long double residual = c->residual ? value(c, in->residual, i) : 0.0L;
        const long double z = scaled + k->bias + residual;
        const long double size = fabsl(scaled) + fabsl(k->bias) + of_mean(c, k);
        /* The residual's addition rounds once more, the slope's multiplication likewise; near 0 the sign of z is open. */
        long double allowed = gate * (size + fabsl(residual));
        allowed += 8.0L * fabsl(k->scale) * smallest(c);
        if (c->activation) allowed *= 2.0L + 2.0L * fabsl(slope);
        const long double y = c->activation && z <= 0.0L ? slope * z : z;
        check_stored(c, "y", i, value(c, out->dst, i), y, allowed);
    }
}

/* ---- backward ---- */

/* Forward's z before it is stored. 16-bit data are widened to float32 for it: a z that they would store as 0 need not be
 * 0. */
static void run_forward(const test_case *forward, const inputs *in, outputs *z)
{
    test_case wide = *forward;
    inputs widened = *in;
    if (is_16_bit(forward)) wide.dtype = BNCORE_FLOAT32;
    widened.bytes = (size_t)values(&wide) * item_size(&wide);
    widened.x = must_have(widened.bytes);
    widened.residual = must_have(widened.bytes);
    for (int64_t i = 0; i < values(&wide); i++) {
        write_value(wide.dtype, widened.x, i, read_value(forward->dtype, in->x, i));
        write_value(wide.dtype, widened.residual, i, read_value(forward->dtype, in->residual, i));
    }
    if (run_case(&wide, &widened, z) != BNCORE_OK) fail(&wide, "forward fails");
    free(widened.x);
    free(widened.residual);
}

/* The gradient by z, which is computed with the z of forward: the header promises that backward uses the same
 * operations. */
static void *masked_gradient(const test_case *c, const inputs *in)
{
    void *g = must_have(in->bytes);
    memcpy(g, in->dy, in->bytes);
    if (!takes_fusion(c->operation) || !c->activation) return g;
    test_case forward = *c;
    outputs z;
    forward.operation = NORMALIZE;
    forward.activation = BNCORE_NO_ACTIVATION;
    forward.place = forward.dresidual_place = APART;
    forward.weights = NO_WEIGHTS;
    forward.host = NO_HOST;
    run_forward(&forward, in, &z);
    const bncore_dtype of_z = is_16_bit(c) ? BNCORE_FLOAT32 : c->dtype;
    for (int64_t i = 0; i < values(c); i++) {
        if (!(read_value(of_z, z.dst, i) <= 0.0)) continue;
        const double dy = read_value(c->dtype, g, i);
        const double product = is_float64(c) ? c->slope * dy : (float)c->slope * (float)dy;
        write_value(c->dtype, g, i, c->activation == BNCORE_LEAKY_RELU ? product : 0.0);
    }
    free_outputs(&z);
    return g;
}

static void check_sums(const test_case *c, const inputs *in, const outputs *out, const void *g,
                       int64_t ch, const channel *k)
{
    const long double gate = is_16_bit(c) ? SUMS_SIXTEEN : SUMS;
    const long double epsilon = is_16_bit(c) ? FLT_EPSILON : DBL_EPSILON; /* of the mean */
    const long double least = is_16_bit(c) ? FLT_TRUE_MIN : DBL_TRUE_MIN;
    /* float32 data may be summed about 0 where the mean is below the root of 15 times the deviation. */
    const long double offset = fabsl(k->mean * k->invstd);
    const long double about_0 = c->dtype == BNCORE_FLOAT32 && offset < 3.88L ? 2.0L * offset : 0.0L;
    long double sum = 0.0L, product = 0.0L, sum_size = 0.0L, product_size = 0.0L;
    for (int64_t e = 0; e < c->outer * c->inner; e++) {
        const int64_t i = place_of(c, ch, e);
        if (is_skipped(c, in, g, ch, e)) continue;
        const long double xhat = (value(c, in->x, i) - k->mean) * k->invstd;
        const long double gradient = value(c, g, i);
        sum += gradient;
        product += gradient * xhat;
        sum_size += fabsl(gradient);
        product_size += fabsl(gradient) * (fabsl(xhat) + about_0 + epsilon * offset);
    }
    check_value(c, "sum_dy", ch, out->results[0][ch], sum, gate * sum_size);
    /* Products below the normal numbers are rounded to whole multiples of the smallest one. For data of 16 bits, xhat is
     * such a product, too. */
    const long double n = (long double)(c->outer * c->inner);
    const long double underflow =
        least * (n * fmaxl(k->invstd, 1.0L) + (is_16_bit(c) ? sum_size : 0.0L));
    check_value(c, "sum_dy_xhat", ch, out->results[1][ch], product,
                gate * product_size + underflow);
}

static void check_dx(const test_case *c, const inputs *in, const outputs *out, const void *g,
                     int64_t ch, const channel *k)
{
    const long double gate = is_float64(c) ? GRADIENT_FLOAT64 : GRADIENT_FLOAT32;
    const int given = c->operation == GRAD_INPUT, frozen = c->operation == INFER_BACKWARD;
    const int counted = given || (c->weights && c->operation == TRAIN_BACKWARD);
    const long double n = counted ? in->count[ch] : (long double)(c->outer * c->inner);
    const long double sum_dy = given ? in->sum_dy[ch] : out->results[0][ch];
    const long double sum_dy_xhat = given ? in->sum_dy_xhat[ch] : out->results[1][ch];
    const long double shift = frozen ? 0.0L : sum_dy / n, slope = frozen ? 0.0L : sum_dy_xhat / n;
    for (int64_t e = 0; e < c->outer * c->inner; e++) {
        const int64_t i = place_of(c, ch, e);
        const long double gradient = value(c, g, i), w = weight_at(c, in, ch, e);
        if (w == 0.0L) { /* x does not matter there, even if it is no number */
            const long double alone = is_skipped(c, in, g, ch, e) ? 0.0L : k->scale * gradient;
            check_stored(c, "dx", i, value(c, out->dst, i), alone, gate * fabsl(alone));
            continue;
        }
        const long double xhat = (value(c, in->x, i) - k->mean) * k->invstd;
        const long double dx = k->scale * (gradient - w * (shift + xhat * slope));
        const long double largest =
            fmaxl(fabsl(gradient), w * fmaxl(fabsl(shift), fabsl(xhat * slope)));
        const long double moved = w * of_mean(c, k) * k->invstd * fabsl(slope);
        /* A term, or the factor of x - mean, may be that small. */
        const long double deviation = fabsl(value(c, in->x, i) - k->mean);
        const long double steps = 8.0L * (fabsl(k->scale) + deviation) * smallest(c);
        check_stored(c, "dx", i, value(c, out->dst, i), dx,
                     gate * (fabsl(k->scale) * largest + moved) + steps);
    }
}

/* dresidual is exact, because it is a copy or one product. */
static void check_dresidual(const test_case *c, const inputs *in, const outputs *out, const void *g)
{
    for (int64_t i = 0; i < values(c); i++) {
        const int64_t ch = i / c->inner % c->channels;
        const int64_t e = i / c->inner / c->channels * c->inner + i % c->inner;
        const int none = c->filled && weight_at(c, in, ch, e) == 0.0;
        const long double got = value(c, out->dresidual, i),
                          expected = none ? 0.0L : value(c, g, i);
        if (got != expected && !(isnan(got) && isnan(expected)))
            fail(c, "dresidual[%lld] is %Lg, not %Lg", (long long)i, got, expected);
    }
}

void check_against_plain_loop(const test_case *c, const inputs *in, const outputs *out)
{
    void *g = is_backward(c->operation) ? masked_gradient(c, in) : NULL;
    if (out->dresidual) check_dresidual(c, in, out, g);
    for (int64_t ch = 0; ch < c->channels; ch++) {
        if (!is_tame(c, in, ch)) continue;
        if (c->operation == MOMENTS || c->operation == TRAIN) check_moments(c, in, out, ch);
        if (c->operation == MOMENTS || c->outer * c->inner == 0) continue;
        if (c->operation == TRAIN && out->count && out->count[ch] == 0.0) continue;
        const channel k = channel_of(c, in, out, ch);
        if (!(k.invstd < LARGEST_SCALE)) continue;
        if (c->operation == NORMALIZE || c->operation == TRAIN) check_forward(c, in, out, ch, &k);
        if (g && gives_results(c->operation)) check_sums(c, in, out, g, ch, &k);
        if (g && writes_array(c->operation)) check_dx(c, in, out, g, ch, &k);
    }
    free(g);
}
