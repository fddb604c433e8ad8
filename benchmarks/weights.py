"""Time masks, weights and NaNs that are left out, against calls without them and against NumPy.

    python benchmarks/weights.py                        ResNet-50's shapes and one of sequences
    python benchmarks/weights.py --shapes 32x64x56x56 --threads 1,2
    python benchmarks/weights.py --values 100000000     statistics of more values

One value in ten is left out.  The first table tells the time of training, forward and backward, in
times that of the same call without a mask, NaN or weight.  The second one tells how many times
faster bncore's statistics are than NumPy's and, if it is installed, numbagg's, with the largest
relative error of the variances beside it.  Every result is compared with a float64 computation
before it is timed.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

import bncore
from bncore.programs.bench.cases import LAYOUTS, SHAPES, named
from bncore.programs.bench.results import geometric_mean
from bncore.programs.bench.tables import Table
from bncore.programs.demo.timing import interleaved_times

Array = npt.NDArray[Any]
SEQUENCES = (64, 256, 1000)
LEFT_OUT = 0.1
KINDS = {
    "shared mask": "one mask for all channels",
    "full mask": "a mask of x's shape",
    "NaN": 'nan_policy="omit"',
    "NaN, fill": 'nan_policy="omit" and fill=0',
    "weights": "float64 weights, one for all channels",
}


def laid_out(array: Array, layout: str) -> Array:
    """Return a copy with the channels first or last in memory; axis 1 is the channels' axis."""
    if layout == LAYOUTS[0]:
        return np.ascontiguousarray(array)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


@dataclass
class Problem:
    """What is normalized: x, dy, and the arguments that say which values count."""

    x: Array
    dy: Array
    out: Array
    plain: Array  # x without NaN
    options: dict[str, Any]

    @classmethod
    def make(cls, shape: tuple[int, ...], layout: str, kind: str) -> Problem:
        rng = np.random.default_rng(0)
        x, dy = (laid_out(rng.normal(1.0, 2.0, shape).astype(np.float32), layout) for _ in "xy")
        shared = (shape[0], 1, *shape[2:])
        options: dict[str, Any] = {}
        plain = x
        if kind == "shared mask":
            options["where"] = rng.random(shared) >= LEFT_OUT
        elif kind == "full mask":
            options["where"] = laid_out(rng.random(shape) >= LEFT_OUT, layout)
        elif kind == "weights":
            options["weights"] = rng.random(shared)
        else:
            x = x.copy(order="K")
            x[rng.random(shape) < LEFT_OUT] = np.nan
            options["nan_policy"] = "omit"
            if kind == "NaN, fill":
                options["fill"] = 0.0
        return cls(x, dy, np.empty_like(x), plain, options)

    def weights(self) -> Array:
        """Return what each value counts for, in float64."""
        if "weights" in self.options:
            return np.broadcast_to(self.options["weights"], self.x.shape)
        counts = self.options.get("where", ~np.isnan(self.x))
        return np.broadcast_to(counts, self.x.shape).astype(np.float64)

    def check(self, n_threads: int) -> bncore.Moments:
        """Compare what is timed with the formulas, and return the moments."""
        y, moments = bncore.batch_norm_train(
            self.x, out=self.out, n_threads=n_threads, **self.options
        )
        axes = tuple(axis for axis in range(self.x.ndim) if axis != 1)
        weights, x = self.weights(), self.plain.astype(np.float64)
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        total = weights.sum(axes)
        mean = (weights * x).sum(axes) / total
        d = x - mean.reshape(shape)
        var = (weights * d * d).sum(axes) / total
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(moments.var(), var, rtol=2.0**-22)
        counted = ~np.isnan(self.x)
        xhat = d / np.sqrt(var + 1e-5).reshape(shape)
        np.testing.assert_allclose(y[counted], xhat[counted], rtol=1e-5, atol=1e-5)
        if "nan_policy" in self.options and "fill" not in self.options:
            return moments  # dx of a NaN is NaN where its dy is not 0
        dx = self.backward(moments, n_threads)
        g = self.dy * counted.astype(np.float64)
        sums = [(s.sum(axes) / total).reshape(shape) for s in (g, g * xhat)]
        expected = g - weights * (sums[0] + xhat * sums[1])
        expected /= np.sqrt(var + 1e-5).reshape(shape)
        np.testing.assert_allclose(dx, expected * counted, rtol=1e-4, atol=1e-5)
        return moments

    def forward(self, n_threads: int) -> Array:
        return bncore.batch_norm_train(self.x, out=self.out, n_threads=n_threads, **self.options)[0]

    def backward(self, moments: bncore.Moments, n_threads: int) -> Array:
        return bncore.batch_norm_train_backward(
            self.dy, self.x, moments, out=self.out, n_threads=n_threads, **self.options
        )[0]

    def without(self) -> Problem:
        """Return the same without anything that is left out."""
        return Problem(self.plain, self.dy, self.out, self.plain, {})


def ratios(shape: tuple[int, ...], layout: str, kind: str, threads: int, turns: int) -> list[float]:
    """Return the times of training forward and backward in times those without weights."""
    problem = Problem.make(shape, layout, kind)
    usual = problem.without()
    moments = problem.check(threads)
    plain = bncore.moments(problem.plain, n_threads=threads)
    calls: list[Callable[[], Array]] = [
        lambda: usual.forward(threads),
        lambda: problem.forward(threads),
        lambda: usual.backward(plain, threads),
        lambda: problem.backward(moments, threads),
    ]
    times = [median(taken) for taken in interleaved_times(calls, turns)]
    return [times[1] / times[0], times[3] / times[2]]


