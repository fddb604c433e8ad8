/* The custom calls of bncore.jax: XLA's buffers go to bncore as they are, and its threads do the work.
 *
 * A call holds one example, or as many as jax.vmap made of it: then every buffer has leading dimensions, all the same
 * number of them, of size 1 where it is the same for all examples. x, dy, residual, y, dx and dresidual have settings.ndim
 * dimensions behind those, and one dtype of bncore_dtype. Parameters and statistics have one dimension (channels), and
 * each has a dtype of its own. The moments are uint32[3, channels, 2], the bits of double[3, channels]: count, mean and sum
 * of squared deviations. JAX has no float64 unless it is told to. Weights have x's dimensions, but their size may be 1
 * along the channels; they are of one byte, 0 or 1, or of floating point. A buffer without elements stands for an argument
 * or a result that is not there. */
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
    int64_t activation; /* bncore_activation */
    double slope;
    int64_t omit_nan, filled; /* 0 or 1 */
    double fill;
};

} // namespace

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    Settings, ffi::StructMember<int64_t>("ndim"), ffi::StructMember<int64_t>("axis"),
    ffi::StructMember<double>("eps"), ffi::StructMember<int64_t>("activation"),
    ffi::StructMember<double>("slope"), ffi::StructMember<int64_t>("omit_nan"),
    ffi::StructMember<int64_t>("filled"), ffi::StructMember<double>("fill"));

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
        : all(all, settings.ndim), weights_(weights, settings.ndim), pool_(pool),
          executor_{parallel_for, &pool_}, settings_(settings),
          threads_(static_cast<int32_t>(
              std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), INT32_MAX))))
    {
        const auto dimensions = all.dimensions();
        const auto first = dimensions.size() - static_cast<std::size_t>(settings.ndim);
        const int axis = static_cast<int>(settings.axis);
        int64_t sizes[3];
        bncore_canonical(dimensions.begin() + first, static_cast<int>(settings.ndim), axis,
                         axis + 1, sizes);
        status_ = bncore_problem_init(&problem_, sizeof problem_, dtype_of(all), sizes[0], sizes[1],
                                      sizes[2]);
        problem_.eps = settings.eps;
        problem_.executor = names_an_executor() ? nullptr : &executor_;
        advise_large_pages(all);
    }

    Call(const Call &) = delete;

    int64_t channels() const { return problem_.channels; }
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
        const int64_t examples = status_ == BNCORE_OK ? all.examples() : 0;
        const int64_t values = problem_.outer * problem_.channels * problem_.inner;
        if (examples > 1 && values / threads_ < LARGE) {
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

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

ffi::Error train(ffi::ThreadPool pool, Settings settings, In x_, In weight_, In bias_, In residual_,
                 In weights_, Out y_, Out mean_, Out var_, Out moments_, Out count_)
{
    Call call(pool, settings, *y_, weights_);
    const ExampleBuffer &y = call.all, x(x_, settings.ndim), residual(residual_, settings.ndim);
    const ExampleBuffer weight(weight_, 1), bias(bias_, 1);
    const ExampleBuffer mean(*mean_, 1), var(*var_, 1), moments(*moments_, 3), counts(*count_, 1);
    return call.each([&](bncore_problem &problem, bncore_fusion &fusion, bncore_weights &weights,
                         int64_t i) {
        std::vector<double> w, b;
        auto *count = static_cast<double *>(moments.at(y, i)), *means = count + call.channels(),
             *m2 = means + call.channels();
        std::fill(count, means, call.count());
        weights.count = count;
        if ((fusion.residual = residual.at(y, i))) problem.fusion = &fusion;
        const bncore_status status = bncore_train(&problem, y.at(y, i), means, m2, x.at(y, i),
                                                  weight.doubles(y, i, w), bias.doubles(y, i, b));
        if (status != BNCORE_OK) return status;
        std::vector<double> values(means, m2);
        mean.store(y, i, values);
        std::transform(m2, m2 + call.channels(), count, values.begin(), std::divides<>());
        var.store(y, i, values);
        values.assign(count, means);
        counts.store(y, i, values);
        return status;
    });
}

/* What both backward calls do; `operation` is bncore_train_backward or bncore_infer_backward. */
template <typename Statistics, typename Store>
ffi::Error backward(Call &call, const Settings &settings,
                    decltype(&bncore_train_backward) operation, const In &dy_, const In &x_,
                    const In &weight_, const In &bias_, const In &residual_, Out &dweight_,
                    Out &dbias_, Out &dresidual_, Statistics statistics, Store store)
{
    const ExampleBuffer &dx = call.all, dy(dy_, settings.ndim), x(x_, settings.ndim);
    const ExampleBuffer residual(residual_, settings.ndim), dresidual(*dresidual_, settings.ndim);
    const ExampleBuffer weight(weight_, 1), bias(bias_, 1), dweight(*dweight_, 1),
        dbias(*dbias_, 1);
    advise_large_pages(*dresidual_);
    return call.each(
        [&](bncore_problem &problem, bncore_fusion &fusion, bncore_weights &weights, int64_t i) {
            const auto channels = static_cast<std::size_t>(call.channels());
            std::vector<double> count, mean_copy, var_copy, w, b, sum_dy(channels),
                sum_dy_xhat(channels);
            const auto [mean, var] = statistics(i, count, mean_copy, var_copy);
            weights.count = count.data();
            const double *gamma = weight.doubles(dx, i, w);
            fusion.residual = residual.at(dx, i);
            fusion.dresidual = dresidual.at(dx, i);
            fusion.bias = bias.doubles(dx, i, b);
            const bncore_status status =
                operation(&problem, dx.at(dx, i), sum_dy.data(), sum_dy_xhat.data(), dy.at(dx, i),
                          x.at(dx, i), mean, var, gamma);
            if (status != BNCORE_OK) return status;
            dweight.store(dx, i, sum_dy_xhat);
            dbias.store(dx, i, sum_dy);
            store(i, var, gamma, sum_dy, sum_dy_xhat);
            return status;
        });
}

ffi::Error train_backward(ffi::ThreadPool pool, Settings settings, In dy, In x, In moments_,
                          In weight, In bias, In residual, In weights, Out dx, Out dweight,
                          Out dbias, Out dresidual)
{
    Call call(pool, settings, *dx, weights);
    const ExampleBuffer moments(moments_, 3);
    const auto statistics = [&](int64_t i, std::vector<double> &count, std::vector<double> &,
                                std::vector<double> &var) {
        const auto *first = static_cast<const double *>(moments.at(call.all, i)),
                   *mean = first + call.channels(), *m2 = mean + call.channels();
        count.assign(first, mean);
        var.assign(m2, m2 + call.channels());
        std::transform(var.begin(), var.end(), count.begin(), var.begin(), std::divides<>());
        return std::pair<const double *, const double *>(mean, var.data());
    };
    return backward(call, settings, bncore_train_backward, dy, x, weight, bias, residual, dweight,
                    dbias, dresidual, statistics, [](auto &&...) {});
}

ffi::Error infer(ffi::ThreadPool pool, Settings settings, In x_, In mean_, In var_, In weight_,
                 In bias_, In residual_, In weights_, Out y_)
{
    Call call(pool, settings, *y_, weights_);
    const ExampleBuffer &y = call.all, x(x_, settings.ndim), residual(residual_, settings.ndim);
    const ExampleBuffer mean(mean_, 1), var(var_, 1), weight(weight_, 1), bias(bias_, 1);
    return call.each(
        [&](bncore_problem &problem, bncore_fusion &fusion, bncore_weights &, int64_t i) {
            std::vector<double> m, v, w, b;
            if (!settings.filled) problem.weights = nullptr; /* they matter for that alone */
            if ((fusion.residual = residual.at(y, i))) problem.fusion = &fusion;
            return bncore_normalize(&problem, y.at(y, i), x.at(y, i), mean.doubles(y, i, m),
                                    var.doubles(y, i, v), weight.doubles(y, i, w),
                                    bias.doubles(y, i, b));
        });
}

/* With s = weight / sqrt(var + eps): dmean = -s sum(dy), dvar = -s sum(dy xhat) / (2 sqrt(var + eps)). */
ffi::Error infer_backward(ffi::ThreadPool pool, Settings settings, In dy, In x, In mean_, In var_,
                          In weight, In bias, In residual, In weights, Out dx, Out dmean_,
                          Out dvar_, Out dweight, Out dbias, Out dresidual)
{
    Call call(pool, settings, *dx, weights);
    const ExampleBuffer &all = call.all, mean(mean_, 1), var(var_, 1), dmean(*dmean_, 1),
                        dvar(*dvar_, 1);
    const auto statistics = [&](int64_t i, std::vector<double> &, std::vector<double> &m,
                                std::vector<double> &v) {
        return std::pair<const double *, const double *>(mean.doubles(all, i, m),
                                                         var.doubles(all, i, v));
    };
    const auto store = [&](int64_t i, const double *variance, const double *gamma,
                           std::vector<double> &sum_dy, std::vector<double> &sum_dy_xhat) {
        for (std::size_t c = 0; c < sum_dy.size(); c++) {
            const double invstd = 1.0 / std::sqrt(variance[c] + settings.eps);
            const double scale = gamma ? gamma[c] * invstd : invstd;
            sum_dy[c] *= -scale;
            sum_dy_xhat[c] *= -0.5 * scale * invstd;
        }
        dmean.store(all, i, sum_dy);
        dvar.store(all, i, sum_dy_xhat);
    };
    return backward(call, settings, bncore_infer_backward, dy, x, weight, bias, residual, dweight,
                    dbias, dresidual, statistics, store);
}

/* A handler of so many arguments and results, which follow the threads and the settings. */
template <int arguments, int results, typename Binding, typename Function>
auto bound(Binding binding, Function function)
{
    if constexpr (arguments > 0)
        return bound<arguments - 1, results>(std::move(binding).template Arg<ffi::AnyBuffer>(),
                                             function);
    else if constexpr (results > 0)
        return bound<0, results - 1>(std::move(binding).template Ret<ffi::AnyBuffer>(), function);
    else
        return std::move(binding).To(function);
}

template <int arguments, int results, typename Function> auto handler(Function function)
{
    return bound<arguments, results>(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attrs<Settings>(),
                                     function);
}

} // namespace

/* A function that XLA can be given. */
#define DEFINE_HANDLER(name, arguments, results)                                                   \
    extern "C" BNCORE_API XLA_FFI_Error *bncore_jax_##name(XLA_FFI_CallFrame *frame)               \
    {                                                                                              \
        static const auto call = handler<arguments, results>(name);                                \
        return call->Call(frame);                                                                  \
    }

DEFINE_HANDLER(train, 5, 5)
DEFINE_HANDLER(train_backward, 7, 4)
DEFINE_HANDLER(infer, 7, 1)
DEFINE_HANDLER(infer_backward, 8, 6)
