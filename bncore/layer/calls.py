"""The calls of a batch norm layer: forward and backward, in every mode.

The functions of `bncore.functions` do all computations, so the layer gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, problem, scalars
from bncore.arguments.arrays import data_array, memory_of
from bncore.arguments.weights import PROPAGATE, NanPolicy
from bncore.functions import steps
from bncore.functions.infer import batch_norm_infer, batch_norm_infer_backward
from bncore.functions.running_stats import update_running_stats
from bncore.functions.train import batch_norm_train, batch_norm_train_backward
from bncore.layer import averages
from bncore.layer.rollback import all_or_nothing, copies, write_back
from bncore.layer.settings import RUNNING, Array
from bncore.layer.state import (
    EVALUATED,
    USED,
    LayerState,
    Saved,
    cast,
    finite,
    require_finite,
    weight_for_sums,
)
from bncore.statistics import Moments, Stat, require_divisors


class LayerCalls(LayerState):
    """Forward and backward of `bncore.BatchNorm`, whose docstring explains the modes."""

    def forward(
        self,
        x: npt.ArrayLike,
        residual: npt.ArrayLike | None = None,
        *,
        out: Array | None = None,
        update_stats: bool = True,
        where: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
        nan_policy: NanPolicy = "propagate",
        fill: float | None = None,
    ) -> Array:
        """Normalize x by the statistics that the mode selects.

        Parameters
        ----------
        x : array_like of float16, bfloat16, float32 or float64, of 2 or more dimensions
            In training the layer keeps x itself, not a copy, until backward.  Do not change x or
            the parameters before.
        residual : array_like, optional
            An array of x's shape and dtype that is added before the activation.  If there is an
            activation, the layer keeps it until backward, as it keeps x.
        out : ndarray, optional
            The array that receives y.  In training it must not overlap the arrays that the layer
            keeps; in evaluation it may be x or the residual itself.
        update_stats : bool, default True
            If False, a training forward does not change the running statistics.
        where, weights, nan_policy, fill
            As in `batch_norm_train`; in training the layer keeps the arrays until backward.  In
            evaluation and after `freeze`, what counts matters for `fill` alone.

        Returns
        -------
        ndarray
            `out`, or a new array of x's shape, dtype and memory order.

        Raises
        ------
        TypeError, ValueError
            As `batch_norm_train` and `batch_norm_infer`; and if x has another number of channels.
        FloatingPointError
            If ``on_nonfinite`` is "raise" and a statistic is not finite.  Whatever was raised,
            nothing has been written or changed.
        """
        counted: dict[str, Any] = {}
        options = self._options
        if not (where is weights is fill is None and nan_policy is PROPAGATE):
            counted = {"where": where, "weights": weights, "nan_policy": nan_policy, "fill": fill}
            options = options | counted
        if type(x) is not np.ndarray:
            x = data_array("x", x)
        if residual is not None and type(residual) is not np.ndarray:
            residual = data_array("residual", residual)
        if update_stats is not True:
            update_stats = scalars.boolean("update_stats", update_stats)
        if not self._built:
            return self._first(x, residual, out, update_stats, counted)
        count = self._count(x)
        if not self.training:
            return self._evaluate(x, residual, out, options)
        if out is not None:
            self._require_apart(out, x, residual)
        if self._frozen or (self._on_single == "running" and self._is_single(x, count, counted)):
            return self._by_running(x, residual, out, options)
        track = update_stats and self._tracks
        if out is not None and track:
            self._require_writable(RUNNING)  # before y is written
        y, moments = self._by_batch(x, residual, out, count, options, track)
        self._take_over(x, residual, moments, track, options)
        return y

    def __call__(
        self,
        x: npt.ArrayLike,
        residual: npt.ArrayLike | None = None,
        *,
        out: Array | None = None,
        update_stats: bool = True,
        where: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
        nan_policy: NanPolicy = "propagate",
        fill: float | None = None,
    ) -> Array:
        """Compute `forward`."""
        return self.forward(
            x, residual, out=out, update_stats=update_stats, where=where, weights=weights,
            nan_policy=nan_policy, fill=fill,
        )  # fmt: skip

    def backward(
        self, dy: npt.ArrayLike, *, out: Array | None = None, dresidual: Array | None = None
    ) -> Array:
        """Compute the gradients of the last training forward; only once for each forward.

        Parameters
        ----------
        dy : array_like
            Gradient of the loss with respect to y, of x's shape and dtype.
        out : ndarray, optional
            The array that receives dx; it may be `dy` itself.
        dresidual : ndarray, optional
            The array that receives the gradient of the residual; it may be `dy` itself.

        Returns
        -------
        dx : ndarray
            `out`, or a new array of x's shape, dtype and memory order.  The attributes `dweight`
            and `dbias` become new arrays in their parameters' dtypes.

        Raises
        ------
        RuntimeError
            If there has been no training forward since the last backward.
        TypeError, ValueError
            As `batch_norm_train_backward`.  You may call backward again after such an error.
        """
        saved = self._saved
        if not isinstance(saved, Saved):
            raise RuntimeError(saved)
        options, x, residual, statistics = saved
        weight, bias = self._weight, self._bias
        factor = weight_for_sums(x, weight, bias)
        given = {**options, "bias": bias, "residual": residual}
        given |= {"out": out, "dresidual": dresidual}
        if isinstance(statistics, Moments):
            dx, dweight, dbias = batch_norm_train_backward(dy, x, statistics, factor, **given)
        else:
            mean, var = statistics
            dx, dweight, dbias = batch_norm_infer_backward(dy, x, mean, var, factor, **given)
        changes: dict[str, Any] = {"_saved": USED}
        if weight is not None:
            changes["dweight"] = cast(dweight, weight)
        if bias is not None:
            changes["dbias"] = cast(dbias, bias)
        vars(self).update(changes)  # one step, which nothing can interrupt
        return dx

    @all_or_nothing
    def _first(
        self,
        x: Array,
        residual: Array | None,
        out: Array | None,
        update_stats: bool,
        counted: dict[str, Any],
    ) -> Array:
        """Take channels and dtype from the first x if the layer lacks them, and do the call."""
        p = problem.Problem(x, self.axis)
        channels = p.channels if self._channels is None else self._channels
        self._build(channels, p.statistic_dtype if self._dtype is None else self._dtype)
        return self.forward(x, residual, out=out, update_stats=update_stats, **counted)

    def _count(self, x: Array) -> int:
        """Return x's number of values per channel; refuse an x that does not fit the layer."""
        axis, channels = self._options["axis"], self._channels
        try:
            size = x.shape[axis]
        except IndexError:
            size = problem.Problem(x, axis).channels  # raises
        if size != channels:
            raise ValueError(
                f"x: expected {channels} channels along axis {axis}, got shape {x.shape}"
            )
        return x.size // channels if channels else 0

    def _is_single(self, x: Array, count: int, counted: dict[str, Any]) -> bool:
        """Tell whether a channel has one value only, or one that counts."""
        if all(counted.get(name) is None for name in ("where", "weights")) and (
            counted.get("nan_policy", PROPAGATE) is PROPAGATE
        ):
            return count == 1
        p = problem.Problem(x, self.axis)
        return bool((p.weights(**counted).numbers(p.x) == 1).any())

    def _require_apart(self, out: Any, x: Array, residual: Array | None) -> None:
        """Refuse an output that would change what backward needs."""
        if not issubclass(type(out), np.ndarray):
            return  # refused later
        memory = memory_of(out)
        kept = {"x": x, "residual": None if self.activation is None else residual}
        for name, array in kept.items():
            if array is not None and layout.share_memory(memory, array):
                raise ValueError(
                    f"out: expected memory apart from {name}, which backward needs, got an overlap"
                )

    def _evaluate(
        self, x: Array, residual: Array | None, out: Array | None, options: dict[str, Any]
    ) -> Array:
        """Normalize by the running statistics, or by the batch's if there are none."""
        weight, bias = self._weight, self._bias
        if self._tracks:
            mean, var = self._running()
            y = batch_norm_infer(x, mean, var, weight, bias, out=out, residual=residual, **options)
        else:
            y, _ = batch_norm_train(x, weight, bias, out=out, residual=residual, **options)
        self._saved = EVALUATED
        return y

    def _by_running(
        self, x: Array, residual: Array | None, out: Array | None, options: dict[str, Any]
    ) -> Array:
        """Normalize by the running statistics, and keep the arrays that backward needs."""
        mean, var = (array.copy() for array in self._running())
        weight, bias = self._weight, self._bias
        y = batch_norm_infer(x, mean, var, weight, bias, out=out, residual=residual, **options)
        self._saved = self._kept(x, residual, (mean, var), options)
        return y

    def _by_batch(
        self,
        x: Array,
        residual: Array | None,
        out: Array | None,
        count: int,
        options: dict[str, Any],
        track: bool,
    ) -> tuple[Array, Moments]:
        """Normalize by the statistics of the batch."""
        weight, bias = self._weight, self._bias
        refuses, weighs = self._on_nonfinite == "raise", options is not self._options
        if out is None or not (refuses or weighs):
            y, moments = batch_norm_train(x, weight, bias, out=out, residual=residual, **options)
            if refuses:
                require_finite(moments)
            return y, moments
        # Compute the statistics first, because nothing may be written before we know that the
        # layer takes them.  The two calls give the same bits as one.  If x must be copied, they
        # share one copy.
        if count <= 1 and not weighs:
            problem.Problem(x, options["axis"]).require_batch()
        x = layout.in_one_block(x)
        names = ("axis", "n_threads", "where", "weights", "nan_policy")
        moments = steps.moments(x, **{name: options[name] for name in names if name in options})
        if refuses:
            require_finite(moments)
        if track and weighs:
            self._require_divisors(moments)
        y = batch_norm_infer(
            x, moments.mean, moments.var(), weight, bias, out=out, residual=residual, **options
        )
        return y, moments

    def _require_divisors(self, moments: Moments) -> None:
        """Refuse a batch whose mask or weights leave no variance for the running statistics."""
        require_divisors(
            moments.count, self._correction, "x: expected a sum of weights per channel"
        )

    def _kept(
        self,
        x: Array,
        residual: Array | None,
        statistics: Moments | tuple[Stat, Stat],
        options: dict[str, Any],
    ) -> Saved:
        """Return what backward needs; the residual only if there is an activation."""
        return Saved(options, x, None if options["activation"] is None else residual, statistics)

    def _take_over(
        self,
        x: Array,
        residual: Array | None,
        moments: Moments,
        track: bool,
        options: dict[str, Any],
    ) -> None:
        """Make all changes of a training forward to the layer, or none of them.

        An exception such as KeyboardInterrupt can come between any two steps.  All attributes
        change in one step, which nothing can interrupt.  The running statistics change in place
        before that step; if it is not reached, they get their old values back.
        """
        changes: dict[str, Any] = {"_saved": self._kept(x, residual, moments, options)}
        some = bool(moments.count.any())  # values, in any channel
        if some:
            changes["moments"] = moments
        if not some or not track or (self._on_nonfinite == "skip" and not finite(moments)):
            vars(self).update(changes)
            return
        if options is not self._options:
            self._require_divisors(moments)
        tracked, missed = self._num_batches_tracked, self._missed
        new = averages.after(moments, tracked, missed)
        changes["_num_batches_tracked"], changes["_missed"] = new
        mean, var = self._running()
        before = copies((mean, var))
        try:
            for number, part in averages.by_batches(moments, tracked, missed):
                momentum = averages.weight_of_new(self._momentum, self._debias, number)
                update_running_stats(
                    mean, var, part, momentum=momentum, correction=self._correction
                )
            vars(self).update(changes)
        except BaseException:
            if self._saved is not changes["_saved"]:
                write_back(before)
            raise
