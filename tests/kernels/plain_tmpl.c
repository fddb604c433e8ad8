/* Computes what the kernels compute, for storage type T and arithmetic in ACC, in plain loops: one value, one channel, one block after the
 * other. The order of additions is the one that partition.h fixes. A run is added to 16 lanes, and its remainder to
 * the last lanes. The lanes are flushed after BNCORE_BLOCK values, and a column after BNCORE_ROW_BLOCK rows. 16-bit values
 * are added in chains first. */

#include "plain_values_tmpl.c"

/* ---- sums ---- */

/* What a value adds to the two sums of its channel, and its weight. With STORED it writes dresidual, too. */
static void NAME(addends)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t i,
                          int64_t c, double about, double add[3])
{
    const NAME(value) v = NAME(value_at)(a, t, i);
    const double d = v.w == 0.0 ? 0.0 : (double)v.x - about;
    add[2] = v.w;
    if (is_moments(k)) {
        add[0] = v.w * d;
        add[1] = v.w * d * d;
        return;
    }
    const ACC g = NAME(plain_g)(v, NAME(in).mask + c, t->columns + COEF_GAP, k->fused);
    const int skipped = NAME(is_skipped)(v, g);
    if (k->fused & STORED && a->dresidual)
        ((T *)a->dresidual)[i] = NAME(store)(v.w == 0.0 && !v.unfilled ? (ACC)0 : g);
    add[0] = skipped ? 0.0 : (double)g;
    add[1] = skipped ? 0.0 : (double)g * ((double)v.x - about);
}

/* v, rounded to a value of T. */
static double NAME(nearest)(double v)
{
    return (double)NAME(load)(NAME(store)((ACC)v));
}

/* The first pivot of `count` values from i on, `step` apart; the first one has weight. */
static double NAME(pivot)(const bncore_arrays *a, const tile *t, int64_t i, int64_t count,
                          int64_t step)
{
    const T *x = a->x;
    const double first = (double)NAME(load)(x[i]);
    double sum = 0.0, taken = 1.0;
    for (int64_t n = 1; n < count; n++) {
        if (NAME(plain_weight)(a, t, i + n * step) == 0.0) continue;
        sum += (double)NAME(load)(x[i + n * step]) - first;
        taken += 1.0;
    }
    const double pivot = first + sum / taken;
    return isfinite(pivot) ? pivot : 0.0;
}

/* Whether values with weight, among `count` from i on, `step` apart, lie on both sides of 0. */
static int NAME(both_signs)(const bncore_arrays *a, const tile *t, int64_t i, int64_t count,
                            int64_t step)
{
    int sides = 0;
    for (int64_t n = 0; n < count; n++) {
        const ACC v = NAME(load)(((const T *)a->x)[i + n * step]);
        if (NAME(plain_weight)(a, t, i + n * step) == 0.0) continue;
        sides |= (v <= 0 ? 1 : 0) + (v >= 0 ? 2 : 0);
    }
    return sides == 3;
}

/* The two terms of a value in a chain of float32. */
static void NAME(terms)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t i,
                        int64_t c, double about, float terms[2])
{
    const NAME(value) v = NAME(value_at)(a, t, i);
    const float x = (float)v.x;
    if (is_moments(k)) {
        terms[0] = x - (float)about;
        terms[1] = terms[0] * terms[0];
        return;
    }
    const float scale = (float)given.var[c];
    const ACC g = NAME(plain_g)(v, NAME(in).mask + c, t->columns + COEF_GAP, k->fused);
    const int skipped = NAME(is_skipped)(v, g);
    if (k->fused & STORED && a->dresidual)
        ((T *)a->dresidual)[i] = NAME(store)(v.w == 0.0 && !v.unfilled ? (ACC)0 : g);
    terms[0] = skipped ? 0.0F : (float)g;
    terms[1] = skipped ? 0.0F : (float)g * ((x - (float)about) * scale);
}

/* Add `count` values, `step` apart, and then the value at `tail` (-1: there is none), as chains to the two sums. */
static void NAME(add_chains)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t i,
                             int64_t count, int64_t step, int64_t tail, int64_t c, double about,
                             double sums[2])
{
    while (count > 0 || tail >= 0) {
        const int64_t now = count >= 8 ? 8 : count >= 4 ? 4 : count;
        float terms[8][2] = {{0}};
        for (int64_t n = 0; n < now; n++) NAME(terms)(k, t, a, i + n * step, c, about, terms[n]);
        if (now < 4 && tail >= 0) {
            NAME(terms)(k, t, a, tail, c, about, terms[3]);
            tail = -1;
        }
        for (int f = 0; f < 2; f++) sums[f] += (double)tree(terms, f);
        i += now * step;
        count -= now;
    }
}

