"""Give every batch norm of a model the statistics of all values of all batches, exactly."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

import bncore
from bncore.arguments import scalars
from bncore.statistics import Moments, require_divisors
from bncore.torch.dependence import Dependence
from bncore.torch.memory import array, rounded
from bncore.torch.modules import Normalizing
from bncore.torch.report import checked

__all__ = ["recalibrate"]


def recalibrate(
    model: Module,
    loader: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
    one_pass: bool = False,
    correction: float = 1,
    process_group: Any = None,
) -> dict[str, Moments]:
    """Replace the running statistics of every batch norm by those of all values of all batches.

    Every value counts once, whatever the size of its batch.  Use it for a model that was trained,
    averaged or quantized, or that will work on other data than it was trained on.  The model runs
    in evaluation: its other layers, such as dropout, do what they do there.

    A layer gets the statistics of exactly what it will see in evaluation, where the layers before
    it have their new statistics.  So one pass over the batches serves all layers whose input does
    not depend on another layer that still waits, and the layers behind them take further passes.
    Layers side by side share a pass; a chain of layers takes a pass for each.

    Parameters
    ----------
    model : Module
        PyTorch's batch norm layers and bncore's count, and subclasses of them, if they have running
        statistics.  A `DistributedDataParallel` is run by the module inside.
    loader : iterable
        The batches.  It must give the same batches every time it is iterated over: no shuffling
        into batches of other values, and no random augmentation.
    forward : callable, optional
        Runs the model on one batch.  By default the model is called with the batch if that is a
        tensor, with its first item if it is a tuple or list, such as input and target, and with its
        items by name if it is a mapping.
    one_pass : bool, default False
        Take a single pass, in which every batch norm normalizes by its batch, as in training.
        Layers that follow others then see slightly other values than in evaluation.
    correction : float, default 1
        The running variance becomes m2 / (count - correction); PyTorch's running variances have 1.
    process_group : ProcessGroup, optional
        The processes whose batches count together, such as ``torch.distributed.group.WORLD``; None
        for this process alone.  Every process of the group must call this function with the same
        model.  They may have different numbers of batches, and get the same bits.

    Returns
    -------
    dict of str to Moments
        The moments of what each layer sees, by the layer's name in `model`.  A layer that no batch
        reached is missing, and stays as it was; so do channels without a value.

    Raises
    ------
    TypeError, ValueError
        If the model has no such layer, there is no batch, a channel has not more values than
        `correction`, the loader cannot be iterated over again and there may be several passes, or
        a layer depends on its own output: its statistics then have no exact value, but `one_pass`
        has one.
    RuntimeError
        If another process of the group failed.  Exceptions of the model and of the loader are
        passed on.  After any exception all layers are as before.

    Notes
    -----
    What depends on what is found while the model runs, from the operators that PyTorch executes.  A
    value that leaves PyTorch, for example by ``numpy()`` or ``item()``, counts as used by all that
    comes later in the same batch.  A layer that is called several times for a batch gets the values
    of all calls, and ``num_batches_tracked`` becomes the number of these calls.  If a layer of
    bncore is called with a mask or weights, they say what counts here, too.  Compiled models run
    without their compiled code.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 2, steps 8 to 10, with the batches weighted by
    their sizes.  Y. Wu, J. Johnson, "Rethinking 'Batch' in BatchNorm", arXiv:2105.07576 (2021),
    section 3: what averages over batches miss.

    Examples
    --------
    >>> import torch
    >>> import bncore.torch
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1))
    >>> batches = [torch.tensor([[0.0], [2.0]]), torch.full((6, 1), 9.0)]
    >>> found = bncore.torch.recalibrate(model, batches, correction=0)
    >>> found["0"].mean, model[0].running_mean, model[0].running_var
    (array([7.]), tensor([7.]), tensor([12.2500]))
    >>> found["1"].count, model[1].running_var
    (array([8.]), tensor([1.0000]))
    """
    waiting = _layers(checked(model))
    one_pass = scalars.boolean("one_pass", one_pass)
    correction = scalars.real("correction", correction, 0.0)
    run = _runner(model, forward)
    if not isinstance(loader, Iterable):
        raise TypeError(f"loader: expected an iterable, got {scalars.shown(loader)}")
    if isinstance(loader, Iterator) and len(waiting) > 1 and not one_pass:
        raise TypeError(
            "loader: expected an iterable that starts anew every time, such as a list, for "
            f"{len(waiting)} layers, got {type(loader).__name__}"
        )
    found: dict[str, Moments] = {}
    before = _Before(model, waiting.values())
    try:
        model.eval()
        while waiting:
            mine = _Pass(waiting, one_pass)
            error = mine.over(loader, run, process_group is not None)
            total = _exchanged(mine.result, error, process_group)
            for name, moments in total.moments.items():
                _store(name, waiting[name], moments, total.batches[name], correction)
                found[name] = moments
            if total.spoiled and not total.moments:
                raise ValueError(
                    "model: expected layers that do not depend on their own output, got "
                    f"{sorted(total.spoiled)[0]!r}; one_pass=True has an answer for them"
                )
            waiting = {name: waiting[name] for name in waiting if name in total.spoiled}
        before.restore_modes()
    except BaseException:
        before.restore()
        raise
    return found


def _layers(model: Module) -> dict[str, Any]:
    """Return the batch norm layers with running statistics by their names."""
    norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
    found = {n: m for n, m in norms.items() if m.running_mean is not None}
    if not found:
        got = f"{len(norms)} without" if norms else "none"
        raise ValueError(f"model: expected a batch norm that has running statistics, got {got}")
    return found


def _runner(model: Module, forward: object) -> Callable[[Any], object]:
    """Return the function that runs the model on a batch."""
    if forward is not None:
        if not callable(forward):
            raise TypeError(f"forward: expected a callable, got {scalars.shown(forward)}")
        return forward
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module  # it would exchange buffers in every call

    def run(batch: Any) -> object:
        if isinstance(batch, Mapping):
            return model(**batch)
        return model(batch[0] if isinstance(batch, (list, tuple)) else batch)

    return run


class _Result(NamedTuple):
    """What one pass, or all processes in one pass, found, by the names of layers.

    Attributes
    ----------
    moments : of the layers that saw final values alone
    batches : how many calls they are from
    spoiled : the layers that saw values of layers that still wait
    seen : how many batches there were
    """

    moments: dict[str, Moments]
    batches: dict[str, int]
    spoiled: set[str]
    seen: int


class _Pass:
    """One pass over the batches."""

    def __init__(self, waiting: dict[str, Any], one_pass: bool) -> None:
        self.result = _Result({}, {}, set(), 0)
        self._waiting = waiting
        self._dependence = None if one_pass else Dependence()
        if one_pass:
            for layer in waiting.values():
                layer.training, layer.momentum = True, 0.0  # its running statistics stay

    def over(
        self, loader: Iterable[Any], run: Callable[[Any], object], together: bool
    ) -> Exception | None:
        """Run all batches; return an exception that the other processes have to hear of first."""
        with ExitStack() as stack:
            for name, layer in self._waiting.items():
                for hook in self._hooks(name, layer):
                    stack.callback(hook.remove)
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            try:
                for batch in loader:
                    self.result = self.result._replace(seen=self.result.seen + 1)
                    self._batch(run, batch)
            except Exception as error:
                if not together:
                    raise
                return error
        return None

    def _batch(self, run: Callable[[Any], object], batch: Any) -> None:
        with self._dependence or nullcontext():
            run(batch)

    def _hooks(self, name: str, layer: Module) -> list[Any]:
        """Make a layer tell of its input, and mark its output."""

        def before(_: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if isinstance(layer, Normalizing):
                names = inspect.signature(type(layer).forward, follow_wrapped=False).parameters
                kwargs = dict(zip(list(names)[1:], args, strict=False)) | kwargs
                args = ()
            self._see(name, args[0] if args else kwargs["input"], kwargs)

        def after(_: Module, __: Any, output: Any) -> None:
            assert self._dependence is not None
            self._dependence.mark(output)

        hooks: list[Any] = [layer.register_forward_pre_hook(before, with_kwargs=True)]
        if self._dependence is not None:
            hooks.append(layer.register_forward_hook(after, prepend=True))
        return hooks

    def _see(self, name: str, x: torch.Tensor, given: dict[str, Any]) -> None:
        """Add the values that a layer gets and that count, unless they will change."""
        moments, batches, spoiled, _ = self.result
        if name in spoiled:
            return
        if self._dependence is not None and self._dependence.holds(x):
            spoiled.add(name)
            moments.pop(name, None)
            return
        names = (key for key in ("where", "weights", "nan_policy") if given.get(key) is not None)
        found = bncore.moments(
            array(x.detach().cpu().resolve_neg()),
            n_threads=torch.get_num_threads(),
            **{key: _numpy(given[key]) for key in names},
        )
        moments[name] = moments[name].merge(found) if name in moments else found
        batches[name] = batches.get(name, 0) + 1


def _numpy(value: Any) -> Any:
    """Return a tensor's memory as an array, and anything else as it is."""
    return array(value.detach().cpu().resolve_neg()) if isinstance(value, torch.Tensor) else value


