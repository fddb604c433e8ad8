// What the operators compute. Tensors are read and written where ONNX Runtime has them; only parameters, one value per
// channel, are copied. Loops run on the session's own threads.
#ifndef BNCORE_ONNXRUNTIME_OPERATORS_H
#define BNCORE_ONNXRUNTIME_OPERATORS_H

#include <cmath>

#include <bncore.h>

#include "adapter_values.h"
#include "host.h"

namespace bncore_ort
{

// A session may make subnormal numbers zero; parameters and results are converted as bncore computes.
class Environment
{
  public:
    Environment() { bncore_environment_enter(&own_); }
    ~Environment() { bncore_environment_leave(&own_); }
    Environment(const Environment &) = delete;

  private:
    bncore_environment own_;
};

// ---- what a node says ----

struct Settings {
    bool training;
    double eps, momentum, slope; // momentum: the weight of the new batch
    std::int64_t axis, correction;
    bncore_activation activation;

    Settings(const Attributes &node, bool training_by_default)
    {
        const std::int64_t mode = node.integer("training_mode", training_by_default);
        if (mode != 0 && mode != 1)
            refuse("training_mode: expected 0 or 1, got " + std::to_string(mode));
        training = mode == 1;
        eps = node.real("epsilon", 1e-5f);
        if (!(eps >= 0.0 && std::isfinite(eps)))
            refuse("epsilon: expected a finite number >= 0, got " + std::to_string(eps));
        const double old = node.real("momentum", 0.9f);
        if (!(old >= 0.0 && old <= 1.0))
            refuse("momentum: expected a number from 0 to 1, got " + std::to_string(old));
        momentum = 1.0 - old;
        axis = node.integer("axis", 1);
        correction = node.integer("correction", 0);
        if (correction < 0)
            refuse("correction: expected an int >= 0, got " + std::to_string(correction));
        slope = node.real("negative_slope", 0.01f);
        if (!(slope >= 0.0 && std::isfinite(slope)))
            refuse("negative_slope: expected a finite number >= 0, got " + std::to_string(slope));
        const std::string name = node.string("activation");
        if (name.empty())
            activation = BNCORE_NO_ACTIVATION;
        else if (name == "relu")
            activation = BNCORE_RELU;
        else if (name == "leaky_relu")
            activation = BNCORE_LEAKY_RELU;
        else
            refuse("activation: expected relu or leaky_relu, got " + name);
    }
};

// What a node fuses, its arrays apart.
inline bncore_fusion fusion_of(const Settings &settings)
{
    bncore_fusion fusion;
    bncore_fusion_init(&fusion, sizeof fusion);
    fusion.activation = settings.activation;
    fusion.slope = settings.slope;
    return fusion;
}

// An array as bncore sees it. One dimension is a batch of one channel, as in ONNX.
struct Layout {
    std::int64_t outer = 1, channels = 1, inner = 1;
    std::size_t at = 0; // the channel axis, where there is one

    Layout(const char *name, const Shape &shape, std::int64_t axis)
    {
        const std::int64_t rank = static_cast<std::int64_t>(shape.size());
        if (rank == 0) refuse(std::string(name) + ": expected at least 1 dimension, got 0");
        if (rank == 1) {
            outer = shape[0];
            return;
        }
        if (axis < -rank || axis >= rank)
            refuse("axis: expected " + std::to_string(-rank) + " to " + std::to_string(rank - 1) +
                   " for " + name + " of shape " + shown(shape) + ", got " + std::to_string(axis));
        at = static_cast<std::size_t>(axis < 0 ? axis + rank : axis);
        const int channel_axis = static_cast<int>(at);
        std::int64_t canonical[3];
        bncore_canonical(shape.data(), static_cast<int>(rank), channel_axis, channel_axis + 1,
                         canonical);
        outer = canonical[0], channels = canonical[1], inner = canonical[2];
    }

