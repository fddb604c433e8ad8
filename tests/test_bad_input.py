"""Bad input: one table of wrong arguments, for every public function and every backend.

A wrong argument raises TypeError or ValueError, with a message that names it, before anything is
written. Ids such as S1 or N15 name reports against other libraries, where that input crashed or
gave nonsense. What looks bad and has a documented result instead is in `test_odd_input.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import bncore

C = 3
SHAPE = (4, C, 5)
Arguments = dict[str, Any]


# ---------------------------------------------------------------------------------- good arguments


def good_arguments() -> Arguments:
    """Arguments by name, right for every function that has a parameter of that name."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal(SHAPE)
    dy = rng.standard_normal(SHAPE)
    moments = bncore.moments(x)
    return {
        "x": x,
        "dy": dy,
        "weight": rng.standard_normal(C),
        "bias": rng.standard_normal(C),
        "mean": rng.standard_normal(C),
        "var": rng.uniform(0.5, 2.0, C),
        "moments": moments,
        "sums": bncore.grad_sums(dy, x, moments),
        "out": np.full(SHAPE, 7.0),
        "axis": 1,
        "eps": 1e-5,
        "n_threads": 1,
        "running_mean": rng.standard_normal(C),
        "running_var": rng.uniform(0.5, 2.0, C),
        "momentum": 0.1,
        "correction": 1,
        "keepdims": False,
    }


FUNCTIONS = {
    function.__name__: function
    for function in (
        bncore.batch_norm_train,
        bncore.batch_norm_train_backward,
        bncore.batch_norm_infer,
        bncore.batch_norm_infer_backward,
        bncore.moments,
        bncore.normalize,
        bncore.grad_sums,
        bncore.grad_input,
        bncore.mean_var,
        bncore.update_running_stats,
    )
}


def arguments_of(name: str) -> Arguments:
    good = good_arguments()
    return {
        parameter: good[parameter] for parameter in inspect.signature(FUNCTIONS[name]).parameters
    }


def contents(arguments: Arguments) -> dict[str, bytes]:
    """Every byte of every array among the arguments."""
    found = {}
    for name, value in arguments.items():
        if isinstance(value, bncore.Moments):
            found[name] = value.mean.tobytes() + value.m2.tobytes()
        elif isinstance(value, bncore.GradSums):
            found[name] = value.sum_dy.tobytes() + value.sum_dy_xhat.tobytes()
        elif isinstance(value, np.ndarray) and value.dtype != object:
            found[name] = value.tobytes()
    return found


# -------------------------------------------------------------------------------- the table of bad


@dataclass(frozen=True)
class Bad:
    """One wrong argument: how to make it from good ones, and what must be raised."""

    id: str
    argument: str
    make: Callable[[Arguments], Any]
    error: type[Exception]
    got: str  # what the message says that came

    def functions(self) -> list[str]:
        return [
            name
            for name, function in FUNCTIONS.items()
            if self.argument in inspect.signature(function).parameters
            and name not in ACCEPTED.get(self.id.rpartition("-")[2], ())
        ]


# For these functions the value is a good one.
ACCEPTED = {
    "rank0": ("mean_var",),
    "rank1": ("mean_var",),
    "AxisNone": ("mean_var",),
    "NoBatch": ("update_running_stats",),
    # There, running_mean has to fit moments, so it is the one that is named.
    "channels": ("update_running_stats",),
    "FewerCount": ("normalize", "update_running_stats"),
    "OtherCount": ("normalize", "grad_sums", "grad_input", "update_running_stats"),
}


def partial_overlap(name: str) -> Callable[[Arguments], np.ndarray]:
    """Give an `out` that begins one value after the start of an argument's memory."""

    def make(arguments: Arguments) -> np.ndarray:
        if name not in arguments:
            pytest.skip(f"this function has no {name}")
        values = arguments[name]
        memory = np.zeros(values.size + np.prod(SHAPE))
        arguments[name] = memory[: values.size].reshape(values.shape)
        arguments[name][...] = values
        return memory[1 : 1 + np.prod(SHAPE)].reshape(SHAPE)

    return make


def read_only(arguments: Arguments) -> np.ndarray:
    out = np.zeros(SHAPE)
    out.flags.writeable = False
    return out


def masked(name: str, wrapped: Callable[[Any], Any] = lambda a: a) -> Callable[[Arguments], Any]:
    return lambda arguments: wrapped(np.ma.masked_less(np.array(arguments[name]), 9.0))


def as_dtype(name: str, dtype: Any) -> Callable[[Arguments], Any]:
    return lambda arguments: arguments[name].astype(dtype)


def value(bad: Any) -> Callable[[Arguments], Any]:
    return lambda arguments: bad


