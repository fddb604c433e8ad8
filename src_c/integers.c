/* The operations on arrays of integers. Their sums are exact, in any order. Inference converts a few values at a time, in the
 * first-level cache, and calls the kernels for float. */
#include "include/bncore.h"
#include "run.h"
#include "wide.h"

enum {
    BUFFER = 2048, /* values that are converted at a time */
    CENTER = 3,    /* the field of coefficients that follows those of normalize */
    SOME = 64      /* channels whose coefficients are computed at a time */
};

/* ---- moments ---- */

static void merge_integers(bncore_partial into, const double *from, int64_t cols, int64_t step)
{
    for (int f = 0; f < MOMENTS_FIELDS; f += 2)
        for (int64_t c = 0; c < cols * step; c += step) {
            const int64_t at = f * into.stride + c;
            wide_add(into.at + at, into.stride, wide_at(from + at, into.stride));
        }
}

static void finish_integers(const operation *op, int64_t first, int64_t n, bncore_partial partial,
                            int64_t step)
{
    for (int64_t c = 0; c < n; c++) {
        const double *from = partial.at + c * step;
        wide_moments(&op->results[0][first + c], &op->results[1][first + c],
                     wide_at(from, partial.stride),
                     wide_at(from + 2 * partial.stride, partial.stride), (uint64_t)op->g.n,
                     op->arrays.integers->flip);
    }
}

/* ---- inference ---- */

/* The center of a channel is its mean rounded to float. The values then have the rest of the mean. */
static void set_centered(const operation *op, int64_t first, int64_t n)
{
    float *coef = (float *)op->coef + first;
    double low[SOME];
    for (int64_t begin = 0; begin < n; begin += SOME) {
        const int64_t c = first + begin, some = bncore_min(n - begin, SOME);
        for (int64_t i = 0; i < some; i++) {
            const float center = (float)op->mean[c + i];
            coef[CENTER * op->coef_stride + begin + i] = center;
            low[i] = op->mean[c + i] - (double)center;
        }
        op->kernels->normalize_coefs(coef + begin, op->coef_stride, some, low, op->invstd + c,
                                     op->weight ? op->weight + c : NULL,
                                     op->bias ? op->bias + c : NULL);
    }
}

/* Convert the n values from `at` on, and return the arrays of a call for them. k has their coefficients. */
static bncore_arrays converted(const bncore_arrays *a, float *values, int64_t at, int64_t n,
                               const float *k, int64_t stride, int by_column)
{
    const bncore_integers *integers = a->integers;
    const char *x = a->x;
    bncore_arrays b = *a;
    integers->set->load(values, x + (size_t)at * integers->set->item, n, integers->flip,
                        integers->centered ? k + CENTER * stride : NULL, by_column);
    b.x = values;
    b.dst = (float *)a->dst + at;
    b.residual = a->residual ? (const float *)a->residual + at : NULL;
    return b;
}

static void apply_planes(const bncore_arrays *a, const void *coef, int64_t stride,
                         const bncore_planes *t)
{
    const int centered = a->integers->centered;
    float values[BUFFER];
    for (int64_t e = t->begin, len; e < t->end; e += len) {
        const int64_t image = e / t->inner, in_image = e - image * t->inner;
        len = bncore_min(bncore_min(t->inner - in_image, t->end - e), BUFFER);
        /* Short runs of neighbouring channels are converted together. */
        const int64_t most = len == t->inner && !centered ? BUFFER / len : 1;
        for (int64_t c = 0, runs; c < t->channels; c += runs) {
            runs = bncore_min(most, t->channels - c);
            const float *k = (const float *)coef + c;
            const int64_t at = image * t->image_stride + c * t->inner + in_image;
            const bncore_arrays b = converted(a, values, at, runs * len, k, stride, 0);
            const bncore_planes tile = {runs, len, 0, 0, len};
            a->integers->apply_planes(&b, k, stride, &tile);
        }
    }
}

static void apply_rows(const bncore_arrays *a, const void *coef, int64_t stride,
                       const bncore_rows *t)
{
    const int64_t most = a->integers->centered ? 1 : bncore_max(BUFFER / t->cols, 1);
    float values[BUFFER];
    for (int64_t r = 0, rows; r < t->rows; r += rows) {
        rows = bncore_min(most, t->rows - r);
        for (int64_t j = 0, cols; j < t->cols; j += cols) {
            cols = bncore_min(BUFFER, t->cols - j);
            const float *k = (const float *)coef + j;
            const int64_t at = r * t->cols + j;
            const bncore_arrays b = converted(a, values, at, rows * cols, k, stride, 1);
            const bncore_rows tile = {rows, cols, cols};
            a->integers->apply_rows(&b, k, stride, &tile);
        }
    }
}

/* ---- for operations.c ---- */

void bncore_read_integers(operation *op, const bncore_kernels *kernels)
{
    const int type = op->problem->dtype - BNCORE_UINT8;
    bncore_integers *integers = &op->integers;
    integers->set = &kernels->integer_sets[type / 2];
    op->x_item = integers->set->item;
    integers->flip = type % 2 ? (uint32_t)1 << (8 * op->x_item - 1) : 0;
    integers->centered = op->x_item == sizeof(uint32_t);
    op->arrays.integers = integers;
}

void bncore_sum_integers(operation *op)
{
    op->reduce_planes = op->integers.set->sum_planes;
    op->reduce_rows = op->integers.set->sum_rows;
    op->merge = merge_integers;
    op->finish = finish_integers;
}

void bncore_normalize_integers(operation *op)
{
    op->integers.apply_planes = op->apply_planes;
    op->integers.apply_rows = op->apply_rows;
    op->apply_planes = apply_planes;
    op->apply_rows = apply_rows;
    if (!op->integers.centered) return;
    op->coef_fields = CENTER + 1;
    op->set_coefs = set_centered;
}