def _exchanged(mine: _Result, error: Exception | None, group: Any) -> _Result:
    """Return what all processes of a group found together, merged in the order of their ranks."""
    parts: list[Any] = [(mine, None)]
    if group is not None:
        parts = [None] * dist.get_world_size(group)
        text = None if error is None else f"{type(error).__name__}: {error}"
        dist.all_gather_object(parts, (mine, text), group=group)
    if error is not None:
        raise error
    for rank, (_, text) in enumerate(parts):
        if text is not None:
            raise RuntimeError(
                f"process_group: expected no failure, got one of rank {rank}: {text}"
            )
    results = [result for result, _ in parts]
    if not any(result.seen for result in results):
        raise ValueError("loader: expected at least one batch, got none")
    spoiled: set[str] = set().union(*(result.spoiled for result in results))
    moments: dict[str, Moments] = {}
    batches: dict[str, int] = {}
    for result in results:
        for name, found in result.moments.items():
            if name not in spoiled:
                moments[name] = moments[name].merge(found) if name in moments else found
                batches[name] = batches.get(name, 0) + result.batches[name]
    return _Result(moments, batches, spoiled, sum(result.seen for result in results))


def _store(name: str, layer: Any, moments: Moments, batches: int, correction: float) -> None:
    """Write moments to a layer's running statistics; a channel without a value keeps its own."""
    what = "loader: expected values per channel"
    require_divisors(moments.count, correction, what, f" of {name!r}")
    some = torch.from_numpy(moments.count > 0.0)
    for running, values in (
        (layer.running_mean, moments.mean),
        (layer.running_var, moments.var(correction)),
    ):
        new = rounded(np.asarray(values), running.dtype).to(running.device)
        running.copy_(torch.where(some.to(running.device), new, running))
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(batches)


class _Before:
    """The modes of a model's modules, and all of its batch norm layers, as they were."""

    def __init__(self, model: Module, layers: Iterable[Any]) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._layers = [(layer, layer.momentum, _copies(layer)) for layer in layers]

    def restore_modes(self) -> None:
        """Give the modules their modes and momenta."""
        for module, training in self._modes:
            module.training = training
        for layer, momentum, _ in self._layers:
            layer.momentum = momentum

    def restore(self) -> None:
        """Give the modules everything."""
        self.restore_modes()
        for layer, _, copies in self._layers:
            for name, values in copies.items():
                getattr(layer, name).copy_(values)
            if not copies and not is_lazy(layer.running_mean):  # it has seen an input since
                layer.reset_running_stats()


def _copies(layer: Any) -> dict[str, torch.Tensor]:
    """Return copies of a layer's buffers by name; none of a lazy layer, which has no values."""
    if is_lazy(layer.running_mean):
        return {}
    return {name: buffer.detach().clone() for name, buffer in layer.named_buffers(recurse=False)}
