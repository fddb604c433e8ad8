/* One custom call: its settings, XLA's threads as an executor, and the problem of each example. */
#ifndef BNCORE_JAX_CALLS_H
#define BNCORE_JAX_CALLS_H

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "bncore.h"
#include "buffers.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace
{

struct Settings {
    int64_t ndim, axis; /* of one example */
    double eps;
    int64_t activation = BNCORE_NO_ACTIVATION; /* bncore_activation */
    double slope = 0.0;
    int64_t omit_nan = 0, filled = 0; /* 0 or 1 */
    double fill = 0.0;
};

struct GroupSettings {
    int64_t ndim, axis, groups; /* of one example, whose samples lie along axis 0 */
    double eps;
};

} // namespace

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    Settings, ffi::StructMember<int64_t>("ndim"), ffi::StructMember<int64_t>("axis"),
    ffi::StructMember<double>("eps"), ffi::StructMember<int64_t>("activation"),
    ffi::StructMember<double>("slope"), ffi::StructMember<int64_t>("omit_nan"),
    ffi::StructMember<int64_t>("filled"), ffi::StructMember<double>("fill"));
XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(GroupSettings, ffi::StructMember<int64_t>("ndim"),
                                      ffi::StructMember<int64_t>("axis"),
                                      ffi::StructMember<int64_t>("groups"),
                                      ffi::StructMember<double>("eps"));

namespace
{

/* ---- threads ---- */

/* One parallel loop. Helpers that start when everything is taken find nothing to do, and the memory still there. */
class Loop
{
  public:
    Loop(int64_t tasks, void (*task)(void *, int64_t), void *arg)
        : tasks_(tasks), task_(task), arg_(arg)
    {
    }

    void work()
    {
        for (int64_t i = next_++; i < tasks_; i = next_++) {
            task_(arg_, i);
            if (++done_ == tasks_) {
                const std::lock_guard<std::mutex> lock(mutex_);
                all_done_.notify_one();
            }
        }
    }

    void wait()
    {
        std::unique_lock<std::mutex> lock(mutex_);
        all_done_.wait(lock, [this] { return done_ == tasks_; });
    }

  private:
    const int64_t tasks_;
    void (*const task_)(void *, int64_t);
    void *const arg_;
    std::atomic<int64_t> next_{0}, done_{0};
    std::mutex mutex_;
    std::condition_variable all_done_;
};

/* The executor of every call, unless BNCORE_EXECUTOR names another. OpenMP's threads, which spin between calls, would start
 * sooner, and take the processors from XLA's other operations. The caller works too and waits only for tasks that have
 * begun: it may itself be one of the pool's threads. */
void parallel_for(void *pool, int64_t tasks, int32_t threads, void (*task)(void *, int64_t),
                  void *arg)
{
    const auto loop = std::make_shared<Loop>(tasks, task, arg);
    for (int64_t i = 1; i < std::min<int64_t>(threads, tasks); i++)
        static_cast<ffi::ThreadPool *>(pool)->Schedule([loop] { loop->work(); });
    loop->work();
    loop->wait();
}

/* XLA makes subnormal numbers zero in its calls; parameters and results are converted as bncore computes. */
class Environment
{
  public:
    Environment() { bncore_environment_enter(&own_); }
    ~Environment() { bncore_environment_leave(&own_); }
    Environment(const Environment &) = delete;

  private:
    bncore_environment own_;
};

/* Whether the user asks for an executor of the library. */
bool names_an_executor()
{
    static const bool named = [] {
        const char *name = std::getenv("BNCORE_EXECUTOR");
        return name && *name;
    }();
    return named;
}

/* ---- calls ---- */

/* From so many values per thread on, an example is spread over threads; smaller ones are taken one per thread. */
constexpr int64_t LARGE = 1 << 16;

class Call
{
  public:
    /* `all`: a result of x's shape, which has every example. */
    Call(ffi::ThreadPool pool, const Settings &settings, const ffi::AnyBuffer &all,
         const ffi::AnyBuffer &weights)
        : Call(pool, settings, all, settings.ndim, all, ExampleBuffer(weights, settings.ndim))
    {
    }

