"""bncore.onnxruntime with float16 and bfloat16, and with T, T1 and T2 of ONNX apart."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import bncore
import bncore.onnxruntime
import onnxruntime_sessions as sessions
import tolerances
from onnxruntime_sessions import EPS, OLD, forward_inputs

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ONNX's own package brings it")

pytestmark = pytest.mark.needs_onnxruntime

FORWARD, BACKWARD = "BatchNormalization", "BatchNormalizationGrad"
TRAINED = ["Y", "running_mean", "running_var", "saved_mean", "saved_var"]
GRADIENTS = ["dX", "dscale", "dB"]
TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
every_type = pytest.mark.parametrize("t", TYPES, ids=lambda t: t.__name__)


def run(op, inputs, outputs, **attributes):
    """The outputs as float64, which holds values of every type exactly."""
    made = sessions.with_casts(sessions.model(op, inputs, outputs, **attributes))
    given = {
        name: array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
        for name, array in inputs.items()
    }
    return sessions.session(made).run(None, given)


def assert_values(got, expected):
    for one, want in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, want.astype(np.float64))


def mixed(rng, shape, axis, t, t1, t2):
    inputs = forward_inputs(rng, shape, axis, np.float64)
    types = {"X": t, "scale": t1, "B": t1, "input_mean": t2, "input_var": t2}
    return {name: array.astype(types[name]) for name, array in inputs.items()}


@every_type
def test_every_t1_and_t2_has_the_bits_of_numpy(rng, t):
    for t1 in TYPES:
        for t2 in TYPES:
            inputs = mixed(rng, (6, 5, 7), 1, t, t1, t2)
            x, scale, bias, mean, var = inputs.values()
            got = run(FORWARD, inputs, TRAINED, training_mode=1)
            y, moments = bncore.batch_norm_train(x, scale, bias, eps=EPS)
            dy = rng.normal(size=x.shape).astype(t)
            given = {"dY": dy, "X": x, "scale": scale, "mean": mean, "var": var}
            gradients = run(BACKWARD, given, GRADIENTS, training_mode=0)
            want = bncore.batch_norm_infer_backward(dy, x, mean, var, scale, eps=EPS)
            assert_values(gradients, want)
            bncore.update_running_stats(mean, var, moments, momentum=1.0 - OLD, correction=0)
            assert_values(got, [y, mean, var, moments.mean, moments.var()])


@pytest.mark.parametrize("t", TYPES[:2], ids=lambda t: t.__name__)
@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 16, 9), 1), ((3, 16, 9, 5), -1)], ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "leaky_relu-residual"])
def test_sixteen_bits_have_the_bits_of_numpy(rng, t, shape, axis, fused):
    """In training, and its gradient; in inference. T1 and T2 are float, as in mixed precision."""
    inputs = mixed(rng, shape, axis, t, np.float32, np.float32)
    x, scale, bias, mean, var = inputs.values()
    dy, residual = rng.normal(size=(2, *shape)).astype(t)
    extra = {"residual": residual} if fused else {}
    fusion = {"activation": "leaky_relu", "negative_slope": 0.25} if fused else {}
    attributes, one = {"axis": axis, **fusion}, {"axis": axis, "eps": EPS, **fusion, **extra}
    y, moments = bncore.batch_norm_train(x, scale, bias, **one)
    got = run(FORWARD, inputs | extra, ["Y"], training_mode=1, **attributes)
    assert_values(got, [y])
    want = bncore.batch_norm_infer(x, mean, var, scale, bias, **one)
    assert_values(run(FORWARD, inputs | extra, ["Y"], **attributes), [want])
    given = {"dY": dy, "X": x, "scale": scale, "mean": moments.mean, "var": moments.var()}
    outputs = [*GRADIENTS, "dresidual"] if fused else GRADIENTS
    dresidual = np.empty_like(x)
    want = bncore.batch_norm_train_backward(
        dy, x, moments, scale, bias=bias, dresidual=dresidual, **one
    )
    got = run(BACKWARD, given | {"B": bias} | extra, outputs, **attributes)
    assert_values(got, [*want, *([dresidual] if fused else [])])


def float16_model(training: bool) -> onnx.ModelProto:
    """A model as converters to float16 leave it: weights and arrays in float16, channels first."""
    more = ", m2, v2" if training else ""
    outputs = ", float16[5] m2, float16[5] v2" if training else ""
    made = onnx.parser.parse_model(f"""
    <ir_version: 8, opset_import: ["" : 15]>
    layer (float16[N,5,H,W] x) => (float16[N,5,H,W] y{outputs})
    <float16[5] scale, float16[5] bias, float16[5] mean, float16[5] var>
    {{ z{more} = BatchNormalization<training_mode = {int(training)}>(x, scale, bias, mean, var)
       y = Relu(z) }}""")
    rng = np.random.default_rng(3)
    for name in ("scale", "bias", "mean", "var"):
        values = rng.uniform(0.5, 2.0, 5).astype(np.float16)
        made.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return made


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_a_model_in_float16_gives_the_results_of_onnx(rng, training):
    """ONNX's reference computes with float32 here, and its results are rounded once."""
    x = rng.normal(1.0, 2.0, (4, 5, 8, 6)).astype(np.float16)
    made = float16_model(training)
    reference = onnx.ModelProto.FromString(made.SerializeToString())
    for tensor in reference.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for info in [*reference.graph.input, *reference.graph.output]:
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    want = ReferenceEvaluator(reference).run(None, {"x": x.astype(np.float32)})
    bncore.onnxruntime.convert(made, inference=True)
    assert made.graph.node[0].domain == "bncore"
    got = sessions.session(made).run(None, {"x": x})
    for one, expected in zip(got, want, strict=True):
        assert one.dtype == np.float16
        unit = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float64)
        allowed = tolerances.ONNX_FLOAT16_ULP * unit + tolerances.ONNX_ATOL
        assert (np.abs(one.astype(np.float64) - expected) <= allowed).all()


@pytest.mark.parametrize("t", TYPES[:2], ids=lambda t: t.__name__)
def test_types_that_do_not_fit_are_refused(rng, t):
    """scale and B have one type, and so have the mean and the variance, as in ONNX."""
    inputs = mixed(rng, (4, 5, 6), 1, t, np.float32, np.float32)
    for name in ("B", "input_var"):
        with pytest.raises(sessions.REFUSED):
            run(FORWARD, inputs | {name: inputs[name].astype(np.float16)}, ["Y"])
    with pytest.raises(sessions.REFUSED):
        run(FORWARD, inputs | {"residual": np.ones((4, 5, 6), np.float32)}, ["Y"])
