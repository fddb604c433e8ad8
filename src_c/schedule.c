/* Divides a call into tasks, as the threads and the caches need it. Nothing here changes a bit: partition.c divides
 * what the order of additions depends on. */
#if !defined(_WIN32)
#include <unistd.h>
#endif

#include "run.h"

enum {
    /* A thread that has fewer values than this costs more to wake than it saves. */
    THREAD_VALUES = 32 * 1024,
    TASKS_PER_THREAD = 4,     /* so that an uneven last task costs little */
    APPLY_VALUES = 64 * 1024, /* rows: values per task of the elementwise pass, at least and */
    APPLY_MOST = 256 * 1024,  /* at most: memory is read forwards within a task */
    APPLY_TASKS = 32,         /* rows: such tasks per thread, where there are values enough */
    NEAR_CACHE = 2 << 20,     /* bytes: arrays of so many in all stay in the caches of one core */
    LEAST_CACHE = 4 << 20,    /* bytes: smaller problems never pass the caches */
    MOST_CACHE = 32 << 20,    /* bytes of last-level cache that a core can have at most */
    STRIP_TASK = 256          /* rows: columns per task where rows alone do not feed the threads */
};

/* Bytes of the last-level cache that one core can use. The system may report the sum over all clusters of cores (256
 * MiB where one core can use 32), so a limit applies. */
static int64_t last_level_cache(void)
{
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (bytes >= LEAST_CACHE) return bncore_min(bytes, MOST_CACHE);
#endif
    return MOST_CACHE;
}

/* How many arrays the call reads, or writes in addition to the destination. */
static int64_t inputs(const bncore_arrays *a)
{
    const int apart = a->dresidual && a->dresidual != a->dy && a->dresidual != a->residual;
    return 1 + (a->dy != NULL) + (a->residual != NULL) + apart;
}

/* Whether the stores to the destination pass the caches by. They do where the destination and the arrays that it is
 * computed from, which have so many bytes, do not fit into the caches anyway. */
static int worth_streaming(const operation *op, int64_t bytes)
{
    const bncore_arrays *a = &op->arrays;
    if (!op->kernels->streams) return 0;
    if (!a->dst || a->dst == a->x || a->dst == a->dy || a->dst == a->residual) return 0;
    if (bytes < LEAST_CACHE) return 0;
    return bytes > last_level_cache() / 4 * 3;
}

static void schedule_planes(operation *op)
{
    const bncore_geometry *g = &op->g;
    const int64_t wanted = op->threads == 1 ? 1 : op->threads * TASKS_PER_THREAD; /* tasks */
    if (op->fields)
        op->group = bncore_group_size(g, (int64_t)op->item * inputs(&op->arrays), (int32_t)wanted);
    else
        op->group = bncore_ceil_div(g->channels,
                                    bncore_min(bncore_ceil_div(wanted, g->segments), g->channels));
    op->groups = bncore_ceil_div(g->channels, op->group);
    op->whole_groups =
        op->fields && !op->wide &&
        (op->threads == 1 || g->segments == 1 || op->groups >= TASKS_PER_THREAD * op->threads);
}

void bncore_schedule(operation *op)
{
    const bncore_geometry *g = &op->g;
    const int64_t useful = bncore_max(g->n * g->channels / THREAD_VALUES, 1);
    op->threads = (int32_t)bncore_min(op->problem->n_threads, useful);
    const int64_t bytes = g->n * g->channels * (int64_t)op->item * (inputs(&op->arrays) + 1);
    op->arrays.stream =
        op->streaming == BY_SIZE ? worth_streaming(op, bytes) : op->streaming == STREAMED;
    op->arrays.near = bytes <= NEAR_CACHE;
    if (g->planes) {
        schedule_planes(op);
        return;
    }
    op->strip =
        g->segments >= TASKS_PER_THREAD * op->threads || op->threads == 1 ? g->cols : STRIP_TASK;
    op->strips = bncore_ceil_div(g->cols, op->strip);
    op->at_once = op->at_once && op->strips == 1;
    const int64_t share = g->rows * g->cols / (APPLY_TASKS * op->threads);
    const int64_t values = bncore_min(bncore_max(share, APPLY_VALUES), APPLY_MOST);
    op->chunk = bncore_max(values / g->cols, 1);
    op->chunks = bncore_ceil_div(g->rows, op->chunk);
}
