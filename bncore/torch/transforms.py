"""The operators under `torch.func`'s transforms and in forward mode.

Operators that `torch.library` makes differentiable can be compiled and exported, but they cannot be
transformed or differentiated in forward mode.  The autograd functions here wrap the operators and
add that: gradients of any order, forward mode through each of them, and `vmap`, which treats its
examples as more channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

from bncore.torch import compiled, formula, gradients, ops
from bncore.torch.counting import ALL, Counting, total
from bncore.torch.gradients import Grad, along_channels, wide

_compiling = torch.compiler.is_dynamo_compiling
_innermost = torch._C._functorch.peek_interpreter_stack
_levels = torch._C._functorch.get_interpreter_stack


def active() -> bool:
    """Tell whether a transform or forward mode is active at the moment."""
    if _compiling():
        return False  # the compiler transforms the operators
    return _innermost() is not None or forward_ad._current_level >= 0


def nested() -> bool:
    """Tell whether forward mode is active inside forward mode."""
    forwards = [level for level in _levels() or () if level.key() == TransformType.Jvp]
    return len(forwards) > 1


# Forward mode: the tangents of the results, from the tangents of the arguments (which may be None).
# Tangents of 16 bits are computed in float32, too, and rounded at the end.


def _along(x: torch.Tensor, values: Grad) -> torch.Tensor | float:
    """Return a tangent per channel in a shape that broadcasts, or 0 if it is None."""
    return 0.0 if values is None else along_channels(x, values)


def _tangent(
    ctx: Any,
    y: torch.Tensor,
    counting: Counting,
    from_x: Grad,
    xhat: Grad,
    to_bias: Grad,
    residual: Grad,
) -> torch.Tensor:
    """Return y's tangent: the sum of its parts times the activation's derivative."""
    _, activation, slope, *_rest = ctx.settings
    parts = [wide(part) for part in (from_x, xhat, residual) if part is not None]
    tangent = sum(parts, torch.zeros_like(wide(y)))
    tangent = tangent + _along(y, to_bias)
    a = gradients.slope_of(wide(y.detach()), activation, slope)
    return counting.kept(tangent if a is None else tangent * a).to(y.dtype)


def _train_tangent(ctx: Any, x_: Grad, weight_: Grad, bias_: Grad, residual_: Grad, *_: Any) -> Any:
    """Compute y's tangent from x's by backward's projection, its own transpose without weights."""
    x, weight, _, _, where, weights, y, moments = ctx.saved_tensors
    x = wide(x)
    eps, _, slope, nan_policy, fill = ctx.settings
    counting = Counting.of(x, where, weights, nan_policy, fill)
    x = counting.cleaned(x)
    plain = (None, None, where, weights, eps, None, slope, nan_policy, None)
    from_x = scaled = None
    if x_ is not None and counting.w is None:
        from_x = TrainBackward.apply(wide(x_), x, moments, weight, *plain, False)[0]
    elif x_ is not None:
        projection = gradients.projection(x, eps, counting)
        from_x = projection.r * projection.project(wide(x_))
        from_x = from_x if weight is None else along_channels(x, weight) * from_x
    if weight_ is not None:
        scaled = along_channels(x, weight_) * Train.apply(x, None, *plain)[0]
    return _tangent(ctx, y, counting, from_x, scaled, bias_, residual_), None


def _infer_tangent(
    ctx: Any,
    x_: Grad,
    _mean: Grad,
    _var: Grad,
    weight_: Grad,
    bias_: Grad,
    residual_: Grad,
    *_: Any,
) -> torch.Tensor:
    """Compute y's tangent with given statistics, which have no gradient and no tangent."""
    x, mean, var, weight, _, _, *counts, y = ctx.saved_tensors
    x = wide(x)
    eps, _, slope, *policy = ctx.settings
    counting = Counting.of(x, *counts, *policy)
    x = counting.cleaned(x)
    plain = (None, None, None, None, eps, None, slope, ALL.nan_policy, None)
    from_x = scaled = None
    if x_ is not None:
        from_x = InferBackward.apply(wide(x_), x, mean, var, weight, *plain, False)[0]
    if weight_ is not None:
        scaled = along_channels(x, weight_) * Infer.apply(x, mean, var, None, *plain)
    return _tangent(ctx, y, counting, from_x, scaled, bias_, residual_)


