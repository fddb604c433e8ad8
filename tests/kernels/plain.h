/* What the plain loops of both storage types share. */
#ifndef BNCORE_TESTS_PLAIN_H
#define BNCORE_TESTS_PLAIN_H

/* Where value e of channel c stands. */
static int64_t plane_index(const bncore_planes *p, int64_t c, int64_t e)
{
    return e / p->inner * p->image_stride + c * p->inner + e % p->inner;
}

/* How many values of a channel follow each other in memory from value e on. */
static int64_t run_length(const bncore_planes *p, int64_t e)
{
    return bncore_min(p->inner - e % p->inner, p->end - e);
}

/* Add the lanes in halves: lane l and lane l + 8, then lane l and lane l + 4, and so on. */
static double fold(const double lanes[BNCORE_LANES])
{
    double sums[BNCORE_LANES];
    memcpy(sums, lanes, sizeof sums);
    for (int half = BNCORE_LANES / 2; half >= 1; half /= 2)
        for (int l = 0; l < half; l++) sums[l] = sums[l] + sums[l + half];
    return sums[0];
}

/* The two running sums of one channel or column; of moments, about a pivot that moves to the mean after every block. */
typedef struct column {
    int moments;
    int chains, chained; /* whether a block may be added in chains, and whether the next one is */
    int about_zero;      /* whether the pivot may be 0 */
    int empty;           /* no value has weight */
    double n, pivot, sum, more;
} column;

/* Add the sums of a block of n values, and return the running mean. */
static double flush(column *w, double sum, double more, double n)
{
    w->n += n;
    w->sum += sum;
    w->more += more;
    return w->pivot + w->sum / w->n;
}

/* Whether n values with this mean, and these squares about it, are summed about 0. */
static int near_zero(double n, double mean, double squares)
{
    return n * (mean * mean) <= 15.0 * squares;
}

static void move(column *w, double pivot)
{
    const double t = pivot - w->pivot, nt = w->n * t;
    if (!isfinite(pivot)) return;
    const double squares = w->more - t * (2.0 * w->sum - nt);
    w->pivot = pivot;
    w->more = squares < 0.0 ? 0.0 : squares;
    w->sum -= nt;
}

/* Whether squares of about this size are added in chains of float32. */
static int in_range(double square)
{
    return square >= 0x1p-80 && square <= 0x1p80;
}

/* The sum of term f of up to eight values of a chain. */
static float tree(float terms[8][2], int f)
{
    float sums[8];
    for (int n = 0; n < 8; n++) sums[n] = terms[n][f];
    for (int half = 1; half < 8; half *= 2)
        for (int n = 0; n + half < 8; n += 2 * half) sums[n] = sums[n] + sums[n + half];
    return sums[0];
}

/* The partial result, fields MOST_COLS apart. */
static void store(const column *w, double *partial)
{
    if (!w->moments) {
        partial[0] = w->sum;
        partial[MOST_COLS] = w->more;
        return;
    }
    if (w->empty) {
        for (int f = 0; f < MAX_FIELDS; f++) partial[f * MOST_COLS] = 0.0;
        return;
    }
    const double offset = w->sum / w->n, m2 = w->more - w->sum * offset;
    partial[0] = w->n;
    partial[MOST_COLS] = w->pivot;
    partial[2 * MOST_COLS] = offset;
    partial[3 * MOST_COLS] = m2 < 0.0 ? 0.0 : m2;
}

/* Chan, Golub & LeVeque (1983), eq. 2.1. */
static void merge_column(double *into, const double *from)
{
    enum { N = 0, PIVOT = MOST_COLS, OFFSET = 2 * MOST_COLS, M2 = 3 * MOST_COLS };
    const double na = into[N], nb = from[N], n = na + nb, share = nb / n;
    if (nb == 0.0) return;
    if (na == 0.0) {
        for (int field = 0; field < MAX_FIELDS; field++)
            into[field * MOST_COLS] = from[field * MOST_COLS];
        return;
    }
    const double delta = (from[PIVOT] - into[PIVOT]) + (from[OFFSET] - into[OFFSET]);
    into[N] = n;
    into[OFFSET] = into[OFFSET] + delta * share;
    into[M2] = (into[M2] + from[M2]) + delta * delta * (na * share);
}

static void merge_plainly(const kernel *k, const tile *t, double *into)
{
    const int64_t n = bncore_min(t->columns, MOST_COLS / t->step);
    for (int64_t c = 0; c < n * t->step; c += t->step) {
        if (k->operation == merge_moments) {
            merge_column(into + c, given.from + c);
            continue;
        }
        into[c] += given.from[c];
        into[MOST_COLS + c] += given.from[MOST_COLS + c];
    }
}

#endif
