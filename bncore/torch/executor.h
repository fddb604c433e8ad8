/* Who runs the parallel loops of a call. */
#ifndef BNCORE_TORCH_EXECUTOR_H
#define BNCORE_TORCH_EXECUTOR_H

#include <atomic>
#include <cstdlib>
#include <string>

#include <ATen/Parallel.h>

#include "bncore.h"

namespace
{

/* PyTorch's own parallel loop: the threads that just ran a convolution run this too. Each takes one stretch of
 * neighbouring tasks, the same one in every call. A call inside a parallel region runs on its own thread. */
void torch_parallel_for(void *, int64_t tasks, int32_t, void (*task)(void *, int64_t), void *arg)
{
    at::parallel_for(0, tasks, 1, [task, arg](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) task(arg, i);
    });
}

constexpr bncore_executor TORCH_EXECUTOR{torch_parallel_for, nullptr};

/* Who runs the loops of every call; NULL is the library's executor, of this copy of the library. */
std::atomic<const bncore_executor *> executor{nullptr};

/* "torch", or a name that bncore_executor_choose knows; "" is what BNCORE_EXECUTOR says, else the default. */
bool choose_executor(const std::string &name)
{
#ifdef INTRA_OP_PARALLEL
    const char *asked = std::getenv("BNCORE_EXECUTOR");
    if (name == "torch" || (name.empty() && !(asked && *asked))) {
        executor = &TORCH_EXECUTOR;
        return true;
    }
#endif
    if (name.empty() ? bncore_executor_init() != BNCORE_OK
                     : bncore_executor_choose(name.c_str()) != BNCORE_OK)
        return false;
    executor = nullptr;
    return true;
}

/* A forked child has none of PyTorch's threads, and waits for them forever; the library makes new ones. */
const bncore_executor *executor_of_a_call()
{
    return bncore_in_forked_child() ? nullptr : executor.load(std::memory_order_relaxed);
}

std::string executor_name()
{
    return executor.load() ? "torch" : bncore_executor_name();
}

} // namespace

#endif
