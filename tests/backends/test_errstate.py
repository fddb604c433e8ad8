"""The caller's floating-point settings do not affect a function, and no function changes them."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
from collections.abc import Callable

import numpy as np
import pytest

import arrays
import bncore
import operations
from arrays import FLOATS
from bncore import GradSums, Moments
from variants import taking_turns


def _mixed_with(value: float) -> arrays.Values:
    def build(rng, shape, dtype):
        x = arrays.normal(rng, shape, dtype)
        x.reshape(-1)[::7] = value
        return x

    return build


KINDS: dict[str, arrays.Values] = {
    "subnormal": arrays.VALUES["subnormal"],
    # Squares of these are subnormal: so is the variance, and dividing by n is not exact.
    "tiny_squares": lambda rng, shape, dtype: arrays.normal(
        rng, shape, dtype, 0.0, 1e-161 if dtype == np.float64 else 1e-23
    ),
    "huge": lambda rng, shape, dtype: (
        rng.choice([-1.0, 1.0], shape) * float(np.finfo(dtype).max)
    ).astype(dtype),
    "zero_variance": lambda rng, shape, dtype: np.full(shape, 0.1, dtype),
    "zero": lambda rng, shape, dtype: np.zeros(shape, dtype),
    "nan": _mixed_with(np.nan),
    "inf": _mixed_with(np.inf),
    "-inf": _mixed_with(-np.inf),
}
SHAPES = [(3, 4, 33), (600, 4), (5, 4), (2, 3, 40000)]  # planes, rows, narrow rows, threads

STATISTICS = [5e-324, -3e-310, 1.7e308, 0.0, np.nan, np.inf, 1.0]
COUNT = len(STATISTICS)
SQUARES = [abs(value) for value in STATISTICS]


def of_statistics() -> None:
    """Call everything that has no x, with all pairs of extreme values."""
    for step in range(COUNT):
        m = Moments(5, STATISTICS, np.roll(SQUARES, step))
        other = Moments(7, np.roll(STATISTICS, step), SQUARES)
        merged = m.merge(other).merge(m)
        for moments in (m, merged, Moments(1, STATISTICS, SQUARES)):
            for correction in (0, 1, 0.5, 4.999):
                assert moments.var(correction).shape == moments.std(correction).shape == (COUNT,)
            for eps in (0.0, 5e-324, 1e-5, 1.7e308):
                moments.invstd(eps)
        assert m == m and m != other and repr(merged)
        sums = GradSums(STATISTICS, np.roll(STATISTICS, step))
        assert (sums + sums).merge(sums) != sums
        for dtype in (np.float16, np.float32, np.float64, np.longdouble):
            with np.errstate(all="ignore"):
                running = np.array(STATISTICS).astype(dtype), np.array(SQUARES).astype(dtype)
            for momentum in (0.0, 5e-324, 0.1, 1.0):
                bncore.update_running_stats(*running, merged, momentum=momentum)
                bncore.update_running_stats(*running, m, momentum=momentum, correction=0)
            Moments(3, *running[:1], np.abs(running[1]))


def of_layers() -> None:
    """Extreme batches in every mode; the running statistics become as extreme."""
    x = np.array([STATISTICS, SQUARES[::-1], [1e-170] * COUNT])
    for policy in ("propagate", "skip"):
        for settings in ({}, {"momentum": None, "correction": 0}, {"debias": True}):
            layer = bncore.BatchNorm(on_nonfinite=policy, eps=0.0, dtype=np.float32, **settings)
            for _ in range(3):
                layer(x)
                layer.backward(x)
                layer.freeze()(x)
                layer.backward(x)
                layer.freeze(False)
            layer.eval()(x)
            layer.load_state_dict({**layer.state_dict(), "weight": np.full(COUNT, 1e300)})
    with pytest.raises(FloatingPointError, match="expected finite mean and variance"):
        bncore.BatchNorm(on_nonfinite="raise")(x)


X = np.array([STATISTICS, SQUARES[::-1], [1e-170] * COUNT, SQUARES])


def of_pieces() -> None:
    """Extreme pieces of a batch, and populations of them."""
    batch = bncore.MicroBatches(STATISTICS, STATISTICS, eps=0.0)
    list(batch.forward([X[:1], X[1:]]))
    list(batch.backward([X[:1], X[1:]], [X[:1], X[1:]]))
    assert batch.dweight.shape == batch.dbias.shape == (COUNT,)
    merged = bncore.merged_moments([X, bncore.stream_moments(X, block_bytes=4096)])
    assert (merged.count == 8).all()
    layer = bncore.BatchNorm(dtype=np.float32)
    bncore.recalibrate([layer], [X, X], forward=layer)
    assert list(bncore.batch_norms([layer])) == [layer]


def of_folding() -> None:
    """Extreme statistics, folded."""
    given = STATISTICS, SQUARES, STATISTICS, STATISTICS
    assert bncore.as_scale_shift(*given, eps=0.0).scale.shape == (COUNT,)
    weight = np.ones((COUNT, 2), np.float32)
    bncore.fold_into_linear(weight, STATISTICS, *given, eps=0.0)
    bncore.fold_into_conv(weight[:, :, None], None, *given, eps=0.0)


def of_groupings() -> None:
    """Extreme values normalized over other groups, and their gradients."""
    for x in (X, np.stack([X, X[::-1]], axis=2)):
        weight = np.resize(STATISTICS, x.shape[1])
        y, moments = bncore.instance_norm(np.stack([x, x], -1), weight, weight, eps=0.0)
        bncore.instance_norm_backward(y, np.stack([x, x], -1), moments, weight, eps=0.0)
        y, moments = bncore.group_norm(x, 1, weight, weight, eps=0.0)
        bncore.group_norm_backward(y, x, moments, 1, weight, eps=0.0)
        weights = np.resize(STATISTICS, x.shape[1:])
        y, moments = bncore.layer_norm(x, weights, weights, axis=1, eps=0.0)
        bncore.layer_norm_backward(y, x, moments, weights, axis=1, eps=0.0)
        assert bncore.var(x, axis=0).shape == bncore.std(x, axis=0).shape == x.shape[1:]
        y, found = bncore.standardize(x)
        bncore.destandardize(y, found)
        y, found = bncore.ghost_batch_norm(x, 2, weight, weight, eps=0.0)
        bncore.ghost_batch_norm_backward(y, x, found, 2, weight, eps=0.0)
        y, moments, renorm = bncore.batch_renorm(x, weight, np.abs(weight), weight, weight, eps=0.0)
        bncore.batch_renorm_backward(y, x, moments, renorm, weight, eps=0.0)


def of_settings() -> None:
    bncore.set_num_threads(2)
    assert bncore.get_num_threads() == 2
    bncore.set_num_threads(None)
    bncore.set_buffer_pool(1 << 20)
    bncore.set_buffer_pool(None)
    bncore.show_config(mode="dicts")
    with bncore.use_backend("numpy"):
        pass


# What calls each public name: operations on arrays by their own name, the others here.
def of_library() -> None:
    """Ask for the C library's places; RuntimeError and ImportError are right if it is missing."""
    with contextlib.suppress(RuntimeError):
        assert bncore.get_include() and bncore.get_library_dir()
    with contextlib.suppress(ImportError):
        assert bncore.get_address("bncore_train") and "bncore_train" in bncore.get_capsules()


