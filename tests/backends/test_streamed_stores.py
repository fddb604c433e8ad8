"""Streamed outputs: arrays that are large enough for the limit in schedule.c, with every edge.

The same call in place never streams its stores, so a streamed result must have its bits.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import arrays
import bncore
import operations
from arrays import FLOATS
from variants import FOUND

# At least this much output and input together is streamed: 3/4 of the cache that schedule.c
# believes in.
STREAMED_BYTES = 24 << 20

# (N, C, spatial...) by what meets in a line of 64 bytes: runs shorter than a line, runs that end
# within one, planes of a group of channels or in part, rows of whole lines and others, folded ones.
SHAPES = [
    (27, 9000, 16),
    (27, 2500, 7, 7),
    (5, 64, 99, 101),
    (2, 3, 550001),
    (210000, 16),
    (9001, 400),
    (6401, 512),
    (3101, 1040),
    (1700, 1999),
    (100003, 33),
]


NATIVE = [variant for variant in FOUND.present if variant.name == "native"]


@pytest.fixture(params=NATIVE, ids=str)
def streaming(request):
    """The backend that streams: native, with each instruction set."""
    with request.param.active():
        yield


def alternating(name: str, pair) -> pytest.MarkDecorator:
    """Parametrize by every instruction set and shape, with one of the two values by turns."""
    cases = [
        pytest.param(variant, shape, pair[(i + k) % 2], id=f"{variant}-{shape}")
        for i, variant in enumerate(NATIVE)
        for k, shape in enumerate(SHAPES)
    ]
    return pytest.mark.parametrize(["streaming", "shape", name], cases, indirect=["streaming"])


@alternating("dtype", FLOATS)
def test_streamed_output_has_the_bits_of_one_in_place(streaming, shape, dtype, rng):
    if dtype == np.float64:
        shape = ((shape[0] + 1) // 2, *shape[1:])
    assert 2 * math.prod(shape) * np.dtype(dtype).itemsize > STREAMED_BYTES
    case = operations.make_case(rng, shape, dtype)
    for name in operations.WRITING:
        # Statistics first: in place, x is no longer what they are of.
        here = case.rebuilt(np.copy).with_statistics()
        expected = operations.WRITING[name](here, out=here.x)
        for place, n_threads in ((0, 1), (4, 2), (13, 3)):
            out = arrays.offset_by(np.full_like(case.x, np.nan), place)
            before = out.ctypes.data
            got = operations.WRITING[name](case, out=out, n_threads=n_threads)
            assert operations.differences(got, expected) == [], (name, place, n_threads)
            assert got.get("y", got.get("dx")).ctypes.data == before


@pytest.mark.parametrize("shape", [(54, 9001, 17), (51, 2501, 7, 7), (120003, 66)], ids=str)
def test_streamed_output_of_16_bits(streaming, shape, rng):
    """A line holds 32 values: planes may be shorter, so that three meet in a line."""
    x = rng.standard_normal(shape, np.float32).astype(np.float16)
    mean, var = rng.standard_normal((2, shape[1])) ** 2
    in_place = x.copy()
    bncore.batch_norm_infer(in_place, mean, var, out=in_place)
    for place, n_threads in ((0, 1), (3, 1), (20, 2), (31, 3)):
        out = arrays.offset_by(np.full_like(x, np.nan), place)
        bncore.batch_norm_infer(x, mean, var, out=out, n_threads=n_threads)
        assert arrays.same_bits(out, in_place), (place, n_threads)


@alternating("activation", ["relu", None])
def test_streamed_output_of_what_is_fused(streaming, shape, activation, rng):
    case = operations.make_case(rng, shape)
    residual = rng.standard_normal(shape, np.float32)
    case = operations.replace(case, fusion=operations.Fusion(activation, 0.01, residual))
    for name in operations.FUSED:
        here = case.rebuilt(np.copy).with_statistics()
        masked = np.zeros_like(case.x)
        into = {"dresidual": masked} if name in operations.BACKWARD else {}
        expected = operations.WRITING[name](here, out=here.x, **into)
        expected.pop("dresidual", None)
        for place, n_threads in ((0, 1), (13, 3)):
            options = {"out": arrays.offset_by(np.full_like(case.x, np.nan), place)}
            got = operations.WRITING[name](case, n_threads=n_threads, **options)
            assert operations.differences(got, expected) == [], (name, place, n_threads)
            if name in operations.BACKWARD:
                options["dresidual"] = arrays.offset_by(np.full_like(case.x, np.nan), 15 - place)
                got = operations.WRITING[name](case, n_threads=n_threads, **options)
                assert arrays.same_bits(got.pop("dresidual"), masked), (name, place, n_threads)
                assert operations.differences(got, expected) == [], (name, place, n_threads)


def test_streaming_writes_nothing_outside_its_output(streaming, rng):
    """A buffer longer than the output on both sides, at places before, at and after a line."""
    case = operations.make_case(rng, (5, 64, 99, 101))
    for place in (1, 15, 16):
        buffer = np.full(case.x.size + 256, 7.0, np.float32)
        start = -buffer.ctypes.data % 64 // 4 + 64 + place
        out = buffer[start : start + case.x.size].reshape(case.x.shape)
        operations.infer(case, out=out)
        assert (buffer[:start] == 7.0).all()
        assert (buffer[start + case.x.size :] == 7.0).all()
        assert not (out == 7.0).all(axis=(0, 2, 3)).any()
