"""Which tensors were computed from the results of given modules, while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What makes numbers of Python or memory of others of a tensor; nobody can follow those.
_READS = torch.ops.aten._local_scalar_dense.default
_LEAVES = frozenset(
    getattr(torch.Tensor, name)
    for name in ("numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage")
)


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in an argument or result: itself, or those of lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """Return a tensor's memory; None if it is sparse, and has memory only in parts."""
    with torch._C.DisableTorchFunction():  # `_Methods` must not take this for the model's call
        return None if tensor.layout is not torch.strided else tensor.untyped_storage()


class Dependence:
    """Marks tensors, and everything that PyTorch computes from them, in a ``with`` block.

    Memory is marked, so views of a marked tensor are marked, and a tensor that is written to with
    marked values.  If a marked value leaves PyTorch, as a number or as memory of NumPy, everything
    counts as marked until the end of the block, because it may come back anywhere.
    """

    def __init__(self) -> None:
        self._marked: dict[int, StorageWeakRef] = {}  # a weak reference keeps its address taken
        self._lost = False
        self._modes = _Operators(self), _Methods(self)

    def __enter__(self) -> Dependence:
        self._lost = False
        self._marked = {at: ref for at, ref in self._marked.items() if not ref.expired()}
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def mark(self, value: object) -> None:
        """Mark the tensors in a value."""
        for tensor in tensors_in(value):
            storage = _storage(tensor)
            if storage is None:
                self._lost = True
            else:
                ref = StorageWeakRef(storage)
                self._marked[ref.cdata] = ref

    def holds(self, value: object) -> bool:
        """Tell whether a tensor in a value is marked."""
        if self._lost or not self._marked:
            return self._lost
        storages = map(_storage, tensors_in(value))
        return any(one is not None and one._cdata in self._marked for one in storages)

    def leave(self, value: object) -> None:
        """Take note that a value leaves PyTorch."""
        self._lost = self._lost or self.holds(value)


class _Operators(TorchDispatchMode):
    """Sees every operator."""

    def __init__(self, found: Dependence) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._found.holds((args, kwargs)):
            if func is _READS:
                self._found.leave(args)
            self._found.mark(result)
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
            for argument in func._schema.arguments:
                if argument.is_write:
                    self._found.mark((given | kwargs).get(argument.name))
        return result


class _Methods(TorchFunctionMode):
    """Sees the methods of tensors that are no operators."""

    def __init__(self, found: Dependence) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _LEAVES:
            self._found.leave(args)
        return func(*args, **(kwargs or {}))
