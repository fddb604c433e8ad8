/* Training in steps, between which devices exchange what they have: moments as in handlers.cpp, and gradient sums as
 * uint32[2, channels, 2], the bits of double[2, channels]: sum(dy) and sum(dy xhat). What several devices have lies behind
 * each other, in the order in which it is merged. */
#ifndef BNCORE_JAX_STEPS_H
#define BNCORE_JAX_STEPS_H

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "bncore.h"
#include "buffers.h"
#include "calls.h"
#include "xla/ffi/api/ffi.h"

namespace
{

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

/* The results of a call that are statistics: the moments, and rounded to the dtypes of their buffers. */
class Statistics
{
  public:
    Statistics(const ffi::AnyBuffer &moments, const ffi::AnyBuffer &mean, const ffi::AnyBuffer &var,
               const ffi::AnyBuffer &count)
        : moments_(moments, 3), mean_(mean, 1), var_(var, 1), count_(count, 1)
    {
    }

    double *moments(int64_t example) const
    {
        return static_cast<double *>(moments_.at(moments_, example));
    }

    /* Store the moments of an example in all other results. */
    void round(int64_t example, int64_t channels) const
    {
        const double *count = moments(example), *mean = count + channels, *m2 = mean + channels;
        std::vector<double> values(mean, m2);
        mean_.store(moments_, example, values);
        std::transform(m2, m2 + channels, count, values.begin(), std::divides<>());
        var_.store(moments_, example, values);
        values.assign(count, mean);
        count_.store(moments_, example, values);
    }

  private:
    const ExampleBuffer moments_, mean_, var_, count_;
};

/* The moments that a call is given, for one example; var is computed. */
struct GivenMoments {
    GivenMoments(const ExampleBuffer &buffer, const ExampleBuffer &all, int64_t example,
                 int64_t channels)
        : count(static_cast<const double *>(buffer.at(all, example))), mean(count + channels),
          var(mean + channels, mean + 2 * channels)
    {
        std::transform(var.begin(), var.end(), count, var.begin(), std::divides<>());
    }

    const double *count, *mean;
    std::vector<double> var;
};

ffi::Error moments(ffi::ThreadPool pool, Settings settings, In x_, In weights_, Out moments_,
                   Out mean, Out var, Out count)
{
    Call call(pool, settings, *moments_, 3, x_, ExampleBuffer(weights_, settings.ndim));
    const ExampleBuffer x(x_, settings.ndim);
    const Statistics found(*moments_, *mean, *var, *count);
    const int64_t channels = call.channels();
    return call.each(
        [&](bncore_problem &problem, bncore_fusion &, bncore_weights &weights, int64_t i) {
            double *counts = found.moments(i), *means = counts + channels;
            std::fill(counts, means, call.count());
            weights.count = counts;
            const bncore_status status =
                bncore_moments(&problem, means, means + channels, x.at(call.all, i));
            if (status == BNCORE_OK) found.round(i, channels);
            return status;
        });
}

/* a + b, rounded, and the exact error (Knuth 1969); 0 where it is not finite. */
struct TwoSum {
    TwoSum(double a, double b) : total(a + b)
    {
        const double part = total - a;
        lost = (a - (total - part)) + (b - part);
        if (!std::isfinite(lost)) lost = 0.0;
    }

    double total, lost;
};

/* The moments of one channel, as bncore.Moments merges them, with the same bits. */
struct Merged {
    double count = 0.0, mean = std::numeric_limits<double>::quiet_NaN(), m2 = 0.0, low = 0.0;

