"""The compiled part: `handlers.cpp`, made known to XLA, and calls of it.

An argument or a result that is not there is an array without elements.  Under `jax.vmap` all get
leading dimensions, of size 1 where they are the same for all examples, so that nothing is copied.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from bncore import adapter_compiler

NAMES = ("train", "train_backward", "infer", "infer_backward")
ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2}  # bncore_activation
ABSENT = np.zeros(0, np.float32)

Shape: TypeAlias = jax.ShapeDtypeStruct


class Settings(NamedTuple):
    """What a call is told beside its arrays, known when it is traced."""

    ndim: int
    axis: int  # of the channels, counted from 0
    eps: float
    activation: str | None
    slope: float


def register() -> None:
    """Compile the handlers where that was not done before, and give them to XLA."""
    library = adapter_compiler.load(
        Path(__file__).with_name("handlers.cpp"),
        f"jaxlib {importlib.metadata.version('jaxlib')}",
        [f"-I{jax.ffi.include_dir()}"],
    ).library
    for name in NAMES:
        handler = jax.ffi.pycapsule(getattr(library, f"bncore_jax_{name}"))
        jax.ffi.register_ffi_target(_target(name), handler, platform="cpu")


def _target(name: str) -> str:
    return f"bncore_batch_norm_{name}"


def call(
    name: str,
    settings: Settings,
    results: Sequence[Shape | None],
    operands: Sequence[jax.Array | None],
) -> list[Any]:
    """Call a handler; None stands for what is not there, among operands and results."""
    shapes = [Shape((0,), np.float32) if result is None else result for result in results]
    made = jax.ffi.ffi_call(_target(name), shapes, vmap_method="expand_dims")(
        *(ABSENT if operand is None else operand for operand in operands),
        ndim=np.int64(settings.ndim),
        axis=np.int64(settings.axis),
        eps=np.float64(settings.eps),
        activation=np.int64(ACTIVATIONS[settings.activation]),
        slope=np.float64(settings.slope),
    )
    return [None if asked is None else one for asked, one in zip(results, made, strict=True)]
