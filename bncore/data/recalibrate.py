"""Compute the running statistics of a network's batch norm layers from data, without averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bncore.arguments import scalars
from bncore.layer.batch_norm import BatchNorm
from bncore.layer.rollback import Before
from bncore.layer.state import finite
from bncore.statistics import Moments

# The attributes that a forward call changes (for backward and for the user), and the mode.
CALL = ("training", "moments", "_saved")


def batch_norms(network: Any) -> Iterator[BatchNorm]:
    """Yield the batch norm layers of a network, each once, in the order in which they occur.

    A `BatchNorm` yields itself.  Otherwise the function searches the values of a mapping, the
    ``layers`` of an object that has this attribute, or the items of anything else that can be
    iterated over.  Any other object has no batch norm layers.

    Parameters
    ----------
    network : object
        The layer, mapping, object with layers or iterable to search.

    Returns
    -------
    iterator of BatchNorm

    Examples
    --------
    >>> import bncore
    >>> a, b = bncore.BatchNorm(2), bncore.BatchNorm(3)
    >>> list(bncore.batch_norms([a, {"branch": [b, a]}])) == [a, b]
    True
    """
    seen: dict[int, Any] = {}  # keeps the objects alive, so that no later object gets the same id

    def walk(part: Any) -> Iterator[BatchNorm]:
        if isinstance(part, (str, bytes)) or hasattr(part, "__array__") or id(part) in seen:
            return
        seen[id(part)] = part
        if isinstance(part, BatchNorm):
            yield part
            return
        inner = part.values() if isinstance(part, Mapping) else getattr(part, "layers", part)
        if isinstance(inner, Iterable):
            for one in inner:
                yield from walk(one)

    yield from walk(network)


def recalibrate(
    network: Any,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
    sequential: bool = False,
) -> list[Moments | None]:
    """Replace running statistics by the statistics of all values of all batches.

    A moving average remembers mostly the last batches, seen by a network that was still changing,
    and gives a small batch the same weight as a large one.  This function gives every value the
    same weight.  Use it for a network that has been trained, averaged or quantized, or that will
    work on other data than it was trained on.

    Parameters
    ----------
    network : BatchNorm, or anything that holds some
        `batch_norms` finds the layers in it.  A layer that is frozen or has no running statistics
        is not changed.
    batches : iterable
        The batches that `forward` takes, one by one.  With ``sequential=True`` it must give the
        same batches every time that it is iterated over.
    forward : callable, optional
        A function that runs the network on one batch; ``network.forward`` or the network itself by
        default.
    sequential : bool, default False
        If False, there is one pass over the batches, in which all layers normalize by the
        statistics of the batch, as in training.  A layer that follows another one then sees the
        values that it would see in training.  They differ a little from those in evaluation, where
        the earlier layer uses the population's statistics.  If True, there is one pass per layer,
        in the order of `batch_norms`.  The layers before it are then in evaluation with their new
        statistics, so every layer gets the statistics of the values that it will see.

    Returns
    -------
    list of Moments or None
        The moments that each layer got, in the order of `batch_norms`.  The entry is None for a
        layer that was not changed, such as one that no batch reached.

    Raises
    ------
    TypeError, ValueError
        If there is no layer to recalibrate, no batch or no forward to call, or if `batches` is an
        iterator and `sequential` is True.  Exceptions of `forward` are passed on.  After any
        exception all layers are as before; a layer that did not know its channels still does not.

    Notes
    -----
    The function does not change the mode of other layers, so switch dropout off yourself.  If a
    layer is called several times for one batch, only its last call counts.
    ``num_batches_tracked`` becomes the number of batches.  Afterwards the layers are in their old
    modes.  They also remember their last forward call before this function: `BatchNorm.moments`
    belongs to it, a backward for it still works, and none of the batches is kept.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 2, steps 8 to 10, with the batches weighted by
    their sizes.  P. Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
    Generalization", UAI 2018, section 3.2: why averaged weights need such a pass.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> layer = bncore.BatchNorm(1, correction=0)
    >>> recalibrated = bncore.recalibrate(layer, [np.array([[0.0], [2.0]]), np.full((6, 1), 9.0)])
    >>> layer.running_mean, layer.running_var
    (array([7.]), array([12.25]))
    """
    found = list(batch_norms(network))
    chosen = [layer for layer in found if layer.track_running_stats and not layer.frozen]
    if not chosen:
        got = f"{len(found)} without" if found else "none (attributes are not searched)"
        raise ValueError(
            "network: expected a BatchNorm that has running statistics and is not frozen, "
            f"got {got}"
        )
    run = _forward_of(network, forward)
    sequential = scalars.boolean("sequential", sequential)
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches: expected an iterable, got {scalars.shown(batches)}")
    if sequential and isinstance(batches, Iterator):
        raise TypeError(
            "batches: expected an iterable that starts anew every time, such as a list, for "
            f"sequential=True, got {type(batches).__name__}"
        )
    before = [Before(layer) for layer in found]
    try:
        results: dict[int, Moments] = {}
        for layers in [[layer] for layer in chosen] if sequential else [chosen]:
            for layer in chosen:
                layer.train(layer in layers)
            results |= _pass(layers, batches, run)
        for saved in before:
            saved.restore_attributes(CALL)
        return [results.get(id(layer)) for layer in found]
    except BaseException:
        for saved in before:
            saved.restore()
        raise


def _forward_of(network: Any, forward: object) -> Callable[[Any], object]:
    """Return the function that runs the network."""
    run: Any = getattr(network, "forward", network) if forward is None else forward
    if not callable(run):
        name = (
            "network: expected one with a callable forward"
            if forward is None
            else "forward: expected a callable"
        )
        raise TypeError(f"{name}, got {scalars.shown(run)}")
    found: Callable[[Any], object] = run
    return found


def _pass(
    layers: Sequence[BatchNorm], batches: Iterable[Any], run: Callable[[Any], object]
) -> dict[int, Moments]:
    """Run all batches with the layers in training, and set the layers' statistics from them."""
    total: dict[int, Moments] = {}
    merged = dict.fromkeys(map(id, layers), 0)
    number = 0
    for batch in batches:
        number += 1
        for layer in layers:
            layer.moments = None
        run(batch)
        for layer in layers:
            moments: Moments | None = layer.moments
            if moments is None or not moments.count.any():
                continue
            if layer.on_nonfinite == "skip" and not finite(moments):
                continue
            key = id(layer)
            total[key] = total[key].merge(moments) if key in total else moments
            merged[key] += 1
    if not number:
        raise ValueError("batches: expected at least one batch, got none")
    for layer in layers:
        if id(layer) in total:
            moments = total[id(layer)]
            some = moments.count > 0.0  # a channel without a value keeps what it has
            mean, var = layer.running_mean, layer.running_var
            layer.running_mean = np.where(some, moments.mean, mean)
            layer.running_var = np.where(some, moments.var(layer.correction), var)
            layer.num_batches_tracked = merged[id(layer)]
    return total
