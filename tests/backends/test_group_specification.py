"""Group norm, instance norm and layer norm: every backend beside the specification, to the bit."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

import arrays
import bncore
import variants
from arrays import SIXTEEN_BITS
from bncore import backends
from bncore.backends.partition import line_segment
from specified import PLAIN

# (samples, outer, channels, inner), groups, and what the additions go through there.
SHAPES = {
    ((3, 1, 6, 40), 2): "a group is one run of memory",
    ((2, 1, 4, 4103), 4): "runs longer than a block, one channel each",
    ((2, 1, 6, 3), 3): "runs shorter than the lanes",
    ((2, 30, 6, 1), 2): "rows, folded, of several channels per group",
    ((3, 9, 96, 1), 4): "rows, not folded, of more channels per group than lanes",
    ((1, 600, 40, 1), 40): "rows of several segments, one channel per group",
    ((2, 5, 6, 17), 3): "planes whose channels are merged",
    ((2, 5, 1, 17), 1): "one channel",
    ((7, 1, 33, 1), 1): "lines with values beside the lanes",
    ((3, 1, 200, 1), 1): "lines of a chain of 8, one of 4 and one of the rest",
    ((6, 1, 21, 1), 3): "lines shorter than the lanes",
    ((45, 1, 20, 1), 2): "lines of three segments of samples",
    ((2, 1, 4200, 1), 1): "lines longer than a block",
}


def make(rng, shape, dtype):
    x, dy = (rng.standard_normal((2, *shape)) + 1.5).astype(dtype)
    weight, bias = rng.uniform(0.5, 2.0, shape[2]), rng.standard_normal(shape[2])
    return x, dy, weight, bias


def run(kernels, x, dy, weight, bias, groups, threads=1):
    """Call both functions of the contract on kernels' own arrays."""
    x, dy = (a.view(np.uint16) if a.dtype.kind == "V" else a for a in (x, dy))
    number, channels = x.shape[0] * groups, x.shape[2]
    y, dx = np.empty_like(x), np.empty_like(x)
    mean, m2, sum_dy, sum_dy_xhat = (np.empty(n) for n in (number, number, channels, channels))
    kernels.group_norm(y, mean, m2, x, weight, bias, groups, 1e-3, threads)
    var = m2 / (x.size // number)
    results = dx, sum_dy, sum_dy_xhat
    kernels.group_norm_backward(*results, dy, x, mean, var, weight, groups, 1e-3, threads)
    return {"y": y, "mean": mean, "m2": m2, "dx": dx, "dbias": sum_dy, "dweight": sum_dy_xhat}


def stored(array):
    """The bits of bfloat16 as kernels take them."""
    return (
        array.view(np.uint16) if array.dtype.itemsize == 2 and array.dtype != np.float16 else array
    )


def without_nan_bits(values):
    """Return values whose NaNs are all the same; as bits of bfloat16 they have none here."""
    return values if values.dtype == np.uint16 else arrays.one_nan(values)


def assert_every_backend_gives(expected, *case):
    for variant in variants.FOUND.present:
        with variant.active():
            for threads in (1, 3):
                got = run(backends.current().kernels, *case, threads)
                for name, values in expected.items():
                    same = arrays.same_bits(*map(without_nan_bits, (got[name], values)))
                    assert same, (variant, threads, name)


# The order of a sum is the same for all types but for chains, and the plain loops take long.
OTHER_TYPES = [((3, 1, 6, 40), 2), ((2, 30, 6, 1), 2), ((3, 1, 200, 1), 1)]
CASES = [(*one, np.float32, True) for one in SHAPES]
CASES += [(*one, kind, True) for one in OTHER_TYPES for kind in (np.float64, *SIXTEEN_BITS)]
CASES += [(*one, np.float32, False) for one in OTHER_TYPES]


@pytest.mark.parametrize(("shape", "groups", "dtype", "affine"), CASES, ids=str)
def test_every_backend_gives_the_bits_of_the_specification(rng, shape, groups, dtype, affine):
    x, dy, *parameters = make(rng, shape, dtype)
    given = parameters if affine else (None, None)
    case = stored(x), stored(dy), *given, groups
    assert_every_backend_gives(run(PLAIN, *case), *case)


@pytest.mark.parametrize("which", [0, 1], ids=["weight", "bias"])
def test_a_weight_or_a_bias_alone(rng, which):
    x, dy, *parameters = make(rng, (5, 1, 40, 1), np.float32)
    parameters[which] = None
    case = x, dy, *parameters, 2
    assert_every_backend_gives(run(PLAIN, *case), *case)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("groups", [1, 2])
def test_lines_that_are_not_added_up_about_0(rng, groups, dtype):
    x, dy, *parameters = make(rng, (8, 1, 82, 1), dtype)
    x[1] += 3.0  # mean/std is about 4.5; 1.5 in the others
    x[2] += 1e5
    x[3], x[4] = 0.1, 0.0
    x[5, 0, 3], x[6, 0, -1] = np.nan, np.inf
    x[7] *= np.finfo(dtype).max / 16  # in float64 a square overflows
    case = x, dy, *parameters, groups
    with np.errstate(all="ignore"):
        found = run(PLAIN, *case)
    assert_every_backend_gives(found, *case)
    assert (found["m2"].reshape(8, groups)[3:5] == 0.0).all()
    assert (found["mean"].reshape(8, groups)[3] == x[3, 0, 0]).all()


@pytest.mark.parametrize(
    ("shape", "groups"), [((3, 1, 4, 20), 2), ((4, 9, 4, 1), 2), ((9, 1, 40, 1), 1)]
)
def test_nan_and_infinity_stay_in_their_group(rng, shape, groups):
    x, dy, weight, bias = make(rng, shape, np.float32)
    clean = run(PLAIN, x, dy, weight, bias, groups)
    x[1, 0, 0, 0], x[2, 0, -1, 0] = np.nan, np.inf
    case = x, dy, weight, bias, groups
    found = run(PLAIN, *case)
    assert_every_backend_gives(found, *case)
    wide = shape[2] // groups
    for name in ("y", "dx"):
        mine = found[name].reshape(shape[0], shape[1], groups, wide, -1)
        same = clean[name].reshape(mine.shape)
        bad = ~(mine == same).all(axis=(1, 3, 4))
        assert {tuple(at) for at in np.argwhere(bad)} == {(1, 0), (2, groups - 1)}


def test_how_samples_are_divided():
    assert [line_segment(n) for n in (1, 16, 1024, 1025, 4096, 100_000)] == [
        16,
        16,
        16,
        20,
        64,
        1564,
    ]


def test_layer_norm_is_group_norm_of_lines(rng):
    x, dy, weight, bias = make(rng, (6, 1, 40, 1), np.float32)
    found = run(backends.current().kernels, x, dy, weight, bias, 1)
    y, moments = bncore.layer_norm(x[:, 0, :, 0], weight, bias, eps=1e-3)
    gradients = bncore.layer_norm_backward(dy[:, 0, :, 0], x[:, 0, :, 0], moments, weight, eps=1e-3)
    assert arrays.same_bits(y, found["y"][:, 0, :, 0])
    for name, got in zip(("dx", "dweight", "dbias"), gradients, strict=True):
        assert arrays.same_bits(got.reshape(-1), found[name].reshape(-1)), name


def test_the_order_of_operations_has_not_changed():
    """Record another digest only together with docs/numerics.md."""
    rng = np.random.default_rng(17)
    digest = hashlib.sha256()
    for shape, groups in SHAPES:
        found = run(PLAIN, *make(rng, shape, np.float32), groups)
        for values in found.values():
            digest.update(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")))
    assert digest.hexdigest()[:16] == "13fba802f66a54e9"