def _activated(
    ctx: Any, counting: Counting, dy: torch.Tensor, y: torch.Tensor | None, dy_: Grad
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return g, the gradient after the activation's derivative, and its tangent."""
    _, activation, slope, *_rest = ctx.settings
    a = None if y is None else gradients.slope_of(wide(y.detach()), activation, slope)
    g, g_ = (counting.kept(v if a is None else v * a) for v in (wide(dy), _dense(dy, dy_)))
    return g, g_


def _gradient_tangents(
    ctx: Any, g: torch.Tensor, g_: torch.Tensor, xhat: Any, xhat_: Any
) -> tuple[Any, Any, Any]:
    """Return the tangents of dweight, dbias and dresidual."""
    dweight = total(g_ * xhat + g * xhat_).flatten()
    dbias = total(g_).flatten()
    return dweight, dbias, g_ if ctx.through else g_.new_zeros(0)


def _rounded(tangents: tuple[torch.Tensor, ...], results: list[torch.Tensor]) -> tuple[Any, ...]:
    """Return tangents in the dtypes of the results that they belong to."""
    return tuple(t.to(result.dtype) for t, result in zip(tangents, results, strict=True))


def _dense(like: torch.Tensor, tangent: Grad) -> torch.Tensor:
    """Return a tangent in the dtype of arithmetic, or zeros like `like` for None."""
    return wide(torch.zeros_like(like) if tangent is None else tangent)


def _train_backward_tangent(
    ctx: Any, dy_: Grad, x_: Grad, _moments: Grad, weight_: Grad, *_: Any
) -> tuple[Any, ...]:
    """Differentiate ``dx = w r Q(g)`` along x, dy and weight, in the notation of `gradients`."""
    dy, x, _, weight, bias, residual, where, weights, *results = ctx.saved_tensors
    eps, activation, _, *policy = ctx.settings
    y = None
    if activation is not None:
        y = Train.apply(x, weight, bias, residual, where, weights, *ctx.settings)[0]
    x = wide(x)
    counting = Counting.of(x, where, weights, *policy)
    g, g_ = _activated(ctx, counting, dy, y, dy_)
    x = counting.cleaned(x, g)
    r, xhat, project, transposed = gradients.projection(x, eps, counting)
    xhat_ = r * project(_dense(x, x_))
    r_ = -r * r * counting.average(xhat * _dense(x, x_))
    others = _gradient_tangents(ctx, g, g_, xhat, xhat_)
    projected = transposed(g)
    moved = counting.spread(xhat_ * total(g * xhat) + xhat * total(g * xhat_))
    projected_ = transposed(g_) - moved
    dx = _input_tangent(x, weight, weight_, (r, r_), (projected, projected_))
    return _rounded((dx, *others), results)


def _infer_backward_tangent(
    ctx: Any, dy_: Grad, x_: Grad, _mean: Grad, _var: Grad, weight_: Grad, *_: Any
) -> tuple[Any, ...]:
    """Differentiate ``dx = w r g`` with constant r along x, dy and weight."""
    dy, x, mean, var, weight, bias, residual, where, weights, *results = ctx.saved_tensors
    eps, activation, _, *policy = ctx.settings
    y = None
    if activation is not None:
        y = Infer.apply(x, mean, var, weight, bias, residual, where, weights, *ctx.settings)
    x = wide(x)
    counting = Counting.of(x, where, weights, *policy)
    g, g_ = _activated(ctx, counting, dy, y, dy_)
    x = counting.cleaned(x, g)
    r = along_channels(x, torch.rsqrt(var.double() + eps))
    xhat = (x - along_channels(x, mean)) * r
    others = _gradient_tangents(ctx, g, g_, xhat, r * _dense(x, x_))
    dx = _input_tangent(x, weight, weight_, (r, 0.0), (g, g_))
    return _rounded((dx, *others), results)


def _input_tangent(
    x: torch.Tensor, weight: Grad, weight_: Grad, r: tuple[Any, Any], g: tuple[Any, Any]
) -> torch.Tensor:
    """Differentiate ``w r g``, given r and g with their tangents."""
    w = 1.0 if weight is None else along_channels(x, weight)
    result: torch.Tensor = _along(x, weight_) * r[0] * g[0] + w * (r[1] * g[0] + r[0] * g[1])
    return result


# Examples as channels


def _folded(value: Any, dim: int | None, axis: int, size: int) -> Any:
    """Return a tensor whose examples are parts of its channel axis."""
    if value is None:
        return None
    if dim is None:
        value = value.unsqueeze(axis)
        value = value.expand(*value.shape[:axis], size, *value.shape[axis + 1 :])
    else:
        value = value.movedim(dim, axis)
    return value.flatten(axis, axis + 1)


def _folded_counts(value: Any, dim: int | None, channels: int, size: int) -> Any:
    """Return a mask or weights for examples that are parts of the channel axis.

    They stay as they are if all channels of all examples share them.
    """
    if value is None or (dim is None and value.shape[X] == 1):
        return value
    if dim is None:
        return _folded(value, None, X, size)
    value = value.movedim(dim, X)
    return value.expand(*value.shape[:2], channels, *value.shape[3:]).flatten(X, X + 1)


def _unfolded(value: torch.Tensor, axis: int, size: int) -> tuple[torch.Tensor, int | None]:
    """Separate the examples from the channel axis again; return the tensor and their axis."""
    if value.dim() <= axis:  # a residual's gradient that nobody asked for: empty, and nobody's
        return value, None
    return value.unflatten(axis, (size, value.shape[axis] // size)), axis


def _made(
    name: str,
    operator: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[..., Any],
    tangent: Callable[..., Any],
    axes: tuple[int, ...],
    result_axes: tuple[int, ...],
) -> Any:
    """Make an autograd function whose first arguments, tensors, have the channel axes `axes`.

    The last two of these tensors are the mask and the weights.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup(ctx, inputs, output)
        results = output if isinstance(output, tuple) else (output,)
        ctx.save_for_forward(*inputs[: len(axes)], *results)

    def jvp(ctx: Any, *tangents: Grad) -> Any:
        if nested():  # only forward calls have a formula; PyTorch would return a wrong tangent
            raise NotImplementedError(
                "bncore.torch: a gradient was computed before two forward modes were entered; "
                "compute it inside of them"
            )
        return tangent(ctx, *tangents)

    def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[Any, Any]:
        size = info.batch_size
        places = list(zip(given, in_dims, axes, strict=False))
        tensors = [_folded(value, dim, axis, size) for value, dim, axis in places[:-2]]
        channels = tensors[0].shape[X] // size
        counts = (_folded_counts(value, dim, channels, size) for value, dim, _ in places[-2:])
        results = made.apply(*tensors, *counts, *given[len(axes) :])
        if isinstance(results, torch.Tensor):
            return _unfolded(results, result_axes[0], size)
        parts = [_unfolded(v, axis, size) for v, axis in zip(results, result_axes, strict=True)]
        return tuple(value for value, _ in parts), tuple(axis for _, axis in parts)

    class Made(torch.autograd.Function):
        pass

    made: Any = Made
    made.__name__ = name
    made.forward = staticmethod(lambda *given: operator(*given))
    made.setup_context = staticmethod(setup_context)
    made.backward = staticmethod(backward)
    made.jvp = staticmethod(jvp)
    made.vmap = staticmethod(vmap)
    return made


X, VECTOR, MOMENTS, COUNTS = 1, 0, 1, 1  # the channel axes of tensors
GRADIENTS = (X, VECTOR, VECTOR, X)

TrainBackward: Any = _made(
    "TrainBackward",
    ops.train_backward_op,
    gradients.save_train_backward,
    lambda ctx, *grads: gradients.train_backward_backward(ctx, *grads, forward=Train.apply),
    _train_backward_tangent,
    (X, X, MOMENTS, VECTOR, VECTOR, X, COUNTS, COUNTS),
    GRADIENTS,
)
Train: Any = _made(
    "Train",
    ops.train_op,
    gradients.save_train,
    lambda ctx, *grads: gradients.train_backward(ctx, *grads, kernel=TrainBackward.apply),
    _train_tangent,
    (X, VECTOR, VECTOR, X, COUNTS, COUNTS),
    (X, MOMENTS),
)
InferBackward: Any = _made(
    "InferBackward",
    ops.infer_backward_op,
    gradients.save_infer_backward,
    lambda ctx, *grads: gradients.infer_backward_backward(ctx, *grads, forward=Infer.apply),
    _infer_backward_tangent,
    (X, X, VECTOR, VECTOR, VECTOR, VECTOR, X, COUNTS, COUNTS),
    GRADIENTS,
)
Infer: Any = _made(
    "Infer",
    ops.infer_op,
    gradients.save_infer,
    lambda ctx, *grads: gradients.infer_backward(ctx, *grads, kernel=InferBackward.apply),
    _infer_tangent,
    (X, VECTOR, VECTOR, VECTOR, VECTOR, X, COUNTS, COUNTS),
    (X,),
)


def _update_examples(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[None, None]:
    """Update the running statistics of every example, which must have separate statistics."""
    *running, moments, momentum = given
    size = info.batch_size
    if any(dim is None for dim in in_dims[:2]):
        raise RuntimeError(
            "Batch norm got a batched tensor as input while the running_mean or running_var, which "
            "will be updated in place, were not batched: map them as well, or set "
            "track_running_stats to False"
        )
    examples = [value.movedim(dim, 0) for value, dim in zip(running, in_dims, strict=False)]
    moved = [value.flatten() for value in examples]  # these are views if they are contiguous
    ops.update_op(*moved, _folded(moments, in_dims[2], MOMENTS, size), momentum)
    for value, new in zip(examples, moved, strict=True):
        value.copy_(new.view_as(value))
    return None, None


torch.library.register_vmap(
    f"{ops.NAMESPACE}::update_running_stats_", _update_examples, lib=ops.library
)


# The operators, or under a transform the autograd functions that can be transformed


def train(*given: Any) -> Any:
    """Call `ops.train_op`, or its autograd function under a transform."""
    if not active():
        return ops.train_op(*given)
    return (formula.train if nested() else Train.apply)(*given)


def infer(*given: Any) -> Any:
    """Call `ops.infer_op`, or its autograd function under a transform."""
    if not active():
        return ops.infer_op(*given)
    return (formula.infer if nested() else Infer.apply)(*given)


def train_backward(*given: Any) -> Any:
    """Call `ops.train_backward_op`, or its autograd function under a transform."""
    with torch._C.DisableTorchFunctionSubclass():  # as gradients.py
        return (TrainBackward.apply if active() else ops.train_backward_op)(*given)


def infer_backward(*given: Any) -> Any:
    """Call `ops.infer_backward_op`, or its autograd function under a transform."""
    with torch._C.DisableTorchFunctionSubclass():
        return (InferBackward.apply if active() else ops.infer_backward_op)(*given)


if compiled.adapter is not None:
    compiled.adapter.set_backward(train_backward, infer_backward)