NO_ARRAYS: dict[str, Callable[[], None]] = {
    **dict.fromkeys(["Moments", "GradSums", "update_running_stats"], of_statistics),
    "BatchNorm": of_layers,
    **dict.fromkeys(
        ["MicroBatches", "merged_moments", "stream_moments", "recalibrate", "batch_norms"],
        of_pieces,
    ),
    **dict.fromkeys(["as_scale_shift", "fold_into_conv", "fold_into_linear"], of_folding),
    **dict.fromkeys(
        [
            f"{name}{end}"
            for name in (
                "instance_norm",
                "group_norm",
                "layer_norm",
                "ghost_batch_norm",
                "batch_renorm",
            )
            for end in ("", "_backward")
        ],
        of_groupings,
    ),
    **dict.fromkeys(["var", "std", "standardize", "destandardize"], of_groupings),
    **dict.fromkeys(
        ["get_num_threads", "set_num_threads", "set_buffer_pool", "show_config", "use_backend"],
        of_settings,
    ),
    **dict.fromkeys(["get_include", "get_library_dir", "get_address", "get_capsules"], of_library),
}
NAMES = {"train": "batch_norm_train", "train_backward": "batch_norm_train_backward",
         "infer": "batch_norm_infer", "infer_backward": "batch_norm_infer_backward"}  # fmt: skip


def test_every_public_name_is_called():
    called = {NAMES.get(name, name) for name in operations.ALL} | NO_ARRAYS.keys()
    assert called == set(bncore.__all__)


def floating_point_state() -> tuple[object, ...]:
    """NumPy's settings, the rounding mode, and whether subnormal numbers count."""
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    with np.errstate(all="ignore"):
        tiny = np.full(16, np.finfo(np.float64).tiny) * 0.5
        tiny32 = np.full(16, np.finfo(np.float32).tiny) * np.float32(0.5)
    return (
        np.geterr(),
        np.geterrcall(),
        library.fegetround(),
        bool((tiny > 0.0).all() and (tiny * 2.0 == np.finfo(np.float64).tiny).all()),
        bool((tiny32 > 0.0).all()),
    )


@taking_turns(shape=SHAPES, kind=KINDS, dtype=FLOATS)
def test_operations_in_a_strict_caller(backend, rng, shape, kind, dtype):
    """Draw canonical arguments and arguments that are converted, with every kind as x and dy."""
    x, dy = KINDS[kind](rng, shape, dtype), arrays.normal(rng, shape, dtype)
    plain = operations.make_case(rng, shape, dtype)
    weight, var = np.resize([1e300, 5e-324, -1.0], shape[1]), np.full(shape[1], 1e-310)
    cases = [
        operations.replace(plain, x=x, eps=0.0),
        operations.replace(plain, dy=KINDS[kind](rng, shape, dtype)),
        operations.replace(plain, x=x, dy=x.copy(), weight=weight, bias=weight, mean=weight,
                           var=var, eps=5e-324),
        operations.replace(plain, x=x[::-1], dy=dy[::-1], weight=weight.astype(np.longdouble)),
    ]  # fmt: skip
    for case in cases:
        with np.errstate(all="raise"):
            before = floating_point_state()
            operations.run_all(case, n_threads=3)
            bncore.mean_var(case.x, axis=None, correction=1)
            assert floating_point_state() == before


@pytest.mark.parametrize("call", sorted(set(NO_ARRAYS.values()), key=lambda call: call.__name__),
                         ids=lambda call: call.__name__)  # fmt: skip
def test_everything_else_in_a_strict_caller(backend, call):
    with np.errstate(all="raise"):
        before = floating_point_state()
        call()
        assert floating_point_state() == before


def test_a_callers_strictness_is_seen():
    """The tests above rely on this: these settings do raise."""
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        np.array([5e-324]) / np.array([5.0])
