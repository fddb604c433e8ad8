"""Batch normalization as a layer: parameters, running statistics, and what backward needs.

It computes nothing itself: the functions of `bncore.functions` do, with the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout as placement
from bncore.arguments import problem, scalars
from bncore.functions import steps as parts
from bncore.functions.fold import ScaleShift, as_scale_shift
from bncore.functions.infer import batch_norm_infer, batch_norm_infer_backward
from bncore.functions.running_stats import update_running_stats
from bncore.functions.train import batch_norm_train, batch_norm_train_backward
from bncore.layer.interchange import Conventions
from bncore.layer.rollback import all_or_nothing, copies, write_back
from bncore.layer.settings import RUNNING, Array
from bncore.layer.state import (
    EVALUATED,
    USED,
    Saved,
    cast,
    finite,
    require_finite,
    weight_for_sums,
    weight_of_new,
)
from bncore.statistics import Moments, Stat


class BatchNorm(Conventions):
    """Batch normalization with parameters, running statistics and gradients.

    In training the batch's own statistics normalize, and the running statistics move towards them;
    in evaluation, after `eval`, the running statistics normalize.  After `freeze` they normalize in
    training as well, and gradients flow through, to weight and bias too.

    Parameters
    ----------
    channels : int, optional
        Where it is None, the first call finds it from x.
    axis, eps, activation, negative_slope, n_threads
        As in `batch_norm_train`.
    momentum : float or None, default 0.1
        Weight of the *new* batch, as in PyTorch; None gives every batch the same weight: the
        average over all of them.
    affine : bool, "weight" or "bias", default True
        Which parameters there are.
    dtype : dtype, optional
        Of the parameters; that of the first x where it is None.  The running statistics are float64
        whatever it is: a step of ``momentum * difference`` that float32 would round away adds up,
        and ``1 / t`` of a cumulative average becomes small.
    correction : float from 0 to 1, default 1
        Of the running variance, m2 / (count - correction): 1 as in PyTorch, 0 as in Keras, Flax
        and ONNX.  The batch is normalized by the population variance in any case.
    debias : bool, default False
        Keep the initial 0 and 1 out of the running statistics: the first batch replaces them, and
        they are right from then on.
    track_running_stats : bool, default True
        False: no running statistics, and batch statistics in evaluation as well.
    on_nonfinite : {"propagate", "skip", "raise"}
        What a batch does whose mean or variance is NaN or infinite in any channel.  "propagate": it
        enters the running statistics of these channels, as elsewhere.  "skip": y and the gradients
        are what they are, but the whole batch is left out of the running statistics, so that all
        channels average the same batches.  "raise": `FloatingPointError` in training, before
        anything has changed.  It is about the batch's own statistics: where the running ones
        normalize, frozen or by `on_single`, none are computed, and nothing is raised.
    on_single : {"raise", "running"}
        What training does with one value per channel, whose variance says nothing: `ValueError`, or
        normalize by the running statistics, as after `freeze`, and leave them alone.

    Attributes
    ----------
    weight, bias : (C,) ndarray or None
        gamma and beta, 1 and 0 at first; they may be changed in place or assigned.
    dweight, dbias : (C,) ndarray or None
        Their gradients by the last backward.
    running_mean, running_var : (C,) ndarray of float64 or None
        0 and 1 at first.
    num_batches_tracked : int
        Batches in the running statistics.
    moments : Moments or None
        Of the last training forward that used the batch's statistics, empty batches apart.
    training, frozen : bool
        The mode.

    Notes
    -----
    An empty batch gives an empty y and leaves parameters, running statistics and `moments` alone;
    a backward after it is its own, with an empty dx and gradients of 0.  A call that raises has
    changed nothing, and a backward is still that of the forward before.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithms 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> layer = bncore.BatchNorm(debias=True, eps=0.0)
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
    >>> layer(x)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> dx = layer.backward(np.array([[1.0, 0.0], [2.0, 0.0]]))
    >>> layer.dweight, layer.dbias
    (array([1., 0.]), array([3., 0.]))
    >>> layer.running_mean, layer.running_var
    (array([1., 3.]), array([2., 8.]))
    >>> layer.eval()
    BatchNorm(2, eps=0.0, dtype=float64, debias=True): evaluation, 1 batch tracked
    """

    # Calls

    def forward(
        self,
        x: npt.ArrayLike,
        residual: npt.ArrayLike | None = None,
        *,
        out: Array | None = None,
        update_stats: bool = True,
    ) -> Array:
        """Normalize x, as the mode says.

        Parameters
        ----------
        x : array_like of float32 or float64, of 2 or more dimensions
            In training it is kept, not copied, until backward: do not change it before, nor the
            parameters.
        residual : array_like, optional
            Added before the activation; of x's shape and dtype.  Kept as x is, where there is an
            activation.
        out : ndarray, optional
            Where y goes.  In training apart from what is kept; in evaluation it may be x or the
            residual itself.
        update_stats : bool, default True
            False: a training forward leaves the running statistics alone.

        Returns
        -------
        ndarray
            `out`, or a new array of x's shape, dtype and memory order.

        Raises
        ------
        TypeError, ValueError
            As `batch_norm_train` and `batch_norm_infer`; and if x has another number of channels.
        FloatingPointError
            With ``on_nonfinite="raise"``.  Nothing has been written or changed, whatever was
            raised.
        """
        if type(x) is not np.ndarray:
            x = problem.data_array("x", x)
        if residual is not None and type(residual) is not np.ndarray:
            residual = problem.data_array("residual", residual)
        if update_stats is not True:
            update_stats = scalars.boolean("update_stats", update_stats)
        if not self._built:
            return self._first(x, residual, out, update_stats)
        count = self._count(x)
        if not self.training:
            return self._evaluate(x, residual, out)
        if out is not None:
            self._require_apart(out, x, residual)
        if self._frozen or (count == 1 and self._on_single == "running"):
            return self._by_running(x, residual, out)
        if out is not None and update_stats and self._tracks:
            self._require_writable(RUNNING)  # before y is written
        y, moments = self._by_batch(x, residual, out, count)
        self._take_over(x, residual, moments, update_stats and self._tracks)
        return y

    def __call__(
        self,
        x: npt.ArrayLike,
        residual: npt.ArrayLike | None = None,
        *,
        out: Array | None = None,
        update_stats: bool = True,
    ) -> Array:
        """Do `forward`."""
        return self.forward(x, residual, out=out, update_stats=update_stats)

    def backward(
        self, dy: npt.ArrayLike, *, out: Array | None = None, dresidual: Array | None = None
    ) -> Array:
        """Compute the gradients of the last training forward, once.

        Parameters
        ----------
        dy : array_like
            Gradient of the loss by y; of x's shape and dtype.
        out : ndarray, optional
            Where dx goes; it may be `dy` itself.
        dresidual : ndarray, optional
            Where the gradient by the residual goes; it may be `dy` itself.

        Returns
        -------
        dx : ndarray
            `out`, or a new array of x's shape, dtype and memory order.  `dweight` and `dbias` are
            new arrays in their parameters' dtypes.

        Raises
        ------
        RuntimeError
            If there was no training forward since the last backward.
        TypeError, ValueError
            As `batch_norm_train_backward`; then backward may be called again.
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
        self, x: Array, residual: Array | None, out: Array | None, update_stats: bool
    ) -> Array:
        """Find out what the layer has to know from the first x, and do the call."""
        p = problem.Problem(x, self.axis)
        channels = p.channels if self._channels is None else self._channels
        self._build(channels, p.dtype if self._dtype is None else self._dtype)
        return self.forward(x, residual, out=out, update_stats=update_stats)

    def _count(self, x: Array) -> int:
        """Return the number of values per channel of an x that fits."""
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

    def _require_apart(self, out: Any, x: Array, residual: Array | None) -> None:
        """Refuse an output that would change what backward needs."""
        if not issubclass(type(out), np.ndarray):
            return  # refused later
        memory = problem.memory_of(out)
        kept = {"x": x, "residual": None if self.activation is None else residual}
        for name, array in kept.items():
            if array is not None and placement.share_memory(memory, array):
                raise ValueError(
                    f"out: expected memory apart from {name}, which backward needs, got an overlap"
                )

    def _evaluate(self, x: Array, residual: Array | None, out: Array | None) -> Array:
        """Normalize by the running statistics, or by the batch's where there are none."""
        weight, bias, options = self._weight, self._bias, self._options
        if self._tracks:
            mean, var = self._running()
            y = batch_norm_infer(x, mean, var, weight, bias, out=out, residual=residual, **options)
        else:
            y, _ = batch_norm_train(x, weight, bias, out=out, residual=residual, **options)
        self._saved = EVALUATED
        return y

    def _by_running(self, x: Array, residual: Array | None, out: Array | None) -> Array:
        """Normalize by the running statistics and keep what backward needs."""
        mean, var = (array.copy() for array in self._running())
        weight, bias, options = self._weight, self._bias, self._options
        y = batch_norm_infer(x, mean, var, weight, bias, out=out, residual=residual, **options)
        self._saved = self._kept(x, residual, (mean, var))
        return y

    def _by_batch(
        self, x: Array, residual: Array | None, out: Array | None, count: int
    ) -> tuple[Array, Moments]:
        """Normalize by the statistics of the batch."""
        weight, bias, options = self._weight, self._bias, self._options
        if self._on_nonfinite != "raise":
            return batch_norm_train(x, weight, bias, out=out, residual=residual, **options)
        if out is None:
            y, moments = batch_norm_train(x, weight, bias, residual=residual, **options)
            require_finite(moments)
            return y, moments
        # The statistics come first, since nothing may be written before they are known to be
        # finite.  Two calls give the same bits as one, and share one copy of an x with gaps.
        if count <= 1:
            problem.Problem(x, options["axis"]).require_batch()
        x = placement.in_one_block(x)
        moments = parts.moments(x, axis=options["axis"], n_threads=options["n_threads"])
        require_finite(moments)
        y = batch_norm_infer(
            x, moments.mean, moments.var(), weight, bias, out=out, residual=residual, **options
        )
        return y, moments

    def _kept(
        self, x: Array, residual: Array | None, statistics: Moments | tuple[Stat, Stat]
    ) -> Saved:
        """Return what backward needs: the residual only where an activation reads its sign."""
        options = self._options
        return Saved(options, x, None if options["activation"] is None else residual, statistics)

    def _take_over(self, x: Array, residual: Array | None, moments: Moments, track: bool) -> None:
        """Take over what a training forward changes in the layer: all of it or nothing.

        An exception such as KeyboardInterrupt can come between any two steps.  All attributes
        change in one step, which nothing can interrupt; the running statistics, which change in
        place before it, go back to what they were where that step was not reached.
        """
        changes: dict[str, Any] = {"_saved": self._kept(x, residual, moments)}
        if moments.count:
            changes["moments"] = moments
        if not moments.count or not track or (self._on_nonfinite == "skip" and not finite(moments)):
            vars(self).update(changes)
            return
        tracked = self._num_batches_tracked
        changes["_num_batches_tracked"] = tracked + 1
        momentum = weight_of_new(self._momentum, self._debias, tracked)
        mean, var = self._running()
        before = copies((mean, var))
        try:
            update_running_stats(mean, var, moments, momentum=momentum, correction=self._correction)
            vars(self).update(changes)
        except BaseException:
            if self._num_batches_tracked == tracked:
                write_back(before)
            raise

    def as_scale_shift(self) -> ScaleShift:
        """Return evaluation without the activation as ``x * scale + shift``; see the function."""
        if not self._tracks:
            raise ValueError(
                "as_scale_shift: expected a layer with running statistics, got one without"
            )
        mean, var = self.running_mean, self.running_var
        return as_scale_shift(mean, var, self.weight, self.bias, eps=self.eps)
