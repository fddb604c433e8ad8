"""Arrays of other libraries through DLPack: bncore reads them without a copy, and returns NumPy's.

array-api-strict represents the standard.  Exporters in this file represent its rules for devices
and read-only arrays.  PyTorch and JAX are tested if they are installed.
"""

from __future__ import annotations

import gc
import sys
import weakref

import array_api_strict
import numpy as np
import pytest

import arrays
import bncore
from bncore.arguments import problem
from bncore.arguments.arrays import plain_array

SHAPE = (4, 3, 5)


class Exporter:
    """An array that supports DLPack and no other protocol."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return 1, 0  # kDLCPU


class Elsewhere(Exporter):
    """An array on a GPU; as the standard demands, it raises BufferError when it is exported."""

    def __dlpack__(self, **keywords):
        raise BufferError("no copy to another device")

    def __dlpack_device__(self):
        return 2, 0  # kDLCUDA


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return Exporter(array)


def of_torch(array):
    import torch

    return torch.from_numpy(array)


def of_jax(array):
    jax = pytest.importorskip("jax", reason="JAX is not installed (make bench-peers does)")
    with jax.enable_x64(True):  # for this array, not for other tests
        return jax.numpy.asarray(array)


MAKERS = [
    pytest.param(array_api_strict.asarray, id="array-api-strict"),
    pytest.param(Exporter, id="exporter"),
    pytest.param(read_only, id="read-only"),
    pytest.param(of_torch, id="torch", marks=pytest.mark.needs_torch),
    pytest.param(of_jax, id="jax"),
]


def given(dtype=np.float32):
    rng = np.random.default_rng(3)
    x, dy, residual = rng.standard_normal((3, *SHAPE)).astype(dtype)
    weight, bias = rng.standard_normal((2, SHAPE[1])).astype(dtype)
    return x, dy, residual, weight, bias, weight * weight


def calls(make, dtype):
    """Call every function that takes arrays with another library's arrays, made by `make`."""
    arrays = given(dtype)
    x, dy, residual, weight, bias, var = (make(a) for a in arrays)
    row, matrix, kernel = (make(a) for a in (arrays[0][0, 0], arrays[0][0], arrays[0][:3]))
    statistics = bncore.moments(arrays[0])
    fused = {"activation": "relu", "residual": residual}
    return {
        **batch_norms(x, dy, weight, bias, var, statistics, fused),
        **other_groupings(x, dy, row, weight, bias, var, arrays[0], bncore.Moments(20, bias, var)),
        "as_scale_shift": tuple(bncore.as_scale_shift(bias, var, weight, bias)),
        "fold_into_linear": bncore.fold_into_linear(matrix, None, bias, var, weight, bias),
        "fold_into_conv": bncore.fold_into_conv(kernel, bias, bias, var, weight, bias),
        "Moments": bncore.Moments(20, bias, var).mean,
        "GradSums": bncore.GradSums(bias, weight).sum_dy,
        "merged_moments": bncore.merged_moments([x, x]).m2,
        "stream_moments": bncore.stream_moments(x).m2,
        "MicroBatches": pieces(x, dy, weight, bias),
        "BatchNorm": layer(x, dy, residual, weight, bias, var),
        "recalibrate": bncore.recalibrate(bncore.BatchNorm(), [x, x])[0].m2,
    }


def batch_norms(x, dy, weight, bias, var, moments, fused):
    sums = bncore.grad_sums(dy, x, moments)
    return {
        "batch_norm_train": bncore.batch_norm_train(x, weight, bias, **fused)[0],
        "batch_norm_train_backward": bncore.batch_norm_train_backward(
            dy, x, moments, weight, bias=bias, **fused
        ),
        "batch_norm_infer": bncore.batch_norm_infer(x, bias, var, weight, bias, **fused),
        "batch_norm_infer_backward": bncore.batch_norm_infer_backward(
            dy, x, bias, var, weight, bias=bias, **fused
        ),
        "moments": bncore.moments(x).mean,
        "normalize": bncore.normalize(x, moments, weight, bias),
        "grad_sums": sums.sum_dy,
        "grad_input": bncore.grad_input(dy, x, moments, sums, weight),
        "mean_var": bncore.mean_var(x, axis=(0, 2)),
        "var": bncore.var(x, axis=(0, 2)),
        "std": bncore.std(x, axis=(0, 2)),
        "standardize": bncore.standardize(x)[0],
        "destandardize": bncore.destandardize(x, moments),
    }


