"""Normalize a batch that arrives in pieces as one batch, for exact gradient accumulation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import cast, data_array
from bncore.arguments.bfloat16 import in_native_order
from bncore.arguments.parameters import vector
from bncore.arguments.weights import NanPolicy, weights_of
from bncore.functions.steps import grad_input, grad_sums, moments, normalize
from bncore.runtime.threads import resolve
from bncore.statistics import GradSums, Moments

Array = npt.NDArray[np.floating[Any]]


class MicroBatches:
    """Batch norm over a batch that arrives in pieces; the result is that of the whole batch.

    The two differ only by rounding.  Normalizing the pieces one by one would compute something
    else, because every piece would be normalized by its own statistics.  Each direction goes over
    the pieces twice, as one call goes over its array twice: `forward` computes first their moments
    and then y, `backward` first the sums and then dx.  The caller keeps the pieces or makes them
    again; this object stores nothing of their size.

    If the pieces are not in a list, call the four steps yourself: `add` every piece, then
    `normalize` each; `add_gradient` of every piece, then `grad_input` of each.  You cannot add a
    piece after one was normalized, because its y would be wrong.  A call that raises has changed
    nothing.

    Parameters
    ----------
    weight, bias : (C,) array_like of float, optional
        gamma and beta, as in `batch_norm_train`.
    axis, eps, n_threads, nan_policy, fill
        As in `batch_norm_train`.  The methods take `where` and `weights` of a piece, which must be
        the same in all four steps.

    Attributes
    ----------
    moments : Moments
        The moments of the pieces so far.  Pass them to `update_running_stats` once, at the end.
    sums : GradSums
        The gradient sums of the pieces so far.
    dweight, dbias : (C,) ndarray
        Gradients, in weight's dtype.  Without a weight they have the dtype of the pieces, or
        float32 if that has 16 bits.

    Notes
    -----
    A network has to be computed layer by layer: all pieces must reach a batch norm before the first
    one can leave it.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 1 and the gradients after it.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> x, dy = np.arange(12.0).reshape(6, 2) ** 2, np.ones((6, 2)).cumsum(axis=0)
    >>> batch = bncore.MicroBatches()
    >>> y = list(batch.forward([x[:2], x[2:]]))
    >>> dx = list(batch.backward([dy[:2], dy[2:]], [x[:2], x[2:]]))
    >>> whole, moments = bncore.batch_norm_train(x)
    >>> gradients = bncore.batch_norm_train_backward(dy, x, moments)
    >>> np.allclose(np.concatenate(y), whole, rtol=1e-12)
    True
    >>> np.allclose(batch.dweight, gradients[1], rtol=1e-12)
    True
    """

    def __init__(
        self,
        weight: npt.ArrayLike | None = None,
        bias: npt.ArrayLike | None = None,
        *,
        axis: SupportsIndex = 1,
        eps: float = 1e-5,
        n_threads: int | None = None,
        nan_policy: NanPolicy = "propagate",
        fill: float | None = None,
    ) -> None:
        self._weight = None if weight is None else vector("weight", weight, None)
        size = None if self._weight is None else self._weight.shape[0]
        self._bias = None if bias is None else vector("bias", bias, size)
        resolve(n_threads)
        given, _ = weights_of((), None, None, nan_policy, fill)
        self._common: dict[str, Any] = {
            "axis": axis, "n_threads": n_threads, "nan_policy": nan_policy
        }  # fmt: skip
        self._later: dict[str, Any] = {
            "eps": scalars.real("eps", eps, 0.0),
            "fill": given.fill,
            **self._common,
        }
        self._dtype: np.dtype[Any] | None = None
        self._moments: Moments | None = None
        self._sums: GradSums | None = None
        self._added = self._summed = 0  # values per channel of which there are moments, and sums
        self._weighs = nan_policy == "omit"  # whether some values may not count
        self._complete = False  # whether the moments were used, so that no piece may be added

    # Results so far

    @property
    def moments(self) -> Moments:
        """The moments of all pieces that were added."""
        if self._moments is None:
            raise RuntimeError("moments: expected add of a piece before, got none")
        return self._moments

    @property
    def sums(self) -> GradSums:
        """The sums of dy and dy * xhat over all pieces whose gradients were added."""
        if self._sums is None:
            raise RuntimeError("sums: expected add_gradient of a piece before, got none")
        return self._sums

    @property
    def dweight(self) -> Array:
        """The gradient of weight over all pieces."""
        return self._parameter_gradient(self._whole_sums().sum_dy_xhat)

    @property
    def dbias(self) -> Array:
        """The gradient of bias over all pieces."""
        return self._parameter_gradient(self._whole_sums().sum_dy)

    def _parameter_gradient(self, total: npt.NDArray[np.float64]) -> Array:
        if self._weight is not None:
            return cast(total, in_native_order(self._weight.dtype))
        assert self._dtype is not None  # there are sums, so there is a piece
        return cast(total, layout.statistic_dtype(self._dtype))

    def _whole_sums(self) -> GradSums:
        """Return the sums, which must cover as many values as the moments do."""
        if self._sums is not None and self._summed != self._added:
            raise RuntimeError(
                f"add_gradient: expected pieces of {self._added} values per channel in all, as "
                f"were added, got {self._summed}"
            )
        return self.sums

    # The four steps

    def add(
        self,
        x: npt.ArrayLike,
        *,
        where: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> Moments:
        """Add the moments of a piece, and return those of all pieces so far."""
        if self._sums is not None or self._complete:
            done = "normalize" if self._sums is None else "add_gradient"
            raise RuntimeError(f"add: expected no piece after {done}, got one")
        array = self._piece(x)
        found = moments(array, where=where, weights=weights, **self._common)
        channels = found.mean.shape[0]
        known = None if self._moments is None else self._moments.mean
        for own, source in (
            (self._weight, "weight"),
            (self._bias, "bias"),
            (known, "in the first piece"),
        ):
            if own is not None and own.shape[0] != channels:
                raise ValueError(
                    f"x: expected {own.shape[0]} channels, as {source}, got {channels}"
                )
        merged = found if self._moments is None else self._moments.merge(found)
        # This is one step, which nothing can interrupt.  The same holds below.
        vars(self).update(
            _moments=merged,
            _dtype=layout.dtype_of(array),
            _added=self._added + array.size // max(channels, 1),
            _weighs=self._weighs or where is not None or weights is not None,
        )
        return merged

    def normalize(
        self,
        x: npt.ArrayLike,
        *,
        out: Array | None = None,
        where: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> Array:
        """Normalize a piece by the moments of all pieces; `out` may be the piece itself."""
        self._require_batch()
        given = self.moments, self._weight, self._bias
        options = {**self._later, "where": where, "weights": weights}
        y = normalize(self._piece(x), *given, out=out, **options)
        self._complete = True
        return y

    def add_gradient(
        self,
        dy: npt.ArrayLike,
        x: npt.ArrayLike,
        *,
        where: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> GradSums:
        """Add the sums of a piece, and return those of all pieces so far."""
        self._require_batch()
        array = self._piece(x)
        options = {**self._later, "where": where, "weights": weights}
        found = grad_sums(dy, array, self.moments, **options)
        total = found if self._sums is None else self._sums + found
        summed = self._summed + array.size // max(found.sum_dy.shape[0], 1)
        vars(self).update(_sums=total, _summed=summed)
        return total

    def grad_input(
        self,
        dy: npt.ArrayLike,
        x: npt.ArrayLike,
        *,
        out: Array | None = None,
        where: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> Array:
        """Compute dx of a piece from all sums; `out` may be `dy` or the piece itself."""
        sums = self._whole_sums()
        given = self._piece(x), self.moments, sums, self._weight
        options = {**self._later, "where": where, "weights": weights}
        return grad_input(dy, *given, out=out, **options)

    def _piece(self, x: npt.ArrayLike) -> Array:
        """Return a piece as an array, which must have the first piece's dtype."""
        array = data_array("x", x)
        if self._dtype is not None and not layout.has_dtype(array, self._dtype):
            raise TypeError(f"x: expected {self._dtype} as in the first piece, got {array.dtype}")
        return array

    def _require_batch(self) -> None:
        if self.moments.count.size and self._added == 1 and not self._weighs:
            raise ValueError(
                "Expected more than 1 value per channel when training, got 1 in all pieces"
            )

    # Both passes over all pieces

    def forward(
        self,
        pieces: Iterable[npt.ArrayLike],
        *,
        where: Iterable[npt.ArrayLike] | None = None,
        weights: Iterable[npt.ArrayLike] | None = None,
    ) -> Iterator[Array]:
        """Compute the moments of all pieces immediately; return an iterator over their y.

        Parameters
        ----------
        pieces : iterable of array_like
            A list, or any object that gives the same pieces when it is iterated over again.
        where, weights : iterable of array_like, optional
            What counts in each piece, as in `batch_norm_train`; lists or such objects, too.

        Returns
        -------
        iterator of ndarray
            y of each piece, computed when the iterator reaches it.

        Raises
        ------
        RuntimeError
            If pieces were added before, or there are no pieces.
        TypeError, ValueError
            As `batch_norm_train`; and if the pieces cannot be iterated over again, or differ in
            their dtypes or channels.
        """
        if self._moments is not None:
            raise RuntimeError("forward: expected a new MicroBatches, got one with pieces added")
        repeatable("pieces", pieces)
        before = self._weighs
        try:
            for x, counted in _counted(where, weights, pieces):
                self.add(x, **counted)
            if self._dtype is None:
                raise RuntimeError("pieces: expected at least one piece, got none")
            self._require_batch()
            given = _counted(where, weights, pieces)
            return (self.normalize(x, **counted) for x, counted in given)
        except BaseException:
            vars(self).update(_moments=None, _dtype=None, _added=0, _weighs=before)
            raise

    def backward(
        self,
        dys: Iterable[npt.ArrayLike],
        pieces: Iterable[npt.ArrayLike],
        *,
        where: Iterable[npt.ArrayLike] | None = None,
        weights: Iterable[npt.ArrayLike] | None = None,
    ) -> Iterator[Array]:
        """Compute the sums over all pieces immediately; return an iterator over their dx.

        `dweight` and `dbias` are available immediately, too.

        Parameters
        ----------
        dys, pieces : iterable of array_like
            The gradients with respect to y, and the pieces of `forward`: lists, or objects that
            give the same arrays when they are iterated over again.
        where, weights : iterable of array_like, optional
            As in `forward`.

        Returns
        -------
        iterator of ndarray
            dx of each piece, computed when the iterator reaches it.
        """
        if self._sums is not None:
            raise RuntimeError("backward: expected no sums yet, got some of add_gradient")
        repeatable("dys", dys), repeatable("pieces", pieces)
        try:
            for dy, x, counted in _counted(where, weights, dys, pieces):
                self.add_gradient(dy, x, **counted)
            self._whole_sums()
            given = _counted(where, weights, dys, pieces)
            return (self.grad_input(dy, x, **counted) for dy, x, counted in given)
        except BaseException:
            vars(self).update(_sums=None, _summed=0)
            raise


def repeatable(name: str, value: Iterable[Any]) -> Iterable[Any]:
    """Return `value`, which must be an iterable that starts anew every time."""
    if not isinstance(value, Iterable) or isinstance(value, Iterator):
        raise TypeError(
            f"{name}: expected an iterable that starts anew every time, such as a list, "
            f"got {scalars.shown(value)}"
        )
    return value


def _counted(
    where: Iterable[Any] | None, weights: Iterable[Any] | None, *lists: Iterable[Any]
) -> Iterator[tuple[Any, ...]]:
    """Yield the items of the lists side by side, and with them `where` and `weights` by name."""
    optional = {"where": where, "weights": weights}
    given = {name: repeatable(name, v) for name, v in optional.items() if v is not None}
    for items in zip(*lists, *given.values(), strict=True):
        counted = dict(zip(given, items[len(lists) :], strict=True))
        yield (*items[: len(lists)], counted)
