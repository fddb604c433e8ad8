"""Settings and arrays of other libraries from files; `test_frameworks.py` tests their objects."""

from __future__ import annotations

from decimal import localcontext

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import tolerances
from bncore import BatchNorm
from bncore.layer.formats import from_tensor_proto

C = 3
EPS = 2.0**-10  # ONNX has it in float32


@pytest.fixture
def values(rng) -> list[np.ndarray]:
    """Weight, bias, running mean, running variance."""
    return [*rng.normal(size=(3, C)), rng.uniform(0.5, 2.0, C)]


@pytest.fixture
def layer(values) -> BatchNorm:
    made = BatchNorm(C, dtype=np.float64, momentum=0.2, eps=EPS)
    made.load_state_dict(dict(zip(made.state_dict(), [*values, 5], strict=True)))
    return made


def arrays_of(layer: BatchNorm) -> list[np.ndarray]:
    return [layer.weight, layer.bias, layer.running_mean, layer.running_var]


def assert_same(layer: BatchNorm, values: list[np.ndarray]) -> None:
    for got, want in zip(arrays_of(layer), values, strict=True):
        np.testing.assert_array_equal(got, want)
        assert not np.shares_memory(got, want)


# ------------------------------------------------------------------------------- dictionaries


def test_torch(layer, values):
    arguments, state = layer.to_torch()
    assert arguments == {
        "num_features": C, "eps": EPS, "momentum": 0.2, "affine": True,
        "track_running_stats": True,
    }  # fmt: skip
    again = BatchNorm.from_torch(state, eps=EPS)
    assert_same(again, values)
    assert (again.num_batches_tracked, again.momentum, again.correction) == (5, 0.1, 1.0)
    model = {f"net.0.bn.{name}": array for name, array in state.items()}
    model["net.0.weight"] = np.ones((2, 2))
    assert_same(BatchNorm.from_torch(model, prefix="net.0.bn."), values)
    del state["num_batches_tracked"]  # of files before PyTorch 0.4.1
    assert BatchNorm.from_torch(state).num_batches_tracked == 0


def test_torch_has_both_parameters_or_none(layer):
    del layer  # affine, the usual case, is above
    arguments, state = BatchNorm(C, affine="bias", dtype=np.float32).to_torch()
    assert arguments["affine"] and (state["weight"] == 1.0).all()
    arguments, state = BatchNorm(C, affine=False, momentum=None).to_torch()
    assert not arguments["affine"] and arguments["momentum"] is None
    assert list(state) == ["running_mean", "running_var", "num_batches_tracked"]
    plain = BatchNorm.from_torch(BatchNorm(C, track_running_stats=False, dtype="f4").to_torch()[1])
    assert not plain.track_running_stats and plain.affine is True


def test_keras(layer, values):
    layer.axis = -1
    arguments, weights = layer.freeze().to_keras()
    assert arguments == {
        "axis": -1, "momentum": 0.8, "epsilon": EPS, "center": True, "scale": True,
        "trainable": False,
    }  # fmt: skip
    again = BatchNorm.from_keras(arguments, weights)
    assert_same(again, values)
    assert (again.axis, again.eps, again.correction, again.frozen) == (-1, EPS, 0.0, True)
    assert again.momentum == 0.2
    assert_same(BatchNorm.from_keras({}, np.array(weights)), values)
    new = BatchNorm.from_keras({"axis": [3]})  # as older versions have it
    assert (new.axis, new.eps, new.momentum, new.channels) == (3, 1e-3, 0.01, None)
    for affine, names in [("weight", ["scale"]), ("bias", ["center"]), (False, [])]:
        one = BatchNorm(C, affine=affine, dtype=np.float64)
        arguments, weights = one.to_keras()
        assert [name for name in ("scale", "center") if arguments[name]] == names
        assert len(weights) == 2 + len(names)
        assert BatchNorm.from_keras(arguments, weights).affine == affine


def test_flax(layer, values):
    layer.axis = -1
    arguments, variables = layer.eval().to_flax()
    assert arguments == {
        "use_running_average": True, "axis": -1, "momentum": 0.8, "epsilon": EPS,
        "use_bias": True, "use_scale": True,
    }  # fmt: skip
    assert {name: list(part) for name, part in variables.items()} == {
        "params": ["scale", "bias"], "batch_stats": ["mean", "var"],
    }  # fmt: skip
    again = BatchNorm.from_flax(variables)
    assert_same(again, values)
    assert (again.axis, again.eps, again.momentum, again.correction) == (-1, 1e-5, 0.01, 0.0)
    _, variables = BatchNorm(C, affine=False, axis=-1).to_flax()
    assert list(variables) == ["batch_stats"]
    assert BatchNorm.from_flax(variables).affine is False


