"""The parts of a layer other than its calls: settings, modes, arrays and running averages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from bncore.arguments import layout, scalars
from bncore.arguments.arrays import cast as cast_array
from bncore.arguments.arrays import writable_array
from bncore.arguments.bfloat16 import in_native_order
from bncore.arguments.parameters import vector
from bncore.layer import averages
from bncore.layer import settings as ls
from bncore.layer.averages import Numbers
from bncore.layer.rollback import all_or_nothing
from bncore.layer.settings import BATCHES, INITIAL, RUNNING, Array
from bncore.statistics import Moments, Stat

NO_FORWARD = "backward: expected a training forward before it, got none"
USED = "backward: expected a training forward before every backward, got a second backward"
EVALUATED = (
    "backward: expected a training forward before it, got one in evaluation, which keeps nothing "
    "(freeze() normalizes by the running statistics and keeps what backward needs)"
)
COPIED = "backward: expected a training forward before it, got a copy of a layer, which has none"


class Saved(NamedTuple):
    """What backward needs of a forward call."""

    options: dict[str, Any]
    x: Array
    residual: Array | None  # only if there is an activation
    statistics: Moments | tuple[Stat, Stat]  # the batch's, or the running mean and variance


class LayerState:
    """Settings, parameters and running statistics of `bncore.BatchNorm`; see its docstring."""

    _options: dict[str, Any]  # keyword arguments that are passed on to the functions
    _momentum: float | None
    _correction: float
    _debias: bool
    _on_nonfinite: str
    _on_single: str
    _num_batches_tracked: int
    _missed: Numbers | None = None  # how many of these batches each channel had no value in
    _weight: Array | None
    _bias: Array | None
    _running_mean: Stat | None
    _running_var: Stat | None

    axis = ls.option("axis", ls.axis, "The channel axis.")
    eps = ls.option("eps", ls.at_least_0, "Added to the variance.")
    activation = ls.option("activation", ls.activation, "The activation, or None.")
    negative_slope = ls.option("negative_slope", ls.at_least_0, "Slope of leaky relu.")
    n_threads = ls.option("n_threads", ls.threads, "The largest number of threads, or None.")
    momentum = ls.setting("momentum", ls.share_or_none, "Weight of the new batch, or None.")
    correction = ls.setting("correction", ls.share, "Correction of the running variance.")
    debias = ls.setting("debias", scalars.boolean, "Whether initial values are left out.")
    on_nonfinite = ls.setting(
        "on_nonfinite", ls.one_of("propagate", "skip", "raise"), "What to do with NaN or inf."
    )
    weight = ls.array("weight", "gamma, or None.")
    bias = ls.array("bias", "beta, or None.")
    running_mean = ls.array("running_mean", "Running mean, or None; assigning copies.")
    running_var = ls.array("running_var", "Running variance, or None; assigning copies.")

    @property
    def num_batches_tracked(self) -> int:
        """The number of batches in the running statistics; the largest one of any channel."""
        return self._num_batches_tracked

    @num_batches_tracked.setter
    def num_batches_tracked(self, value: SupportsIndex) -> None:
        self._set_batches(ls.batches(BATCHES, value))

    @property
    def on_single(self) -> str:
        """What to do in training with one value per channel."""
        return self._on_single

    @on_single.setter
    def on_single(self, value: str) -> None:
        checked = ls.on_single("on_single", value)
        if checked == "running" and not self._tracks:
            raise ValueError(
                "on_single: expected 'raise' without running statistics, got 'running'"
            )
        self._on_single = checked

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
        self._options = {}
        self.axis, self.eps, self.n_threads = axis, eps, n_threads
        self.activation, self.negative_slope = activation, negative_slope
        self.momentum, self.correction, self.debias = momentum, correction, debias
        self._affine = ls.affine(affine)
        self._tracks = scalars.boolean("track_running_stats", track_running_stats)
        self.on_nonfinite, self.on_single = on_nonfinite, on_single
        self._dtype = None if dtype is None else ls.floating("dtype", dtype)
        self.training, self._frozen = True, False
        self._channels: int | None = None
        self._weight = self._bias = self._running_mean = self._running_var = None
        self._built = False  # whether all arrays exist that the settings ask for
        self.dweight: Array | None = None
        self.dbias: Array | None = None
        self.num_batches_tracked = 0
        self.moments: Moments | None = None
        self._saved: Saved | str = NO_FORWARD
        if channels is not None:
            self._build(scalars.integer_at_least("channels", channels, 0), self._dtype)

    # Modes

    def train(self, mode: bool = True) -> Self:
        """Switch to training, or to evaluation if `mode` is False; return the layer."""
        self.training = scalars.boolean("mode", mode)
        return self

    def eval(self) -> Self:
        """Switch to evaluation; return the layer."""
        return self.train(False)

    def freeze(self, mode: bool = True) -> Self:
        """Normalize by the running statistics in training too; `mode` False ends this.

        `train` and `eval` do not change it.  Return the layer.
        """
        mode = scalars.boolean("mode", mode)
        if mode and not self._tracks:
            raise ValueError("freeze: expected a layer with running statistics, got one without")
        self._frozen = mode
        return self

    @property
    def frozen(self) -> bool:
        """Whether the layer normalizes by the running statistics in training."""
        return self._frozen

    # State

    @property
    def channels(self) -> int | None:
        """The number of channels, or None if no call has determined it yet."""
        return self._channels

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of new parameters, or None if no call has determined it yet."""
        return self._dtype

    @property
    def affine(self) -> bool | str:
        """Which parameters the layer has, in the form of the argument `affine`."""
        return self._affine[0] if len(self._affine) == 1 else bool(self._affine)

    @property
    def track_running_stats(self) -> bool:
        """Whether the layer has running statistics."""
        return self._tracks

    def parameters(self) -> list[Array]:
        """Return the layer's parameter arrays themselves (not copies), weight first."""
        return [getattr(self, name) for name in self._affine]

    def gradients(self) -> list[Array]:
        """Return the gradients in the order of `parameters`; raise if there are none yet."""
        found = [getattr(self, f"d{name}") for name in self._affine]
        if any(gradient is None for gradient in found):
            raise RuntimeError("gradients: expected a call of backward before, got none")
        return found

    def _names(self) -> tuple[str, ...]:
        return (*self._affine, *((*RUNNING, BATCHES) if self._tracks else ()))

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of parameters and running statistics, under PyTorch's names.

        ``num_batches_tracked`` has no dimension, as PyTorch's.  If some channels had no value in
        some batches, it is an array with the number of batches of each channel.
        """
        state = {name: np.array(getattr(self, name)) for name in self._names()}
        if self._missed is not None and BATCHES in state:
            state[BATCHES] = self._num_batches_tracked - self._missed
        return state

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state, converted to the layer's own dtypes; if it raises, nothing changes.

        Parameters
        ----------
        state : mapping from name to array_like
            A state with exactly the names that `state_dict` gives.  If the layer does not know its
            channels or its dtype yet, it takes them from the state.
        """
        checked = checked_state(state, self._names(), self._channels)
        self._require_writable(self._names())
        arrays = [array for name, array in checked.items() if name != BATCHES]
        if arrays and not self._built:
            dtype = self._dtype
            if dtype is None and self._affine:
                dtype = ls.floating("state", arrays[0].dtype)
            self._build(arrays[0].shape[0], dtype)
        for name, value in checked.items():
            if name == BATCHES:
                self._set_batches(value)
            else:
                ls.write(getattr(self, name), value)

    @all_or_nothing
    def reset(self) -> None:
        """Set parameters and statistics to those of a new layer; the arrays stay the same."""
        self._require_writable(self._names())
        self.reset_running_stats()
        for name in self._affine:
            if self._built:
                getattr(self, name).fill(INITIAL[name])
        self.dweight = self.dbias = self.moments = None
        self._saved = NO_FORWARD

    @all_or_nothing
    def reset_running_stats(self) -> None:
        """Set the running statistics to 0 and 1, and the number of batches to 0."""
        self._require_writable(RUNNING)
        if self._running_mean is not None and self._running_var is not None:
            self._running_mean.fill(0.0)
            self._running_var.fill(1.0)
        self._set_batches(0)

    def _set_batches(self, value: int | Numbers) -> None:
        """Set the number of batches, or that of each channel, in one step."""
        tracked, missed = (value, None) if isinstance(value, int) else averages.apart(value)
        vars(self).update(_num_batches_tracked=tracked, _missed=missed)

    def _require_writable(self, names: Iterable[str]) -> None:
        """Raise if somebody has made one of these arrays of the layer read-only."""
        for name in names:
            array = None if name == BATCHES else getattr(self, f"_{name}")
            if array is not None and not array.flags.writeable:
                writable_array(name, array)  # raises

    def _running(self) -> tuple[Stat, Stat]:
        """Return the running statistics; the layer must track them and know its channels."""
        assert self._running_mean is not None and self._running_var is not None
        return self._running_mean, self._running_var

    def _build(self, channels: int, dtype: np.dtype[Any] | None) -> None:
        """Make the arrays for which channels and dtype are known."""
        self._channels, self._dtype = channels, dtype
        if self._tracks and self._running_mean is None:
            self._running_mean = initial("running_mean", channels, np.float64)
            self._running_var = initial("running_var", channels, np.float64)
        if dtype is not None:
            for name in self._affine:
                setattr(self, f"_{name}", initial(name, channels, dtype))
        self._built = dtype is not None or not self._affine

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_saved": COPIED}

    def __repr__(self) -> str:
        defaults: dict[str, object] = LayerState.__init__.__kwdefaults__ or {}
        given = [] if self._channels is None else [str(self._channels)]
        for name, default in defaults.items():
            value = getattr(self, name)
            if name == "dtype":
                if value is not None and self._affine:
                    given.append(f"dtype={value}")
            elif value != default:
                given.append(f"{name}={value!r}")
        mode = "training" if self.training else "evaluation"
        if self._frozen:
            mode += ", frozen"
        if self._tracks:
            tracked = self._num_batches_tracked
            mode += f", {tracked} batch{'' if tracked == 1 else 'es'} tracked"
        return f"{type(self).__name__}({', '.join(given)}): {mode}"


