"""Batch normalization as a layer: parameters, running statistics, and what backward needs.

It computes nothing itself: `bncore.api` and `bncore.inference` do, with the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from bncore import layer_state as ls
from bncore import parts, problem, scalars
from bncore.api import batch_norm_train, batch_norm_train_backward
from bncore.inference import batch_norm_infer, batch_norm_infer_backward
from bncore.running import update_running_stats
from bncore.statistics import Moments, Stat

Array: TypeAlias = npt.NDArray[np.floating[Any]]

NO_FORWARD = "backward: expected a training forward before it, got none"
USED = "backward: expected a training forward before every backward, got a second backward"
EVALUATED = (
    "backward: expected a training forward before it, got one in evaluation, which keeps nothing "
    "(freeze() normalizes by the running statistics and keeps what backward needs)"
)
COPIED = "backward: expected a training forward before it, got a copy, which is without"


class Saved(NamedTuple):
    """What backward needs of a forward call."""

    options: dict[str, Any]
    x: Array
    residual: Array | None  # where there is an activation
    moments: Moments | None  # of the batch; None where the running statistics normalized
    running: tuple[Stat, Stat] | None


class BatchNorm:
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
        anything has changed.
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
        Of the last training forward that used the batch's statistics.
    training, frozen : bool
        The mode.

    Notes
    -----
    An empty batch gives an empty y and changes no statistics.  A call that raises has changed
    nothing.

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
    BatchNorm(2, eps=0.0, debias=True): evaluation, 1 batch tracked
    """

    axis = ls.option("axis", ls.axis, "The channel axis.")
    eps = ls.option("eps", ls.at_least_0, "Added to the variance.")
    activation = ls.option("activation", ls.activation, "The activation, or None.")
    negative_slope = ls.option("negative_slope", ls.at_least_0, "Slope of leaky relu.")
    n_threads = ls.option("n_threads", ls.threads, "At most so many threads, or None.")
    momentum = ls.setting("momentum", ls.share_or_none, "Weight of the new batch, or None.")
    correction = ls.setting("correction", ls.share, "Correction of the running variance.")
    debias = ls.setting("debias", scalars.boolean, "Whether the initial values are kept out.")
    on_nonfinite = ls.setting(
        "on_nonfinite", ls.one_of("propagate", "skip", "raise"), "What a bad batch does."
    )
    on_single = ls.setting("on_single", ls.one_of("raise", "running"), "What one value does.")
    num_batches_tracked = ls.setting(ls.BATCHES, ls.batches, "Batches tracked.")
    weight = ls.array("weight", "gamma, or None.")
    bias = ls.array("bias", "beta, or None.")
    running_mean = ls.array("running_mean", "Running mean, or None; assigning copies.")
    running_var = ls.array("running_var", "Running variance, or None; assigning copies.")

    def __init__(
        self,
        channels: SupportsIndex | None = None,
        *,
        axis: SupportsIndex = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool | Literal["weight", "bias"] = True,
        dtype: npt.DTypeLike | None = None,
        correction: float = 1,
        debias: bool = False,
        track_running_stats: bool = True,
        activation: Literal["relu", "leaky_relu"] | None = None,
        negative_slope: float = 0.01,
        on_nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        on_single: Literal["raise", "running"] = "raise",
        n_threads: int | None = None,
    ) -> None:
        self._options: dict[str, Any] = {}
        self.axis, self.eps, self.n_threads = axis, eps, n_threads
        self.activation, self.negative_slope = activation, negative_slope
        self.momentum, self.correction, self.debias = momentum, correction, debias
        self.on_nonfinite, self.on_single = on_nonfinite, on_single
        self._affine = ls.affine(affine)
        self._tracks = scalars.boolean("track_running_stats", track_running_stats)
        if not self._tracks and on_single == "running":
            raise ValueError(
                "on_single: expected 'raise' without running statistics, got 'running'"
            )
        self._dtype = None if dtype is None else ls.floating("dtype", dtype)
        self.training, self._frozen = True, False
        self._channels: int | None = None
        self._weight: Array | None = None
        self._bias: Array | None = None
        self._running_mean: Stat | None = None
        self._running_var: Stat | None = None
        self._built = False
        self.dweight: Array | None = None
        self.dbias: Array | None = None
        self.num_batches_tracked = 0
        self.moments: Moments | None = None
        self._saved: Saved | str = NO_FORWARD
        if channels is not None:
            self._build(scalars.integer_at_least("channels", channels, 0), self._dtype)

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
            In training it is kept, not copied, until backward: do not change it before.
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
        y, moments = self._by_batch(x, residual, out)
        if update_stats and self._tracks:
            self._track(moments)
        self.moments = moments
        options = self._options
        kept = None if options["activation"] is None else residual
        self._saved = Saved(options, x, kept, moments, None)
        return y

    __call__ = forward

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
        options, x, residual, moments, running = saved
        given: dict[str, Any] = {
            "bias": self._bias,
            "residual": residual,
            "out": out,
            "dresidual": dresidual,
        }
        weight = self._weight
        if moments is not None:
            dx, dweight, dbias = batch_norm_train_backward(
                dy, x, moments, weight, **given, **options
            )
        else:
            assert running is not None
            dx, dweight, dbias = batch_norm_infer_backward(
                dy, x, *running, weight, **given, **options
            )
        if weight is not None:
            self.dweight = dweight
        if self._bias is not None:
            self.dbias = dbias if dbias.dtype == self._bias.dtype else ls.cast(dbias, self._bias)
        self._saved = USED
        return dx

    def _first(self, x: Array, residual: Any, out: Array | None, update_stats: bool) -> Array:
        """Find out what the layer has to know from the first x, and call; all or nothing."""
        before = dict(self.__dict__)
        try:
            p = problem.Problem(x, self.axis)
            channels = p.channels if self._channels is None else self._channels
            self._build(channels, p.dtype if self._dtype is None else self._dtype)
            return self.forward(x, residual, out=out, update_stats=update_stats)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

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

    def _require_apart(self, out: Any, x: Array, residual: Any) -> None:
        """Refuse an output that would change what backward needs."""
        kept = {"x": x, "residual": None if self.activation is None else residual}
        for name, array in kept.items():
            if (
                isinstance(out, np.ndarray)
                and isinstance(array, np.ndarray)
                and problem.share_memory(out, array)
            ):
                raise ValueError(
                    f"out: expected memory apart from {name}, which backward needs, got an overlap"
                )

    def _evaluate(self, x: Array, residual: Any, out: Array | None) -> Array:
        """Normalize by the running statistics, or by the batch's where there are none."""
        given: dict[str, Any] = {"residual": residual, "out": out, **self._options}
        if self._tracks:
            running: Any = (self._running_mean, self._running_var)
            y = batch_norm_infer(x, *running, self._weight, self._bias, **given)
        else:
            y, _ = batch_norm_train(x, self._weight, self._bias, **given)
        self._saved = EVALUATED
        return y

    def _by_running(self, x: Array, residual: Any, out: Array | None) -> Array:
        """Normalize by the running statistics and keep what backward needs."""
        assert self._running_mean is not None and self._running_var is not None
        running = self._running_mean.copy(), self._running_var.copy()
        options = self._options
        y = batch_norm_infer(
            x, *running, self._weight, self._bias, out=out, residual=residual, **options
        )
        kept = None if options["activation"] is None else residual
        self._saved = Saved(options, x, kept, None, running)
        return y

    def _by_batch(self, x: Array, residual: Any, out: Array | None) -> tuple[Array, Moments]:
        """Normalize by the statistics of the batch."""
        weight, bias, options = self._weight, self._bias, self._options
        if self._on_nonfinite != "raise":
            return batch_norm_train(x, weight, bias, out=out, residual=residual, **options)
        if out is None:
            y, moments = batch_norm_train(x, weight, bias, residual=residual, **options)
            ls.require_finite(moments)
            return y, moments
        # The statistics first, since nothing may be written; the same bits in two passes.
        p = problem.Problem(x, options["axis"])
        p.require_batch()
        moments = parts.moments(x, axis=options["axis"], n_threads=options["n_threads"])
        ls.require_finite(moments)
        y = batch_norm_infer(
            x, moments.mean, moments.var(), weight, bias, out=out, residual=residual, **options
        )
        return y, moments

    def _track(self, moments: Moments) -> None:
        """Move the running statistics towards those of a batch."""
        if moments.count == 0 or (self._on_nonfinite == "skip" and not ls.finite(moments)):
            return
        tracked = self._num_batches_tracked
        momentum = ls.weight_of_new(self._momentum, self._debias, tracked)
        update_running_stats(
            self._running_mean,  # type: ignore[arg-type]  # there, since the layer tracks
            self._running_var,  # type: ignore[arg-type]
            moments,
            momentum=momentum,
            correction=self._correction,
        )
        self._num_batches_tracked = tracked + 1

    # Modes

    def train(self, mode: bool = True) -> Self:
        """Switch to training, or with False to evaluation; return the layer."""
        self.training = scalars.boolean("mode", mode)
        return self

    def eval(self) -> Self:
        """Switch to evaluation; return the layer."""
        return self.train(False)

    def freeze(self, mode: bool = True) -> Self:
        """Let the running statistics normalize in training, too, or with False no longer.

        `train` and `eval` do not change it.  Return the layer.
        """
        mode = scalars.boolean("mode", mode)
        if mode and not self._tracks:
            raise ValueError("freeze: expected a layer with running statistics, got one without")
        self._frozen = mode
        return self

    @property
    def frozen(self) -> bool:
        """Whether the running statistics normalize in training."""
        return self._frozen

    # State

    @property
    def channels(self) -> int | None:
        """Number of channels, or None where no call has found it yet."""
        return self._channels

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of new parameters, or None where no call has found it yet."""
        return self._dtype

    @property
    def affine(self) -> bool | str:
        """Which parameters there are, as the argument says it."""
        return self._affine[0] if len(self._affine) == 1 else bool(self._affine)

    @property
    def track_running_stats(self) -> bool:
        """Whether there are running statistics."""
        return self._tracks

    def parameters(self) -> list[Array]:
        """Return the parameters that there are, weight first: the arrays themselves."""
        return [getattr(self, name) for name in self._affine]

    def gradients(self) -> list[Array]:
        """Return the gradients of `parameters`, in its order.  Raise where there are none yet."""
        found = [getattr(self, f"d{name}") for name in self._affine]
        if any(gradient is None for gradient in found):
            raise RuntimeError("gradients: expected a backward before, got none")
        return found

    def _names(self) -> tuple[str, ...]:
        return (*self._affine, *((*ls.RUNNING, ls.BATCHES) if self._tracks else ()))

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of parameters and running statistics, under PyTorch's names."""
        return {name: np.array(getattr(self, name)) for name in self._names()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, in the layer's own dtypes; all of it or, where it raises, nothing.

        Parameters
        ----------
        state : mapping from name to array_like
            With exactly the names that `state_dict` gives.  A layer that does not know its channels
            or its dtype yet takes them from it.
        """
        checked = ls.checked_state(state, self._names(), self._channels)
        if not self._built:
            arrays = [array for name, array in checked.items() if name != ls.BATCHES]
            if arrays:
                dtype = arrays[0].dtype if self._dtype is None else self._dtype
                self._build(arrays[0].shape[0], ls.floating("state", dtype))
        for name, value in checked.items():
            if name == ls.BATCHES:
                self._num_batches_tracked = value
            else:
                ls.write(getattr(self, name), value)

    def reset(self) -> None:
        """Go back to a new layer's parameters and statistics, in the same arrays."""
        self.reset_running_stats()
        for name in self._affine:
            if self._built:
                getattr(self, name).fill(ls.INITIAL[name])
        self.dweight = self.dbias = self.moments = None
        self._saved = NO_FORWARD

    def reset_running_stats(self) -> None:
        """Set the running statistics to 0 and 1, of no batch."""
        if self._running_mean is not None and self._running_var is not None:
            self._running_mean.fill(0.0)
            self._running_var.fill(1.0)
        self._num_batches_tracked = 0

    def _build(self, channels: int, dtype: np.dtype[Any] | None) -> None:
        """Make the arrays that channels and dtype allow."""
        self._channels, self._dtype = channels, dtype
        if self._tracks and self._running_mean is None:
            self._running_mean = ls.initial("running_mean", channels, np.float64)
            self._running_var = ls.initial("running_var", channels, np.float64)
        if dtype is not None:
            for name in self._affine:
                setattr(self, f"_{name}", ls.initial(name, channels, dtype))
        self._built = dtype is not None or not self._affine

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_saved": COPIED}

    def __repr__(self) -> str:
        defaults = BatchNorm.__init__.__kwdefaults__
        given = [] if self._channels is None else [str(self._channels)]
        for name, default in defaults.items():
            value = getattr(self, name)
            if name != "dtype" and value != default:
                given.append(f"{name}={value!r}")
        mode = "training" if self.training else "evaluation"
        if self._frozen:
            mode += ", frozen"
        if self._tracks:
            tracked = self._num_batches_tracked
            mode += f", {tracked} batch{'' if tracked == 1 else 'es'} tracked"
        return f"BatchNorm({', '.join(given)}): {mode}"
