"""Input that looks bad and has a documented result: empty, aliased, constant, far from zero.

Ids such as S12 or N6 name reports against other libraries, where that input crashed or gave
nonsense. Input that raises an error is in `test_bad_input.py`, also for S13, where the error was an
internal assertion; sizes are in `test_beyond_int.py`, T1 (other bits on other threads) is in
`test_bits.py`, T2 (a race) in `test_threads.py`, T3 and T4 (a hang after fork) in `test_fork.py`,
T6 (subnormal input) in `test_subnormal.py`, P3 and P4 (packages that cannot be loaded) in
`test_loading.py`, and S24 (a smashed stack on any input) would end any.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import bncore

C = 3
SHAPE = (4, C, 5)

EMPTY = [
    pytest.param((0, 64, 112, 112), id="S12"),
    pytest.param((0, 0, 0, 0), id="S4"),
    pytest.param((4, 2, 0, 3), id="S15"),
    pytest.param((0, 5), id="rows"),
    pytest.param((5, 0), id="no-channels"),
]


@pytest.mark.parametrize("shape", EMPTY)
def test_an_empty_batch_has_an_empty_result(backend, shape):
    channels = shape[1]
    x, ones, zeros = np.ones(shape, np.float32), np.ones(channels), np.zeros(channels)
    y, moments = bncore.batch_norm_train(x, ones, zeros)
    assert y.shape == shape and y.dtype == np.float32
    assert moments == bncore.Moments(5 if shape == (5, 0) else 0, zeros, zeros)
    assert np.isnan(moments.var()).all()
    running = zeros.copy(), ones.copy()
    bncore.update_running_stats(*running, moments)
    assert (running[0] == 0.0).all() and (running[1] == 1.0).all()
    for dx, dweight, dbias in (
        bncore.batch_norm_train_backward(x, x, moments, ones),
        bncore.batch_norm_infer_backward(x, x, zeros, ones, ones),
    ):
        assert dx.shape == shape
        assert (dweight == zeros).all() and (dbias == zeros).all()
    assert bncore.batch_norm_infer(x, zeros, ones).shape == shape
    assert bncore.normalize(x, moments).shape == shape
    sums = bncore.grad_sums(x, x, moments)
    assert sums == bncore.GradSums(zeros, zeros)
    assert bncore.grad_input(x, x, moments, sums).shape == shape


@pytest.mark.parametrize("eps", [0, 0.0, np.float32(0.0)], ids=lambda eps: f"N16-{eps!r}")
def test_eps_may_be_zero(backend, eps):
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    y = bncore.batch_norm_infer(x, [2.0, 5.0], [1.0, 4.0], eps=eps)
    assert (y == [[-1.0, 0.0], [1.0, 0.0]]).all()
    y, _ = bncore.batch_norm_train(x, eps=eps)
    assert (y[:, 0] == [-1.0, 1.0]).all()
    assert np.isnan(y[:, 1]).all()  # 0 / 0, as the formula says


@pytest.mark.parametrize("var", [-1.0, -0.5e-5, -np.inf])
def test_a_negative_variance_is_refused_before_anything_is_written(backend, var):
    x = np.array([[1.0, 5.0, 2.0], [3.0, 6.0, 4.0]])
    given = [1.0, np.nan, var]
    out = np.full_like(x, 7.0)
    weight = np.ones((3, 3))
    for call in (
        lambda: bncore.batch_norm_infer(x, np.ones(3), np.array(given), out=out),
        lambda: bncore.batch_norm_infer(x, np.ones(3), given, out=out),
        lambda: bncore.batch_norm_infer_backward(x, x, np.ones(3), np.array(given), out=out),
        lambda: bncore.as_scale_shift(np.ones(3), given),
        lambda: bncore.fold_into_linear(weight, None, np.ones(3), given),
        lambda: bncore.batch_renorm(x, np.ones(3), given, out=out),
    ):
        with pytest.raises(
            ValueError, match=r"var: expected variances >= 0, got -.* for channel 2"
        ):
            call()
    assert (out == 7.0).all()


def test_zero_and_nan_are_no_negative_variances(backend):
    x = np.array([[1.0, 5.0], [3.0, 6.0]])
    y = bncore.batch_norm_infer(x, np.zeros(2), np.array([-0.0, np.nan]), eps=1.0)
    assert (y[:, 0] == x[:, 0]).all() and np.isnan(y[:, 1]).all()


def test_parameters_may_share_memory_W5_W6(backend):
    rng = np.random.default_rng(3)
    x, a, b = rng.standard_normal(SHAPE), rng.standard_normal(C), rng.uniform(0.5, 2.0, C)
    expected = bncore.batch_norm_infer(x, a.copy(), b.copy(), b.copy(), a.copy())
    assert (bncore.batch_norm_infer(x, a, b, b, a) == expected).all()
    y, moments = bncore.batch_norm_train(x, b, a)
    kept = y.copy(), moments.mean.copy(), moments.m2.copy()
    bncore.update_running_stats(a, b, moments, momentum=0.5)
    assert (y == kept[0]).all()
    assert (moments.mean == kept[1]).all() and (moments.m2 == kept[2]).all()


def test_statistics_of_mixed_dtype_and_alignment_S17(backend):
    x = np.random.default_rng(4).standard_normal((6, 5))
    mean = np.arange(5.0)
    memory = np.zeros(5 * 4 + 1, np.uint8)
    var = memory[1:].view(np.float32)
    var[...] = 2.0
    assert not var.flags.aligned
    expected = bncore.batch_norm_infer(x, mean, np.full(5, 2.0))
    assert (bncore.batch_norm_infer(x, mean, var) == expected).all()
    before = mean.copy()
    bncore.update_running_stats(mean, var, bncore.moments(x), momentum=0.0)
    assert (mean == before).all() and (var == 2.0).all()


def test_transposed_x_in_inference_S16(backend):
    x = np.random.default_rng(4).standard_normal((5, 6)).T
    y = bncore.batch_norm_infer(x, np.zeros(5), np.ones(5), eps=0.0)
    assert (y == x).all() and y.strides == x.strides


@pytest.mark.parametrize("shape", [pytest.param((131072, 1), id="S22"), (1, 2, 1), (2, 2048)])
def test_shapes_that_broke_launches(backend, shape):
    rows, channels = shape[0], shape[1]
    x = ((3 * np.arange(rows)[:, np.newaxis] + np.arange(channels)) % 7.0).reshape(shape)
    moments = bncore.moments(x)
    np.testing.assert_allclose(moments.mean, x.reshape(rows, channels).mean(0), rtol=1e-14)
    if rows > 1:
        y, trained = bncore.batch_norm_train(x)
        assert trained == moments
        expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("offset", [1e4, 1e6], ids=lambda offset: f"N1-N2-N3-N4-{offset:g}")
def test_a_far_mean_gives_no_negative_variance(backend, offset):
    x = (np.random.default_rng(6).standard_normal((8, 3, 40)) + offset).astype(np.float32)
    y, moments = bncore.batch_norm_train(x)
    reference = x.astype(np.float64).var((0, 2))
    np.testing.assert_allclose(moments.var(), reference, rtol=1e-9)
    assert np.isfinite(y).all()
    dx, dweight, _ = bncore.batch_norm_train_backward(y, x, moments)
    assert np.isfinite(dx).all() and np.isfinite(dweight).all()


CONSTANT = [
    pytest.param((1, 1, 3, 3), [100.0], id="N6"),
    pytest.param((16, 2, 8), [1e10, 0.1], id="N7"),
    pytest.param((100_000, 2), [100.0, -100.0], id="N8"),
]


@pytest.mark.parametrize(("shape", "constants"), CONSTANT)
def test_a_constant_channel_gives_bias_exactly(backend, shape, constants):
    column = np.float32(constants).reshape(1, -1, *[1] * (len(shape) - 2))
    bias = np.linspace(0.25, 0.5, shape[1])
    y, moments = bncore.batch_norm_train(
        np.ascontiguousarray(np.broadcast_to(column, shape)), bias=bias
    )
    assert (moments.m2 == 0.0).all()
    assert (moments.mean == np.float32(constants)).all()
    assert (np.moveaxis(y, 1, -1) == bias.astype(np.float32)).all()


def test_the_mean_of_many_ones_N9(backend):
    # 2**24 + 1 has no float32: a float32 sum stops growing there.
    mean, var = bncore.mean_var(np.ones((2**24 + 1000, 2), np.float32), axis=0)
    assert (mean == 1.0).all() and (var == 0.0).all()


def test_dy_in_another_memory_order_W1_W2(backend):
    rng = np.random.default_rng(8)
    x, dy = rng.standard_normal((2, 4, 3, 5, 6))
    x, dy = x.copy(), np.moveaxis(np.ascontiguousarray(np.moveaxis(dy, 1, -1)), -1, 1)
    moments = bncore.moments(x)
    for a, b in zip(
        bncore.batch_norm_train_backward(dy, x, moments),
        bncore.batch_norm_train_backward(dy.copy(order="C"), x, moments),
        strict=True,
    ):
        assert (a == b).all() and a.flags.c_contiguous


def test_gradients_of_channels_last_volumes_lie_as_x_does_W3(backend):
    rng = np.random.default_rng(9)
    x, dy = (np.moveaxis(rng.standard_normal((2, 4, 5, 6, C)), -1, 1) for _ in range(2))
    dx, dweight, dbias = bncore.batch_norm_train_backward(dy, x, bncore.moments(x))
    assert dx.strides == x.strides
    plain = np.ascontiguousarray(x)
    expected = bncore.batch_norm_train_backward(dy, plain, bncore.moments(plain))
    for got, want in zip((dx, dweight, dbias), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("inner", [63, 65, 1023, 4095, 4097, 32767, 32769, 65537])
def test_sums_of_counts_beside_every_block_W4(backend, inner):
    """The sums are exact, because all terms are small integers, so every lost value is seen."""
    rng = np.random.default_rng(inner)
    for shape in [(1, 2, inner), (inner, 2)]:
        x, dy = rng.integers(-8, 9, (2, *shape)).astype(np.float32)
        unit = bncore.Moments(inner, [0.0, 0.0], [float(inner)] * 2)
        sums = bncore.grad_sums(dy, x, unit, eps=0.0)
        axes = (0, *range(2, x.ndim))
        assert sums.sum_dy.tolist() == dy.sum(axes, np.float64).tolist()
        assert sums.sum_dy_xhat.tolist() == (x * dy).sum(axes, np.float64).tolist()


def test_mean_5_and_std_a_tenth_N5(backend):
    x = np.random.default_rng(5).normal(5.0, 0.1, (8, C, 31)).astype(np.float32)
    y, moments = bncore.batch_norm_train(x)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(moments.var(), x.astype(np.float64).var((0, 2)), rtol=1e-12)


def test_bfloat16_with_gaps_in_memory_N19(backend):
    bfloat16 = pytest.importorskip("ml_dtypes", reason="for bfloat16").bfloat16
    x = np.arange(24.0).reshape(4, 6).astype(bfloat16)
    y, moments = bncore.batch_norm_train(x[:, ::2])
    assert y.dtype == x.dtype
    assert moments.mean.tolist() == [9.0, 11.0, 13.0]
    mean, var = bncore.mean_var(x[:, ::2], axis=0)
    assert mean.tolist() == [9.0, 11.0, 13.0] and var.tolist() == [45.0] * 3


def test_x_with_gaps_and_parameters_of_another_type_N19(backend):
    x = np.random.default_rng(7).standard_normal((4, C, 10)).astype(np.float32)
    weight, bias = np.linspace(0.5, 2.0, C), np.linspace(-1.0, 1.0, C, dtype=np.float32)
    y, _ = bncore.batch_norm_train(x[..., ::2], weight, bias)
    assert y.dtype == np.float32
    assert (y == bncore.batch_norm_train(x[..., ::2].copy(), weight, bias)[0]).all()


def test_subnormal_parameters_are_kept_T5(backend):
    tiny = np.finfo(np.float32).smallest_subnormal
    x, bias = np.zeros((2, 400), np.float32), tiny * np.arange(1, 401, dtype=np.float32)
    y = bncore.batch_norm_infer(x, np.zeros(400), np.ones(400), bias=bias)
    assert (y == bias).all() and (y != 0.0).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_importing_and_calling_flush_no_subnormal_P1_P2(backend, threads):
    """On another thread, too, a callback that starts after the call has the usual arithmetic."""
    script = f"""if True:
        import threading
        import numpy as np
        import bncore

        half = []
        def halve():
            half.append((np.full(64, np.finfo(np.float32).tiny) * np.float32(0.5) > 0).all())
            half.append((np.full(64, np.finfo(np.float64).tiny) * 0.5 > 0).all())

        halve()
        bncore.batch_norm_train(np.ones((8, 16, 64, 64), np.float32), n_threads={threads})
        halve()
        thread = threading.Thread(target=halve)
        thread.start()
        thread.join()
        print(all(half), len(half))
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **backend.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True 6\n"
