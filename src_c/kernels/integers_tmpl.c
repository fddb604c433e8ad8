/* Sums of integers, and integers as floats, for an unsigned storage type T. A signed integer is read as the unsigned one
 * that is larger by half the range: this flips the highest bit and changes no deviation. `flip` is that bit, or 0.
 *
 * integers_kernels.c defines T, the types of a square (SQUARE) and of a sum (SUM), and NAME(). Of a square, the lower HALF bits
 * and the bits above them are added up apart, so that MOST_ROWS of each fit SUM; all of them together where HALF is 0. */

enum {
    NAME(COLUMNS) = 4096 / sizeof(SUM), /* so many columns keep their sums in L1 */
    /* The three sums of a column do not lie whole pages apart, where the processor takes one for another. */
    NAME(ROOM) = NAME(COLUMNS) + 320 / sizeof(SUM)
};

typedef struct NAME(columns) {
    SUM x[NAME(ROOM)], lower[NAME(ROOM)], upper[HALF ? NAME(ROOM) : 1];
} NAME(columns);

/* Add `rows` rows, which is a constant. */
static inline ALWAYS_INLINE void NAME(add_tile)(NAME(columns) *restrict w, const T *restrict x,
                                                int64_t cols, int64_t stride, int rows, T flip)
{
#pragma omp simd
    for (int64_t j = 0; j < cols; j++) {
        SQUARE sum = 0;
        SUM lower = 0, upper = 0;
        for (int r = 0; r < rows; r++) {
            const T v = x[r * stride + j] ^ flip;
            const SQUARE square = (SQUARE)((SQUARE)v * v);
            sum = (SQUARE)(sum + v);
            lower += HALF ? square & (((SQUARE)1 << HALF) - 1) : square;
            upper += HALF ? square >> HALF : 0;
        }
        w->x[j] += sum;
        w->lower[j] += lower;
        if (HALF) w->upper[j] += upper;
    }
}

/* Sum at most MOST_ROWS rows. */
static inline ALWAYS_INLINE void NAME(sum_block)(NAME(columns) * w, const T *x, int64_t cols,
                                                 int64_t stride, int64_t rows, T flip)
{
    int64_t r = 0;
    for (int64_t j = 0; j < cols; j++) w->x[j] = w->lower[j] = 0;
    for (int64_t j = 0; HALF && j < cols; j++) w->upper[j] = 0;
    for (; r + SUM_TILE <= rows; r += SUM_TILE) {
        for (int64_t next = r + SUM_TILE; next < r + 2 * SUM_TILE; next++)
            for (int64_t j = 0; j < cols; j += LINE / (int)sizeof(T))
                fetch(x, (next * stride + j) * (int64_t)sizeof(T) + SUM_AHEAD, LEVEL_1);
        NAME(add_tile)(w, x + r * stride, cols, stride, SUM_TILE, flip);
    }
    for (; r < rows; r++) NAME(add_tile)(w, x + r * stride, cols, stride, 1, flip);
}

/* Rows of at most COLUMNS columns; column j of them is column j % period of the partial result. */
static inline void NAME(sum_columns)(bncore_partial partial, int64_t period, const T *x,
                                     int64_t cols, int64_t stride, int64_t rows, T flip)
{
    NAME(columns) w;
    for (int64_t begin = 0; begin < rows; begin += MOST_ROWS) {
        NAME(sum_block)(&w, x + begin * stride, cols, stride, bncore_min(rows - begin, MOST_ROWS),
                        flip);
        for (int64_t j = 0; j < cols; j++)
            add_sums(partial, j % period, w.x[j], w.lower[j], HALF ? w.upper[j] : 0, HALF);
    }
}

static void NAME(sum_rows)(bncore_partial partial, const bncore_arrays *a, const double *unused,
                           const bncore_rows *t)
{
    (void)unused;
    const T *x = a->x, flip = (T)a->integers->flip;
    /* Rows that lie behind each other are read as wider ones, which are whole lines. */
    int64_t fold = 1;
    while (t->stride == t->cols && fold * t->cols % RUN_COLUMNS && fold < RUN_COLUMNS) fold *= 2;
    if (fold * t->cols > NAME(COLUMNS) || fold * SUM_TILE > t->rows) fold = 1;
    const int64_t cols = fold * t->cols, rows = t->rows / fold, rest = t->rows % fold;
    clear_sums(partial, t->cols);
    for (int64_t j = 0; j < cols; j += NAME(COLUMNS)) {
        const bncore_partial strip = {partial.at + j,
                                      partial.stride}; /* the only one, if fold > 1 */
        NAME(sum_columns)(strip, t->cols, x + j, bncore_min(cols - j, NAME(COLUMNS)),
                          fold * t->stride, rows, flip);
    }
    if (rest) NAME(sum_columns)(partial, t->cols, x + rows * cols, t->cols, t->stride, rest, flip);
}

/* A run of at most MOST_ROWS * RUN_COLUMNS values of one channel, whose lines are added as rows. */
static inline void NAME(sum_run)(bncore_partial partial, int64_t channel, const T *x, int64_t len,
                                 T flip)
{
    NAME(columns) w;
    const int64_t rows = len / RUN_COLUMNS, rest = len % RUN_COLUMNS;
    uint64_t sum = 0, lower = 0, upper = 0;
    NAME(sum_block)(&w, x, RUN_COLUMNS, RUN_COLUMNS, rows, flip);
    if (rest) NAME(add_tile)(&w, x + len - rest, rest, 0, 1, flip);
    for (int j = 0; j < RUN_COLUMNS; j++) {
        sum += w.x[j];
        lower += w.lower[j];
        upper += HALF ? w.upper[j] : 0;
    }
    add_sums(partial, channel, sum, lower, upper, HALF);
}

static void NAME(sum_planes)(bncore_partial partial, const bncore_arrays *a, const double *unused,
                             const bncore_planes *t)
{
    (void)unused;
    const T *x = a->x, flip = (T)a->integers->flip;
    piece p;
    clear_sums(partial, t->channels);
    for (int64_t e = t->begin; e < t->end; e += p.len) {
        p = piece_at(t, e, (int64_t)MOST_ROWS * RUN_COLUMNS);
        for (int64_t c = 0; c < t->channels; c++)
            NAME(sum_run)(partial, c, x + c * t->inner + p.offset, p.len, flip);
    }
}
