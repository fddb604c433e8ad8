// The library of custom operators of the domain "bncore", as ONNX Runtime wants them described. operators.h computes
// BatchNormalization and its gradient, norms.h the norms of samples.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "norms.h"
#include "operators.h"

using namespace bncore_ort;

namespace
{

constexpr const char *domain_name = "bncore";
constexpr const char *threads_key = "bncore.threads"; // an entry of the session's configuration

// ---- shapes, while a model is loaded ----

using Info = std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo *)>;

// What is known of a tensor then: -1 stands for a size that is not, no dimension for a rank that is not.
Shape known_shape(const OrtApi *api, const OrtTensorTypeAndShapeInfo *info)
{
    std::size_t rank = 0;
    check(api->GetDimensionsCount(info, &rank));
    Shape shape(rank);
    check(api->GetDimensions(info, shape.data(), rank));
    return shape;
}

// Nothing is known of an input that the node leaves out.
Shape stated_shape(const OrtApi *api, const OrtKernelInfo *info, std::size_t input)
{
    std::size_t count = 0;
    check(api->KernelInfo_GetInputCount(info, &count));
    if (input >= count) return {};
    OrtTypeInfo *made = nullptr;
    OrtStatus *status = api->KernelInfo_GetInputTypeInfo(info, input, &made);
    if (status) {
        api->ReleaseStatus(status);
        return {};
    }
    const std::unique_ptr<OrtTypeInfo, void (*)(OrtTypeInfo *)> type(made, api->ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo *tensor = nullptr;
    check(api->CastTypeInfoToTensorInfo(made, &tensor));
    return tensor ? known_shape(api, tensor) : Shape{};
}

std::int64_t axis_of(const OrtApi *api, const OrtShapeInferContext *context)
{
    const OrtOpAttr *attribute = nullptr;
    std::int64_t axis = 1;
    std::size_t size = 0;
    OrtStatus *status = api->ShapeInferContext_GetAttribute(context, "axis", &attribute);
    if (!status) status = api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, &axis, sizeof axis, &size);
    if (status) api->ReleaseStatus(status); // it is not there; its type is the kernel's to refuse
    return axis;
}

// A value per channel: a number of them, or a symbol that stands for it.
Info per_channel(const OrtApi *api, std::int64_t channels, const char *symbol,
                 ONNXTensorElementDataType type)
{
    OrtTensorTypeAndShapeInfo *made = nullptr;
    check(api->CreateTensorTypeAndShapeInfo(&made));
    Info info(made, api->ReleaseTensorTypeAndShapeInfo);
    check(api->SetTensorElementType(made, type));
    check(api->SetDimensions(made, &channels, 1));
    check(api->SetSymbolicDimensions(made, &symbol, 1));
    return info;
}

// Of operators of one name ONNX Runtime asks the first alone, whatever the types of a node are. So the types of the
// outputs come from the inputs: a value per channel is the gradient of scale or of B. Only outputs that every
// node has get a shape: nothing tells which others are there, and older versions crash at one that is not. A size with
// neither number nor symbol would become the number -1: an output that has it is left without a shape.
template <typename Kind> void infer_shapes(const OrtApi *api, OrtShapeInferContext *context)
{
    OrtTensorTypeAndShapeInfo *of_x = nullptr, *of_scale = nullptr; // the context's own
    ONNXTensorElementDataType type;
    check(api->ShapeInferContext_GetInputTypeShape(context, Kind::X, &of_x));
    check(api->ShapeInferContext_GetInputTypeShape(context, Kind::SCALE, &of_scale));
    check(api->GetTensorElementType(of_scale, &type));
    const Shape shape = known_shape(api, of_x);
    if (shape.empty()) return;
    const Layout layout("X", shape, axis_of(api, context));
    std::vector<const char *> symbols(shape.size());
    check(api->GetSymbolicDimensions(of_x, symbols.data(), symbols.size()));
    const bool vector = shape.size() == 1; // of one channel
    const auto unknown = [&](std::size_t i) { return shape[i] < 0 && !*symbols[i]; };
    bool whole = true;
    for (std::size_t i = 0; i < shape.size(); i++) whole = whole && !unknown(i);
    for (std::size_t i = 0; i < Kind::required_outputs; i++) {
        if (Kind::is_array(i)) {
            if (whole) check(api->ShapeInferContext_SetOutputTypeShape(context, i, of_x));
        } else if (vector || !unknown(layout.at)) {
            const Info made =
                per_channel(api, layout.channels, vector ? "" : symbols[layout.at], type);
            check(api->ShapeInferContext_SetOutputTypeShape(context, i, made.get()));
        }
    }
}

