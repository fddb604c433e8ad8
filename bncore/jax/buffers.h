/* XLA's buffers as the handlers use them: the section of each example, and large pages for results. */
#ifndef BNCORE_JAX_BUFFERS_H
#define BNCORE_JAX_BUFFERS_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "adapter_values.h"
#include "bncore.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace
{

/* A buffer of another type, such as the moments, is never asked for its dtype. */
inline bncore_dtype dtype_of(const xla::ffi::AnyBuffer &buffer)
{
    switch (buffer.element_type()) {
    case xla::ffi::F16:
        return BNCORE_FLOAT16;
    case xla::ffi::BF16:
        return BNCORE_BFLOAT16;
    case xla::ffi::F32:
        return BNCORE_FLOAT32;
    default:
        return BNCORE_FLOAT64;
    }
}

/* A buffer of XLA's that has a section for each example. */
class ExampleBuffer
{
  public:
    /* One that is not there. */
    ExampleBuffer() : memory_(nullptr), dtype_(BNCORE_FLOAT64), there_(false), leading_(0) {}

    ExampleBuffer(const xla::ffi::AnyBuffer &buffer, int64_t own_dimensions)
        : memory_(static_cast<char *>(buffer.untyped_data())), sizes_(buffer.dimensions()),
          dtype_(dtype_of(buffer)), there_(buffer.element_count() > 0),
          leading_(sizes_.size() - static_cast<std::size_t>(own_dimensions))
    {
        if (!there_) return;
        width_ = static_cast<int64_t>(xla::ffi::ByteWidth(buffer.element_type()));
        bytes_ = width_;
        for (std::size_t d = leading_; d < sizes_.size(); d++) bytes_ *= sizes_[d];
    }

    /* Where it lies for an example of those that `all`, a buffer of every example, counts. */
    void *at(const ExampleBuffer &all, int64_t example) const
    {
        if (!there_) return nullptr;
        int64_t offset = 0, step = bytes_;
        for (std::size_t d = leading_; d-- > 0; example /= all.sizes_[d]) {
            if (sizes_[d] != 1) offset += example % all.sizes_[d] * step;
            step *= sizes_[d];
        }
        return memory_ + offset;
    }

    /* Values per channel as doubles: where they lie, or a copy. */
    const double *doubles(const ExampleBuffer &all, int64_t example,
                          std::vector<double> &copy) const
    {
        const void *from = at(all, example);
        if (!from || dtype_ == BNCORE_FLOAT64) return static_cast<const double *>(from);
        const auto count = static_cast<std::size_t>(bytes_) / bncore_values::bytes_of(dtype_);
        copy = bncore_values::widened(dtype_, from, count);
        return copy.data();
    }

    void store(const ExampleBuffer &all, int64_t example, const std::vector<double> &values) const
    {
        if (void *to = at(all, example)) bncore_values::store(dtype_, to, values);
    }

    /* Along a dimension of an example; of a buffer that is there. */
    int64_t size(int64_t dimension) const
    {
        return sizes_[leading_ + static_cast<std::size_t>(dimension)];
    }

    /* Whether it is the same for all examples. */
    bool is_shared() const { return !there_ || examples() == 1; }

    /* Whether it has a section of its own for each example that `all` counts. */
    bool is_for_each(const ExampleBuffer &all) const
    {
        return there_ && examples() == all.examples();
    }

    bool has_bytes() const { return width_ == 1; }

    int64_t examples() const
    {
        int64_t count = 1;
        for (std::size_t d = 0; d < leading_; d++) count *= sizes_[d];
        return count;
    }

  private:
    char *memory_;
    xla::ffi::AnyBuffer::Dimensions sizes_;
    bncore_dtype dtype_;
    bool there_;
    std::size_t leading_; /* dimensions; what is not there is not asked */
    int64_t width_ = 0;   /* bytes of a value */
    int64_t bytes_ = 0;   /* of an example */
};

/* Fresh memory of megabytes costs more than a batch norm over it, a page fault per 4 KiB: Linux is told that large pages
 * may serve a large result, as NumPy tells it for its arrays. */
inline void advise_large_pages(const xla::ffi::AnyBuffer &result)
{
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t least = 1 << 22;
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto start = reinterpret_cast<std::uintptr_t>(result.untyped_data());
    const auto first = (start + page - 1) / page * page, end = start + result.size_bytes();
    if (end - start >= least)
        (void)madvise(reinterpret_cast<void *>(first), end - first, MADV_HUGEPAGE); /* may fail */
#else
    (void)result;
#endif
}

} // namespace

#endif