def other_groupings(x, dy, row, weight, bias, var, plain, moments):
    ghosts = bncore.ghost_batch_norm(plain, 2)[1]
    correction = bncore.batch_renorm(plain, np.zeros(3), np.ones(3))[2]
    instances = bncore.instance_norm(plain)[1]
    rows = bncore.layer_norm(plain)[1]
    return {
        "ghost_batch_norm": bncore.ghost_batch_norm(x, 2, weight, bias)[0],
        "ghost_batch_norm_backward": bncore.ghost_batch_norm_backward(dy, x, ghosts, 2, weight),
        "batch_renorm": bncore.batch_renorm(x, bias, var, weight, bias)[0],
        "batch_renorm_backward": bncore.batch_renorm_backward(dy, x, moments, correction, weight),
        "group_norm": bncore.group_norm(x, 3, weight, bias)[0],
        "group_norm_backward": bncore.group_norm_backward(dy, x, instances, 3, weight),
        "instance_norm": bncore.instance_norm(x, weight, bias)[0],
        "instance_norm_backward": bncore.instance_norm_backward(dy, x, instances, weight),
        "layer_norm": bncore.layer_norm(x, row, row)[0],
        "layer_norm_backward": bncore.layer_norm_backward(dy, x, rows, row),
    }


def pieces(x, dy, weight, bias):
    batch = bncore.MicroBatches(weight, bias)
    y = [*batch.forward([x, x])]
    return (*y, *batch.backward([dy, dy], [x, x]), batch.dweight, batch.dbias)


def layer(x, dy, residual, weight, bias, var):
    made = bncore.BatchNorm(activation="relu")
    y = made(x, residual)
    dx = made.backward(dy)
    state = {"weight": weight, "bias": bias, "running_mean": bias, "running_var": var}
    made.load_state_dict(state | {"num_batches_tracked": np.array(3)})
    made.running_mean = weight
    return (y, dx, *made.gradients(), *made.parameters(), made.eval()(x, residual))


# Public, and taking no array to read; update_running_stats takes two to write.
NO_ARRAYS = {
    "batch_norms", "get_address", "get_capsules", "get_include", "get_library_dir",
    "get_num_threads", "set_buffer_pool", "set_num_threads", "show_config",
    "update_running_stats", "use_backend",
}  # fmt: skip


def test_every_public_function_is_called():
    assert set(calls(np.asarray, np.float32)) | NO_ARRAYS == set(bncore.__all__)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("make", MAKERS)
def test_every_function_takes_it_and_gives_numpy_arrays(make, dtype):
    if make is array_api_strict.asarray and dtype == np.float16:
        pytest.skip("the standard has no float16")
    expected, got = calls(np.asarray, dtype), calls(make, dtype)
    for name, value in expected.items():
        results = value if isinstance(value, tuple) else (value,)
        others = got[name] if isinstance(got[name], tuple) else (got[name],)
        for a, b in zip(others, results, strict=True):
            assert type(a) is np.ndarray, name
            assert a.dtype == b.dtype, name
            assert np.array_equal(a, b), name


@pytest.mark.needs_torch
def test_tensors_of_bfloat16_are_read_and_give_arrays_of_ml_dtypes():
    import torch

    def make(array):
        if array.dtype != arrays.bfloat16:
            return array
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)

    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    expected, got = calls(np.asarray, bfloat16), calls(make, bfloat16)
    for name, value in expected.items():
        results = value if isinstance(value, tuple) else (value,)
        others = got[name] if isinstance(got[name], tuple) else (got[name],)
        for a, b in zip(others, results, strict=True):
            assert arrays.same_bits(a, b), name


@pytest.mark.needs_torch
def test_a_tensor_of_bfloat16_is_not_copied_and_lives_as_long_as_its_array():
    import torch

    tensor = torch.arange(24.0, dtype=torch.bfloat16).reshape(2, 3, 4).transpose(1, 2)[..., 1:]
    expected, address = tensor.float().numpy(), tensor.data_ptr()
    kept = weakref.ref(tensor.untyped_storage())
    array = plain_array("x", tensor)
    assert array.ctypes.data == address and array.dtype == arrays.bfloat16
    view = array[1:]
    del tensor, array
    gc.collect()
    assert np.array_equal(view.astype(np.float32), expected[1:])
    del view
    gc.collect()
    assert kept() is None
    empty = plain_array("x", torch.ones(2, 0, 3, dtype=torch.bfloat16))
    assert empty.shape == (2, 0, 3) and empty.dtype == arrays.bfloat16
    (one,) = plain_array("x", torch.full((1,), 3.0, dtype=torch.bfloat16))
    assert one == 3.0


def test_a_tensor_of_bfloat16_from_jax():
    jax = pytest.importorskip("jax", reason="JAX is not installed (make bench-peers does)")
    tensor = jax.numpy.arange(12.0, dtype="bfloat16").reshape(4, 3)
    expected = bncore.moments(np.arange(12.0).reshape(4, 3))
    assert bncore.moments(tensor).mean.tolist() == expected.mean.tolist()


