"""Canonical arguments go straight to the C core; all others take the way that repairs or explains.

Results are the same either way, so that only this file sees when the short way is lost.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import arrays
import bncore
import variants
from bncore import backends

pytestmark = pytest.mark.skipif(
    "native" not in variants.FOUND.names(), reason="the native module is missing"
)

SHAPE = (6, 4, 5, 3)


def watched(short: Callable, calls: list[bool]) -> Callable:
    def call(*arguments):
        result = short(*arguments)
        calls.append(result is not None)
        return result

    return call


@pytest.fixture
def taken(monkeypatch):
    """For each call of a short way by name, whether it did the work."""
    seen: dict[str, list[bool]] = {}
    with bncore.use_backend("native"):
        active = backends.current()
        for name in ("fast_train", "fast_infer", "fast_train_backward"):
            seen[name] = []
            monkeypatch.setattr(active, name, watched(getattr(active, name), seen[name]))
        yield seen


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def call_all(x, dy, weight, bias, *, out=None, axis=1, eps=1e-5) -> None:
    """Train, infer and go back, each with its own copy of out's kind."""
    channels = x.shape[axis]
    mean, var = np.zeros(channels), np.ones(channels)

    def target():
        return None if out is None else out(x)

    _, moments = bncore.batch_norm_train(x, weight, bias, out=target(), axis=axis, eps=eps)
    bncore.batch_norm_infer(x, mean, var, weight, bias, out=target(), axis=axis, eps=eps)
    bncore.batch_norm_train_backward(dy, x, moments, weight, out=target(), axis=axis, eps=eps)


def data(rng, dtype=np.float32):
    x, dy = (rng.standard_normal(SHAPE).astype(dtype) for _ in range(2))
    return x, dy, rng.uniform(0.5, 2.0, SHAPE[1]), rng.standard_normal(SHAPE[1])


CANONICAL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda x: x,
    "channels-last view": channels_last,
}


@pytest.mark.parametrize("out", [None, np.empty_like], ids=["new", "out"])
@pytest.mark.parametrize("build", CANONICAL.values(), ids=list(CANONICAL))
@pytest.mark.parametrize("dtype", arrays.FLOATS)
def test_canonical_calls_take_the_short_way(taken, rng, dtype, build, out):
    x, dy, weight, bias = data(rng, dtype)
    x, dy = build(x), build(dy)
    parameters = [
        (None, None),
        (weight, bias),
        (weight.astype(np.float32), bias.astype(np.float32)),
    ]
    for pair in parameters:
        call_all(x, dy, *pair, out=out)
    assert list(taken.values()) == [[True] * len(parameters)] * 3


@pytest.mark.parametrize("shape", [(7, 3), (2, 3, 4), (5, 300), (2, 3, 2, 2, 2)], ids=str)
def test_any_rank_axis_and_number_of_channels(taken, rng, shape):
    x, dy = rng.standard_normal((2, *shape))
    for axis in (1, -1):
        call_all(x.copy(), dy.copy(), None, None, axis=axis)
    assert list(taken.values()) == [[True, True]] * 3


def test_in_place_is_canonical(taken, rng):
    x, dy, weight, bias = data(rng)
    moments = bncore.moments(x)
    bncore.batch_norm_train_backward(dy, x, moments, weight, out=dy)
    bncore.batch_norm_train(x, weight, bias, out=x)
    bncore.batch_norm_infer(x, bias, weight, out=x)
    assert list(taken.values()) == [[True]] * 3


@pytest.mark.parametrize("build", CANONICAL.values(), ids=list(CANONICAL))
def test_what_is_fused_is_canonical(taken, rng, build):
    x, dy, weight, bias = data(rng)
    x, dy, residual = build(x), build(dy), build(rng.standard_normal(SHAPE).astype(np.float32))
    moments, unit = bncore.moments(x), np.ones(SHAPE[1])
    for activation in ("relu", "leaky_relu", None):
        fused = {"activation": activation, "residual": residual}
        for dresidual in (None, np.empty_like(x), dy.copy(order="K")):
            bncore.batch_norm_train_backward(
                dy, x, moments, weight, bias=bias, dresidual=dresidual, **fused
            )
        bncore.batch_norm_train(x, weight, bias, **fused)
        bncore.batch_norm_infer(x, unit, unit, weight, bias, out=residual.copy("K"), **fused)
        bncore.batch_norm_infer(x, unit, unit, weight, bias, out=residual, **fused)
    counts = {name: len(calls) for name, calls in taken.items()}
    assert counts == {"fast_train": 3, "fast_infer": 6, "fast_train_backward": 9}
    assert all(map(all, taken.values()))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"negative_slope": 1}, id="an integer slope"),
        pytest.param({"residual": [[1.0] * 4] * 6}, id="a list"),
        pytest.param({"residual": np.ones((4, 6)).T}, id="another order"),
        pytest.param({"activation": np.str_("relu")}, id="a string of NumPy's"),
    ],
)
def test_other_fusions_take_the_long_way(taken, rng, change):
    x, unit = rng.standard_normal((6, 4)), np.ones(4)
    bncore.batch_norm_train(x, **change)
    bncore.batch_norm_infer(x, unit, unit, **change)
    bncore.batch_norm_train_backward(x, x, bncore.moments(x), **change)
    assert list(taken.values()) == [[False]] * 3