@pytest.mark.parametrize(
    ("evaluation", "frozen", "average"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
)
def test_flax_uses_running_averages_in_evaluation_and_where_frozen(
    layer, evaluation, frozen, average
):
    layer.train(not evaluation).freeze(frozen)
    assert layer.to_flax()[0]["use_running_average"] is average


def test_momentum_is_the_decimal_number_that_is_meant():
    for old, new in [(0.9, 0.1), (0.99, 0.01), (0.999, 0.001), (1, 0.0), (0.0, 1.0), (0.7, 0.3)]:
        layer = BatchNorm.from_keras({"momentum": old})
        assert layer.momentum == new
        layer.load_state_dict(BatchNorm(C, dtype=np.float64).state_dict())
        assert layer.to_keras()[0]["momentum"] == old
    with localcontext(prec=2):
        assert BatchNorm.from_keras({"momentum": 0.9375}).momentum == 0.0625
    with pytest.raises(ValueError, match="momentum: expected a finite number from 0 to 1, got nan"):
        BatchNorm.from_keras({"momentum": np.nan})


class Module:
    """The attributes by which a module of PyTorch is recognized."""

    def __init__(self, state: dict[str, np.ndarray] | None = None, **attributes: object) -> None:
        self.state = {} if state is None else state
        self.__dict__.update(attributes)

    def state_dict(self) -> dict[str, np.ndarray]:
        return self.state


class InstanceNorm2d(Module):
    """A class that is recognized only by its name."""


class MyInstanceNorm(InstanceNorm2d):
    """A class that is recognized by the name of its base."""


SETTINGS = {
    "num_features": C, "eps": EPS, "momentum": 0.2, "affine": True, "track_running_stats": True,
}  # fmt: skip


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_a_module_of_torch(affine, tracks):
    ours = BatchNorm(
        C, eps=EPS, momentum=0.2, affine=affine, track_running_stats=tracks, dtype=np.float64
    )
    arguments, state = ours.to_torch()
    again = BatchNorm.from_torch(Module(state, **arguments, training=False))
    assert not again.training
    assert (again.channels, again.affine, again.track_running_stats) == (C, affine, tracks)
    assert (again.eps, again.momentum) == (EPS, 0.2)
    assert again.to_torch()[0] == arguments
    named = BatchNorm.from_torch(Module(state, **arguments), activation="relu", eps=0.5)
    assert (named.activation, named.eps) == ("relu", 0.5)


@pytest.mark.parametrize("lacking", SETTINGS)
def test_another_module_of_torch_is_refused(lacking):
    settings = {name: value for name, value in SETTINGS.items() if name != lacking}
    state = BatchNorm(C, dtype=np.float64).to_torch()[1]
    message = "source: expected a BatchNorm module or its state dictionary, got"
    with pytest.raises(TypeError, match=f"{message} Module"):
        BatchNorm.from_torch(Module(state, **settings))
    for kind in (InstanceNorm2d, MyInstanceNorm):
        with pytest.raises(TypeError, match=f"{message} {kind.__name__}"):
            BatchNorm.from_torch(kind(state, **SETTINGS))


def test_a_module_of_torch_before_its_first_call_is_refused():
    module = Module(**{**SETTINGS, "num_features": 0}, cls_to_become=Module)
    with pytest.raises(ValueError, match="a layer that knows its channels, got Module before"):
        BatchNorm.from_torch(module)


# -------------------------------------------------------------------------------------- ONNX


def model_of(node: onnx.NodeProto, tensors: list[onnx.TensorProto]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("x", onnx.TensorProto.DOUBLE, None)],
        [value(name, onnx.TensorProto.DOUBLE, None) for name in node.output],
        initializer=tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])


def test_onnx_computes_the_same_of_what_we_write(rng, layer):
    node, arrays = layer.eval().to_onnx(prefix="bn.")
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    made = helper.make_node(**node)
    model = model_of(made, tensors)
    onnx.checker.check_node(made)
    x = rng.normal(size=(4, C, 5))
    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    assert np.abs(layer(x) - y).max() <= tolerances.FRAMEWORKS * np.abs(y).max()
    for initializers in (model.graph.initializer, {t.name: t for t in tensors}, arrays):
        for given in (made, node):
            again = BatchNorm.from_onnx(given, initializers)
            assert not again.training
            np.testing.assert_array_equal(again(x), BatchNorm.from_onnx(made, tensors)(x))
            assert_same(again, list(arrays.values()))


def test_ten_steps_beside_onnx(rng, values):
    """Training mode: the running statistics of each step are the next one's input."""
    names = ["scale", "B", "input_mean", "input_var"]
    node = helper.make_node(
        "BatchNormalization", ["x", *names], ["y", "mean", "var"], epsilon=0.25, momentum=0.75,
        training_mode=1,
    )  # fmt: skip
    arrays = dict(zip(names, values, strict=True))
    layer = BatchNorm.from_onnx(node, arrays)
    assert layer.training and (layer.eps, layer.momentum, layer.correction) == (0.25, 0.25, 0.0)
    for _ in range(10):
        x = rng.normal(rng.uniform(-3.0, 3.0), 2.0, (4, C, 5))
        tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        y, mean, var = ReferenceEvaluator(model_of(node, tensors)).run(None, {"x": x})
        arrays |= {"input_mean": mean, "input_var": var}
        pairs = [(layer(x), y), (layer.running_mean, mean), (layer.running_var, var)]
        for got, want in pairs:
            assert np.abs(got - want).max() <= tolerances.FRAMEWORKS * np.abs(want).max()


