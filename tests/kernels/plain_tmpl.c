/* Computes what the kernels compute, for storage type T and arithmetic in ACC, in plain loops: one value, one channel, one block after the
 * other. The order of additions is the one that partition.h fixes. A run is added to 16 lanes, and its remainder to
 * the last lanes. The lanes are flushed after BNCORE_BLOCK values, and a column after BNCORE_ROW_BLOCK rows. */

/* ---- one value ---- */

typedef struct NAME(value) {
    ACC dy, x, r;
    ACC slope;
    int relu; /* exactly 0 on the negative side */
} NAME(value);

static NAME(value) NAME(value_at)(const bncore_arrays *a, int64_t i, int leaky)
{
    const T *dy = a->dy, *x = a->x, *r = a->residual;
    return (NAME(value)){NAME(load)(dy[i]), NAME(load)(x[i]), r ? NAME(load)(r[i]) : (ACC)0,
                         (ACC)a->slope, !leaky};
}

static ACC NAME(activate)(NAME(value) v, ACC z, ACC value)
{
    if (!(z <= (ACC)0)) return value;
    return v.relu ? (ACC)0 : v.slope * value;
}

static ACC NAME(plain_z)(NAME(value) v, ACC hi, ACC scale, ACC shift, int fused)
{
    const ACC z = (v.x - hi) * scale + shift;
    return fused & RESIDUAL ? z + v.r : z;
}

static ACC NAME(plain_y)(NAME(value) v, const ACC *coef, int64_t stride, int fused)
{
    const ACC z = NAME(plain_z)(v, coef[0], coef[stride], coef[2 * stride], fused);
    return fused & ACTIVATION ? NAME(activate)(v, z, z) : z;
}

/* The gradient by z, as dresidual stores it; coef has the mask's fields a, hi and shift. */
static ACC NAME(plain_g)(NAME(value) v, const ACC *coef, int64_t stride, int fused)
{
    if (!(fused & ACTIVATION)) return v.dy;
    const ACC z = NAME(plain_z)(v, coef[stride], coef[0], coef[MASK_SHIFT * stride], fused);
    return NAME(load)(NAME(store)(NAME(activate)(v, z, v.dy)));
}

static ACC NAME(plain_dx)(NAME(value) v, const ACC *coef, int64_t stride, int fused, int frozen)
{
    const ACC a = coef[0], hi = coef[stride], k = coef[2 * stride], c = coef[3 * stride];
    const ACC g = NAME(plain_g)(v, coef, stride, fused);
    return frozen ? g * a : ((g + (v.x - hi) * k) + c) * a;
}

/* ---- elementwise ---- */

static void NAME(one)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t i, int64_t c)
{
    const int64_t stride = t->columns + COEF_GAP;
    const ACC *coef = NAME(in).coef + c;
    const NAME(value) v = NAME(value_at)(a, i, t->leaky);
    T *dst = a->dst;
    if (k->operation == normalize)
        dst[i] = NAME(store)(NAME(plain_y)(v, coef, stride, k->fused));
    else
        dst[i] =
            NAME(store)(NAME(plain_dx)(v, coef, stride, k->fused, k->operation == grad_frozen));
}

static void NAME(plain_elementwise)(const kernel *k, const tile *t, const bncore_arrays *a)
{
    if (k->rows) {
        for (int64_t i = 0; i < t->rows.rows * t->rows.cols; i++)
            NAME(one)(k, t, a, i, i % t->rows.cols);
        return;
    }
    for (int64_t c = 0; c < t->planes.channels; c++)
        for (int64_t e = t->planes.begin; e < t->planes.end; e++)
            NAME(one)(k, t, a, plane_index(&t->planes, c, e), c);
}

/* ---- sums ---- */

