/* Memory for results: PyTorch's allocator, and for large ones a pool of blocks that earlier results no longer need.
 *
 * Fresh memory of tens of megabytes costs more than a batch norm over it, one page fault for each page, and malloc gives
 * large blocks back to the system as soon as they are freed.
 */
#ifndef BNCORE_TORCH_MEMORY_H
#define BNCORE_TORCH_MEMORY_H

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

namespace
{

constexpr size_t LARGE = size_t(4)
                         << 20; /* from here on Linux is told that large pages may serve */
constexpr size_t POOLED = size_t(1) << 20; /* smaller blocks are the allocator's business */
constexpr size_t DEFAULT_LIMIT = size_t(256) << 20;
constexpr size_t PAGE = 4096;

size_t pages(size_t bytes)
{
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

/* Idle blocks, at most `limit` bytes of them together. An allocator, so that tensors of it can be resized. */
class Pool final : public c10::Allocator
{
    struct Block {
        Pool *pool;
        at::DataPtr data;
        size_t size;
    };

    std::mutex mutex_;
    std::vector<Block *> idle_; /* the oldest first */
    size_t limit_ = DEFAULT_LIMIT, idle_bytes_ = 0;

    static void advise(const at::DataPtr &data, size_t size)
    {
#ifdef MADV_HUGEPAGE
        const auto start = reinterpret_cast<uintptr_t>(data.get());
        const uintptr_t first = pages(start);
        madvise(reinterpret_cast<void *>(first), start + size - first,
                MADV_HUGEPAGE); /* may fail */
#endif
    }

    static at::DataPtr fresh(size_t size)
    {
        at::DataPtr data = c10::GetCPUAllocator()->allocate(size);
        if (size >= LARGE) advise(data, size);
        return data;
    }

    static void give(void *block)
    {
        static_cast<Block *>(block)->pool->take_back(static_cast<Block *>(block));
    }

    void take_back(Block *block)
    {
        std::vector<Block *> gone;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            idle_.push_back(block);
            idle_bytes_ += block->size;
            gone = beyond_limit();
        }
        for (Block *old : gone) delete old;
    }

    /* Take out the oldest idle blocks that are too many; they are freed when the lock is gone. */
    std::vector<Block *> beyond_limit()
    {
        std::vector<Block *> gone;
        while (idle_bytes_ > limit_) {
            gone.push_back(idle_.front());
            idle_bytes_ -= idle_.front()->size;
            idle_.erase(idle_.begin());
        }
        return gone;
    }

  public:
    at::DataPtr allocate(size_t size) override
    {
        if (size < POOLED) return fresh(size);
        size = pages(size);
        Block *found = nullptr;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (size_t i = idle_.size(); i-- > 0 && !found;) {
                if (idle_[i]->size != size) continue;
                found = idle_[i];
                idle_bytes_ -= size;
                idle_.erase(idle_.begin() + static_cast<std::ptrdiff_t>(i));
            }
        }
        if (!found) found = new Block{this, fresh(size), size};
        return {found->data.get(), found, &give, at::Device(at::kCPU)};
    }

    void copy_data(void *to, const void *from, size_t size) const override
    {
        default_copy_data(to, from, size);
    }

    void set_limit(size_t limit)
    {
        std::vector<Block *> gone;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            limit_ = limit;
            gone = beyond_limit();
        }
        for (Block *old : gone) delete old;
    }

    std::pair<size_t, size_t> state()
    {
        std::lock_guard<std::mutex> lock(mutex_);
        return {limit_, idle_bytes_};
    }

    /* A child of fork gets the lock free: nobody else is there to let go of it. */
    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }
};

/* The pool lives as long as the process, since tensors may. */
Pool &pool()
{
    static Pool *const one = [] {
        auto *made = new Pool;
        pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
        return made;
    }();
    return *one;
}

/* A new tensor of the sizes and strides of x, which is dense. */
at::Tensor like(const at::Tensor &x)
{
    return at::Tensor(at::detail::empty_strided_generic(x.sizes(), x.strides(), &pool(),
                                                        c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                        x.scalar_type()));
}

/* A small new tensor. */
at::Tensor vector(at::IntArrayRef sizes, at::ScalarType kind)
{
    return at::Tensor(at::detail::empty_generic(sizes, c10::GetCPUAllocator(),
                                                c10::DispatchKeySet(c10::DispatchKey::CPU), kind,
                                                std::nullopt));
}

} // namespace

#endif
