"""A folded layer does what the layer and the batch norm after it did."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import bncore
import oracle
from bncore import as_scale_shift, fold_into_conv, fold_into_linear
from tolerances import FOLDED_FLOAT64, FOLDED_ULP

DTYPES = [np.float32, np.float64]


def convolved(x, weight, groups, *, transposed):
    """Plain loops: x (N, I, spatial...), weight (O, I/g, k...), or transposed (I, O/g, k...)."""
    spatial, kernel = x.shape[2:], weight.shape[2:]
    if transposed:
        size = [n + k - 1 for n, k in zip(spatial, kernel, strict=True)]
        outputs = weight.shape[1] * groups
    else:
        size = [n - k + 1 for n, k in zip(spatial, kernel, strict=True)]
        outputs = weight.shape[0]
    y = np.zeros((x.shape[0], outputs, *size), np.longdouble)
    into, per = x.shape[1] // groups, outputs // groups
    for o, i in itertools.product(range(outputs), range(into)):
        g = o // per
        plane = x[:, g * into + i]
        taps = weight[g * into + i, o % per] if transposed else weight[o, i]
        for at in np.ndindex(kernel):
            if transposed:
                where = tuple(slice(a, a + n) for a, n in zip(at, spatial, strict=True))
                y[(slice(None), o, *where)] += plane * taps[at]
            else:
                where = tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))
                y[:, o] += plane[(slice(None), *where)] * taps[at]
    return y


def statistics(rng, channels):
    return (
        rng.standard_normal(channels) * 3,
        rng.uniform(0.1, 4.0, channels),
        rng.standard_normal(channels),
        rng.standard_normal(channels),
    )


def assert_folded(folded, plain, terms, bias, given, dtype):
    """Compare y of the folded layer with batch norm of y, relative to the sum's largest term.

    `plain` is the layer's y without its bias; `terms` is the same with absolute values.
    """
    mean, var, gamma, beta = (
        np.asarray(v, np.longdouble).reshape(-1, *[1] * (plain.ndim - 2)) for v in given
    )
    before = 0 if bias is None else bias.astype(np.longdouble).reshape(mean.shape)
    scale = gamma / np.sqrt(var + np.longdouble(1e-3))
    expected = (plain + before - mean) * scale + beta
    largest = np.maximum(np.abs(terms * scale), np.abs((before - mean) * scale))
    largest = np.maximum(largest, np.abs(beta))
    if dtype == np.float32:
        assert np.max(np.abs(folded - expected) / oracle.ulp(largest)) <= FOLDED_ULP
    else:
        assert oracle.max_relative(folded, expected, largest) <= FOLDED_FLOAT64


CASES = [(1, False), (3, False), (1, True), (3, True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize(("groups", "transposed"), CASES)
@pytest.mark.parametrize("layout", ["OI", "IO", "last", "last-OI"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions(rng, rank, layout, groups, transposed, biased, dtype):
    spatial, kernel = (5, 4, 6)[:rank], (3, 2, 2)[:rank]
    into, outputs = 6, 9
    shape = (into, outputs // groups) if transposed else (outputs, into // groups)
    weight = rng.standard_normal((*shape, *kernel)).astype(dtype)
    bias = rng.standard_normal(outputs).astype(dtype) if biased else None
    x = rng.standard_normal((2, into, *spatial)).astype(dtype)
    given = statistics(rng, outputs)

    # From torch's order of axes into the layout, and back.
    letters = ("IO" if transposed else "OI") + "DHW"[3 - rank :]
    places = {"OI": "OI{}", "IO": "IO{}", "last": "{}IO", "last-OI": "{}OI"}
    name = places[layout].format("DHW"[3 - rank :])
    there = [letters.index(letter) for letter in name]
    back = [name.index(letter) for letter in letters]
    options = {"groups": groups, "transposed": transposed, "layout": name, "eps": 1e-3}
    new_weight, new_bias = fold_into_conv(weight.transpose(there), bias, *given, **options)
    assert new_weight.dtype == new_bias.dtype == dtype
    if name == letters:
        options["layout"] = None
        again, _ = fold_into_conv(weight, bias, *given, **options)
        np.testing.assert_array_equal(again, new_weight)
    new_weight = new_weight.transpose(back)
    assert new_weight.shape == weight.shape

    def run(x, w):
        return convolved(x.astype(np.longdouble), w, groups, transposed=transposed)

    y = run(x, new_weight) + new_bias.reshape(-1, *[1] * rank)
    terms = run(np.abs(x), np.abs(weight))
    assert_folded(y, run(x, weight), terms, bias, given, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["OI", "IO"])
@pytest.mark.parametrize("biased", [False, True], ids=["no-bias", "bias"])
def test_linear(rng, layout, biased, dtype):
    weight = rng.standard_normal((7, 20)).astype(dtype)
    bias = rng.standard_normal(7).astype(dtype) if biased else None
    x = rng.standard_normal((30, 20)).astype(dtype)
    given = statistics(rng, 7)
    shaped = weight if layout == "OI" else weight.T
    new_weight, new_bias = fold_into_linear(shaped, bias, *given, layout=layout, eps=1e-3)
    new_weight = new_weight if layout == "OI" else new_weight.T
    wide = x.astype(np.longdouble)
    y = wide @ new_weight.T.astype(np.longdouble) + new_bias
    terms = np.abs(wide) @ np.abs(weight.T)
    assert_folded(y, wide @ weight.T.astype(np.longdouble), terms, bias, given, dtype)


def test_the_two_layers_as_they_run(rng):
    """bncore's own batch norm after NumPy's product."""
    x, weight, bias = rng.standard_normal((30, 20)), rng.standard_normal((20, 7)), np.ones(7)
    given = statistics(rng, 7)
    expected = bncore.batch_norm_infer(x @ weight + bias, *given)
    new_weight, new_bias = fold_into_linear(weight, bias, *given, layout="IO")
    np.testing.assert_allclose(x @ new_weight + new_bias, expected, rtol=1e-12, atol=1e-12)


def test_scale_and_shift(rng):
    x = rng.standard_normal((6, 4, 5))
    mean, var, weight, bias = statistics(rng, 4)
    for parameters in ((), (weight,), (None, bias), (weight, bias)):
        scale, shift = as_scale_shift(mean, var, *parameters, eps=0.1)
        assert scale.dtype == shift.dtype == np.float64
        y = x * scale[:, None] + shift[:, None]
        expected = bncore.batch_norm_infer(x, mean, var, *parameters, eps=0.1)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)
    scale, shift = as_scale_shift([7.0, 7.0], [0.0, 4.0], [3.0, 3.0], [1.0, 1.0], eps=0.0)
    assert scale.tolist() == [3.0, 1.5] and shift.tolist() == [-20.0, -9.5]  # the first gives 1.0


def test_scale_and_shift_of_a_layer(rng):
    layer = bncore.BatchNorm(4, activation="relu", eps=0.1)
    x = rng.standard_normal((6, 4, 5))
    layer(x)
    scale, shift = layer.as_scale_shift()
    y = np.maximum(x * scale[:, None] + shift[:, None], 0.0)
    np.testing.assert_allclose(layer.eval()(x), y, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"^as_scale_shift: expected a layer with running stat"):
        bncore.BatchNorm(4, track_running_stats=False).as_scale_shift()


def test_memory_order_dtype_and_arguments_are_kept(rng):
    weight = np.asfortranarray(rng.standard_normal((4, 3, 5, 5))).astype(">f4", order="K")
    before = weight.copy(order="K")
    folded, bias = fold_into_conv(weight, None, *statistics(rng, 4))
    assert folded.dtype == bias.dtype == np.float32 and folded.flags.f_contiguous
    np.testing.assert_array_equal(weight, before)
    half, _ = fold_into_linear(np.ones((2, 3), np.float16), None, np.zeros(2), np.ones(2))
    assert half.dtype == np.float16


W, TWO = np.ones((2, 3, 5)), (np.zeros(2), np.ones(2))


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: fold_into_conv(W, None, np.zeros(3), np.ones(3)), ValueError,
     r"^mean: expected shape \(2,\), one for each output channel of weight, got \(3,\)$"),
    (lambda: fold_into_conv(W, None, *TWO, transposed=True), ValueError,
     r"^mean: expected shape \(3,\), "),
    (lambda: fold_into_conv(W, [1.0], *TWO), ValueError, r"^bias: expected shape \(2,\), got"),
    (lambda: fold_into_conv(W, None, *TWO, [1.0]), ValueError, r"^bn_weight: expected shape \(2,"),
    (lambda: fold_into_conv(W, None, *TWO, None, [1]), TypeError, r"^bn_bias: expected a real "),
    (lambda: fold_into_conv(W, None, TWO[0], [1.0]), ValueError, r"^var: expected shape \(2,\)"),
    (lambda: fold_into_conv(W, None, *TWO, groups=3), ValueError,
     r"^groups: expected a divisor of 2, weight's size along axis 0, got 3$"),
    (lambda: fold_into_conv(W, None, *TWO, groups=0), ValueError, r"^groups: expected an integer"),
    (lambda: fold_into_conv(W, None, *TWO, layout="OIH"), ValueError,
     r"^layout: expected each of O I W once, for 3 dimensions, got 'OIH'$"),
    (lambda: fold_into_conv(W, None, *TWO, layout=3), TypeError, r"^layout: expected a string"),
    (lambda: fold_into_conv(W, None, *TWO, transposed=1), TypeError, r"^transposed: expected a b"),
    (lambda: fold_into_conv(W, None, *TWO, eps=-1), ValueError, r"^eps: expected a finite number"),
    (lambda: fold_into_conv(W[0], None, *TWO), ValueError,
     r"^weight: expected 3 to 5 dimensions, got shape \(3, 5\)$"),
    (lambda: fold_into_linear(W, None, *TWO), ValueError, r"^weight: expected 2 dimensions, got"),
    (lambda: fold_into_linear([[1]], None, *TWO), TypeError, r"^weight: expected a real floating"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.needs_torch
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_against_torch(rng, rank, transposed, groups):
    import torch

    name = f"Conv{'Transpose' if transposed else ''}{rank}d"
    conv = getattr(torch.nn, name)(6, 9, 3, stride=2, padding=1, groups=groups).double()
    norm = getattr(torch.nn, f"BatchNorm{rank}d")(9).double().eval()
    mean, var, weight, bias = statistics(rng, 9)
    with torch.no_grad():
        norm.running_mean[...], norm.running_var[...] = torch.tensor(mean), torch.tensor(var)
        norm.weight[...], norm.bias[...] = torch.tensor(weight), torch.tensor(bias)
        x = torch.tensor(rng.standard_normal((2, 6, *[7] * rank)))
        expected = norm(conv(x)).numpy()
        given = conv.weight.numpy(), conv.bias.numpy()
        folded = fold_into_conv(
            *given, mean, var, weight, bias, groups=groups, transposed=transposed
        )
        conv.weight[...], conv.bias[...] = map(torch.tensor, folded)
        np.testing.assert_allclose(conv(x).numpy(), expected, rtol=0, atol=1e-12)
