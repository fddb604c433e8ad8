// ONNX Runtime's C interface with exceptions: what the operators need of it.
#ifndef BNCORE_ONNXRUNTIME_HOST_H
#define BNCORE_ONNXRUNTIME_HOST_H

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <onnxruntime_c_api.h>

namespace bncore_ort
{

// What a session must offer: ONNX Runtime 1.20, whatever header this is compiled against. All that stands below is in
// the interface since 1.18.
constexpr std::uint32_t api_version = 20;
static_assert(ORT_API_VERSION >= api_version, "needs the header of ONNX Runtime 1.20 or newer");

using Shape = std::vector<std::int64_t>;

struct Error {
    OrtErrorCode code;
    std::string text;
};

// A status of ONNX Runtime's own, on its way to the caller.
struct Passed {
    OrtStatus *status;
};

[[noreturn]] inline void refuse(const std::string &text)
{
    throw Error{ORT_INVALID_ARGUMENT, text};
}

inline void check(OrtStatus *status)
{
    if (status) throw Passed{status};
}

// Runs what may throw, and returns what ONNX Runtime expects: no exception crosses its frames.
template <typename Function> OrtStatus *guarded(const OrtApi *api, Function function) noexcept
{
    try {
        function();
        return nullptr;
    } catch (const Passed &passed) {
        return passed.status;
    } catch (const Error &error) {
        return api->CreateStatus(error.code, error.text.c_str());
    } catch (const std::exception &error) {
        return api->CreateStatus(ORT_FAIL, error.what());
    }
}

// A size that is not known yet is -1.
inline std::string shown(const Shape &shape)
{
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); i++)
        text += (i ? ", " : "") + (shape[i] < 0 ? "?" : std::to_string(shape[i]));
    return text + (shape.size() == 1 ? ",)" : ")");
}

// ---- attributes of a node, when its kernel is made ----

class Attributes
{
  public:
    Attributes(const OrtApi *api, const OrtKernelInfo *info) : api(api), info(info) {}

    double real(const char *name, float otherwise) const
    {
        float value = otherwise;
        if (!read<float>(name, value)) expect_absent(name, "a float");
        return value;
    }

    std::int64_t integer(const char *name, std::int64_t otherwise) const
    {
        std::int64_t value = otherwise;
        if (!read<std::int64_t>(name, value)) expect_absent(name, "an int");
        return value;
    }

    std::string string(const char *name) const
    {
        std::string value;
        if (!read<std::string>(name, value)) expect_absent(name, "a string");
        return value;
    }

    // Whether the node names its i-th output.
    bool has_output(std::size_t i) const
    {
        std::size_t count = 0, size = 0;
        check(api->KernelInfo_GetOutputCount(info, &count));
        if (i >= count) return false;
        check(api->KernelInfo_GetOutputName(info, i, nullptr, &size));
        return size > 1; // with the 0 at its end
    }

    // What an error of this node starts with.
    std::string place(const char *op) const
    {
        std::size_t size = 0;
        check(api->KernelInfo_GetNodeName(info, nullptr, &size));
        std::string name(size, ' ');
        check(api->KernelInfo_GetNodeName(info, name.data(), &size));
        name.resize(size ? size - 1 : 0);
        return std::string(op) + " '" + name + "': ";
    }

  private:
    const OrtApi *api;
    const OrtKernelInfo *info;

    bool good(OrtStatus *status) const
    {
        if (status) api->ReleaseStatus(status);
        return !status;
    }

    template <typename T> bool read(const char *name, T &value) const
    {
        if constexpr (std::is_same_v<T, float>)
            return good(api->KernelInfoGetAttribute_float(info, name, &value));
        else if constexpr (std::is_same_v<T, std::int64_t>)
            return good(api->KernelInfoGetAttribute_int64(info, name, &value));
        else {
            std::size_t size = 0;
            if (!good(api->KernelInfoGetAttribute_string(info, name, nullptr, &size))) return false;
            value.resize(size);
            check(api->KernelInfoGetAttribute_string(info, name, value.data(), &size));
            value.resize(size ? size - 1 : 0); // its size counts the 0 at its end
            return true;
        }
    }

    // The interface says alike of an attribute that is not there and of one of another type.
    void expect_absent(const char *name, const char *type) const
    {
        float real;
        std::int64_t integer;
        std::string string;
        if (read(name, real) || read(name, integer) || read(name, string))
            refuse(std::string(name) + ": expected " + type + ", got another type");
    }
};

// ---- tensors, when a kernel runs ----

struct Input {
    const void *data;
    Shape shape;
};

class Tensors
{
  public:
    const OrtApi *api;
    OrtKernelContext *context;

    // Nothing where an optional input is left out.
    std::optional<Input> input(std::size_t i) const
    {
        std::size_t count = 0;
        const OrtValue *value = nullptr;
        check(api->KernelContext_GetInputCount(context, &count));
        if (i >= count) return std::nullopt;
        check(api->KernelContext_GetInput(context, i, &value));
        if (!value) return std::nullopt;
        Input found;
        OrtTensorTypeAndShapeInfo *info = nullptr;
        check(api->GetTensorTypeAndShape(value, &info));
        OrtStatus *status = shape_of(info, found.shape);
        api->ReleaseTensorTypeAndShapeInfo(info);
        check(status);
        // Not written: the C interface has no other way to the data.
        check(api->GetTensorMutableData(const_cast<OrtValue *>(value),
                                        const_cast<void **>(&found.data)));
        return found;
    }

    // NULL where the node does not name the output.
    void *output(std::size_t i, const Shape &shape) const
    {
        std::size_t count = 0;
        OrtValue *value = nullptr;
        check(api->KernelContext_GetOutputCount(context, &count));
        if (i >= count) return nullptr;
        check(api->KernelContext_GetOutput(context, i, shape.data(), shape.size(), &value));
        void *data = nullptr;
        if (value) check(api->GetTensorMutableData(value, &data));
        return data;
    }

  private:
    OrtStatus *shape_of(const OrtTensorTypeAndShapeInfo *info, Shape &shape) const
    {
        std::size_t rank = 0;
        if (OrtStatus *status = api->GetDimensionsCount(info, &rank)) return status;
        shape.resize(rank);
        return api->GetDimensions(info, shape.data(), rank);
    }
};

} // namespace bncore_ort
#endif
