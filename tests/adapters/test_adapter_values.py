"""adapter_values.h: parameters become double exactly, and results are rounded once."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from checkout import ROOT

COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")

FLOAT16, BFLOAT16 = 2, 3  # bncore_dtype
MANTISSA = {FLOAT16: 10, BFLOAT16: 7}
SOURCE = """
#include <adapter_values.h>
extern "C" void widen(int dtype, const void *from, int64_t count, double *to)
{
    const auto values = bncore_values::widened(static_cast<bncore_dtype>(dtype), from, count);
    std::copy(values.begin(), values.end(), to);
}
extern "C" void narrow(int dtype, const double *from, int64_t count, void *to)
{
    bncore_values::store(static_cast<bncore_dtype>(dtype), to, {from, from + count});
}
"""


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    folder = tmp_path_factory.mktemp("values")
    (folder / "values.cpp").write_text(SOURCE)
    includes = [f"-I{ROOT / 'bncore'}", f"-I{ROOT / 'src_c' / 'include'}"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    command = [COMPILER, *flags, *includes, "values.cpp", "-o", "values.so"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "values.so"))


def widened(header, dtype: int, bits: np.ndarray) -> np.ndarray:
    made = np.empty(bits.size)
    header.widen(dtype, bits.ctypes, ctypes.c_int64(bits.size), made.ctypes)
    return made


def narrowed(header, dtype: int, values: np.ndarray) -> np.ndarray:
    made = np.empty(values.size, np.uint16)
    header.narrow(dtype, values.ctypes, ctypes.c_int64(values.size), made.ctypes)
    return made


def meaning(dtype: int, bits: np.ndarray) -> np.ndarray:
    """Sixteen bits as NumPy reads them; bfloat16 is the upper half of a float32."""
    if dtype == FLOAT16:
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])
def test_every_sixteen_bits_become_their_value_and_come_back(header, dtype):
    bits = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        expected = meaning(dtype, bits)
    got = widened(header, dtype, bits)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), bits >> 15 == 1)
    back = narrowed(header, dtype, got)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(back[number], bits[number])
    assert np.isnan(meaning(dtype, back[~number])).all()


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])
def test_doubles_are_rounded_once_to_the_nearest(header, dtype):
    """Beside every midpoint, also by less than float32 can tell: then two roundings are wrong."""
    bits = np.arange(0, ((1 << (15 - MANTISSA[dtype])) - 1) << MANTISSA[dtype], dtype=np.uint16)
    low = meaning(dtype, bits)  # every finite number from 0 on
    step = np.diff(low, append=2 * low[-1] - low[-2])
    middle = low + step / 2
    even = bits + (bits & 1)
    for values, expected in (
        (middle, even),
        (np.nextafter(middle, 0.0), bits),
        (np.nextafter(middle, np.inf), bits + 1),
        (low + 0.49 * step, bits),
        (low + 0.51 * step, bits + 1),
    ):
        np.testing.assert_array_equal(narrowed(header, dtype, values), expected)
        np.testing.assert_array_equal(narrowed(header, dtype, -values), expected | 0x8000)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])
def test_what_is_out_of_range(header, dtype):
    infinity = ((1 << (15 - MANTISSA[dtype])) - 1) << MANTISSA[dtype]
    values = np.array([np.inf, 1e300, -1e300, 5e-324, -5e-324, -0.0, 1e-300])
    expected = [infinity, infinity, infinity | 0x8000, 0, 0x8000, 0x8000, 0]
    np.testing.assert_array_equal(narrowed(header, dtype, values), expected)
