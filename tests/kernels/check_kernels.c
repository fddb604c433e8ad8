/* Checks every compiled kernel, by its name, against a plain loop, for each instruction set that this processor has and for
 * each dtype, over random tiles, offsets and variants. The kernel must give the same bits, and must write nothing but its
 * outputs. With --bench the program then times each kernel.
 *
 *     check_kernels [--bench] [--tiles N] [--seed N] [PART OF A NAME]
 *
 * `make check-kernels` builds and runs it. It is linked with the archive, since the shared library hides the names that it
 * uses. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "include/bncore.h"
#include "kernels/kernels.h"
#include "kernels/storage.h"
#include "random.h"

enum {
    MOST_CHANNELS = BNCORE_GROUP,
    MOST_COLS = 2200,      /* beyond STRIP and TILED_COLS of kernels.c */
    MOST_VALUES = 1 << 18, /* of a tile's array, including the gaps between its runs */
    AROUND = 64,           /* values before and behind each array, which no kernel may write */
    COEF_GAP = 80,         /* between two fields of coefficients, as in run.c */
    MOST_ISAS = 8
};

/* A kernel is an operation on planes or on rows, or arithmetic per channel. */
typedef enum operation {
    moments,
    grad_sums,
    normalize,
    grad_input,
    grad_frozen,
    grad_group,
    weighted_moments,
    weighted_grad_sums,
    weighted_normalize,
    weighted_grad_input,
    merge_moments,
    merge_sums,
    inverse_std,
    normalize_coefs,
    mask_coefs,
    grad_input_coefs,
    grad_frozen_coefs,
    grad_group_coefs
} operation;

typedef struct kernel {
    const char *name;
    operation operation;
    int rows, fused;
} kernel;