    std::int64_t count() const { return outer * inner; }
    bool empty() const { return count() == 0 || channels == 0; }
};

// A parameter has one value per channel; what is not known yet (-1, no dimension) is not wrong.
inline void require_channels(const char *name, const Shape &shape, std::int64_t channels,
                             const Shape &of_x)
{
    if (shape.size() == 1 && (shape[0] == channels || shape[0] < 0 || channels < 0)) return;
    refuse(std::string(name) + ": expected shape " + shown({channels}) +
           ", the channels of X of shape " + shown(of_x) + ", got " + shown(shape));
}

// ---- operators, kernels ----

// The types of a node, named as in ONNX.
struct Types {
    ONNXTensorElementDataType t, t1, t2; // of arrays; of scale and bias; of mean and variance
};

struct Operator : OrtCustomOp {
    const OrtApi *api;
    int threads;
    Types types;
};

template <typename Kind> ONNXTensorElementDataType input_type(const Types &types, std::size_t i)
{
    if constexpr (Kind::of_samples)
        return i == Kind::X ? types.t : types.t1;
    else if (i == Kind::MEAN || i == Kind::VAR)
        return types.t2;
    return i == Kind::SCALE || i == Kind::BIAS ? types.t1 : types.t;
}

inline bncore_dtype dtype_of(ONNXTensorElementDataType type)
{
    switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
        return BNCORE_FLOAT16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
        return BNCORE_BFLOAT16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
        return BNCORE_FLOAT32;
    default:
        return BNCORE_FLOAT64;
    }
}

struct Kernel {
    const Operator *op;
    Settings settings;
};

// The session's threads as bncore's executor.
class Pool
{
  public:
    explicit Pool(const Tensors &tensors) : tensors(tensors) {}
    bncore_executor executor{parallel_for, this};

    void require_good() const
    {
        if (failed) throw Passed{failed};
    }

  private:
    struct Loop {
        void (*task)(void *, std::int64_t);
        void *arg;
    };
    const Tensors &tensors;
    OrtStatus *failed = nullptr; // no exception crosses bncore's frames

    static void step(void *loop, std::size_t i)
    {
        const Loop *l = static_cast<const Loop *>(loop);
        l->task(l->arg, static_cast<std::int64_t>(i));
    }

    static void parallel_for(void *pool, std::int64_t tasks, std::int32_t,
                             void (*task)(void *, std::int64_t), void *arg)
    {
        Pool *self = static_cast<Pool *>(pool);
        Loop loop{task, arg};
        if (self->failed) return;
        self->failed = self->tensors.api->KernelContext_ParallelFor(
            self->tensors.context, step, static_cast<std::size_t>(tasks), 0, &loop);
    }
};

// What a call has of the node's inputs, checked against X.
class Call
{
  public:
    const Kernel &kernel;
    const Tensors tensors;
    const Input x;
    const Layout layout;

    Call(const Kernel &kernel, OrtKernelContext *context, std::size_t of_x)
        : kernel(kernel), tensors{kernel.op->api, context}, x(required(of_x, "X")),
          layout("X", x.shape, kernel.settings.axis), pool(tensors)
    {
        if (kernel.settings.training && layout.count() == 1)
            refuse("X: expected more than 1 value per channel in training, got shape " +
                   shown(x.shape));
    }

    Input like_x(std::size_t i, const char *name) const
    {
        Input found = required(i, name);
        if (found.shape != x.shape)
            refuse(std::string(name) + ": expected X's shape " + shown(x.shape) + ", got " +
                   shown(found.shape));
        return found;
    }

    const void *residual(std::size_t i) const
    {
        return tensors.input(i) ? like_x(i, "residual").data : nullptr;
    }

    // A value per channel, as double.
    std::vector<double> parameter(std::size_t i, const char *name,
                                  ONNXTensorElementDataType type) const
    {
        const Input found = required(i, name);
        require_channels(name, found.shape, layout.channels, x.shape);
        const auto channels = static_cast<std::size_t>(layout.channels);
        return bncore_values::widened(dtype_of(type), found.data, channels);
    }

