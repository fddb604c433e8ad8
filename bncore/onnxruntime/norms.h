// Group, instance and layer norm as ONNX has them: the statistics are those of each sample. bncore computes them as group norm.
#ifndef BNCORE_ONNXRUNTIME_NORMS_H
#define BNCORE_ONNXRUNTIME_NORMS_H

#include "operators.h"

namespace bncore_ort
{

struct NormKernel {
    const Operator *op;
    double eps;
    std::int64_t groups;   // 0: as many as channels
    std::int64_t axis;     // the first one that layer norm normalizes
    bool values_of_groups; // whether scale and bias have one value per group

    NormKernel(const Operator &op, const Attributes &node)
        : op(&op), eps(node.real("epsilon", 1e-5f)), groups(node.integer("num_groups", 0)),
          axis(node.integer("axis", -1)), values_of_groups(node.integer("per_group", 0) == 1)
    {
        if (!(eps >= 0.0 && std::isfinite(eps)))
            refuse("epsilon: expected a finite number >= 0, got " + std::to_string(eps));
    }
};

// A call of a node. X has the shape (samples, channels, inner); layer norm's channels are the values of a row.
class NormCall
{
  public:
    NormCall(const NormKernel &kernel, OrtKernelContext *context)
        : tensors{kernel.op->api, context}, x(required(0, "X")), kernel_(kernel)
    {
    }

    const Tensors tensors;
    const Input x;
    std::int64_t samples = 1, channels = 1, inner = 1, groups = 1;

    // Scale or bias as double, spread over the axes of X from `first` up to `last`; empty where it is left out.
    std::vector<double> parameter(std::size_t i, const char *name, std::size_t first,
                                  std::size_t last) const
    {
        if (!tensors.input(i)) return {};
        const Input found = required(i, name);
        const Shape wanted(x.shape.begin() + static_cast<std::ptrdiff_t>(first),
                           x.shape.begin() + static_cast<std::ptrdiff_t>(last));
        const std::size_t missing = wanted.size() - found.shape.size();
        bool fits = found.shape.size() <= wanted.size();
        for (std::size_t d = 0; d < found.shape.size() && fits; d++)
            fits = found.shape[d] == 1 || found.shape[d] == wanted[missing + d];
        if (!fits)
            refuse(std::string(name) + ": expected a shape that broadcasts to " + shown(wanted) +
                   ", got " + shown(found.shape));
        const auto values = bncore_values::widened(dtype_of(kernel_.op->types.t1), found.data,
                                                   count_of(found.shape));
        return spread(values, found.shape, wanted);
    }

    // One value per channel, or per group of them.
    std::vector<double> of_channels(std::size_t i, const char *name) const
    {
        if (!kernel_.values_of_groups) return parameter(i, name, 1, 2);
        const Input found = required(i, name);
        if (found.shape != Shape{groups})
            refuse(std::string(name) + ": expected shape " + shown({groups}) + ", got " +
                   shown(found.shape));
        const auto values = bncore_values::widened(dtype_of(kernel_.op->types.t1), found.data,
                                                   static_cast<std::size_t>(groups));
        std::vector<double> all(static_cast<std::size_t>(channels));
        for (std::size_t c = 0; c < all.size(); c++)
            all[c] = values[c * values.size() / all.size()];
        return all;
    }

    // Write y, and give mean and variance of every group.
    void run(const std::vector<double> &scale, const std::vector<double> &bias,
             std::vector<double> &mean, std::vector<double> &var)
    {
        void *y = tensors.output(0, x.shape);
        mean.resize(static_cast<std::size_t>(samples * groups));
        var.resize(mean.size());
        if (mean.empty() || channels * inner == 0) return;
        Pool pool(tensors);
        bncore_problem problem;
        expect(bncore_problem_init(&problem, sizeof problem, dtype_of(kernel_.op->types.t), 1,
                                   channels, inner));
        problem.eps = kernel_.eps;
        problem.n_threads = kernel_.op->threads;
        problem.executor = &pool.executor;
        expect(bncore_group_norm(&problem, samples, groups, y, mean.data(), var.data(), x.data,
                                 scale.empty() ? nullptr : scale.data(),
                                 bias.empty() ? nullptr : bias.data()));
        pool.require_good();
        const double count = static_cast<double>(channels / groups * inner);
        for (double &one : var) one /= count;
    }

  private:
    const NormKernel &kernel_;

    Input required(std::size_t i, const char *name) const
    {
        std::optional<Input> found = tensors.input(i);
        if (!found) refuse(std::string(name) + ": expected a tensor, got none");
        return *found;
    }

