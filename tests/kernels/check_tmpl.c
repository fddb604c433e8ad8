/* Checks every kernel for storage type T and arithmetic in ACC. check_kernels.c defines T, ACC, DTYPE and NAME() and
 * includes this file once per dtype. */

/* ---- memory ---- */

typedef struct NAME(arrays) {
    T dy[MOST_VALUES + 4 * AROUND], x[MOST_VALUES + 4 * AROUND], r[MOST_VALUES + 4 * AROUND];
    ACC coef[COEF_FIELDS * (MOST_COLS + COEF_GAP)], mask[COEF_FIELDS * (MOST_COLS + COEF_GAP)];
} NAME(arrays);

/* Everything that a kernel may write. */
typedef struct NAME(results) {
    T dst[MOST_VALUES + 4 * AROUND], dr[MOST_VALUES + 4 * AROUND];
    double partial[5 * MAX_FIELDS * MOST_COLS];
    ACC coef[COEF_FIELDS * (MOST_COLS + COEF_GAP)];
} NAME(results);

static NAME(arrays) NAME(in);
static NAME(results) NAME(got), NAME(want);

static void NAME(fill)(const tile *t, int wild)
{
    NAME(arrays) *in = &NAME(in);
    const double far = random_int(0, 1) * 30.0; /* sums about 0 and about other numbers */
    for (int64_t i = 0; i < t->values + 2 * AROUND; i++) {
        in->dy[i] = NAME(store)((ACC)random_or_special(wild));
        in->x[i] =
            NAME(store)((ACC)(far + random_or_special(wild) * size_at(t, i - AROUND - t->offset)));
        in->r[i] = NAME(store)((ACC)random_or_special(wild));
    }
    for (int64_t c = 0; c < t->columns; c++) {
        given.mean[c] = random_int(0, c % 32 < 16 ? 1 : 3) ? 0.0 : random_value();
        given.var[c] = fabs(random_or_special(wild));
        given.weight[c] = random_value(), given.bias[c] = random_value();
        given.sum_dy[c] = random_value(), given.sum_dy_xhat[c] = random_value();
        given.counts[c] = 1.0 + fabs(random_or_special(wild));
    }
    const int64_t stride = t->columns + COEF_GAP;
    for (int f = 0; f < COEF_FIELDS; f++)
        for (int64_t c = 0; c < stride; c++) {
            const int64_t column = c < t->columns ? c : c - t->columns;
            ACC *coef = in->coef + f * stride, *mask = in->mask + f * stride;
            coef[c] = c < t->columns ? (ACC)random_value() : coef[column % t->columns];
            mask[c] = c < t->columns ? (ACC)random_value() : mask[column % t->columns];
        }
    for (int64_t c = 0; c < t->columns; c++) {
        const int empty = random_int(0, 4) == 0; /* a partial result of no value */
        for (int f = 0; f < MAX_FIELDS; f++)
            given.from[f * MOST_COLS + c] = empty ? 0.0 : fabs(random_value());
    }
}

/* The same for every result, so that a kernel which writes what it must leave alone is found. */
static void NAME(clear)(NAME(results) * to, const tile *t)
{
    for (int64_t i = 0; i < t->values + 2 * AROUND; i++) {
        to->dst[i] = to->dr[i] = (T)i;
    }
    clear_partial(to->partial);
    memset(to->coef, 0, sizeof to->coef);
}

/* Copy an input to the memory of an output, and return that as the input. */
static const T *NAME(shared)(const tile *t, T *to, const T *input)
{
    memcpy(to, input, (size_t)(t->values + 2 * AROUND) * sizeof(T));
    return to;
}

static bncore_arrays NAME(arrays_of)(const tile *t, NAME(results) * to, int fused)
{
    const NAME(arrays) *in = &NAME(in);
    const int64_t at = AROUND + t->offset;
    const T *x = in->x, *dy = in->dy, *r = in->r;
    T *output = fused & STORED ? to->dr : to->dst;
    /* dresidual may be dy or the residual, but not x. */
    if (t->over == OVER_X && !(fused & STORED)) x = NAME(shared)(t, output, x);
    if (t->over == OVER_DY) dy = NAME(shared)(t, output, dy);
    if (t->over == OVER_RESIDUAL && fused & RESIDUAL) r = NAME(shared)(t, output, r);
    bncore_arrays a = (bncore_arrays){.dst = to->dst + at,
                                      .dy = dy + at,
                                      .x = x + at,
                                      .stream = t->stream,
                                      .slope = t->leaky ? 0.25 : 0.0,
                                      .least = t->leaky ? -INFINITY : INFINITY,
                                      .residual = fused & RESIDUAL ? r + at : NULL,
                                      .dresidual = fused & STORED ? to->dr + at : NULL,
                                      .mask = in->mask,
                                      .mask_stride = t->columns + COEF_GAP,
                                      .invstd = given.var,
                                      .float64_sums = t->float64_sums};
    if (!t->weighting.inner) return a;
    a.weighting = &t->weighting;
    a.at = t->at;
    if (!t->without_fused) return a;
    a.residual = a.dresidual = NULL;
    bncore_without_activation(&a);
    return a;
}