    // The i-th output with one value per channel; nothing happens where nobody wants it.
    void put(std::size_t i, ONNXTensorElementDataType type, const std::vector<double> &values) const
    {
        if (void *data = tensors.output(i, {layout.channels}))
            bncore_values::store(dtype_of(type), data, values);
    }

    // Runs bncore with what is fused; does nothing with an empty X.
    template <typename Function> void run(const bncore_fusion &fusion, Function function)
    {
        if (layout.empty()) return;
        bncore_problem problem;
        expect(bncore_problem_init(&problem, sizeof problem, dtype_of(kernel.op->types.t),
                                   layout.outer, layout.channels, layout.inner));
        problem.eps = kernel.settings.eps;
        problem.n_threads = kernel.op->threads;
        problem.executor = &pool.executor;
        if (fusion.activation != BNCORE_NO_ACTIVATION || fusion.residual || fusion.dresidual)
            problem.fusion = &fusion;
        expect(function(&problem));
        pool.require_good();
    }

  private:
    Pool pool;

    Input required(std::size_t i, const char *name) const
    {
        std::optional<Input> found = tensors.input(i);
        if (!found) refuse(std::string(name) + ": expected a tensor, got none");
        return *found;
    }

    static void expect(bncore_status status)
    {
        if (status != BNCORE_OK) throw Error{ORT_FAIL, bncore_status_string(status)};
    }
};

// ---- BatchNormalization ----

struct Forward {
    enum { X, SCALE, BIAS, MEAN, VAR, RESIDUAL, INPUTS };
    enum { Y, NEW_MEAN, NEW_VAR, SAVED_MEAN, SAVED_VAR, OUTPUTS };
    static constexpr bool of_samples = false;
    static constexpr const char *name = "BatchNormalization";
    static constexpr bool training_by_default = false;
    static constexpr const char *inputs[] = {"X",          "scale",     "B",
                                             "input_mean", "input_var", "residual"};
    static constexpr std::size_t required_inputs = RESIDUAL, required_outputs = NEW_MEAN;
    static constexpr int in_place[][2] = {{X, Y}, {RESIDUAL, Y}, {MEAN, NEW_MEAN}, {VAR, NEW_VAR}};

    static bool is_array(std::size_t output) { return output == Y; }

    // What backward takes is not rounded.
    static ONNXTensorElementDataType output_type(const Types &types, std::size_t i)
    {
        if (i == Y) return types.t;
        return i < SAVED_MEAN ? types.t2 : ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
    }

    static void check(const Settings &settings, const Attributes &node)
    {
        static const char *names[] = {"running_mean", "running_var", "saved_mean", "saved_var"};
        for (std::size_t i = NEW_MEAN; i < OUTPUTS && !settings.training; i++)
            if (node.has_output(i))
                refuse(std::string(names[i - 1]) +
                       ": expected no such output without training_mode=1, got one");
    }