def data_cases(name: str) -> list[Bad]:
    """What x, and dy, must not be."""
    dtypes = {
        "int": np.int64,
        "bool": np.bool_,
        "N13-N14-float16": np.float16,
        "longdouble": np.longdouble,
        "complex": np.complex128,
        "object": object,
        "str": "U8",
    }
    cases = [
        Bad(f"{name}-{label}", name, as_dtype(name, dtype), TypeError, str(np.dtype(dtype)))
        for label, dtype in dtypes.items()
    ]
    return [
        *cases,
        Bad(f"{name}-masked", name, masked(name), TypeError, "MaskedArray"),
        Bad(f"{name}-masked-list", name, masked(name, list), TypeError, "in a list"),
        Bad(f"{name}-None", name, value(None), TypeError, "None"),
        Bad(f"{name}-text", name, value("text"), TypeError, "U4"),
        Bad(f"{name}-ragged", name, value([[1.0], [2.0, 3.0]]), TypeError, "list"),
    ]


def parameter_cases(name: str, *, required: bool) -> list[Bad]:
    """What a per-channel array must not be."""
    shapes = {
        "S1-S6-S16-short": (C - 1,),
        "S1-long": (C + 1,),
        "S1-S3-S5-empty": (0,),
        "S10-one": (1,),
        "rank2": (1, C),
        "rank0": (),
        "S9-rank10": (0, C, 1, 1, 0, 1, 1, 1, 1, 1),
        "broadcast": (1, C, 1),
    }
    dtypes = {"int": np.int64, "bool": np.bool_, "complex": np.complex64, "object": object}
    array = name.startswith("running")
    cases = [
        Bad(f"{name}-{label}", name, value(np.ones(shape)), ValueError, str(shape))
        for label, shape in shapes.items()
    ]
    cases += [
        Bad(f"{name}-{label}", name, as_dtype(name, dtype), TypeError, str(np.dtype(dtype)))
        for label, dtype in dtypes.items()
    ]
    cases.append(Bad(f"{name}-masked", name, masked(name), TypeError, "MaskedArray"))
    cases.append(Bad(f"{name}-text", name, value("abc"), TypeError, "'abc'" if array else "U3"))
    if not array:
        cases.append(Bad(f"{name}-masked-list", name, masked(name, list), TypeError, "in a list"))
    if required:
        cases.append(Bad(f"{name}-S7-S8-None", name, value(None), TypeError, "None"))
    return cases


def scalar_cases() -> list[Bad]:
    """What eps, axis, n_threads and the options of the statistics must not be."""
    return [
        Bad("eps-N15-N17-negative", "eps", value(-1.0), ValueError, "-1.0"),
        Bad("eps-tiny-negative", "eps", value(-1e-300), ValueError, "-1e-300"),
        Bad("eps-nan", "eps", value(float("nan")), ValueError, "nan"),
        Bad("eps-inf", "eps", value(float("inf")), ValueError, "inf"),
        Bad("eps-huge-int", "eps", value(10**400), ValueError, "10000"),
        Bad("eps-text", "eps", value("1e-5"), TypeError, "'1e-5'"),
        Bad("eps-None", "eps", value(None), TypeError, "None"),
        Bad("eps-bool", "eps", value(True), TypeError, "True"),
        Bad("eps-complex", "eps", value(1e-5j), TypeError, "complex"),
        Bad("eps-array", "eps", value(np.full(C, 1e-5)), TypeError, "ndarray"),
        Bad("axis-high", "axis", value(3), ValueError, "3"),
        Bad("axis-low", "axis", value(-4), ValueError, "-4"),
        Bad("axis-huge", "axis", value(2**70), ValueError, str(2**70)),
        Bad("axis-float", "axis", value(1.0), TypeError, "1.0"),
        Bad("axis-bool", "axis", value(True), TypeError, "True"),
        Bad("axis-text", "axis", value("1"), TypeError, "'1'"),
        Bad("axis-AxisNone", "axis", value(None), TypeError, "None"),
        Bad("n_threads-zero", "n_threads", value(0), ValueError, "0"),
        Bad("n_threads-negative", "n_threads", value(-1), ValueError, "-1"),
        Bad("n_threads-float", "n_threads", value(2.0), TypeError, "2.0"),
        Bad("n_threads-bool", "n_threads", value(True), TypeError, "True"),
        Bad("n_threads-text", "n_threads", value("2"), TypeError, "'2'"),
        Bad("momentum-N18-negative", "momentum", value(-0.1), ValueError, "-0.1"),
        Bad("momentum-N18-above-1", "momentum", value(1.5), ValueError, "1.5"),
        Bad("momentum-nan", "momentum", value(float("nan")), ValueError, "nan"),
        Bad("momentum-None", "momentum", value(None), TypeError, "None"),
        Bad("momentum-text", "momentum", value("0.1"), TypeError, "'0.1'"),
        Bad("correction-nan", "correction", value(float("nan")), ValueError, "nan"),
        Bad("correction-inf", "correction", value(float("inf")), ValueError, "inf"),
        Bad("correction-text", "correction", value("1"), TypeError, "'1'"),
        Bad("keepdims-text", "keepdims", value("yes"), TypeError, "'yes'"),
    ]