    /* `all`: a result of any shape of so many dimensions. */
    Call(ffi::ThreadPool pool, const Settings &settings, const ffi::AnyBuffer &all,
         int64_t own_dimensions, const ffi::AnyBuffer &x, const ExampleBuffer &weights)
        : all(all, own_dimensions), weights_(weights), pool_(pool), executor_{parallel_for, &pool_},
          settings_(settings), threads_(static_cast<int32_t>(std::max<int64_t>(
                                   1, std::min<int64_t>(pool.num_threads(), INT32_MAX))))
    {
        const auto dimensions = x.dimensions();
        const auto first = dimensions.size() - static_cast<std::size_t>(settings.ndim);
        const int axis = static_cast<int>(settings.axis);
        int64_t sizes[3];
        bncore_canonical(dimensions.begin() + first, static_cast<int>(settings.ndim), axis,
                         axis + 1, sizes);
        status_ = bncore_problem_init(&problem_, sizeof problem_, dtype_of(x), sizes[0], sizes[1],
                                      sizes[2]);
        problem_.eps = settings.eps;
        problem_.executor = names_an_executor() ? nullptr : &executor_;
        advise_large_pages(all);
    }

    Call(const Call &) = delete;

    int64_t channels() const { return problem_.channels; }
    /* The values of a channel. */
    double count() const { return static_cast<double>(problem_.outer * problem_.inner); }

    /* Call work(problem, fusion, weights, example) for every example, where problem may be pointed to fusion. It is
     * pointed to the weights if there are any. */
    template <typename Work> ffi::Error each(Work work)
    {
        std::atomic<int> failed{status_};
        auto one = [&](int64_t example, int32_t threads) {
            const Environment environment;
            bncore_problem problem = problem_;
            bncore_fusion fusion;
            bncore_fusion_init(&fusion, sizeof fusion);
            fusion.activation = static_cast<int32_t>(settings_.activation);
            fusion.slope = settings_.slope;
            problem.n_threads = threads;
            if (settings_.activation) problem.fusion = &fusion;
            bncore_status status = BNCORE_ERROR_MEMORY;
            try {
                std::vector<double> numbers;
                bncore_weights weights = weights_of(example, numbers);
                if (weights.values || weights.omit_nan) problem.weights = &weights;
                status = work(problem, fusion, weights, example);
            } catch (const std::bad_alloc &) {
            }
            if (status != BNCORE_OK) failed = status;
        };
        const int64_t examples = status_ == BNCORE_OK ? (joined ? 1 : all.examples()) : 0;
        const int64_t values = problem_.outer * problem_.channels * problem_.inner;
        if (examples > 1 && values / threads_ * samples < LARGE) {
            parallel_for(
                &pool_, examples, threads_,
                [](void *arg, int64_t i) { (*static_cast<decltype(one) *>(arg))(i, 1); }, &one);
        } else {
            for (int64_t i = 0; i < examples; i++) one(i, threads_);
        }
        const auto status = static_cast<bncore_status>(failed.load());
        return status == BNCORE_OK ? ffi::Error::Success()
                                   : ffi::Error::Internal(bncore_status_string(status));
    }

    const ExampleBuffer all;

  protected:
    int64_t samples = 1; /* of an example */
    bool joined = false; /* all examples are one */

  private:
    /* What counts in an example; `numbers` may hold the values. */
    bncore_weights weights_of(int64_t example, std::vector<double> &numbers) const
    {
        bncore_weights weights;
        bncore_weights_init(&weights, sizeof weights);
        weights.omit_nan = static_cast<int32_t>(settings_.omit_nan);
        weights.filled = static_cast<int32_t>(settings_.filled);
        weights.fill = settings_.fill;
        if (!weights_.at(all, example)) return weights;
        weights.per_channel = weights_.size(settings_.axis) == problem_.channels;
        weights.dtype = weights_.has_bytes() ? BNCORE_WEIGHT_UINT8 : BNCORE_WEIGHT_FLOAT64;
        weights.values = weights_.has_bytes() ? weights_.at(all, example)
                                              : weights_.doubles(all, example, numbers);
        return weights;
    }

    const ExampleBuffer weights_;
    ffi::ThreadPool pool_;
    const bncore_executor executor_;
    const Settings settings_;
    const int32_t threads_;
    bncore_problem problem_;
    bncore_status status_;
};

} // namespace

#endif
