"""The compiled part: register the handlers of `handlers.cpp` with XLA, and call them.

A missing argument or result is passed as an array without elements.  Under `jax.vmap` all arrays
get leading dimensions.  These have size 1 if an array is the same for all examples, so that it is
not copied.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from bncore import adapter_compiler
from bncore.jax.manual_axes import alike

STEPS = ("moments", "merge", "normalize", "grad_sums", "grad_input")
GROUPS = ("group_norm", "group_norm_backward")
NAMES = ("train", "train_backward", "infer", "infer_backward", *STEPS, *GROUPS)
ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2}  # bncore_activation

Shape: TypeAlias = jax.ShapeDtypeStruct


class Devices(NamedTuple):
    """Devices, or examples of `jax.vmap`, whose batches are one.

    Attributes
    ----------
    names : the names of mapped axes
    groups : indices along the axis that belong together, or None if all do
    """

    names: tuple[Hashable, ...]
    groups: tuple[tuple[int, ...], ...] | None


class Settings(NamedTuple):
    """The arguments of a call that are not arrays, known when it is traced."""

    ndim: int
    axis: int  # the channel axis, counted from 0
    eps: float
    activation: str | None
    slope: float
    omit_nan: bool = False
    fill: float | None = None
    devices: Devices | None = None

    @property
    def changes_residual(self) -> bool:
        """Whether the gradient of the residual may differ from that of y."""
        return self.activation is not None or self.fill is not None

    @property
    def attributes(self) -> dict[str, Any]:
        """The settings as a handler takes them."""
        return {
            "ndim": np.int64(self.ndim),
            "axis": np.int64(self.axis),
            "eps": np.float64(self.eps),
            "activation": np.int64(ACTIVATIONS[self.activation]),
            "slope": np.float64(self.slope),
            "omit_nan": np.int64(self.omit_nan),
            "filled": np.int64(self.fill is not None),
            "fill": np.float64(0.0 if self.fill is None else self.fill),
        }


class GroupSettings(NamedTuple):
    """The same of a call of group norm, whose samples lie along axis 0."""

    ndim: int
    axis: int
    groups: int
    eps: float
    devices: None = None  # a sample is on one of them

    @property
    def attributes(self) -> dict[str, Any]:
        """The settings as a handler takes them."""
        return {
            "ndim": np.int64(self.ndim),
            "axis": np.int64(self.axis),
            "groups": np.int64(self.groups),
            "eps": np.float64(self.eps),
        }


AnySettings: TypeAlias = Settings | GroupSettings


def register() -> None:
    """Compile the handlers if necessary, and register them with XLA."""
    library = adapter_compiler.load(
        Path(__file__).with_name("handlers.cpp"),
        f"jaxlib {importlib.metadata.version('jaxlib')}",
        [f"-I{jax.ffi.include_dir()}", "-ffp-contract=off"],  # moments merge as in NumPy
    ).library
    for name in NAMES:
        handler = jax.ffi.pycapsule(getattr(library, f"bncore_jax_{name}"))
        jax.ffi.register_ffi_target(_target(name), handler, platform="cpu")


def export_checks() -> list[Any]:
    """Return the checks of `jax.export` that bncore's custom calls need to be disabled.

    JAX serializes a custom call only where its author promises that programs of today will run
    with versions of tomorrow.  bncore promises it for one version of bncore and of jaxlib.

    Returns
    -------
    list of jax.export.DisabledSafetyCheck
        One for each custom call.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jax import export
    >>> import bncore.jax
    >>> def norm(x):
    ...     return bncore.jax.batch_norm_train(x)[0]
    >>> x = jnp.array([[0.0, 1.0], [2.0, 5.0]])
    >>> checks = bncore.jax.export_checks()
    >>> kept = export.export(jax.jit(norm), disabled_checks=checks)(x).serialize(vjp_order=1)
    >>> print(export.deserialize(kept).call(x).round(2))
    [[-1. -1.]
     [ 1.  1.]]
    """
    return [export.DisabledSafetyCheck.custom_call(_target(name)) for name in NAMES]


def _target(name: str) -> str:
    return f"bncore_batch_norm_{name}"


def call(
    name: str,
    settings: AnySettings,
    results: Sequence[Shape | None],
    operands: Sequence[jax.Array | None],
) -> list[Any]:
    """Call a handler; None stands for a missing operand or result."""
    absent = jnp.zeros(0, np.float32)  # an operation of the trace, as no array of before would be
    given = alike(*(absent if operand is None else operand for operand in operands))
    shapes = [Shape((0,), np.float32) if asked is None else asked for asked in results]
    made = jax.ffi.ffi_call(_target(name), shapes, vmap_method="expand_dims")(
        *given, **settings.attributes
    )
    # Some versions of JAX take the results of a custom call for the same on all devices.
    found = alike(given[0], *made)[1:]
    return [None if asked is None else one for asked, one in zip(results, found, strict=True)]