/* ---- the kernel ---- */

static void NAME(run_elementwise)(const kernel *k, const bncore_kernel_set *s, const tile *t,
                                  const bncore_arrays *a)
{
    const ACC *coef = NAME(in).coef;
    const int64_t stride = t->columns + COEF_GAP;
    switch (k->operation) {
    case normalize:
        if (k->rows)
            s->normalize_rows[k->fused](a, coef, stride, &t->rows);
        else
            s->normalize_planes[k->fused](a, coef, stride, &t->planes);
        break;
    case grad_input:
        if (k->rows)
            s->grad_input_rows[k->fused](a, coef, stride, &t->rows);
        else
            s->grad_input_planes[k->fused](a, coef, stride, &t->planes);
        break;
    case grad_group:
        if (k->rows)
            s->grad_group_rows[0](a, coef, stride, &t->rows);
        else
            s->grad_group_planes[0](a, coef, stride, &t->planes);
        break;
    case weighted_normalize:
        if (k->rows)
            s->weighted_normalize_rows[k->fused != 0](a, coef, stride, &t->rows);
        else
            s->weighted_normalize_planes[k->fused != 0](a, coef, stride, &t->planes);
        break;
    case weighted_grad_input: {
        const int variant = k->fused ? 2 : a->weighting->doubles;
        if (k->rows)
            s->weighted_grad_input_rows[variant](a, coef, stride, &t->rows);
        else
            s->weighted_grad_input_planes[variant](a, coef, stride, &t->planes);
        break;
    }
    default:
        if (k->rows)
            s->grad_frozen_rows[k->fused](a, coef, stride, &t->rows);
        else
            s->grad_frozen_planes[k->fused](a, coef, stride, &t->planes);
    }
}

static void NAME(run)(const kernel *k, const bncore_kernel_set *s, const tile *t,
                      NAME(results) * to)
{
    const bncore_arrays a = NAME(arrays_of)(t, to, k->fused);
    const bncore_partial partial = {to->partial, MOST_COLS};
    const int64_t n = t->columns, stride = n + COEF_GAP, few = bncore_min(n, MOST_COLS / t->step);
    const parameters *p = &given;
    switch (k->operation) {
    case moments:
        if (k->rows)
            s->moments_rows(partial, &a, NULL, &t->rows);
        else
            s->moments_planes(partial, &a, NULL, &t->planes);
        break;
    case grad_sums:
        if (k->rows)
            s->grad_sums_rows[k->fused](partial, &a, p->mean, &t->rows);
        else
            s->grad_sums_planes[k->fused](partial, &a, p->mean, &t->planes);
        break;
    case weighted_moments:
        if (k->rows)
            s->weighted_moments_rows(partial, &a, NULL, &t->rows);
        else
            s->weighted_moments_planes(partial, &a, NULL, &t->planes);
        break;
    case weighted_grad_sums:
        if (k->rows)
            s->weighted_grad_sums_rows[k->fused](partial, &a, p->mean, &t->rows);
        else
            s->weighted_grad_sums_planes[k->fused](partial, &a, p->mean, &t->planes);
        break;
    case merge_moments:
        s->merge_moments(partial, p->from, few, t->step);
        break;
    case merge_sums:
        s->merge_sums(partial, p->from, few, t->step);
        break;
    case inverse_std:
        s->inverse_std(to->partial, n, p->var, t->count, t->eps);
        break;
    case normalize_coefs:
        s->normalize_coefs(to->coef, stride, n, p->mean, p->var, p->weight, t->leaky ? p->bias : 0);
        break;
    case mask_coefs:
        s->mask_coefs(to->coef, stride, n, p->mean, p->var, t->leaky ? p->weight : 0, p->bias);
        break;
    case grad_input_coefs:
        s->grad_input_coefs(to->coef, stride, n, p->mean, p->var, t->leaky ? p->weight : 0,
                            p->sum_dy, p->sum_dy_xhat, t->leaky ? p->counts : 0, t->count);
        break;
    case grad_frozen_coefs:
        s->grad_frozen_coefs(to->coef, n, p->var, t->leaky ? p->weight : 0);
        break;
    case grad_group_coefs:
        s->grad_group_coefs(to->coef, stride, n, p->mean, p->var, t->leaky ? p->weight : 0,
                            p->sum_dy, p->sum_dy_xhat, t->count);
        break;
    default:
        NAME(run_elementwise)(k, s, t, &a);
    }
}