def training(shapes: list[tuple[int, ...]], threads: list[int], turns: int) -> Iterator[Table]:
    """Measure training with every kind of weights: one table per layout and number of threads."""
    for layout in LAYOUTS:
        for n in threads:
            head = ["", *(f"{kind}, {way}" for kind in KINDS for way in ("train", "backward"))]
            table = Table(f"{layout}, threads {n}, times the plain call", head)
            found = []
            for shape in shapes:
                found.append([r for kind in KINDS for r in ratios(shape, layout, kind, n, turns)])
                table.lines.append([named(shape), *(f"{ratio:.2f}" for ratio in found[-1])])
            for name, of in (("geometric mean", geometric_mean), ("worst", max)):
                table.lines.append(
                    [name, *(f"{of(column):.2f}" for column in zip(*found, strict=True))]
                )
            yield table


Result = tuple[Any, Any]


def numpys(x: Array, axis: int | None) -> Result:
    return np.nanmean(x, axis=axis), np.nanvar(x, axis=axis)


def averages(x: Array, weights: Array) -> Result:
    """Compute the weighted mean and variance of columns as NumPy's users do."""
    mean = np.average(x, axis=0, weights=weights)
    return mean, np.average((x - mean) ** 2, axis=0, weights=weights)


def numbaggs(x: Array, axis: int | None) -> Result:
    import numbagg  # type: ignore[import-not-found,unused-ignore]

    return numbagg.nanmean(x, axis=axis), numbagg.nanvar(x, axis=axis, ddof=0)


def peers_of_nans() -> dict[str, Callable[[Array, int | None], Result]]:
    """Return the libraries that are here; NumPy comes first."""
    peers: dict[str, Callable[[Array, int | None], Result]] = {"NumPy": numpys}
    try:
        import numbagg  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        print("numbagg is not installed, so it is not compared (pip install numbagg)")
    else:
        peers["numbagg"] = numbaggs
    return peers


def error(result: Result, exact: Any) -> float:
    """Return the largest relative error of the variances."""
    return float(np.max(np.abs(np.asarray(result[1], np.float64) / exact - 1)))


def statistics(values: int, threads: list[int], turns: int) -> Table:
    """Measure mean and variance of a matrix with NaNs, and of one with a weight for each row."""
    rng = np.random.default_rng(0)
    columns = 1000
    x = rng.normal(1.0, 2.0, (values // columns, columns)).astype(np.float32)
    weights = rng.random(len(x), np.float32)
    gaps = x.copy()
    gaps[rng.random(x.shape, np.float32) < LEFT_OUT] = np.nan
    head = ["", "threads", "bncore", "error", "peer", "time", "its error", "times"]
    table = Table(f"mean and variance, {len(x)}×{columns} float32", head)
    peers = peers_of_nans()
    for axis in (0, 1, None):
        exact = np.nanvar(gaps, axis=axis, dtype=np.float64)
        for n in threads:

            def ours(axis: int | None = axis, n: int = n) -> Result:
                return bncore.mean_var(gaps, axis=axis, nan_policy="omit", n_threads=n)

            for name, peer in peers.items():

                def theirs(axis: int | None = axis, peer: Callable[..., Result] = peer) -> Result:
                    return peer(gaps, axis)

                table.lines.append(
                    [f"NaN, axis {axis}", str(n), *compared(ours, theirs, name, exact, turns)]
                )
    mean = np.average(x, axis=0, weights=weights.astype(np.float64))
    exact = np.average((x - mean) ** 2, axis=0, weights=weights.astype(np.float64))
    for n in threads:

        def weighted(n: int = n) -> Result:
            return bncore.mean_var(x, axis=0, weights=weights[:, None], n_threads=n)

        line = compared(weighted, lambda: averages(x, weights), "np.average", exact, turns)
        table.lines.append(["weights, axis 0", str(n), *line])
    return table


def compared(
    ours: Callable[[], Result], theirs: Callable[[], Result], name: str, exact: Any, turns: int
) -> list[str]:
    """Check our result, time both, and return the cells of a line."""
    wrong = error(ours(), exact)
    assert wrong <= 2.0**-22, wrong
    times = [median(taken) for taken in interleaved_times([ours, theirs], turns)]
    return [
        f"{1e3 * times[0]:.1f} ms", f"{wrong:.1e}", name, f"{1e3 * times[1]:.1f} ms",
        f"{error(theirs(), exact):.1e}", f"{times[1] / times[0]:.1f}",
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", help="such as 32x64x56x56,64x256x1000")
    parser.add_argument("--threads", default="1", help="such as 1,2")
    parser.add_argument("--turns", type=int, default=7, help="calls of which the median is taken")
    parser.add_argument("--values", type=int, default=10**7, help="values of the statistics")
    asked = parser.parse_args()
    shapes = [*sorted(SHAPES["resnet50_n32"]), SEQUENCES]
    if asked.shapes:
        shapes = [tuple(map(int, shape.split("x"))) for shape in asked.shapes.split(",")]
    threads = [int(n) for n in asked.threads.split(",")]
    from rich.console import Console

    console = Console()
    for kind, meaning in KINDS.items():
        console.print(f"{kind}: {meaning}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of columns without a number
        for table in training(shapes, threads, asked.turns):
            console.print(*table.rich(console.width))
        console.print(
            *statistics(asked.values, threads, max(asked.turns // 2, 2)).rich(console.width)
        )


if __name__ == "__main__":
    main()
