/* From the partial results of segments and columns to those of channels, in an order that the shape fixes. */
#include "run.h"

/* Where the partial results of a channel or group lie in those of a segment: the first one of each is `inner` columns
 * behind that of the one before, and they have `folds` times `inner` columns, which lie `width` columns apart. */
typedef struct places {
    int64_t inner, folds, width;
} places;

static int64_t place(const places *p, int64_t i)
{
    return i / p->inner * p->width + i % p->inner;
}

/* Copy fields of n columns, which lie so many columns apart. */
static void copy_columns(bncore_partial to, int64_t to_step, bncore_partial from, int64_t from_step,
                         int64_t n, int fields)
{
    for (int f = 0; f < fields; f++)
        for (int64_t c = 0; c < n; c++)
            to.at[f * to.stride + c * to_step] = from.at[f * from.stride + c * from_step];
}

/* Merge the columns of each of `results` channels or groups into the first one, some side by side: a merge reads and writes
 * vectors then. */
static void merge_columns(const operation *op, bncore_partial total, int64_t results,
                          const places *p)
{
    double fields[2][MAX_FIELDS * BNCORE_GROUP];
    const bncore_partial into = {fields[0], BNCORE_GROUP}, more = {fields[1], BNCORE_GROUP};
    for (int64_t first = 0; first < results; first += BNCORE_GROUP) {
        const int64_t n = bncore_min(results - first, BNCORE_GROUP);
        bncore_partial at = {total.at + first * p->inner, total.stride};
        copy_columns(into, 1, at, p->inner, n, op->fields);
        for (int64_t i = 1; i < p->inner * p->folds; i++) {
            at.at = total.at + first * p->inner + place(p, i);
            copy_columns(more, 1, at, p->inner, n, op->fields);
            op->merge(into, more.at, n, 1);
        }
        at.at = total.at + first * p->inner;
        copy_columns(at, p->inner, into, 1, n, op->fields);
    }
}

void bncore_finish(const operation *op)
{
    const bncore_geometry *g = &op->g;
    const int64_t all = bncore_columns(g), wide = bncore_max(op->wide, 1);
    const int64_t results = g->channels / wide, inner = (g->planes ? 1 : g->inner) * wide;
    const places p = {inner, all / (results * inner), results * inner};
    const bncore_partial total = bncore_partial_at(op, 0);
    for (int64_t s = 1; s < g->segments; s++) op->merge(total, bncore_partial_at(op, s).at, all, 1);
    if (inner > 1)
        merge_columns(op, total, results, &p);
    else
        for (int64_t i = 1; i < p.folds; i++) op->merge(total, total.at + place(&p, i), results, 1);
    op->finish(op, 0, results, total, inner);
}