def moments_of(channels: int, count: int = 20) -> bncore.Moments:
    return bncore.Moments(count, np.zeros(channels), np.ones(channels))


BAD = [
    *data_cases("x"),
    Bad("x-rank0", "x", value(np.array(1.0)), ValueError, "0"),
    Bad("x-S11-S23-rank1", "x", value(np.ones(4)), ValueError, "1"),
    *data_cases("dy"),
    Bad("dy-S2-shape", "dy", value(np.ones((1, 1, 3, 3))), ValueError, "(1, 1, 3, 3)"),
    Bad("dy-S14-empty", "dy", value(np.ones((0, 128))), ValueError, "(0, 128)"),
    Bad("dy-broadcast", "dy", value(np.ones((1, C, 1))), ValueError, "(1, 3, 1)"),
    Bad("dy-float32", "dy", as_dtype("dy", np.float32), TypeError, "float32"),
    *parameter_cases("weight", required=False),
    *parameter_cases("bias", required=False),
    *parameter_cases("mean", required=True),
    *parameter_cases("var", required=True),
    *parameter_cases("running_mean", required=True),
    *parameter_cases("running_var", required=True),
    Bad("running_mean-list", "running_mean", value([0.0] * C), TypeError, "list"),
    Bad("running_var-list", "running_var", value([1.0] * C), TypeError, "list"),
    Bad("running_mean-one-element-thrice", "running_mean",
        value(np.lib.stride_tricks.as_strided(np.ones(1), (C,), (0,))), ValueError, "(0,)"),
    Bad("running_var-W5-same-memory", "running_var",
        lambda arguments: arguments["running_mean"], ValueError, "overlap"),
    Bad("running_var-W5-reversed", "running_var",
        lambda arguments: arguments["running_mean"][::-1], ValueError, "overlap"),
    Bad("moments-S2-S15-channels", "moments", value(moments_of(C + 1)), ValueError, "4"),
    Bad("moments-zero-channels", "moments", value(moments_of(0)), ValueError, "0"),
    Bad("moments-OtherCount", "moments", value(moments_of(C, 21)), ValueError, "21"),
    Bad("moments-FewerCount", "moments", value(moments_of(C, 19)), ValueError, "19"),
    Bad("moments-NoBatch", "moments", value(moments_of(C, 0)), ValueError, "0"),
    Bad("moments-W7-invstd", "moments", value(np.ones(C)), TypeError, "ndarray"),
    Bad("moments-None", "moments", value(None), TypeError, "None"),
    Bad("moments-tuple", "moments", value((20, np.ones(C), np.ones(C))), TypeError, "tuple"),
    Bad("sums-channels", "sums", value(bncore.GradSums(np.ones(2), np.ones(2))), ValueError, "2"),
    Bad("sums-None", "sums", value(None), TypeError, "None"),
    Bad("sums-tuple", "sums", value((np.ones(C), np.ones(C))), TypeError, "tuple"),
    Bad("out-shape", "out", value(np.zeros((4, C, 6))), ValueError, "(4, 3, 6)"),
    Bad("out-rank", "out", value(np.zeros((1, *SHAPE))), ValueError, "(1, 4, 3, 5)"),
    Bad("out-float32", "out", value(np.zeros(SHAPE, np.float32)), TypeError, "float32"),
    Bad("out-int", "out", value(np.zeros(SHAPE, np.int64)), TypeError, "int64"),
    Bad("out-list", "out", value([0.0]), TypeError, "list"),
    Bad("out-masked", "out", value(np.ma.zeros(SHAPE)), TypeError, "MaskedArray"),
    Bad("out-read-only", "out", read_only, ValueError, "read-only"),
    Bad("out-one-element", "out",
        value(np.lib.stride_tricks.as_strided(np.zeros(1), SHAPE, (0, 0, 0))),
        ValueError, "(0, 0, 0)"),
    Bad("out-overlaps-itself", "out",
        value(np.lib.stride_tricks.as_strided(np.zeros(100), SHAPE, (40, 16, 8))),
        ValueError, "(40, 16, 8)"),
    Bad("out-overlaps-x", "out", partial_overlap("x"), ValueError, "overlap"),
    Bad("out-reversed-x", "out", lambda arguments: arguments["x"][::-1], ValueError, "overlap"),
    Bad("out-overlaps-dy", "out", partial_overlap("dy"), ValueError, "overlap"),
    Bad("out-W6-overlaps-weight", "out", partial_overlap("weight"), ValueError, "overlap"),
    Bad("out-W6-overlaps-bias", "out", partial_overlap("bias"), ValueError, "overlap"),
    Bad("out-overlaps-mean", "out", partial_overlap("mean"), ValueError, "overlap"),
    Bad("out-overlaps-var", "out", partial_overlap("var"), ValueError, "overlap"),
    *scalar_cases(),
]  # fmt: skip