    static std::size_t count_of(const Shape &shape)
    {
        const int rank = static_cast<int>(shape.size());
        std::int64_t canonical[3];
        bncore_canonical(shape.data(), rank, 0, rank, canonical);
        return static_cast<std::size_t>(canonical[1]);
    }

    // Values of a shape that broadcasts to another, with as many or fewer dimensions.
    static std::vector<double> spread(const std::vector<double> &values, const Shape &shape,
                                      const Shape &wanted)
    {
        const std::size_t size = count_of(wanted);
        if (size == values.size()) return values;
        std::vector<double> all(size);
        for (std::size_t i = 0; i < size; i++) {
            std::size_t rest = i, at = 0, step = 1;
            for (std::size_t d = shape.size(), w = wanted.size(); d-- > 0;) {
                const auto n = static_cast<std::size_t>(wanted[--w]);
                if (shape[d] != 1) at += rest % n * step;
                step *= static_cast<std::size_t>(shape[d]);
                rest /= n;
            }
            all[i] = values[at];
        }
        return all;
    }

    static void expect(bncore_status status)
    {
        if (status != BNCORE_OK) throw Error{ORT_FAIL, bncore_status_string(status)};
    }
};

// What the three operators share.
struct NormNode {
    enum { X, SCALE, BIAS, INPUTS };
    static constexpr bool of_samples = true;
    static constexpr std::size_t required_inputs = INPUTS, required_outputs = 1;
    static constexpr int in_place[][2] = {{X, 0}};

    static ONNXTensorElementDataType output_type(const Types &types, std::size_t i)
    {
        return i == 0 ? types.t : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
};

struct GroupNorm : NormNode {
    enum { OUTPUTS = 1 };
    static constexpr const char *name = "GroupNormalization";

    static void check(const NormKernel &kernel)
    {
        if (kernel.groups < 1)
            refuse("num_groups: expected an int >= 1, got " + std::to_string(kernel.groups));
    }

    static void compute(const NormKernel &kernel, OrtKernelContext *context)
    {
        NormCall call(kernel, context);
        const Shape &shape = call.x.shape;
        if (shape.size() < 2)
            refuse("X: expected at least 2 dimensions, got shape " + shown(shape));
        std::int64_t canonical[3];
        bncore_canonical(shape.data(), static_cast<int>(shape.size()), 1, 2, canonical);
        call.samples = canonical[0], call.channels = canonical[1], call.inner = canonical[2];
        call.groups = kernel.groups ? kernel.groups : call.channels;
        if (call.groups == 0 || call.channels % call.groups)
            refuse("num_groups: expected a divisor of " + std::to_string(call.channels) +
                   " channels, got " + std::to_string(call.groups));
        std::vector<double> mean, var;
        call.run(call.of_channels(SCALE, "scale"), call.of_channels(BIAS, "bias"), mean, var);
    }
};

struct InstanceNorm : GroupNorm {
    static constexpr const char *name = "InstanceNormalization";

    static void check(const NormKernel &) {}
};

struct LayerNorm : NormNode {
    enum { Y, MEAN, INVSTD, OUTPUTS };
    static constexpr const char *name = "LayerNormalization";
    static constexpr std::size_t required_inputs = BIAS;

    static void check(const NormKernel &) {}

    static void compute(const NormKernel &kernel, OrtKernelContext *context)
    {
        NormCall call(kernel, context);
        Shape shape = call.x.shape;
        const auto rank = static_cast<std::int64_t>(shape.size());
        if (kernel.axis < -rank || kernel.axis >= rank)
            refuse("axis: expected " + std::to_string(-rank) + " to " + std::to_string(rank - 1) +
                   " for X of shape " + shown(shape) + ", got " + std::to_string(kernel.axis));
        const auto first = static_cast<std::size_t>((kernel.axis + rank) % rank);
        std::int64_t canonical[3];
        bncore_canonical(shape.data(), static_cast<int>(rank), static_cast<int>(first),
                         static_cast<int>(rank), canonical);
        call.samples = canonical[0], call.channels = canonical[1];
        std::vector<double> mean, var;
        call.run(call.parameter(SCALE, "Scale", first, shape.size()),
                 call.parameter(BIAS, "B", first, shape.size()), mean, var);
        for (double &one : var) one = 1.0 / std::sqrt(one + kernel.eps);
        std::fill(shape.begin() + static_cast<std::ptrdiff_t>(first), shape.end(), 1);
        for (const auto &[output, values] : {std::pair(MEAN, mean), std::pair(INVSTD, var)})
            if (void *data = call.tensors.output(output, shape))
                bncore_values::store(BNCORE_FLOAT32, data, values);
    }
};

} // namespace bncore_ort
#endif
