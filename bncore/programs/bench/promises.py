"""bncore's promises about its speed, as data, and the check whether the rows keep them.

A promise holds for every number of threads that was measured.  It is judged if all shapes of its
sets were measured; otherwise the figure is shown together with the number of shapes.  To add a
promise, add a line to `PROMISES`: `Ratio` compares with peers, `Distance` and `Reach` with the
limit, `Share` with other calls of bncore, `Scaling` with one thread, `Time` with the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Protocol

from bncore.programs.bench.cases import (
    ARRAYS_MOVED,
    FUSED,
    LAYOUTS,
    SHAPES,
    Case,
    layouts_of,
    named,
)
from bncore.programs.bench.peers import PEERS
from bncore.programs.bench.results import Row, Times, geometric_mean, times_of
from bncore.programs.bench.tables import BNCORE, GIVEN, Table, counted

FIRST, LAST = LAYOUTS
BOTH_LAYOUTS = "both layouts"
BOTH = ("resnet50_n32", "mobilenet_v2_n16")
RESNET = BOTH[:1]
TORCH, COMPILED, ONEDNN, BLOCKED, FORMULA, ALONE = (
    PEERS[key].name for key in ("torch", "compile", "onednn", "onednn16c", "numpy", "alone")
)
WHEEL, WIDE, OWN_AVX2, TORCH_AVX2 = (
    PEERS[key].name for key in ("torch_onednn", "wide", "avx2", "torch_avx2")
)


@dataclass(frozen=True)
class Verdict:
    """A promise, the figure that was measured, and the number of shapes that were measured.

    `kept` is None if not all shapes of the promise were measured.
    """

    figure: str
    threads: int
    required: str
    measured: str
    worst: str
    kept: bool | None
    shapes: int
    of: int

    @property
    def answer(self) -> str:
        """Whether the promise is kept, in a word, or how many shapes were measured."""
        if self.kept is None:
            return f"{self.shapes} of {self.of} shapes"
        return "yes" if self.kept else "**no**"


class Promise(Protocol):
    """The base class of all kinds of promises."""

    def judge(self, times: Times, threads: int, resident: int) -> Verdict | None:
        """Compare with the rows; return None if the promise does not concern them."""


@dataclass(frozen=True)
class About:
    """The cases of a promise."""

    sets: Sequence[str]
    operation: str
    layout: str = FIRST  # or BOTH_LAYOUTS
    output: str = "given"
    dtype: str = "float32"
    larger_than: int = 0  # bytes of x
    caches: str = "warm"

    def cases(self, threads: int) -> list[Case]:
        """List all cases."""
        shapes = dict.fromkeys(shape for name in self.sets for shape in SHAPES[name])
        wanted = [
            Case(self.operation, shape, layout, self.dtype, threads, self.output, self.caches)
            for shape in shapes
            for layout in layouts_of(shape)
            if self.layout in (layout, BOTH_LAYOUTS) or len(shape) == 2
        ]
        return [case for case in wanted if case.x_bytes > self.larger_than]

    def select(self, times: Times, threads: int, *others: str, own: str = BNCORE) -> Times:
        """Find those cases in which bncore and all the others were measured."""
        names = {own, *others}
        return {
            case: times[case] for case in self.cases(threads) if names <= times.get(case, {}).keys()
        }

    def __str__(self) -> str:
        words = [self.operation]
        if any(len(shape) > 2 for name in self.sets for shape in SHAPES[name]):
            words.append(self.layout)
        words += [", ".join(self.sets)]
        words += [w for w in (self.dtype, self.output) if w not in ("float32", "given")]
        words += [f"over {self.larger_than // 10**6} MB"] * (self.larger_than > 0)
        words += ["cold caches"] * (self.caches == "cold")
        return "; ".join(words)


@dataclass(frozen=True)
class Ratio:
    """The ratio of the fastest peer's time to bncore's, or to bncore's with another name."""

    about: About
    against: Sequence[str]
    mean: float
    worst: float = 0.0
    own: str = BNCORE

    def judge(self, times: Times, threads: int, resident: int) -> Verdict:
        """Geometric mean over the shapes, and the worst shape."""
        ratios = {
            case: min(found[name].median for name in self.against) / found[self.own].median
            for case, found in self.about.select(
                times, threads, *self.against, own=self.own
            ).items()
        }
        figure = f"{self.about}, against {' or '.join(self.against)}"
        if self.own != BNCORE:
            figure = f"{self.own}: {figure}"
        required = f"≥ {self.mean:g}×" + (f", worst ≥ {self.worst:g}×" if self.worst else "")
        return _verdict(
            figure, threads, required, "×", ratios, self.about.cases(threads), min,
            lambda mean, worst: mean >= self.mean and worst >= self.worst,
        )  # fmt: skip