def test_onnx_defaults(values):
    node = {"inputs": ["x", "a", "b", "c", "d"]}
    layer = BatchNorm.from_onnx(node, dict(zip("abcd", values, strict=True)))
    assert (layer.eps, layer.momentum, layer.training) == (1e-5, 0.1, False)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_tensors_of_onnx_are_read(rng, dtype, raw):
    array = rng.normal(size=5).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    tensor = helper.make_tensor("t", kind, [5], array.tobytes() if raw else array, raw=raw)
    got = from_tensor_proto(tensor)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, array)


def test_parameters_that_are_missing_are_written_for_onnx():
    _, arrays = BatchNorm(C, affine=False, dtype=np.float32).to_onnx()
    assert [float(array[0]) for array in arrays.values()] == [1.0, 0.0, 0.0, 1.0]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


# ------------------------------------------------------------------------------------- errors


def f4(**settings) -> BatchNorm:
    return BatchNorm(2, dtype="f4", **settings)


STATE = {"weight": np.ones(C), "bias": np.ones(C)}
ONES = dict.fromkeys("abcd", np.ones(C))
NODE = {"inputs": ["x", *ONES]}
INTEGERS = {**ONES, "c": numpy_helper.from_array(np.ones(C, np.int64), "c")}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BatchNorm.from_torch({**STATE, "gamma": 1}), ValueError, "got gamma"),
        (lambda: BatchNorm.from_torch(STATE, prefix="bn."), ValueError, "bn.weight.*got none"),
        (lambda: BatchNorm.from_torch(3), TypeError, "source: expected a BatchNorm module or its"),
        (lambda: BatchNorm.from_torch({1: 2}), TypeError, "source: expected strings .* got 1"),
        (lambda: BatchNorm.from_torch(STATE, prefix=1), TypeError, "prefix: expected a string"),
        (
            lambda: BatchNorm.from_torch({"bn.num_batches_tracked": 3}, prefix="bn."),
            ValueError,
            "expected parameters or running statistics, got bn.num_batches_tracked",
        ),
        (
            lambda: BatchNorm.from_torch({**STATE, "running_mean": np.ones(2)}),
            ValueError,
            "state: expected the names",
        ),
        (lambda: BatchNorm.from_keras({}, [np.ones(C)]), ValueError, "expected gamma, beta, mov"),
        (lambda: BatchNorm.from_keras({}, 3), TypeError, "weights: expected a sequence .* got 3"),
        (
            lambda: BatchNorm.from_keras({"trainable": False}, track_running_stats=False),
            ValueError,
            "freeze: expected a layer with running statistics",
        ),
        (lambda: BatchNorm.from_keras({"renorm": True}), ValueError, "no renormalization"),
        (lambda: BatchNorm.from_keras({"momentum": None}), TypeError, "momentum as a number"),
        (lambda: BatchNorm.from_keras([1]), TypeError, "source: expected a layer"),
        (lambda: BatchNorm.from_flax({"params": {}, "stats": {}}), ValueError, "got stats"),
        (lambda: BatchNorm.from_flax({"batch_stats": {"bn": {}}}), ValueError, "got bn"),
        (lambda: BatchNorm.from_flax(None), TypeError, "source: expected a module or its"),
        (lambda: BatchNorm.from_onnx({"inputs": ["x"]}, {}), ValueError, "5 inputs, got .* of 1"),
        (lambda: BatchNorm.from_onnx({"op_type": "Add"}, {}), ValueError, "got Add of 0"),
        (lambda: BatchNorm.from_onnx({**NODE, "spatial": 0}, ONES), ValueError, "got spatial=0"),
        (lambda: BatchNorm.from_onnx(NODE, {"a": 1}), ValueError, "expected a, b, c, d, got no b"),
        (lambda: BatchNorm.from_onnx(NODE, INTEGERS), TypeError, "initializers: expected c of fl"),
        (lambda: f4(activation="relu").to_torch(), ValueError, "no activation"),
        (lambda: f4(axis=-1).to_torch(), ValueError, "to_torch: expected axis 1"),
        (lambda: f4(axis=-1).to_onnx(), ValueError, "to_onnx: expected axis 1"),
        (lambda: f4(momentum=None).to_keras(), ValueError, "cumulative"),
        (lambda: f4(momentum=None).to_flax(), ValueError, "cumulative"),
        (
            lambda: f4(track_running_stats=False).to_keras(),
            ValueError,
            "to_keras: expected a layer with running statistics",
        ),
        (lambda: BatchNorm().to_torch(), RuntimeError, "before its first call"),
        (
            lambda: BatchNorm(affine=False, track_running_stats=False).to_torch(),
            RuntimeError,
            "to_torch: expected a layer that knows its channels, got one before its first call",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call()
