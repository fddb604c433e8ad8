"""Turn a batch norm with given statistics into a scale and a shift, or fold it into a layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bncore.arguments import scalars
from bncore.arguments.arrays import cast, dtype_shown, is_floating, plain_array
from bncore.arguments.bfloat16 import in_native_order
from bncore.arguments.float_environment import silent_arithmetic
from bncore.arguments.layout import memory_order
from bncore.arguments.parameters import parameter, variances

Array = npt.NDArray[np.floating[Any]]
Stat = npt.NDArray[np.float64]


class ScaleShift(NamedTuple):
    """Batch norm in evaluation as ``y = x * scale + shift``; both are (C,) arrays of float64."""

    scale: Stat
    shift: Stat


def as_scale_shift(
    mean: npt.ArrayLike,
    var: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    eps: float = 1e-5,
) -> ScaleShift:
    """Compute the scale and the shift that give `batch_norm_infer` as ``x * scale + shift``.

    Parameters
    ----------
    mean, var, weight, bias, eps
        As in `batch_norm_infer`.

    Returns
    -------
    scale, shift : (C,) ndarray of float64
        ``weight / sqrt(var + eps)`` and ``bias - mean * scale``.  Where `var` and `eps` are 0, the
        divisor is 1, as in `standardize`: a constant channel becomes its bias.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described above.

    Notes
    -----
    If abs(mean) is far above the standard deviation, ``x * scale`` and ``shift`` cancel, and
    float32 loses as many digits as abs(mean)/std has.  `batch_norm_infer` subtracts the mean first,
    so it does not lose them.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithm 2, step 11.

    Examples
    --------
    >>> import bncore
    >>> bncore.as_scale_shift([2.0], [4.0], [3.0], [1.0], eps=0.0)
    ScaleShift(scale=array([1.5]), shift=array([-2.]))
    """
    p = _BatchNorm(mean, var, weight, bias, eps)
    with silent_arithmetic():
        return ScaleShift(p.scale, p.bias - p.mean * p.scale)


class _BatchNorm:
    """A batch norm with given statistics, in float64."""

    def __init__(
        self, mean: object, var: object, weight: object, bias: object, eps: object, of: str = ""
    ) -> None:
        self.mean = _float64("mean", mean, None)
        self.channels = self.mean.shape[0]
        spread = variances("var", var, self.channels).values
        gamma = 1.0 if weight is None else _float64(f"{of}weight", weight, self.channels)
        self.bias: Stat = (
            np.zeros(self.channels) if bias is None else _float64(f"{of}bias", bias, self.channels)
        )
        eps = scalars.real("eps", eps, 0.0)
        below = spread + eps
        with silent_arithmetic():
            self.scale: Stat = gamma / np.sqrt(np.where(below == 0.0, 1.0, below))


def fold_into_linear(
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    mean: npt.ArrayLike,
    var: npt.ArrayLike,
    bn_weight: npt.ArrayLike | None = None,
    bn_bias: npt.ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    layout: str = "OI",
) -> tuple[Array, Array]:
    """Fold a batch norm into the linear layer before it.

    Parameters
    ----------
    weight : 2-D array_like of float
        The linear layer's weight, of any real floating dtype.
    bias : (O,) array_like of float or None
        The linear layer's bias.
    mean, var, bn_weight, bn_bias, eps
        The batch norm's arguments, as in `batch_norm_infer`.
    layout : {"OI", "IO"}
        The order of weight's axes: "OI" if outputs come first, "IO" if inputs do.

    Returns
    -------
    weight, bias : ndarray
        The arrays of one linear layer that does the work of both: new arrays of weight's dtype,
        computed in float64 and rounded once.  A bias is returned even if the layer had none.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described above, or sizes do not agree.

    References
    ----------
    B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2, equation 14.

    Examples
    --------
    >>> import bncore
    >>> bncore.fold_into_linear([[1.0, 2.0]], [1.0], [3.0], [4.0], [2.0], [5.0], eps=0.0)
    (array([[1., 2.]]), array([3.]))
    """
    norm = _BatchNorm(mean, var, bn_weight, bn_bias, eps, "bn_")
    return _folded(weight, bias, norm, layout, (2, 2), 1, False)


def fold_into_conv(
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    mean: npt.ArrayLike,
    var: npt.ArrayLike,
    bn_weight: npt.ArrayLike | None = None,
    bn_bias: npt.ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
) -> tuple[Array, Array]:
    """Fold a batch norm into the convolution before it.

    The convolution may have any stride, padding and dilation.

    Parameters
    ----------
    weight : 3-D to 5-D array_like of float
        The weight of a convolution in one to three dimensions, of any real floating dtype.
    bias : (O,) array_like of float or None
        The convolution's bias.
    mean, var, bn_weight, bn_bias, eps
        The batch norm's arguments, as in `batch_norm_infer`.
    layout : str, optional
        One letter per axis of weight: O for output channels, I for input channels, and D, H or W
        for the others.  The default is PyTorch's order: "OIW", "OIHW", "OIDHW", or with
        `transposed` "IOW", "IOHW", "IODHW".  Keras and JAX use "HWIO", and Keras uses "HWOI" for
        transposed convolutions.
    groups : int, default 1
        The number of groups of the convolution.  The axis I then has the size of one group.
    transposed : bool, default False
        Whether the convolution is transposed.  With groups, its axis O then has the size of one
        group, and I the size of all groups together.

    Returns
    -------
    weight, bias : ndarray
        The arrays of one convolution that does the work of both: new arrays of weight's dtype,
        computed in float64 and rounded once.  A bias is returned even if the convolution had none.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described above, or sizes do not agree.

    Notes
    -----
    The convolution must come *before* the batch norm.  A convolution after it that pads with zeros
    cannot absorb the shift.

    References
    ----------
    B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2, equation 14.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> weight, bias = bncore.fold_into_conv(
    ...     np.ones((2, 1, 3)), None, [1.0, 0.0], [4.0, 1.0], eps=0.0)
    >>> weight[:, 0]
    array([[0.5, 0.5, 0.5],
           [1. , 1. , 1. ]])
    >>> bias
    array([-0.5,  0. ])
    """
    norm = _BatchNorm(mean, var, bn_weight, bn_bias, eps, "bn_")
    number = scalars.integer_at_least("groups", groups, 1)
    transposed = scalars.boolean("transposed", transposed)
    return _folded(weight, bias, norm, layout, (3, 5), number, transposed)


def _float64(name: str, value: object, size: int | None) -> Stat:
    return parameter(name, value, size).values


def _folded(
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    norm: _BatchNorm,
    layout: str | None,
    ranks: tuple[int, int],
    groups: int,
    transposed: bool,
) -> tuple[Array, Array]:
    """Scale every output channel of a weight, and compute the new bias."""
    array = _weight(weight, ranks)
    at_o, at_i = _axes(layout, array.ndim, transposed)
    split = at_i if transposed else at_o  # the axis that holds all groups
    outputs = array.shape[at_o] * (groups if transposed else 1)
    if array.shape[split] % groups:
        raise ValueError(
            f"groups: expected a divisor of {array.shape[split]}, weight's size along axis "
            f"{split}, got {groups}"
        )
    if norm.channels != outputs:
        raise ValueError(
            f"mean: expected shape ({outputs},), one for each output channel of weight, "
            f"got ({norm.channels},)"
        )
    scale = norm.scale
    before = np.zeros(outputs) if bias is None else _float64("bias", bias, outputs)
    shape = [1] * array.ndim
    shape[at_o] = array.shape[at_o]
    if transposed and groups > 1:
        # Row i of I belongs to group i // (I / groups); output channels are numbered by group.
        rows = np.repeat(scale.reshape(groups, -1), array.shape[at_i] // groups, axis=0)
        shape[at_i] = array.shape[at_i]
        scale = rows if at_i < at_o else rows.T
    with silent_arithmetic():
        product = array.astype(np.float64, order="K") * scale.reshape(shape)
        moved = (before - norm.mean) * norm.scale + norm.bias
    dtype = in_native_order(array.dtype)
    order = memory_order(product)
    inverse = sorted(range(array.ndim), key=order.__getitem__)
    return cast(product.transpose(order), dtype).transpose(inverse), cast(moved, dtype)


def _weight(value: object, ranks: tuple[int, int]) -> Array:
    """Return a layer's weight as a real floating array; refuse a wrong number of axes."""
    array = plain_array("weight", value)
    if not is_floating(array.dtype):
        raise TypeError(f"weight: expected a real floating dtype, got {dtype_shown(value, array)}")
    if not ranks[0] <= array.ndim <= ranks[1]:
        expected = f"{ranks[0]}" if ranks[0] == ranks[1] else f"{ranks[0]} to {ranks[1]}"
        raise ValueError(f"weight: expected {expected} dimensions, got shape {array.shape}")
    return array


def _axes(layout: str | None, ndim: int, transposed: bool) -> tuple[int, int]:
    """Return the positions of the axes of output and of input channels."""
    if layout is None:
        return (1, 0) if transposed else (0, 1)
    spatial = "DHW"[5 - ndim :] if ndim > 2 else ""
    if not isinstance(layout, str):
        raise TypeError(f"layout: expected a string, got {scalars.shown(layout)}")
    if sorted(layout) != sorted("OI" + spatial):
        letters = " ".join("OI" + spatial)
        raise ValueError(
            f"layout: expected each of {letters} once, for {ndim} dimensions, got {layout!r}"
        )
    return layout.index("O"), layout.index("I")