def big_endian(x: np.ndarray) -> np.ndarray:
    return x.astype(x.dtype.newbyteorder(">"))


class Subclass(np.ndarray):
    pass


OTHERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "reversed": lambda x: x[:, :, ::-1],
    "every second": lambda x: x.repeat(2, axis=3)[..., ::2],
    "Fortran order": np.asfortranarray,
    "big-endian": big_endian,
    "unaligned": arrays.unaligned,
    "subclass": lambda x: x.view(Subclass),
}


@pytest.mark.parametrize("build", OTHERS.values(), ids=list(OTHERS))
def test_other_arrays_take_the_long_way(taken, rng, build):
    x, dy, weight, bias = data(rng)
    call_all(build(x), build(dy), weight, bias)
    assert list(taken.values()) == [[False]] * 3


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"weight": [1.0] * 4}, id="a list"),
        pytest.param({"weight": np.ones(8)[::2]}, id="a stride"),
        pytest.param({"weight": np.ones(4, np.float16)}, id="float16"),
        pytest.param({"eps": 1}, id="an integer eps"),
        pytest.param({"axis": np.int64(1)}, id="an axis of NumPy's"),
        pytest.param({"out": lambda x: channels_last(x)}, id="out of another order"),
    ],
)
def test_other_arguments_take_the_long_way(taken, rng, change):
    x, dy, weight, bias = data(rng)
    call_all(**{"x": x, "dy": dy, "weight": weight, "bias": bias} | change)
    assert list(taken.values()) == [[False]] * 3


def test_a_gradient_in_another_order_than_x_takes_the_long_way(taken, rng):
    x, dy, weight, _ = data(rng)
    bncore.batch_norm_train_backward(channels_last(dy), x, bncore.moments(x), weight)
    assert taken["fast_train_backward"] == [False]


def test_an_empty_batch_takes_the_long_way(taken):
    x = np.empty((0, 4, 5))
    call_all(x, x, None, None)
    assert list(taken.values()) == [[False]] * 3


# --------------------------------------------------------------------------- running statistics


@pytest.fixture
def moved(monkeypatch):
    """For each update of running statistics, whether the short way did the work."""
    calls: list[bool] = []
    with bncore.use_backend("native"):
        active = backends.current()
        monkeypatch.setattr(active, "fast_running", watched(active.fast_running, calls))
        yield calls


def update(mean, var, moments, **options) -> tuple[np.ndarray, np.ndarray]:
    bncore.update_running_stats(mean, var, moments, **options)
    return mean, var


@pytest.mark.parametrize("correction", [0, 1, 0.5, -3.0])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_the_short_way_of_running_statistics_gives_the_same_bits(moved, rng, momentum, correction):
    moments = bncore.moments(rng.normal(1e3, 1.0, (7, 300)))
    start = rng.normal(size=300), rng.uniform(0.5, 2.0, 300)
    options = {"momentum": momentum, "correction": correction}
    short = update(*(a.copy() for a in start), moments, **options)
    strided = update(*(a.repeat(2)[::2] for a in start), moments, **options)
    assert moved == [True, False]
    for one, other in zip(short, strided, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"momentum": 1}, id="an integer momentum"),
        pytest.param({"correction": np.float64(1)}, id="a correction of NumPy's"),
        pytest.param({"mean": np.zeros(2, np.float32)}, id="float32"),
        pytest.param({"var": np.ones(2, ">f8")}, id="big-endian"),
        pytest.param({"var": np.ones(4)[::2]}, id="a stride"),
        pytest.param({"moments": bncore.Moments(0, [0.0, 0.0], [0.0, 0.0])}, id="an empty batch"),
        pytest.param({"moments": bncore.Moments(1 << 60, [0.0] * 2, [0.0] * 2)}, id="a huge count"),
    ],
)
def test_other_running_statistics_take_the_long_way(moved, change):
    moments = bncore.Moments(2, [1.0, 2.0], [2.0, 4.0])
    given = {"mean": np.zeros(2), "var": np.ones(2), "moments": moments} | change
    update(given.pop("mean"), given.pop("var"), given.pop("moments"), **given)
    assert moved == [False]


@pytest.mark.parametrize(
    "change",
    [
        {"momentum": 1.5}, {"momentum": float("nan")}, {"correction": 2}, {"correction": 2.0},
        {"correction": float("nan")}, {"mean": np.zeros(3)}, {"mean": np.broadcast_to(0.0, 2)},
        {"mean": None}, {"var": np.zeros((2, 1))}, {"same": True},
    ],
    ids=str,
)  # fmt: skip
def test_the_short_way_refuses_nothing_by_itself(moved, change):
    given = {"mean": np.zeros(2), "var": np.ones(2), **change}
    if given.pop("same", False):
        given["var"] = given["mean"]
    moments = bncore.Moments(2, [1.0, 2.0], [2.0, 4.0])
    with pytest.raises((TypeError, ValueError), match="expected"):
        update(given.pop("mean"), given.pop("var"), moments, **given)
    assert moved == [False]
