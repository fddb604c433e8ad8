"""Numba compiles a kernel once for each dtype, whether or not the arrays are writable."""

from __future__ import annotations

import numpy as np
import pytest

import bncore
import operations
import variants
from arrays import FLOATS

pytestmark = pytest.mark.skipif(
    "numba" not in variants.FOUND.names(), reason="Numba is not installed"
)


def signatures() -> dict[str, int]:
    """How many types of arguments each kernel is compiled for."""
    from bncore.backends.numba import elementwise, jit, sums

    return {
        name: len(jit.compiled(function).nopython_signatures)
        for module in (sums, elementwise)
        for name, function in vars(module).items()
        if name.startswith(("planes_", "rows_"))
    }


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("shape", [(4, 3, 8192), (40000, 3), (8, 64, 50)], ids=str)
def test_read_only_arguments_compile_nothing_anew(rng, shape, dtype, n_threads):
    case = operations.make_case(rng, shape, dtype)
    arguments = ("x", "dy", "weight", "bias", "mean", "var")
    locked = operations.replace(
        case, **{name: read_only(getattr(case, name)) for name in arguments}
    )
    with bncore.use_backend("numba"):
        expected = operations.run_all(case, n_threads=n_threads)
        before = signatures()
        assert before["planes_moments"] + before["rows_moments"]
        for name in arguments:
            one = operations.replace(case, **{name: getattr(locked, name)})
            assert operations.differences(operations.run_all(one), expected) == []
        assert operations.differences(operations.run_all(locked), expected) == []
    assert signatures() == before
    assert not any(getattr(locked, name).flags.writeable for name in arguments)
