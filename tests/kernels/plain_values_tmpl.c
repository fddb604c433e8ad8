/* What an elementwise kernel makes of one value, and its weight, for storage type T and arithmetic in ACC, in plain C. */

/* ---- one value ---- */

typedef struct NAME(value) {
    ACC dy, x, r;
    ACC slope;
    int relu;     /* exactly 0 on the negative side */
    int plain;    /* no activation and no residual */
    double w;     /* its weight */
    int unfilled; /* a gradient may count without weight */
} NAME(value);

/* The weight of value i. */
static double NAME(plain_weight)(const bncore_arrays *a, const tile *t, int64_t i)
{
    const bncore_weighting *w = a->weighting;
    const int64_t in_image = i % t->planes.image_stride;
    int64_t place = a->at + i;
    if (!w || (w->omit_nan && isnan(NAME(load)(((const T *)a->x)[i])))) return !w;
    if (!w->per_channel)
        place = t->in_rows
                    ? place / w->width * w->inner + place % w->inner
                    : i / t->planes.image_stride * t->planes.inner + in_image % t->planes.inner;
    if (!w->values) return 1.0;
    return w->doubles ? ((const double *)w->values)[place] : ((const uint8_t *)w->values)[place];
}

static NAME(value) NAME(value_at)(const bncore_arrays *a, const tile *t, int64_t i)
{
    const T *dy = a->dy, *x = a->x, *r = a->residual;
    return (NAME(value)){.dy = NAME(load)(dy[i]),
                         .x = NAME(load)(x[i]),
                         .r = r ? NAME(load)(r[i]) : (ACC)0,
                         .slope = (ACC)a->slope,
                         .relu = !t->leaky,
                         .plain = a->weighting && t->without_fused,
                         .w = NAME(plain_weight)(a, t, i),
                         .unfilled = !a->weighting || !a->weighting->filled};
}

/* Whether a gradient g of a value takes no part. */
static int NAME(is_skipped)(NAME(value) v, ACC g)
{
    return v.w == 0.0 && !(v.unfilled && g != (ACC)0);
}

static ACC NAME(activate)(NAME(value) v, ACC z, ACC value)
{
    if (!(z <= (ACC)0) || v.plain) return value;
    return v.relu ? (ACC)0 : v.slope * value;
}

static ACC NAME(plain_z)(NAME(value) v, ACC hi, ACC scale, ACC shift, int fused)
{
    const ACC z = (v.x - hi) * scale + shift;
    return fused & RESIDUAL && !v.plain ? z + v.r : z;
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
    const ACC w = (ACC)v.w;
    if (NAME(is_skipped)(v, g)) return (ACC)0;
    return frozen || v.w == 0.0 ? g * a : ((g + w * ((v.x - hi) * k)) + w * c) * a;
}

/* ---- elementwise ---- */

static void NAME(one)(const kernel *k, const tile *t, const bncore_arrays *a, int64_t i, int64_t c)
{
    const int64_t stride = t->columns + COEF_GAP;
    const ACC *coef = NAME(in).coef + c;
    const NAME(value) v = NAME(value_at)(a, t, i);
    const int frozen = k->operation == grad_frozen || t->weighting.frozen;
    T *dst = a->dst;
    if (k->operation == weighted_normalize && v.w == 0.0)
        dst[i] = NAME(store)((ACC)a->weighting->fill);
    else if (k->operation == normalize || k->operation == weighted_normalize)
        dst[i] = NAME(store)(NAME(plain_y)(v, coef, stride, k->fused));
    else if (k->operation == grad_group)
        dst[i] = NAME(store)(((v.dy * coef[4 * stride] + (v.x - coef[stride]) * coef[2 * stride]) +
                              coef[3 * stride]) *
                             coef[0]);
    else
        dst[i] = NAME(store)(NAME(plain_dx)(v, coef, stride, k->fused, frozen));
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
