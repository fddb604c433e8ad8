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
from good_arguments import FUNCTIONS, FUSION, SHAPE, Arguments, C, arguments_of, contents


@dataclass(frozen=True)
class Bad:
    """One wrong argument: how to make it from good ones, and which error must be raised."""

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
            and (name, self.argument) != ("mean_var", "out")
            and name not in ACCEPTED.get(self.id.rpartition("-")[2], ())
        ]


# For these functions the value is a good one.
READ_INTEGERS = ("moments", "mean_var", "batch_norm_infer")
ACCEPTED = {
    "bools": READ_INTEGERS,
    "uint16": READ_INTEGERS,
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
    """Return an output that begins one value after the start of an argument's memory."""

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
    """Return the wrong values of x, and of dy and the residual beside an x of float64."""
    dtypes = {
        "int": np.int64,
        "bools": np.bool_,
        "uint16": np.uint16,
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
        Bad(f"{name}-text", name, value("text"), TypeError, "'text' (open the file"),
        Bad(f"{name}-ragged", name, value([[1.0], [2.0, 3.0]]), TypeError, "list"),
    ]


def output_cases(name: str) -> list[Bad]:
    """Return the wrong values of out and dresidual."""
    one, gap = np.zeros(1), np.zeros(100)
    strided = np.lib.stride_tricks.as_strided
    apart = ("x", "dy", "residual", "weight", "bias", "mean", "var")
    return [
        Bad(f"{name}-shape", name, value(np.zeros((4, C, 6))), ValueError, "(4, 3, 6)"),
        Bad(f"{name}-rank", name, value(np.zeros((1, *SHAPE))), ValueError, "(1, 4, 3, 5)"),
        Bad(f"{name}-float32", name, value(np.zeros(SHAPE, np.float32)), TypeError, "float32"),
        Bad(f"{name}-int", name, value(np.zeros(SHAPE, np.int64)), TypeError, "int64"),
        Bad(f"{name}-list", name, value([0.0]), TypeError, "list"),
        Bad(f"{name}-masked", name, value(np.ma.zeros(SHAPE)), TypeError, "MaskedArray"),
        Bad(f"{name}-read-only", name, read_only, ValueError, "read-only"),
        Bad(f"{name}-one-element", name, value(strided(one, SHAPE, (0, 0, 0))), ValueError,
            "(0, 0, 0)"),
        Bad(f"{name}-overlaps-itself", name, value(strided(gap, SHAPE, (40, 16, 8))), ValueError,
            "(40, 16, 8)"),
        Bad(f"{name}-reversed-x", name, lambda arguments: arguments["x"][::-1], ValueError,
            "overlap"),
        *(Bad(f"{name}-overlaps-{other}", name, partial_overlap(other), ValueError, "overlap")
          for other in apart),
    ]  # fmt: skip


def parameter_cases(name: str, *, required: bool) -> list[Bad]:
    """Return the wrong values of a per-channel array."""
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
    """Return the wrong values of eps, axis, n_threads and the options of the statistics."""
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
        Bad("activation-unknown", "activation", value("tanh"), ValueError, "'tanh'"),
        Bad("activation-case", "activation", value("ReLU"), ValueError, "'ReLU'"),
        Bad("activation-bool", "activation", value(True), TypeError, "True"),
        Bad("activation-function", "activation", value(np.tanh), TypeError, "ufunc"),
        Bad("negative_slope-negative", "negative_slope", value(-0.1), ValueError, "-0.1"),
        Bad("negative_slope-nan", "negative_slope", value(float("nan")), ValueError, "nan"),
        Bad("negative_slope-inf", "negative_slope", value(float("inf")), ValueError, "inf"),
        Bad("negative_slope-text", "negative_slope", value("0.1"), TypeError, "'0.1'"),
        Bad("negative_slope-None", "negative_slope", value(None), TypeError, "None"),
        Bad("negative_slope-array", "negative_slope", value(np.ones(C)), TypeError, "ndarray"),
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
    Bad("dy-float16", "dy", as_dtype("dy", np.float16), TypeError, "float16"),
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
    *[bad for bad in data_cases("residual") if bad.id != "residual-None"],
    Bad("residual-shape", "residual", value(np.ones((1, 1, 3, 3))), ValueError, "(1, 1, 3, 3)"),
    Bad("residual-broadcast", "residual", value(np.ones((1, C, 1))), ValueError, "(1, 3, 1)"),
    Bad("residual-float32", "residual", as_dtype("residual", np.float32), TypeError, "float32"),
    *output_cases("out"),
    *output_cases("dresidual"),
    Bad("dresidual-x", "dresidual", lambda arguments: arguments["x"], ValueError, "overlap"),
    Bad("dresidual-out", "dresidual", lambda arguments: arguments["out"], ValueError, "overlap"),
    Bad("dresidual-overlaps-out", "dresidual", partial_overlap("out"), ValueError, "overlap"),
    *scalar_cases(),
]  # fmt: skip

NEEDS = {
    f"overlaps-{name}": name
    for name in ("x", "dy", "residual", "weight", "bias", "mean", "var", "out")
}


def applies(bad: Bad, name: str) -> bool:
    """Tell whether the function has the other argument that the case needs."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    return all(needed in parameters for text, needed in NEEDS.items() if bad.id.endswith(text))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_good_arguments_are_good(backend, name):
    FUNCTIONS[name](**arguments_of(name))


def ways(bad: Bad, name: str) -> list[bool]:
    """Tell whether the other arguments fuse something, because the fast path treats that apart."""
    if "residual" not in inspect.signature(FUNCTIONS[name]).parameters:
        return [False]
    return [True] if bad.argument in FUSION or "-residual" in bad.id else [False, True]


def grouped() -> dict[tuple[str, str, bool], list[Bad]]:
    """Group the wrong arguments by function, argument and what else is fused: a test each."""
    groups: dict[tuple[str, str, bool], list[Bad]] = {}
    for bad in BAD:
        for name in bad.functions():
            for fused in ways(bad, name) if applies(bad, name) else []:
                groups.setdefault((name, bad.argument, fused), []).append(bad)
    return groups


GROUPS = grouped()
BY_GROUP = [f"{name}-{argument}{'-fused' * fused}" for name, argument, fused in GROUPS]


@pytest.mark.parametrize("group", GROUPS, ids=BY_GROUP)
def test_bad_argument(backend, group):
    name, argument, fused = group
    for bad in GROUPS[group]:
        arguments = arguments_of(name, fused=fused)
        arguments[argument] = bad.make(arguments)
        before = contents(arguments)
        try:
            FUNCTIONS[name](**arguments)
        except (TypeError, ValueError) as error:
            raised = error
        else:
            pytest.fail(f"{bad.id}: expected {bad.error.__name__}, got a result")
        assert isinstance(raised, bad.error), (bad.id, raised)
        assert type(raised) in (TypeError, ValueError, np.exceptions.AxisError), bad.id
        message = str(raised)
        assert message.startswith(f"{argument}: expected "), (bad.id, message)
        assert bad.got in message.partition(", got ")[2], (bad.id, message)
        assert contents(arguments) == before, bad.id
