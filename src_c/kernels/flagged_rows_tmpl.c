/* Rows of whole lines that have one flag each, for storage type T: rows with weight are computed as without weights. Nothing
 * is fused. */

/* Compute a vector of a row, of which all values have the same flag: 1, or that of v, which is 0. */
static inline ALWAYS_INLINE void NAME(compute_flagged)(T *to, NAME(values) v, int64_t j, int flag,
                                                       const ACC *coef, int64_t stride,
                                                       NAME(arithmetic) * compute,
                                                       NAME(arithmetic) * plain, int fused)
{
    const NAME(values) here = NAME(values_at)(v, j, fused);
    if (flag)
        plain(to, here, coef + j, stride, 1, fused & ~WEIGHTED);
    else
        compute(to, here, coef + j, stride, 1, fused);
}

/* Write the whole lines of a row from column j on. */
static inline ALWAYS_INLINE void NAME(write_row)(T *dst, NAME(values) v, int64_t j, int64_t cols,
                                                 int flag, int streamed, const ACC *coef,
                                                 int64_t stride, NAME(arithmetic) * compute,
                                                 NAME(arithmetic) * plain, int fused)
{
    for (; j + NAME(IN_LINE) <= cols; j += NAME(IN_LINE)) {
        T line[NAME(IN_LINE)], *to = streamed ? line : dst + j;
        for (int p = 0; p < NAME(IN_LINE); p += NAME(WIDTH))
            NAME(compute_flagged)(to + p, v, j + p, flag, coef, stride, compute, plain, fused);
        if (streamed) NAME(stream_parts)(dst + j, line, NAME(PARTS));
    }
}

/* Compute the line from column j on, which ends in the next row. The coefficients of that one follow those of the last
 * column, where run.c repeats them. */
static inline ALWAYS_INLINE void NAME(compute_line)(T *line, NAME(values) v, int64_t j,
                                                    int64_t cols, const uint8_t *flags,
                                                    const ACC *coef, int64_t stride,
                                                    NAME(arithmetic) * compute,
                                                    NAME(arithmetic) * plain, int fused)
{
    T next[NAME(IN_LINE)];
    for (int p = 0; p < NAME(IN_LINE); p += NAME(WIDTH))
        NAME(compute_flagged)(line + p, v, j + p, flags[0], coef, stride, compute, plain, fused);
    if (flags[0] == flags[1]) return;
    for (int p = 0; p < NAME(IN_LINE); p += NAME(WIDTH))
        NAME(compute_flagged)(next + p, v, j + p, flags[1], coef, stride, compute, plain, fused);
    for (int64_t l = 0; l < NAME(IN_LINE); l++) line[l] = j + l < cols ? line[l] : next[l];
}

/* Rows of whole lines, which the output need not begin with. */
static inline ALWAYS_INLINE void NAME(flagged_rows)(const bncore_arrays *a, const ACC *coef,
                                                    int64_t stride, const bncore_rows *t,
                                                    int streamed, NAME(arithmetic) * compute,
                                                    NAME(arithmetic) * plain, int fused)
{
    const int64_t cols = t->cols, head = streamed ? NAME(to_line)(a->dst) : 0;
    const int64_t last = cols - NAME(IN_LINE); /* the column of the last line */
    const uint8_t *flags = (const uint8_t *)a->weighting->values + a->at / cols;
    NAME(values) v = NAME(weighted_values_of)(a);
    T *to = a->dst, line[NAME(IN_LINE)], rest[NAME(IN_LINE)];
    v.flags = flags_of_row[0];
    v.flags_by = 0;
    if (head > 0) {
        const uint8_t same[2] = {flags[0], flags[0]}, end = flags[t->rows - 1];
        const uint8_t same_end[2] = {end, end};
        const NAME(values) below = NAME(values_at)(v, (t->rows - 1) * cols, fused);
        NAME(compute_line)(line, v, 0, cols, same, coef, stride, compute, plain, fused);
        NAME(compute_line)(rest, below, last, cols, same_end, coef, stride, compute, plain, fused);
        for (int64_t l = 0; l < head; l++) to[l] = line[l];
    }
    for (int64_t r = 0; r < t->rows; r++, to += cols, v = NAME(values_at)(v, cols, fused)) {
        if (flags[r])
            NAME(write_row)(to, v, head, cols, 1, streamed, coef, stride, compute, plain, fused);
        else
            NAME(write_row)(to, v, head, cols, 0, streamed, coef, stride, compute, plain, fused);
        if (head == 0 || r == t->rows - 1) continue;
        NAME(compute_line)(line, v, last + head, cols, flags + r, coef, stride, compute, plain,
                           fused);
        NAME(stream_parts)(to + last + head, line, NAME(PARTS));
    }
    for (int64_t l = head; head > 0 && l < NAME(IN_LINE); l++) to[last - cols + l] = rest[l];
    if (streamed) stream_end();
}

/* Write the rows if they are such ones. Returns whether they are. */
static inline ALWAYS_INLINE int NAME(write_flagged_rows)(const bncore_arrays *a, const ACC *coef,
                                                         int64_t stride, const bncore_rows *t,
                                                         NAME(arithmetic) * compute,
                                                         NAME(arithmetic) * plain, int fused)
{
    if (a->weighting->frozen) return 0;
    if (!has_row_flags(a->weighting, t->cols) || t->cols % NAME(IN_LINE)) return 0;
    if (a->stream)
        NAME(flagged_rows)(a, coef, stride, t, 1, compute, plain, fused);
    else
        NAME(flagged_rows)(a, coef, stride, t, 0, compute, plain, fused);
    return 1;
}