/* What a value adds to the two sums of its channel. With STORED it writes dresidual, too. */
static void NAME(addends)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t i,
                          int64_t c, double about, double add[2])
{
    const NAME(value) v = NAME(value_at)(a, i, t->leaky);
    const double d = (double)v.x - about;
    if (k->operation == moments) {
        add[0] = d;
        add[1] = d * d;
        return;
    }
    const ACC g = NAME(plain_g)(v, NAME(in).mask + c, t->columns + COEF_GAP, k->fused);
    if (k->fused & STORED) ((T *)a->dresidual)[i] = NAME(store)(g);
    add[0] = (double)g;
    add[1] = (double)g * d;
}

/* The first pivot of `count` values from i on, `step` apart. */
static double NAME(pivot)(const bncore_arrays *a, int64_t i, int64_t count, int64_t step)
{
    const T *x = a->x;
    const double first = (double)NAME(load)(x[i]);
    double sum = 0.0;
    for (int64_t n = 1; n < count; n++) sum += (double)NAME(load)(x[i + n * step]) - first;
    const double pivot = first + sum / (double)count;
    return isfinite(pivot) ? pivot : 0.0;
}

static void NAME(sum_channel)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t c,
                              column *w)
{
    const bncore_planes *p = &t->planes;
    double lanes[2][BNCORE_LANES] = {{0}}, add[2];
    int64_t pending = 0;
    const int64_t first = bncore_min(run_length(p, p->begin), BNCORE_LANES);
    if (k->operation == moments) w->pivot = NAME(pivot)(a, plane_index(p, c, p->begin), first, 1);
    for (int64_t e = p->begin, len; e < p->end; e += len) {
        len = bncore_min(run_length(p, e), BNCORE_BLOCK);
        const int64_t whole = len / BNCORE_LANES * BNCORE_LANES, left = len - whole;
        for (int64_t i = 0; i < len; i++) {
            NAME(addends)(k, t, a, plane_index(p, c, e + i), c, w->pivot, add);
            const int64_t lane = i < whole ? i % BNCORE_LANES : BNCORE_LANES - left + (i - whole);
            for (int f = 0; f < 2; f++) lanes[f][lane] += add[f];
        }
        pending += len;
        if (pending < BNCORE_BLOCK && e + len < p->end) continue;
        flush(w, fold(lanes[0]), fold(lanes[1]), (double)pending);
        memset(lanes, 0, sizeof lanes);
        pending = 0;
    }
}

static void NAME(sum_column)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t c,
                             column *w)
{
    const bncore_rows *r = &t->rows;
    if (k->operation == moments)
        w->pivot = NAME(pivot)(a, c, bncore_min(r->rows, BNCORE_PIVOT_ROWS), r->stride);
    for (int64_t block = 0; block < r->rows; block += BNCORE_ROW_BLOCK) {
        const int64_t end = bncore_min(block + BNCORE_ROW_BLOCK, r->rows);
        double sums[2] = {0.0, 0.0}, add[2];
        for (int64_t row = block; row < end; row++) {
            NAME(addends)(k, t, a, row * r->stride + c, c, w->pivot, add);
            for (int f = 0; f < 2; f++) sums[f] += add[f];
        }
        flush(w, sums[0], sums[1], (double)(end - block));
    }
}

static void NAME(plain_reduction)(const kernel *k, const tile *t, const bncore_arrays *a,
                                  double *partial)
{
    for (int64_t c = 0; c < t->columns; c++) {
        column w = {.moments = k->operation == moments};
        if (!w.moments) w.pivot = given.mean[c];
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
        if (k->operation != grad_input_coefs) continue;
        const double shift = -(given.sum_dy[c] / t->count);
        coef[0] = (ACC)(weight * invstd);
        coef[stride] = (ACC)given.mean[c];
        coef[2 * stride] = (ACC)(-invstd * (given.sum_dy_xhat[c] / t->count));
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
        NAME(plain_coefs)(k, t, to->coef);
        break;
    default:
        NAME(plain_elementwise)(k, t, &a);
    }
}