#define BNCORE_SUMS(operation, variant, fused, reads)                                              \
    {#operation "_planes_" #variant, operation, 0, fused},                                         \
        {#operation "_rows_" #variant, operation, 1, fused},
#define BNCORE_ELEMENTWISE(operation, variant, fused, reads)                                       \
    BNCORE_SUMS(operation, variant, fused, reads)

static const kernel all_kernels[] = {
    {"moments_planes", moments, 0, 0},
    {"moments_rows", moments, 1, 0},
#include "kernels/variants.def"
    {"weighted_moments_planes", weighted_moments, 0, 0},
    {"weighted_moments_rows", weighted_moments, 1, 0},
    {"weighted_normalize_planes_plain", weighted_normalize, 0, 0},
    {"weighted_normalize_rows_plain", weighted_normalize, 1, 0},
    {"weighted_normalize_planes_fused", weighted_normalize, 0, ACTIVATION | RESIDUAL},
    {"weighted_normalize_rows_fused", weighted_normalize, 1, ACTIVATION | RESIDUAL},
    {"weighted_grad_input_planes_plain", weighted_grad_input, 0, 0},
    {"weighted_grad_input_rows_plain", weighted_grad_input, 1, 0},
    {"weighted_grad_input_planes_fused", weighted_grad_input, 0, ACTIVATION | RESIDUAL},
    {"weighted_grad_input_rows_fused", weighted_grad_input, 1, ACTIVATION | RESIDUAL},
    {"merge_moments", merge_moments, 0, 0},
    {"merge_sums", merge_sums, 0, 0},
    {"inverse_std", inverse_std, 0, 0},
    {"normalize_coefs", normalize_coefs, 0, 0},
    {"mask_coefs", mask_coefs, 0, 0},
    {"grad_input_coefs", grad_input_coefs, 0, 0},
    {"grad_frozen_coefs", grad_frozen_coefs, 0, 0},
    {"grad_group_coefs", grad_group_coefs, 0, 0},
};

enum { KERNELS = sizeof all_kernels / sizeof all_kernels[0] };

/* ---- a tile, and what a kernel makes of it ---- */

/* The input that the output shares its memory with, since an operation may work in place. */
typedef enum place { APART, OVER_X, OVER_DY, OVER_RESIDUAL, PLACES } place;

/* Arrays of values begin AROUND + offset values behind the start of their memory, so that they are aligned to the
 * size of their values and to nothing more. */
typedef struct tile {
    bncore_planes planes;
    bncore_rows rows;
    int64_t offset, values; /* of each array: what lies before it, and its length */
    int64_t columns;        /* results, parameters and coefficients */
    int64_t step;           /* merges */
    int stream, leaky, float64_sums;
    int in_rows, uneven; /* uneven: columns hold values of very different size */
    place over;
    double count, eps;
    bncore_weighting weighting;
    int64_t at;        /* the place in x of the first value */
    int without_fused; /* a weighted kernel has nothing to fuse */
} tile;

/* Parameters with one value per column, and partial results of several fields. */
typedef struct parameters {
    double mean[MOST_COLS], var[MOST_COLS], weight[MOST_COLS], bias[MOST_COLS];
    double sum_dy[MOST_COLS], sum_dy_xhat[MOST_COLS], counts[MOST_COLS],
        from[MAX_FIELDS * MOST_COLS];
} parameters;

static parameters given;

/* The weights of a tile. */
static struct {
    uint8_t flags[2 * MOST_VALUES];
    double numbers[2 * MOST_VALUES];
} weights_of_all;

static int is_moments(const kernel *k)
{
    return k->operation == moments || k->operation == weighted_moments;
}

static int is_weighted(const kernel *k)
{
    return k->operation >= weighted_moments && k->operation <= weighted_grad_input;
}

static int is_reduction(const kernel *k)
{
    return is_moments(k) || k->operation == grad_sums || k->operation == weighted_grad_sums;
}

/* The size of value i of x: of a column that is constant, of some whose squares leave the range of float32, of outliers. */
static double size_at(const tile *t, int64_t i)
{
    static const double sizes[] = {1.0, 0.0, 0x1p-50, 1.0, 0x1p45, 1.0, 0x1p-39, 1.0, 0x1p39};
    const int64_t many = sizeof sizes / sizeof sizes[0];
    if (!t->uneven || i < 0) return 1.0;
    if (i % 997 == 996) return 0x1p70;
    return sizes[(t->in_rows ? i % t->rows.stride : i / t->planes.inner) % many];
}

/* Give the tile so many weights: runs of 1 and of 0, or any. */
static void weigh(tile *t, int fixed, int64_t weights)
{
    bncore_weighting *w = &t->weighting;
    const int doubles = !fixed && random_int(0, 1), runs = (int)random_int(0, 2);
    const int64_t every = random_int(2, 9), run = random_int(1, 5000);
    for (int64_t i = 0; i < weights; i++) {
        const int one = runs ? i / run % runs == 0 : random_int(0, every) > 0;
        weights_of_all.flags[i] = (uint8_t)one;
        weights_of_all.numbers[i] = one && !runs && random_int(0, 2) == 0 ? 1.5 : one;
    }
    *w = (bncore_weighting){.doubles = doubles,
                            .per_channel = !fixed && random_int(0, 1),
                            .omit_nan = !fixed && random_int(0, 1),
                            .filled = fixed || random_int(0, 1),
                            .frozen = !fixed && random_int(0, 1),
                            .inner = 1,
                            .fill = 0.75};
    w->values = doubles ? (const void *)weights_of_all.numbers : weights_of_all.flags;
    if (!doubles && !fixed && random_int(0, 3) == 0) w->values = NULL;
    t->at = fixed || !t->in_rows || t->rows.rows == 1 ? 0 : t->rows.stride * random_int(0, 3);
    if (!t->in_rows || w->per_channel) return;
    w->inner = fixed || random_int(0, 1) ? 1 : random_int(2, 15);
    w->width = w->inner > 1 || (!fixed && random_int(0, 1)) ? w->inner * random_int(1, 40)
                                                            : t->rows.stride;
    t->without_fused = (int)random_int(0, 1);
}

/* fixed: the tile that a kernel is timed with. weights: as many as are read. */
static tile random_tile(const kernel *k, int fixed, int64_t weights)
{
    tile t = {.count = 1.0 + (double)random_int(0, 100000), .eps = 1e-5};
    static const int64_t planes[] = {16, 17, 31, 32, 33, 49, 63, 64, 196, 784, 5000};
    const int64_t inner = fixed ? 784 : planes[random_int(0, 10)] + random_int(0, 1);
    const int64_t images = fixed ? 8 : random_int(1, 5);
    const int64_t room = MOST_VALUES / (inner * images);
    t.planes.channels = fixed ? 8 : random_int(1, bncore_min(room, MOST_CHANNELS));
    t.planes.inner = inner;
    t.planes.image_stride = inner * (t.planes.channels + (fixed ? 0 : random_int(0, 2)));
    t.planes.image_stride = bncore_min(t.planes.image_stride, MOST_VALUES / images);
    t.planes.begin = fixed ? 0 : random_int(0, inner * images - 1);
    if (random_int(0, 1)) t.planes.begin = t.planes.begin / inner * inner;
    t.planes.end = fixed ? inner * images : random_int(t.planes.begin + 1, inner * images);
    static const int64_t widths[] = {16, 48, 64, 240, 1024, 2048, 2080};
    t.rows.cols = fixed ? 256 : random_int(0, 2) ? random_int(1, 300) : widths[random_int(0, 6)];
    t.rows.stride = t.rows.cols;
    if (is_reduction(k) && !fixed && random_int(0, 1)) t.rows.stride += random_int(1, 100);
    t.rows.rows = fixed ? 196 : random_int(1, bncore_min(MOST_VALUES / t.rows.stride, 600));
    t.offset = fixed ? 0 : random_int(0, 31);
    t.columns = k->rows ? t.rows.cols : t.planes.channels;
    t.values = k->rows ? t.rows.rows * t.rows.stride : images * t.planes.image_stride;
    t.step = random_int(0, 1) ? 1 : random_int(2, 5);
    t.over = fixed ? APART : (place)random_int(0, PLACES - 1);
    t.stream = fixed || t.over != APART ? 0 : (int)random_int(0, 1);
    t.leaky = (int)random_int(0, 1);
    t.float64_sums = !fixed && random_int(0, 3) == 0;
    t.in_rows = k->rows;
    t.uneven = !fixed && random_int(0, 2) == 0;
    if (is_weighted(k)) weigh(&t, fixed, weights);
    return t;
}

/* ---- reports ---- */

static int failures;

static void fail(const kernel *k, const char *isa, const char *dtype, const tile *t,
                 const char *what)
{
    failures++;
    printf("FAILED %s %s %s: %s\n", k->name, dtype, isa, what);
    if (k->rows)
        printf("       rows %lld, cols %lld, stride %lld", (long long)t->rows.rows,
               (long long)t->rows.cols, (long long)t->rows.stride);
    else
        printf("       channels %lld, inner %lld, values %lld to %lld",
               (long long)t->planes.channels, (long long)t->planes.inner,
               (long long)t->planes.begin, (long long)t->planes.end);
    printf(", offset %lld, stream %d, leaky %d, over %d\n", (long long)t->offset, t->stream,
           t->leaky, t->over);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Every fifth partial result is one of no value. */
static void clear_partial(double *partial)
{
    static double cleared[5 * MAX_FIELDS * MOST_COLS];
    if (cleared[1] == 0.0) /* the first time */
        for (int i = 0; i < 5 * MAX_FIELDS * MOST_COLS; i++)
            cleared[i] = i % MOST_COLS % 5 ? 1.0 + i % 7 : 0.0;
    memcpy(partial, cleared, sizeof cleared);
}

#include "plain.h"

static const char *const dtype_names[] = {"float32", "float64", "float16", "bfloat16"};

#define T float
#define ACC float
#define DTYPE BNCORE_FLOAT32
#define NAME(function) function##_f32
#include "check_tmpl.c"
#undef T
#undef ACC
#undef DTYPE
#undef NAME

#define T double
#define ACC double
#define DTYPE BNCORE_FLOAT64
#define NAME(function) function##_f64
#include "check_tmpl.c"
#undef T
#undef ACC
#undef DTYPE
#undef NAME

#define T uint16_t
#define ACC float
#define DTYPE BNCORE_FLOAT16
#define NAME(function) function##_f16
#include "check_tmpl.c"
#undef DTYPE
#undef NAME
#define DTYPE BNCORE_BFLOAT16
#define NAME(function) function##_bf16
#include "check_tmpl.c"
#undef T
#undef ACC
#undef DTYPE
#undef NAME

/* By bncore_dtype. */
static void (*const check[])(const kernel *, const bncore_kernels *,
                             const tile *) = {check_f32, check_f64, check_f16, check_bf16};
static double (*const timing[])(const kernel *, const bncore_kernels *, const tile *,
                                double *) = {time_f32, time_f64, time_f16, time_bf16};

enum { DTYPES = sizeof check / sizeof check[0] };

/* ---- the program ---- */

typedef struct options {
    int bench, tiles;
    const char *part; /* of the kernels' names */
} options;

static void check_all(const options *o, const bncore_kernels *isa)
{
    for (int i = 0; i < KERNELS; i++) {
        const kernel *k = &all_kernels[i];
        if (!strstr(k->name, o->part)) continue;
        for (int n = 0; n < o->tiles; n++) {
            const tile t = random_tile(k, 0, 2 * MOST_VALUES);
            for (int dtype = 0; dtype < DTYPES; dtype++) check[dtype](k, isa, &t);
        }
    }
}

/* Runs of every length, so that chains end in every way. */
static void check_lengths(const options *o, const bncore_kernels *isa)
{
    const int64_t longest = 130 + BNCORE_LANES, columns = 19;
    for (int i = 0; i < KERNELS; i++) {
        const kernel *k = &all_kernels[i];
        if (!is_reduction(k) || !strstr(k->name, o->part)) continue;
        for (int64_t len = 1; len <= longest; len++) {
            tile t = random_tile(k, 1, columns * longest);
            t.planes = (bncore_planes){2, len, 3 * len, 0, 2 * len - len / 3};
            t.rows = (bncore_rows){len, columns, columns};
            t.columns = k->rows ? t.rows.cols : t.planes.channels;
            t.values = k->rows ? columns * len : 6 * len;
            for (int dtype = 0; dtype < DTYPES; dtype++) check[dtype](k, isa, &t);
        }
    }
}

static void time_all(const options *o, const bncore_kernels *const isas[], int count)
{
    printf("\nns per value; in brackets GB/s of all arrays\n%-36s", "kernel");
    for (int i = 0; i < count; i++) printf("%20s", isas[i]->name);
    printf("\n");
    for (int k = 0; k < DTYPES * KERNELS; k++) {
        const kernel *timed = &all_kernels[k / DTYPES];
        if (!strstr(timed->name, o->part)) continue;
        char name[64];
        snprintf(name, sizeof name, "%s %s", timed->name, dtype_names[k % DTYPES]);
        printf("%-36s", name);
        const tile t = random_tile(timed, 1, 2 * MOST_VALUES);
        for (int i = 0; i < count; i++) {
            double bytes;
            const double ns = timing[k % DTYPES](timed, isas[i], &t, &bytes);
            printf("%10.3f (%6.1f)", ns, bytes / ns);
        }
        printf("\n");
    }
}

int main(int argc, char **argv)
{
    options o = {.tiles = 40, .part = ""};
    uint64_t seed = 1;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--bench") == 0)
            o.bench = 1;
        else if (strcmp(argv[i], "--tiles") == 0 && i + 1 < argc)
            o.tiles = atoi(argv[++i]);
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            seed = strtoull(argv[++i], NULL, 10);
        else
            o.part = argv[i];
    }
    const bncore_kernels *isas[MOST_ISAS];
    int count = 0, names = 0;
    for (; bncore_isa_available(count) && count < MOST_ISAS; count++) {
        bncore_isa_set(bncore_isa_available(count));
        isas[count] = bncore_kernels_now();
    }
    for (int i = 0; i < KERNELS; i++) names += strstr(all_kernels[i].name, o.part) != NULL;
    for (int i = 0; i < count; i++) {
        const int before = failures;
        state = seed; /* the same tiles for each */
        check_all(&o, isas[i]);
        check_lengths(&o, isas[i]);
        printf("%-10s %d kernels, all dtypes, %d tiles each: %s\n", isas[i]->name, names, o.tiles,
               failures == before ? "ok" : "FAILED");
    }
    if (names == 0) printf("no kernel has '%s' in its name\n", o.part);
    if (o.bench && failures == 0) time_all(&o, isas, count);
    return failures > 0 || names == 0;
}