@dataclass(frozen=True)
class Distance:
    """The ratio of bncore's time to that of the streams which its minimal traffic needs."""

    about: About
    at_most: float

    def judge(self, times: Times, threads: int, resident: int) -> Verdict:
        """Geometric mean over the shapes."""
        ratios = {
            case: 1.0 / found[BNCORE].limit_share
            for case, found in self.about.select(times, threads).items()
            if found[BNCORE].limit == found[BNCORE].limit
        }
        return _verdict(
            f"{self.about}, against the memory limit", threads, f"≤ {self.at_most:g}×", "×",
            ratios, self.about.cases(threads), max, lambda mean, worst: mean <= self.at_most,
        )  # fmt: skip


@dataclass(frozen=True)
class Reach:
    """The share of the speed that the memory allows, which bncore reaches on one thread."""

    about: About
    mean: float
    worst: float

    def judge(self, times: Times, threads: int, resident: int) -> Verdict | None:
        """Geometric mean over the shapes, and the worst shape."""
        if threads != 1:
            return None
        shares = {
            case: found[BNCORE].limit_share
            for case, found in self.about.select(times, threads).items()
            if found[BNCORE].limit == found[BNCORE].limit
        }
        return _verdict(
            f"{self.about}, share of the memory limit", threads,
            f"≥ {self.mean:g}, worst ≥ {self.worst:g}", "", shares, self.about.cases(threads), min,
            lambda mean, worst: mean >= self.mean and worst >= self.worst,
        )  # fmt: skip


@dataclass(frozen=True)
class Share:
    """The ratio of bncore's time to that of another call of bncore in the same turns.

    One streaming read of x's size may be added to the time of the other call.
    """

    about: About
    peer: str
    at_most: float
    and_read: bool = False

    def judge(self, times: Times, threads: int, resident: int) -> Verdict:
        """Geometric mean over the shapes."""
        shares = {}
        for case, found in self.about.select(times, threads, self.peer).items():
            other = found[self.peer].median + (found[BNCORE].read if self.and_read else 0.0)
            if other == other:  # the read was measured
                shares[case] = found[BNCORE].median / other
        plus = " and a read" if self.and_read else ""
        return _verdict(
            f"{self.about}, against {self.peer}{plus}", threads, f"≤ {self.at_most:g}×", "×",
            shares, self.about.cases(threads), max, lambda mean, worst: mean <= self.at_most,
        )  # fmt: skip


@dataclass(frozen=True)
class Scaling:
    """The ratio of bncore's time on one thread to that on two, with all arrays in the caches."""

    about: About
    at_least: float

    def judge(self, times: Times, threads: int, resident: int) -> Verdict | None:
        """Geometric mean over the shapes."""
        if threads != 2:
            return None
        moved = ARRAYS_MOVED[self.about.operation]
        one = {_place(c): f[BNCORE] for c, f in self.about.select(times, 1).items()}
        wanted = [c for c in self.about.cases(2) if moved * c.x_bytes <= resident]
        ratios = {
            case: one[_place(case)].median / times[case][BNCORE].median
            for case in wanted
            if _place(case) in one and BNCORE in times.get(case, {})
        }
        return _verdict(
            f"{self.about}, in cache, against one thread", threads, f"≥ {self.at_least:g}×", "×",
            ratios, wanted, min, lambda mean, worst: mean >= self.at_least,
        )  # fmt: skip


@dataclass(frozen=True)
class Time:
    """bncore's time in seconds on every shape, with one thread."""

    about: About
    at_most: float  # seconds

    def judge(self, times: Times, threads: int, resident: int) -> Verdict:
        """Check that all shapes keep it."""
        seconds = {
            case: found[BNCORE].median * 1e6
            for case, found in self.about.select(times, threads).items()
        }
        return _verdict(
            str(self.about), threads, f"≤ {self.at_most * 1e6:g} µs", " µs",
            seconds, self.about.cases(threads), max,
            lambda mean, worst: worst <= self.at_most * 1e6,
        )  # fmt: skip


def _place(case: Case) -> tuple[object, ...]:
    return case.shape, case.layout


def _verdict(
    figure: str,
    threads: int,
    required: str,
    unit: str,
    values: dict[Case, float],
    wanted: Sized,
    worst_of: Callable[..., Case],
    kept: Callable[[float, float], bool],
) -> Verdict:
    if not values:
        return Verdict(figure, threads, required, "not measured", "", None, 0, len(wanted))
    worst = worst_of(values, key=values.__getitem__)
    mean = geometric_mean(values.values())
    at = f"{values[worst]:.3g}{unit} at {named(worst.shape)}"
    whole = len(values) == len(wanted)
    return Verdict(
        figure, threads, required, f"{mean:.3g}{unit}", at,
        kept(mean, values[worst]) if whole else None, len(values), len(wanted),
    )  # fmt: skip


def _of_fusion(operation: str, layout: str) -> tuple[Promise, ...]:
    """Promise the same of a fused operation for given outputs and for outputs from the pool."""
    given, pooled = (About(RESNET, operation, layout, output) for output in ("given", "pooled"))
    return (
        Ratio(given, [TORCH], 5.0),
        Ratio(pooled, [TORCH], 5.0),
        Ratio(pooled, [COMPILED], 2.0),
        Share(given, ALONE, 1.15, and_read=True),
        Share(pooled, ALONE, 1.15, and_read=True),
    )