#include "plain_tmpl.c"

/* ---- the comparison ---- */

/* Whether the bits are the same. All NaNs count as the same. */
static int NAME(same)(const T *a, const T *b, int64_t n)
{
    if (memcmp(a, b, (size_t)n * sizeof(T)) == 0) return 1;
    for (int64_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof(T)) != 0 &&
            !(isnan(NAME(load)(a[i])) && isnan(NAME(load)(b[i]))))
            return 0;
    return 1;
}

static int NAME(same_coefs)(const ACC *a, const ACC *b, int64_t n)
{
    if (memcmp(a, b, (size_t)n * sizeof(ACC)) == 0) return 1;
    for (int64_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof(ACC)) != 0 && !(isnan(a[i]) && isnan(b[i]))) return 0;
    return 1;
}

static int NAME(same_doubles)(const double *a, const double *b, int64_t n)
{
    if (memcmp(a, b, (size_t)n * sizeof(double)) == 0) return 1;
    for (int64_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof(double)) != 0 && !(isnan(a[i]) && isnan(b[i]))) return 0;
    return 1;
}

static void NAME(check)(const kernel *k, const bncore_kernels *isa, const tile *t)
{
    const bncore_kernel_set *s = isa->set[DTYPE];
    const char *dtype = dtype_names[DTYPE];
    NAME(results) *got = &NAME(got), *want = &NAME(want);
    const int64_t all = t->values + 2 * AROUND;
    NAME(fill)(t, random_int(0, 2) == 0);
    NAME(clear)(got, t);
    NAME(clear)(want, t);
    NAME(run)(k, s, t, got);
    NAME(run_plainly)(k, t, want);
    if (!NAME(same)(got->dst, want->dst, all)) fail(k, isa->name, dtype, t, "dst differs");
    if (!NAME(same)(got->dr, want->dr, all)) fail(k, isa->name, dtype, t, "dresidual differs");
    if (!NAME(same_doubles)(got->partial, want->partial, 5 * MAX_FIELDS * MOST_COLS))
        fail(k, isa->name, dtype, t, "the results per channel differ");
    if (!NAME(same_coefs)(got->coef, want->coef, COEF_FIELDS * (MOST_COLS + COEF_GAP)))
        fail(k, isa->name, dtype, t, "the coefficients differ");
}

/* ---- the time ---- */

/* Arrays of x's size that a kernel reads or writes. */
static int NAME(array_count)(const kernel *k)
{
    const int residual = (k->fused & RESIDUAL) != 0, stored = (k->fused & STORED) != 0;
    switch (k->operation) {
    case moments:
    case weighted_moments:
        return 1;
    case grad_sums:
    case weighted_grad_sums:
        return 2 + residual + stored;
    case normalize:
    case weighted_normalize:
        return 2 + residual;
    case grad_input:
    case grad_group:
    case weighted_grad_input:
        return 3 + residual;
    case grad_frozen: /* x is read for the mask alone */
        return k->fused ? 3 + residual : 2;
    default:
        return 0;
    }
}

/* Nanoseconds per value, or per channel, in the best of several runs. *bytes: how many bytes of arrays a value takes. */
static double NAME(time)(const kernel *k, const bncore_kernels *isa, const tile *t, double *bytes)
{
    const bncore_kernel_set *s = isa->set[DTYPE];
    const int arrays = NAME(array_count)(k);
    const int64_t values = k->rows ? t->rows.rows * t->rows.cols
                                   : (t->planes.end - t->planes.begin) * t->planes.channels;
    const double n = (double)(arrays ? values : t->columns);
    double best = INFINITY;
    *bytes = (double)arrays * sizeof(T);
    NAME(fill)(t, 0);
    NAME(clear)(&NAME(got), t);
    for (int turn = 0; turn < 7; turn++) {
        int calls = 0;
        const double begin = now();
        double end = begin;
        for (; end < begin + 1e-3; calls++, end = now()) NAME(run)(k, s, t, &NAME(got));
        best = fmin(best, (end - begin) / calls);
    }
    return best * 1e9 / n;
}