// The same for the first output, of X's shape.
void infer_y(const OrtApi *api, OrtShapeInferContext *context)
{
    OrtTensorTypeAndShapeInfo *of_x = nullptr;
    check(api->ShapeInferContext_GetInputTypeShape(context, 0, &of_x));
    const Shape shape = known_shape(api, of_x);
    std::vector<const char *> symbols(shape.size());
    check(api->GetSymbolicDimensions(of_x, symbols.data(), symbols.size()));
    for (std::size_t i = 0; i < shape.size(); i++)
        if (shape[i] < 0 && !*symbols[i]) return;
    if (!shape.empty()) check(api->ShapeInferContext_SetOutputTypeShape(context, 0, of_x));
}

// The shapes that a model states, before any tensor is there.
template <typename Kind>
void require_shapes(const OrtApi *api, const OrtKernelInfo *info, std::int64_t axis)
{
    const Shape shape = stated_shape(api, info, Kind::X);
    if (shape.empty()) return;
    const std::int64_t channels = Layout("X", shape, axis).channels;
    for (const std::size_t i : {Kind::SCALE, Kind::BIAS, Kind::MEAN, Kind::VAR}) {
        const Shape found = stated_shape(api, info, i);
        if (!found.empty()) require_channels(Kind::inputs[i], found, channels, shape);
    }
}

// ---- what ONNX Runtime asks of an operator ----

template <typename Kind> struct Described {
    using KernelOf = std::conditional_t<Kind::of_samples, NormKernel, Kernel>;

    static const Operator &self(const OrtCustomOp *op)
    {
        return *static_cast<const Operator *>(op);
    }

    static OrtStatus *create(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info,
                             void **kernel)
    {
        return guarded(api, [&] {
            const Attributes node(api, info);
            try {
                if constexpr (Kind::of_samples) {
                    auto made = std::make_unique<NormKernel>(self(op), node);
                    Kind::check(*made);
                    *kernel = made.release();
                } else {
                    Settings settings(node, Kind::training_by_default);
                    Kind::check(settings, node);
                    require_shapes<Kind>(api, info, settings.axis);
                    *kernel = new Kernel{&self(op), settings};
                }
            } catch (const Error &error) { // ONNX Runtime does not say which node it was
                throw Error{error.code, node.place(Kind::name) + error.text};
            }
        });
    }

    static OrtStatus *compute(void *kernel, OrtKernelContext *context)
    {
        const auto &k = *static_cast<const KernelOf *>(kernel);
        return guarded(k.op->api, [&] {
            const Environment environment;
            if constexpr (Kind::of_samples) {
                Kind::compute(k, context);
            } else {
                Call call(k, context, Kind::X);
                Kind::compute(call);
            }
        });
    }

    static std::size_t may_be_in_place(int **inputs, int **outputs)
    {
        constexpr std::size_t size = std::size(Kind::in_place);
        *inputs = new int[size];
        *outputs = new int[size];
        for (std::size_t i = 0; i < size; i++) {
            (*inputs)[i] = Kind::in_place[i][0];
            (*outputs)[i] = Kind::in_place[i][1];
        }
        return size;
    }

    static Operator made(const OrtApi *api, int threads, const Types &types)
    {
        Operator op{};
        op.api = api;
        op.threads = threads;
        op.types = types;
        op.version = api_version;
        op.GetName = [](const OrtCustomOp *) { return Kind::name; };
        op.GetExecutionProviderType = [](const OrtCustomOp *) {
            return static_cast<const char *>(nullptr); // the CPU's
        };
        op.GetInputTypeCount = [](const OrtCustomOp *) -> std::size_t { return Kind::INPUTS; };
        op.GetOutputTypeCount = [](const OrtCustomOp *) -> std::size_t { return Kind::OUTPUTS; };
        op.GetInputType = [](const OrtCustomOp *o, std::size_t i) {
            return input_type<Kind>(self(o).types, i);
        };
        op.GetOutputType = [](const OrtCustomOp *o, std::size_t i) {
            return Kind::output_type(self(o).types, i);
        };
        op.GetInputCharacteristic = [](const OrtCustomOp *, std::size_t i) {
            return i < Kind::required_inputs ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
        };
        op.GetOutputCharacteristic = [](const OrtCustomOp *, std::size_t i) {
            return i < Kind::required_outputs ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
        };
        op.GetInputMemoryType = [](const OrtCustomOp *, std::size_t) { return OrtMemTypeDefault; };
        op.CreateKernelV2 = create;
        op.KernelComputeV2 = compute;
        op.KernelDestroy = [](void *kernel) { delete static_cast<KernelOf *>(kernel); };
        op.InferOutputShapeFn = [](const OrtCustomOp *o, OrtShapeInferContext *context) {
            const OrtApi *api = self(o).api;
            OrtStatus *status = guarded(api, [&] {
                if constexpr (Kind::of_samples)
                    infer_y(api, context);
                else
                    infer_shapes<Kind>(api, context);
            });
            if (status) api->ReleaseStatus(status); // nobody would; `create` refuses the same
            return static_cast<OrtStatus *>(nullptr);
        };
        op.GetStartVersion = [](const OrtCustomOp *) { return 1; };
        op.GetEndVersion = [](const OrtCustomOp *) { return std::numeric_limits<int>::max(); };
        op.GetMayInplace = may_be_in_place;
        op.ReleaseMayInplace = [](int *inputs, int *outputs) {
            delete[] inputs;
            delete[] outputs;
        };
        return op;
    }
};