    void merge(double other_count, double other_mean, double other_m2)
    {
        if (other_count == 0.0) return;
        if (count == 0.0) {
            *this = {other_count, other_mean, other_m2, 0.0};
            return;
        }
        const double sum = count + other_count, share = other_count / sum;
        TwoSum delta(other_mean, -mean);
        delta.total += delta.lost + (0.0 - low);
        const TwoSum moved(mean, delta.total * share);
        const TwoSum rounded(moved.total, moved.lost + low);
        m2 = (m2 + other_m2) + (delta.total * delta.total) * (count * share);
        count = sum, mean = rounded.total, low = rounded.lost;
    }
};

ffi::Error merge(ffi::ThreadPool, Settings, In parts_, Out moments_, Out mean, Out var, Out count)
{
    const ExampleBuffer all(*moments_, 3), parts(parts_, 4);
    const Statistics found(*moments_, *mean, *var, *count);
    const int64_t channels = all.size(1), ranks = parts.size(0);
    const Environment environment;
    for (int64_t i = 0; i < all.examples(); i++) {
        const auto *given = static_cast<const double *>(parts.at(all, i));
        double *made = found.moments(i);
        for (int64_t c = 0; c < channels; c++) {
            Merged merged;
            for (int64_t r = 0; r < ranks; r++) {
                const double *one = given + 3 * r * channels + c;
                merged.merge(one[0], one[channels], one[2 * channels]);
            }
            made[c] = merged.count;
            made[channels + c] = merged.mean;
            made[2 * channels + c] = merged.m2;
        }
        found.round(i, channels);
    }
    return ffi::Error::Success();
}

ffi::Error normalize(ffi::ThreadPool pool, Settings settings, In x_, In moments_, In weight_,
                     In bias_, In weights_, Out y_)
{
    Call call(pool, settings, *y_, weights_);
    const ExampleBuffer &y = call.all, x(x_, settings.ndim), moments(moments_, 3);
    const ExampleBuffer weight(weight_, 1), bias(bias_, 1);
    return call.each([&](bncore_problem &problem, bncore_fusion &, bncore_weights &, int64_t i) {
        std::vector<double> w, b;
        const GivenMoments given(moments, y, i, call.channels());
        problem.weights = nullptr; /* they matter for the fill alone */
        return bncore_normalize(&problem, y.at(y, i), x.at(y, i), given.mean, given.var.data(),
                                weight.doubles(y, i, w), bias.doubles(y, i, b));
    });
}

ffi::Error grad_sums(ffi::ThreadPool pool, Settings settings, In dy_, In x_, In moments_,
                     In weights_, Out sums_, Out dweight_, Out dbias_)
{
    Call call(pool, settings, *sums_, 3, x_, ExampleBuffer(weights_, settings.ndim));
    const ExampleBuffer &sums = call.all, dy(dy_, settings.ndim), x(x_, settings.ndim);
    const ExampleBuffer moments(moments_, 3), dweight(*dweight_, 1), dbias(*dbias_, 1);
    const int64_t channels = call.channels();
    return call.each([&](bncore_problem &problem, bncore_fusion &, bncore_weights &, int64_t i) {
        const GivenMoments given(moments, sums, i, channels);
        auto *sum_dy = static_cast<double *>(sums.at(sums, i)), *sum_dy_xhat = sum_dy + channels;
        const bncore_status status = bncore_grad_sums(&problem, sum_dy, sum_dy_xhat, dy.at(sums, i),
                                                      x.at(sums, i), given.mean, given.var.data());
        if (status != BNCORE_OK) return status;
        dbias.store(sums, i, {sum_dy, sum_dy_xhat});
        dweight.store(sums, i, {sum_dy_xhat, sum_dy_xhat + channels});
        return status;
    });
}

ffi::Error grad_input(ffi::ThreadPool pool, Settings settings, In dy_, In x_, In moments_,
                      In parts_, In weight_, In weights_, Out dx_, Out dweight_, Out dbias_)
{
    Call call(pool, settings, *dx_, weights_);
    const ExampleBuffer &dx = call.all, dy(dy_, settings.ndim), x(x_, settings.ndim);
    const ExampleBuffer moments(moments_, 3), parts(parts_, 4), weight(weight_, 1);
    const ExampleBuffer dweight(*dweight_, 1), dbias(*dbias_, 1);
    const auto size = static_cast<std::size_t>(2 * call.channels());
    return call.each([&](bncore_problem &problem, bncore_fusion &, bncore_weights &, int64_t i) {
        std::vector<double> w, sums(size);
        const GivenMoments given(moments, dx, i, call.channels());
        const auto *part = static_cast<const double *>(parts.at(dx, i));
        for (int64_t r = 0; r < parts.size(0); r++)
            for (double &sum : sums) sum += *part++;
        const auto half = sums.begin() + call.channels();
        dbias.store(dx, i, {sums.begin(), half});
        dweight.store(dx, i, {half, sums.end()});
        return bncore_grad_input(&problem, dx.at(dx, i), dy.at(dx, i), x.at(dx, i), given.mean,
                                 given.var.data(), sums.data(), sums.data() + size / 2, given.count,
                                 weight.doubles(dx, i, w));
    });
}

} // namespace

#endif