/* The sums of values begin .. end - 1 of channel c, which are a block. */
static void NAME(sum_plane_block)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t c,
                                  const column *w, int64_t begin, int64_t end, double sums[3])
{
    const bncore_planes *p = &t->planes;
    double lanes[3][BNCORE_LANES] = {{0}}, add[3];
    for (int64_t e = begin, len; e < end; e += len) {
        len = bncore_min(run_length(p, e), BNCORE_BLOCK);
        const int64_t whole = len / BNCORE_LANES, left = len % BNCORE_LANES;
        for (int64_t lane = 0; lane < BNCORE_LANES; lane++) {
            const int64_t i = plane_index(p, c, e) + lane;
            const int64_t tail = lane >= BNCORE_LANES - left ? i + len - BNCORE_LANES : -1;
            if (w->chained) {
                double both[2] = {lanes[0][lane], lanes[1][lane]};
                NAME(add_chains)(k, t, a, i, whole, BNCORE_LANES, tail, c, w->pivot, both);
                lanes[0][lane] = both[0], lanes[1][lane] = both[1];
                continue;
            }
            for (int64_t n = 0; n < whole + (tail >= 0); n++) {
                NAME(addends)(k, t, a, n < whole ? i + n * BNCORE_LANES : tail, c, w->pivot, add);
                for (int f = 0; f < 3; f++) lanes[f][lane] += add[f];
            }
        }
    }
    for (int f = 0; f < 3; f++) sums[f] = fold(lanes[f]);
}

/* The sums of rows begin .. end - 1 of column c, which are a block. */
static void NAME(sum_row_block)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t c,
                                const column *w, int64_t begin, int64_t end, double sums[3])
{
    const int64_t stride = t->rows.stride;
    double add[3];
    sums[0] = sums[1] = sums[2] = 0.0;
    if (w->chained) {
        NAME(add_chains)(k, t, a, begin * stride + c, end - begin, stride, -1, c, w->pivot, sums);
        return;
    }
    for (int64_t row = begin; row < end; row++) {
        NAME(addends)(k, t, a, row * stride + c, c, w->pivot, add);
        for (int f = 0; f < 3; f++) sums[f] += add[f];
    }
}

/* Start the moments of `count` values from i on, `step` apart. */
static void NAME(start)(column *w, const bncore_arrays *a, const tile *t, int64_t i, int64_t count,
                        int64_t step)
{
    const T *x = a->x;
    double squares = 0.0, taken = 0.0;
    w->pivot = NAME(pivot)(a, t, i, count, step);
    if (w->about_zero && NAME(both_signs)(a, t, i, count, step)) w->pivot = 0.0;
    if (!w->chains) return;
    w->pivot = NAME(nearest)(w->pivot);
    if (!isfinite(w->pivot)) w->pivot = 0.0;
    for (int64_t n = 0; n < count; n++) {
        if (NAME(plain_weight)(a, t, i + n * step) == 0.0) continue;
        const double d = (double)NAME(load)(x[i + n * step]) - w->pivot;
        squares += d * d;
        taken += 1.0;
    }
    w->chained = in_range(squares / taken);
}

/* Flush a block of n values with these sums. */
static void NAME(flush)(column *w, const double sums[2], double n)
{
    const double pivot = flush(w, sums[0], sums[1], n);
    if (!w->moments) return;
    column at_mean = *w;
    move(&at_mean, pivot);
    const int zero = w->about_zero && isfinite(pivot) && near_zero(w->n, pivot, at_mean.more);
    move(w, zero ? 0.0 : w->chains ? NAME(nearest)(pivot) : pivot);
    w->chained = w->chains && in_range(w->more / w->n);
}

typedef void NAME(sum_block)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t c,
                             const column *w, int64_t begin, int64_t end, double sums[3]);

/* Sum a block, and again in double where the squares have left the range of float32, or are more than 16 times those about
 * the mean of the block. */
static void NAME(add_block)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t c,
                            column *w, int64_t begin, int64_t end, NAME(sum_block) * sum, int ones)
{
    const double n = (double)(end - begin);
    double sums[3];
    if (w->moments && !ones) {
        column wide = *w;
        wide.chained = 0;
        sum(k, t, a, c, &wide, begin, end, sums);
        if (sums[2] != 0.0) NAME(flush)(w, sums, sums[2]);
        return;
    }
    sum(k, t, a, c, w, begin, end, sums);
    const int near = 16.0 * (sums[0] * sums[0]) <= 15.0 * (n * sums[1]);
    if (w->moments && w->chained && !(near && isfinite(sums[1]))) {
        w->chained = 0;
        sum(k, t, a, c, w, begin, end, sums);
    }
    NAME(flush)(w, sums, n);
}

static void NAME(sum_channel)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t c,
                              column *w)
{
    const bncore_planes *p = &t->planes;
    int64_t first = p->begin;
    while (first < p->end && NAME(plain_weight)(a, t, plane_index(p, c, first)) == 0.0) first++;
    w->empty = w->moments && first == p->end;
    if (w->empty) return;
    if (w->moments)
        NAME(start)(w, a, t, plane_index(p, c, first),
                    bncore_min(run_length(p, first), BNCORE_LANES), 1);
    for (int64_t begin = p->begin, e; begin < p->end; begin = e) {
        int ones = 1;
        for (e = begin; e < p->end && e - begin < BNCORE_BLOCK;)
            e += bncore_min(run_length(p, e), BNCORE_BLOCK);
        for (int64_t i = begin; i < e; i++)
            ones &= NAME(plain_weight)(a, t, plane_index(p, c, i)) == 1.0;
        NAME(add_block)(k, t, a, c, w, begin, e, NAME(sum_plane_block), ones);
    }
}

