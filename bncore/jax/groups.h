/* Group norm, and with it instance norm and layer norm. x is (samples, ...) of settings.ndim dimensions, and every group of
 * channels of every sample has its own statistics: mean and var, each uint32[samples, groups, 2], the bits of
 * double[samples, groups]. */
#ifndef BNCORE_JAX_GROUPS_H
#define BNCORE_JAX_GROUPS_H

#include <vector>

#include "bncore.h"
#include "buffers.h"
#include "calls.h"
#include "xla/ffi/api/ffi.h"

namespace
{

/* A call whose problem is one sample of an example. */
class GroupCall : public Call
{
  public:
    GroupCall(ffi::ThreadPool pool, const GroupSettings &settings, const ffi::AnyBuffer &like_x)
        : Call(pool, {settings.ndim - 1, settings.axis - 1, settings.eps}, like_x, settings.ndim,
               like_x, ExampleBuffer()),
          groups_(settings.groups)
    {
        samples = all.size(0);
    }

    /* Make samples of all examples. */
    void join()
    {
        samples *= all.examples();
        joined = true;
    }

    int64_t number() const { return samples; }
    int64_t results() const { return samples * groups_; }
    double count_of_group() const { return count() * static_cast<double>(channels() / groups_); }

  private:
    const int64_t groups_;
};

ffi::Error group_norm(ffi::ThreadPool pool, GroupSettings settings, ffi::AnyBuffer x_,
                      ffi::AnyBuffer weight_, ffi::AnyBuffer bias_, ffi::Result<ffi::AnyBuffer> y_,
                      ffi::Result<ffi::AnyBuffer> mean_, ffi::Result<ffi::AnyBuffer> var_)
{
    GroupCall call(pool, settings, *y_);
    const ExampleBuffer &y = call.all, x(x_, settings.ndim), mean(*mean_, 3), var(*var_, 3);
    const ExampleBuffer weight(weight_, 1), bias(bias_, 1);
    if (x.is_for_each(y) && weight.is_shared() && bias.is_shared()) call.join();
    return call.each([&](bncore_problem &problem, bncore_fusion &, bncore_weights &, int64_t i) {
        std::vector<double> w, b;
        auto *means = static_cast<double *>(mean.at(y, i)),
             *m2 = static_cast<double *>(var.at(y, i));
        const bncore_status status =
            bncore_group_norm(&problem, call.number(), settings.groups, y.at(y, i), means, m2,
                              x.at(y, i), weight.doubles(y, i, w), bias.doubles(y, i, b));
        if (status != BNCORE_OK) return status;
        const double count = call.count_of_group();
        for (int64_t k = 0; k < call.results(); k++) m2[k] /= count;
        return status;
    });
}

ffi::Error group_norm_backward(ffi::ThreadPool pool, GroupSettings settings, ffi::AnyBuffer dy_,
                               ffi::AnyBuffer x_, ffi::AnyBuffer mean_, ffi::AnyBuffer var_,
                               ffi::AnyBuffer weight_, ffi::Result<ffi::AnyBuffer> dx_,
                               ffi::Result<ffi::AnyBuffer> dweight_,
                               ffi::Result<ffi::AnyBuffer> dbias_)
{
    GroupCall call(pool, settings, *dx_);
    const ExampleBuffer &dx = call.all, dy(dy_, settings.ndim), x(x_, settings.ndim);
    const ExampleBuffer mean(mean_, 3), var(var_, 3), weight(weight_, 1);
    const ExampleBuffer dweight(*dweight_, 1), dbias(*dbias_, 1);
    const auto channels = static_cast<std::size_t>(call.channels());
    return call.each([&](bncore_problem &problem, bncore_fusion &, bncore_weights &, int64_t i) {
        std::vector<double> w, sum_dy(channels), sum_dy_xhat(channels);
        const bncore_status status = bncore_group_norm_backward(
            &problem, call.number(), settings.groups, dx.at(dx, i), sum_dy.data(),
            sum_dy_xhat.data(), dy.at(dx, i), x.at(dx, i),
            static_cast<const double *>(mean.at(dx, i)), static_cast<const double *>(var.at(dx, i)),
            weight.doubles(dx, i, w));
        if (status != BNCORE_OK) return status;
        dweight.store(dx, i, sum_dy_xhat);
        dbias.store(dx, i, sum_dy);
        return status;
    });
}

} // namespace

#endif
