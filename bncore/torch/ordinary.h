/* Which calls may pass PyTorch's dispatcher by. */
#ifndef BNCORE_TORCH_ORDINARY_H
#define BNCORE_TORCH_ORDINARY_H

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "call.h"

namespace
{

constexpr c10::DispatchKeySet ORDINARY({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                                        c10::DispatchKey::AutocastCPU,
                                        c10::DispatchKey::ADInplaceOrView});

/* Whether tensors are plain memory on the CPU: not sparse, negated, traced, somebody's own ... */
bool ordinary(const Tensor &tensor)
{
    return !tensor.defined() || ORDINARY.has_all(tensor.key_set());
}
bool ordinary(const Optional &tensor)
{
    return !tensor || ordinary(*tensor);
}

template <typename... Tensors> bool all_ordinary(const Tensors &...tensors)
{
    return (ordinary(tensors) && ...);
}

/* Whether a mode, a transform or a tracer wants to see every call, or gradients are somebody else's business. */
bool watched()
{
    const auto keys = c10::impl::tls_local_dispatch_key_set();
    if (!c10::default_included_set.has_all(keys.included_)) return true;
    return at::GradMode::is_enabled() && keys.excluded_.has(c10::DispatchKey::AutogradCPU);
}

} // namespace

#endif