static void NAME(sum_column)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t c,
                             column *w)
{
    const bncore_rows *r = &t->rows;
    int64_t first = 0;
    while (first < r->rows && NAME(plain_weight)(a, t, first * r->stride + c) == 0.0) first++;
    w->empty = w->moments && first == r->rows;
    if (w->empty) return;
    if (w->moments)
        NAME(start)(w, a, t, first * r->stride + c, bncore_min(r->rows - first, BNCORE_PIVOT_ROWS),
                    r->stride);
    for (int64_t block = 0; block < r->rows; block += BNCORE_ROW_BLOCK) {
        const int64_t end = bncore_min(block + BNCORE_ROW_BLOCK, r->rows);
        int ones = 1;
        for (int64_t i = block; i < end; i++)
            ones &= NAME(plain_weight)(a, t, i * r->stride + c) == 1.0;
        NAME(add_block)(k, t, a, c, w, block, end, NAME(sum_row_block), ones);
    }
}

static void NAME(plain_reduction)(const kernel *k, const tile *t, const bncore_arrays *a,
                                  double *partial)
{
    for (int64_t c = 0; c < t->columns; c++) {
        column w = {.moments = is_moments(k),
                    .chains = sizeof(T) == 2,
                    .about_zero = sizeof(T) == 4 && !t->float64_sums};
        if (w.moments && t->float64_sums) w.chains = 0;
        if (!w.moments) w.pivot = given.mean[c], w.chained = w.chains;
        if (k->rows)
            NAME(sum_column)(k, t, a, c, &w);
        else
            NAME(sum_channel)(k, t, a, c, &w);
        store(&w, partial + c);
    }
}

/* ---- per channel ---- */

static void NAME(plain_normalize_coefs)(ACC *hi, ACC *scale, ACC *shift, int64_t c, double weight,
                                        double bias)
{
    const double mean = given.mean[c];
    *hi = (ACC)mean;
    *scale = (ACC)(weight * given.var[c]);
    const double lo = mean - (double)*hi;
    *shift = (ACC)(lo == 0.0 ? bias : bias - lo * (double)*scale);
}

static void NAME(plain_coefs)(const kernel *k, const tile *t, ACC *coef)
{
    const int64_t stride = t->columns + COEF_GAP;
    for (int64_t c = 0; c < t->columns; c++, coef++) {
        const double one = 1.0, none = 0.0, invstd = given.var[c];
        const double weight = t->leaky || k->operation == normalize_coefs ? given.weight[c] : one;
        const double bias = t->leaky || k->operation == mask_coefs ? given.bias[c] : none;
        if (k->operation == normalize_coefs)
            NAME(plain_normalize_coefs)(coef, coef + stride, coef + 2 * stride, c, weight, bias);
        if (k->operation == mask_coefs)
            NAME(plain_normalize_coefs)(coef + stride, coef, coef + MASK_SHIFT * stride, c, weight,
                                        bias);
        if (k->operation == grad_frozen_coefs) coef[0] = (ACC)(weight * invstd);
        if (k->operation != grad_input_coefs && k->operation != grad_group_coefs) continue;
        const int of_group = k->operation == grad_group_coefs;
        const double count = t->leaky && !of_group ? given.counts[c] : t->count;
        const double shift = -(given.sum_dy[c] / count);
        coef[0] = (ACC)(of_group ? invstd : weight * invstd);
        if (of_group) coef[4 * stride] = (ACC)weight;
        coef[stride] = (ACC)given.mean[c];
        coef[2 * stride] = (ACC)(-invstd * (given.sum_dy_xhat[c] / count));
        const double lo = given.mean[c] - (double)coef[stride];
        coef[3 * stride] = (ACC)(lo == 0.0 ? shift : shift - lo * (double)coef[2 * stride]);
    }
}

static void NAME(run_plainly)(const kernel *k, const tile *t, NAME(results) * to)
{
    const bncore_arrays a = NAME(arrays_of)(t, to, k->fused);
    switch (k->operation) {
    case moments:
    case grad_sums:
    case weighted_moments:
    case weighted_grad_sums:
        NAME(plain_reduction)(k, t, &a, to->partial);
        break;
    case merge_moments:
    case merge_sums:
        merge_plainly(k, t, to->partial);
        break;
    case inverse_std:
        for (int64_t c = 0; c < t->columns; c++)
            to->partial[c] = 1.0 / sqrt(given.var[c] / t->count + t->eps);
        break;
    case normalize_coefs:
    case mask_coefs:
    case grad_input_coefs:
    case grad_frozen_coefs:
    case grad_group_coefs:
        NAME(plain_coefs)(k, t, to->coef);
        break;
    default:
        NAME(plain_elementwise)(k, t, &a);
    }
}