NEEDS = {f"overlaps-{name}": name for name in ("x", "dy", "weight", "bias", "mean", "var")}


def applies(bad: Bad, name: str) -> bool:
    """Whether the function has the other argument that the case is about."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    return all(needed in parameters for text, needed in NEEDS.items() if bad.id.endswith(text))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_good_arguments_are_good(backend, name):
    FUNCTIONS[name](**arguments_of(name))


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        pytest.param(bad, name, id=f"{name}-{bad.id}")
        for bad in BAD
        for name in bad.functions()
        if applies(bad, name)
    ],
)
def test_bad_argument(backend, bad, name):
    arguments = arguments_of(name)
    arguments[bad.argument] = bad.make(arguments)
    before = contents(arguments)
    with pytest.raises(bad.error) as raised:
        FUNCTIONS[name](**arguments)
    assert type(raised.value) in (TypeError, ValueError, np.exceptions.AxisError)
    message = str(raised.value)
    assert message.startswith(f"{bad.argument}: expected "), message
    assert bad.got in message.partition(", got ")[2], message
    assert contents(arguments) == before


# ------------------------------------------------------------------ one value, and the statistics

ONE_VALUE = [(1, 1), (1, 3), (1, 3, 1, 1), (1, 0)]


@pytest.mark.parametrize("shape", ONE_VALUE, ids=lambda shape: f"N10-N11-N12-{shape}")
def test_one_value_per_channel_is_no_batch(backend, shape):
    x, out = np.ones(shape), np.full(shape, 7.0)
    with pytest.raises(ValueError) as raised:
        bncore.batch_norm_train(x, out=out)
    assert str(raised.value) == (
        f"Expected more than 1 value per channel when training, got input size {shape}"
    )
    assert (out == 7.0).all()


@pytest.mark.parametrize("count", [0, 1])
def test_running_variance_needs_more_values_than_the_correction(count):
    mean, var = np.zeros(C), np.ones(C)
    moments = bncore.Moments(count, np.ones(C), np.zeros(C))
    if count == 0:
        bncore.update_running_stats(mean, var, moments)
    else:
        with pytest.raises(ValueError, match=r"^moments: expected count > correction = 1, got 1$"):
            bncore.update_running_stats(mean, var, moments)
    assert (mean == 0.0).all() and (var == 1.0).all()


MOMENTS = [
    pytest.param("count", (-(2**63), np.ones(3), np.ones(3)), ValueError, id="S18-count"),
    pytest.param("count", (2**63, np.ones(3), np.ones(3)), ValueError, id="count-huge"),
    pytest.param("count", (2.0, np.ones(3), np.ones(3)), TypeError, id="count-float"),
    pytest.param("count", (True, np.ones(3), np.ones(3)), TypeError, id="count-bool"),
    pytest.param("mean", (2, np.ones((2, 3)), np.ones(3)), ValueError, id="S18-mean-rank2"),
    pytest.param("mean", (2, np.ones(3, int), np.ones(3)), TypeError, id="mean-int"),
    pytest.param("m2", (2, np.ones(3), np.ones(2)), ValueError, id="m2-short"),
    pytest.param("m2", (2, np.ones(3), np.ones(3, complex)), TypeError, id="m2-complex"),
    pytest.param("m2", (2, np.ones(3), np.array([1.0, -1e-9, 0.0])), ValueError, id="m2-negative"),
    pytest.param("m2", (2, np.ones(3), np.ma.ones(3)), TypeError, id="m2-masked"),
]


@pytest.mark.parametrize(("argument", "given", "error"), MOMENTS)
def test_moments_of_nonsense(argument, given, error):
    with pytest.raises(error, match=f"^{argument}: expected "):
        bncore.Moments(*given)


def test_grad_sums_of_nonsense():
    with pytest.raises(ValueError, match=r"^sum_dy_xhat: expected shape \(3,\), got \(2,\)$"):
        bncore.GradSums(np.ones(3), np.ones(2))
    with pytest.raises(TypeError, match=r"^sum_dy: expected a real floating dtype, got int64 \("):
        bncore.GradSums(np.ones(3, int), np.ones(3))
