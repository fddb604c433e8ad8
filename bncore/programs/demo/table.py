"""Part 1: error and time of bncore and of the NumPy formula, on batches in NCHW and NHWC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import bncore
from bncore.programs.demo import accuracy, formula
from bncore.programs.demo.data import feature_maps
from bncore.programs.demo.formula import Array
from bncore.programs.demo.timing import interleaved_times
from bncore.programs.terminal import Show

EPS = 1e-5


@dataclass(frozen=True)
class Row:
    """One line of the table: errors in ulp and times in seconds, of bncore and of the formula."""

    layout: str
    operation: str
    errors: tuple[float, float]
    seconds: tuple[float, float]


@dataclass(frozen=True)
class Case:
    """One operation by bncore and by the formula, the true result, and the unit of errors."""

    operation: str
    ours: Callable[[], Array]
    numpy: Callable[[], Array]
    exact: Array
    magnitude: Array


def cases(x: Array, dy: Array, weight: Array, bias: Array, axis: int) -> list[Case]:
    """Train, infer and backward on one batch whose channel axis is `axis`."""
    channel = axis % x.ndim
    axes = tuple(a for a in range(x.ndim) if a != channel)
    shape = [-1 if a == channel else 1 for a in range(x.ndim)]
    w, b = weight.reshape(shape), bias.reshape(shape)
    wide_x, wide_dy, wide_w, wide_b = accuracy.extended(x, dy, w, b)

    moments = bncore.moments(x, axis=axis)
    # Inference takes statistics as a model stores them: both get the same float32 numbers.
    mean, var = moments.mean.astype(np.float32), moments.var().astype(np.float32)
    mean_b, var_b = mean.reshape(shape), var.reshape(shape)
    wide_mean, wide_var = formula.statistics(wide_x, axes)
    stored = accuracy.extended(mean_b, var_b)
    batch_mean, batch_var = formula.statistics(x, axes)
    y, dx = np.empty_like(x), np.empty_like(x)

    def ours_train() -> Array:
        return bncore.batch_norm_train(x, weight, bias, axis=axis, eps=EPS, out=y, n_threads=1)[0]

    def ours_infer() -> Array:
        return bncore.batch_norm_infer(
            x, mean, var, weight, bias, axis=axis, eps=EPS, out=y, n_threads=1
        )

    def ours_backward() -> Array:
        return bncore.batch_norm_train_backward(
            dy, x, moments, weight, axis=axis, eps=EPS, out=dx, n_threads=1
        )[0]

    return [
        Case(
            "train",
            ours_train,
            lambda: formula.train(x, w, b, axes, EPS),
            *accuracy.forward_reference(wide_x, wide_mean, wide_var, wide_w, wide_b, EPS),
        ),
        Case(
            "infer",
            ours_infer,
            lambda: formula.infer(x, mean_b, var_b, w, b, EPS),
            *accuracy.forward_reference(wide_x, stored[0], stored[1], wide_w, wide_b, EPS),
        ),
        Case(
            "backward",
            ours_backward,
            lambda: formula.backward(dy, x, batch_mean, batch_var, w, axes, EPS)[0],
            *accuracy.backward_reference(wide_dy, wide_x, wide_mean, wide_var, wide_w, axes, EPS),
        ),
    ]


def measure(layout: str, case: Case, repeats: int) -> Row:
    """Check one case against its reference, then time it."""
    ours, numpy = (
        accuracy.max_ulp(function(), case.exact, case.magnitude)
        for function in (case.ours, case.numpy)
    )
    our_times, numpy_times = interleaved_times([case.ours, case.numpy], repeats)
    times = (median(our_times), median(numpy_times))
    return Row(layout, case.operation, (ours, numpy), times)


def measure_all(
    *,
    repeats: int,
    limit: int | None = None,
    show: Show = lambda total, done, what: None,
) -> tuple[list[Row], tuple[int, ...]]:
    """Measure every operation in both layouts; return the rows and the batch's NCHW shape."""
    rng = np.random.default_rng(0)
    nchw = feature_maps(limit)
    channels: int = nchw.shape[1]
    dy = rng.standard_normal(nchw.shape, dtype=np.float32)
    weight = rng.uniform(0.5, 2.0, channels).astype(np.float32)
    bias = rng.standard_normal(channels, dtype=np.float32)
    rows: list[Row] = []
    for layout, axis, order in (("NCHW", 1, (0, 1, 2, 3)), ("NHWC", -1, (0, 2, 3, 1))):
        x_l, dy_l = (np.ascontiguousarray(a.transpose(order)) for a in (nchw, dy))
        for case in cases(x_l, dy_l, weight, bias, axis):
            show(6, len(rows), f"{case.operation}, {layout}")
            rows.append(measure(layout, case, repeats))
    return rows, nchw.shape


def print_table(console: Console, rows: list[Row], shape: tuple[int, ...], repeats: int) -> None:
    """Print the rows, and the conditions in which they were measured."""
    n, c, h, w = shape
    console.print(
        "",
        f"{n:,} handwritten digits of 8 x 8 pixels, filtered by {c} fixed 3 x 3 kernels into {c} "
        f"channels of {h} x {w} (float32).",
        "Errors: the largest, in ulp of the summed terms, against the formula in extended "
        "precision.",
        f"Times: one thread, medians of {repeats} interleaved repeats; how many times faster than "
        "the NumPy formula bncore is.",
        "",
        sep="\n",
    )
    table = Table(title="Batch normalization of image batches", box=SIMPLE_HEAD, show_edge=False)
    for name in ("layout", "operation"):
        table.add_column(name)
    for name in ("bncore ulp", "NumPy ulp", "bncore ms", "NumPy ms", "times faster"):
        table.add_column(name, justify="right")
    for row in rows:
        ours, numpy = row.seconds
        table.add_row(
            row.layout,
            row.operation,
            *(f"{e:.2f}" for e in row.errors),
            *(f"{s * 1e3:.3f}" for s in row.seconds),
            f"{numpy / ours:.1f}",
            end_section=row.operation == "backward",
        )
    console.print(table)
