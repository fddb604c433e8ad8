/* The custom calls of bncore.jax: XLA's buffers go to bncore as they are, and its threads do the work.
 *
 * A call holds one example, or as many as jax.vmap made of it: then every buffer has leading dimensions, all the same
 * number of them, of size 1 where it is the same for all examples. x, dy, residual, y, dx and dresidual have settings.ndim
 * dimensions behind those, and one dtype of bncore_dtype. Parameters and statistics have one dimension (channels), and
 * each has a dtype of its own. The moments are uint32[3, channels, 2], the bits of double[3, channels]: count, mean and sum
 * of squared deviations. JAX has no float64 unless it is told to. Weights have x's dimensions, but their size may be 1
 * along the channels; they are of one byte, 0 or 1, or of floating point. A buffer without elements stands for an argument
 * or a result that is not there. The calls of steps.h have more about what devices exchange,
 * and those of groups.h about group norm. */
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "bncore.h"
#include "buffers.h"
#include "calls.h"
#include "groups.h"
#include "steps.h"
#include "xla/ffi/api/ffi.h"

namespace
{

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

template <int arguments, int results, typename Given, typename... Rest>
auto handler(ffi::Error (*function)(ffi::ThreadPool, Given, Rest...))
{
    return bound<arguments, results>(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attrs<Given>(),
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
DEFINE_HANDLER(moments, 2, 4)
DEFINE_HANDLER(merge, 1, 4)
DEFINE_HANDLER(normalize, 5, 1)
DEFINE_HANDLER(grad_sums, 4, 3)
DEFINE_HANDLER(grad_input, 6, 3)
DEFINE_HANDLER(group_norm, 3, 3)
DEFINE_HANDLER(group_norm_backward, 5, 3)