    static void compute(Call &call)
    {
        const Settings &s = call.kernel.settings;
        const Types &types = call.kernel.op->types;
        const std::vector<double> scale = call.parameter(SCALE, inputs[SCALE], types.t1),
                                  bias = call.parameter(BIAS, inputs[BIAS], types.t1);
        std::vector<double> mean = call.parameter(MEAN, inputs[MEAN], types.t2),
                            var = call.parameter(VAR, inputs[VAR], types.t2);
        bncore_fusion fusion = fusion_of(s);
        fusion.residual = call.residual(RESIDUAL);
        const std::int64_t count = call.layout.count();
        if (s.training && count > 0 && count <= s.correction)
            refuse("correction: expected less than " + std::to_string(count) +
                   ", the values per channel, got " + std::to_string(s.correction));
        void *y = call.tensors.output(Y, call.x.shape);
        if (!s.training) {
            call.run(fusion, [&](const bncore_problem *problem) {
                return bncore_normalize(problem, y, call.x.data, mean.data(), var.data(),
                                        scale.data(), bias.data());
            });
            return;
        }
        std::vector<double> batch_mean(scale.size()), m2(scale.size());
        call.run(fusion, [&](const bncore_problem *problem) {
            return bncore_train(problem, y, batch_mean.data(), m2.data(), call.x.data, scale.data(),
                                bias.data());
        });
        const double moved = s.momentum, kept = 1.0 - moved;
        for (std::size_t c = 0; c < mean.size() && count > 0; c++) {
            const double unbiased = m2[c] / static_cast<double>(count - s.correction);
            mean[c] = kept * mean[c] + moved * batch_mean[c];
            var[c] = kept * var[c] + moved * unbiased;
            m2[c] /= static_cast<double>(count);
        }
        call.put(NEW_MEAN, types.t2, mean);
        call.put(NEW_VAR, types.t2, var);
        call.put(SAVED_MEAN, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, batch_mean);
        call.put(SAVED_VAR, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, m2);
    }
};

// ---- BatchNormalizationGrad ----

struct Backward {
    enum { DY, X, SCALE, MEAN, VAR, BIAS, RESIDUAL, INPUTS };
    enum { DX, DSCALE, DBIAS, DRESIDUAL, OUTPUTS };
    static constexpr bool of_samples = false;
    static constexpr const char *name = "BatchNormalizationGrad";
    static constexpr bool training_by_default = true;
    static constexpr const char *inputs[] = {"dY", "X", "scale", "mean", "var", "B", "residual"};
    static constexpr std::size_t required_inputs = BIAS, required_outputs = DRESIDUAL;
    static constexpr int in_place[][2] = {
        {DY, DX}, {X, DX}, {RESIDUAL, DX}, {RESIDUAL, DRESIDUAL}, {DY, DRESIDUAL}};

    static bool is_array(std::size_t output) { return output == DX || output == DRESIDUAL; }

    static ONNXTensorElementDataType output_type(const Types &types, std::size_t i)
    {
        return is_array(i) ? types.t : types.t1;
    }

    static void check(const Settings &, const Attributes &) {}

    static void compute(Call &call)
    {
        const Settings &s = call.kernel.settings;
        const Types &types = call.kernel.op->types;
        const void *dy = call.like_x(DY, inputs[DY]).data;
        const std::vector<double> scale = call.parameter(SCALE, inputs[SCALE], types.t1),
                                  mean = call.parameter(MEAN, inputs[MEAN], types.t2),
                                  var = call.parameter(VAR, inputs[VAR], types.t2);
        std::vector<double> bias;
        if (call.tensors.input(BIAS)) bias = call.parameter(BIAS, inputs[BIAS], types.t1);
        const void *residual = call.residual(RESIDUAL);
        if (s.activation != BNCORE_NO_ACTIVATION && bias.empty() && !scale.empty())
            refuse("B: expected a tensor where there is an activation, got none");
        void *dx = call.tensors.output(DX, call.x.shape);
        void *dresidual = call.tensors.output(DRESIDUAL, call.x.shape);
        bncore_fusion fusion = fusion_of(s);
        fusion.residual = residual;
        fusion.dresidual = dresidual;
        fusion.bias = bias.empty() ? nullptr : bias.data();
        std::vector<double> sum_dy(scale.size()), sum_dy_xhat(scale.size());
        const auto backward = s.training ? bncore_train_backward : bncore_infer_backward;
        call.run(fusion, [&](const bncore_problem *problem) {
            return backward(problem, dx, sum_dy.data(), sum_dy_xhat.data(), dy, call.x.data,
                            mean.data(), var.data(), scale.data());
        });
        call.put(DSCALE, types.t1, sum_dy_xhat);
        call.put(DBIAS, types.t1, sum_dy);
    }
};

} // namespace bncore_ort
#endif