# How many times bncore's time PyTorch must take, by operation and layout: float32, and 16 bits.
AGAINST_TORCH = {
    ("train", FIRST): (5.5, 1.8), ("train", LAST): (1.7, 1.5),
    ("train_backward", FIRST): (2.8, 1.8), ("train_backward", LAST): (1.9, 1.4),
    ("infer", FIRST): (1.15, 1.2), ("infer", LAST): (1.15, 1.2),
}  # fmt: skip


def _in_networks(operation: str, layout: str) -> tuple[Promise, ...]:
    """Promise an operation's speed in both networks: warm and cold, AVX2, 16 bits, oneDNN."""
    wide, narrow = AGAINST_TORCH[operation, layout]
    warm = About(BOTH, operation, layout)
    cold = replace(warm, caches="cold")
    return (
        *(Ratio(about, [TORCH], wide, 1.0) for about in (warm, cold)),
        *(Ratio(about, [TORCH_AVX2], wide, 1.0, OWN_AVX2) for about in (warm, cold)),
        *(
            Ratio(About(RESNET, operation, layout, dtype=dtype), [TORCH], narrow, 1.0)
            for dtype in ("bfloat16", "float16")
        ),
        # Half the bytes: over 40 MB in float32, which the caches of most processors do not hold.
        Ratio(
            About(RESNET, operation, layout, dtype="bfloat16", larger_than=20_000_000), [WIDE], 1.7
        ),
    )


PROMISES: tuple[Promise, ...] = (
    *(
        promise
        for operation, layout in AGAINST_TORCH
        for promise in _in_networks(operation, layout)
    ),
    Ratio(About(RESNET, "train"), [BLOCKED], 1.0, 0.8),
    Ratio(About(RESNET, "train", LAST), [ONEDNN], 1.4, 1.0),
    Ratio(About(RESNET, "train", LAST), [WHEEL], 1.2),
    Ratio(About(RESNET, "train_backward", LAST), [WHEEL], 1.0),
    Reach(About(RESNET, "train", BOTH_LAYOUTS), 0.8, 0.6),
    Reach(About(RESNET, "train_backward", BOTH_LAYOUTS), 0.7, 0.5),
    Reach(About(RESNET, "infer", BOTH_LAYOUTS), 0.95, 0.8),
    Ratio(About(["mlp_nc"], "train"), [TORCH], 2.0, 1.3),
    Ratio(About(["mlp_nc"], "train"), [FORMULA], 5.0, 1.3),
    *(
        Ratio(About([name], operation), [TORCH], least, 1.0)
        for name in ("volumes", "sequences", "awkward")
        for operation, least in (("train", 3.0), ("infer", 1.2))
    ),
    Distance(About(RESNET, "infer", larger_than=40_000_000), 1.08),
    Distance(About(RESNET, "train", larger_than=40_000_000), 1.3),
    Distance(About(RESNET, "train_backward", larger_than=40_000_000), 1.35),
    Ratio(About(["reductions"], "mean_var"), [FORMULA], 8.0, 4.0),
    Ratio(About(["tiny"], "train", output="returned"), [TORCH], 3.0),
    Ratio(About(["tiny"], "infer", output="returned"), [TORCH], 3.0),
    Time(About(["tiny"], "train", output="returned"), 2e-6),
    Time(About(["tiny"], "infer"), 1e-6),
    *(
        Scaling(About(BOTH, operation, layout), 1.8)
        for operation in ("train", "infer", "train_backward")
        for layout in LAYOUTS
    ),
    Ratio(About(RESNET, "train", dtype="float64"), [TORCH], 3.0),
    *(p for operation in FUSED for layout in LAYOUTS for p in _of_fusion(operation, layout)),
    Ratio(About(RESNET, "train", FIRST, "pooled"), [TORCH, COMPILED], 3.0, 1.5),
    Ratio(About(RESNET, "train", LAST, "pooled"), [TORCH, COMPILED], 1.6, 1.1),
    *(
        Share(About(RESNET, "train", layout, "pooled", larger_than=100_000_000), GIVEN, 1.05)
        for layout in LAYOUTS
    ),
)


def judged(
    rows: Iterable[Row], resident: int, promises: Sequence[Promise] = PROMISES
) -> list[Verdict]:
    """Judge every promise for every number of threads that was measured."""
    times = times_of(rows)
    threads = sorted({case.threads for case in times})
    verdicts = (p.judge(times, n, resident) for p in promises for n in threads)
    return [verdict for verdict in verdicts if verdict is not None]


def table(verdicts: Iterable[Verdict]) -> Table:
    """Show the promises that were measured."""
    made = Table("Promises", ["figure", "threads", "must be", "is", "worst shape", "kept"])
    for v in verdicts:
        if v.shapes:
            made.lines.append(
                [v.figure, counted(v.threads), v.required, v.measured, v.worst, v.answer]
            )
    return made