@pytest.mark.needs_torch
def test_bfloat16_without_ml_dtypes_or_on_a_device_is_refused(monkeypatch):
    import torch

    class OnDevice:
        def __dlpack__(self, **keywords):
            return torch.ones(2, 3, dtype=torch.bfloat16).__dlpack__(**keywords)

        def __dlpack_device__(self):
            return 2, 0  # kDLCUDA

    with pytest.raises(TypeError, match=r"^x: expected an array, got OnDevice \("):
        bncore.moments(OnDevice())
    meta = torch.ones(2, 3, dtype=torch.bfloat16, device="meta")
    with pytest.raises(TypeError, match=r"^x: expected an array, got Tensor \("):
        bncore.moments(meta)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match=r"^x: expected an array, got Tensor \(bfloat16: .*pip ins"):
        bncore.moments(torch.ones(2, 3, dtype=torch.bfloat16))


@pytest.mark.needs_torch
@pytest.mark.parametrize("versioned", [True, False])
def test_a_parameter_of_bfloat16_may_be_written_where_the_exporter_says_so(versioned):
    import torch

    class Old:
        """An exporter that was written before capsules had versions, and flags."""

        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, *, stream=None):
            return self.tensor.__dlpack__()

        def __dlpack_device__(self):
            return 1, 0

    tensor = torch.ones(3, dtype=torch.bfloat16)
    made = bncore.BatchNorm(3, dtype="bfloat16")
    if versioned:
        made.weight = tensor
        made.weight[:] = 2.0
        assert tensor.tolist() == [2.0, 2.0, 2.0]
    else:
        with pytest.raises(ValueError, match="weight: expected a writable array, got a read-only"):
            made.weight = Old(tensor)


@pytest.mark.parametrize("make", MAKERS)
def test_nothing_is_copied(make):
    x = given()[0]
    tensor = make(x)
    theirs = np.from_dlpack(tensor)
    assert np.shares_memory(problem.Problem(tensor, 1).x, theirs)
    assert np.shares_memory(plain_array("weight", tensor), theirs)


def test_another_memory_order_is_not_copied_either():
    x = given()[0].transpose(0, 2, 1)
    assert np.shares_memory(problem.Problem(Exporter(x), 1).x, x)
    y, _ = bncore.batch_norm_train(Exporter(x))
    assert y.strides == x.strides


def test_a_parameter_of_a_layer_is_the_array_that_was_assigned():
    weight = given()[3]
    made = bncore.BatchNorm(SHAPE[1], dtype=np.float32)
    made.weight = Exporter(weight)
    assert np.shares_memory(made.weight, weight)
    with pytest.raises(ValueError, match="weight: expected a writable array, got a read-only one"):
        made.weight = read_only(weight)
    assert np.shares_memory(made.weight, weight)


def test_what_is_not_in_this_memory_is_refused():
    x = given()[0]
    message = r"{}: expected an array, got Elsewhere \(no copy to another device\)"
    with pytest.raises(TypeError, match=message.format("x")):
        bncore.moments(Elsewhere(x))
    with pytest.raises(TypeError, match=message.format("weight")):
        bncore.batch_norm_train(x, Elsewhere(x[0, :, 0]))


def test_a_wrong_dtype_is_named():
    with pytest.raises(
        TypeError, match="x: expected float16, bfloat16, float32 or float64, got int64"
    ):
        bncore.batch_norm_train(array_api_strict.ones((2, 3), dtype=array_api_strict.int64))
    with pytest.raises(TypeError, match="weight: expected a real floating dtype, got complex128"):
        complex_weight = array_api_strict.ones(3, dtype=array_api_strict.complex128)
        bncore.batch_norm_train(given()[0], complex_weight)


@pytest.mark.parametrize("name", ["out", "running_mean"])
def test_what_is_written_to_has_to_be_numpys(name):
    """The other library would not know that its array has changed."""
    x = given()[0]
    other = array_api_strict.asarray(np.zeros_like(x) if name == "out" else np.zeros(SHAPE[1]))
    with pytest.raises(TypeError, match=f"{name}: expected a NumPy array, got Array"):
        if name == "out":
            bncore.batch_norm_train(x, out=other)
        else:
            bncore.update_running_stats(other, np.ones(SHAPE[1]), bncore.moments(x))


@pytest.mark.needs_torch
def test_a_tensor_that_is_no_plain_memory_is_refused():
    import torch

    x = torch.ones(SHAPE, requires_grad=True)
    with pytest.raises(TypeError, match=r"x: expected an array, got Tensor \(.*detach"):
        bncore.moments(x)
    negating = torch.ones(SHAPE, dtype=torch.complex64).conj().imag
    assert negating.is_neg()
    with pytest.raises(TypeError, match=r"x: expected an array, got Tensor \(.*resolve_neg"):
        bncore.moments(negating)
    assert (bncore.moments(negating.resolve_neg()).count == 20).all()


@pytest.mark.needs_torch
def test_the_channels_last_memory_of_a_tensor_is_kept():
    import torch

    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    y, _ = bncore.batch_norm_train(last)
    assert torch.from_dlpack(y).is_contiguous(memory_format=torch.channels_last)