// ---- registration ----

// A session refers to its domain and operators for as long as it lives, and nobody says when it ends: they are made once
// for each number of threads, and stay.
struct Domain {
    std::vector<Operator> operators;
    OrtCustomOpDomain *domain = nullptr;

    Domain(const OrtApi *api, int threads)
    {
        constexpr ONNXTensorElementDataType types[] = {
            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16};
        // ONNX Runtime finds the types of the outputs by the operator whose input types are the node's.
        for (const auto t : types)
            for (const auto t1 : types) {
                operators.push_back(Described<GroupNorm>::made(api, threads, {t, t1, t1}));
                operators.push_back(Described<InstanceNorm>::made(api, threads, {t, t1, t1}));
                operators.push_back(Described<LayerNorm>::made(api, threads, {t, t1, t1}));
                for (const auto t2 : types) {
                    operators.push_back(Described<Forward>::made(api, threads, {t, t1, t2}));
                    operators.push_back(Described<Backward>::made(api, threads, {t, t1, t2}));
                }
            }
        check(api->CreateCustomOpDomain(domain_name, &domain));
        for (const Operator &op : operators) check(api->CustomOpDomain_Add(domain, &op));
    }
};

// How many threads the session has, as its configuration says; else as many as there are processors for this process.
int threads_of(const OrtApi *api, const OrtSessionOptions *options)
{
    int there = 0;
    check(api->HasSessionConfigEntry(options, threads_key, &there));
    if (!there) return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    char text[16] = "";
    std::size_t size = sizeof text;
    check(api->GetSessionConfigEntry(options, threads_key, text, &size));
    const int threads = std::atoi(text);
    if (threads < 1) refuse(std::string(threads_key) + ": expected an integer >= 1, got " + text);
    return threads;
}

char no_status; // has an address

// The error for a runtime without the interface that is needed: it is made by interface 1, which every version has. A
// host without that one has no way to look into a status or to free it; so any address says that the call failed.
OrtStatus *too_old(const OrtApiBase *base) noexcept
{
    char text[160];
    std::snprintf(text, sizeof text,
                  "bncore: the operators need ONNX Runtime 1.%u or newer, and this is %s",
                  static_cast<unsigned>(api_version), base->GetVersionString());
    if (const OrtApi *oldest = base->GetApi(1)) return oldest->CreateStatus(ORT_FAIL, text);
    std::fprintf(stderr, "%s\n", text);
    return reinterpret_cast<OrtStatus *>(&no_status);
}

} // namespace

extern "C" const char *bncore_adapter_mismatch(void);

extern "C" __attribute__((visibility("default"))) OrtStatus *
RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base)
{
    static std::mutex mutex;
    static auto &domains = *new std::map<std::pair<const OrtApi *, int>, std::unique_ptr<Domain>>;
    const OrtApi *api = base->GetApi(api_version);
    if (!api) return too_old(base);
    return guarded(api, [&] {
        if (const char *said = bncore_adapter_mismatch())
            throw Error{ORT_FAIL, std::string("bncore: ") + said};
        const int threads = threads_of(api, options);
        const std::lock_guard<std::mutex> lock(mutex);
        std::unique_ptr<Domain> &domain = domains[{api, threads}];
        if (!domain) domain = std::make_unique<Domain>(api, threads);
        check(api->AddCustomOpDomain(options, domain->domain));
    });
}