# Arrays


def initial(name: str, channels: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return the array that a new layer has under this name."""
    return np.full(channels, INITIAL[name], dtype)


def cast(values: Array, like: Array) -> Array:
    """Return values in the dtype of another array, rounded without warnings."""
    if values.dtype == like.dtype:
        return values
    return cast_array(values, in_native_order(like.dtype))


def weight_for_sums(x: Array, weight: Array | None, bias: Array | None) -> Array | None:
    """Return the weight to pass to backward, in float64 if the gradients differ in dtype.

    Backward returns both sums in weight's dtype.  Without a weight they have x's dtype, or float32
    if that has 16 bits.  If the bias has another dtype, backward must return float64, so that each
    sum is rounded only once.
    """
    dtype = layout.statistic_dtype(x.dtype) if weight is None else weight.dtype
    if bias is None or bias.dtype.char == dtype.char:
        return weight
    return np.ones(bias.shape[0]) if weight is None else cast_array(weight, np.float64)


def _not_finite(moments: Moments) -> npt.NDArray[np.bool_]:
    """Tell of every channel whether its mean or variance is NaN or infinite, given a value."""
    bad: npt.NDArray[np.bool_] = ~(np.isfinite(moments.mean) & np.isfinite(moments.m2))
    return bad & (moments.count > 0.0)


def finite(moments: Moments) -> bool:
    """Tell whether the mean and variance of every channel that has a value are finite."""
    return not _not_finite(moments).any()


def require_finite(moments: Moments) -> None:
    """Refuse a batch with a mean or variance that is NaN or infinite."""
    bad = _not_finite(moments)
    if bad.any():
        raise FloatingPointError(
            f"x: expected finite mean and variance, got NaN or infinity in channel {bad.argmax()} "
            f"({bad.sum()} of {bad.size} channels)"
        )


def checked_state(
    state: Mapping[str, Any], names: tuple[str, ...], channels: int | None
) -> dict[str, Any]:
    """Return the entries of a state dictionary, which must have exactly these names.

    Raises
    ------
    TypeError, ValueError
        If a name is missing or unknown, or a value does not fit.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a dictionary, got {scalars.shown(state)}")
    missing = [name for name in names if name not in state]
    unknown = [name for name in state if name not in names]
    if missing or unknown:
        got = ", ".join(map(str, state)) or "none"
        raise ValueError(f"state: expected the names {', '.join(names) or 'none'}, got {got}")
    checked: dict[str, Any] = {}
    for name in names:
        if name == BATCHES:
            checked[name] = ls.batches_or_each(name, state[name], channels)
        else:
            # Copy it, because it may be another array of the layer, which is written first.
            checked[name] = vector(name, state[name], channels).copy()
            channels = checked[name].shape[0]
    return checked
