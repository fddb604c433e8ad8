"""The public functions: their signatures, and the properties that all of them share."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import bncore

FORWARD = (bncore.batch_norm_train, bncore.batch_norm_infer, bncore.normalize)
BACKWARD = (bncore.batch_norm_train_backward, bncore.batch_norm_infer_backward, bncore.grad_input)
ARRAYS = {
    "batch_norm_train": "x weight bias",
    "batch_norm_train_backward": "dy x moments weight",
    "batch_norm_infer": "x mean var weight bias",
    "batch_norm_infer_backward": "dy x mean var weight",
    "moments": "x",
    "normalize": "x moments weight bias",
    "grad_sums": "dy x moments",
    "grad_input": "dy x moments sums weight",
    "mean_var": "x",
    "update_running_stats": "running_mean running_var moments",
}
DEFAULTS = {
    "axis": 1,
    "eps": 1e-5,
    "momentum": 0.1,
    "correction": 0,
    "keepdims": False,
    "negative_slope": 0.01,
    "nan_policy": "propagate",
}


@pytest.mark.parametrize("name", ARRAYS)
def test_signature(name):
    parameters = inspect.signature(getattr(bncore, name)).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ARRAYS[name].split()
    options = [p for p in parameters.values() if p.name not in positional]
    assert all(p.kind is p.KEYWORD_ONLY for p in options)
    defaults = dict(DEFAULTS)
    if name == "mean_var":
        defaults |= {"axis": None, "correction": None}  # 0, as ddof
    if name == "update_running_stats":
        defaults["correction"] = 1
    assert {p.name: p.default for p in options} == {p.name: defaults.get(p.name) for p in options}
    assert ("n_threads" in parameters) == (name != "update_running_stats")


def test_all_is_what_is_public():
    public = {
        name
        for name, value in vars(bncore).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(bncore.__all__)


@pytest.mark.parametrize("name", [name for name in bncore.__all__ if name.islower()])
def test_every_function_documents_its_parameters(name):
    function = getattr(bncore, name)
    text = inspect.getdoc(function)
    assert "Examples\n--------" in text or name == "get_num_threads"
    documented = text.partition("Parameters\n")[2].partition("\nReturns\n")[0]
    for parameter in inspect.signature(function).parameters:
        assert parameter in documented


def numbers(rng, dtype=np.float64):
    x, dy = rng.standard_normal((2, 6, 3, 4)).astype(dtype)
    weight, bias, mean = rng.standard_normal((3, 3)).astype(dtype)
    return x, dy, weight, bias, mean, rng.uniform(0.5, 2.0, 3).astype(dtype)


def results(x, dy, weight, bias, mean, var, **options):
    """Every function that takes `out`, each by name."""
    moments = bncore.moments(x)
    sums = bncore.grad_sums(dy, x, moments)
    out = options.pop("out", lambda: None)
    return {
        "train": bncore.batch_norm_train(x, weight, bias, out=out(), **options)[0],
        "normalize": bncore.normalize(x, moments, weight, bias, out=out(), **options),
        "infer": bncore.batch_norm_infer(x, mean, var, weight, bias, out=out(), **options),
        "train_backward": bncore.batch_norm_train_backward(
            dy, x, moments, weight, out=out(), **options
        )[0],
        "grad_input": bncore.grad_input(dy, x, moments, sums, weight, out=out(), **options),
        "infer_backward": bncore.batch_norm_infer_backward(
            dy, x, mean, var, weight, out=out(), **options
        )[0],
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_is_returned_and_holds_the_result(backend, rng, dtype):
    given = numbers(rng, dtype)
    expected = results(*given)
    outs = []

    def new_out():
        outs.append(np.full((6, 3, 4), np.nan, dtype))
        return outs[-1]

    for (name, y), out in zip(results(*given, out=new_out).items(), outs, strict=True):
        assert y is out, name
        assert y.tobytes() == expected[name].tobytes(), name
    for make in (
        lambda: np.full((6, 3, 4), np.nan, np.dtype(dtype).newbyteorder()),
        lambda: np.full((4, 3, 6), np.nan, dtype).T,
        lambda: np.full((12, 3, 8), np.nan, dtype)[::2, :, ::-2],
    ):
        for name, y in results(*given, out=make).items():
            assert (y == expected[name]).all(), name


@pytest.mark.parametrize("order", ["C", "F", "channels-last", "steps"])
def test_out_may_be_the_input(backend, rng, order):
    x, dy, weight, bias, mean, var = numbers(rng)

    def laid_out(values):
        if order == "channels-last":
            return np.moveaxis(np.moveaxis(values, 1, -1).copy(), -1, 1)
        if order == "steps":
            return np.repeat(values, 2, axis=0)[::2]
        return values.copy(order)

    x, dy = laid_out(x), laid_out(dy)
    expected = results(x, dy, weight, bias, mean, var)
    moments = bncore.moments(x)
    sums = bncore.grad_sums(dy, x, moments)
    for name, call in {
        "train": lambda a, g, out: bncore.batch_norm_train(a, weight, bias, out=out)[0],
        "normalize": lambda a, g, out: bncore.normalize(a, moments, weight, bias, out=out),
        "infer": lambda a, g, out: bncore.batch_norm_infer(a, mean, var, weight, bias, out=out),
        "train_backward": lambda a, g, out: bncore.batch_norm_train_backward(
            g, a, moments, weight, out=out
        )[0],
        "grad_input": lambda a, g, out: bncore.grad_input(g, a, moments, sums, weight, out=out),
        "infer_backward": lambda a, g, out: bncore.batch_norm_infer_backward(
            g, a, mean, var, weight, out=out
        )[0],
    }.items():
        for into in ("x", "dy") if "grad" in name or "backward" in name else ("x",):
            a, g = laid_out(x), laid_out(dy)
            out = a if into == "x" else g
            assert call(a, g, out) is out
            assert (out == expected[name]).all(), (name, into)


@pytest.mark.parametrize("dtype", ["e", "f", "d", "g", ">f4"])
def test_gradients_of_parameters_come_in_their_dtype(backend, rng, dtype):
    x, dy, *_ = numbers(rng, np.float32)
    weight = np.array([1.0, 2.0, 0.5], dtype)
    moments = bncore.moments(x)
    sums = bncore.grad_sums(dy, x, moments)
    calls = (
        lambda w: bncore.batch_norm_train_backward(dy, x, moments, w),
        lambda w: bncore.batch_norm_infer_backward(dy, x, moments.mean, moments.var(), w),
    )
    for call in calls:
        _, dweight, dbias = call(weight)
        native = np.dtype(dtype).newbyteorder("=")
        assert dweight.dtype == dbias.dtype == native
        assert (dweight == sums.sum_dy_xhat.astype(native)).all()
        assert (dbias == sums.sum_dy.astype(native)).all()
        assert [g.dtype for g in call(None)] == [np.float32] * 3


def test_what_weight_cannot_hold_becomes_infinite_in_silence(backend):
    x = np.array([[1.0, 2.0], [3.0, 5.0], [2.0, 2.0]])
    dy, weight = np.full((3, 2), 1e300), np.ones(2, np.float32)
    moments = bncore.moments(x)
    for _, _, dbias in (
        bncore.batch_norm_train_backward(dy, x, moments, weight),
        bncore.batch_norm_infer_backward(dy, x, [0.0, 0.0], [1.0, 1.0], weight),
    ):
        assert dbias.dtype == np.float32 and np.isposinf(dbias).all()


def test_nothing_is_kept_of_the_arguments(backend, rng):
    x, dy, weight, bias, mean, var = numbers(rng)
    before = [a.copy() for a in (x, dy, weight, bias, mean, var)]
    y, moments = bncore.batch_norm_train(x, weight, bias)
    results(x, dy, weight, bias, mean, var)
    for a, b in zip((x, dy, weight, bias, mean, var), before, strict=True):
        assert a.tobytes() == b.tobytes()
    assert not any(np.shares_memory(y, a) for a in (x, dy, weight, bias))
    assert not np.shares_memory(moments.mean, moments.m2)


def test_lists_and_scalars_of_numpy_are_arguments(backend):
    x = [[1.0, 2.0], [3.0, 6.0]]
    y, moments = bncore.batch_norm_train(x, [1.0, 1.0], [0.0, 1.0], axis=np.int64(-1),
                                         eps=np.float32(0.0), n_threads=np.int8(2))  # fmt: skip
    assert y.tolist() == [[-1.0, 0.0], [1.0, 2.0]]
    assert moments == bncore.Moments(2, [2.0, 4.0], [2.0, 8.0])


def test_read_only_input_is_input(backend, rng):
    given = numbers(rng)
    expected = results(*given)
    for a in given:
        a.flags.writeable = False
    for name, y in results(*given).items():
        assert y.flags.writeable and (y == expected[name]).all(), name


def test_the_callers_error_state_is_not_asked(backend):
    x = np.array([[1.0, np.inf, np.nan, 1e308], [1.0, 1.0, 1.0, -1e308]])
    with np.errstate(all="raise"):
        y, moments = bncore.batch_norm_train(x, eps=0.0)
        bncore.batch_norm_train_backward(x, x, moments, eps=0.0)
        bncore.batch_norm_infer(x, np.zeros(4), np.zeros(4), eps=0.0)
        bncore.mean_var(x, axis=0)
    assert np.isnan(y[:, 0]).all()


def test_every_array_that_comes_back_can_be_written(backend, rng):
    x, dy, weight, bias, mean, var = numbers(rng)
    moments = bncore.moments(x)
    found = [
        *results(x, dy, weight, bias, mean, var).values(),
        *bncore.batch_norm_train_backward(dy, x, moments, weight)[1:],
        *bncore.batch_norm_infer_backward(dy, x, mean, var, weight)[1:],
        *bncore.mean_var(x, axis=(0, 2)),
        *bncore.mean_var(x, axis=(0, 1), keepdims=True),
        moments.var(),
        moments.std(),
        moments.invstd(1e-5),
    ]
    for array in found:
        array[...] = 0.0
    assert moments == bncore.moments(x)
