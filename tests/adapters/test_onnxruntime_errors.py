"""bncore.onnxruntime refuses what it cannot compute, when the model is loaded or when it runs."""

from __future__ import annotations

import ctypes

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as theirs

import bncore.onnxruntime
import onnxruntime_sessions as sessions
from bncore.adapter_compiler import CompileError
from bncore.onnxruntime import library
from onnxruntime_sessions import forward_inputs

pytestmark = pytest.mark.needs_onnxruntime

FORWARD, BACKWARD = "BatchNormalization", "BatchNormalizationGrad"
SHAPE = (4, 5, 6)
FAIL = 1  # ORT_FAIL


def backward_inputs(rng, shape=SHAPE):
    x, scale, bias, mean, var = forward_inputs(rng, shape).values()
    return {"dY": x, "X": x, "scale": scale, "mean": mean, "var": var, "B": bias}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"epsilon": -1.0}, "epsilon: expected a finite number >= 0, got -1"),
        ({"epsilon": float("nan")}, "epsilon: expected a finite number >= 0, got nan"),
        ({"epsilon": 1}, "epsilon: expected a float, got another type"),
        ({"momentum": 1.5}, "momentum: expected a number from 0 to 1, got 1.5"),
        ({"momentum": "0.9"}, "momentum: expected a float, got another type"),
        ({"training_mode": 2}, "training_mode: expected 0 or 1, got 2"),
        ({"axis": 3}, r"axis: expected -3 to 2 for X of shape \(4, 5, 6\), got 3"),
        ({"axis": -4}, r"axis: expected -3 to 2 for X of shape \(4, 5, 6\), got -4"),
        ({"axis": 1.0}, "axis: expected an int, got another type"),
        ({"axis": 0}, r"scale: expected shape \(4,\), the channels of X .* got \(5,\)"),
        ({"correction": -1}, "correction: expected an int >= 0, got -1"),
        ({"activation": "tanh"}, "activation: expected relu or leaky_relu, got tanh"),
        ({"activation": 1}, "activation: expected a string, got another type"),
        ({"negative_slope": -0.1}, "negative_slope: expected a finite number >= 0, got -0.1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("op", [FORWARD, BACKWARD])
def test_attributes_are_checked_when_the_model_is_loaded(rng, op, attributes, message):
    inputs = forward_inputs(rng, SHAPE) if op == FORWARD else backward_inputs(rng)
    made = sessions.model(op, inputs, ["a"] if op == FORWARD else ["a", "b", "c"], **attributes)
    with pytest.raises(theirs.RuntimeException, match=f"{op} 'bn': {message}"):
        sessions.session(made)


@pytest.mark.parametrize("name", ["running_mean", "running_var", "saved_mean", "saved_var"])
def test_inference_has_one_output(rng, name):
    names = ["running_mean", "running_var", "saved_mean", "saved_var"]
    outputs = ["Y", *(other if other == name else "" for other in names[: names.index(name) + 1])]
    made = sessions.model(FORWARD, forward_inputs(rng, SHAPE), outputs)
    with pytest.raises(theirs.RuntimeException, match=f"{name}: expected no such output without"):
        sessions.session(made)


@pytest.mark.parametrize("op", [FORWARD, BACKWARD])
@pytest.mark.parametrize("stated", [True, False], ids=["loading", "running"])
@pytest.mark.parametrize("which", [2, 3, 4], ids=str)
@pytest.mark.parametrize("wrong", [(4,), (5, 1), ()], ids=str)
def test_a_parameter_of_another_shape(rng, op, stated, which, wrong):
    """Where a model states shapes it is refused as a whole, else when tensors arrive."""
    forward = op == FORWARD
    inputs = forward_inputs(rng, SHAPE) if forward else backward_inputs(rng)
    name = list(inputs)[which]
    inputs[name] = np.ones(wrong, np.float32)
    shapes = {} if stated else {"X": (None,) * 3, name: (None,) * len(wrong)}
    made = sessions.model(op, inputs, ["Y"] if forward else ["dX", "dscale", "dB"], shapes)
    loading = wrong and (stated or len(wrong) > 1)
    error = theirs.RuntimeException if loading else theirs.InvalidArgument
    channels = "5" if stated or not loading else r"\?"
    with pytest.raises(error, match=rf"{name}: expected shape \({channels},\), the channels of X"):
        sessions.session(made).run(None, inputs)


@pytest.mark.parametrize("name", ["dY", "residual"])
def test_an_array_of_another_shape_than_x(rng, name):
    inputs = backward_inputs(rng) | {"residual": np.ones(SHAPE, np.float32)}
    inputs[name] = np.ones((4, 6, 5), np.float32)
    expected = rf"{name}: expected X's shape \(4, 5, 6\), got \(4, 6, 5\)"
    with pytest.raises(theirs.InvalidArgument, match=expected):
        sessions.run(BACKWARD, inputs, ["dX", "dscale", "dB"])


@pytest.mark.parametrize(
    ("op", "attributes"), [(FORWARD, {"training_mode": 1}), (BACKWARD, {})], ids=[FORWARD, BACKWARD]
)
def test_one_value_per_channel_has_no_variance(rng, op, attributes):
    inputs = forward_inputs(rng, (1, 5)) if op == FORWARD else backward_inputs(rng, (1, 5))
    with pytest.raises(theirs.InvalidArgument, match="X: expected more than 1 value per channel"):
        sessions.run(op, inputs, ["Y"] if op == FORWARD else ["dX", "a", "b"], **attributes)


def test_more_correction_than_values(rng):
    inputs = forward_inputs(rng, (2, 5))
    with pytest.raises(
        theirs.InvalidArgument, match="correction: expected less than 2, the values"
    ):
        sessions.run(FORWARD, inputs, ["Y"], training_mode=1, correction=2)


def test_an_activation_wants_the_bias(rng):
    inputs = backward_inputs(rng) | {"B": None}
    with pytest.raises(theirs.InvalidArgument, match="B: expected a tensor where there is an"):
        sessions.run(BACKWARD, inputs, ["dX", "a", "b"], activation="relu")


@pytest.mark.parametrize("name", ["X", "scale", "input_mean"])
def test_other_types_are_refused(rng, name):
    inputs = forward_inputs(rng, SHAPE)
    inputs[name] = inputs[name].astype(np.int64)
    with pytest.raises(sessions.REFUSED):
        sessions.run(FORWARD, inputs, ["Y"])


def test_a_refused_run_writes_nothing(rng):
    inputs = forward_inputs(rng, SHAPE)
    shapes = {"scale": (None,)}
    one = sessions.session(sessions.model(FORWARD, inputs, ["Y"], shapes))
    y = np.full(SHAPE, 7.0, np.float32)
    binding = one.io_binding()
    for name, array in (inputs | {"scale": np.ones(4, np.float32)}).items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("Y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    with pytest.raises(RuntimeError, match=r"scale: expected shape \(5,\)"):
        one.run_with_iobinding(binding)
    assert (y == 7.0).all()


# The library


def test_register_takes_options_and_gives_them_back():
    options = onnxruntime.SessionOptions()
    assert bncore.onnxruntime.register(bncore.onnxruntime.register(options)) is options
    assert int(options.get_session_config_entry(library.THREADS)) >= 1
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 7
    bncore.onnxruntime.register(options)
    assert options.get_session_config_entry(library.THREADS) == "7"
    with pytest.raises(TypeError, match=r"options: expected onnxruntime\.SessionOptions, got dict"):
        bncore.onnxruntime.register({})


def test_an_old_onnxruntime_is_refused(monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.19.2")
    with pytest.raises(RuntimeError, match=r"onnxruntime 1\.20 or newer, got 1\.19\.2"):
        bncore.onnxruntime.register(onnxruntime.SessionOptions())


GET_API = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
GET_VERSION = ctypes.CFUNCTYPE(ctypes.c_void_p)
CREATE_STATUS = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)


class ApiBase(ctypes.Structure):
    """OrtApiBase: what a host gives to RegisterCustomOps."""

    _fields_ = (("get_api", GET_API), ("get_version", GET_VERSION))


def register_in_host(newest: int, text: str) -> tuple[int, list[tuple[int, str]]]:
    """Register in a host whose newest interface is this one; the status, and those that it made."""
    made = []

    def create_status(code, message):
        made.append((code, message.decode()))
        return 4711

    create = CREATE_STATUS(create_status)
    api = (ctypes.c_void_p * 1)(ctypes.cast(create, ctypes.c_void_p))  # its first entry
    version = ctypes.create_string_buffer(text.encode())
    base = ApiBase(
        GET_API(lambda asked: ctypes.addressof(api) if asked <= newest else None),
        GET_VERSION(lambda: ctypes.addressof(version)),
    )
    operators = ctypes.CDLL(bncore.onnxruntime.get_library_path())
    operators.RegisterCustomOps.restype = ctypes.c_void_p
    return operators.RegisterCustomOps(None, ctypes.byref(base)) or 0, made


def test_a_host_with_an_old_interface_gets_an_error():
    """Of any language: register in Python has looked at the version before."""
    status, made = register_in_host(19, "1.19.2")
    assert status == 4711
    message = "bncore: the operators need ONNX Runtime 1.20 or newer, and this is 1.19.2"
    assert made == [(FAIL, message)]


def test_a_host_with_no_interface_at_all_gets_an_error_too(capfd):
    status, made = register_in_host(0, "another program")
    assert status != 0
    assert made == []
    assert "need ONNX Runtime 1.20 or newer, and this is another program" in capfd.readouterr().err


@pytest.mark.parametrize("entry", ["0", "many"])
def test_a_wrong_number_of_threads_is_refused(entry):
    """As another binding than Python's might have it in the session's configuration."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(library.THREADS, entry)
    with pytest.raises(Exception, match=rf"bncore\.threads: expected an integer >= 1, got {entry}"):
        options.register_custom_ops_library(bncore.onnxruntime.get_library_path())


def test_without_the_header_the_error_says_where_it_is_to_be_had(monkeypatch, tmp_path):
    monkeypatch.setenv(library.INCLUDE, str(tmp_path))
    expected = f"libonnxruntime-dev .*Set {library.INCLUDE} .*Looked in {tmp_path}$"
    with pytest.raises(CompileError, match=expected):
        bncore.onnxruntime.get_library_path()


def test_an_old_header_is_refused(monkeypatch, tmp_path):
    (tmp_path / library.HEADER).write_text("#define ORT_API_VERSION 19\n")
    monkeypatch.setenv(library.INCLUDE, str(tmp_path))
    with pytest.raises(CompileError, match=r"ONNX Runtime 1\.20 or newer, got ORT_API_VERSION 19"):
        bncore.onnxruntime.get_library_path()
