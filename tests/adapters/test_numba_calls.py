"""bncore.numba inside compiled code: the bits of the NumPy functions, and their refusals."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys

import numpy as np
import pytest

import bncore
from checkout import ROOT
from variants import FOUND

numba = pytest.importorskip("numba", reason="Numba is not installed")
NATIVE = "native" in FOUND.names()
needs_native = pytest.mark.skipif(not NATIVE, reason="it calls the native extension")

if NATIVE:
    import bncore.numba as bn

    @numba.njit
    def whole(x, dy, weight, bias, mean, var, axis, n_threads):
        """Every operation in one compiled function: one compilation for each type of x."""
        eps = 1e-3
        y, saved = bn.batch_norm_train(x, weight, bias, axis, eps, n_threads)
        dx, dweight, dbias = bn.batch_norm_train_backward(
            dy, x, saved, weight, axis, eps, n_threads
        )
        inferred = bn.batch_norm_infer(x, mean, var, weight, bias, axis, eps, n_threads)
        frozen = bn.batch_norm_infer_backward(dy, x, mean, var, weight, axis, eps, n_threads)
        moments = bn.moments(x, axis, n_threads)
        again = bn.normalize(x, moments, weight, bias, axis, eps, n_threads)
        sums = bn.grad_sums(dy, x, moments, axis, eps, n_threads)
        whole_dx = bn.grad_input(dy, x, moments, sums, weight, axis, eps, n_threads)
        return (
            (y, saved.mean, saved.m2, dx, dweight, dbias, inferred, *frozen),
            (moments.mean, moments.m2, again, sums.sum_dy, sums.sum_dy_xhat, whole_dx),
            (saved.count, moments.count),
        )


def by_numpy(x, dy, weight, bias, mean, var, axis):
    options = {"axis": axis, "eps": 1e-3}
    y, saved = bncore.batch_norm_train(x, weight, bias, **options)
    train = bncore.batch_norm_train_backward(dy, x, saved, weight, **options)
    inferred = bncore.batch_norm_infer(x, mean, var, weight, bias, **options)
    frozen = bncore.batch_norm_infer_backward(dy, x, mean, var, weight, **options)
    sums = bncore.grad_sums(dy, x, saved, **options)
    return (
        (y, saved.mean, saved.m2, *train, inferred, *frozen),
        (
            *(saved.mean, saved.m2, bncore.normalize(x, saved, weight, bias, **options)),
            *(sums.sum_dy, sums.sum_dy_xhat),
            bncore.grad_input(dy, x, saved, sums, weight, **options),
        ),
        (saved.count,) * 2,
    )


def case(rng, shape, dtype, axis, parameters):
    channels = shape[axis]
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    weight, bias = rng.uniform(0.5, 2.0, (2, channels)).astype(parameters or np.float64)
    if parameters is None:
        weight = bias = None
    return x, dy, weight, bias, rng.standard_normal(channels), rng.uniform(0.5, 2.0, channels)


@needs_native
@pytest.mark.parametrize(
    ("dtype", "parameters"),
    [(np.float32, np.float32), (np.float32, np.float64), (np.float64, None)],
    ids=["float32", "float64-parameters", "float64-no-parameters"],
)
def test_it_gives_the_bits_of_the_numpy_functions(rng, dtype, parameters):
    """NCHW, NHWC and channels in the middle; types, and so compilations, are the same for all."""
    for shape, axis in (((5, 7, 3, 11), 1), ((4, 9, 5, 6), -1), ((40, 16, 64, 3), 2)):
        arguments = case(rng, shape, dtype, axis, parameters)
        want = by_numpy(*arguments, axis)
        for n_threads in (1, 3):
            got = whole(*arguments, axis, n_threads)
            for a, b in zip(sum(got, ()), sum(want, ()), strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                assert a.tobytes() == b.tobytes(), (shape, axis, n_threads)


@needs_native
@pytest.mark.parametrize("shape", [(0, 7, 3, 11), (5, 0, 3, 11)], ids=str)
def test_an_empty_batch_gives_nothing(rng, shape):
    arguments = case(rng, shape, np.float32, 1, np.float32)
    large, small, counts = whole(*arguments, 1, 1)
    assert large[0].shape == shape
    for got, want in zip(counts, by_numpy(*arguments, 1)[2], strict=True):
        np.testing.assert_array_equal(got, want)
    assert np.isnan(large[1]).all() and np.isnan(small[0]).all()
    assert not large[2].any() and not large[4].any() and not small[1].any()


@needs_native
def test_read_only_arrays_and_moments_of_the_package_are_taken(rng):
    x, dy, weight, *_ = case(rng, (5, 7, 3, 11), np.float32, 1, np.float64)
    saved = bncore.moments(x)  # whose arrays are read-only
    for array in (x, dy, weight):
        array.flags.writeable = False
    given = bn.Moments(saved.count, saved.mean, saved.m2)
    dx, dweight, _ = bn.batch_norm_train_backward(dy, x, given, weight, np.uint64(1))
    want = bncore.batch_norm_train_backward(dy, x, saved, weight)
    assert dx.tobytes() == want[0].tobytes() and dweight.tobytes() == want[1].tobytes()
    assert bncore.Moments(*bn.moments(x)) == saved


@needs_native
@pytest.mark.parametrize("kind", ["float32", "strided"])
def test_statistics_of_any_kind_are_read_as_what_they_are(rng, kind):
    """C reads contiguous float64; other arrays are copied."""
    x, dy, _, _, mean, var = case(rng, (5, 7, 3, 11), np.float64, 1, None)

    def other(values):
        return values.astype(np.float32) if kind == "float32" else np.repeat(values, 2)[::2]

    m2 = var * 165
    given = bn.Moments(other(np.full(7, 165.0)), other(mean), other(m2))
    saved = bncore.Moments(*given)
    sums = bncore.grad_sums(dy, x, saved)
    got = bn.grad_sums(dy, x, given)
    assert got.sum_dy_xhat.tobytes() == sums.sum_dy_xhat.tobytes()
    for a, b in (
        (
            bn.batch_norm_train_backward(dy, x, given)[0],
            bncore.batch_norm_train_backward(dy, x, saved)[0],
        ),
        (bn.normalize(x, given), bncore.normalize(x, saved)),
        (bn.grad_input(dy, x, given, got), bncore.grad_input(dy, x, saved, sums)),
        (
            bn.batch_norm_infer(x, other(mean), other(var)),
            bncore.batch_norm_infer(x, other(mean), other(var)),
        ),
    ):
        assert a.tobytes() == b.tobytes()


@needs_native
def test_pieces_are_merged_as_those_of_the_package(rng):
    """The count is that of the moments: of all pieces."""
    x, dy, weight, *_ = case(rng, (6, 7, 3, 11), np.float32, 1, np.float32)
    pieces = [(x[:2], dy[:2]), (x[2:], dy[2:])]
    merged = bncore.merged_moments(bncore.Moments(*bn.moments(part)) for part, _ in pieces)
    moments = bn.Moments(merged.count, merged.mean, merged.m2)
    sums = [bncore.GradSums(*bn.grad_sums(g, part, moments)) for part, g in pieces]
    total = sums[0] + sums[1]
    for part, g in pieces:
        want = bncore.grad_input(g, part, merged, total, weight)
        got = bn.grad_input(g, part, moments, bn.GradSums(total.sum_dy, total.sum_dy_xhat), weight)
        assert got.tobytes() == want.tobytes()


@needs_native
def test_a_call_from_python_lets_other_threads_run():
    functions = [f for f in vars(bn).values() if isinstance(f, type(bn.moments))]
    assert len(functions) == 8
    names = {f.__name__ for f in functions if not f.targetoptions.get("nogil")}
    assert names <= {"checked"}, names


@needs_native
def test_compiled_callers_may_be_kept_on_disk(tmp_path):
    """The machine code names the C functions; every process finds them where they are for it."""
    (tmp_path / "kept.py").write_text(
        "import numba, numpy as np\n"
        "import bncore, bncore.numba as bn\n"
        "@numba.njit(cache=True)\n"
        "def mean(x):\n"
        "    return bn.moments(x).mean\n"
        "x = np.arange(30.0).reshape(5, 6)\n"
        "assert (mean(x) == bncore.moments(x).mean).all()\n"
        "print(sum(mean.stats.cache_hits.values()))\n"
    )
    command = [sys.executable, "kept.py"]
    printed = [
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert printed == ["0\n", "1\n"]


@needs_native
def test_bad_arguments_are_refused(rng):
    x, dy, weight, bias, mean, var = case(rng, (5, 7, 3, 11), np.float32, 1, np.float32)

    def refused(error, message, *, axis=1, n_threads=1, **changes):
        given = dict(x=x, dy=dy, weight=weight, bias=bias, mean=mean, var=var) | changes
        with pytest.raises(error, match=message):
            whole(*given.values(), axis, n_threads)

    refused(ValueError, "^axis: expected", axis=4)
    refused(ValueError, "^axis: expected", axis=-5)
    refused(ValueError, "^weight: expected one value per channel", weight=weight[:-1].copy())
    refused(ValueError, "^bias: expected one value per channel", bias=bias[:-1].copy())
    refused(ValueError, "^mean: expected one value per channel", mean=mean[:-1].copy())
    refused(ValueError, "^dy: expected x's shape", dy=dy[:-1].copy())
    refused(ValueError, "^n_threads: expected 1 or more", n_threads=0)
    with pytest.raises(ValueError, match=r"^eps: expected a finite"):
        bn.batch_norm_train(x, None, None, 1, -1e-5)
    less = np.full(7, 165.0)  # x has 5 * 33
    less[3] = 164.0
    less = bn.Moments(less, mean, var)
    with pytest.raises(ValueError, match=r"^moments: expected the count .* or more, got less"):
        bn.grad_input(dy, x, less, bn.GradSums(mean, var))
    with pytest.raises(ValueError, match=r"^moments: expected the count .* or more, got less"):
        bn.grad_sums(dy, x, less)
    with pytest.raises(ValueError, match=r"^moments: expected a count above 0"):
        bn.normalize(x, bn.Moments(np.zeros(7), mean, var))
    others = bn.Moments(np.full(7, 7.0), mean, var)
    with pytest.raises(ValueError, match=r"^moments: expected the count"):
        bn.batch_norm_train_backward(dy, x, others)
    one = case(rng, (1, 7, 1, 1), np.float32, 1, np.float32)
    with pytest.raises(ValueError, match="more than one value per channel"):
        whole(*one, 1, 1)


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, ::2], "x: expected a C-contiguous array of float32 or float64, got array"),
        (lambda x: np.moveaxis(x, 1, -1), "numpy.ascontiguousarray makes one"),
        (lambda x: x.astype(np.int32), "x: expected a C-contiguous array of float32 or float64"),
        (lambda x: x.reshape(-1), "x: expected 2 or more dimensions, got 1"),
        (lambda x: x.astype(np.float16), "got array.float16, .*Numba compiles no float16 for the"),
        (lambda x: x.view(np.uint16), "got array.uint16, .*or convert to float32"),
    ],
    ids=["strided", "moved axis", "integers", "one dimension", "float16", "bits of bfloat16"],
)
def test_a_type_that_does_not_fit_is_refused_at_compilation(rng, change, message):
    x = rng.standard_normal((5, 7, 3, 11)).astype(np.float32)
    with pytest.raises(numba.TypingError, match=message):
        bn.moments(change(x))


@needs_native
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: bn.moments(x, 1.0), "axis: expected an integer, got float64"),
        (lambda x, w: bn.moments(x, True), "axis: expected an integer, got bool"),
        (lambda x, w: bn.moments(x, 1, 2.5), "n_threads: expected an integer, got float64"),
        (lambda x, w: bn.moments(x, 1, None), "n_threads: expected an integer, got none"),
        (
            lambda x, w: bn.batch_norm_train(x, w, w, 1, "a"),
            "eps: expected a real number, got unicode",
        ),
        (
            lambda x, w: bn.batch_norm_train(x, w.astype(np.int64)),
            "weight: expected an array of float32 or float64 of one dimension, got array.int64",
        ),
        (
            lambda x, w: bn.batch_norm_infer(x, w, w.reshape(7, 1)),
            "var: expected an array of float32 or float64 of one dimension, got array.float64, 2d",
        ),
        (
            lambda x, w: bn.grad_sums(x.astype(np.float64), x, bn.Moments(1, w, w)),
            "dy: expected x's dtype and dimensions",
        ),
    ],
)
def test_another_argument_of_a_wrong_type_is_named(rng, call, message):
    x = rng.standard_normal((5, 7, 3)).astype(np.float32)
    with pytest.raises(numba.TypingError, match=message):
        call(x, np.ones(7))


@needs_native
def test_the_example_of_the_documentation_runs():
    page = (ROOT / "docs" / "embedding.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "embedding.md", "exec"), names)
    want, _ = bncore.batch_norm_train(names["x"])
    assert names["y"].tobytes() == want.tobytes()


def test_without_native_the_import_says_why():
    code = (
        "import sys; sys.modules['bncore.backends.native.binding'] = None\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "import bncore.numba"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ImportError: backend: native is not available here" in done.stderr


@needs_native
def test_examples():
    modules = [
        importlib.import_module(f"bncore.numba{part}") for part in ("", ".batch_norm", ".steps")
    ]
    examples = [found for module in modules for found in doctest.DocTestFinder().find(module)]
    assert len([one for one in examples if one.examples]) == 9  # 8 functions, the module
    assert not any(doctest.testmod(module).failed for module in modules)
